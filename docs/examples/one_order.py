"""A position that a job opens: one order, however often the job is delivered and wherever it is killed."""

import asyncio
import os
from dataclasses import dataclass
from decimal import Decimal

import asyncpg
import ccxt.async_support as ccxt

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, fenced_transaction
from lockguard_ccxt import GuardedExchange, PlacedOrder, Refused, Side, Step, Unknown
from lockguard_lab.exchange import point_at


class TryAgainError(Exception):
    """The order was not placed, or nobody knows yet whether it was: deliver the job again."""


@dataclass
class Bot:
    guard: LockGuard
    pool: asyncpg.Pool
    exchange: GuardedExchange

    @classmethod
    async def connect(cls) -> "Bot":
        client = ccxt.binanceusdm(
            {
                "apiKey": os.environ["LOCKGUARD_EXCHANGE_API_KEY"],
                "secret": os.environ["LOCKGUARD_EXCHANGE_SECRET"],
            }
        )
        if local := os.environ.get("LOCKGUARD_EXCHANGE_URL"):
            point_at(client, local)
        pool = await asyncpg.create_pool(os.environ["LOCKGUARD_DATABASE_URL"], min_size=1)
        bot = cls(LockGuard.from_env(fence=PostgresFence(pool)), pool, GuardedExchange(client))
        await bot.exchange.load()
        return bot

    async def close(self) -> None:
        await self.guard.aclose()
        await self.exchange.close()
        await self.pool.close()

    async def open_position(self, signal: str, symbol: str, side: Side, quantity: str) -> str:
        async with self.guard.hold(self.exchange.resource(symbol), operation=f"signal {signal}"):
            async with fenced_transaction(self.pool) as database:  # committed before anything is sent
                row = await database.fetchrow(
                    "insert into entries (signal) values ($1) on conflict (signal) do update"
                    " set deliveries = entries.deliveries + 1"
                    " returning id, deliveries",
                    signal,
                )
            if row["deliveries"] > 1 and (order := await self.appeared(symbol, row["id"])):
                return f"{signal} has its order already: {order.client_id}"
            outcome = await self.exchange.place_entry(symbol, side, Decimal(quantity), intent=row["id"])
            if isinstance(outcome, Unknown) or (isinstance(outcome, Refused) and not outcome.final):
                raise TryAgainError(f"{signal}: {outcome}")
            return f"{signal}: {outcome}"

    async def appeared(self, symbol: str, intent: int) -> PlacedOrder | None:
        """The order of an earlier delivery. Under this lease none sends it any more; it may be on its way."""
        name = self.exchange.client_id(symbol, intent, Step.ENTRY)
        clock = asyncio.get_running_loop().time
        until = clock() + self.exchange.in_doubt_for.total_seconds()
        while not (order := await self.exchange.find_order(symbol, name)) and clock() < until:
            await asyncio.sleep(0.5)
        return order
