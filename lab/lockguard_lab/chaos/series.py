"""Rounds one after the other, until the time is up, and rounds of checks that must be convicted."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

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

__all__ = ["Round", "convict_planted", "rounds"]

_PLANTED_ROUNDS_MAX = 12
_PLANTED_ROUND = timedelta(seconds=10)
_ROUND_MIN_S = 2.0
_REST_S = 0.5
_ROUNDS_EACH = 2
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
    """Run rounds of ``plan.length`` until they have disturbed for ``duration``; yields each when it is over.

    The topologies take turns, a few rounds each. The tables are protected in every second round, the routes
    take turns; Postgres crashes in two of three. The last round is one that was interrupted, or the sixth
    that failed.
    """
    left_s, number, failed = duration.total_seconds(), 0, 0
    # So that each has its turn, also in a short run.
    turn_s = min(_ROUNDS_EACH * plan.length.total_seconds(), left_s / len(topologies))
    for topology in itertools.cycle(topologies):
        async with servers_of(topology) as servers:
            turn_left_s = min(turn_s, left_s)
            while turn_left_s > _REST_S:
                length_s = min(plan.length.total_seconds(), max(turn_left_s, _ROUND_MIN_S))
                turn_left_s, left_s = turn_left_s - length_s, left_s - length_s
                tried, route = _round(plan, topology, routes, number, timedelta(seconds=length_s))
                number += 1
                place = directory / f"round-{number:04}-{topology}"
                try:
                    place.mkdir(parents=True)
                    report = await run_round(
                        tried,
                        redis=servers,
                        postgres=postgres,
                        directory=place,
                        database_url=route.url,
                        pooler=route.pooler,
                    )
                except Exception as exc:  # noqa: BLE001 - told in the report
                    failed += 1
                    report = _failure(exc)
                    await _mend(postgres)
                tables = "protected" if tried.protects else "plain"
                crashes = ", crashes" if tried.crashes else ""
                yield Round(f"{place.name}, {route.name}, {tables} tables{crashes}", tried, place, report)
                if report.counts["interrupted"] or failed > _FAILED_MAX:
                    return
                if report.counts["rounds that failed"]:  # its servers may be in any state: take new ones
                    break
        if left_s <= _REST_S:
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


async def _mend(postgres: PostgresServer) -> None:
    """Bring back the server that a round that failed may have left killed."""
    if not postgres.running:
        await asyncio.to_thread(postgres.restart)


async def convict_planted(
    plan: ChaosPlan, *, postgres: PostgresServer, directory: Path
) -> tuple[dict[str, int], RoundReport]:
    """Run rounds until each planted check commits stale, or one is interrupted or fails.

    Returns:
        The stale commits of each check; and what kept the rounds from their end, in counts and words.
    """
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
            try:
                place.mkdir(parents=True)
                report = await run_round(tried, redis=servers, postgres=postgres, directory=place)
            except Exception as exc:  # noqa: BLE001 - told in the report
                return seen, _failure(exc)
            finally:
                # --check would hold its stale writes against lockguard.
                shutil.rmtree(place, ignore_errors=True)
            for name in tried.ways:
                seen[name] += report.of(name).stale_commits
            if report.counts["interrupted"]:
                ended = RoundReport()
                ended.counts["interrupted"] += 1
                return {name: stale for name, stale in seen.items() if stale}, ended
            if all(seen.values()):
                break
    return seen, RoundReport()
