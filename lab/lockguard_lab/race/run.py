"""The race kit: the flow under load in real processes, with the guard and without.

A race creates a scratch database on the given server, starts its processes, has them all begin at the same
time, and counts what went wrong from the database's rows and the exchange's own record. What the processes
believe is not evidence.
"""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.exchange import ControlClient, Execution, Fault, FaultKind, Operation
from lockguard_lab.race.disturbances import Expiry, mixed_faults
from lockguard_lab.race.score import Score, score_round
from lockguard_lab.race.servers import prepare, reach_redis, scratch_database, symbols_of
from lockguard_lab.race.settings import (
    SCENARIOS,
    RaceResult,
    RaceSettings,
    Report,
    Scenario,
    StaleWrites,
    WorkerSpec,
)
from lockguard_lab.race.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SCENARIOS", "RaceResult", "RaceSettings", "Scenario", "StaleWrites", "run_race"]

_REFUSED_STOP = -1111  # more digits than the market has


async def run_race(
    settings: RaceSettings, *, on_progress: Callable[[int, int], None] | None = None
) -> RaceResult:
    """Run a race.

    Args:
        settings: what to run, and on which servers.
        on_progress: called with how many opens have ended, and how many there are.

    Raises:
        ConfigurationError: a server cannot be reached or does not permit a race; one line says which and
            what to do.
    """
    started = SYSTEM_CLOCK.now()
    total, score = Report(), Score()
    ended = begun = expired = 0

    def count(opens: int) -> None:
        nonlocal ended
        # A symbol that several openers open counts once.
        ended += opens
        if on_progress is not None:
            done = ended // settings.openers_per_symbol
            on_progress(min(begun, done), settings.opens if settings.duration_s is None else begun)

    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(ControlClient(settings.exchange_url))
        symbols = await symbols_of(settings, control)
        await reach_redis(settings, symbols)
        name, database_url = await stack.enter_async_context(scratch_database(settings))
        conn = await asyncpg.connect(database_url)
        stack.push_async_callback(conn.close)
        await prepare(settings, conn)
        mine = replace(settings, database_url=database_url)
        specs = [WorkerSpec(mine, role, number) for number, role in enumerate(settings.roles())]
        async with Workers(specs, count) as workers:
            for number, batch in enumerate(_rounds(settings, symbols)):
                begun += len(batch)
                await _begin_round(settings, control, batch)
                for fault in mixed_faults(batch, settings.faults, settings.seed + number):
                    await control.inject(fault)
                async with Expiry(settings, batch, settings.seed + number) as expiry:
                    report = await workers.play(batch, settings.seed + number)
                expired += expiry.count
                report.add(await workers.settle())
                record = await control.record()
                score += await score_round(conn, record, violations=report.violations, guard=settings.guard)
                total.add(report)
    result = _result(settings, total, score, begun, SYSTEM_CLOCK.now() - started)
    return replace(result, leases_expired=expired, database=name if settings.keep_database else None)


def _result(settings: RaceSettings, total: Report, score: Score, opens: int, seconds: float) -> RaceResult:
    return RaceResult(
        settings=settings,
        opens=opens,
        duplicates=score.duplicates,
        overlapping_rows=score.overlapping_rows,
        unique_violations=score.unique_violations,
        double_entries=score.double_entries,
        reversed_positions=score.reversed_positions,
        without_stop=score.without_stop,
        orphan_stops=score.orphan_stops,
        stale_writes=StaleWrites(
            attempted=total.stale_refused + score.stale_committed,
            refused=total.stale_refused,
            committed=score.stale_committed,
        ),
        skipped=total.skipped,
        passes=total.passes,
        rolled_back=score.rolled_back,
        not_opened=total.failed,
        errors=tuple(total.errors),
        open_ms_median=statistics.median(total.open_ms) if total.open_ms else None,
        seconds=seconds,
    )


def _rounds(settings: RaceSettings, symbols: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The symbols of each round; each opener opens a symbol at most once in a round."""
    size = len(symbols)
    if settings.duration_s is None:
        yield from (symbols[: min(size, settings.opens - start)] for start in range(0, settings.opens, size))
        return
    until = SYSTEM_CLOCK.now() + settings.duration_s
    while SYSTEM_CLOCK.now() < until:
        yield symbols


async def _begin_round(settings: RaceSettings, control: ControlClient, symbols: tuple[str, ...]) -> None:
    await control.reset()
    await control.set_latency(timedelta(milliseconds=settings.latency_ms))
    if settings.scenario != "C":
        return
    for symbol in symbols:
        await control.inject(
            Fault(
                FaultKind.REJECTED,
                Operation.CREATE_ALGO,
                Execution.NEVER,
                symbol=symbol,
                code=_REFUSED_STOP,
                message="Precision is over the maximum defined for this asset.",
            )
        )
