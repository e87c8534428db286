"""The matching engine: prices, the ordinary book, the algo book, and what they do to the account.

It is plain arithmetic: no clock (the instant is passed in), no network, no waiting. There are no other
traders: a market order is filled in full at the last price, a limit order once the price has reached it.

The rules of Binance that a trading bot stumbles over are kept:

- Client ids are unique among *open* orders only. A market order is filled and gone at once, so sending it
  again with the same id buys again.
- Orders with a trigger live in a book of their own; the ordinary endpoints do not know them.
- A reduce-only order never opens or turns a position; with nothing to reduce it is refused.
- Closing a position leaves its stops where they are.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, TypeVar

from lockguard_ccxt.testing.account import Account
from lockguard_ccxt.testing.filters import check_client_id, check_notional, check_price, check_quantity
from lockguard_ccxt.testing.model import (
    ZERO,
    AlgoOrder,
    AlgoStatus,
    NewAlgoOrder,
    NewOrder,
    Order,
    OrderStatus,
    OrderType,
)
from lockguard_ccxt.testing.rejections import Rejection
from lockguard_ccxt.testing.timeline import Timeline
from lockguard_ccxt.testing.triggers import ratchet, should_trigger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from decimal import Decimal

    from lockguard_ccxt.testing.markets import MarketSpec

__all__ = ["Engine"]

T = TypeVar("T")

_UNKNOWN_ORDER = "Unknown order sent."
_NO_ORDER = "Order does not exist."


class Engine:
    """One account on one exchange."""

    def __init__(self, markets: Iterable[MarketSpec], *, wallet: Decimal, fee_rate: Decimal) -> None:
        self.markets = {spec.id: spec for spec in markets}
        self.prices = {spec.id: spec.price for spec in self.markets.values()}
        self.marks = dict(self.prices)
        self.account = Account(self.markets, wallet=wallet, fee_rate=fee_rate)
        self._orders: dict[int, Timeline[Order]] = {}
        self._algos: dict[int, Timeline[AlgoOrder]] = {}
        self._open_orders: set[int] = set()
        self._open_algos: set[int] = set()
        self._by_client: dict[str, list[int]] = {}
        self._order_ids = count(1_000_000_001)
        self._algo_ids = count(4_000_000_000_000_001)

    # --- asking ---

    def market(self, symbol: str) -> MarketSpec:
        """The contract, or the exchange's refusal."""
        try:
            return self.markets[symbol]
        except KeyError:
            raise Rejection(-1121, "Invalid symbol.") from None

    def orders(self, as_of_ms: int | None = None) -> Iterator[Order]:
        """All ordinary orders, oldest first, as they are or as they were."""
        return _versions(self._orders.values(), as_of_ms)

    def algo_orders(self, as_of_ms: int | None = None) -> Iterator[AlgoOrder]:
        """All algo orders, oldest first, as they are or as they were."""
        return _versions(self._algos.values(), as_of_ms)

    def open_orders(self, as_of_ms: int | None = None) -> Iterator[Order]:
        """The ordinary orders in the book, as they are or as they were."""
        if as_of_ms is None:
            return (self._orders[order_id].now for order_id in sorted(self._open_orders))
        return (order for order in self.orders(as_of_ms) if order.status is OrderStatus.NEW)

    def open_algo_orders(self, as_of_ms: int | None = None) -> Iterator[AlgoOrder]:
        """The algo orders that wait, as they are or as they were."""
        if as_of_ms is None:
            return (self._algos[algo_id].now for algo_id in sorted(self._open_algos))
        return (algo for algo in self.algo_orders(as_of_ms) if algo.status is AlgoStatus.NEW)

    def order(
        self, symbol: str, order_id: int | None, client_id: str | None, as_of_ms: int | None = None
    ) -> Order:
        """One ordinary order; of several with the same client id, the newest."""
        self.market(symbol)
        for order in self._found(self._orders, order_id, client_id, as_of_ms):
            if order.symbol == symbol:
                return order
        raise Rejection(-2013, _NO_ORDER)

    def algo_order(
        self, algo_id: int | None, client_id: str | None, as_of_ms: int | None = None
    ) -> AlgoOrder:
        """One algo order; of several with the same client id, the newest."""
        for algo in self._found(self._algos, algo_id, client_id, as_of_ms):
            return algo
        raise Rejection(-2013, _NO_ORDER)

    def _found(
        self, book: Mapping[int, Timeline[T]], wanted: int | None, client_id: str | None, as_of_ms: int | None
    ) -> Iterator[T]:
        ids = [wanted] if wanted is not None else reversed(self._by_client.get(client_id or "", []))
        return _versions((book[i] for i in ids if i in book), as_of_ms)

    # --- ordinary orders ---

    def place(self, new: NewOrder, now_ms: int) -> Order:
        """Take an order: fill it now if its price is there, or put it into the book."""
        spec = self.market(new.symbol)
        if new.type.conditional:
            raise Rejection(
                -4120,
                "Order type not supported for this endpoint."
                " Please use the Algo Order API endpoints instead.",
            )
        check_client_id("newClientOrderId", new.client_id)
        if any(self._orders[i].now.client_id == new.client_id for i in self._open_orders):
            raise Rejection(-4116, "ClientOrderId is duplicated.")
        check_quantity(spec, new.qty)
        if new.price is not None:
            check_price(spec, new.price)
        self._check_effect(spec, new)
        return self._enter(new, now_ms)

    def _check_effect(self, spec: MarketSpec, new: NewOrder) -> None:
        price = new.price or self.prices[spec.id]
        if new.reduce_only:
            if self.account.reducible(spec.id, new.side) == ZERO:
                raise Rejection(-2022, "ReduceOnly Order is rejected.")
            return
        check_notional(spec, new.qty, price)
        self.account.check_margin(spec.id, new.side, new.qty, price, self.marks)

    def _enter(self, new: NewOrder, now_ms: int, algo_id: int | None = None) -> Order:
        order = Order(
            id=next(self._order_ids),
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
        )
        self._orders[order.id] = Timeline(order, now_ms)
        self._by_client.setdefault(order.client_id, []).append(order.id)
        self._open_orders.add(order.id)
        if self._marketable(order):
            return self._fill(order, now_ms)
        if order.time_in_force in {"IOC", "FOK"}:
            return self._end(order, OrderStatus.EXPIRED, now_ms)
        return order

    def _marketable(self, order: Order) -> bool:
        if order.type is OrderType.MARKET:
            return True
        return (self.prices[order.symbol] - order.price) * order.side.sign <= ZERO

    def _fill(self, order: Order, now_ms: int) -> Order:
        price = self.prices[order.symbol]
        qty = order.qty
        if order.reduce_only:
            qty = min(qty, self.account.reducible(order.symbol, order.side))
            if qty == ZERO:
                return self._end(order, OrderStatus.EXPIRED, now_ms)
        self.account.apply(order, price, qty, now_ms)
        filled = replace(order, executed=qty, avg_price=price)
        return self._end(filled, OrderStatus.FILLED, now_ms)

    def _end(self, order: Order, status: OrderStatus, now_ms: int) -> Order:
        ended = replace(order, status=status, updated_ms=now_ms)
        self._orders[order.id].put(ended, now_ms)
        self._open_orders.discard(order.id)
        return ended

    def cancel(self, symbol: str, order_id: int | None, client_id: str | None, now_ms: int) -> Order:
        """Take an order out of the book."""
        self.market(symbol)
        for open_id in sorted(self._open_orders):
            order = self._orders[open_id].now
            if order.symbol == symbol and (
                order.id == order_id if order_id else order.client_id == client_id
            ):
                return self._end(order, OrderStatus.CANCELED, now_ms)
        raise Rejection(-2011, _UNKNOWN_ORDER)

    def cancel_all(self, symbol: str, now_ms: int) -> None:
        """Take every order of a contract out of the book."""
        self.market(symbol)
        for open_id in sorted(self._open_orders):
            if self._orders[open_id].now.symbol == symbol:
                self._end(self._orders[open_id].now, OrderStatus.CANCELED, now_ms)

    # --- algo orders ---

    def place_algo(self, new: NewAlgoOrder, now_ms: int) -> AlgoOrder:
        """Take an order that waits for a price."""
        spec = self.market(new.symbol)
        if not new.type.conditional:
            raise Rejection(-1116, "Invalid orderType.")
        check_client_id("clientAlgoId", new.client_id)
        if any(self._algos[i].now.client_id == new.client_id for i in self._open_algos):
            raise Rejection(-4116, "ClientOrderId is duplicated.")
        if not new.close_position:
            check_quantity(spec, new.qty)
        trailing = new.type is OrderType.TRAILING_STOP_MARKET
        for price in (None if trailing else new.trigger, new.price):
            if price is not None:
                check_price(spec, price)
        if new.reduce_only and self.account.reducible(new.symbol, new.side) == ZERO:
            raise Rejection(-2022, "ReduceOnly Order is rejected.")
        algo = ratchet(self._new_algo(new, now_ms), self.prices[new.symbol])
        if should_trigger(algo, self._watched(algo)):
            raise Rejection(-2021, "Order would immediately trigger.")
        self._algos[algo.id] = Timeline(algo, now_ms)
        self._by_client.setdefault(algo.client_id, []).append(algo.id)
        self._open_algos.add(algo.id)
        return algo

    def _new_algo(self, new: NewAlgoOrder, now_ms: int) -> AlgoOrder:
        return AlgoOrder(
            id=next(self._algo_ids),
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
            best=self.prices[new.symbol],
        )

    def _watched(self, algo: AlgoOrder) -> Decimal:
        return (self.marks if algo.working_type == "MARK_PRICE" else self.prices)[algo.symbol]

    def cancel_algo(self, algo_id: int | None, client_id: str | None, now_ms: int) -> AlgoOrder:
        """Take an algo order out of its book."""
        for open_id in sorted(self._open_algos):
            algo = self._algos[open_id].now
            if algo.id == algo_id if algo_id else algo.client_id == client_id:
                return self._end_algo(algo, AlgoStatus.CANCELED, now_ms)
        raise Rejection(-2011, _UNKNOWN_ORDER)

    def cancel_all_algos(self, symbol: str, now_ms: int) -> None:
        """Take every algo order of a contract out of its book."""
        self.market(symbol)
        for open_id in sorted(self._open_algos):
            if self._algos[open_id].now.symbol == symbol:
                self._end_algo(self._algos[open_id].now, AlgoStatus.CANCELED, now_ms)

    def _end_algo(self, algo: AlgoOrder, status: AlgoStatus, now_ms: int) -> AlgoOrder:
        ended = replace(algo, status=status, updated_ms=now_ms)
        self._algos[algo.id].put(ended, now_ms)
        self._open_algos.discard(algo.id)
        return ended

    # --- prices ---

    def set_price(self, symbol: str, price: Decimal, now_ms: int, mark: Decimal | None = None) -> None:
        """The last trade was at ``price``: fill the limits it reached, trigger the algo orders it crossed.

        Args:
            symbol: the contract's id.
            price: the last price.
            now_ms: the instant.
            mark: the mark price; the last price when left out.
        """
        self.market(symbol)
        self.prices[symbol] = price
        self.marks[symbol] = price if mark is None else mark
        for order_id in sorted(self._open_orders):
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
        qty = self.account.reducible(algo.symbol, algo.side) if algo.close_position else algo.qty
        reducing = algo.reduce_only or algo.close_position
        if reducing and self.account.reducible(algo.symbol, algo.side) == ZERO:
            self._end_algo(replace(algo, triggered_ms=now_ms), AlgoStatus.REJECTED, now_ms)
            return
        limit = algo.type in {OrderType.STOP, OrderType.TAKE_PROFIT}
        new = NewOrder(
            symbol=algo.symbol,
            side=algo.side,
            type=OrderType.LIMIT if limit else OrderType.MARKET,
            qty=qty,
            client_id=algo.client_id,
            price=algo.price if limit else None,
            reduce_only=reducing,
        )
        order = self._enter(new, now_ms, algo.id)
        status = AlgoStatus.TRIGGERED if order.status is OrderStatus.NEW else AlgoStatus.FINISHED
        self._end_algo(replace(algo, triggered_ms=now_ms, order_id=order.id), status, now_ms)


def _versions(timelines: Iterable[Timeline[T]], as_of_ms: int | None) -> Iterator[T]:
    for timeline in timelines:
        version = timeline.now if as_of_ms is None else timeline.as_of(as_of_ms)
        if version is not None:
            yield version
