"""A wrapper of a ccxt exchange that sends no change without a lease."""

from __future__ import annotations

import asyncio
import inspect
import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import parse_resource
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_ccxt import _proxy as proxy
from lockguard_ccxt._gate import install, lease_on
from lockguard_ccxt._ids import Step, client_order_id
from lockguard_ccxt._keys import account_name, lock_name, unified_symbol
from lockguard_ccxt._markets import Listing, Market, listing_of
from lockguard_ccxt._money import MarketRules
from lockguard_ccxt._outcome import Executed, OrderAnswered, Outcome, PlacedOrder, Side, result_of
from lockguard_ccxt._own_calls import under_lease
from lockguard_ccxt._placing import PATIENCE, Patience, Placer, Plan
from lockguard_ccxt._prepared import Prepared
from lockguard_ccxt._venues import (
    FILLS_MAX,
    IN_HEDGE_MODE,
    Fill,
    Holding,
    every_order,
    every_position,
    fills_of_one,
    next_page,
    orders_of_one,
    parse_fills,
    parse_holdings,
    parse_order,
    venue_of,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
    from decimal import Decimal

    from lockguard._clock import Clock
    from lockguard._lease import Lease, Resource

__all__ = ["GuardedExchange"]

T = TypeVar("T")

_LOG = logging.getLogger("lockguard.ccxt")
_CLOCK_AHEAD = timedelta(seconds=1)
_REFRESH_S_MIN = 5.0
_REFRESH_PAUSE_S = 1.0
_FILLS_KEPT_MS = 6.5 * 24 * 3600 * 1000
"""Both exchanges list the fills of seven days. An older one could be the last that is shown."""
_PREPARED = frozenset({"place_entry", "place_stop", "holding", "holdings"})


class GuardedExchange:
    """A ccxt (asyncio) exchange whose changing calls need a lease.

    Its own calls place, find and cancel orders by intent and return their outcome. They take a symbol in any
    spelling, or a market returned by :meth:`market`, which saves the look-up. Every other attribute is the
    exchange's own: reads are passed through; calls that change something are checked against the lease
    first, limited to its remaining time, and, if they place an order, refused without a client order id.

    Not guaranteed: that calls of two holders exclude each other at the exchange, which cannot check a token.
    Instead, the lease is checked right before sending, a request does not outlive the lease, and the next
    holder finds an order by its client order id.

    Args:
        exchange: from ``ccxt.async_support`` or ``ccxt.pro``. The last check is installed in its ``fetch``,
            and where it writes to websockets.
        account: the label of the account, if there are several at the exchange; part of every name.
        patience: how much of the lease a call needs, and how long an order without an answer is looked for.
        clock: measures the search.

    Raises:
        ConfigurationError: ``exchange`` is not an asyncio exchange, or has a portfolio margin account; a
            label cannot be part of a name; or ccxt's own retries are on, which would send an order again
            without asking what became of it.
    """

    def __init__(
        self,
        exchange: Any,
        *,
        account: str | None = None,
        patience: Patience = PATIENCE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not inspect.iscoroutinefunction(getattr(exchange, "fetch2", None)):
            raise ConfigurationError(
                f"{type(exchange).__module__}.{type(exchange).__name__} is no asyncio exchange of ccxt;"
                " take the one of that name from ccxt.async_support, or give this one to gate_orders()"
            )
        if exchange.options.get("portfolioMargin"):
            raise ConfigurationError(
                f"{exchange.id} with portfolioMargin: its stops cannot be found by their client order ids;"
                " use a classic futures account"
            )
        if exchange.options.get("maxRetriesOnFailure"):
            raise ConfigurationError(
                f"maxRetriesOnFailure of {exchange.id} is {exchange.options['maxRetriesOnFailure']!r};"
                " set it to 0, as ccxt would repeat orders blindly"
            )
        if not isinstance(patience, Patience):
            raise ConfigurationError(f"patience is {kind_of(patience)}; give a Patience(), or leave it out")
        self._exchange = exchange
        self._name = account_name(exchange, account)
        self._patience = patience
        self._clock = clock
        self._loaded_at: float | None = None
        self._failed: tuple[float, Exception] | None = None
        self._refreshing = asyncio.Lock()
        self._gate = install(exchange, clock)
        self._told: list[Callable[[OrderAnswered], None]] = []

    def __repr__(self) -> str:
        return f"<GuardedExchange {self._exchange.id}>"

    @property
    def exchange(self) -> Any:
        """The wrapped exchange; it checks the lease only within calls made through this object."""
        return self._exchange

    @property
    def name(self) -> str:
        """The account's name in locks and rows: ``binance``, or ``binance@scalper``."""
        return self._name

    @property
    def in_doubt_for(self) -> timedelta:
        """For how long after it was sent an order without an answer may still appear.

        This is the exchange's receive window, after which it refuses a request, plus its clock's tolerance
        and the lag of its reads. An order that has not appeared by then was not placed.
        """
        return venue_of(self._exchange).window + _CLOCK_AHEAD + self._patience.search

    @property
    def closed_for(self) -> timedelta:
        """For how much longer no request is sent, because of a ban or a ``Retry-After``; zero if open."""
        return self._gate.closed_for

    def on_closed(self, listener: Callable[[timedelta], None]) -> None:
        """Call ``listener`` with the waiting time whenever the exchange says to wait."""
        self._gate.on_closed(listener)

    def on_order(self, listener: Callable[[OrderAnswered], None]) -> None:
        """Call ``listener`` with the outcome of each order that this object places or cancels.

        It must not block. What it raises is logged.
        """
        self._told.append(listener)

    async def load(self, symbols: Iterable[str] = ()) -> None:
        """Load the markets, so that no order waits for them, and check that the account is in one-way mode.

        Each class of contracts in which no positions are kept is logged, with their number, on one line.

        Args:
            symbols: the symbols to be traded, in any spelling, as far as they are known beforehand.

        Raises:
            ConfigurationError: the account is in hedge mode, or positions are not kept in one of ``symbols``:
                it is not listed, inverse, or its contract size is not one.
            ccxt.BaseError: the exchange did not answer, after retries.
        """
        # Retried above all for a wrong clock of this machine: then the first answer is a refusal.
        await self._placer().read(self._exchange.load_markets)
        self._loaded_at = self._clock.now()
        for symbol in symbols:
            self.market(symbol).check()
        self._tell_kept_out()
        if self._exchange.has.get("fetchPositionMode") and self._exchange.apiKey:
            mode = await self._placer().read(self._exchange.fetch_position_mode)
            if mode.get("hedged"):
                raise ConfigurationError(IN_HEDGE_MODE.format(what=f"the account {self.name}"))

    def _tell_kept_out(self) -> None:
        listing = listing_of(self._exchange)
        for kind, symbols in ({} if listing is None else listing.kept_out()).items():
            told = "no positions are kept in %d contracts of %s (%s), such as %s"
            _LOG.info(told, len(symbols), self.name, kind, symbols[0])

    async def refresh(self, *, wait: bool = False) -> bool:
        """Reload the markets, to find a name that is missing from them; returns whether they were reloaded.

        Contracts are listed and delisted while a bot runs. Markets are reloaded at most once in five seconds,
        so that a sender of unknown names cannot cause endless reloads.

        Args:
            wait: wait until a reload is allowed again, so that the list is newer than this call.

        Raises:
            ccxt.BaseError: the exchange did not answer; the markets stay as they were.
        """
        asked_at = self._clock.now()
        if not wait and self._loaded_at is not None and asked_at - self._loaded_at < _REFRESH_S_MIN:
            return False
        async with self._refreshing:  # concurrent callers wait for this answer
            loaded_at = self._loaded_at
            if loaded_at is not None:
                if loaded_at >= asked_at:
                    return False
                await asyncio.sleep(max(0.0, loaded_at + _REFRESH_S_MIN - self._clock.now()))
            if self._failed is not None and asked_at - self._failed[0] < _REFRESH_PAUSE_S:
                raise self._failed[1]
            try:
                await self._exchange.load_markets(reload=True)
            except Exception as exc:
                self._failed = (self._clock.now(), exc)
                raise
            self._failed, self._loaded_at = None, self._clock.now()
            return True

    # --- names and steps ---

    def market(self, symbol: str | Market) -> Market:
        """The market of a name in any spelling; a :class:`Market` is returned as it is.

        Raises:
            UnknownMarket: there is none; :meth:`refresh` may find it.
            ConfigurationError: the markets are not loaded, the name stands for more than one market, or the
                market belongs to another account.
        """
        if isinstance(symbol, Market):
            if symbol.account != self._name:  # its lock would not guard what is traded here
                raise ConfigurationError(f"{symbol.symbol} of {symbol.account} was given to {self._name}")
            return symbol
        found = self._listing().market(symbol)
        return found if found.account == self._name else replace(found, account=self._name)

    def resource(self, symbol: str | Market) -> Resource:
        """The resource that guards positions in ``symbol``.

        Raises:
            ConfigurationError: there is no such market, or the markets are not loaded and ``symbol`` is not
                the unified symbol of a contract, such as ``BTC/USDT:USDT``.
        """
        if isinstance(symbol, str):
            return parse_resource(f"{self.name}:{lock_name(self._exchange, symbol)}")
        return self.market(symbol).resource

    def unified(self, symbol: str | Market) -> str:
        """The unified symbol of a market in any spelling.

        Raises:
            ConfigurationError: there is no such market.
        """
        return unified_symbol(self._exchange, symbol) if isinstance(symbol, str) else symbol.symbol

    def client_id(self, symbol: str | Market, intent: int, step: Step) -> str:
        """The client order id of one step of one intent; the same in every process."""
        return client_order_id(self.resource(symbol), intent, step)

    def rules(self, symbol: str | Market) -> MarketRules:
        """The steps and limits in which ``symbol`` is traded.

        Raises:
            ConfigurationError: the markets are not loaded, or there is no such market.
        """
        return self.market(symbol).rules

    # --- orders by intent ---

    def attached_stop(self, symbol: str | Market, stop_price: Decimal) -> Decimal | None:
        """The price, in ticks, of the stop that an entry carries; ``None`` where entries carry none.

        Raises:
            ConfigurationError: there is no such market.
        """
        return self.rules(symbol).price(stop_price) if venue_of(self._exchange).attaches_stops else None

    async def place_entry(
        self,
        symbol: str | Market,
        side: Side,
        amount: Decimal,
        *,
        intent: int,
        stop_price: Decimal | None = None,
        again: bool = False,
    ) -> Outcome:
        """Open or enlarge a position with a market order.

        Args:
            symbol: in any spelling.
            side: ``buy`` for long, ``sell`` for short.
            amount: rounded down to the exchange's step.
            intent: the intent's number.
            stop_price: a stop to attach where the exchange attaches stops (Bybit); elsewhere ignored, and
                the stop is a step of its own.
            again: whether this intent may have been sent before; then its order is looked for first. An order
                that is found may have ended meanwhile: see its ``state``.

        Raises:
            LeaseLost: the lease on the resource ended before the order was sent.
            LeaseNotHeld: there is no lease on the resource.
            ConfigurationError: an unknown symbol, or an amount below one step.
        """
        market = self.market(symbol)
        stop = None if stop_price is None else _plain(market.rules.price(stop_price))
        client_id = client_order_id(market.resource, intent, Step.ENTRY)
        params = venue_of(self._exchange).entry_params(stop, client_id)
        plan = Plan(Step.ENTRY, market.symbol, side, amount, client_id, params)
        return await self._place(market, plan, again=again)

    async def place_stop(
        self,
        symbol: str | Market,
        side: Side,
        amount: Decimal,
        *,
        trigger: Decimal,
        intent: int,
        again: bool = False,
    ) -> Outcome:
        """Place a reduce-only stop.

        ``Refused(Refusal.WOULD_TRIGGER)`` means that the price has passed the trigger: close the position.

        Args:
            symbol: in any spelling.
            side: the stop's own side: ``sell`` protects a long position.
            amount: rounded down to the exchange's step.
            trigger: the price at which it triggers, rounded to the nearest tick.
            intent: the intent's number.
            again: whether this intent may have been sent before; then its order is looked for first. An order
                that is found may have ended meanwhile: see its ``state``.

        Raises:
            LeaseLost: the lease on the resource ended before the order was sent.
            LeaseNotHeld: there is no lease on the resource.
            ConfigurationError: an unknown symbol, or an amount or a price below one step.
        """
        market = self.market(symbol)
        price = _plain(market.rules.price(trigger))
        client_id = client_order_id(market.resource, intent, Step.STOP)
        params = venue_of(self._exchange).stop_params(price, client_id)
        plan = Plan(Step.STOP, market.symbol, side, amount, client_id, params)
        return await self._place(market, plan, again=again)

    async def close_position(
        self,
        symbol: str | Market,
        side: Side,
        amount: Decimal,
        *,
        intent: int,
        again: bool = False,
        once: bool = False,
    ) -> Outcome:
        """Reduce or close a position with a reduce-only market order; it never opens the other side.

        ``Refused(Refusal.REDUCE_ONLY)`` means that there is nothing left to close.

        Args:
            symbol: in any spelling.
            side: the order's own side: ``sell`` closes a long position.
            amount: rounded down to the exchange's step.
            intent: the intent's number.
            again: whether this intent may have been sent before; then its order is looked for first. An order
                that is found may have ended meanwhile: see its ``state``.
            once: whether it is not sent again if its answer is lost, also where ids are unique forever: the
                search in between takes seconds, in which the position may become another one.

        Raises:
            LeaseLost: the lease on the resource ended before the order was sent.
            LeaseNotHeld: there is no lease on the resource.
            ConfigurationError: an unknown symbol, or an amount below one step.
        """
        market = self.market(symbol)
        client_id = client_order_id(market.resource, intent, Step.CLOSE)
        params = {"reduceOnly": True, "clientOrderId": client_id}
        plan = Plan(Step.CLOSE, market.symbol, side, amount, client_id, params, once)
        return await self._place(market, plan, again=again)

    def prepare(
        self, call: Callable[[], Coroutine[Any, Any, T]], *, name: str, after_s: float = 0.0
    ) -> Prepared[T] | None:
        """Begin one of this object's calls early; its request waits for ``Prepared.send``.

        Args:
            call: such as ``lambda: exchange.place_entry(...)``.
            name: the name of its task.
            after_s: seconds to wait before it begins.

        Returns:
            The prepared call; ``None`` where the call might send by another way than the gate, as a subclass
            may: the caller then makes the call when it is due.
        """
        plain = type(self) is GuardedExchange and vars(self).keys().isdisjoint(_PREPARED)
        plain = plain and _WHAT_IS_PREPARED(GuardedExchange) == _AS_WRITTEN
        return Prepared(call, name=name, after_s=after_s) if plain and self._gate.is_last else None

    async def _place(self, market: Market, plan: Plan, *, again: bool) -> Outcome:
        plan = replace(plan, amount=market.rules.amount(plan.amount))
        lease = lease_on(market.resource)
        placer, began = self._placer(), self._clock.now()
        outcome: Outcome | None = None
        if again:
            found = await placer.find(plan.symbol, plan.client_id, conditional=plan.conditional)
            if found is not None:
                outcome = Executed(found, found=True)
        if outcome is None:
            outcome = await placer.place(plan, lease)
        if self._told:
            self._tell(lease, plan.step.value, plan.client_id, outcome, placer.margin_ms, began)
        return outcome

    def _tell(
        self,
        lease: Lease,
        step: str,
        client_id: str,
        outcome: Outcome,
        margin_ms: float | None,
        began: float,
    ) -> None:
        took_ms = (self._clock.now() - began) * 1000
        event = OrderAnswered(
            lease.resource, lease.token, step, client_id, *result_of(outcome), margin_ms, took_ms
        )
        for listener in self._told:
            try:
                listener(event)
            except Exception:  # noqa: BLE001 - a listener must not lose the answer to an order
                _LOG.exception("a listener of orders failed; it stays")

    async def cancel(self, order: PlacedOrder) -> Outcome:
        """Cancel an order, ordinary or conditional.

        Raises:
            LeaseLost: the lease on the resource ended before the request was sent.
            LeaseNotHeld: there is no lease on the resource.
        """
        placer, began = self._placer(), self._clock.now()
        lease = lease_on(self.resource(order.symbol))
        outcome = await placer.cancel(order, lease)
        if self._told:
            self._tell(lease, "cancel", order.client_id, outcome, placer.margin_ms, began)
        return outcome

    # --- looking ---

    async def find_order(
        self, symbol: str | Market, client_id: str, *, conditional: bool = False, patiently: bool = False
    ) -> PlacedOrder | None:
        """An order by its client order id, in every book; ``None`` when the exchange does not know it.

        "Not known" is not "not placed" before :attr:`in_doubt_for` has passed.

        Args:
            symbol: in any spelling.
            client_id: the client order id.
            conditional: whether to ask the book of conditional orders first.
            patiently: whether to look for ``Patience.search``, as the exchange's reads may lag; looks that
                fail are then only repeated, and where none finds it, one more has to be answered.

        Raises:
            ccxt.OperationFailed: the exchange did not answer, after retries.
        """
        placer, named = self._placer(), (self.unified(symbol), client_id)
        if patiently:
            found = await placer.search(*named, conditional=conditional, patience=self._patience.search)
            if found is not None:
                return found
        return await placer.find(*named, conditional=conditional)

    async def open_orders(
        self, symbol: str | Market | None = None, *, conditional_only: bool = False
    ) -> tuple[PlacedOrder, ...]:
        """The open orders of one symbol or of all, including conditional ones.

        Args:
            symbol: in any spelling; ``None`` for all.
            conditional_only: leave out the book of ordinary orders, which saves a request.

        Raises:
            ccxt.OperationFailed: the exchange did not answer, after retries.
        """
        if symbol is None:
            # Without this option ccxt's binance refuses to list the orders of all symbols.
            self._exchange.options["warnOnFetchOpenOrdersWithoutSymbol"] = False
        wanted = None if symbol is None else self.unified(symbol)
        questions = every_order(self._exchange) if symbol is None else (orders_of_one(self._exchange),)
        found: dict[str, PlacedOrder] = {}
        books: tuple[dict[str, Any], ...] = (
            ({"trigger": True},) if conditional_only else ({}, {"trigger": True})
        )
        for question in questions:
            for book in books:
                ask = partial(self._exchange.fetch_open_orders, wanted, None, None)
                for order in await self._pages(ask, {**question, **book}):
                    parsed = parse_order(order)
                    found[parsed.id] = parsed
        return tuple(order for order in found.values() if order.live)

    async def holdings(self, symbols: Sequence[str | Market] | None = None) -> tuple[Holding, ...]:
        """The open positions of some symbols, or of all: there, a leg of hedge mode at Bybit stands for both.

        Raises:
            ConfigurationError: the account, or one of ``symbols``, is in hedge mode.
            ccxt.OperationFailed: the exchange did not answer, after retries. A failed read is not "flat".
        """
        wanted = None if symbols is None else [self.unified(symbol) for symbol in symbols]
        found: dict[str, Holding] = {}
        for question in ({},) if wanted else every_position(self._exchange):
            listed = await self._pages(partial(self._exchange.fetch_positions, wanted), question)
            for held in parse_holdings(listed, of_all=wanted is None):
                found[held.symbol] = held
        return tuple(found.values())

    async def holding(self, symbol: str | Market) -> Holding | None:
        """The open position in a symbol; ``None`` when it is flat."""
        wanted = self.unified(symbol)
        return next((held for held in await self.holdings([symbol]) if held.symbol == wanted), None)

    async def fills_since(self, symbol: str | Market, order_id: str) -> tuple[Fill, ...] | None:
        """The account's fills in a symbol from the first one of an order on, by their milliseconds.

        Args:
            symbol: in any spelling.
            order_id: the exchange's id of the order.

        Returns:
            The fills; ``None`` if the exchange does not certainly show all of them: no fill of the order is
            listed yet, its first one is older than six and a half days, or there are a thousand since, which
            is as many as are read.

        Raises:
            ccxt.OperationFailed: the exchange did not answer, after retries.
        """
        wanted = self.unified(symbol)
        fetch, page = self._exchange.fetch_my_trades, fills_of_one(self._exchange)
        asked = {**page, "orderId": order_id}
        listed = await self._pages(partial(fetch, wanted, None, None), asked, at_most=FILLS_MAX)
        of_order = [fill for fill in parse_fills(listed) if fill.order_id == order_id]
        if not of_order or len(listed) >= FILLS_MAX:  # the first one may be on a page that was not read
            return None
        if self._exchange.milliseconds() - (first_ms := of_order[0].at_ms) > _FILLS_KEPT_MS:
            return None
        listed = await self._pages(partial(fetch, wanted, first_ms, None), page, at_most=FILLS_MAX)
        since = parse_fills(listed)
        shown = any(fill.order_id == order_id for fill in since)
        return since if shown and len(listed) < FILLS_MAX else None

    # --- everything else is the exchange's own ---

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        value = getattr(self._exchange, name)
        if proxy.is_write(name, value):
            needed = self._patience.needed
            return under_lease(name, value, self._exchange, self.resource, account=self._name, needed=needed)
        return value

    # --- inside ---

    async def _pages(
        self,
        ask: Callable[[dict[str, Any]], Awaitable[Any]],
        question: dict[str, Any],
        *,
        at_most: int | None = None,
    ) -> list[Any]:
        """Read all pages of a list; of one that grows with time, none after ``at_most`` entries."""
        found: list[Any] = []
        params: dict[str, Any] | None = question
        while params is not None and (at_most is None or len(found) < at_most):
            page = await self._placer().read(partial(ask, dict(params)))
            found += page
            params = next_page(params, page)
        return found

    def _listing(self) -> Listing:
        listing = listing_of(self._exchange)
        if listing is None:
            raise ConfigurationError(f"the markets of {self.name} are not loaded; await load() first")
        return listing

    def _placer(self) -> Placer:
        return Placer(self._exchange, venue_of(self._exchange), self._patience, self._clock)


def _plain(number: Decimal) -> str:
    return format(number, "f")


_WHAT_IS_PREPARED = attrgetter(*_PREPARED)
_AS_WRITTEN = _WHAT_IS_PREPARED(GuardedExchange)
"""The calls as shipped, to detect those that a test or a paper account has replaced."""
