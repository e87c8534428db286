"""The public endpoints: the clock, the contracts, the prices."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_ccxt.testing.rejections import Rejection
from lockguard_ccxt.testing.render import market_json, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_ccxt.testing.desk import Desk
    from lockguard_ccxt.testing.markets import MarketSpec
    from lockguard_ccxt.testing.params import Params
    from lockguard_ccxt.testing.render import Json

__all__ = [
    "book_ticker",
    "coin_exchange_info",
    "depth",
    "exchange_info",
    "exchange_info_of_nothing",
    "klines",
    "nothing",
    "ping",
    "premium_index",
    "server_time",
    "spot_exchange_info",
    "ticker_24h",
    "ticker_price",
]

_DAY_MS = 86_400_000
_FUNDING_MS = 28_800_000
_DEPTH_LEVELS = 5
_KLINES_DEFAULT = 500
_KLINES_MAX = 1500
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS, "M": 30 * _DAY_MS}


def ping(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET ping``."""
    return {}


def server_time(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET time``."""
    return {"serverTime": desk.now_ms}


def exchange_info(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET fapi/v1/exchangeInfo``."""
    return _info(desk, [market_json(spec) for spec in desk.engine.markets.values()])


def spot_exchange_info(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET api/v3/exchangeInfo``: the same pairs on the spot market, listed but not traded here."""
    pairs = {spec.base + spec.quote: spec for spec in desk.engine.markets.values()}
    return _info(desk, [_spot_json(name, spec) for name, spec in pairs.items()])


def coin_exchange_info(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET dapi/v1/exchangeInfo``: coin-margined perpetuals, listed but not traded here."""
    bases = {spec.base: spec for spec in desk.engine.markets.values()}
    return _info(desk, [_coin_json(spec) for spec in bases.values()])


def exchange_info_of_nothing(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """The contracts of a market that is not there."""
    return _info(desk, [])


def nothing(desk: Desk, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """An empty list."""
    return []


def _info(desk: Desk, symbols: list[Json]) -> Json:
    return {
        "timezone": "UTC",
        "serverTime": desk.now_ms,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
        ],
        "exchangeFilters": [],
        "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
        "symbols": symbols,
    }


def _spot_json(name: str, spec: MarketSpec) -> Json:
    return {
        "symbol": name,
        "status": "TRADING",
        "baseAsset": spec.base,
        "quoteAsset": spec.quote,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": format(spec.tick, "f"),
                "maxPrice": text(spec.price * 1000, spec.tick),
                "tickSize": format(spec.tick, "f"),
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": format(spec.step, "f"),
                "maxQty": format(spec.max_qty, "f"),
                "stepSize": format(spec.step, "f"),
            },
            {"filterType": "NOTIONAL", "minNotional": "5", "applyMinToMarket": True},
        ],
    }


def _coin_json(spec: MarketSpec) -> Json:
    return {
        "symbol": f"{spec.base}USD_PERP",
        "pair": f"{spec.base}USD",
        "contractType": "PERPETUAL",
        "deliveryDate": 4_133_404_800_000,
        "onboardDate": 1_597_042_800_000,
        "contractStatus": "TRADING",
        "contractSize": 10,
        "marginAsset": spec.base,
        "baseAsset": spec.base,
        "quoteAsset": "USD",
        "pricePrecision": 4,
        "quantityPrecision": 0,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"],
        "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": format(spec.tick, "f"),
                "maxPrice": text(spec.price * 1000, spec.tick),
                "tickSize": format(spec.tick, "f"),
            },
            {"filterType": "LOT_SIZE", "minQty": "1", "maxQty": "100000", "stepSize": "1"},
        ],
    }


def _each(desk: Desk, params: Params, row: Callable[[Desk, MarketSpec], Json]) -> Json:
    symbol = params.optional("symbol")
    if symbol is not None:
        return row(desk, desk.engine.market(symbol))
    return [row(desk, spec) for spec in desk.engine.markets.values()]


def ticker_24h(desk: Desk, params: Params) -> Json:
    """``GET ticker/24hr``."""
    return _each(desk, params, _ticker_24h)


def _ticker_24h(desk: Desk, spec: MarketSpec) -> Json:
    price = text(desk.engine.prices[spec.id], spec.tick)
    return {
        "symbol": spec.id,
        "priceChange": "0",
        "priceChangePercent": "0",
        "weightedAvgPrice": price,
        "lastPrice": price,
        "lastQty": format(spec.step, "f"),
        "openPrice": price,
        "highPrice": price,
        "lowPrice": price,
        "volume": "1000000",
        "quoteVolume": text(desk.engine.prices[spec.id] * 1_000_000),
        "openTime": desk.now_ms - _DAY_MS,
        "closeTime": desk.now_ms,
        "firstId": 1,
        "lastId": 1,
        "count": 1,
    }


def ticker_price(desk: Desk, params: Params) -> Json:
    """``GET ticker/price``."""
    return _each(desk, params, _ticker_price)


def _ticker_price(desk: Desk, spec: MarketSpec) -> Json:
    return {"symbol": spec.id, "price": text(desk.engine.prices[spec.id], spec.tick), "time": desk.now_ms}


def book_ticker(desk: Desk, params: Params) -> Json:
    """``GET ticker/bookTicker``: one tick on either side of the last price."""
    return _each(desk, params, _book_ticker)


def _book_ticker(desk: Desk, spec: MarketSpec) -> Json:
    price = desk.engine.prices[spec.id]
    return {
        "symbol": spec.id,
        "bidPrice": text(price - spec.tick, spec.tick),
        "bidQty": format(spec.max_qty, "f"),
        "askPrice": text(price + spec.tick, spec.tick),
        "askQty": format(spec.max_qty, "f"),
        "time": desk.now_ms,
    }


def premium_index(desk: Desk, params: Params) -> Json:
    """``GET premiumIndex``: the mark price."""
    return _each(desk, params, _premium_index)


def _premium_index(desk: Desk, spec: MarketSpec) -> Json:
    mark = text(desk.engine.marks[spec.id])
    return {
        "symbol": spec.id,
        "markPrice": mark,
        "indexPrice": mark,
        "estimatedSettlePrice": mark,
        "lastFundingRate": "0.00010000",
        "interestRate": "0.00010000",
        "nextFundingTime": (desk.now_ms // _FUNDING_MS + 1) * _FUNDING_MS,
        "time": desk.now_ms,
    }


def depth(desk: Desk, params: Params) -> Json:
    """``GET depth``: a few levels around the last price."""
    spec = desk.engine.market(params.text("symbol"))
    price, qty = desk.engine.prices[spec.id], format(spec.max_qty, "f")

    def level(ticks: int) -> Json:
        return [text(price + spec.tick * Decimal(ticks), spec.tick), qty]

    return {
        "lastUpdateId": desk.now_ms,
        "E": desk.now_ms,
        "T": desk.now_ms,
        "bids": [level(-n) for n in range(1, _DEPTH_LEVELS + 1)],
        "asks": [level(n) for n in range(1, _DEPTH_LEVELS + 1)],
    }


def klines(desk: Desk, params: Params) -> Json:
    """``GET klines``: as if the price had always been what it is."""
    spec = desk.engine.market(params.text("symbol"))
    interval = params.text("interval")
    if interval[-1] not in _UNIT_MS or not interval[:-1].isdecimal() or int(interval[:-1]) < 1:
        raise Rejection(-1120, "Invalid interval.")
    step_ms = int(interval[:-1]) * _UNIT_MS[interval[-1]]
    count = min(params.whole("limit") or _KLINES_DEFAULT, _KLINES_MAX)
    until_ms = min(params.whole("endTime") or desk.now_ms, desk.now_ms)
    start_ms = params.whole("startTime")
    last_ms = until_ms // step_ms * step_ms
    first_ms = last_ms - (count - 1) * step_ms if start_ms is None else -(-start_ms // step_ms) * step_ms
    last_ms = min(last_ms, first_ms + (count - 1) * step_ms)
    price = text(desk.engine.prices[spec.id], spec.tick)
    return [
        [at_ms, price, price, price, price, "1000", at_ms + step_ms - 1, "1000", 1, "500", "500", "0"]
        for at_ms in range(first_ms, last_ms + 1, step_ms)
    ]
