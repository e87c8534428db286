"""The time to open: what is counted is tested here; what is timed is for ``lockguard race --compare``."""

from __future__ import annotations

import json
import sys
from asyncio import selector_events
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner

from lockguard_lab.exchange import ControlClient
from lockguard_lab.race.cli import race
from lockguard_lab.race.exchange import exchange_apart
from lockguard_lab.race.pace import NO_WAIT, Runner, compare
from lockguard_lab.race.run import RaceSettings
from lockguard_lab.race.settings import Report

_Transport: Any = selector_events._SelectorSocketTransport  # type: ignore[attr-defined]
REQUESTS = ("positions", "create_order", "create_algo")


async def test_the_guard_asks_for_the_price_and_nothing_else_more(urls: dict[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    result = await compare(
        RaceSettings(**urls, opens=5, latency_ms=5),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert result.unguarded.requests == REQUESTS
    assert sorted(result.guarded.requests) == sorted((*REQUESTS, "ticker"))
    assert result.unguarded.median_ms >= 3 * 5
    assert seen[-1] == (5, 5)


def test_the_comparison_writes_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "pace.json"
    arguments = ["--compare", "--opens", "3", "--latency-ms", "5", "--json", str(file)]
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(file.read_text())
    assert (told["topology"], told["opens"], told["latency_ms"]) == ("single", 3, 5)
    assert told["ratio"] > 0
    assert told["unguarded"]["requests"] == list(REQUESTS)
    assert set(told["unguarded"]) == {"median_ms", "p90_ms", "requests"}


def test_what_belongs_to_a_race_is_refused() -> None:
    done = CliRunner().invoke(race, ["--compare", "--no-guard"])
    assert done.exit_code == 2
    assert done.output.strip() == (
        "Error: --compare opens undisturbed with the guard and without; leave --no-guard out"
    )


class Calls:
    """Counts the calls of Python functions that are made while nothing is asked of anybody else.

    They are what an open costs by itself, whatever the load of the machine: what is computed while an answer
    is waited for costs nothing.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked: set[object] = set()
        self._answered: list[Callable[[], None]] = []
        self._count = 0
        for name in ("write", "writelines", "_read_ready"):
            self._around(monkeypatch, name)

    def _around(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        method = getattr(_Transport, name)

        def watched(transport: Any, *data: Any) -> object:
            if not data:
                # On loopback a busy machine has an answer there before what is computed meanwhile is.
                transport._loop._remove_reader(transport._sock_fd)
                self._answered.append(partial(self._read, transport, method))
                if len(self._answered) == 1:
                    self._read_once_idle(transport._loop)
                return None
            if b"/ticker" not in bytes(data[0][0] if name == "writelines" else data[0]):
                self._asked.add(transport)  # the price is asked for beside all that, and hides nothing
            return method(transport, *data)

        monkeypatch.setattr(_Transport, name, watched)

    def _read_once_idle(self, loop: Any) -> None:
        """Read as behind a network: when all is computed that does not need the answers."""
        if loop._ready:
            loop.call_soon(self._read_once_idle, loop)
            return
        answered, self._answered = self._answered, []
        for read in answered:
            read()

    def _read(self, transport: Any, method: Callable[[Any], object]) -> None:
        self._asked.discard(transport)
        if transport.is_reading():
            transport._loop._add_reader(transport._sock_fd, transport._read_ready)
            method(transport)

    async def during(self, work: Coroutine[Any, Any, object]) -> int:
        self._asked.clear()
        self._count = 0
        sys.setprofile(self._see)
        try:
            await work
        finally:
            sys.setprofile(None)
        return self._count

    def _see(self, _frame: FrameType, event: str, _arg: object) -> None:
        self._count += event == "call" and not self._asked


async def test_an_open_computes_little_more_between_answers_and_requests_than_without_the_guard(
    urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, counts = Calls(monkeypatch), {True: list[int](), False: list[int]()}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(exchange_apart())
        settings = RaceSettings(**{**urls, "exchange_url": url})
        plain = replace(settings, guard=False, time_scale=NO_WAIT)
        control = await stack.enter_async_context(ControlClient(url))
        runners = {
            True: await Runner.start(stack, settings, control),
            False: await Runner.start(stack, plain, control),
        }
        await control.set_latency(timedelta(milliseconds=20))
        for number in range(30):
            for guard, runner in runners.items():
                await runner.forget()
                report = Report()
                count = await calls.during(runner.flow("APT/USDT:USDT", report))
                assert report.opened == 1
                counts[guard] += [count] if number >= 4 else []  # the first ones connect and prepare
            if number >= 9 and little_more(counts):
                break
    assert little_more(counts), counts


def little_more(counts: dict[bool, list[int]]) -> bool:
    """By the least of each: a timer that is due within an open, as on a busy machine, is computed as well."""
    return min(counts[True]) < min(counts[False]) * 1.15
