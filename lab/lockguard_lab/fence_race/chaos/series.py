"""A series of rounds: the run by which a release is judged, and the planted checks it must convict."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.fence_race.chaos.plan import ChaosPlan, RoundReport
from lockguard_lab.fence_race.chaos.running import run_round
from lockguard_lab.fence_race.planted import WEAK_CHECKS
from lockguard_lab.fence_race.series import Route
from lockguard_lab.fence_race.ways import present_ways

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["convict_planted", "rounds"]

_PLANTED_ROUNDS_MAX = 12
_PLANTED_ROUND = timedelta(seconds=10)
_ROUND_MIN = timedelta(seconds=2)
_FAILED_MAX = 5


async def rounds(
    plan: ChaosPlan,
    routes: tuple[Route, ...],
    *,
    redis: RedisServer,
    postgres: PostgresServer,
    duration: timedelta,
) -> AsyncIterator[tuple[str, RoundReport]]:
    """Run rounds of ``plan.length`` until ``duration`` is over; yields each round and its report.

    The tables are protected in every second round, the routes take turns; Postgres crashes in two of three.
    """
    failed = 0
    until = SYSTEM_CLOCK.now() + duration.total_seconds()
    for number in itertools.count():
        left = timedelta(seconds=until - SYSTEM_CLOCK.now())
        if number and left < _ROUND_MIN:
            return
        route, protects = routes[number // 2 % len(routes)], number % 2 == 0
        crashes = number % 3 != 0
        tried = replace(
            plan,
            # Without protection nothing checks a way that leaves the check to the table.
            ways=tuple(way.name for way in present_ways() if protects or not way.protects),
            length=min(plan.length, max(left, _ROUND_MIN)),
            seed=plan.seed + number,
            protects=protects,
            crashes=crashes,
        )
        try:
            report = await run_round(
                tried, redis=redis, postgres=postgres, database_url=route.url, pooler=route.pooler
            )
        except Exception as exc:
            failed += 1
            report = RoundReport()
            report.counts["rounds that failed"] += 1
            cause: BaseException = exc
            while isinstance(cause, BaseExceptionGroup):  # the group's own text does not say what happened
                cause = cause.exceptions[0]
            report.tell(f"the round failed: {type(cause).__name__}: {cause}")
            if not redis.running:
                await asyncio.to_thread(redis.restart, keep_data=False)
            if not postgres.running:
                await asyncio.to_thread(postgres.restart)
            if failed > _FAILED_MAX:
                raise
        tables = "protected" if protects else "plain"
        yield f"{route.name}, {tables} tables{', crashes' if crashes else ''}", report


async def convict_planted(
    plan: ChaosPlan, *, redis: RedisServer, postgres: PostgresServer
) -> tuple[dict[str, int], int]:
    """Run rounds until each planted check commits stale; returns its stale commits, and the rounds."""
    seen = {way.name: 0 for way in WEAK_CHECKS}
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
        report = await run_round(tried, redis=redis, postgres=postgres)
        for name in tried.ways:
            seen[name] += report.of(name).stale_commits
        if all(seen.values()):
            return seen, number
    return seen, _PLANTED_ROUNDS_MAX
