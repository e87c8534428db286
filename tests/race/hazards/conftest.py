"""Two bots of one kind, unguarded or guarded, on the same real servers, and a way to act amid what they do.

The unguarded one is ``lockguard_lab.naive`` over ccxt as such bots wrap it. A test puts the same
schedule on both kinds and reads from the exchange's own record, and from the table, what became of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_UP, Decimal
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import asyncpg
import pytest
from tenacity import retry, stop_after_attempt

from lockguard import LockGuard, ResourceBusy
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import DEFAULT_MARKETS, Fault, FaultKind, LocalExchange, Operation, connect
from lockguard_lab.naive import NaiveManager
from lockguard_lab.servers import PostgresServer
from lockguard_positions import (
    AtomicPositionManager,
    Opened,
    Pace,
    SyncReport,
    migrate,
)

T = TypeVar("T")

APT = "APT/USDT:USDT"
DATED = "BTC/USDT:USDT-301227"
QUANTITY = Decimal(10)
MS = timedelta(milliseconds=1)
RECOVERED_WITHIN_S = 20
NO_LINGER = {"timeout_on_exit": 0}

Act = Callable[[], Awaitable[object]]


class Wire:
    """The ccxt client of a bot. A test can act just before an order is sent, or when its answer is there.

    Orders are told apart as ``entry``, ``stop`` and ``exit``: all positions here are long.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.before: dict[str, Act] = {}
        self.after: dict[str, Act] = {}
        self.acted = 0
        self._send = client.create_order
        client.create_order = self._create_order

    async def _create_order(
        self, symbol: str, kind: str, side: str, amount: Any, price: Any = None, params: Any = None
    ) -> Any:
        params = params or {}
        step = "stop" if "stopLossPrice" in params else "entry" if side == "buy" else "exit"
        await self._act(self.before, step)
        order = await self._send(symbol, kind, side, amount, price, params)
        await self._act(self.after, step)
        return order

    async def _act(self, acts: dict[str, Act], step: str) -> None:
        if step in acts:
            self.acted += 1
            await acts[step]()


class WrappedClient:
    """ccxt as such bots wrap it: each order is tried three times, and no answer is an empty one."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    @retry(stop=stop_after_attempt(3), reraise=True)
    async def create_order(self, *args: Any) -> Any:
        return await self._client.create_order(*args)

    async def fetch_positions(self) -> Any:
        try:
            return await self._client.fetch_positions()
        except Exception:
            return []


class NaiveBot:
    """The unguarded bot."""

    def __init__(self, pool: asyncpg.Pool[Any], wire: Wire, exchange: LocalExchange) -> None:
        self.pool = pool
        self.wire = wire
        self.exchange = exchange
        self.client = WrappedClient(wire.client)
        self.manager = NaiveManager(pool, self.client, time_scale=0.05)

    async def open(self, symbol: str = APT, quantity: Decimal = QUANTITY) -> str:
        price = self.exchange.price(symbol)
        done = await self.manager.open_position_atomic("s", symbol, "long", quantity, price, Decimal(2))
        return done.error or ("there is one" if done.existing else "opened")

    async def sync(self) -> int:
        return await self.manager.sync_exchange_positions()

    async def start(self, *, within_s: float = RECOVERED_WITHIN_S) -> None:
        """What it does at start, and every now and then."""
        await self.sync()
        await self.manager.clean_up(timedelta(0))

    async def close(self, symbol: str = APT) -> None:
        """A signal to exit: sell what is there, then tidy up."""
        active = "select 1 from monitoring.positions where status = 'active'"
        if not await self.pool.fetchval(active):
            return
        for position in await self.client.fetch_positions():
            if position["symbol"] == symbol and position["contracts"]:
                await self.client.create_order(symbol, "market", "sell", position["contracts"])
        await self.client.cancel_all_orders(symbol, {"trigger": True})
        await self.pool.execute("update monitoring.positions set status = 'closed' where status = 'active'")


class GuardedBot:
    """The guarded bot."""

    def __init__(
        self, pool: asyncpg.Pool[Any], wire: Wire, exchange: LocalExchange, guard: LockGuard
    ) -> None:
        self.wire = wire
        self.exchange = exchange
        self.guard = guard
        self.guarded = GuardedExchange(
            wire.client, patience=Patience(needed=100 * MS, search=2000 * MS, poll=20 * MS)
        )
        self.pool = pool
        self.manager = self.managed()

    def managed(self, **pace: timedelta) -> AtomicPositionManager:
        """A manager of the bot's positions, at a pace of its own."""
        quick = Pace(poll=20 * MS, retry_pause=20 * MS, **pace)
        return AtomicPositionManager(self.guard, self.pool, [self.guarded], pace=quick)

    async def open(
        self, symbol: str = APT, quantity: Decimal = QUANTITY, *, wait: timedelta | None = None
    ) -> str:
        price = self.exchange.price(symbol)
        try:
            done = await self.manager.open_position_atomic(
                "s", symbol, "binance", "long", quantity, price, "2", wait=wait
            )
        except ResourceBusy as busy:
            return f"{busy.holder}: {busy.operation}"
        return "opened" if isinstance(done, Opened) else done.reason

    async def sync(self) -> SyncReport:
        return await self.manager.sync_exchange_positions("binance")

    async def start(self, *, within_s: float = RECOVERED_WITHIN_S) -> None:
        """Recover until nothing is half done; in time."""
        async with asyncio.timeout(within_s):
            while True:
                recovered, synced = await self.manager.recover("binance"), await self.sync()
                if recovered.settled and synced.settled:
                    return
                await asyncio.sleep(0.05)

    async def close(self, symbol: str = APT) -> None:
        await self.manager.close_position(symbol, "binance")


class Picture(NamedTuple):
    """What became of a symbol.

    Attributes:
        most: the most that was ever held.
        least: the least; below zero, the position was turned round.
        held: at the end.
        stops: how many stops wait.
        rows: how many rows are open.
    """

    most: int
    least: int
    held: int
    stops: int
    rows: int


@dataclass
class World:
    """Two bots of a kind, and what they work on."""

    kind: str
    exchange: LocalExchange
    pool: asyncpg.Pool[Any]
    one: Any
    two: Any
    hand: Any
    """A client of neither bot: somebody at the exchange's web page."""
    urls: dict[str, str]

    def either(self, naive: T, guarded: T) -> T:
        """What is expected of the bots at hand."""
        return {"naive": naive, "guarded": guarded}[self.kind]

    def fault(self, kind: FaultKind, operation: Operation, **more: Any) -> None:
        self.exchange.inject(Fault(kind, operation, **more))

    async def picture(self, symbol: str = APT) -> Picture:
        record = self.exchange.record()
        name = symbol.partition(":")[0].replace("/", "")
        held = [
            0,
            *accumulate(int(fill.qty * fill.side.sign) for fill in record.fills if fill.symbol == name),
        ]
        rows = await self.pool.fetchval(
            "select count(*) from monitoring.positions where symbol = $1"
            " and status in ('pending_entry', 'entry_placed', 'pending_sl', 'active')",
            name,
        )
        assert held[-1] == record.position(symbol)
        return Picture(max(held), min(held), held[-1], len(record.open_stops(symbol)), rows)

    def orders(self, operation: Operation) -> int:
        """How often it was asked for on the exchange."""
        return sum(request.operation is operation for request in self.exchange.record().requests)

    def struck(self, kind: FaultKind) -> int:
        """How many requests a fault has hit."""
        return sum(kind.value in request.outcome for request in self.exchange.record().requests)

    @staticmethod
    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):  # a process takes two seconds of the processor to start
            while not condition():
                await asyncio.sleep(0.005)

    @staticmethod
    def smallest(symbol: str) -> Decimal:
        """Twice the smallest order."""
        spec = next(spec for spec in DEFAULT_MARKETS if spec.symbol == symbol)
        return (spec.min_notional * 2 / spec.price / spec.step).to_integral_value(ROUND_UP) * spec.step


async def make_bot(
    stack: AsyncExitStack, kind: str, exchange: Any, urls: dict[str, str], ttl: timedelta
) -> Any:
    """A bot with connections of its own.

    Args:
        exchange: what it asks for a symbol's price.
    """
    pool = await stack.enter_async_context(asyncpg.create_pool(urls["database"], min_size=1, max_size=10))
    client = connect(urls["exchange"], config=NO_LINGER)
    stack.push_async_callback(client.close)
    await client.load_markets()
    if kind == "naive":
        return NaiveBot(pool, Wire(client), exchange)
    guard = await stack.enter_async_context(
        LockGuard.from_url(urls["redis"], fence=PostgresFence(pool), ttl=ttl)
    )
    return GuardedBot(pool, Wire(client), exchange, guard)


@asynccontextmanager
async def make_world(kind: str, redis_url: str, database_url: str, ttl: timedelta) -> AsyncIterator[World]:
    conn = await asyncpg.connect(database_url)
    if kind == "guarded":
        await install(conn)
    await migrate(conn, to=1 if kind == "naive" else None)
    await conn.close()
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(
            LocalExchange(symbols=[*(spec.symbol for spec in DEFAULT_MARKETS), DATED])
        )
        urls = {"redis": redis_url, "database": database_url, "exchange": exchange.url}
        hand = connect(exchange.url, config=NO_LINGER)
        stack.push_async_callback(hand.close)
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=0, max_size=2))
        one = await make_bot(stack, kind, exchange, urls, ttl)
        two = await make_bot(stack, kind, exchange, urls, ttl)
        yield World(kind, exchange, pool, one, two, hand, urls)


@pytest.fixture(params=["naive", "guarded"])
async def world(request: pytest.FixtureRequest, redis_url: str, database_url: str) -> AsyncIterator[World]:
    """Leases last long: a busy machine must not end one."""
    async with make_world(request.param, redis_url, database_url, timedelta(seconds=10)) as made:
        yield made


@pytest.fixture(params=["naive", "guarded"])
async def mortal(
    request: pytest.FixtureRequest, redis_url: str
) -> AsyncIterator[tuple[World, PostgresServer]]:
    """With a database server that may be killed."""
    with PostgresServer() as server:
        async with make_world(request.param, redis_url, server.url, timedelta(seconds=2)) as made:
            yield made, server
