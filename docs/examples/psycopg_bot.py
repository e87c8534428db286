"""A bot's rows by psycopg 3."""

import asyncio
import os
import sys

from psycopg_pool import AsyncConnectionPool

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard_psycopg import AsyncFencedConnection, PsycopgFence

URL = os.environ["LOCKGUARD_DATABASE_URL"]


async def open_position(guard: LockGuard, pool: AsyncConnectionPool, symbol: str) -> None:
    async with guard.hold(f"binance:{symbol}"):
        async with pool.connection() as conn:  # one transaction, which is committed at the end of the block
            await conn.execute("insert into positions values (%s, 'opening')", [symbol])
        print("opening", flush=True)
        await asyncio.sleep(0.5)  # the order and its fill: no transaction is open meanwhile
        async with pool.connection() as conn:
            await conn.execute("update positions set status = 'active' where symbol = %s", [symbol])


async def main() -> None:
    async with (
        AsyncConnectionPool(URL, connection_class=AsyncFencedConnection, open=False) as pool,
        AsyncConnectionPool(URL, min_size=1, max_size=4, open=False) as sealing,  # the fence's own
        LockGuard.from_env(fence=PsycopgFence(sealing)) as guard,
    ):
        try:
            await open_position(guard, pool, sys.argv[1])
            print("active")
        except (StaleToken, LeaseLost) as refused:
            print(f"refused: {refused}")


if __name__ == "__main__":
    asyncio.run(main())
