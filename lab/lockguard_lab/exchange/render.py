"""The exchange's orders, positions and contracts as JSON."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, TypeAlias

from lockguard_lab.exchange.filters import ALGO_ORDERS_MAX, BAND_DOWN, BAND_UP
from lockguard_lab.exchange.model import ZERO, OrderStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockguard_lab.exchange.account import Account
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.model import AlgoOrder, Fill, Order, Position

__all__ = ["Json", "algo_json", "fill_json", "market_json", "order_json", "position_json", "text"]

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

_EIGHT = Decimal("1e-8")
_MAINTENANCE_RATE = Decimal("0.004")
_V3 = 3
_PERPETUAL_DELIVERY_MS = 4_133_404_800_000
_ONBOARD_MS = 1_569_398_400_000
_ORDER_TYPES = (
    "LIMIT",
    "MARKET",
    "STOP",
    "STOP_MARKET",
    "TAKE_PROFIT",
    "TAKE_PROFIT_MARKET",
    "TRAILING_STOP_MARKET",
)


def text(value: Decimal, step: Decimal = _EIGHT) -> str:
    """A number with as many decimals as its step has."""
    return format(value.quantize(step, ROUND_HALF_EVEN), "f")


def places(step: Decimal) -> int:
    """How many decimals a step has, without trailing zeros."""
    exponent = step.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def market_json(spec: MarketSpec, status: str) -> Json:
    """A contract, as in ``exchangeInfo`` of USD-M or COIN-M."""
    return {
        "symbol": spec.id,
        "pair": spec.pair,
        "contractType": "CURRENT_QUARTER" if spec.delivery else "PERPETUAL",
        "deliveryDate": spec.delivery_ms or _PERPETUAL_DELIVERY_MS,
        "onboardDate": _ONBOARD_MS,
        "contractStatus" if spec.inverse else "status": status,
        **({"contractSize": _plain(spec.contract_size)} if spec.inverse or spec.contract_size != 1 else {}),
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": spec.base,
        "quoteAsset": spec.quote,
        "marginAsset": spec.settle,
        "pricePrecision": places(spec.tick),
        "quantityPrecision": places(spec.step),
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": [],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "orderTypes": list(_ORDER_TYPES),
        "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        "filters": _filters(spec),
    }


def _plain(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _filters(spec: MarketSpec) -> Json:
    step, most = format(spec.step, "f"), format(spec.max_qty, "f")
    worth: list[Json] = [{"filterType": "MIN_NOTIONAL", "notional": format(spec.min_notional, "f")}]
    return [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": format(spec.tick, "f"),
            "maxPrice": text(spec.price * 1000, spec.tick),
            "tickSize": format(spec.tick, "f"),
        },
        {"filterType": "LOT_SIZE", "stepSize": step, "minQty": step, "maxQty": most},
        {"filterType": "MARKET_LOT_SIZE", "stepSize": step, "minQty": step, "maxQty": most},
        {"filterType": "MAX_NUM_ORDERS", "limit": 200},
        {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": ALGO_ORDERS_MAX},
        *([] if spec.inverse else worth),
        {
            "filterType": "PERCENT_PRICE",
            "multiplierUp": str(BAND_UP),
            "multiplierDown": str(BAND_DOWN),
            "multiplierDecimal": "4",
        },
    ]


def order_json(order: Order, spec: MarketSpec, *, acknowledged_only: bool = False) -> Json:
    """An ordinary order.

    Args:
        order: the order.
        spec: its contract.
        acknowledged_only: as in the ``ACK`` answer: accepted, and nothing said about its fill.
    """
    executed = ZERO if acknowledged_only else order.executed
    average = ZERO if acknowledged_only else order.avg_price
    return {
        "orderId": order.id,
        "symbol": order.symbol,
        "status": (OrderStatus.NEW if acknowledged_only else order.status).value,
        "clientOrderId": order.client_id,
        "price": text(order.price, spec.tick),
        "avgPrice": text(average),
        "origQty": text(order.qty, spec.step),
        "executedQty": text(executed, spec.step),
        "cumQty": text(executed, spec.step),
        "cumBase" if spec.inverse else "cumQuote": text(spec.worth(executed, average) if executed else ZERO),
        "timeInForce": order.time_in_force,
        "type": order.type.value,
        "reduceOnly": order.reduce_only,
        "closePosition": False,
        "side": order.side.value,
        "positionSide": order.position_side.value,
        "stopPrice": "0",
        "workingType": "CONTRACT_PRICE",
        "priceProtect": False,
        "origType": order.type.value,
        "priceMatch": "NONE",
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "goodTillDate": 0,
        "time": order.created_ms,
        "updateTime": order.updated_ms,
    }


def algo_json(algo: AlgoOrder, spec: MarketSpec) -> Json:
    """An algo order, as the algo order endpoints have it."""
    return {
        "algoId": algo.id,
        "clientAlgoId": algo.client_id,
        "algoType": "CONDITIONAL",
        "orderType": algo.type.value,
        "symbol": algo.symbol,
        "side": algo.side.value,
        "positionSide": algo.position_side.value,
        "timeInForce": "GTC",
        "quantity": text(algo.qty, spec.step),
        "algoStatus": algo.status.value,
        "triggerPrice": text(algo.trigger, spec.tick),
        "price": text(algo.price, spec.tick),
        "icebergQuantity": None,
        "selfTradePreventionMode": "EXPIRE_MAKER",
        "workingType": algo.working_type,
        "priceMatch": "NONE",
        "closePosition": algo.close_position,
        "priceProtect": False,
        "reduceOnly": algo.reduce_only,
        "createTime": algo.created_ms,
        "updateTime": algo.updated_ms,
        "triggerTime": algo.triggered_ms,
        "goodTillDate": 0,
        "actualOrderId": "" if algo.order_id is None else str(algo.order_id),
    }


def fill_json(fill: Fill, spec: MarketSpec) -> Json:
    """A trade of the account."""
    return {
        "symbol": fill.symbol,
        "id": fill.id,
        "orderId": fill.order_id,
        "side": fill.side.value,
        "price": text(fill.price, spec.tick),
        "qty": text(fill.qty, spec.step),
        "realizedPnl": text(fill.realized),
        "baseQty" if spec.inverse else "quoteQty": text(spec.worth(fill.qty, fill.price)),
        "commission": text(fill.commission),
        "commissionAsset": spec.settle,
        "time": fill.at_ms,
        "positionSide": fill.position_side.value,
        "buyer": fill.side.sign > 0,
        "maker": False,
    }


def position_json(position: Position, account: Account, *, version: int) -> Json:
    """A position, as ``positionRisk`` of USD-M version 2 or 3, or of COIN-M version 1, has it."""
    spec = account.venue.markets[position.symbol]
    mark = account.venue.marks[position.symbol]
    isolated = position.symbol in account.isolated
    margin = account.margin(position)
    own = margin + account.added_margin.get(position.symbol, ZERO)
    isolated_margin = text(own) if isolated and position.qty else "0"
    notional = text(spec.worth(position.qty, mark))
    common: dict[str, Json] = {
        "symbol": position.symbol,
        "positionSide": position.side.value,
        "positionAmt": text(position.qty, spec.step),
        "entryPrice": text(position.entry_price) if position.qty else "0.0",
        "breakEvenPrice": text(position.entry_price) if position.qty else "0.0",
        "markPrice": text(mark),
        "unRealizedProfit": text(account.profit(position)),
        "liquidationPrice": "0",
        "isolatedMargin": isolated_margin,
        "notionalValue" if spec.inverse else "notional": notional,
        "isolatedWallet": isolated_margin,
        "updateTime": position.updated_ms,
    }
    if version < _V3:
        return common | {
            "leverage": str(account.leverage(position.symbol)),
            "marginType": "isolated" if isolated else "cross",
            "isAutoAddMargin": "false",
            "maxQty" if spec.inverse else "maxNotionalValue": "100000000",
        }
    return common | {
        "marginAsset": spec.settle,
        "initialMargin": text(margin),
        "maintMargin": text(spec.worth(abs(position.qty), mark) * _MAINTENANCE_RATE),
        "positionInitialMargin": text(margin),
        "openOrderInitialMargin": "0",
        "adl": 1,
        "bidNotional": "0",
        "askNotional": "0",
    }
