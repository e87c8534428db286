"""One load: sets up the tables, runs the processes without and then with the fence, judges the outcome."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.child_process import Child
from lockguard_lab.fence_load.history import measure_history
from lockguard_lab.fence_load.plan import LoadPlan, LoadReport, LoadWorkerSpec, Phase, WorkerReport
from lockguard_lab.fence_load.server import autovacuum_cpu_s, cpu_s, fence_calls, table_sizes
from lockguard_lab.fence_race.running import SET_UP, TEAR_DOWN

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["run_load"]

_WORKER = "lockguard_lab.fence_load.worker"
_END_S = 60.0
_PLAIN_SHARE = 0.2
_TOLD_MAX = 10
_RESOURCES = """
insert into lockguard_race.state (resource, n) select 'load:' || g, 0 from generate_series(0, $1 - 1) g
"""
# In the order of a resource's counter no number is missing or duplicated, and tokens never go back.
_BROKEN = """
select resource, n, token, before from (
  select resource, n, token, lag(n, 1, 0::bigint) over w as n_before, lag(token) over w as before
    from lockguard_race.ledger window w as (partition by resource order by n)
) l where n <> n_before + 1 or token < before
"""
_OTHERS = """
select count(*) from pg_stat_activity
 where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
"""


async def run_load(
    redis: RedisServer, postgres: PostgresServer, plan: LoadPlan, *, progress: Callable[[str], None]
) -> LoadReport:
    """Load the servers without the fence and then with it.

    Args:
        redis: the load's own server.
        postgres: the load's own server, with :data:`~lockguard_lab.fence_load.server.SETTINGS` and
            lockguard's schema.
        plan: what to run.
        progress: called with the current activity.

    Raises:
        ConfigurationError: a process ended too early.
    """
    conn = await asyncpg.connect(postgres.url)
    try:
        load = _Load(redis, postgres, conn, plan)
        progress("without the fence")
        plain, _ = await load.phase(plan.duration * _PLAIN_SHARE, fenced=False)
        before, calls_before = await table_sizes(conn), await fence_calls(conn)
        progress("with the fence")
        fenced, reports = await load.phase(plan.duration, fenced=True)
        calls = await fence_calls(conn) - calls_before
        after = await table_sizes(conn)
        broken = await conn.fetch(_BROKEN)
        await conn.execute(TEAR_DOWN)
        history = (
            await measure_history(redis, postgres, plan.history, progress=progress) if plan.history else []
        )
    finally:
        await conn.close()
    more_us = (fenced.cpu_us_per_hold - plain.cpu_us_per_hold) * fenced.holds
    late_committed = sum(report.late_committed for report in reports)
    told = [error for report in (*load.reports, *reports) for error in report.errors]
    told += [
        f"{row['resource']} n={row['n']}: token {row['token']} committed after {row['before']}"
        for row in broken
    ]
    return LoadReport(
        plain=plain,
        fenced=fenced,
        calls=calls,
        cpu_us_per_call=round(more_us / max(1, calls), 1),
        before=before,
        after=after,
        late=sum(report.late for report in reports),
        stale_commits=len(broken) + late_committed,
        history=history,
        told=told[:_TOLD_MAX],
    )


class _Load:
    def __init__(
        self,
        redis: RedisServer,
        postgres: PostgresServer,
        conn: asyncpg.Connection[Any],
        plan: LoadPlan,
    ) -> None:
        self._redis = redis
        self._postgres = postgres
        self._conn = conn
        self._plan = plan
        self.reports: list[WorkerReport] = []

    async def phase(self, duration: timedelta, *, fenced: bool) -> tuple[Phase, list[WorkerReport]]:
        """Empty the tables and have all processes work for ``duration``."""
        await self._conn.execute(SET_UP)
        await self._conn.execute(_RESOURCES, self._plan.resources)
        async with AsyncExitStack() as stack:
            name = "a process of the load"
            workers = [
                await stack.enter_async_context(Child(_WORKER, name=name, end_s=_END_S))
                for _ in range(self._plan.processes)
            ]
            for number, worker in enumerate(workers):
                await worker.tell(asdict(self._told(number, duration, fenced=fenced)))
            for worker in workers:
                await worker.hear()
            cpu, log, began = cpu_s(self._postgres), len(self._postgres.log), SYSTEM_CLOCK.now()
            for worker in workers:
                await worker.write("begin")
            reports = [WorkerReport(**await worker.hear()) for worker in workers]
            seconds = SYSTEM_CLOCK.now() - began
        await self._alone()
        used = cpu_s(self._postgres) - cpu
        self.reports = self.reports or reports
        return _phase(reports, seconds, used, autovacuum_cpu_s(self._postgres.log[log:])), reports

    def _told(self, number: int, duration: timedelta, *, fenced: bool) -> LoadWorkerSpec:
        return LoadWorkerSpec(
            redis_url=self._redis.url,
            database_url=self._postgres.url,
            resources=self._plan.resources,
            seconds=duration.total_seconds(),
            seed=self._plan.seed * 1_000 + number,
            fenced=fenced,
        )

    async def _alone(self) -> None:
        """Wait until the processes' sessions have ended: only then does the server have their counts."""
        async with asyncio.timeout(_END_S):
            while await self._conn.fetchval(_OTHERS):  # noqa: ASYNC110 - the server does not tell
                await asyncio.sleep(0.05)


def _phase(reports: list[WorkerReport], seconds: float, used_s: float, autovacuum_s: float) -> Phase:
    took = [ms for report in reports for ms in report.holds_ms]
    # A short run may have so few bodies that the longest is the 99th percentile.
    parts = quantiles(took, n=100, method="inclusive") if len(took) > 1 else [0.0] * 99
    holds = len(took)
    return Phase(
        seconds=round(seconds, 1),
        holds=holds,
        writes_per_s=round(sum(report.writes for report in reports) / seconds, 1),
        p50_ms=round(parts[49], 1),
        p99_ms=round(parts[98], 1),
        gave_up=sum(report.gave_up for report in reports),
        failed=sum(report.failed for report in reports),
        server_cpu_s=round(used_s, 2),
        cpu_us_per_hold=round(1e6 * used_s / max(1, holds), 1),
        autovacuum_cpu_s=round(autovacuum_s, 2),
    )
