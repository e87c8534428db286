"""How long one node that decides alone is waited for: one timer for all answers, each in its own time."""

from __future__ import annotations

import asyncio
import math
from typing import Any

from lockguard._awaiting import AnswerBounds

LONG_S = 0.3
SHORT_S = 0.05


class Waits:
    """Answers that are waited for, and what was given up, in order."""

    def __init__(self) -> None:
        self.bounds = AnswerBounds(LONG_S, self._give_up)
        self.given_up: list[tuple[str, float, float]] = []
        self._names: dict[asyncio.Future[Any], str] = {}
        self._began_at = asyncio.get_running_loop().time()

    def expect(self, name: str, within_s: float = math.inf) -> asyncio.Future[Any]:
        asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._names[asked] = name
        return self.bounds.expect(asked, within_s)

    def _give_up(self, asked: asyncio.Future[Any], within_s: float) -> None:
        after_s = asyncio.get_running_loop().time() - self._began_at
        self.given_up.append((self._names[asked], within_s, after_s))
        asked.set_result(None)


async def test_each_answer_is_given_up_in_its_own_time_whatever_stands_before_it():
    waits = Waits()
    asked = [waits.expect("long"), waits.expect("short", SHORT_S), waits.expect("longer than all", 60.0)]
    await asyncio.wait(asked)
    assert [name for name, _, _ in waits.given_up] == ["short", "long", "longer than all"]
    assert [within_s for _, within_s, _ in waits.given_up] == [SHORT_S, LONG_S, LONG_S]
    assert all(after_s >= within_s - 0.01 for _, within_s, after_s in waits.given_up)


async def test_an_answer_that_came_is_not_given_up_and_leaves_no_timer_once_all_have_come():
    waits = Waits()
    slow, quick = waits.expect("slow"), waits.expect("quick", SHORT_S)
    quick.set_result("came")
    await asyncio.wait([slow])
    assert [name for name, _, _ in waits.given_up] == ["slow"]
    assert quick.result() == "came"
    assert waits.bounds._timer is None


async def test_what_is_asked_after_all_was_given_up_is_bounded_again():
    waits = Waits()
    await waits.expect("first", SHORT_S)
    await waits.expect("second", SHORT_S)
    assert [name for name, _, _ in waits.given_up] == ["first", "second"]
