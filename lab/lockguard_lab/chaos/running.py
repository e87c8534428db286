"""One round: the tables, the processes, their disturbance, and the verdict."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import new_grant_id
from lockguard._private_files import write_private
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._protection import protect
from lockguard_lab.chaos.disturbing import Disturber
from lockguard_lab.chaos.judged import FORMAT
from lockguard_lab.chaos.plan import ChaosPlan, ChaosWorkerSpec, RoundReport, planned
from lockguard_lab.chaos.processes import BotProcess, why
from lockguard_lab.chaos.recording import Recorder
from lockguard_lab.chaos.stage import Links, failovers_of, urls_of
from lockguard_lab.chaos.tables import BYPASSES, read_tables
from lockguard_lab.chaos.verdict import judge_round
from lockguard_lab.chaos.worker import guard_over
from lockguard_lab.fence_race.running import PROTECTED_TABLES, SET_UP, TEAR_DOWN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from lockguard_lab.servers import PostgresServer
    from lockguard_lab.servers.topologies import Topology

__all__ = ["run_round", "to_the_end"]

_QUIET_S = 20.0
_FAILOVERS_FROM = 10**6
_NOTICED_S = 4.0  # Sentinels take one second and the cluster two before they begin to agree
_RESOURCE = "insert into lockguard_race.state (resource, n) values ($1, 0)"
_LEFT = "select count(*) from pg_stat_activity where application_name = $1"


async def run_round(
    plan: ChaosPlan,
    *,
    redis: Topology,
    postgres: PostgresServer,
    directory: Path,
    database_url: str | None = None,
    pooler: bool = False,
) -> RoundReport:
    """Disturb ``plan.processes`` bots for ``plan.length`` and judge the history and tables that they leave.

    An interruption ends the disturbance; what was recorded until then is judged all the same.

    Args:
        plan: what to run.
        redis: the round's own servers, of ``plan.topology``: they are emptied, stopped and restarted.
        postgres: the round's own server with lockguard's schema: it may be killed and restarted.
        directory: an empty directory, in which the history is left.
        database_url: the URL by which the bots reach it, such as a pooler's; by default the direct one.
        pooler: whether that is a pooler in transaction mode.

    Raises:
        ConfigurationError: a process does not start.
    """
    began, report, application = SYSTEM_CLOCK.wall(), RoundReport(), f"lockguard-chaos-{new_grant_id()[:8]}"
    resources = tuple(f"chaos:{plan.seed}:{number}" for number in range(plan.resources))
    _keep(directory / "round.json", {"format": FORMAT, **asdict(plan)})
    recorder = Recorder(str(directory / "conductor.jsonl"), 0)
    async with AsyncExitStack() as stack:
        stack.callback(recorder.close)
        pool = await stack.enter_async_context(asyncpg.create_pool(postgres.url, min_size=0, max_size=4))
        await _set_up(pool, resources, protects=plan.protects)
        guard = guard_over(urls_of(redis), fence=PostgresFence(pool), ttl=plan.ttl)
        await stack.enter_async_context(guard)
        told = partial(_spec, plan, application=application, resources=resources, pooler=pooler)
        bots = []
        for number in range(1, plan.processes + 1):
            links = await stack.enter_async_context(Links(redis, database_url or postgres.url))
            journal = directory / f"process-{number}.jsonl"
            bots.append(BotProcess(journal, links, partial(told, links, journal, number)))
        await asyncio.gather(*(stack.enter_async_context(bot) for bot in bots))
        disturber = Disturber(
            plan,
            topology=redis,
            postgres=postgres,
            pool=pool,
            guard=guard,
            bots=bots,
            resources=resources,
            application=application,
            recorder=recorder,
            report=report,
        )
        interrupted = await _until_interrupted(disturber.disturb(planned(plan)))
        noted = partial(_note_failovers, redis, recorder, since=began)
        kept = partial(_keep_tables, pool, application, directory)
        interrupted |= await to_the_end(_wind_up(stack.pop_all(), bots, report, noted, kept))
    judge_round(directory, report)
    report.counts["interrupted"] += interrupted
    return report


async def _wind_up(
    stack: AsyncExitStack,
    bots: Sequence[BotProcess],
    report: RoundReport,
    note_failovers: Callable[[], None],
    keep_tables: Callable[[], Awaitable[None]],
) -> None:
    async with stack:
        await _finish(bots, report)
        note_failovers()
        await keep_tables()


async def to_the_end(work: Coroutine[Any, Any, None]) -> bool:
    """Await all of ``work``, also if interrupted; returns whether it was, which then counts as handled."""
    ending, interrupted = asyncio.create_task(work), False
    while not ending.done():
        interrupted |= await _until_interrupted(asyncio.wait([ending]))
    ending.result()
    return interrupted


async def _finish(bots: Sequence[BotProcess], report: RoundReport) -> None:
    """Let the bots finish what they have begun."""
    finished = await asyncio.gather(*(asyncio.to_thread(bot.finish) for bot in bots))
    for bot, orderly in zip(bots, finished, strict=True):
        if not orderly:
            report.counts["processes that failed"] += 1
            report.tell(f"a process failed: {why(bot.log)}")


def _note_failovers(redis: Topology, recorder: Recorder, *, since: float) -> None:
    """Note each failover that the servers' logs tell, from when the master may have been out of touch."""
    began_s = SYSTEM_CLOCK.wall() - SYSTEM_CLOCK.now()
    seen = [at for at in failovers_of(redis) if at >= since]
    for number, at in enumerate(seen, _FAILOVERS_FROM):
        recorder.note(fault=number, kind="failover seen", target="", t=at - began_s - _NOTICED_S)
        recorder.note(healed=number, t=at - began_s)


async def _keep_tables(pool: asyncpg.Pool[Any], application: str, directory: Path) -> None:
    """Keep all rows beside the history, when nothing can be added to them any more."""
    await _quiet(pool, application)
    async with pool.acquire() as conn:
        tables = await read_tables(conn)
        await conn.execute(TEAR_DOWN)
    _keep(directory / "tables.json", tables)


def _keep(path: Path, facts: dict[str, Any]) -> None:
    write_private(path, json.dumps(facts, default=timedelta.total_seconds))


async def _until_interrupted(work: Any) -> bool:
    """Await ``work``; returns whether it was interrupted, which then counts as handled."""
    try:
        await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        return True
    return False


def _spec(
    plan: ChaosPlan,
    links: Links,
    journal: Path,
    number: int,
    *,
    application: str,
    resources: tuple[str, ...],
    pooler: bool,
) -> ChaosWorkerSpec:
    return ChaosWorkerSpec(
        redis_urls=links.redis_urls,
        address_map=links.address_map,
        database_url=links.database_url,
        pooler=pooler,
        application=application,
        journal=str(journal),
        number=number,
        seed=plan.seed,
        tasks=plan.tasks,
        resources=resources,
        ways=plan.ways,
        ttl_ms=round(plan.ttl.total_seconds() * 1_000),
        blind=plan.blind,
        stalls=plan.stalls,
        bypasses=plan.bypasses,
    )


async def _set_up(pool: asyncpg.Pool[Any], resources: tuple[str, ...], *, protects: bool) -> None:
    async with pool.acquire() as conn:
        await conn.execute(SET_UP)
        await conn.execute(BYPASSES)
        await conn.executemany(_RESOURCE, [(resource,) for resource in resources])
        if protects:
            for table in PROTECTED_TABLES:
                await protect(conn, table, resource="{resource}")


async def _quiet(pool: asyncpg.Pool[Any], application: str) -> None:
    """Wait until Postgres has ended the transactions of the killed processes."""
    async with asyncio.timeout(_QUIET_S):
        while await pool.fetchval(_LEFT, application):
            # Idle connections of killed processes go at once; those of a pooler stay, in no transaction.
            busy = await pool.fetchval(f"{_LEFT} and state <> 'idle'", application)
            if not busy:
                return
            await asyncio.sleep(0.05)
