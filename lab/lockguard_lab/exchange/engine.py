"""One account's books: its ordinary orders, its algo orders, and their effect on its positions.

It is pure computation: no clock (the time is passed in), no network, no waiting. There are no other
traders: a market order is filled in full at the last price, a limit order once the price has reached it,
unless a *shortage* is asked for, which leaves part of an order unfilled.

It keeps the rules of Binance that a trading bot stumbles over:

- Client ids are unique among *open* orders only. A market order is filled and gone at once, so sending it
  again with the same id buys again.
- Orders with a trigger are in a separate book; the ordinary endpoints do not know them.
- A reduce-only order never opens or reverses a position; with nothing to reduce it is refused.
- Closing a position leaves its stops where they are.
- In one-way mode an order for ``LONG`` or ``SHORT`` is refused, in hedge mode one for ``BOTH``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, TypeVar

from lockguard_lab.exchange.account import Account
from lockguard_lab.exchange.filters import (
    ALGO_ORDERS_MAX,
    check_band,
    check_client_id,
    check_notional,
    check_price,
    check_quantity,
)
from lockguard_lab.exchange.model import (
    MAIN,
    ZERO,
    AlgoChange,
    AlgoOrder,
    AlgoStatus,
    NewAlgoOrder,
    NewOrder,
    Order,
    OrderChange,
    OrderStatus,
    OrderType,
    Origin,
    PositionSide,
    Side,
)
from lockguard_lab.exchange.rejections import Rejection, unwanted
from lockguard_lab.exchange.timeline import Timeline
from lockguard_lab.exchange.triggers import TAKE_PROFITS, ratchet, should_trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lockguard_lab.exchange.model import Change, Fill
    from lockguard_lab.exchange.venue import MarketData

__all__ = ["Engine", "Shortage"]

T = TypeVar("T")

_UNKNOWN_ORDER = "Unknown order sent."
_NO_ORDER = "Order does not exist."


@dataclass(frozen=True, slots=True)
class Shortage:
    """There is less on the other side of the book than an order asks for.

    Attributes:
        share: how much of the order is filled.
        stays: whether the rest stays in the book, or expires.
    """

    share: Decimal
    stays: bool


def _plenty(symbol: str, triggered: bool) -> Shortage | None:  # noqa: ARG001, FBT001 - a signature
    return None


def _nobody(change: Change) -> None:
    pass


class Engine:
    """One account on one exchange.

    Args:
        venue: the contracts and prices, shared by all accounts.
        name: the account's name.
        wallet: its balance in USDT, and in USDC.
        fee_rate: the fee, as a share of each fill's worth.
        shortage: called with the contract's id, and whether an algo order has just triggered, before an order
            is filled.
        tell: called with each change of an order, right after it was made.
    """

    def __init__(
        self,
        venue: MarketData,
        *,
        name: str = MAIN,
        wallet: Decimal,
        fee_rate: Decimal,
        shortage: Callable[[str, bool], Shortage | None] = _plenty,
        tell: Callable[[Change], None] = _nobody,
    ) -> None:
        self.venue = venue
        self.account = Account(venue, name=name, wallet=wallet, fee_rate=fee_rate)
        self._shortage = shortage
        self._tell = tell
        self._orders: dict[int, Timeline[Order]] = {}
        self._algos: dict[int, Timeline[AlgoOrder]] = {}
        self._open_orders: set[int] = set()
        self._open_algos: set[int] = set()
        self._held: set[int] = set()
        self._by_client: dict[str, list[int]] = {}
        self._countdowns: dict[str, int] = {}

    def step_clock(self, by_ms: int) -> None:
        """See :meth:`Timeline.shift`."""
        self.account.step_clock(by_ms)
        for order in self._orders.values():
            order.shift(by_ms)
        for algo in self._algos.values():
            algo.shift(by_ms)

    # --- asking ---

    def orders(self, as_of_ms: int | None = None) -> Iterator[Order]:
        """All ordinary orders, oldest first, as they are now or as they were at ``as_of_ms``."""
        return _versions(self._orders.values(), as_of_ms)

    def algo_orders(self, as_of_ms: int | None = None) -> Iterator[AlgoOrder]:
        """All algo orders, oldest first, as they are now or as they were at ``as_of_ms``."""
        return _versions(self._algos.values(), as_of_ms)

    def open_orders(self, as_of_ms: int | None = None) -> Iterator[Order]:
        """The open ordinary orders, as they are now or as they were at ``as_of_ms``."""
        if as_of_ms is None:
            return (self._orders[order_id].now for order_id in sorted(self._open_orders))
        return (order for order in self.orders(as_of_ms) if order.status.open)

    def open_algo_orders(self, as_of_ms: int | None = None) -> Iterator[AlgoOrder]:
        """The waiting algo orders, as they are now or as they were at ``as_of_ms``."""
        if as_of_ms is None:
            return (self._algos[algo_id].now for algo_id in sorted(self._open_algos))
        return (algo for algo in self.algo_orders(as_of_ms) if algo.status is AlgoStatus.NEW)

    def order(
        self, symbol: str, order_id: int | None, client_id: str | None, as_of_ms: int | None = None
    ) -> Order:
        """An ordinary order; if several have the same client id, the newest."""
        self.venue.market(symbol)
        for order in self._found(self._orders, order_id, client_id, as_of_ms):
            if order.symbol == symbol:
                return order
        raise Rejection(-2013, _NO_ORDER)

    def algo_order(
        self, algo_id: int | None, client_id: str | None, as_of_ms: int | None = None
    ) -> AlgoOrder:
        """An algo order; if several have the same client id, the newest."""
        for algo in self._found(self._algos, algo_id, client_id, as_of_ms):
            return algo
        raise Rejection(-2013, _NO_ORDER)

    def _found(
        self, book: Mapping[int, Timeline[T]], wanted: int | None, client_id: str | None, as_of_ms: int | None
    ) -> Iterator[T]:
        ids = [wanted] if wanted is not None else reversed(self._by_client.get(client_id or "", []))
        return _versions((book[i] for i in ids if i in book), as_of_ms)

    # --- ordinary orders ---

    def place(self, new: NewOrder, now_ms: int, origin: Origin = Origin.API) -> Order:
        """Accept an order: fill it now if the price has reached it, or put it into the book."""
        new = self.check(new)
        return self._enter(new, now_ms, origin)

    def check(self, new: NewOrder) -> NewOrder:
        """Refuse what the exchange would refuse; otherwise return the order as it would be accepted."""
        spec = self.venue.tradable(new.symbol)
        if new.type.conditional:
            raise Rejection(
                -4120,
                "Order type not supported for this endpoint."
                " Please use the Algo Order API endpoints instead.",
            )
        self._check_position_side(new.position_side, reduce_only=new.reduce_only)
        check_client_id("newClientOrderId", new.client_id)
        if any(self._orders[i].now.client_id == new.client_id for i in self._open_orders):
            raise Rejection(-4116, "ClientOrderId is duplicated.")
        check_quantity(spec, new.qty)
        if new.price is not None:
            check_price(spec, new.price)
            check_band(spec, new.side, new.price, self.venue.marks[spec.id])
            if new.time_in_force == "GTX" and self._crosses(new.symbol, new.side, new.price):
                raise Rejection(
                    -5022,
                    "Due to the order could not be executed as maker, the Post Only order will be rejected."
                    " The order will not be recorded in the order history",
                )
        price = new.price or self.venue.prices[spec.id]
        reducible = self.account.reducible(spec.id, new.side, new.position_side)
        if closes(new.side, new.position_side):
            # In hedge mode the closing side only closes: there is nothing that it could reverse.
            if new.qty > reducible:
                raise Rejection(-2022, "ReduceOnly Order is rejected.")
            return replace(new, reduce_only=True)
        if new.reduce_only:
            if reducible == ZERO:
                raise Rejection(-2022, "ReduceOnly Order is rejected.")
            return new
        check_notional(spec, new.qty, price)
        self.account.check_margin(spec, max(ZERO, new.qty - reducible), price)
        return new

    def _check_position_side(self, position_side: PositionSide, *, reduce_only: bool) -> None:
        if self.account.hedged == (position_side is PositionSide.BOTH):
            raise Rejection(-4061, "Order's position side does not match user's setting.")
        if self.account.hedged and reduce_only:
            raise unwanted("reduceonly")

    def _enter(self, new: NewOrder, now_ms: int, origin: Origin, algo_id: int | None = None) -> Order:
        order = Order(
            id=next(self.venue.order_ids),
            client_id=new.client_id,
            symbol=new.symbol,
            side=new.side,
            type=new.type,
            qty=new.qty,
            price=new.price or ZERO,
            avg_price=ZERO,
            executed=ZERO,
            reduce_only=new.reduce_only,
            time_in_force=new.time_in_force,
            status=OrderStatus.NEW,
            created_ms=now_ms,
            updated_ms=now_ms,
            algo_id=algo_id,
            position_side=new.position_side,
            account=self.account.name,
            origin=origin,
        )
        self._orders[order.id] = Timeline(order, now_ms)
        self._by_client.setdefault(order.client_id, []).append(order.id)
        self._open_orders.add(order.id)
        self._tell(OrderChange(order, "NEW"))
        if self._marketable(order):
            return self._fill(order, now_ms, self._shortage(order.symbol, algo_id is not None))
        if order.time_in_force in {"IOC", "FOK"}:
            return self._end(order, OrderStatus.EXPIRED, now_ms)
        return order

    def _marketable(self, order: Order) -> bool:
        if order.type is OrderType.MARKET:
            return True
        return self._crosses(order.symbol, order.side, order.price)

    def _crosses(self, symbol: str, side: Side, limit: Decimal) -> bool:
        return (self.venue.prices[symbol] - limit) * side.sign <= ZERO

    def _fill(self, order: Order, now_ms: int, shortage: Shortage | None = None) -> Order:
        spec = self.venue.markets[order.symbol]
        price = self.venue.prices[order.symbol]
        qty = order.qty - order.executed
        if order.reduce_only:
            qty = min(qty, self.account.reducible(order.symbol, order.side, order.position_side))
            if qty == ZERO:
                return self._end(order, OrderStatus.EXPIRED, now_ms)
        if shortage is not None:
            qty = (qty * shortage.share / spec.step).to_integral_value(ROUND_DOWN) * spec.step
        fill = None
        if qty:
            fill = self.account.apply(order, price, qty, now_ms)
            average = spec.average(order.executed, order.avg_price, qty, price)
            order = replace(
                order,
                executed=order.executed + qty,
                avg_price=average,
                reduced=order.reduced + qty - fill.opened,
            )
        if shortage is None:
            return self._end(order, OrderStatus.FILLED, now_ms, fill)
        status = OrderStatus.PARTIALLY_FILLED if order.executed else OrderStatus.NEW
        resting = replace(order, status=status, updated_ms=now_ms)
        self._orders[order.id].put(resting, now_ms)
        if fill is not None:
            self._tell(OrderChange(resting, "TRADE", fill))
        if not shortage.stays:
            return self._end(resting, OrderStatus.EXPIRED, now_ms)
        self._held.add(order.id)
        return resting

    def _end(self, order: Order, status: OrderStatus, now_ms: int, fill: Fill | None = None) -> Order:
        ended = replace(order, status=status, updated_ms=now_ms)
        self._orders[order.id].put(ended, now_ms)
        self._open_orders.discard(order.id)
        self._held.discard(order.id)
        self._tell(OrderChange(ended, status.value if fill is None else "TRADE", fill))
        return ended

    def release(self, symbol: str | None, now_ms: int) -> None:
        """Fill the orders that a shortage left in the book."""
        for order_id in sorted(self._held):
            order = self._orders[order_id].now
            if symbol in {None, order.symbol}:
                self._held.discard(order_id)
                if self._marketable(order):
                    self._fill(order, now_ms)

    def expire_rests(self, symbol: str, now_ms: int) -> None:
        """End the orders of a contract that a shortage left in the book, as far as they are not filled."""
        for order_id in sorted(self._held):
            order = self._orders[order_id].now
            if order.symbol == symbol:
                self._end(order, OrderStatus.EXPIRED, now_ms)

    def amend(
        self,
        symbol: str,
        order_id: int | None,
        client_id: str | None,
        qty: Decimal,
        price: Decimal,
        now_ms: int,
    ) -> Order:
        """Change the quantity and price of an open limit order."""
        spec = self.venue.tradable(symbol)
        order = self._open_order(symbol, order_id, client_id, Rejection(-2013, _NO_ORDER))
        if order.type is not OrderType.LIMIT:
            raise Rejection(-4142, "This order type is not supported for modification.")
        check_quantity(spec, qty)
        check_price(spec, price)
        check_band(spec, order.side, price, self.venue.marks[symbol])
        if (qty, price) == (order.qty, order.price):
            raise Rejection(-5027, "No need to modify the order.")
        if qty <= order.executed:
            return self._end(order, OrderStatus.CANCELED, now_ms)
        amended = replace(order, qty=qty, price=price, updated_ms=now_ms)
        self._orders[order.id].put(amended, now_ms)
        self._tell(OrderChange(amended, "AMENDMENT"))
        return self._fill(amended, now_ms) if self._marketable(amended) else amended

    def cancel(self, symbol: str, order_id: int | None, client_id: str | None, now_ms: int) -> Order:
        """Cancel an open order."""
        self.venue.market(symbol)
        order = self._open_order(symbol, order_id, client_id, Rejection(-2011, _UNKNOWN_ORDER))
        return self._end(order, OrderStatus.CANCELED, now_ms)

    def _open_order(self, symbol: str, order_id: int | None, client_id: str | None, no: Rejection) -> Order:
        for open_id in sorted(self._open_orders):
            order = self._orders[open_id].now
            if order.symbol == symbol and (
                order.id == order_id if order_id else order.client_id == client_id
            ):
                return order
        raise no

    def cancel_all(self, symbol: str, now_ms: int) -> None:
        """Cancel every open ordinary order of a contract."""
        self.venue.market(symbol)
        for open_id in sorted(self._open_orders):
            if self._orders[open_id].now.symbol == symbol:
                self._end(self._orders[open_id].now, OrderStatus.CANCELED, now_ms)

    def count_down(self, symbol: str, until_ms: int | None) -> None:
        """Cancel every open ordinary order of a contract at ``until_ms``; ``None`` stops the countdown."""
        self.venue.market(symbol)
        self._countdowns.pop(symbol, None)
        if until_ms is not None:
            self._countdowns[symbol] = until_ms

    def pass_time(self, now_ms: int) -> None:
        """Carry out what is due by now."""
        for symbol, until_ms in list(self._countdowns.items()):
            if until_ms <= now_ms:
                del self._countdowns[symbol]
                for open_id in sorted(self._open_orders):
                    if self._orders[open_id].now.symbol == symbol:
                        self._end(self._orders[open_id].now, OrderStatus.CANCELED, until_ms)

    # --- algo orders ---

    def place_algo(self, new: NewAlgoOrder, now_ms: int, origin: Origin = Origin.API) -> AlgoOrder:
        """Accept an order that waits for a price."""
        spec = self.venue.tradable(new.symbol)
        if not new.type.conditional:
            raise Rejection(-1116, "Invalid orderType.")
        self._check_position_side(new.position_side, reduce_only=new.reduce_only)
        check_client_id("clientAlgoId", new.client_id)
        if any(self._algos[i].now.client_id == new.client_id for i in self._open_algos):
            raise Rejection(-4116, "ClientOrderId is duplicated.")
        if not new.close_position:
            check_quantity(spec, new.qty)
        trailing = new.type is OrderType.TRAILING_STOP_MARKET
        for price in (None if trailing else new.trigger, new.price):
            if price is not None:
                check_price(spec, price)
        if new.reduce_only and not self.account.reducible(new.symbol, new.side, new.position_side):
            raise Rejection(-2022, "ReduceOnly Order is rejected.")
        algo = ratchet(self._new_algo(new, now_ms, origin), self.venue.prices[new.symbol])
        if should_trigger(algo, self._watched(algo)):
            raise Rejection(-2021, "Order would immediately trigger.")
        self._check_company(algo)
        self._algos[algo.id] = Timeline(algo, now_ms)
        self._by_client.setdefault(algo.client_id, []).append(algo.id)
        self._open_algos.add(algo.id)
        self._tell(AlgoChange(algo))
        return algo

    def _check_company(self, algo: AlgoOrder) -> None:
        waiting = [other for other in self.open_algo_orders() if other.symbol == algo.symbol]
        if algo.close_position and any(_same_close(algo, other) for other in waiting):
            raise Rejection(
                -4130,
                "An open stop or take profit order with GTE and closePosition in the direction is existing.",
            )
        if len(waiting) >= ALGO_ORDERS_MAX:
            raise Rejection(-4045, "Reach max stop order limit.")

    def _new_algo(self, new: NewAlgoOrder, now_ms: int, origin: Origin) -> AlgoOrder:
        return AlgoOrder(
            id=next(self.venue.algo_ids),
            client_id=new.client_id,
            symbol=new.symbol,
            side=new.side,
            type=new.type,
            qty=new.qty,
            trigger=new.trigger,
            price=new.price or ZERO,
            reduce_only=new.reduce_only,
            close_position=new.close_position,
            working_type=new.working_type,
            status=AlgoStatus.NEW,
            created_ms=now_ms,
            updated_ms=now_ms,
            callback_rate=new.callback_rate or ZERO,
            best=self.venue.prices[new.symbol],
            position_side=new.position_side,
            account=self.account.name,
            origin=origin,
        )

    def _watched(self, algo: AlgoOrder) -> Decimal:
        prices = self.venue.marks if algo.working_type == "MARK_PRICE" else self.venue.prices
        return prices[algo.symbol]

    def cancel_algo(self, algo_id: int | None, client_id: str | None, now_ms: int) -> AlgoOrder:
        """Cancel a waiting algo order."""
        for open_id in sorted(self._open_algos):
            algo = self._algos[open_id].now
            if algo.id == algo_id if algo_id else algo.client_id == client_id:
                return self._end_algo(algo, AlgoStatus.CANCELED, now_ms)
        raise Rejection(-2011, _UNKNOWN_ORDER)

    def cancel_all_algos(self, symbol: str, now_ms: int) -> None:
        """Cancel every waiting algo order of a contract."""
        self.venue.market(symbol)
        for open_id in sorted(self._open_algos):
            if self._algos[open_id].now.symbol == symbol:
                self._end_algo(self._algos[open_id].now, AlgoStatus.CANCELED, now_ms)

    def drop_algo(self, algo_id: int, now_ms: int) -> None:
        """End a waiting algo order of the exchange's own accord, although it was taken."""
        self._end_algo(self._algos[algo_id].now, AlgoStatus.EXPIRED, now_ms)

    def expire_all(self, symbol: str, now_ms: int) -> None:
        """Expire the orders of a contract in both books, because it is no longer traded."""
        for order in list(self.open_orders()):
            if order.symbol == symbol:
                self._end(order, OrderStatus.EXPIRED, now_ms)
        for algo in list(self.open_algo_orders()):
            if algo.symbol == symbol:
                self._end_algo(algo, AlgoStatus.EXPIRED, now_ms)

    def _end_algo(self, algo: AlgoOrder, status: AlgoStatus, now_ms: int) -> AlgoOrder:
        ended = replace(algo, status=status, updated_ms=now_ms)
        self._algos[algo.id].put(ended, now_ms)
        self._open_algos.discard(algo.id)
        self._tell(AlgoChange(ended))
        return ended

    # --- prices ---

    def price_moved(self, symbol: str, now_ms: int) -> None:
        """Fill the limit orders that the price has reached; trigger the algo orders that it has crossed."""
        for order_id in sorted(self._open_orders - self._held):
            order = self._orders[order_id].now
            if order.symbol == symbol and self._marketable(order):
                self._fill(order, now_ms)
        for algo_id in sorted(self._open_algos):
            algo = self._algos[algo_id].now
            if algo.symbol == symbol:
                self._watch(algo, now_ms)

    def _watch(self, algo: AlgoOrder, now_ms: int) -> None:
        price = self._watched(algo)
        moved = ratchet(algo, price)
        if moved != algo:
            self._algos[algo.id].put(moved, now_ms)
        if should_trigger(moved, price):
            self._trigger(moved, now_ms)

    def _trigger(self, algo: AlgoOrder, now_ms: int) -> None:
        reducible = self.account.reducible(algo.symbol, algo.side, algo.position_side)
        closing = closes(algo.side, algo.position_side)
        qty = reducible if algo.close_position else min(algo.qty, reducible) if closing else algo.qty
        reducing = algo.reduce_only or algo.close_position or closing
        if reducing and reducible == ZERO:
            self._end_algo(replace(algo, triggered_ms=now_ms), AlgoStatus.REJECTED, now_ms)
            return
        self._tell(AlgoChange(replace(algo, status=AlgoStatus.TRIGGERING, triggered_ms=now_ms)))
        limit = algo.type in {OrderType.STOP, OrderType.TAKE_PROFIT}
        new = NewOrder(
            symbol=algo.symbol,
            side=algo.side,
            type=OrderType.LIMIT if limit else OrderType.MARKET,
            qty=qty,
            client_id=algo.client_id,
            price=algo.price if limit else None,
            reduce_only=reducing,
            position_side=algo.position_side,
        )
        order = self._enter(new, now_ms, algo.origin, algo.id)
        status = AlgoStatus.TRIGGERED if order.status.open else AlgoStatus.FINISHED
        self._end_algo(replace(algo, triggered_ms=now_ms, order_id=order.id), status, now_ms)


def closes(side: Side, position_side: PositionSide) -> bool:
    """Whether an order in hedge mode is on the side that closes its position."""
    return (position_side, side) in {(PositionSide.LONG, Side.SELL), (PositionSide.SHORT, Side.BUY)}


def _same_close(algo: AlgoOrder, other: AlgoOrder) -> bool:
    return (
        other.close_position
        and (algo.side, algo.position_side) == (other.side, other.position_side)
        and (algo.type in TAKE_PROFITS) == (other.type in TAKE_PROFITS)
    )


def _versions(timelines: Iterable[Timeline[T]], as_of_ms: int | None) -> Iterator[T]:
    for timeline in timelines:
        version = timeline.now if as_of_ms is None else timeline.as_of(as_of_ms)
        if version is not None:
            yield version
