"""One race: the tables, the holders, the killing of backends, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard._lease import new_grant_id
from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import fenced
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._protection import protect
from lockguard_asyncpg._schema import require_current
from lockguard_lab.fence_race.defaults import role_defaults
from lockguard_lab.fence_race.holders import Holders
from lockguard_lab.fence_race.oracle import judge
from lockguard_lab.fence_race.plan import RacePlan, RaceReport, Way
from lockguard_lab.fence_race.writes import TRANSACTION, LossyConnection
from lockguard_lab.own_schema import made_anew

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import timedelta

__all__ = [
    "NOISE_OF_CONNECTING",
    "NOISE_OF_COPY",
    "PROTECTED_TABLES",
    "SET_UP",
    "TEAR_DOWN",
    "kill_one",
    "race",
]

_TABLES = """
create table lockguard_race.state (resource text primary key, n bigint not null, token bigint, op bigint);
create table lockguard_race.ledger (
  resource text, n bigint, token bigint, op bigint, at timestamptz not null default clock_timestamp()
);
create table lockguard_race.entry (
  resource text, token bigint, op bigint, at timestamptz not null default clock_timestamp()
);
create table lockguard_race.seal (
  resource text primary key, token bigint not null, grant_id uuid not null, is_open boolean not null
);
create index on lockguard_race.ledger (resource, token);
create index on lockguard_race.entry (resource, token);
create function lockguard_race.note() returns trigger language plpgsql as $$
begin
  insert into lockguard_race.ledger values (new.resource, new.n, new.token, new.op);
  return new;
end $$;
create trigger note before update on lockguard_race.state for each row execute function lockguard_race.note();
"""
SET_UP = made_anew("lockguard_race", "lockguard fence race") + _TABLES
_MAY_NOTE = "select from lockguard.outcome limit 1"
TEAR_DOWN = "drop schema lockguard_race cascade"
_RESOURCE = "insert into lockguard_race.state (resource, n) values ($1, 0)"
_KILL = """
select count(pg_terminate_backend(pid)) from (
  select pid from pg_stat_activity
   where application_name = $1 and pid <> pg_backend_pid() order by random() limit 1
) victim
"""
# Errors that asyncpg (0.32) itself leaves unretrieved, see docs/reference/fence.md: of a COPY whose session
# is ended, and of a connect that is cancelled before the server has said whether it speaks TLS. asyncpg also
# makes such a connect to have a statement cancelled, and cancels it when the statement's connection is
# dropped. tests/integration/test_fence_cancelled_writes.py shows that both happen without a fence too.
NOISE_OF_COPY = "connection was closed in the middle of operation"
NOISE_OF_CONNECTING = "unexpected connection_lost() call"
PROTECTED_TABLES = ("lockguard_race.state", "lockguard_race.entry")


async def race(
    url: str,
    plan: RacePlan,
    way: Way = TRANSACTION,
    *,
    pooler: bool = False,
    direct: str | None = None,
    progress: Callable[[int], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> RaceReport:
    """Run a race on the database at ``url``, in a schema of its own that is dropped before and after.

    Args:
        url: a database with lockguard's schema, direct or through a pooler.
        plan: what to run.
        way: how to write; those of :data:`WAYS` must never break a law, others may show that it is seen.
        pooler: whether the URL is that of a pooler in transaction mode. Its sessions have no isolation of
            their own, so a write that opens no transaction runs at the role's default.
        direct: the same database, directly, if it is the race's own. There the plan's isolation is made the
            role's default, which reaches every session, instead of being asked for by each session.
        progress: called from time to time with the number of operations begun.
        clock: the leases' clock.

    Raises:
        ConfigurationError: the schema is not installed, or the way does not work on this database.
    """
    alone = direct is not None or not pooler or plan.isolation in (None, "read_committed")
    if not (alone or way.transacts):
        raise ConfigurationError(
            f"{way.name!r} opens no transaction, so it cannot run at {plan.isolation} through a pooler"
        )
    name = f"lockguard-race-{new_grant_id()[:8]}"
    with _strays() as strays:
        async with AsyncExitStack() as stack:
            if direct is not None and plan.isolation is not None:
                await stack.enter_async_context(role_defaults(direct, url, plan.isolation))
            options = _options(plan, name, pooler=pooler, asks=direct is None)
            pool = await stack.enter_async_context(_pool(url, plan, way, options))
            gear = way.gear and await stack.enter_async_context(way.gear(url, plan, options))
            running = Holders(pool, plan, way, clock, alone=alone, gear=gear)
            await _set_up(pool, running.resources, way)
            await _run(running, name, progress)
            await judge(running)
            await pool.execute(TEAR_DOWN)
        del pool, gear
        gc.collect()  # a future whose error was not retrieved reports it when collected
    noise = (NOISE_OF_CONNECTING, *([NOISE_OF_COPY] if way.noisy else []))
    strays = [line for line in strays if not any(known in line for known in noise)]
    running.report.stray_errors = len(strays)
    for line in strays:
        running.report.tell(line)
    return running.report


def _options(plan: RacePlan, name: str, *, pooler: bool, asks: bool) -> dict[str, Any]:
    """The options of each connection; with ``asks`` the connection asks for the isolation itself."""
    settings = {"application_name": name}
    if pooler:
        return {"server_settings": settings, "statement_cache_size": 0}
    if asks and plan.isolation is not None:
        settings["default_transaction_isolation"] = plan.isolation.replace("_", " ")
    return {"server_settings": settings}


def _pool(url: str, plan: RacePlan, way: Way, options: dict[str, Any]) -> asyncpg.Pool[Any]:
    # Each holder may keep one connection and use another, and so may the other task of its body.
    size = 3 * plan.holders + 4
    pool = asyncpg.create_pool(url, min_size=0, max_size=size, connection_class=LossyConnection, **options)
    return fenced(pool) if way.fenced else pool


async def _run(running: Holders, name: str, progress: Callable[[int], None] | None) -> None:
    every = running.plan.kill_every
    helpers = [asyncio.create_task(_kill(running.pool, every, name, running.report))] if every else []
    if progress is not None:
        helpers.append(asyncio.create_task(_show(running, progress)))
    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(running.plan.holders):
                tasks.create_task(running.holder())
    finally:
        for task in helpers:
            task.cancel()
        await asyncio.gather(*helpers, return_exceptions=True)


async def _set_up(pool: asyncpg.Pool[Any], resources: Sequence[str], way: Way) -> None:
    async with pool.acquire() as conn:
        await require_current(conn)
        try:
            await conn.execute(SET_UP)
            await conn.execute(_MAY_NOTE)
        except asyncpg.PostgresError as exc:
            if exc.sqlstate == "LG004":
                raise ConfigurationError(exc.message or str(exc)) from exc
            if not isinstance(exc, asyncpg.InsufficientPrivilegeError):
                raise
            raise ConfigurationError(
                f"{exc.message}; a race takes a role that owns lockguard's schema and may create another one"
            ) from exc
        async with conn.transaction():
            await conn.executemany(_RESOURCE, [(resource,) for resource in resources])
        if way.protects:
            for table in PROTECTED_TABLES:
                await protect(conn, table, resource="{resource}")


async def _kill(pool: asyncpg.Pool[Any], every: timedelta, name: str, report: RaceReport) -> None:
    while True:
        await asyncio.sleep(every.total_seconds())
        try:
            report.counts["backends killed"] += await kill_one(pool, name)
        except DATABASE_ERRORS:
            report.counts["kills failed"] += 1


async def kill_one(pool: asyncpg.Pool[Any], application: str) -> int:
    """End an arbitrary backend of this application name; returns how many were ended."""
    async with pool.acquire() as conn, conn.transaction():
        return int(await conn.fetchval(_KILL, application))


async def _show(running: Holders, progress: Callable[[int], None]) -> None:
    while True:
        await asyncio.sleep(0.2)
        progress(min(running.plan.writes, len(running.committed) + len(running.refused)))


@contextlib.contextmanager
def _strays() -> Iterator[list[str]]:
    """Collect the errors that reach the event loop's handler because no code retrieved them."""
    loop, found = asyncio.get_running_loop(), list[str]()
    before = loop.get_exception_handler()

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        task = context.get("task") or context.get("future")
        whose = f", of {task.get_coro()!r}" if isinstance(task, asyncio.Task) else ""
        found.append(f"{context['message']}: {context.get('exception')!r}{whose}")

    loop.set_exception_handler(note)
    try:
        yield found
    finally:
        loop.set_exception_handler(before)
