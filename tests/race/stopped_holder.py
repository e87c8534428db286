"""A bot process for the test beside this file: holds, waits to be stopped, then writes with what it has.

Its write is raw SQL that carries its token, sent without looking at the lease first, as code does that was
stopped between looking and writing.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence

RESOURCE = "binance:APTUSDT"
WRITE = "update bot set status = $1, token = lockguard.check($2, $3, $4)"


async def main(redis_url: str, database_url: str) -> None:
    pool = await asyncpg.create_pool(database_url, min_size=2, max_size=2)
    raw = await asyncpg.connect(database_url)
    guard = LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=1))
    async with guard.hold(RESOURCE) as lease:
        print("holding", lease.token, flush=True)
        sys.stdin.readline()  # blocks the whole process, as a pause does, until the test says go
        write = asyncio.ensure_future(
            raw.execute(WRITE, "stale", lease.resource, lease.token, lease.grant.id)
        )
        try:
            await asyncio.shield(write)
        except asyncio.CancelledError:
            # The loss was delivered first; the statement is on its way all the same.
            outcome = (await asyncio.gather(write, return_exceptions=True))[0]
            print("refused", getattr(outcome, "sqlstate", outcome), outcome, flush=True)
            raise
        except asyncpg.PostgresError as refusal:
            print("refused", refusal.sqlstate, refusal, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
