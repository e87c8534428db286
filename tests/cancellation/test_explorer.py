"""The explorer convicts calls that are known to leave something behind, and no others."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

import pytest

from lockguard_lab.cancellation import How, Outcome, Point, cancelled_at, complaints, points_of


class Door:
    """Opened by a request whose answer takes a turn of the loop."""

    def __init__(self) -> None:
        self.open = False

    def ask(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()

        def arrive() -> None:
            self.open = True
            loop.call_soon(lambda: answer.done() or answer.set_result(None))

        loop.call_soon(arrive)
        return answer


async def sound(door: Door) -> None:
    try:
        await door.ask()
    finally:
        door.open = False


async def forgetful(door: Door) -> None:
    """Closes only what it has seen opened."""
    await door.ask()
    try:
        await asyncio.sleep(0)
    finally:
        door.open = False


async def hasty(door: Door) -> None:
    """Awaits in its cleanup, where a second cancel arrives."""
    try:
        await door.ask()
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        door.open = False


async def deaf(door: Door) -> None:
    """Takes the cancel for an error of the request."""
    try:
        await door.ask()
    except BaseException:
        pass
    door.open = False


async def tries(call: Callable[[Door], Awaitable[None]]) -> dict[str, Outcome]:
    """What came out at each point, with a mark where the door was left open."""
    found = {}
    steps = (await cancelled_at(lambda: call(Door()))).steps
    for point in points_of(steps):
        door = Door()
        outcome = await cancelled_at(lambda door=door: call(door), point)
        await asyncio.sleep(0)
        found[f"{point}{' open' if door.open else ''}"] = outcome
    return found


async def test_what_gives_back_whatever_it_took_is_sound() -> None:
    found = await tries(sound)
    assert {how: sum(told.startswith(how) for told in found) for how in How} == {
        How.CANCEL: 4,
        How.LATE: 4,
        How.TIMEOUT: 1,
        How.GROUP: 1,
    }
    assert [told for told in found if told.endswith("open")] == []
    assert {outcome.ended for outcome in found.values() if outcome.struck} == {"cancelled"}


async def test_what_closes_only_what_it_has_seen_opened_is_convicted_by_a_late_cancel() -> None:
    assert "late at step 1 open" in await tries(forgetful)


async def test_what_awaits_while_it_tidies_up_is_convicted_by_a_second_cancel() -> None:
    assert "cancel at step 1 and 1 steps later open" in await tries(hasty)
    assert "late at step 1 open" not in await tries(hasty)


async def test_a_swallowed_cancel_is_told() -> None:
    outcome = (await tries(deaf))["late at step 1"]
    assert (outcome.ended, outcome.struck) == ("returned", 1)


async def test_a_step_of_a_task_that_the_call_starts_counts() -> None:
    async def inner() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def call() -> None:
        await asyncio.gather(inner(), inner())

    assert (await cancelled_at(call)).steps == 11


async def test_what_nobody_retrieved_or_awaited_is_told() -> None:
    async def failing() -> None:
        raise ValueError

    with complaints() as told:
        task = asyncio.create_task(failing())
        await asyncio.sleep(0)
        del task
        gc.collect()
        failing()
        gc.collect()
    assert len(told) == 2
    assert "never retrieved" in told[0]
    assert "never awaited" in told[1]


async def test_a_call_that_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockguard_lab.cancellation.WITHIN_S", 0.05)

    async def stubborn() -> None:
        while not done:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pass

    done = False
    with pytest.raises(TimeoutError, match="cancel at step 1: it did not end"):
        await cancelled_at(stubborn, Point(1))
    done = True
    while len(asyncio.all_tasks()) > 1:
        await asyncio.sleep(0.01)
