"""The order endpoints of the REST APIs of USD-M and COIN-M."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

from lockguard_lab.exchange.model import ZERO, NewAlgoOrder, NewOrder, OrderType
from lockguard_lab.exchange.rejections import Rejection, malformed, unwanted
from lockguard_lab.exchange.render import algo_json, order_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lockguard_lab.exchange.desk import RequestContext
    from lockguard_lab.exchange.model import AlgoOrder, Order
    from lockguard_lab.exchange.params import Params
    from lockguard_lab.exchange.render import Json

__all__ = [
    "all_algos",
    "all_orders",
    "amend_batch",
    "amend_order",
    "cancel_algo",
    "cancel_all",
    "cancel_all_algos",
    "cancel_batch",
    "cancel_order",
    "count_down",
    "create_algo",
    "create_batch",
    "create_order",
    "get_algo",
    "get_open_order",
    "get_order",
    "open_algos",
    "open_orders",
    "try_order",
]

_TIMES_IN_FORCE = frozenset({"GTC", "IOC", "FOK", "GTX", "GTD"})
_BATCH_MAX = 5
_CANCEL_BATCH_MAX = 10
_LIMIT_DEFAULT = 500
_LIMIT_MAX = 1000


def create_order(context: RequestContext, params: Params) -> Json:
    """``POST order``."""
    order = context.engine.place(_new_order(context, params), context.now_ms)
    acknowledged_only = params.optional("newOrderRespType") != "RESULT"
    return order_json(order, context.venue.markets[order.symbol], acknowledged_only=acknowledged_only)


def try_order(context: RequestContext, params: Params) -> Json:
    """``POST order/test``: refuses what ``POST order`` would refuse, and places no order."""
    context.engine.check(_new_order(context, params))
    return {}


def _new_order(context: RequestContext, params: Params) -> NewOrder:
    symbol = params.text("symbol")
    context.market(symbol)
    kind = params.order_type()
    limit = kind is OrderType.LIMIT
    return NewOrder(
        symbol=symbol,
        side=params.side(),
        type=kind,
        qty=params.number("quantity") if not kind.conditional else ZERO,
        client_id=params.optional("newClientOrderId") or secrets.token_hex(11),
        price=params.number("price") if limit else None,
        reduce_only=params.flag("reduceOnly"),
        time_in_force=_time_in_force(params, limit=limit),
        position_side=params.position_side(),
    )


def _time_in_force(params: Params, *, limit: bool) -> str:
    """The time in force of a limit order; a market order has none."""
    given = params.optional("timeInForce")
    if given is not None and given not in _TIMES_IN_FORCE:
        raise Rejection(-1115, "Invalid timeInForce.")
    if not limit:
        if given is not None and params.order_type() is OrderType.MARKET:
            raise unwanted("timeinforce")
        return "GTC"
    if given is None:
        raise malformed("timeinforce")
    if given == "GTD" and params.whole("goodTillDate") is None:
        raise malformed("goodtilldate")
    return given


def amend_order(context: RequestContext, params: Params) -> Json:
    """``PUT order``: changes the quantity and price of an open limit order."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    symbol = params.text("symbol")
    context.market(symbol)
    params.side()
    qty, price = params.number("quantity"), params.number("price")
    order = context.engine.amend(symbol, order_id, client_id, qty, price, context.now_ms)
    return order_json(order, context.venue.markets[order.symbol])


def get_order(context: RequestContext, params: Params) -> Json:
    """``GET order``, by ``orderId`` or ``origClientOrderId``."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    symbol = params.text("symbol")
    context.market(symbol)
    order = context.engine.order(symbol, order_id, client_id, _orders_as_of(context))
    return order_json(order, context.venue.markets[order.symbol])


def get_open_order(context: RequestContext, params: Params) -> Json:
    """``GET openOrder``: like ``GET order``, but only for an open order."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    symbol = params.text("symbol")
    context.market(symbol)
    order = context.engine.order(symbol, order_id, client_id, _orders_as_of(context))
    if not order.status.open:
        raise Rejection(-2013, "Order does not exist.")
    return order_json(order, context.venue.markets[order.symbol])


def cancel_order(context: RequestContext, params: Params) -> Json:
    """``DELETE order``, by ``orderId`` or ``origClientOrderId``."""
    order_id, client_id = params.order_key("orderId", "origClientOrderId")
    symbol = params.text("symbol")
    context.market(symbol)
    order = context.engine.cancel(symbol, order_id, client_id, context.now_ms)
    return order_json(order, context.venue.markets[order.symbol])


def cancel_all(context: RequestContext, params: Params) -> Json:
    """``DELETE allOpenOrders``."""
    symbol = params.text("symbol")
    context.market(symbol)
    context.engine.cancel_all(symbol, context.now_ms)
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


def count_down(context: RequestContext, params: Params) -> Json:
    """``POST countdownCancelAll``: a contract's orders are cancelled unless this call is repeated in time."""
    symbol, countdown_ms = params.text("symbol"), params.whole("countdownTime")
    if countdown_ms is None:
        raise malformed("countdownTime")
    context.market(symbol)
    context.engine.count_down(symbol, context.now_ms + countdown_ms if countdown_ms else None)
    return {"symbol": symbol, "countdownTime": str(countdown_ms)}


def create_batch(context: RequestContext, params: Params) -> Json:
    """``POST batchOrders``: each order is accepted or refused on its own."""
    return _each_of_batch(context, params, create_order)


def amend_batch(context: RequestContext, params: Params) -> Json:
    """``PUT batchOrders``: each change is accepted or refused on its own."""
    return _each_of_batch(context, params, amend_order)


def _each_of_batch(
    context: RequestContext, params: Params, one: Callable[[RequestContext, Params], Json]
) -> Json:
    rows = params.rows("batchOrders")
    if not 0 < len(rows) <= _BATCH_MAX:
        raise Rejection(-4082, "Invalid number of batch place orders.")
    return [_tried(partial(one, context, row)) for row in rows]


def cancel_batch(context: RequestContext, params: Params) -> Json:
    """``DELETE batchOrders``, by ``orderIdList`` or ``origClientOrderIdList``."""
    symbol = params.text("symbol")
    context.market(symbol)
    by_id = params.values("orderIdList")
    keys: list[tuple[int | None, str | None]] = [
        (int(order_id), None) for order_id in by_id if order_id.isdecimal()
    ]
    keys = keys or [(None, client_id) for client_id in params.values("origClientOrderIdList")]
    if not 0 < len(keys) <= _CANCEL_BATCH_MAX:
        raise Rejection(-1102, "Param 'origClientOrderIdList' or 'orderIdList' must be sent.")

    def cancel(order_id: int | None, client_id: str | None) -> Json:
        order = context.engine.cancel(symbol, order_id, client_id, context.now_ms)
        return order_json(order, context.venue.markets[symbol])

    return [_tried(partial(cancel, order_id, client_id)) for order_id, client_id in keys]


def _tried(act: Callable[[], Json]) -> Json:
    try:
        return act()
    except Rejection as no:
        return {"code": no.code, "msg": no.message}


def open_orders(context: RequestContext, params: Params) -> Json:
    """``GET openOrders``: the ordinary book only; algo orders are not in it."""
    return _orders(context, params, context.engine.open_orders(_orders_as_of(context)))


def all_orders(context: RequestContext, params: Params) -> Json:
    """``GET allOrders`` of one contract."""
    params.text("symbol")
    return _orders(context, params, context.engine.orders(_orders_as_of(context)))


def create_algo(context: RequestContext, params: Params) -> Json:
    """``POST algoOrder``."""
    if params.text("algoType") != "CONDITIONAL":
        raise malformed("algoType")
    symbol = params.text("symbol")
    context.market(symbol)
    kind = params.order_type()
    if kind.conditional:
        _time_in_force(params, limit=False)
    trailing = kind is OrderType.TRAILING_STOP_MARKET
    limited = kind in {OrderType.STOP, OrderType.TAKE_PROFIT}
    close_position = params.flag("closePosition")
    if close_position and params.optional("quantity"):
        raise Rejection(-4137, "Quantity must be zero with closePosition equals true.")
    algo = context.engine.place_algo(
        NewAlgoOrder(
            symbol=symbol,
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
            position_side=params.position_side(),
        ),
        context.now_ms,
    )
    return algo_json(algo, context.venue.markets[algo.symbol])


def get_algo(context: RequestContext, params: Params) -> Json:
    """``GET algoOrder``, by ``algoId`` or ``clientAlgoId``."""
    algo_id, client_id = params.order_key("algoId", "clientAlgoId")
    algo = context.engine.algo_order(algo_id, client_id, _orders_as_of(context))
    return algo_json(algo, context.venue.markets[algo.symbol])


def cancel_algo(context: RequestContext, params: Params) -> Json:
    """``DELETE algoOrder``, by ``algoId`` or ``clientAlgoId``."""
    algo_id, client_id = params.order_key("algoId", "clientAlgoId")
    algo = context.engine.cancel_algo(algo_id, client_id, context.now_ms)
    return {"algoId": algo.id, "clientAlgoId": algo.client_id, "code": "200", "msg": "success"}


def cancel_all_algos(context: RequestContext, params: Params) -> Json:
    """``DELETE algoOpenOrders``."""
    symbol = params.text("symbol")
    context.market(symbol)
    context.engine.cancel_all_algos(symbol, context.now_ms)
    return {"code": 200, "msg": "The operation of cancel all open order is done."}


def open_algos(context: RequestContext, params: Params) -> Json:
    """``GET openAlgoOrders``."""
    return _algos(context, params, context.engine.open_algo_orders(_orders_as_of(context)))


def all_algos(context: RequestContext, params: Params) -> Json:
    """``GET allAlgoOrders`` of one contract."""
    params.text("symbol")
    return _algos(context, params, context.engine.algo_orders(_orders_as_of(context)))


def _orders_as_of(context: RequestContext) -> int | None:
    lag_ms = context.visibility.orders_ms
    return context.now_ms - lag_ms if lag_ms else None


def _orders(context: RequestContext, params: Params, orders: Iterable[Order]) -> Json:
    symbol = params.optional("symbol")
    if symbol is not None:
        context.market(symbol)
    chosen = [order for order in orders if symbol in {None, order.symbol} and _here(context, order)]
    return [order_json(order, context.venue.markets[order.symbol]) for order in chosen[-_limit(params) :]]


def _algos(context: RequestContext, params: Params, algos: Iterable[AlgoOrder]) -> Json:
    symbol = params.optional("symbol")
    if symbol is not None:
        context.market(symbol)
    chosen = [algo for algo in algos if symbol in {None, algo.symbol} and _here(context, algo)]
    return [algo_json(algo, context.venue.markets[algo.symbol]) for algo in chosen[-_limit(params) :]]


def _here(context: RequestContext, row: Order | AlgoOrder) -> bool:
    return context.venue.markets[row.symbol].inverse is context.inverse


def _limit(params: Params) -> int:
    return min(params.whole("limit") or _LIMIT_DEFAULT, _LIMIT_MAX)
