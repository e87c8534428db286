"""How the exchange writes its orders, positions and contracts as JSON."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING, TypeAlias

from lockguard_ccxt.testing.model import ZERO, OrderStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockguard_ccxt.testing.account import Account
    from lockguard_ccxt.testing.markets import MarketSpec
    from lockguard_ccxt.testing.model import AlgoOrder, Fill, Order, Position

__all__ = ["Json", "algo_json", "fill_json", "market_json", "order_json", "position_json", "text"]

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None"

_EIGHT = Decimal("1e-8")
_MAINTENANCE_RATE = Decimal("0.004")
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
    """How many decimals a step has, trailing zeros left out."""
    exponent = step.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def market_json(spec: MarketSpec) -> Json:
    """A contract, as in ``exchangeInfo``."""
    step, most = format(spec.step, "f"), format(spec.max_qty, "f")
    return {
        "symbol": spec.id,
        "pair": f"{spec.base}{spec.quote}",
        "contractType": "CURRENT_QUARTER" if spec.delivery else "PERPETUAL",
        "deliveryDate": spec.delivery_ms or _PERPETUAL_DELIVERY_MS,
        "onboardDate": _ONBOARD_MS,
        "status": "TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": spec.base,
        "quoteAsset": spec.quote,
        "marginAsset": spec.quote,
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
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": format(spec.tick, "f"),
                "maxPrice": text(spec.price * 1000, spec.tick),
                "tickSize": format(spec.tick, "f"),
            },
            {"filterType": "LOT_SIZE", "stepSize": step, "minQty": step, "maxQty": most},
            {"filterType": "MARKET_LOT_SIZE", "stepSize": step, "minQty": step, "maxQty": most},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 10},
            {"filterType": "MIN_NOTIONAL", "notional": format(spec.min_notional, "f")},
            {
                "filterType": "PERCENT_PRICE",
                "multiplierUp": "1.0500",
                "multiplierDown": "0.9500",
                "multiplierDecimal": 4,
            },
        ],
    }


def order_json(order: Order, spec: MarketSpec, *, acknowledged_only: bool = False) -> Json:
    """An ordinary order.

    Args:
        order: the order.
        spec: its contract.
        acknowledged_only: as the ``ACK`` answer has it: taken, and nothing said about its fill.
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
        "cumQuote": text(executed * average),
        "timeInForce": order.time_in_force,
        "type": order.type.value,
        "reduceOnly": order.reduce_only,
        "closePosition": False,
        "side": order.side.value,
        "positionSide": "BOTH",
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
    """An algo order."""
    return {
        "algoId": algo.id,
        "clientAlgoId": algo.client_id,
        "algoType": "CONDITIONAL",
        "orderType": algo.type.value,
        "symbol": algo.symbol,
        "side": algo.side.value,
        "positionSide": "BOTH",
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
        "quoteQty": text(fill.price * fill.qty),
        "commission": text(fill.commission),
        "commissionAsset": spec.quote,
        "time": fill.at_ms,
        "positionSide": "BOTH",
        "buyer": fill.side.sign > 0,
        "maker": False,
    }


def position_json(
    position: Position, spec: MarketSpec, account: Account, mark: Decimal, *, version: int
) -> Json:
    """A position, as ``positionRisk`` of API version 2 or 3 has it."""
    isolated = position.symbol in account.isolated
    margin = account.margin(position, mark)
    isolated_margin = text(margin) if isolated and position.qty else "0"
    common: dict[str, Json] = {
        "symbol": position.symbol,
        "positionSide": "BOTH",
        "positionAmt": text(position.qty, spec.step),
        "entryPrice": text(position.entry_price) if position.qty else "0.0",
        "breakEvenPrice": text(position.entry_price) if position.qty else "0.0",
        "markPrice": text(mark),
        "unRealizedProfit": text((mark - position.entry_price) * position.qty),
        "liquidationPrice": "0",
        "isolatedMargin": isolated_margin,
        "notional": text(position.qty * mark),
        "isolatedWallet": isolated_margin,
        "updateTime": position.updated_ms,
    }
    if version == 2:
        leverage = str(account.leverage[position.symbol])
        margin_type = "isolated" if isolated else "cross"
        return common | {
            "leverage": leverage,
            "marginType": margin_type,
            "isAutoAddMargin": "false",
            "maxNotionalValue": "100000000",
        }
    return common | {
        "marginAsset": spec.quote,
        "initialMargin": text(margin),
        "maintMargin": text(abs(position.qty) * mark * _MAINTENANCE_RATE),
        "positionInitialMargin": text(margin),
        "openOrderInitialMargin": "0",
        "adl": 1,
        "bidNotional": "0",
        "askNotional": "0",
    }
