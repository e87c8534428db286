"""The order endpoints of the USD-M REST API."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from lockguard_ccxt.testing.model import ZERO, NewAlgoOrder, NewOrder, OrderType
from lockguard_ccxt.testing.rejections import Rejection, malformed
from lockguard_ccxt.testing.render import algo_json, order_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard_ccxt.testing.desk import Desk
    from lockguard_ccxt.testing.model import AlgoOrder, Order
    from lockguard_ccxt.testing.params import Params
    from lockguard_ccxt.testing.render import Json

__all__ = [
    "all_algos",
    "all_orders",
    "cancel_algo",
    "cancel_all",
    "cancel_all_algos",
    "cancel_order",
    "create_algo",
    "create_order",
    "get_algo",
    "get_order",
    "open_algos",
    "open_orders",
]

_LIMIT_DEFAULT = 500
_LIMIT_MAX = 1000


def create_order(desk: Desk, params: Params) -> Json:
    """``POST order``."""
    kind = params.order_type()
    price = params.number("price") if kind is OrderType.LIMIT else None
    order = desk.engine.place(
        NewOrder(
            symbol=params.text("symbol"),
            side=params.side(),
            type=kind,
            qty=params.number("quantity") if not kind.conditional else ZERO,
            client_id=params.optional("newClientOrderId") or secrets.token_hex(11),
            price=price,
            reduce_only=params.flag("reduceOnly"),
            time_in_force=params.optional("timeInForce") or "GTC",
        ),
        desk.now_ms,
    )
    acknowledged_only = params.optional("newOrderRespType") != "RESULT"
    return order_json(order, desk.engine.market(order.symbol), acknowledged_only=acknowledged_only)


def get_order(desk: Desk, params: Params) -> Json:
    """``GET order``, by ``orderId`` or ``origClientOrderId``."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    order = desk.engine.order(params.text("symbol"), order_id, client_id, _orders_as_of(desk))
    return order_json(order, desk.engine.market(order.symbol))


def cancel_order(desk: Desk, params: Params) -> Json:
    """``DELETE order``, by ``orderId`` or ``origClientOrderId``."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    order = desk.engine.cancel(params.text("symbol"), order_id, client_id, desk.now_ms)
    return order_json(order, desk.engine.market(order.symbol))


def cancel_all(desk: Desk, params: Params) -> Json:
    """``DELETE allOpenOrders``."""
    desk.engine.cancel_all(params.text("symbol"), desk.now_ms)
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


def open_orders(desk: Desk, params: Params) -> Json:
    """``GET openOrders``: the ordinary book only; algo orders are not in it."""
    return _orders(desk, params, desk.engine.open_orders(_orders_as_of(desk)))


def all_orders(desk: Desk, params: Params) -> Json:
    """``GET allOrders`` of one contract."""
    params.text("symbol")
    return _orders(desk, params, desk.engine.orders(_orders_as_of(desk)))


def create_algo(desk: Desk, params: Params) -> Json:
    """``POST algoOrder``."""
    if params.text("algoType") != "CONDITIONAL":
        raise malformed("algoType")
    kind = params.order_type()
    trailing = kind is OrderType.TRAILING_STOP_MARKET
    limited = kind in {OrderType.STOP, OrderType.TAKE_PROFIT}
    close_position = params.flag("closePosition")
    if close_position and params.optional("quantity"):
        raise Rejection(-4137, "Quantity must be zero with closePosition equals true.")
    algo = desk.engine.place_algo(
        NewAlgoOrder(
            symbol=params.text("symbol"),
            side=params.side(),
            type=kind,
            qty=ZERO if close_position else params.number("quantity"),
            client_id=params.optional("clientAlgoId") or secrets.token_hex(11),
            trigger=ZERO if trailing else params.number("triggerPrice"),
            price=params.number("price") if limited else None,
            reduce_only=params.flag("reduceOnly"),
            close_position=close_position,
            working_type=params.optional("workingType") or "CONTRACT_PRICE",
            callback_rate=params.number("callbackRate") if trailing else None,
        ),
        desk.now_ms,
    )
    return algo_json(algo, desk.engine.market(algo.symbol))


def get_algo(desk: Desk, params: Params) -> Json:
    """``GET algoOrder``, by ``algoId`` or ``clientAlgoId``."""
    algo_id, client_id = params.order_key("algoId", "clientAlgoId")
    algo = desk.engine.algo_order(algo_id, client_id, _orders_as_of(desk))
    return algo_json(algo, desk.engine.market(algo.symbol))


def cancel_algo(desk: Desk, params: Params) -> Json:
    """``DELETE algoOrder``, by ``algoId`` or ``clientAlgoId``."""
    algo_id, client_id = params.order_key("algoId", "clientAlgoId")
    algo = desk.engine.cancel_algo(algo_id, client_id, desk.now_ms)
    return {"algoId": algo.id, "clientAlgoId": algo.client_id, "code": "200", "msg": "success"}


def cancel_all_algos(desk: Desk, params: Params) -> Json:
    """``DELETE algoOpenOrders``."""
    desk.engine.cancel_all_algos(params.text("symbol"), desk.now_ms)
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


def open_algos(desk: Desk, params: Params) -> Json:
    """``GET openAlgoOrders``."""
    return _algos(desk, params, desk.engine.open_algo_orders(_orders_as_of(desk)))


def all_algos(desk: Desk, params: Params) -> Json:
    """``GET allAlgoOrders`` of one contract."""
    params.text("symbol")
    return _algos(desk, params, desk.engine.algo_orders(_orders_as_of(desk)))


def _orders_as_of(desk: Desk) -> int | None:
    lag_ms = desk.visibility.orders_ms
    return desk.now_ms - lag_ms if lag_ms else None


def _orders(desk: Desk, params: Params, orders: Iterable[Order]) -> Json:
    symbol = params.optional("symbol")
    chosen = [order for order in orders if symbol in {None, order.symbol}]
    return [order_json(order, desk.engine.market(order.symbol)) for order in chosen[-_limit(params) :]]


def _algos(desk: Desk, params: Params, algos: Iterable[AlgoOrder]) -> Json:
    symbol = params.optional("symbol")
    chosen = [algo for algo in algos if symbol in {None, algo.symbol}]
    return [algo_json(algo, desk.engine.market(algo.symbol)) for algo in chosen[-_limit(params) :]]


def _limit(params: Params) -> int:
    return min(params.whole("limit") or _LIMIT_DEFAULT, _LIMIT_MAX)
