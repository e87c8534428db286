"""The market streams: what a stream's name means, and its events.

Their numbers are those of the REST API (:mod:`lockguard_lab.exchange.public`), under other names. A feed has
its place in time, so each subscription has its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, cast

from lockguard_lab.exchange import public
from lockguard_lab.exchange.desk import RequestContext
from lockguard_lab.exchange.model import MAIN
from lockguard_lab.exchange.params import Params
from lockguard_lab.exchange.rejections import Rejection

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lockguard_lab.exchange.desk import Desk
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.render import Json

__all__ = ["Feed", "feed_for"]

_Levels: TypeAlias = "list[list[Json]]"
_Source: TypeAlias = Callable[[RequestContext, "MarketSpec"], Iterator["Json"]]

_NAME = re.compile(
    r"(?P<symbol>[a-z0-9_]+)@(?P<kind>bookTicker|trade|aggTrade|ticker|miniTicker|forceOrder|markPrice(?:@1s)?"
    r"|kline_[1-9][0-9]?[mhdwM]|depth(?:5|10|20)?(?:@(?:100|250|500)ms)?)"
)
_ALL = re.compile(r"!(?P<kind>bookTicker|(?:ticker|miniTicker|forceOrder|markPrice)@arr(?:@1s)?)")


@dataclass(frozen=True, slots=True)
class Feed:
    """One subscription to a market stream.

    Attributes:
        symbol: the contract's id; ``None`` for all of the market.
        every_s: how often its events are sent.
        at_once: whether they are also sent at each change of the price.
        events: gives the events that are due.
    """

    symbol: str | None
    every_s: float
    at_once: bool
    events: Callable[[], list[Json]]


def feed_for(name: str, desk: Desk, *, inverse: bool) -> Feed | None:
    """The feed of a stream's name; ``None`` if this exchange has no such stream or contract."""
    context = RequestContext(desk, MAIN, inverse=inverse)
    if (match := _ALL.fullmatch(name)) is not None:
        return _of_all(match["kind"], context)
    if (match := _NAME.fullmatch(name)) is None:
        return None
    symbol, kind = match["symbol"].upper(), match["kind"]
    try:
        context.market(symbol)
    except Rejection:
        return None
    every_s, source = _source(kind)
    pull = _puller(source, context, symbol)
    return Feed(symbol, every_s, _at_once(kind), pull)


def _of_all(kind: str, context: RequestContext) -> Feed:
    one = kind.replace("@arr", "")
    every_s, source = _source(one)
    as_list = "@arr" in kind
    pulls: dict[str, Callable[[], list[Json]]] = {}

    def events() -> list[Json]:
        found: list[Json] = []
        for spec in context.listed():
            if spec.id not in pulls:
                pulls[spec.id] = _puller(source, context, spec.id)
            found += pulls[spec.id]()
        return [found] if as_list and found else found

    return Feed(None, every_s, _at_once(kind), events)


def _at_once(kind: str) -> bool:
    """Whether events are also sent at each change: one of the book that is missed leaves levels behind."""
    return kind.startswith(("bookTicker", "depth"))


def _puller(source: _Source, context: RequestContext, symbol: str) -> Callable[[], list[Json]]:
    """Takes the next events of a contract; none while it is not listed."""
    running: list[Iterator[Json]] = []

    def pull() -> list[Json]:
        try:
            spec = context.market(symbol)
        except Rejection:
            return []
        if not running:
            running.append(source(context, spec))
        event = next(running[0])
        return [] if event is None else [event]

    return pull


def _source(kind: str) -> tuple[float, _Source]:
    """How often a stream of this kind sends, in seconds, and what."""
    name, _, speed = kind.partition("@")
    if name.startswith("depth"):
        every_s = float(speed.removesuffix("ms") or 250) / 1000
        levels = name.removeprefix("depth")
        return every_s, _depth_of(int(levels)) if levels else _depth_changes
    if name.startswith("kline_"):
        return 0.25, _klines_of(name.removeprefix("kline_"))
    return {
        "bookTicker": (1.0, _quotes),
        "trade": (1.0, _trades),
        "aggTrade": (1.0, _agg_trades),
        "ticker": (2.0, _tickers),
        "miniTicker": (2.0, _mini_tickers),
        "forceOrder": (60.0, _silence),
        "markPrice": (1.0 if speed else 3.0, _marks),
    }[name]


def _head(name: str, context: RequestContext, spec: MarketSpec) -> dict[str, Json]:
    pair: dict[str, Json] = {"ps": spec.pair} if spec.inverse else {}
    return {"e": name, "E": context.now_ms, "s": spec.id, **pair}


def _silence(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:  # noqa: ARG001 - one signature for all
    """Nobody is liquidated here."""
    while True:
        yield None


def _quotes(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    while True:
        row = public.quote_row(context, spec)
        yield _head("bookTicker", context, spec) | {
            "u": context.venue.book_id(spec.id),
            "T": row["time"],
            "b": row["bidPrice"],
            "B": row["bidQty"],
            "a": row["askPrice"],
            "A": row["askQty"],
        }


def _marks(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    while True:
        row = public.mark_row(context, spec)
        yield _head("markPriceUpdate", context, spec) | {
            "p": row["markPrice"],
            "i": row["indexPrice"],
            "P": row["estimatedSettlePrice"],
            "r": row["lastFundingRate"],
            "T": row["nextFundingTime"],
        }


def _mini_tickers(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    while True:
        yield _head("24hrMiniTicker", context, spec) | _day(context, spec)


def _tickers(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    while True:
        row = public.ticker_row(context, spec)
        yield (
            _head("24hrTicker", context, spec)
            | _day(context, spec)
            | {
                "p": row["priceChange"],
                "P": row["priceChangePercent"],
                "w": row["weightedAvgPrice"],
                "Q": row["lastQty"],
                "O": row["openTime"],
                "C": row["closeTime"],
                "F": row["firstId"],
                "L": row["lastId"],
                "n": row["count"],
            }
        )


def _day(context: RequestContext, spec: MarketSpec) -> dict[str, Json]:
    row = public.ticker_row(context, spec)
    return {
        "c": row["lastPrice"],
        "o": row["openPrice"],
        "h": row["highPrice"],
        "l": row["lowPrice"],
        "v": row["volume"],
        "q": row["baseVolume" if spec.inverse else "quoteVolume"],
    }


def _seconds(context: RequestContext, spec: MarketSpec) -> Iterator[Mapping[str, Json] | None]:
    """The market's trade of each second, once."""
    last: Json = None
    while True:
        (trade,) = cast("Sequence[Mapping[str, Json]]", public.agg_trades(context, _ask(spec, limit="1")))
        yield None if trade["a"] == last else trade
        last = trade["a"]


def _agg_trades(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    for trade in _seconds(context, spec):
        yield None if trade is None else {**_head("aggTrade", context, spec), **trade}


def _trades(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    for trade in _seconds(context, spec):
        yield (
            None
            if trade is None
            else _head("trade", context, spec)
            | {
                "T": trade["T"],
                "t": trade["a"],
                "p": trade["p"],
                "q": trade["q"],
                "X": "MARKET",
                "m": trade["m"],
            }
        )


def _klines_of(interval: str) -> _Source:
    def klines(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
        last: dict[str, Json] = {}
        while True:
            ((at_ms, first, high, low, price, volume, until_ms, worth, count, bought, paid, _),) = cast(
                "Sequence[Sequence[Json]]",
                public.klines(context, _ask(spec, limit="1", interval=interval)),
            )
            if last and at_ms != last["t"]:
                yield _head("kline", context, spec) | {"k": last | {"x": True}}
            last = {
                "t": at_ms,
                "T": until_ms,
                "s": spec.id,
                "i": interval,
                "f": 1,
                "L": 1,
                "o": first,
                "c": price,
                "h": high,
                "l": low,
                "v": volume,
                "n": count,
                "x": False,
                "q": worth,
                "V": bought,
                "Q": paid,
                "B": "0",
            }
            yield _head("kline", context, spec) | {"k": last}

    return klines


def _depth_of(levels: int) -> _Source:
    """The top of the book, whole in each event."""

    def top(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
        for last_id, new_id, bids, asks in _books(context, spec):
            yield _depth_event(context, spec, last_id, new_id, bids[:levels], asks[:levels])

    return top


def _depth_changes(context: RequestContext, spec: MarketSpec) -> Iterator[Json]:
    """What changed in the book since the event before, and what is there now."""
    old: tuple[list[Json], list[Json]] = ([], [])
    for last_id, new_id, bids, asks in _books(context, spec):
        bid_changes, ask_changes = (
            [*([price, "0"] for price in before if price not in [p for p, _ in now]), *now]
            for before, now in zip(old, (bids, asks), strict=True)
        )
        yield _depth_event(context, spec, last_id, new_id, bid_changes, ask_changes)
        old = [p for p, _ in bids], [p for p, _ in asks]


def _books(context: RequestContext, spec: MarketSpec) -> Iterator[tuple[int, int, _Levels, _Levels]]:
    """The book at each event, with the number of the update before and its own."""
    last_id = context.venue.book_id(spec.id)
    while True:
        new_id = context.venue.update_book(spec.id)
        book = cast("Mapping[str, _Levels]", public.depth(context, _ask(spec)))
        yield last_id, new_id, book["bids"], book["asks"]
        last_id = new_id


def _depth_event(
    context: RequestContext, spec: MarketSpec, last_id: int, new_id: int, bids: _Levels, asks: _Levels
) -> Json:
    return _head("depthUpdate", context, spec) | {
        "T": context.now_ms,
        "U": last_id + 1,
        "u": new_id,
        "pu": last_id,
        "b": bids,
        "a": asks,
    }


def _ask(spec: MarketSpec, **more: str) -> Params:
    return Params({"symbol": spec.id, **more})
