"""A guard and its fence, made where the module is imported, for one ``asyncio.run`` after the other."""

import asyncio
import os
from types import SimpleNamespace

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, fenced_transaction

state = SimpleNamespace(pool=None)
guard = LockGuard.from_env(fence=PostgresFence(lambda: state.pool))


@guard.exclusive("binance:{symbol}")
async def sync_symbol(symbol: str) -> None:
    async with fenced_transaction(state.pool) as database:
        await database.execute("insert into beats (process) values ($1)", os.getpid())


async def main() -> None:
    async with asyncpg.create_pool(os.environ["LOCKGUARD_DATABASE_URL"], min_size=1) as state.pool:
        await sync_symbol("APTUSDT")


asyncio.run(main())
asyncio.run(main())  # another event loop: the guard connects anew, and the fence takes the new pool
