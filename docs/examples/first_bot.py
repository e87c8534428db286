"""Each symbol that has a signal gets one position with a stop, from however many processes."""

import asyncio
import os
from decimal import Decimal

import asyncpg

from lockguard import LockGuard, LockguardError, ResourceBusy
from lockguard_asyncpg import PostgresFence, fenced
from lockguard_ccxt import Executed, GuardedExchange
from lockguard_lab.exchange import connect

TABLE = """
create table if not exists positions (
    id bigint generated always as identity primary key, symbol text not null,
    status text not null default 'opening', quantity numeric)
"""
SYMBOLS = ["APTUSDT", "SUIUSDT", "ARBUSDT"]


async def open_position(pool, exchange, guard, symbol):
    async with guard.hold(exchange.resource(symbol)):
        if await pool.fetchval("select id from positions where symbol = $1 and status <> 'failed'", symbol):
            return f"{symbol}: has a position already"
        row = await pool.fetchval("insert into positions (symbol) values ($1) returning id", symbol)
        entry = await exchange.place_entry(symbol, "buy", Decimal(10), intent=row)
        if not isinstance(entry, Executed):
            await pool.execute("update positions set status = 'failed' where id = $1", row)
            return f"{symbol}: {entry}"
        price, filled = entry.order.average, entry.order.filled
        await exchange.place_stop(symbol, "sell", filled, trigger=price * Decimal("0.98"), intent=row)
        await pool.execute("update positions set status = 'active', quantity = $2 where id = $1", row, filled)
        return f"{symbol}: opened {filled} at {price}"


async def on_signal(pool, exchange, guard, symbol):
    try:
        print(await open_position(pool, exchange, guard, symbol))
    except ResourceBusy as busy:
        print(f"{symbol}: {busy.holder} is at it")
    except LockguardError as lost:
        print(f"{symbol}: {lost}")


async def main():
    async with (
        asyncpg.create_pool(os.environ["LOCKGUARD_DATABASE_URL"]) as plain,
        connect(os.environ["LOCKGUARD_EXCHANGE_URL"]) as client,
        LockGuard.from_env(fence=PostgresFence(plain)) as guard,
    ):
        await plain.execute(TABLE)
        pool, exchange = fenced(plain), GuardedExchange(client)
        await exchange.load()
        await asyncio.gather(*(on_signal(pool, exchange, guard, symbol) for symbol in SYMBOLS * 2))
        print(len(await exchange.holdings()), "positions on the exchange")


asyncio.run(main())
