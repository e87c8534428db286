"""A synchronous bot's rows by psycopg 3."""

import os
import sys
import time
from contextlib import asynccontextmanager

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from lockguard import LeaseLost, StaleToken
from lockguard.sync import LockGuard
from lockguard_psycopg import FencedConnection, PsycopgFence

URL = os.environ["LOCKGUARD_DATABASE_URL"]


@asynccontextmanager
async def fence():
    """Made by the guard in its own event loop, and ended with it."""
    pool = AsyncConnectionPool(URL, min_size=1, max_size=4, open=False)
    async with pool, PsycopgFence(pool) as made:
        yield made


def open_position(guard: LockGuard, pool: ConnectionPool, symbol: str) -> None:
    with guard.hold(f"binance:{symbol}"):
        with pool.connection() as conn:  # one transaction, which is committed at the end of the block
            conn.execute("insert into positions values (%s, 'opening')", [symbol])
        print("opening", flush=True)
        time.sleep(0.5)  # the order and its fill: no transaction is open meanwhile
        with pool.connection() as conn:
            conn.execute("update positions set status = 'active' where symbol = %s", [symbol])


def main() -> None:
    with (
        ConnectionPool(URL, connection_class=FencedConnection, open=True) as pool,
        LockGuard.from_env(fence=fence) as guard,
    ):
        try:
            open_position(guard, pool, sys.argv[1])
            print("active")
        except (StaleToken, LeaseLost) as refused:
            print(f"refused: {refused}")


if __name__ == "__main__":
    main()
