"""What locks in Postgres cost Postgres: rows that VACUUM must keep, and what a pooler makes of them."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import asyncpg

from lockguard._guard import LockGuard
from lockguard.errors import AcquireError
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import create_pool
from lockguard_lab.bench.holders.choose import WAYS
from lockguard_lab.bench.holders.results import Horizon, Pooler
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.servers import PostgresServer

__all__ = ["HELD", "horizon", "pooler"]

HELD = ("lockguard", "redis-py", "advisory-session", "advisory-transaction", "for-update")
_KEPT = re.compile(r"(\d+) are dead but not yet removable")
_AGE = """
select coalesce(max(greatest(age(backend_xmin), age(backend_xid))), 0) from pg_stat_activity
 where datname = current_database() and pid <> pg_backend_pid()
"""


async def horizon(place: Place, updates: int, ttl_s: int) -> list[Horizon]:
    """Hold each lock, with and without a first write, while others update rows of another table."""
    found = []
    for name in HELD:
        for writes in (False, True):
            conn = await asyncpg.connect(place.postgres)
            try:
                async with WAYS[name](place, ttl_s) as way, way.held() as write:
                    if writes:
                        await write("first step")
                    kept, age = await _kept(conn, updates)
            finally:
                await conn.close()
            found.append(Horizon(f"{way.label}{', after a first write' if writes else ''}", kept, age))
    return found


async def _kept(conn: asyncpg.Connection[Any], updates: int) -> tuple[int, int]:
    said: list[str] = []
    await conn.execute("drop table if exists ticks; create table ticks (id int primary key, n int)")
    await conn.execute("alter table ticks set (autovacuum_enabled = off)")
    await conn.execute("insert into ticks select generate_series(1, $1), 0", updates)
    await conn.execute("update ticks set n = n + 1")
    age = int(await conn.fetchval(_AGE))
    conn.add_log_listener(lambda _, message: said.append(message.message))
    await conn.execute("vacuum (verbose) ticks")
    return sum(int(number) for number in _KEPT.findall("\n".join(said))), age


async def pooler(server: PostgresServer, place: Place) -> Pooler | None:
    """Take locks by two clients of one PgBouncer with one connection; ``None`` if there is none."""
    binary = find_pgbouncer()
    if binary is None:
        return None
    key = "hashtextextended('binance:APTUSDT', 0)"
    with PgBouncer(server, pool_size=1) as pooled, PgBouncer(server, pool_size=4) as wider:
        async with AsyncExitStack() as stack:

            async def client(url: str) -> asyncpg.Connection[Any]:
                conn = await asyncpg.connect(url, statement_cache_size=0)
                stack.callback(conn.terminate)
                return conn

            direct = await client(place.postgres)
            first, second = [await client(pooled.url_for(place.postgres)) for _ in range(2)]
            session_twice = [
                await conn.fetchval(f"select pg_try_advisory_lock({key})") for conn in (first, second)
            ] == [True, True]
            await first.close()
            await second.close()
            leaked = not await direct.fetchval(f"select pg_try_advisory_lock({key})")
            third, fourth = [await client(wider.url_for(place.postgres)) for _ in range(2)]
            other = "hashtextextended('another', 0)"
            async with third.transaction():
                take = f"select pg_try_advisory_xact_lock({other})"
                transaction_twice = [await conn.fetchval(take) for conn in (third, fourth)] == [True, True]
            pool = await create_pool(
                wider.url_for(place.postgres), statement_cache_size=0, min_size=1, max_size=2
            )
            stack.callback(pool.terminate)
            guards = [
                await stack.enter_async_context(LockGuard.from_url(place.redis, fence=PostgresFence(pool)))
                for _ in range(2)
            ]
            async with guards[0].hold("binance:APTUSDT"):
                try:
                    async with guards[1].hold("binance:APTUSDT", wait=timedelta(0)):
                        lockguard_twice = True
                except AcquireError:
                    lockguard_twice = False
    return Pooler(binary.version, session_twice, leaked, transaction_twice, lockguard_twice)
