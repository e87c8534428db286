"""A bot process for the test beside this file: it is stopped inside a transaction and never heard of again.

Arguments: the Redis URL, the database URL, the way to write (native, drop-in, manual), what it is doing when
it is stopped (idle, waiting), the ttl in seconds.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, create_pool, fenced_transaction

RESOURCE = "binance:APTUSDT"


async def main(redis_url: str, database_url: str, way: str, doing: str, ttl_s: str) -> None:
    ttl = timedelta(seconds=float(ttl_s))
    make = asyncpg.create_pool if way == "native" else create_pool
    async with (
        make(database_url, min_size=2, max_size=2) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=ttl) as guard,
        guard.hold(RESOURCE),
    ):
        if way == "native":
            async with fenced_transaction(pool) as conn:
                await work(conn, doing)
            return
        async with pool.acquire() as conn:
            if way == "manual":
                await conn.execute("BEGIN")
                await work(conn, doing)
            async with conn.transaction():
                await work(conn, doing)


async def work(conn: object, doing: str) -> None:
    pid = await conn.fetchval("select pg_backend_pid()")  # type: ignore[attr-defined]
    await conn.execute("insert into bot values ('frozen')")  # type: ignore[attr-defined]
    print("ready", pid, flush=True)
    if doing == "waiting":
        await conn.execute("update busy set n = n + 1")  # type: ignore[attr-defined]
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
