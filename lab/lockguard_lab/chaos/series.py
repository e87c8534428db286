"""Rounds one after the other, until the time is up, and rounds of checks that must be convicted."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.chaos.plan import ChaosPlan, RoundReport
from lockguard_lab.chaos.running import run_round
from lockguard_lab.chaos.stage import servers_of
from lockguard_lab.fence_race.planted import WEAK_CHECKS
from lockguard_lab.fence_race.ways import present_ways

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from lockguard_lab.fence_race.series import Route
    from lockguard_lab.servers import PostgresServer
    from lockguard_lab.servers.topologies import Topology

__all__ = ["Round", "convict_planted", "rounds"]

_PLANTED_ROUNDS_MAX = 12
_PLANTED_ROUND = timedelta(seconds=10)
_ROUND_MIN = timedelta(seconds=2)
_ROUNDS_EACH = 3
_FAILED_MAX = 5


@dataclass(frozen=True, slots=True)
class Round:
    """A round that is over.

    Attributes:
        name: for display.
        plan: its plan.
        place: the directory of its history.
        report: what was found.
    """

    name: str
    plan: ChaosPlan
    place: Path
    report: RoundReport


async def rounds(
    plan: ChaosPlan,
    topologies: Sequence[str],
    routes: tuple[Route, ...],
    *,
    postgres: PostgresServer,
    duration: timedelta,
    directory: Path,
) -> AsyncIterator[Round]:
    """Run rounds of ``plan.length`` until ``duration`` is over; yields each when it is over.

    The topologies take turns, a few rounds each. The tables are protected in every second round, the routes
    take turns; Postgres crashes in two of three. An interrupted round is the last.
    """
    number, failed = 0, 0
    began = SYSTEM_CLOCK.now()
    until = began + duration.total_seconds()
    # So that each has its turn, also in a short run.
    turn_s = min(_ROUNDS_EACH * plan.length.total_seconds(), duration.total_seconds() / len(topologies))
    for topology in itertools.cycle(topologies):
        turn_until = min(until, SYSTEM_CLOCK.now() + turn_s)
        async with AsyncExitStack() as stack:
            servers = await stack.enter_async_context(servers_of(topology))
            first = True
            while True:
                left = timedelta(seconds=turn_until - SYSTEM_CLOCK.now())
                if left < _ROUND_MIN and (not first or number >= len(topologies)):
                    break
                first = False
                length = min(plan.length, max(left, _ROUND_MIN))
                tried, route = _round(plan, topology, routes, number, length)
                place = directory / f"round-{number + 1:04}-{topology}"
                place.mkdir(parents=True)
                number += 1
                try:
                    report = await run_round(
                        tried,
                        redis=servers,
                        postgres=postgres,
                        directory=place,
                        database_url=route.url,
                        pooler=route.pooler,
                    )
                except Exception as exc:
                    failed += 1
                    report = _failure(exc)
                    await _mend(servers, postgres)
                    if failed > _FAILED_MAX:
                        raise
                tables = "protected" if tried.protects else "plain"
                crashes = ", crashes" if tried.crashes else ""
                yield Round(f"{place.name}, {route.name}, {tables} tables{crashes}", tried, place, report)
                if report.counts["interrupted"]:
                    return
                if failed and report.counts["rounds that failed"]:
                    break
        if SYSTEM_CLOCK.now() > until - _ROUND_MIN.total_seconds() and number >= len(topologies):
            return


def _round(
    plan: ChaosPlan, topology: str, routes: tuple[Route, ...], number: int, length: timedelta
) -> tuple[ChaosPlan, Route]:
    protects = number % 2 == 0
    tried = replace(
        plan,
        # Without protection nothing checks a way that leaves the check to the table.
        ways=tuple(way.name for way in present_ways() if protects or not way.protects),
        length=length,
        seed=plan.seed + number,
        topology=topology,
        protects=protects,
        crashes=number % 3 != 0,
    )
    return tried, routes[number // 2 % len(routes)]


def _failure(exc: Exception) -> RoundReport:
    report = RoundReport()
    report.counts["rounds that failed"] += 1
    cause: BaseException = exc
    while isinstance(cause, BaseExceptionGroup):  # the group's own text does not say what happened
        cause = cause.exceptions[0]
    report.tell(f"the round failed: {type(cause).__name__}: {cause}")
    return report


async def _mend(servers: Topology, postgres: PostgresServer) -> None:
    """Bring back what a round that failed has left stopped or killed; the next turn has new servers."""
    for server in (*servers.servers, postgres):
        if not server.running:
            await asyncio.to_thread(server.restart)
        await asyncio.to_thread(server.resume)


async def convict_planted(
    plan: ChaosPlan, *, postgres: PostgresServer, directory: Path
) -> tuple[dict[str, int], int]:
    """Run rounds until each planted check commits stale; returns its stale commits, and the rounds."""
    seen = {way.name: 0 for way in WEAK_CHECKS}
    async with servers_of("single") as servers:
        for number in range(1, _PLANTED_ROUNDS_MAX + 1):
            tried = replace(
                plan,
                ways=tuple(name for name, stale in seen.items() if not stale),
                length=_PLANTED_ROUND,
                seed=plan.seed + number,
                resources=2,
                blind=1.0,
                stalls=0.15,
            )
            place = directory / f"planted-{number}"
            place.mkdir(parents=True)
            report = await run_round(tried, redis=servers, postgres=postgres, directory=place)
            shutil.rmtree(place)
            for name in tried.ways:
                seen[name] += report.of(name).stale_commits
            if all(seen.values()):
                return seen, number
    return seen, _PLANTED_ROUNDS_MAX
