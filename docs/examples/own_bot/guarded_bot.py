"""A futures bot: signals come on standard input, orders go through ccxt, positions are kept in Postgres.

A signal is a line such as "7 long APTUSDT": its number, the side, the symbol. A sync pass brings the table in
step with the exchange, a task writes prices and profits, and another one moves the stops up behind the price.
"""

import asyncio
import logging
import os
import sys
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import ccxt.async_support as ccxt

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, fenced
from lockguard_ccxt import GuardedExchange, resource_keys
from lockguard_lab.exchange import point_at

EXCHANGE = "binance"
POSITION_USD = Decimal(300)
STOP_LOSS = Decimal("0.02")
OPEN = ["pending_entry", "entry_placed", "pending_sl", "active"]
SETTLE_SECONDS = float(os.environ.get("SETTLE_SECONDS", "3"))
SYNC_SECONDS = float(os.environ.get("SYNC_SECONDS", "60"))
TICK_SECONDS = float(os.environ.get("TICK_SECONDS", "5"))

log = logging.getLogger("bot")


@dataclass
class Signal:
    id: str
    side: str
    symbol: str
    exchange: str = EXCHANGE


class Database:
    """The table monitoring.positions."""

    pool = None

    async def connect(self, url):
        self.pool = fenced(await asyncpg.create_pool(url, min_size=2, max_size=20))

    async def open(self, exchange):
        return await self.pool.fetch(
            "select * from monitoring.positions where exchange = $1 and status = any($2)", exchange, OPEN
        )

    async def has_position(self, exchange, symbol):
        return await self.pool.fetchval(
            "select id from monitoring.positions where exchange = $1 and symbol = $2 and status = 'active'",
            exchange,
            symbol,
        )

    async def get(self, position_id):
        return await self.pool.fetchrow("select * from monitoring.positions where id = $1", position_id)

    async def add(self, exchange, symbol, side, quantity, price, status):
        async with self.pool.acquire() as conn:
            return await conn.fetchval(
                "insert into monitoring.positions (exchange, symbol, side, quantity, entry_price, status)"
                " values ($1, $2, $3, $4, $5, $6) returning id",
                *(exchange, symbol, side, quantity, price, status),
            )

    async def set_status(self, position_id, status):
        await self.pool.execute(
            "update monitoring.positions set status = $2 where id = $1", position_id, status
        )

    async def set_stop(self, position_id, stop):
        await self.pool.execute(
            "update monitoring.positions set stop_price = $2, stop_order_id = $3 where id = $1",
            *(position_id, Decimal(str(stop["triggerPrice"])), stop["id"]),
        )

    async def set_price(self, position_id, price):
        await self.pool.execute(
            "update monitoring.positions set current_price = $2, pnl = ($2 - entry_price) * quantity"
            " where id = $1",
            *(position_id, price),
        )


db = Database()
guard = LockGuard.from_env(fence=PostgresFence(lambda: db.pool), resource_key=resource_keys(EXCHANGE))
ADOPT = """
update monitoring.positions set status = case when $3::numeric > 0 then 'active' else 'canceled' end
 where exchange = $1 and symbol = $2 and status in ('pending_entry', 'entry_placed', 'pending_sl')"""


class Exchange:
    """ccxt, with the retries that an exchange needs."""

    def __init__(self, client):
        self.client = client

    async def order(self, symbol, side, quantity, params=None):
        """Send a market order, or a stop; try three times."""
        params = {"clientOrderId": uuid.uuid4().hex, **(params or {})}
        for attempt in (1, 2, 3):
            try:
                return await self.client.create_order(symbol, "market", side, float(quantity), None, params)
            except ccxt.NetworkError as error:
                log.warning("%s: attempt %d: %s", symbol, attempt, error)
                if attempt == 3:
                    raise
                await asyncio.sleep(0.2 * attempt)
        return None

    async def positions(self):
        """The open positions, by the exchange's own symbols."""
        return {p["info"]["symbol"]: p for p in await self.client.fetch_positions() if p["contracts"]}

    async def size(self, symbol):
        """How much of a symbol is held; 0 when there is no position."""
        return sum(Decimal(str(p["contracts"] or 0)) for p in await self.client.fetch_positions([symbol]))

    async def price(self, symbol):
        return Decimal(str((await self.client.fetch_ticker(symbol))["last"]))

    def quantity(self, symbol, price):
        return Decimal(self.client.amount_to_precision(symbol, POSITION_USD / price))

    async def stops(self, symbol):
        return await self.client.fetch_open_orders(symbol, params={"trigger": True})

    async def place_stop(self, symbol, side, quantity, price):
        distance = -STOP_LOSS if side == "long" else STOP_LOSS
        trigger = self.client.price_to_precision(symbol, price * (1 + distance))
        params = {"stopLossPrice": trigger, "reduceOnly": True}
        stop = await self.order(symbol, "sell" if side == "long" else "buy", quantity, params)
        return {**stop, "triggerPrice": trigger}

    async def cancel_stops(self, symbol):
        for stop in await self.stops(symbol):
            await self.client.cancel_order(stop["id"], symbol, {"trigger": True})


class PositionManager:
    """Opens positions, keeps the table in step with the exchange, moves stops."""

    def __init__(self, exchange):
        self.exchange = exchange
        self.locks = defaultdict(asyncio.Lock)

    async def open_position_atomic(self, signal):
        """Row, market order, a pause to settle, stop, row; all of it is taken back if a step fails."""
        symbol, way = signal.symbol, "buy" if signal.side == "long" else "sell"
        async with self.locks[symbol]:
            position_id, entry = None, None
            try:
                price = await self.exchange.price(symbol)
                quantity = self.exchange.quantity(symbol, price)
                position_id = await db.add(
                    signal.exchange, symbol, signal.side, quantity, price, "pending_entry"
                )
                entry = await self.exchange.order(symbol, way, quantity)
                await db.set_status(position_id, "entry_placed")
                await asyncio.sleep(SETTLE_SECONDS)
                if not await self.exchange.size(symbol):
                    raise RuntimeError("the position does not show")
                await db.set_status(position_id, "pending_sl")
                stop = await self.exchange.place_stop(symbol, signal.side, quantity, price)
                async with db.pool.acquire() as conn, conn.transaction():
                    await conn.execute(
                        "update monitoring.positions set stop_price = $2, stop_order_id = $3 where id = $1",
                        *(position_id, Decimal(str(stop["triggerPrice"])), stop["id"]),
                    )
                    await conn.execute(
                        "update monitoring.positions set status = 'active' where id = $1", position_id
                    )
                log.info("%s opened as position %d", symbol, position_id)
                return position_id
            except Exception as error:
                log.error("%s: rolling back: %s: %s", symbol, type(error).__name__, error)
                await self.roll_back(signal, position_id, entry)
                return None

    async def roll_back(self, signal, position_id, entry):
        try:
            if entry is not None:
                way = "sell" if signal.side == "long" else "buy"
                await self.exchange.order(signal.symbol, way, entry["amount"])
        except Exception as error:
            log.error("%s: not rolled back: %s: %s", signal.symbol, type(error).__name__, error)
        try:
            if position_id is not None:
                await db.set_status(position_id, "rolled_back")
        except Exception as error:
            log.error("%s: row not rolled back: %s: %s", signal.symbol, type(error).__name__, error)

    @guard.exclusive("{exchange}:{symbol}", on_busy="skip")
    async def synchronize_symbol(self, exchange, symbol):
        await db.pool.execute(ADOPT, exchange, symbol, await self.exchange.size(symbol))
        return await self.synchronize_exchange(exchange, only=symbol)

    async def synchronize_exchange(self, exchange, only=None):
        """Bring the table in step with the exchange."""
        held = await self.exchange.positions()
        rows = {row["symbol"]: row for row in await db.open(exchange)}
        done = Counter()
        for symbol in sorted({*held, *rows}):
            try:
                if symbol != only:
                    if only is None:
                        await self.synchronize_symbol(exchange, symbol)
                    continue
                position, row = held.get(symbol), rows.get(symbol)

                # The position is gone: its stop was hit, or a person closed it. The row is a phantom.
                if position is None:
                    async with self.locks[symbol]:
                        await self.exchange.cancel_stops(symbol)
                        await db.set_status(row["id"], "closed")
                    log.info("%s: position %d is closed on the exchange", symbol, row["id"])
                    done["closed"] += 1
                    continue

                side = position["side"]
                quantity = Decimal(str(position["contracts"]))
                price = Decimal(str(position["entryPrice"]))

                # The exchange has it, and the table does not.
                if row is None:
                    async with self.locks[symbol]:
                        position_id = await db.add(exchange, symbol, side, quantity, price, "active")
                    log.info("%s: position %d was on the exchange", symbol, position_id)
                    done["added"] += 1
                    row = await db.get(position_id)

                # Another size than the table says, after a partial fill or a trade by hand.
                elif row["quantity"] != quantity:
                    async with self.locks[symbol], db.pool.acquire() as conn:
                        await conn.execute(
                            "update monitoring.positions set quantity = $2, entry_price = $3 where id = $1",
                            *(row["id"], quantity, price),
                        )
                    log.info("%s: %s instead of %s", symbol, quantity, row["quantity"])
                    done["resized"] += 1

                # A position needs one stop, and its row needs to know which.
                stops = await self.exchange.stops(symbol)
                known = next((stop for stop in stops if stop["id"] == row["stop_order_id"]), None)
                if not stops:
                    async with self.locks[symbol]:
                        stop = await self.exchange.place_stop(symbol, side, quantity, price)
                        await db.set_stop(row["id"], stop)
                    log.warning("%s: had no stop", symbol)
                    done["stopped"] += 1
                elif known is None:
                    async with self.locks[symbol]:
                        await db.set_stop(row["id"], stops[0])
                    log.info("%s: stop %s taken over", symbol, stops[0]["id"])
                    done["taken over"] += 1
            except Exception as error:
                log.error("%s: not synchronized: %s: %s", symbol, type(error).__name__, error)
                done["failed"] += 1
        return done

    @guard.exclusive("binance:{symbol}", on_busy="skip")
    async def move_stop(self, position_id, symbol, price):
        """Move a stop up behind the price, or down behind that of a short position."""
        row = await db.get(position_id)
        if row["status"] != "active" or row["stop_price"] is None:
            return
        distance = -STOP_LOSS if row["side"] == "long" else STOP_LOSS
        gain = (price * (1 + distance) / row["stop_price"] - 1) * (1 if row["side"] == "long" else -1)
        if gain < Decimal("0.005"):
            return
        await self.exchange.cancel_stops(symbol)
        stop = await self.exchange.place_stop(symbol, row["side"], row["quantity"], price)
        await db.set_stop(position_id, stop)
        log.info("%s: stop moved to %s", symbol, stop["triggerPrice"])


class SignalProcessor:
    """Takes signals, one at a time for each symbol."""

    def __init__(self, exchange, manager):
        self.exchange = exchange
        self.manager = manager
        self.busy = defaultdict(asyncio.Lock)

    async def handle(self, signal):
        async with self.busy[signal.symbol]:
            try:
                await self.process(signal)
            except Exception as error:
                log.error("%s: signal failed: %s: %s", signal.symbol, type(error).__name__, error)
        log.info("signal %s done", signal.id)

    @guard.exclusive("{signal.exchange}:{signal.symbol}")
    async def process(self, signal):
        """Look whether the symbol has a position; if not, open one."""
        await self.manager.synchronize_symbol(signal.exchange, signal.symbol)
        if await db.has_position(signal.exchange, signal.symbol):
            log.info("%s has a position", signal.symbol)
            return
        if await self.exchange.size(signal.symbol):
            log.info("%s has a position on the exchange", signal.symbol)
            return
        await self.manager.open_position_atomic(signal)


async def forever(seconds, what, step):
    while True:
        try:
            log.info("%s %s", what, dict(await step() or {}))
        except Exception as error:
            log.error("%s failed: %s: %s", what, type(error).__name__, error)
        await asyncio.sleep(seconds)


async def main():
    await db.connect(os.environ["DATABASE_URL"])
    client = ccxt.binanceusdm(
        {
            "apiKey": os.environ["API_KEY"],
            "secret": os.environ["API_SECRET"],
            "enableRateLimit": os.environ.get("RATE_LIMIT", "on") == "on",
            "options": {"recvWindow": int(os.environ.get("RECV_WINDOW_MS", "2000"))},
        }
    )
    point_at(client, os.environ["EXCHANGE_URL"])  # the local exchange; without this line, the real one
    await client.load_markets()
    exchange = Exchange(GuardedExchange(client))
    manager = PositionManager(exchange)
    processor = SignalProcessor(exchange, manager)

    async def tick():
        tickers = await client.fetch_tickers()
        prices = {client.market(name)["id"]: ticker["last"] for name, ticker in tickers.items()}
        for row in await db.open(EXCHANGE):
            await db.set_price(row["id"], Decimal(str(prices[row["symbol"]])))

    async def trail():
        for row in await db.open(EXCHANGE):
            async with manager.locks[row["symbol"]]:
                await manager.move_stop(row["id"], row["symbol"], row["current_price"] or row["entry_price"])

    log.info("ready")
    try:
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(
                    forever(SYNC_SECONDS, "sync", lambda: manager.synchronize_exchange(EXCHANGE))
                ),
                tasks.create_task(forever(TICK_SECONDS, "prices", tick)),
                tasks.create_task(forever(TICK_SECONDS, "stops", trail)),
            ]
            while line := await asyncio.to_thread(sys.stdin.readline):
                tasks.create_task(processor.handle(Signal(*line.split())))
            for loop in loops:
                loop.cancel()
    finally:
        await client.close()
        await db.pool.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    asyncio.run(main())
