"""A bot's rows by the package databases."""

import asyncio
import os
import sys

import asyncpg
from databases import Database

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard_asyncpg import FencedConnection, PostgresFence

URL = os.environ["LOCKGUARD_DATABASE_URL"]

database = Database(URL, connection_class=FencedConnection)


async def open_position(guard: LockGuard, symbol: str) -> None:
    async with guard.hold(f"binance:{symbol}"):
        await database.execute(
            "insert into positions (symbol, status) values (:symbol, 'opening')", {"symbol": symbol}
        )
        print("opening", flush=True)
        await asyncio.sleep(0.5)  # the order and its fill: no transaction is open meanwhile
        async with database.connection() as connection, connection.raw_connection.transaction():
            await database.execute(
                "update positions set status = 'active' where symbol = :symbol", {"symbol": symbol}
            )


async def main() -> None:
    async with (
        database,
        asyncpg.create_pool(URL, min_size=0, max_size=4) as pool,  # the fence's own
        LockGuard.from_env(fence=PostgresFence(pool)) as guard,
    ):
        try:
            await asyncio.create_task(open_position(guard, sys.argv[1]))  # a body in a task of its own
            print("active")
        except (StaleToken, LeaseLost) as refused:
            print(f"refused: {refused}")


if __name__ == "__main__":
    asyncio.run(main())
