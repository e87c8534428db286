"""A market as one value, found once by any of its names.

A name is looked up here and never by ccxt: asked for ``BTC-P``, ccxt takes it for an expired option and
raises a ``TypeError``; asked for ``BTCUSDC`` at Bybit, it answers with the spot market of that name though a
perpetual was meant. The lock's own name of a market goes before the exchange's, so that what was read from a
row leads back to the market that the row was written for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lockguard._lease import Resource, parse_resource
from lockguard.errors import ConfigurationError
from lockguard_ccxt._money import MarketRules, decimal_of, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Listing", "Market", "UnknownMarket", "listing_of", "short_name", "venue_name"]

_VENUES = {"binanceusdm": "binance", "binancecoinm": "binance"}

_UNIFIED = re.compile(r"^(?P<base>[^/:\s]+)/(?P<quote>[^/:\s-]+)(?::(?P<settle>[^/:\s-]+)(?P<rest>-\S+)?)?$")
_SHOWN_CHARS_MAX = 60
_ONE = Decimal(1)
_KIND_SAID = re.compile(r"(\.P$|[-_.:/]?(PERPETUAL|PERP|SWAP)($|[-_.:/].*$))")
_QUOTES = ("USDT", "USDC", "USD")


class UnknownMarket(ConfigurationError):
    """The exchange lists no market of that name, as far as its markets were loaded."""


@dataclass(frozen=True, slots=True)
class Market:
    """One market of one account: what a name stands for, found once and then handed on.

    Attributes:
        account: as locks and rows have it, such as ``binance`` or ``binance@scalper``.
        symbol: the unified symbol, such as ``BTC/USDT:USDT``.
        name: as locks and rows have it, such as ``BTCUSDT``.
        kind: ``spot``, ``swap``, ``future`` or ``option``.
        settle: the coin that it is margined and settled in; ``None`` for spot.
        contract_size: what one contract stands for: of the base currency if linear, of the quote if inverse.
        linear: whether profit is paid in the quote currency; ``False`` also for spot.
        inverse: whether it is paid in the base currency.
        active: whether it can be traded now.
        steps: what :attr:`rules` are read by, when they are first asked for.
    """

    account: str
    symbol: str
    name: str
    kind: str
    settle: str | None
    contract_size: Decimal
    linear: bool
    inverse: bool
    active: bool
    steps: Callable[[], MarketRules] = field(repr=False, compare=False)

    @property
    def resource(self) -> Resource:
        """What guards the account's positions in it.

        Raises:
            ConfigurationError: no lock can be called so.
        """
        return parse_resource(f"{self.account}:{self.name}")

    @property
    def rules(self) -> MarketRules:
        """In which steps it is traded.

        Raises:
            ConfigurationError: the exchange does not give them in a way that is understood.
        """
        return self.steps()

    @property
    def refusal(self) -> str | None:
        """Why no positions are kept here, in one line with the remedy; ``None`` if they are.

        A quantity is in the base currency everywhere. Where the exchange counts in something else, an order
        of the same number would be another order, ten or a hundred times as large.
        """
        match self.kept_out:
            case None:
                return None
            case "inverse":
                what = f"is inverse: a contract is {_plain(self.contract_size)} of its quote currency"
            case "contract size":
                what = f"counts in contracts of {_plain(self.contract_size)}"
            case _:
                what = f"is a market of type {self.kind}"
        return (
            f"{self.symbol} {what}; positions are kept in linear contracts of one unit of the base currency,"
            " such as BTC/USDT:USDT"
        )

    @property
    def kept_out(self) -> str | None:
        """Which class of markets without positions it is in, such as ``inverse``; ``None`` if in none."""
        if self.inverse:
            return "inverse"
        if self.kind not in {"swap", "future"} or not self.linear:
            return self.kind
        return "contract size" if self.contract_size != _ONE else None

    def check(self) -> None:
        """Refuse a market that positions are not kept in.

        Raises:
            ConfigurationError: its quantities are not in the base currency, or it has no positions.
        """
        if (why := self.refusal) is not None:
            raise ConfigurationError(why)


def _market_of(found: Mapping[str, Any], account: str, steps: Callable[[], MarketRules]) -> Market:
    """A ccxt market, typed. What ccxt leaves out is read from the symbol."""
    symbol = str(found["symbol"])
    match = _UNIFIED.match(symbol)
    settle = found.get("settle") or (match["settle"] if match else None)
    quote = found.get("quote") or (match["quote"] if match else None)
    kind = found.get("type") or (
        "spot" if settle is None else "future" if match and match["rest"] else "swap"
    )
    linear, inverse = found.get("linear"), found.get("inverse")
    return Market(
        account=account,
        symbol=symbol,
        name=short_name(symbol),
        kind=str(kind),
        settle=None if settle is None else str(settle),
        contract_size=decimal_of(found.get("contractSize")) or _ONE,
        linear=bool(linear) if linear is not None else settle is not None and settle == quote,
        inverse=bool(inverse) if inverse is not None else settle is not None and settle != quote,
        active=found.get("active") is not False,
        steps=steps,
    )


def venue_name(exchange: Any) -> str:
    """The account's venue: a ccxt exchange or its id, variants of one account under one name.

    The label of an account stays as it is: ``binanceusdm@scalper`` gives ``binance@scalper``.
    """
    name = exchange if isinstance(exchange, str) else str(exchange.id)
    venue, at, label = name.strip().partition("@")
    lowered = venue.lower()
    return f"{_VENUES.get(lowered, lowered)}{at}{label}"


def short_name(symbol: str) -> str:
    """The plain name of a perpetual settled in its quote currency; any other symbol as it is."""
    match = _UNIFIED.match(symbol)
    if match and match["settle"] == match["quote"] and not match["rest"]:
        return f"{match['base']}{match['quote']}"
    return symbol


class Listing:
    """The markets of an exchange by all their names.

    Args:
        exchange: a ccxt exchange with its markets loaded. It is not kept, as listings are kept by exchange.
    """

    def __init__(self, exchange: Any) -> None:
        self._exchange_id = str(exchange.id)
        self._markets: Mapping[str, Any] = exchange.markets
        self._by_id: Mapping[str, Any] = exchange.markets_by_id or {}
        self._precision_mode: object = getattr(exchange, "precisionMode", None)
        self._by_name: dict[str, list[str]] = {}
        for symbol in self._markets:
            self._by_name.setdefault(short_name(symbol), []).append(symbol)
        self._found: dict[str, Market] = {}

    def market(self, name: str) -> Market:
        """The market of a name: a unified symbol, the lock's name, or the exchange's own.

        Raises:
            UnknownMarket: there is none.
            ConfigurationError: there are several.
        """
        known = self._found.get(name)
        if known is None:
            known = self._typed(self._look_up(name))
            self._check_alone(known.name)
            self._found[name] = known  # only names that exist: what strangers send does not fill the memory
        return known

    @property
    def settle_coins(self) -> tuple[str, ...]:
        """What the linear contracts are settled in."""
        coins = (m.get("settle") for m in self._markets.values() if m.get("contract") and m.get("linear"))
        return tuple(sorted({str(coin) for coin in coins if coin}))

    def kept_out(self) -> dict[str, tuple[str, ...]]:
        """The contracts that no positions are kept in, by class."""
        found: dict[str, list[str]] = {}
        for symbol in self._markets:
            market = self._typed(self._of(symbol))
            if market.kept_out is not None and market.kind != "spot":
                found.setdefault(market.kept_out, []).append(symbol)
        return {name: tuple(sorted(symbols)) for name, symbols in sorted(found.items())}

    def _typed(self, found: Mapping[str, Any]) -> Market:
        steps = cache(partial(steps_of, self._exchange_id, self._precision_mode, found))
        return _market_of(found, venue_name(self._exchange_id), steps)

    def _look_up(self, name: str) -> Mapping[str, Any]:
        if name in self._markets:
            return self._of(name)
        if symbols := self._by_name.get(name):
            return self._of(symbols[0])
        candidates = self._by_id.get(name) or ()
        if isinstance(candidates, dict):
            candidates = [candidates]
        if candidates:
            return min(candidates, key=_rank)
        # Where there are futures only, the pair stands for its perpetual.
        base, slash, quote = name.partition("/")
        if slash and f"{base}/{quote}:{quote}" in self._markets:
            return self._of(f"{base}/{quote}:{quote}")
        raise UnknownMarket(f"{self._exchange_id} has no market {_shown(name)}; {self._suggestion(name)}")

    def _check_alone(self, name: str) -> None:
        if len(symbols := self._by_name.get(name, ())) > 1:
            raise ConfigurationError(
                f"{self._exchange_id}: {' and '.join(symbols)} are both called {name} by locks and rows,"
                " which could not tell them apart; neither is traded"
            )

    def _of(self, symbol: str) -> Mapping[str, Any]:
        # A market that ccxt has under a symbol names itself; tests and old versions leave that out.
        found: Mapping[str, Any] = self._markets[symbol]
        return found if isinstance(found, dict) and "symbol" in found else {"symbol": symbol}

    def _suggestion(self, name: str) -> str:
        """What another platform means by a name, if that is listed. It is only said, never traded."""
        text = name[:_SHOWN_CHARS_MAX].upper()
        plain = re.sub(r"[^A-Z0-9]", "", _KIND_SAID.sub("", text.rpartition(":")[2] or text))
        for guess in (plain, f"{plain}T", *(f"{plain}{quote}" for quote in _QUOTES)):
            if symbols := self._by_name.get(guess):
                return f"if you mean {symbols[0]}, write {guess} or {symbols[0]}"
        return "write the unified symbol, such as BTC/USDT:USDT"


def listing_of(exchange: Any) -> Listing | None:
    """The listing of a ccxt exchange, made anew when its markets were loaded anew; ``None`` before that."""
    markets = getattr(exchange, "markets", None)
    if not markets:
        return None
    try:
        kept = _LISTINGS.get(exchange)
    except TypeError:  # it cannot be kept by
        return Listing(exchange)
    if kept is None or kept[0] is not markets:
        kept = (markets, Listing(exchange))
        _LISTINGS[exchange] = kept
    return kept[1]


_LISTINGS: WeakKeyDictionary[Any, tuple[Any, Listing]] = WeakKeyDictionary()


def _rank(market: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Of markets of one name, a linear perpetual goes first, then any contract: positions are guarded."""
    contract = bool(market.get("swap") or market.get("future") or market.get("contract"))
    return not (market.get("swap") and market.get("linear")), not contract, bool(market.get("option"))


def _shown(name: str) -> str:
    return repr(name) if len(name) <= _SHOWN_CHARS_MAX else f"{name[:_SHOWN_CHARS_MAX]!r}..."


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
