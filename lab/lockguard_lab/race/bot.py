"""The bot of one process of a race, with the guard or without."""

from __future__ import annotations

from datetime import timedelta
from decimal import ROUND_UP, Decimal
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard_asyncpg import PostgresFence
from lockguard_ccxt import GuardedExchange, Patience, decimal_of, rules_of
from lockguard_ccxt.lean_import import import_lean
from lockguard_lab.exchange import connect
from lockguard_lab.naive import NaiveManager
from lockguard_lab.race.phase import HeldExchange, Line, hold_orders
from lockguard_positions._events import LogPositions, PositionEvent, WriteRefused
from lockguard_positions._manager import AtomicPositionManager
from lockguard_positions._model import AlreadyOpen, Opened
from lockguard_positions._pace import Pace

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from lockguard_lab.race.settings import RaceSettings, Report, WorkerSpec

__all__ = ["Bot", "Refusals", "set_up"]

_EXCHANGE = "binance"
_STOP_PERCENT = Decimal(2)
_WORTH = Decimal(60)
_POOL_MAX = 12
_LATE_MS = 1_000
_INCOMPLETE_AFTER = timedelta(seconds=2)
"""The age from which the unguarded clean-up takes an open for dead, at time scale 1."""


class Bot:
    """The bot of this process, with the guard or without.

    Args:
        spec: the instructions of its process.
        client: the exchange, for names and prices.
        manager: the position manager, guarded or not.

    Attributes:
        settled: whether the last pass left nothing in doubt.
    """

    def __init__(self, spec: WorkerSpec, client: Any, manager: AtomicPositionManager | NaiveManager) -> None:
        self._settings = spec.settings
        self._client = client
        self._manager = manager
        self._prices: dict[str, Decimal] = {}
        self.settled = False

    async def prepare(self) -> None:
        """Fetch the prices, so that a signal has one."""
        for symbol, ticker in (await self._client.fetch_tickers()).items():
            price = decimal_of(ticker.get("last"))
            if price:
                self._prices[symbol] = price

    def unified(self, symbol: str) -> str:
        """The symbol in ccxt's spelling."""
        return str(self._client.market(symbol)["symbol"])

    async def look(self, symbol: str) -> None:
        """Ask the exchange for the position in a symbol."""
        await self._client.fetch_positions([symbol])

    async def open(self, symbol: str, report: Report) -> None:
        """Handle one signal and add the outcome to the report."""
        price = self._prices[symbol]
        rules = rules_of(self._client, self._client.market(symbol))
        steps = (
            max(_WORTH, (rules.cost_min or Decimal(0)) * 2) / price / rules.amount_step
        ).to_integral_value(ROUND_UP)
        quantity = steps * rules.amount_step
        started = SYSTEM_CLOCK.now()
        if isinstance(self._manager, NaiveManager):
            naive = await self._manager.open_position_atomic(
                f"race {symbol}", symbol, "long", quantity, price, _STOP_PERCENT
            )
            report.violations += [symbol] if naive.unique_violation else []
            report.refused += naive.existing
            done = naive.error is None and not naive.existing
            report.failed += naive.error is not None
        else:
            result = await self._manager.open_position_atomic(
                f"race {symbol}", symbol, _EXCHANGE, "long", quantity, price, _STOP_PERCENT
            )
            done = isinstance(result, Opened)
            report.refused += isinstance(result, AlreadyOpen)
            report.failed += not isinstance(result, AlreadyOpen | Opened)
        if done:
            report.opened += 1
            report.open_ms.append((SYSTEM_CLOCK.now() - started) * 1000)

    async def sync(self, report: Report) -> None:
        """Make one sync pass."""
        report.passes += 1
        self.settled = False
        if isinstance(self._manager, NaiveManager):
            await self._manager.sync_exchange_positions(stop_loss_percent=_STOP_PERCENT)
            self.settled = True
        else:
            passed = await self._manager.sync_exchange_positions(_EXCHANGE)
            report.skipped += len(passed.skipped)
            self.settled = passed.settled

    async def clean_up(self, report: Report) -> None:
        """Clean up once what looks incomplete."""
        report.passes += 1
        if isinstance(self._manager, NaiveManager):
            await self._manager.clean_up(_INCOMPLETE_AFTER * self._settings.time_scale)
        else:
            passed = await self._manager.recover(_EXCHANGE)
            report.skipped += len(passed.skipped)


class Refusals:
    """Counts the writes that Postgres refused."""

    def __init__(self) -> None:
        self.count = 0

    def on(self, event: PositionEvent) -> None:
        """Count the event if it is a refused write."""
        if isinstance(event, WriteRefused):
            self.count += 1


async def set_up(stack: AsyncExitStack, spec: WorkerSpec, refusals: Refusals, line: Line | None) -> Bot:
    """Make a bot with its connections, which close with ``stack``; its opens wait in ``line``."""
    settings = spec.settings
    pool = await stack.enter_async_context(
        asyncpg.create_pool(settings.database_url, min_size=1, max_size=_POOL_MAX)
    )
    import_lean("binanceusdm")
    # The less time the exchange accepts late orders, the sooner an order that was never sent is ruled out.
    config = {"options": {"recvWindow": _LATE_MS}} if settings.expire_leases or settings.faults else {}
    client = connect(settings.exchange_url, config=config)
    stack.push_async_callback(client.close)
    await client.load_markets()
    manager: AtomicPositionManager | NaiveManager
    if settings.guard:
        manager = await _guarded(stack, settings, pool, client, refusals, line)
    else:
        if line is not None:
            hold_orders(client, line)
        manager = NaiveManager(pool, client, time_scale=settings.time_scale)
    bot = Bot(spec, client, manager)
    await bot.prepare()
    return bot


async def _guarded(
    stack: AsyncExitStack,
    settings: RaceSettings,
    pool: asyncpg.Pool[Any],
    client: Any,
    refusals: Refusals,
    line: Line | None,
) -> AtomicPositionManager:
    fence_pool = await stack.enter_async_context(
        asyncpg.create_pool(settings.database_url, min_size=1, max_size=_POOL_MAX)
    )
    guard = await stack.enter_async_context(
        LockGuard.from_urls(
            settings.redis_urls,
            fence=PostgresFence(fence_pool),
            ttl=timedelta(milliseconds=settings.ttl_ms),
            wait=timedelta(seconds=30),
        )
    )
    patience = Patience(search=timedelta(seconds=1), poll=timedelta(milliseconds=50))
    exchange = (
        GuardedExchange(client, patience=patience)
        if line is None
        else HeldExchange(client, patience=patience, line=line)
    )
    pace = Pace(poll=timedelta(milliseconds=50), grace=timedelta(seconds=10) * settings.time_scale)
    return AtomicPositionManager(guard, pool, [exchange], pace=pace, observers=[LogPositions(), refusals])
