"""The public endpoints: the clock, the contracts, the prices."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_lab.exchange.rejections import Rejection
from lockguard_lab.exchange.render import market_json, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard_lab.exchange.desk import RequestContext
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.params import Params
    from lockguard_lab.exchange.render import Json

__all__ = [
    "agg_trades",
    "book_ticker",
    "depth",
    "exchange_info",
    "exchange_info_of_nothing",
    "funding_info",
    "funding_rates",
    "klines",
    "mark_row",
    "nothing",
    "open_interest",
    "ping",
    "premium_index",
    "quote_row",
    "server_time",
    "spot_exchange_info",
    "ticker_24h",
    "ticker_price",
    "ticker_row",
    "trades",
]

_DAY_MS = 86_400_000
_FUNDING_MS = 28_800_000
_DEPTH_LEVELS = 5
_SECOND_MS = 1000
_TRADES_DEFAULT = 500
_TRADES_MAX = 1000
_FUNDING_DEFAULT = 100
_FUNDING_RATE = "0.00010000"
_KLINES_DEFAULT = 500
_KLINES_MAX = 1500
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS, "M": 30 * _DAY_MS}


def ping(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET ping``."""
    return {}


def server_time(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET time``."""
    return {"serverTime": context.now_ms}


def exchange_info(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET exchangeInfo`` of USD-M or COIN-M."""
    venue = context.venue
    return _info(context, [market_json(spec, venue.listing(spec.id)) for spec in context.listed()])


def spot_exchange_info(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET api/v3/exchangeInfo``: the same pairs on the spot market, listed but not traded here."""
    pairs = {spec.pair: spec for spec in context.listed()}
    return _info(context, [_spot_json(name, spec) for name, spec in pairs.items()])


def exchange_info_of_nothing(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``exchangeInfo`` of a market that this exchange does not have: no contracts."""
    return _info(context, [])


def nothing(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """An empty list: the answer for spot and margin data that this exchange does not have."""
    return []


def _info(context: RequestContext, symbols: list[Json]) -> Json:
    return {
        "timezone": "UTC",
        "serverTime": context.now_ms,
        "rateLimits": [
            {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 2400},
            {"rateLimitType": "ORDERS", "interval": "MINUTE", "intervalNum": 1, "limit": 1200},
        ],
        "exchangeFilters": [],
        "assets": [
            {"asset": asset, "marginAvailable": True, "autoAssetExchange": "-10000"}
            for asset in context.account.assets(inverse=context.inverse)
        ],
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


def _each(context: RequestContext, params: Params, row: Callable[[RequestContext, MarketSpec], Json]) -> Json:
    symbol = params.optional("symbol")
    if symbol is not None:
        found = row(context, context.market(symbol))
        return [found] if context.inverse else found
    return [row(context, spec) for spec in context.listed()]


def ticker_24h(context: RequestContext, params: Params) -> Json:
    """``GET ticker/24hr``."""
    return _each(context, params, ticker_row)


def ticker_row(context: RequestContext, spec: MarketSpec) -> dict[str, Json]:
    """One contract in ``ticker/24hr``."""
    price = text(context.venue.prices[spec.id], spec.tick)
    return {
        "symbol": spec.id,
        "priceChange": "0",
        "priceChangePercent": "0",
        "weightedAvgPrice": price,
        "pair": spec.pair,
        "lastPrice": price,
        "lastQty": format(spec.step, "f"),
        "openPrice": price,
        "highPrice": price,
        "lowPrice": price,
        "volume": "1000000",
        "baseVolume" if spec.inverse else "quoteVolume": text(
            spec.worth(Decimal(1_000_000), context.venue.prices[spec.id])
        ),
        "openTime": context.now_ms - _DAY_MS,
        "closeTime": context.now_ms,
        "firstId": 1,
        "lastId": 1,
        "count": 1,
    }


def ticker_price(context: RequestContext, params: Params) -> Json:
    """``GET ticker/price``."""
    return _each(context, params, _ticker_price)


def _ticker_price(context: RequestContext, spec: MarketSpec) -> Json:
    return {
        "symbol": spec.id,
        "price": text(context.venue.prices[spec.id], spec.tick),
        "time": context.now_ms,
    }


def book_ticker(context: RequestContext, params: Params) -> Json:
    """``GET ticker/bookTicker``: one tick on either side of the last price."""
    return _each(context, params, quote_row)


def quote_row(context: RequestContext, spec: MarketSpec) -> dict[str, Json]:
    """One contract in ``ticker/bookTicker``."""
    price = context.venue.prices[spec.id]
    return {
        "symbol": spec.id,
        "bidPrice": text(price - spec.tick, spec.tick),
        "bidQty": format(spec.max_qty, "f"),
        "askPrice": text(price + spec.tick, spec.tick),
        "askQty": format(spec.max_qty, "f"),
        "time": context.now_ms,
    }


def premium_index(context: RequestContext, params: Params) -> Json:
    """``GET premiumIndex``: the mark price."""
    return _each(context, params, mark_row)


def mark_row(context: RequestContext, spec: MarketSpec) -> dict[str, Json]:
    """One contract in ``premiumIndex``."""
    mark = text(context.venue.marks[spec.id])
    return {
        "symbol": spec.id,
        "pair": spec.pair,
        "markPrice": mark,
        "indexPrice": mark,
        "estimatedSettlePrice": mark,
        "lastFundingRate": _FUNDING_RATE,
        "interestRate": "0.00010000",
        "nextFundingTime": (context.now_ms // _FUNDING_MS + 1) * _FUNDING_MS,
        "time": context.now_ms,
    }


def depth(context: RequestContext, params: Params) -> Json:
    """``GET depth``: a few levels around the last price."""
    spec = context.market(params.text("symbol"))
    price, qty = context.venue.prices[spec.id], format(spec.max_qty, "f")

    def level(ticks: int) -> Json:
        return [text(price + spec.tick * Decimal(ticks), spec.tick), qty]

    return {
        "lastUpdateId": context.venue.book_id(spec.id),
        "E": context.now_ms,
        "T": context.now_ms,
        "bids": [level(-n) for n in range(1, _DEPTH_LEVELS + 1)],
        "asks": [level(n) for n in range(1, _DEPTH_LEVELS + 1)],
    }


def klines(context: RequestContext, params: Params) -> Json:
    """``GET klines``: as if the price had never changed."""
    spec = context.market(params.text("symbol"))
    interval = params.text("interval")
    if interval[-1] not in _UNIT_MS or not interval[:-1].isdecimal() or int(interval[:-1]) < 1:
        raise Rejection(-1120, "Invalid interval.")
    step_ms = int(interval[:-1]) * _UNIT_MS[interval[-1]]
    count = min(params.whole("limit") or _KLINES_DEFAULT, _KLINES_MAX)
    until_ms = min(params.whole("endTime") or context.now_ms, context.now_ms)
    start_ms = params.whole("startTime")
    last_ms = until_ms // step_ms * step_ms
    first_ms = last_ms - (count - 1) * step_ms if start_ms is None else -(-start_ms // step_ms) * step_ms
    last_ms = min(last_ms, first_ms + (count - 1) * step_ms)
    price = text(context.venue.prices[spec.id], spec.tick)
    return [
        [at_ms, price, price, price, price, "1000", at_ms + step_ms - 1, "1000", 1, "500", "500", "0"]
        for at_ms in range(first_ms, last_ms + 1, step_ms)
    ]


def trades(context: RequestContext, params: Params) -> Json:
    """``GET trades`` and ``historicalTrades``: one a second, at the present price."""
    spec = context.market(params.text("symbol"))
    price, qty = text(context.venue.prices[spec.id], spec.tick), format(spec.step, "f")
    worth = text(spec.worth(spec.step, context.venue.prices[spec.id]))
    return [
        {
            "id": at_ms // _SECOND_MS,
            "price": price,
            "qty": qty,
            "baseQty" if spec.inverse else "quoteQty": worth,
            "time": at_ms,
            "isBuyerMaker": False,
        }
        for at_ms in _seconds(context, params)
    ]


def agg_trades(context: RequestContext, params: Params) -> Json:
    """``GET aggTrades``: one a second, at the present price."""
    spec = context.market(params.text("symbol"))
    price, qty = text(context.venue.prices[spec.id], spec.tick), format(spec.step, "f")
    return [
        {
            "a": at_ms // _SECOND_MS,
            "p": price,
            "q": qty,
            "f": at_ms // _SECOND_MS,
            "l": at_ms // _SECOND_MS,
            "T": at_ms,
            "m": False,
        }
        for at_ms in _seconds(context, params)
    ]


def _seconds(context: RequestContext, params: Params) -> range:
    """The times of the requested last trades, oldest first."""
    count = min(params.whole("limit") or _TRADES_DEFAULT, _TRADES_MAX)
    until_ms = min(params.whole("endTime") or context.now_ms, context.now_ms) // _SECOND_MS * _SECOND_MS
    start_ms = params.whole("startTime")
    if start_ms is None:
        return range(until_ms - (count - 1) * _SECOND_MS, until_ms + 1, _SECOND_MS)
    first_ms = -(-start_ms // _SECOND_MS) * _SECOND_MS
    return range(first_ms, min(until_ms, first_ms + (count - 1) * _SECOND_MS) + 1, _SECOND_MS)


def funding_rates(context: RequestContext, params: Params) -> Json:
    """``GET fundingRate``: the same rate every eight hours."""
    symbol = params.optional("symbol")
    specs = context.listed() if symbol is None else [context.market(symbol)]
    count = min(params.whole("limit") or _FUNDING_DEFAULT, _TRADES_MAX)
    until_ms = min(params.whole("endTime") or context.now_ms, context.now_ms) // _FUNDING_MS * _FUNDING_MS
    start_ms = params.whole("startTime")
    first_ms = until_ms - (count - 1) * _FUNDING_MS
    if start_ms is not None:
        first_ms = max(-(-start_ms // _FUNDING_MS) * _FUNDING_MS, 0)
    instants = range(first_ms, until_ms + 1, _FUNDING_MS)[:count]
    rows: list[Json] = [
        {
            "symbol": spec.id,
            "fundingTime": at_ms,
            "fundingRate": _FUNDING_RATE,
            "markPrice": text(context.venue.marks[spec.id]),
        }
        for spec in specs
        for at_ms in instants
    ]
    return rows[:count]


def funding_info(context: RequestContext, params: Params) -> Json:  # noqa: ARG001 - one signature for all
    """``GET fundingInfo``: every contract pays every eight hours."""
    return [
        {
            "symbol": spec.id,
            "adjustedFundingRateCap": "0.02000000",
            "adjustedFundingRateFloor": "-0.02000000",
            "fundingIntervalHours": 8,
            "disclaimer": False,
        }
        for spec in context.listed()
    ]


def open_interest(context: RequestContext, params: Params) -> Json:
    """``GET openInterest`` of one contract."""
    spec = context.market(params.text("symbol"))
    return {"symbol": spec.id, "pair": spec.pair, "openInterest": "1000000", "time": context.now_ms}
