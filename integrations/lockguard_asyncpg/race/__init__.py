"""Races against the fence on a real Postgres, with an oracle that knows nothing of the fence.

Holders take the same few resources from a desk that hands every asker the next token, whether or not the
last holder has finished: as if each lease had ended unnoticed. They pause, between grant and seal as well
as inside transactions; their backends are killed; replies to COMMIT are lost; now and then the desk's
tokens go back, as after a FLUSHALL.

Each write raises the counter ``n`` of its resource by one, and a trigger notes (resource, n, token, op).
Rows of one resource are locked in turn, so ``n`` is the order of commits, and three laws can be read off
the ledger afterwards:

stale commit
    Along ``n`` tokens never go back, and a holder's first write has the number after the one that it read
    when its seal had returned: what it read was final.
duplicate
    No operation is in the ledger twice, although one whose reply was lost is tried again when it is found
    not to have committed.
lost write
    An operation that was reported as committed, or found to have, is in the ledger; one that was refused,
    or found not to have, is not.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.clock import SYSTEM_CLOCK, Clock
from lockguard.errors import ConfigurationError
from lockguard.lease import new_grant_id
from lockguard_asyncpg.errors import DATABASE_ERRORS
from lockguard_asyncpg.race.holders import Holders
from lockguard_asyncpg.race.oracle import judge
from lockguard_asyncpg.race.plan import Attempt, RacePlan, RaceReport, Write
from lockguard_asyncpg.race.writes import BUMP, native_write, transaction_write
from lockguard_asyncpg.schema import schema_version

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from lockguard_asyncpg.transaction import Isolation

__all__ = [
    "BUMP",
    "ISOLATIONS",
    "WRITES",
    "Attempt",
    "RacePlan",
    "RaceReport",
    "Write",
    "native_write",
    "race",
    "transaction_write",
]

ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "repeatable_read", "serializable")
WRITES: dict[str, Write] = {"transaction": transaction_write, "statement": native_write}
"""The ways to write that must never break a law."""

_SET_UP = """
drop schema if exists lockguard_race cascade;
create schema lockguard_race;
create table lockguard_race.state (resource text primary key, n bigint not null, token bigint, op bigint);
create table lockguard_race.ledger (resource text, n bigint, token bigint, op bigint);
create function lockguard_race.note() returns trigger language plpgsql as $$
begin
  insert into lockguard_race.ledger values (new.resource, new.n, new.token, new.op);
  return new;
end $$;
create trigger note before update on lockguard_race.state for each row execute function lockguard_race.note();
"""
_RESOURCE = "insert into lockguard_race.state (resource, n) values ($1, 0)"
_KILL = """
select pg_terminate_backend(pid) from (
  select pid from pg_stat_activity
   where application_name = $1 and pid <> pg_backend_pid() order by random() limit 1
) victim
"""


async def race(
    url: str,
    plan: RacePlan,
    write: Write = transaction_write,
    *,
    pooler: bool = False,
    progress: Callable[[int], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    **connect: Any,
) -> RaceReport:
    """Run a race on the database at ``url``, in a schema of its own that is dropped before and after.

    Args:
        url: a database with lockguard's schema, direct or through a pooler.
        plan: what to run.
        write: how to write; the two given here must never break a law, others may show that it is seen.
        pooler: the URL is a pooler in transaction mode. It has no isolation of its own for a session, so a
            write that opens no transaction is made at the server's default.
        progress: called now and then with the number of operations begun.
        clock: the leases' clock.
        connect: further arguments for ``asyncpg.create_pool``.

    Raises:
        ConfigurationError: the schema is not installed.
    """
    name = f"lockguard-race-{new_grant_id()[:8]}"
    settings = {"application_name": name}
    if pooler:
        connect["statement_cache_size"] = 0
    elif plan.isolation is not None:
        settings["default_transaction_isolation"] = plan.isolation.replace("_", " ")
    options = {"min_size": 0, "max_size": plan.holders + 4, "server_settings": settings, **connect}
    async with asyncpg.create_pool(url, **options) as pool:
        running = Holders(pool, plan, write, clock)
        await _set_up(pool, running.resources)
        helpers = (
            [asyncio.create_task(_kill(pool, plan.kill_every, name, running.report))]
            if plan.kill_every
            else []
        )
        if progress is not None:
            helpers.append(asyncio.create_task(_show(running, progress)))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(plan.holders):
                    tasks.create_task(running.holder())
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        await judge(running)
        await pool.execute("drop schema lockguard_race cascade")
        return running.report


async def _set_up(pool: asyncpg.Pool[Any], resources: Sequence[str]) -> None:
    async with pool.acquire() as conn:
        if await schema_version(conn) == 0:
            raise ConfigurationError(
                "there is no lockguard schema in this database: run `lockguard fence install`"
            )
        await conn.execute(_SET_UP)
        async with conn.transaction():
            await conn.executemany(_RESOURCE, [(resource,) for resource in resources])


async def _kill(pool: asyncpg.Pool[Any], every: timedelta, name: str, report: RaceReport) -> None:
    while True:
        await asyncio.sleep(every.total_seconds())
        try:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute(_KILL, name)
            report.counts["backends killed"] += 1
        except DATABASE_ERRORS:
            report.counts["kills failed"] += 1


async def _show(running: Holders, progress: Callable[[int], None]) -> None:
    while True:
        await asyncio.sleep(0.2)
        progress(min(running.plan.writes, len(running.committed) + len(running.refused)))
