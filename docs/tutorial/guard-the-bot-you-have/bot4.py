"""A futures bot: signals come on standard input, orders go through ccxt, positions are kept in Postgres.

It opens and closes as the signals say: "long APTUSDT 10", "close APTUSDT". With the argument "sync" it makes
one pass that brings the table in step with the exchange instead; cron runs that every minute.
"""

import asyncio
import logging
import os
import sys
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import ccxt.async_support as ccxt

from lockguard import LockGuard, LockguardError, Skipped, exclusive
from lockguard_asyncpg import PostgresFence, fenced
from lockguard_ccxt import Executed, GuardedExchange, Refusal, Refused, Side, Unknown
from lockguard_lab.exchange import point_at

EXCHANGE = "binance"
STOP_LOSS = Decimal("0.02")
SETTLE_SECONDS = 1
LEASE = timedelta(seconds=3)  # short, so that this guide's races end soon; 10 s is the default

log = logging.getLogger("bot")


class Bot:
    def __init__(self, guard: LockGuard, pool: asyncpg.Pool, exchange: GuardedExchange) -> None:
        self.guard = guard
        self.pool = pool
        self.exchange = exchange

    @exclusive("{exchange}:{symbol}", guard="guard")
    async def open_position_atomic(self, symbol: str, exchange: str, side: str, quantity: Decimal) -> None:
        """Row, market order, a pause to settle, stop loss, row."""
        if await self.pool.fetchval(
            "select id from monitoring.positions where symbol = $1 and exchange = $2 and status = 'active'",
            symbol,
            exchange,
        ):
            log.info("%s is open already", symbol)
            return
        price = Decimal(str((await self.exchange.fetch_ticker(symbol))["last"]))
        row = await self.add_row(symbol, exchange, side, quantity, price, "pending_entry")
        way: Side = "buy" if side == "long" else "sell"
        entry = await self.exchange.place_entry(symbol, way, quantity, intent=row)
        if not isinstance(entry, Executed):
            log.error("%s not opened: %s", symbol, entry)
            if isinstance(entry, Refused):
                await self.set_status(row, "failed")
            return  # if the outcome is unknown, the row stays: its number leads to the order
        try:
            await self.set_status(row, "entry_placed")
            await asyncio.sleep(SETTLE_SECONDS)
            await self.place_stop(row, symbol, side, quantity, price)
            await self.set_status(row, "active")
            log.info("%s opened", symbol)
        except LockguardError:
            raise  # not ours to roll back any more: the next holder has the position
        except Exception as error:
            log.error("%s rolled back: %s", symbol, error)
            await self.flatten(row, symbol, side, quantity)
            await self.set_status(row, "rolled_back")

    @exclusive("{exchange}:{symbol}", guard="guard")
    async def close_position(self, symbol: str, exchange: str) -> None:
        row = await self.pool.fetchval(
            "select coalesce(max(id), 0) from monitoring.positions where symbol = $1 and exchange = $2",
            symbol,
            exchange,
        )
        for position in await self.exchange.fetch_positions([symbol]):
            await self.flatten(row, symbol, position["side"], Decimal(str(position["contracts"])))
        await self.cancel_stops(symbol)
        await self.pool.execute(
            "update monitoring.positions set status = 'closed' where symbol = $1 and exchange = $2"
            " and status in ('pending_entry', 'entry_placed', 'active')",
            symbol,
            exchange,
        )
        log.info("%s closed", symbol)

    async def sync_exchange_positions(self, exchange: str) -> None:
        """Bring the table in line with the exchange."""
        held = await self.held()
        rows = await self.pool.fetch(
            "select symbol from monitoring.positions where exchange = $1 and status = 'active'", exchange
        )
        for symbol in sorted(held.keys() | {row["symbol"] for row in rows}):
            result = await self.sync_symbol(symbol, exchange)
            if isinstance(result, Skipped):
                log.info("%s skipped: %s", symbol, result.busy.operation)
        # The dashboard's prices: no decision depends on them.
        await self.pool.executemany(
            "update monitoring.positions set current_price = $3"
            " where symbol = $1 and exchange = $2 and status = 'active'",
            [(symbol, exchange, Decimal(str(p["markPrice"]))) for symbol, p in held.items()],
        )

    @exclusive("{exchange}:{symbol}", guard="guard", on_busy="skip")
    async def sync_symbol(self, symbol: str, exchange: str) -> None:
        # Read again under the lease: the state that the pass read before may have changed.
        position = (await self.held()).get(symbol)
        known = await self.pool.fetchval(
            "select id from monitoring.positions where symbol = $1 and exchange = $2 and status = 'active'",
            symbol,
            exchange,
        )
        if position and not known:
            side, quantity = position["side"], Decimal(str(position["contracts"]))
            price = Decimal(str(position["entryPrice"]))
            row = await self.add_row(symbol, exchange, side, quantity, price, "active")
            await self.place_stop(row, symbol, side, quantity, price)
            log.info("%s added: the exchange has it", symbol)
        elif known and not position:
            await self.close_position(symbol, exchange)

    async def held(self) -> dict[str, Any]:
        """The exchange's positions by its own symbols, such as APTUSDT."""
        return {p["info"]["symbol"]: p for p in await self.exchange.fetch_positions() if p["contracts"]}

    async def flatten(self, row: int, symbol: str, side: str, quantity: Decimal) -> None:
        """Close the position, reduce-only, then cancel its stops; raise while that is not certain."""
        way: Side = "sell" if side == "long" else "buy"
        match await self.exchange.close_position(symbol, way, quantity, intent=row):
            case Executed() | Refused(refusal=Refusal.REDUCE_ONLY):  # closed, or it was flat already
                await self.cancel_stops(symbol)
            case outcome:
                raise RuntimeError(f"{symbol} is not closed: {outcome}")

    async def place_stop(self, row: int, symbol: str, side: str, quantity: Decimal, price: Decimal) -> None:
        long = side == "long"
        trigger = price * (1 - STOP_LOSS if long else 1 + STOP_LOSS)
        way: Side = "sell" if long else "buy"
        stop = await self.exchange.place_stop(symbol, way, quantity, trigger=trigger, intent=row)
        if not isinstance(stop, Executed):
            raise RuntimeError(f"{symbol} has no stop: {stop}")

    async def cancel_stops(self, symbol: str) -> None:
        for order in await self.exchange.open_orders(symbol):
            if order.conditional and isinstance(await self.exchange.cancel(order), Unknown):
                raise RuntimeError(f"{symbol}: it is unknown whether the stop {order.id} is gone")

    async def add_row(
        self, symbol: str, exchange: str, side: str, quantity: Decimal, price: Decimal, status: str
    ) -> int:
        row: int = await self.pool.fetchval(
            "insert into monitoring.positions (symbol, exchange, side, quantity, entry_price, status)"
            " values ($1, $2, $3, $4, $5, $6) returning id",
            *(symbol, exchange, side, quantity, price, status),
        )
        return row

    async def set_status(self, row: int, status: str) -> None:
        await self.pool.execute("update monitoring.positions set status = $2 where id = $1", row, status)


async def handle(bot: Bot, signal: str) -> None:
    """Carry out one signal."""
    try:
        what, symbol, *quantity = signal.split()
        if what == "close":
            await bot.close_position(symbol, EXCHANGE)
        else:
            await bot.open_position_atomic(symbol, EXCHANGE, what, Decimal(quantity[0]))
    except Exception as error:
        log.error("%s ended with %s: %s", signal.strip(), type(error).__name__, error)


async def main() -> None:
    keys = {"apiKey": os.environ["API_KEY"], "secret": os.environ["API_SECRET"], "timeout": 30_000}
    exchange = ccxt.binanceusdm(keys)
    point_at(exchange, os.environ["EXCHANGE_URL"])  # the local exchange; without this line, the real one
    async with (
        asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=2) as pool,
        LockGuard.from_url(os.environ["REDIS_URL"], ttl=LEASE, fence=PostgresFence(pool)) as guard,
    ):
        try:
            await exchange.load_markets()
            bot = Bot(guard, fenced(pool), GuardedExchange(exchange))
            if sys.argv[1:] == ["sync"]:
                await bot.sync_exchange_positions(EXCHANGE)
                return
            log.info("ready")
            async with asyncio.TaskGroup() as tasks:
                while signal := await asyncio.to_thread(sys.stdin.readline):
                    tasks.create_task(handle(bot, signal))
        finally:
            await exchange.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    asyncio.run(main())
