"""Measures how long an open takes with the guard and without, in turns in one process.

Both flows make the same requests to the same exchange: ask whether it holds the symbol, enter, place the
stop. The guarded flow asks for the price while it takes its lease, so both have as many requests in sequence.
Neither waits in between, as the exchange reports at once that a market order is filled. The unguarded flow is
:mod:`~lockguard_lab.naive` without its fixed wait, and with that first request added; the guarded flow is the
manager's. The remaining difference is the lease, its seal, and fenced transactions with intents instead of
single statements.
"""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import ControlClient
from lockguard_lab.race.bot import Bot, Refusals, set_up
from lockguard_lab.race.servers import prepare, reach_redis, scratch_database, symbols_of
from lockguard_lab.race.settings import Report, WorkerSpec
from lockguard_lab.statements import statement

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_lab.race.settings import RaceSettings

__all__ = ["NO_WAIT", "Pace", "PaceResult", "Runner", "compare"]

NO_WAIT = 1e-6
"""The time scale at which the unguarded flow does not wait for its entry to settle."""
_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the opens of one flow took.

    Attributes:
        median_ms: the median of all, in milliseconds.
        p90_ms: nine of ten opens took no longer, in milliseconds.
        requests: how many requests each open made to the exchange, by operation.
    """

    median_ms: float
    p90_ms: float
    requests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PaceResult:
    """The figures of both flows at one latency."""

    settings: RaceSettings
    guarded: Pace
    unguarded: Pace

    @property
    def ratio(self) -> float:
        """The time of the guarded flow divided by that of the unguarded one."""
        return self.guarded.median_ms / self.unguarded.median_ms

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        flows = {"guarded": self.guarded, "unguarded": self.unguarded}
        return {
            "topology": self.settings.topology,
            "latency_ms": self.settings.latency_ms,
            "opens": self.settings.opens,
            "ratio": round(self.ratio, 4),
            **{
                name: {
                    "median_ms": round(pace.median_ms, 1),
                    "p90_ms": round(pace.p90_ms, 1),
                    "requests": list(pace.requests),
                }
                for name, pace in flows.items()
            },
        }


class Runner:
    """One of the two flows, with a database of its own."""

    def __init__(
        self, settings: RaceSettings, control: ControlClient, bot: Bot, conn: asyncpg.Connection[Any]
    ) -> None:
        self._settings = settings
        self._control = control
        self._bot = bot
        self._conn = conn
        self._took_ms: list[float] = []
        self._requests: list[tuple[str, ...]] = []

    @classmethod
    async def start(cls, stack: AsyncExitStack, settings: RaceSettings, control: ControlClient) -> Runner:
        """Connect a flow; its connections close with ``stack``."""
        _, url = await stack.enter_async_context(scratch_database(settings))
        conn = await asyncpg.connect(url)
        stack.push_async_callback(conn.close)
        await prepare(settings, conn)
        mine = replace(settings, database_url=url)
        return cls(mine, control, await set_up(stack, WorkerSpec(mine, "opener", 0), Refusals(), None), conn)

    async def open(self, symbol: str) -> None:
        """Measure one open on an empty exchange and table."""
        await self.forget()
        report, symbol = Report(), self._bot.unified(symbol)
        began = SYSTEM_CLOCK.now()
        await self.flow(symbol, report)
        self._took_ms.append((SYSTEM_CLOCK.now() - began) * 1000)
        if report.opened != 1:
            raise ConfigurationError(f"{symbol} was not opened; give an exchange that nobody else uses")
        record = await self._control.record()
        self._requests.append(tuple(request.operation.value for request in record.requests))

    async def forget(self) -> None:
        """Empty the exchange and the table."""
        await self._control.reset()
        await self._conn.execute(statement("forget", "race.sql"))

    async def flow(self, symbol: str, report: Report) -> None:
        """Run the flow to compare: the same requests with the guard and without."""
        if not self._settings.guard:
            await self._bot.look(symbol)
        await self._bot.open(symbol, report)

    def pace(self) -> Pace:
        """The figures of all but the first opens, which connect."""
        took_ms = sorted(self._took_ms[_WARM_UP:])
        return Pace(
            statistics.median(took_ms), took_ms[int(len(took_ms) * 0.9)], statistics.mode(self._requests)
        )


async def compare(
    settings: RaceSettings, *, on_progress: Callable[[int, int], None] | None = None
) -> PaceResult:
    """Open ``settings.opens`` positions with the guard and as many without, in turns.

    Args:
        settings: the servers, and ``opens``, ``latency_ms``, ``ttl_ms`` and ``symbols``.
        on_progress: called with how many opens of each flow have ended, and how many there are.

    Raises:
        ConfigurationError: a server cannot be reached, or does not permit the measurement.
    """
    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(ControlClient(settings.exchange_url))
        symbols = await symbols_of(settings, control)
        await reach_redis(settings, symbols)
        guarded = await Runner.start(stack, settings, control)
        unguarded = await Runner.start(stack, replace(settings, guard=False, time_scale=NO_WAIT), control)
        await control.set_latency(timedelta(milliseconds=settings.latency_ms))
        for number in range(settings.opens + _WARM_UP):
            turn = (guarded, unguarded) if number % 2 else (unguarded, guarded)
            for runner in turn:
                await runner.open(symbols[number % len(symbols)])
            if on_progress is not None:
                on_progress(max(0, number + 1 - _WARM_UP), settings.opens)
        return PaceResult(settings, guarded.pace(), unguarded.pace())
