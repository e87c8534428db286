"""The exchange as the flow sees it: orders by intent, and reads that either answer or raise.

A failed read must never look like an empty answer: an earlier bot once took one failed ``fetch_positions``
for "flat" and closed the rows of positions that still existed. So every failed read raises
:class:`ExchangeUnreadable` here, and no decision is taken without the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import parse_resource
from lockguard.errors import ConfigurationError
from lockguard_ccxt import OrderState, Outcome, PlacedOrder, Refusal, Refused, Step, UnknownMarket, decimal_of
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._markets import short_name, venue_name
from lockguard_ccxt._placing import told
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import PositionSide, stop_price_of
from lockguard_positions._own_rows import OwnRows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from lockguard_ccxt import Fill, GuardedExchange, Holding, Market
    from lockguard_ccxt._prepared import Prepared
    from lockguard_positions._model import Intent, NewPosition, Position
    from lockguard_positions._pace import Pace

__all__ = ["Quote", "Venue", "give_up", "too_small"]

_READS_OF_FILL_MAX = 1_000
_PRICE_LATE_S = 0.5
_AHEAD_AFTER_S = 0.001
"""Delay before preparation starts: the lock's answer, which comes at once, is handled first.

The fence's answer takes longer."""
_ABILITIES = ("createMarketOrder", "createReduceOnlyOrder", "createStopOrder", "fetchPositions")
_LISTS_ALL_STOPS = frozenset({"binance", "bybit"})


@dataclass(frozen=True, slots=True)
class Quote:
    """A pending request for a price.

    Attributes:
        answer: the symbol's last price; ``None`` if the exchange does not give it.
        asked_at: on the system's clock, in seconds.
        held: the prepared read of what the exchange holds; it is sent under the lease.
    """

    answer: asyncio.Task[Decimal | None]
    asked_at: float
    held: Prepared[Holding | None] | None = None


class Venue:
    """One guarded exchange, with every failed read raised as :class:`ExchangeUnreadable`.

    Args:
        exchange: with its markets loaded.
        pace: the bounds of every wait.
    """

    def __init__(self, exchange: GuardedExchange, pace: Pace) -> None:
        self._exchange = exchange
        self._pace = pace
        self._lists_all_stops = venue_name(exchange.exchange) in _LISTS_ALL_STOPS
        self.own_rows = OwnRows(lambda: getattr(exchange.exchange, "apiKey", None))

    @property
    def name(self) -> str:
        """The account's name, as in the names of locks and in the column ``exchange``."""
        return self._exchange.name

    def same_account(self, other: Venue) -> bool:
        """Whether another exchange object trades with the same API key; ``False`` while a key is not set."""
        mine, theirs = self._exchange.exchange, other._exchange.exchange
        key = getattr(mine, "apiKey", None)
        return bool(key) and mine.id == theirs.id and key == getattr(theirs, "apiKey", None)

    @property
    def in_doubt_ms(self) -> int:
        """The age in milliseconds from which an order that cannot be found was certainly not placed."""
        return round(self._exchange.in_doubt_for / timedelta(milliseconds=1))

    @property
    def closed(self) -> bool:
        """Whether no request is sent for now, because the exchange said to wait."""
        return self._exchange.closed_for > timedelta(0)

    def resource_of_row(self, symbol: str) -> str:
        """The resource of a symbol in the table's spelling, whether or not its market is still listed.

        Raises:
            ConfigurationError: the symbol cannot be part of a lock's name.
        """
        return parse_resource(f"{self.name}:{symbol}")

    def name_of(self, symbol: str) -> str:
        """The symbol in the table's spelling; derived from ``symbol`` alone if the market is not listed."""
        try:
            return self.market(symbol).name
        except ConfigurationError:
            return short_name(symbol)

    def gone(self, symbol: str) -> bool:
        """Whether the exchange lists no market of that name."""
        try:
            self.market(symbol)
        except UnknownMarket:
            return True
        except ConfigurationError:
            pass
        return False

    def left_alone(self, symbol: str) -> str | None:
        """Why positions in a market are not kept here, such as in inverse contracts; ``None`` if they are."""
        try:
            return self.market(symbol).refusal
        except ConfigurationError:
            return None

    def can_close(self, held: Holding) -> bool:
        """Whether orders can close what is held: contracts get other steps while positions are open."""
        try:
            return self.market(held.symbol).rules.reduction(held.amount) is not None
        except ConfigurationError:
            return False

    async def refresh_for(self, symbols: Iterable[str]) -> None:
        """Reload the markets if one of ``symbols`` is missing, as contracts are listed and delisted.

        Raises:
            ExchangeUnreadable: the exchange did not answer; the markets stay as they were.
        """
        if any(self.gone(symbol) for symbol in symbols):
            with _translated():
                await self._exchange.refresh()

    async def says_gone(self, exc: ExchangeUnreadable) -> bool:
        """Whether a read failed because the symbol is no longer listed; if so, the markets are reloaded."""
        if not isinstance(exc.__cause__, ccxt_errors().BadSymbol):
            return False
        with suppress(*_exchange_errors()):
            await self._exchange.refresh()
        return True

    def refuse_unable(self) -> None:
        """Check, before anything is written or ordered, that positions can be opened and protected here.

        Raises:
            ConfigurationError: ccxt lacks a call for this exchange, or its keys were not given.
        """
        client = self._exchange.exchange
        lacking = [name for name in _ABILITIES if not client.has.get(name)]
        if lacking:
            raise ConfigurationError(
                f"{self.name} cannot open a position with a stop: ccxt has no {', '.join(lacking)} for it;"
                " use an exchange that has, such as binance or bybit"
            )
        needed = [name for name, is_needed in client.requiredCredentials.items() if is_needed]
        missing = [name for name in needed if not getattr(client, name, None)]
        if missing:
            raise ConfigurationError(
                f"{self.name} has no {' and no '.join(missing)}; give the ccxt exchange its API keys"
            )

    def market(self, symbol: str) -> Market:
        """The market of a symbol in any spelling.

        Raises:
            UnknownMarket: the exchange lists none of that name.
            ConfigurationError: the name stands for more than one market.
        """
        return self._exchange.market(symbol)

    def in_steps(self, market: Market, new: NewPosition, price: Decimal | None) -> NewPosition:
        """``new`` with its quantity rounded to the exchange's steps.

        Args:
            market: where the position is to be opened.
            new: the position asked for.
            price: the symbol's last price; ``None`` if it is not known.

        Raises:
            ConfigurationError: the exchange would refuse the order, or its stop would trigger at once.
        """
        rules = market.rules
        planned = stop_price_of(new.side, new.entry_price, new.stop_loss_percent)
        stop = rules.price(planned)
        long = new.side is PositionSide.LONG
        if price is not None and (price <= stop if long else price >= stop):
            remedy = "give the price of now as entry_price"
            if price > planned if long else price < planned:  # only rounding has brought it there
                remedy = f"that is less than one tick, {rules.price_tick}; give a wider stop_loss_percent"
            raise ConfigurationError(
                f"{new.symbol} trades at {price}, beyond the stop at {stop} already:"
                f" {new.stop_loss_percent} % from {new.entry_price}; {remedy}"
            )
        quantity = rules.amount(new.quantity)
        if rules.cost_min is not None and quantity * new.entry_price < rules.cost_min:
            raise ConfigurationError(
                f"{quantity} {new.symbol} at {new.entry_price} is worth less than the smallest order,"
                f" {rules.cost_min}; ask for more"
            )
        return replace(new, quantity=quantity)

    def attached_stop(self, market: Market, new: NewPosition) -> Decimal | None:
        """The price of the stop that an entry carries; ``None`` where entries carry none."""
        planned = stop_price_of(new.side, new.entry_price, new.stop_loss_percent)
        return self._exchange.attached_stop(market, planned)

    # --- orders ---

    def prepare(
        self, call: Callable[[], Coroutine[Any, Any, Outcome]], intent: Intent
    ) -> Prepared[Outcome] | None:
        """Begin :meth:`enter` or :meth:`stop` while its intent is being committed; its request is held."""
        return self._exchange.prepare(call, name=intent.client_id)

    async def enter(
        self, market: Market, intent: Intent, stop_price: Decimal | None, renew: Callable[[], Awaitable[None]]
    ) -> Outcome:
        """Place an entry that was never sent before; ``renew`` is awaited before it is sent once more."""
        return await self._patiently(
            lambda: self._exchange.place_entry(
                market,
                intent.side,
                intent.amount,
                intent=intent.number,
                stop_price=stop_price,
            ),
            renew,
        )

    async def stop(self, market: Market, intent: Intent) -> Outcome:
        """Place the stop of an intent, for as much as one order can close.

        One that may have been sent before is looked for first.
        """
        assert intent.trigger is not None
        trigger, amount = intent.trigger, market.rules.reduction(intent.amount)
        if amount is None:
            return Refused(Refusal.INVALID, None, too_small(market, intent.amount), intent.client_id)
        return await self._patiently(
            lambda: self._exchange.place_stop(
                market,
                intent.side,
                amount,
                trigger=trigger,
                intent=intent.number,
                again=intent.sent_before,
            )
        )

    async def close(
        self, market: Market, intent: Intent, renew: Callable[[], Awaitable[bool | None]] | None = None
    ) -> Outcome:
        """Close a position, reduce-only, as far as one order can.

        The caller looks for an order that may have been sent before. ``renew``, if given, is awaited before
        it is sent once more; ``False``: it is not. Unasked, it is sent once if its answer is lost.
        """
        amount = market.rules.reduction(intent.amount)
        if amount is None:
            return Refused(Refusal.INVALID, None, too_small(market, intent.amount), intent.client_id)
        return await self._patiently(
            lambda: self._exchange.close_position(
                market,
                intent.side,
                amount,
                intent=intent.number,
                once=not intent.asked,
            ),
            renew,
        )

    async def cancel(self, order: PlacedOrder) -> Outcome:
        """Cancel an order; returns what became of the request."""
        return await self._patiently(lambda: self._exchange.cancel(order))

    async def _patiently(
        self, ask: Callable[[], Awaitable[Outcome]], renew: Callable[[], Awaitable[bool | None]] | None = None
    ) -> Outcome:
        """Repeat a request while it is refused for a reason that passes.

        The pauses may be longer than an order is in doubt. If the holder died behind the last try, an order
        with the age of the first one would be given up at once; hence ``renew``. A stop, and an exit of a
        position without one, go without it: they must not wait for the database.
        """
        pause = self._pace.retry_pause
        for _ in range(1, self._pace.attempts):
            with _translated():
                outcome = await ask()
            if not (isinstance(outcome, Refused) and outcome.passing):
                return outcome
            closed_for = self._exchange.closed_for
            if closed_for > self._pace.settle:
                return outcome  # the wait is longer than a symbol can be held: left to a later pass
            await asyncio.sleep(max(pause, closed_for).total_seconds())
            pause *= 2
            if renew is not None and await renew() is False:
                return outcome
        with _translated():
            return await ask()

    # --- looking ---

    async def find(self, market: Market, intent: Intent, *, patiently: bool = False) -> PlacedOrder | None:
        """The order of an intent; ``None`` while the exchange does not show it.

        Args:
            market: its market.
            intent: the intent.
            patiently: look for as long as the exchange's reads may lag.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        with _translated():
            return await self._exchange.find_order(
                market,
                intent.client_id,
                conditional=intent.step is Step.STOP,
                patiently=patiently,
            )

    async def find_stop(self, market: Market, position: Position) -> PlacedOrder | None:
        """The order of a position's stop, open or not; ``None`` also where the row has no id of it.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        if position.stop_client_id is None:
            return None
        with _translated():
            return await self._exchange.find_order(market, position.stop_client_id, conditional=True)

    async def knows(self, market: Market, position: Position, *, patiently: bool = False) -> bool:
        """Whether this account has the entry or the stop of a position, by client order id.

        With ``patiently``, it looks for each for as long as the exchange's reads may lag.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        names = ((position.entry_client_id, False), (position.stop_client_id, True))
        with _translated():
            for client_id, conditional in names:
                if client_id is not None and await self._exchange.find_order(
                    market, client_id, conditional=conditional, patiently=patiently
                ):
                    return True
        return False

    def placed_stop(self, market: Market, position: Position) -> PlacedOrder | None:
        """The stop of a position, built from its row without asking; ``None`` if the row has none."""
        trigger = position.stop_price or position.entry_price
        if position.stop_order_id is None or trigger is None:
            return None
        return PlacedOrder(
            id=position.stop_order_id,
            client_id=position.stop_client_id or "",
            symbol=market.symbol,
            side=position.side.exit,
            state=OrderState.ACCEPTED,
            amount=position.quantity,
            filled=Decimal(0),
            average=None,
            trigger=trigger,
            reduce_only=True,
        )

    def intended_stop(self, market: Market, intent: Intent) -> PlacedOrder:
        """The stop of an intent, as it was to be placed, without asking."""
        return PlacedOrder(
            id="",
            client_id=intent.client_id,
            symbol=market.symbol,
            side=intent.side,
            state=OrderState.ACCEPTED,
            amount=intent.amount,
            filled=Decimal(0),
            average=None,
            trigger=intent.trigger,
            reduce_only=True,
        )

    async def done(
        self, market: Market, intent: Intent, order: PlacedOrder, filling: Callable[[], float] | None = None
    ) -> PlacedOrder:
        """Wait until an order is done. One that is not done in time is cancelled, as it could fill unseen.

        The order's own fill counts. The list of positions may show it seconds later, and a bot that waited
        for the list instead has closed good positions.

        ``filling`` is called when a part is seen to be filled, and says for how many s the rest may wait.

        Returns:
            The order as it ended; still live if the exchange did not cancel it.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._pace.settle.total_seconds()) as bound:
                for _ in range(_READS_OF_FILL_MAX):
                    if not order.live:
                        break
                    if order.filled and filling is not None:
                        until = asyncio.get_running_loop().time() + filling()
                        bound.reschedule(min(until, bound.when() or until))
                        filling = None
                    await asyncio.sleep(self._pace.poll.total_seconds())
                    order = await self.find(market, intent) or order
        if order.live:
            await self.cancel(order)
            order = await self.find(market, intent) or order
        return order

    async def holding(self, market: Market) -> Holding | None:
        """What the exchange holds in a market; ``None`` when it reports no position.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        with _translated():
            return await self._exchange.holding(market)

    async def fills_since(self, market: Market, order_id: str) -> tuple[Fill, ...] | None:
        """The account's fills in a market from an order's first one on; ``None`` if not all are shown.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        with _translated():
            return await self._exchange.fills_since(market, order_id)

    @asynccontextmanager
    async def quoting(self, market: Market, *, ahead: bool = False) -> AsyncIterator[Quote]:
        """Request a market's price while the body runs, for :meth:`look`.

        Args:
            market: the market.
            ahead: also prepare the read of what the exchange holds, which is only sent under a lease.
        """
        held = None
        if ahead:
            ask = partial(self.holding, market)
            held = self._exchange.prepare(ask, name=f"what is held of {market.name}", after_s=_AHEAD_AFTER_S)
        answer = asyncio.create_task(self._price(market), name=f"price of {market.name}")
        try:
            yield Quote(answer, SYSTEM_CLOCK.now(), held)
        finally:
            try:
                await give_up(answer)
            finally:  # also if it is cancelled meanwhile: a prepared read would wait for its word for ever
                if held is not None:
                    await held.drop()

    async def look(self, market: Market, quote: Quote | None = None) -> tuple[Holding | None, Decimal | None]:
        """What the exchange holds in a market and, requested at the same time, the market's last price.

        The price is ``None`` if the exchange gives none, or if it arrives much later than the holding: it is
        only used to avoid an entry that would be closed again at once.

        Args:
            market: the market.
            quote: a price that was requested already; requested again if it is too old.

        Raises:
            ExchangeUnreadable: the exchange did not say what it holds.
        """
        if quote is None or SYSTEM_CLOCK.now() - quote.asked_at > _PRICE_LATE_S:
            async with self.quoting(market) as fresh:
                return await self._look(market, fresh)
        return await self._look(market, quote)

    async def _look(self, market: Market, quote: Quote) -> tuple[Holding | None, Decimal | None]:
        ready = quote.held
        held = await (self.holding(market) if ready is None or not ready.sent else ready.outcome())
        if not quote.answer.done():
            await asyncio.wait([quote.answer], timeout=_PRICE_LATE_S)
        return held, quote.answer.result() if quote.answer.done() else None

    async def price(self, market: Market) -> Decimal:
        """The last price of a market.

        Raises:
            ExchangeUnreadable: the exchange did not give it.
        """
        price = await self._price(market)
        if not price:
            raise ExchangeUnreadable(f"the exchange gave no price of {market.name}")
        return price

    async def _price(self, market: Market) -> Decimal | None:
        try:
            return decimal_of((await self._exchange.exchange.fetch_ticker(market.symbol)).get("last"))
        except _exchange_errors():
            return None

    async def holdings(self) -> tuple[Holding, ...]:
        """The open positions of the account, in all markets.

        Raises:
            ExchangeUnreadable: the exchange did not answer, or its answer could not be read.
        """
        try:
            with _translated():
                return await self._exchange.holdings()
        except (TypeError, KeyError, AttributeError, IndexError) as exc:
            # ccxt fails on contracts that were listed after it loaded the markets.
            with _translated():
                if await self._exchange.refresh():
                    return await self._exchange.holdings()
            raise ExchangeUnreadable(
                f"what the exchange holds could not be read: {type(exc).__name__}: {exc}"
            ) from exc

    async def open_orders(self, market: Market) -> tuple[PlacedOrder, ...]:
        """The open orders of a market, conditional or not.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        with _translated():
            return await self._exchange.open_orders(market)

    async def waiting_stops(self, market: Market) -> tuple[PlacedOrder, ...]:
        """The open conditional orders of a market.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        return tuple(order for order in await self.open_orders(market) if order.conditional)

    async def every_waiting_stop(self, symbols: Sequence[str]) -> tuple[PlacedOrder, ...]:
        """The open conditional orders of all symbols, or of ``symbols`` where the exchange cannot list all.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        if not self._lists_all_stops:
            return tuple(
                [stop for symbol in symbols for stop in await self.waiting_stops(self.market(symbol))]
            )
        with _translated():
            orders = await self._exchange.open_orders(conditional_only=True)
        return tuple(order for order in orders if order.conditional)

    async def all_waiting_stops(self) -> tuple[PlacedOrder, ...] | None:
        """The open conditional orders of all symbols; ``None`` where the exchange cannot list them at once.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        return await self.every_waiting_stop(()) if self._lists_all_stops else None


def too_small(market: Market, amount: Decimal) -> str:
    """Why no order can close an amount, with what a person can do about it."""
    smallest = max(market.rules.amount_min, market.rules.amount_step)
    return (
        f"{amount} is too small for an order of {market.name}, whose smallest is {smallest}; close it with"
        " the exchange's own button, or set a stop there that closes the whole position, which is taken over"
    )


async def give_up(task: asyncio.Task[Any]) -> None:
    """Cancel a task whose answer is no longer needed; one that is done costs no turn of the event loop."""
    if task.cancel():
        await asyncio.gather(task, return_exceptions=True)
    elif not task.cancelled():
        task.exception()  # retrieved, or asyncio would log it


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except Exception as exc:
        if isinstance(exc, _exchange_errors()):
            raise ExchangeUnreadable(
                f"the exchange did not answer: {type(exc).__name__}: {told(exc)}"
            ) from exc
        raise


def _exchange_errors() -> tuple[type[BaseException], ...]:
    base: Any = ccxt_errors().BaseError
    return (base,)
