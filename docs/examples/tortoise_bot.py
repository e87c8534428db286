"""A bot's rows by Tortoise ORM."""

import asyncio
import os
import sys
from urllib.parse import urlsplit

import asyncpg
from tortoise import Tortoise, fields
from tortoise.models import Model
from tortoise.transactions import in_transaction

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard_asyncpg import FencedConnection, PostgresFence

URL = os.environ["LOCKGUARD_DATABASE_URL"]


class Connection(FencedConnection):
    """Presents a lease with the first statement: Tortoise never gives back a connection whose BEGIN fails."""

    def transaction(self, **options):
        return asyncpg.Connection.transaction(self, **options)


class Position(Model):
    symbol = fields.CharField(max_length=40, primary_key=True)
    status = fields.CharField(max_length=10)

    class Meta:
        table = "positions"


def config() -> dict:
    url = urlsplit(URL)
    credentials = {
        "host": url.hostname,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "database": url.path.lstrip("/"),
        "connection_class": Connection,  # a db_url cannot name it
    }
    return {
        "connections": {"default": {"engine": "tortoise.backends.asyncpg", "credentials": credentials}},
        "apps": {"bot": {"models": [__name__], "default_connection": "default"}},
    }


async def open_position(guard: LockGuard, symbol: str) -> None:
    async with guard.hold(f"binance:{symbol}"):
        await Position.create(symbol=symbol, status="opening")
        print("opening", flush=True)
        await asyncio.sleep(0.5)  # the order and its fill: no transaction is open meanwhile
        async with in_transaction():
            await Position.filter(symbol=symbol).update(status="active")


async def main() -> None:
    await Tortoise.init(config())
    async with (
        asyncpg.create_pool(URL, min_size=0, max_size=4) as pool,  # the fence's own
        LockGuard.from_env(fence=PostgresFence(pool)) as guard,
    ):
        try:
            await open_position(guard, sys.argv[1])
            print("active")
        except (StaleToken, LeaseLost) as refused:
            print(f"refused: {refused}")
        finally:
            await Tortoise.close_connections()


if __name__ == "__main__":
    asyncio.run(main())
