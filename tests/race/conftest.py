"""What the races and matrices share: one bot on real servers, and the judge of what it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import ROUND_UP, Decimal
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import DEFAULT_MARKETS, LocalExchange, connect
from lockguard_lab.servers import PostgresServer
from lockguard_positions import AtomicPositionManager, Pace, SyncAction, migrate

TTL = timedelta(seconds=1)
MS = timedelta(milliseconds=1)
UNSETTLED = tuple(action for action in SyncAction if not action.settled)


@dataclass
class Stage:
    """A bot that recovers what others left."""

    manager: AtomicPositionManager
    guard: LockGuard
    pool: asyncpg.Pool[Any]
    exchange: LocalExchange
    client: Any
    urls: dict[str, str]
    ttl: timedelta = TTL
    hasty: AtomicPositionManager | None = None
    """The same bot, which waits for an order that rests for a moment only."""

    @staticmethod
    def plain(symbol: str) -> str:
        return symbol.partition(":")[0].replace("/", "")

    @staticmethod
    def quantity_of(symbol: str) -> Decimal:
        """Twice the smallest order."""
        spec = next(spec for spec in DEFAULT_MARKETS if spec.symbol == symbol)
        return (spec.min_notional * 2 / spec.price / spec.step).to_integral_value(ROUND_UP) * spec.step

    async def recover(self, within: timedelta) -> None:
        """Recover and sync, as a bot does, until there is nothing more to settle; in time."""
        async with asyncio.timeout(within.total_seconds()):
            while True:
                recovered = await self.manager.recover("binance")
                synced = await self.manager.sync_exchange_positions("binance")
                if not recovered.of(*UNSETTLED) and synced.settled:
                    return
                await asyncio.sleep(0.05)

    async def sound(self, symbol: str) -> str:
        """What the exchange holds, after it was compared with the table."""
        record = self.exchange.record()
        held, stops = record.position(symbol), record.open_stops(symbol)
        assert len(record.entries(symbol)) <= 1
        rows = await self.pool.fetch(
            "select * from monitoring.positions where symbol = $1 and status = any($2)",
            self.plain(symbol),
            ["pending_entry", "entry_placed", "pending_sl", "active"],
        )
        doubt = await self.pool.fetchval(
            "select count(*) from monitoring.position_intents where symbol = $1 and settled_at is null",
            self.plain(symbol),
        )
        assert doubt == 0
        if not held:
            assert (list(rows), stops) == ([], ())
            return "flat"
        ((row,), (stop,)) = rows, stops
        assert (row["status"], row["quantity"], row["side"]) == ("active", held, "long")
        assert (row["stop_client_id"], stop.qty) == (stop.client_id, held)
        return "protected"


@pytest.fixture
async def stage(request: pytest.FixtureRequest, redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    """With leases of one second, or of the test's own parameter."""
    ttl: timedelta = getattr(request, "param", TTL)
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=20))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(
            # Where all symbols open at once on a busy machine, the last waits for more than the usual 5 s.
            LockGuard.from_url(
                redis_url, fence=PostgresFence(pool), ttl=ttl, fence_within=timedelta(seconds=30)
            )
        )
        client = connect(exchange.url, config={"options": {"recvWindow": 1000}})
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
        await guarded.load()
        pace = Pace(poll=20 * MS, stop_deadline=500 * MS, retry_pause=20 * MS, grace=0 * MS)
        manager = AtomicPositionManager(guard, pool, [guarded], pace=pace)
        urls = {"redis_url": redis_url, "database_url": database_url, "exchange_url": exchange.url}
        hasty = AtomicPositionManager(guard, pool, [guarded], pace=replace(pace, settle=50 * MS))
        yield Stage(manager, guard, pool, exchange, client, urls, ttl, hasty)


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange() as running:
        yield running


@pytest.fixture
def urls(redis_url: str, postgres_server: PostgresServer, exchange: LocalExchange) -> dict[str, str]:
    """Of the servers of a race."""
    return {"redis_url": redis_url, "database_url": postgres_server.url, "exchange_url": exchange.url}
