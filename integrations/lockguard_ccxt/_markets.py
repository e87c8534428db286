"""A market as one value, found once by any of its names.

Names are looked up here and never by ccxt: ccxt takes ``BTC-P`` for an expired option and raises a
``TypeError``, and for ``BTCUSDC`` at Bybit it returns the spot market where a perpetual is meant. The lock's
name of a market takes precedence over the exchange's, so that a name read from a row leads back to the
market that the row was written for.
"""

from __future__ import annotations

import re
import string
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
_CAPITALS = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_SHOWN_CHARS_MAX = 60
_ONE = Decimal(1)
_KIND_SAID = re.compile(r"(\.P$|[-_.:/]?(PERPETUAL|PERP|SWAP)($|[-_.:/].*$))")
_QUOTES = ("USDT", "USDC", "USD")


class UnknownMarket(ConfigurationError):
    """The exchange lists no market of that name, according to the markets loaded last."""


@dataclass(frozen=True, slots=True)
class Market:
    """One market of one account.

    Attributes:
        account: its name in locks and rows, such as ``binance`` or ``binance@scalper``.
        symbol: the unified symbol, such as ``BTC/USDT:USDT``.
        name: the market's name in locks and rows, such as ``BTCUSDT``.
        kind: ``spot``, ``swap``, ``future`` or ``option``.
        settle: the coin that the market is margined and settled in; ``None`` for spot.
        contract_size: the size of one contract, in the base currency if linear, in the quote if inverse.
        linear: whether profit is paid in the quote currency; ``False`` also for spot.
        inverse: whether profit is paid in the base currency.
        active: whether the market can be traded now.
        steps: computes :attr:`rules` when they are first needed.
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
        """The resource that guards the account's positions in this market.

        Raises:
            ConfigurationError: the market's name cannot be part of a lock's name.
        """
        return parse_resource(f"{self.account}:{self.name}")

    @property
    def rules(self) -> MarketRules:
        """The steps and limits in which the market is traded.

        Raises:
            ConfigurationError: the exchange gives the steps in a form that is not understood.
        """
        return self.steps()

    @property
    def refusal(self) -> str | None:
        """Why no positions are kept in this market, in one line with the remedy; ``None`` if they are.

        Quantities are in the base currency everywhere. Where the exchange counts in another unit, an order of
        the same number would have another size, ten or a hundred times as large.
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
        """The reason why no positions are kept, as a class such as ``inverse``; ``None`` if they are."""
        if self.inverse:
            return "inverse"
        if self.kind not in {"swap", "future"} or not self.linear:
            return self.kind
        return "contract size" if self.contract_size != _ONE else None

    def check(self) -> None:
        """Raise if no positions are kept in this market.

        Raises:
            ConfigurationError: its quantities are not in the base currency, or it has no positions.
        """
        if (why := self.refusal) is not None:
            raise ConfigurationError(why)


def _market_of(found: Mapping[str, Any], account: str, steps: Callable[[], MarketRules]) -> Market:
    """Parse a ccxt market. What ccxt leaves out is derived from the symbol."""
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
    """The venue's name of a ccxt exchange or its id; variants that trade one account have one name.

    The label of an account is kept: ``binanceusdm@scalper`` gives ``binance@scalper``.
    """
    name = exchange if isinstance(exchange, str) else str(exchange.id)
    venue, at, label = name.strip().partition("@")
    lowered = venue.lower()
    return f"{_VENUES.get(lowered, lowered)}{at}{label}"


def in_capitals(name: str) -> str:
    """With capitals in place of a to z; other letters, whose capitals may be those of a to z, stay."""
    return name.translate(_CAPITALS)


def short_name(symbol: str) -> str:
    """The plain name of a perpetual settled in its quote currency; any other symbol as it is."""
    match = _UNIFIED.match(symbol)
    if match and match["settle"] == match["quote"] and not match["rest"]:
        return f"{match['base']}{match['quote']}"
    return symbol


class Listing:
    """The markets of an exchange by all their names.

    Args:
        exchange: a ccxt exchange with its markets loaded. No reference to it is kept, as it is the weak key
            under which listings are cached.
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
            UnknownMarket: the exchange lists no such market.
            ConfigurationError: several markets have the same name in locks and rows.
        """
        known = self._found.get(name)
        if known is None:
            known = self._typed(self._look_up(name))
            self._check_alone(known.name)
            self._found[name] = known  # existing names only: unknown ones cannot fill memory
        return known

    def only(self, name: str) -> Market:
        """As :meth:`market`, in any case, for a name that stands for one market; another one is not guessed.

        A spot market has its unified symbol only: the id that it shares with a perpetual, or will when one is
        listed, is the perpetual's name.

        Raises:
            UnknownMarket: the exchange lists no such market.
            ConfigurationError: the name stands for several markets, or for a spot market.
        """
        several: list[str] = []
        for text in dict.fromkeys((name, in_capitals(name))):
            if text in self._markets:
                return self.market(text)
            symbols = self._by_name.get(text) or self._ids_of(text)
            contracts = [each for each in symbols if ":" in each]
            if len(contracts) == 1:
                return self.market(contracts[0])
            several = several or contracts or symbols
            if contracts:
                break
        if several:
            told = " and ".join(sorted(several)[:3])
            raise ConfigurationError(
                f"{self._exchange_id}: {_shown(name)} is a name of {told}, and not of one perpetual;"
                " write the unified symbol of the market that is meant"
            )
        raise UnknownMarket(f"{self._exchange_id} has no market {_shown(name)}; {self._suggestion(name)}")

    def _ids_of(self, name: str) -> list[str]:
        found = self._by_id.get(name) or ()
        known = [found] if isinstance(found, dict) else found
        return list(dict.fromkeys(str(one["symbol"]) for one in known))

    @property
    def settle_coins(self) -> tuple[str, ...]:
        """The coins that the linear contracts are settled in."""
        coins = (m.get("settle") for m in self._markets.values() if m.get("contract") and m.get("linear"))
        return tuple(sorted({str(coin) for coin in coins if coin}))

    def kept_out(self) -> dict[str, tuple[str, ...]]:
        """The unified symbols of the contracts in which no positions are kept, by class."""
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
        # On an exchange with futures only, the pair stands for its perpetual.
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
        # ccxt's markets have their symbol as a field; tests and old versions leave it out.
        found: Mapping[str, Any] = self._markets[symbol]
        return found if isinstance(found, dict) and "symbol" in found else {"symbol": symbol}

    def _suggestion(self, name: str) -> str:
        """Suggest the market that another platform means by a name; only part of the error, never traded."""
        text = name[:_SHOWN_CHARS_MAX].upper()
        plain = re.sub(r"[^A-Z0-9]", "", _KIND_SAID.sub("", text.rpartition(":")[2] or text))
        for guess in (plain, f"{plain}T", *(f"{plain}{quote}" for quote in _QUOTES)):
            if symbols := self._by_name.get(guess):
                return f"if you mean {symbols[0]}, write {guess} or {symbols[0]}"
        return "write the unified symbol, such as BTC/USDT:USDT"


def listing_of(exchange: Any) -> Listing | None:
    """The listing of a ccxt exchange, rebuilt when its markets were reloaded; ``None`` before any load."""
    markets = getattr(exchange, "markets", None)
    if not markets:
        return None
    try:
        kept = _LISTINGS.get(exchange)
    except TypeError:  # it cannot be a weak key
        return Listing(exchange)
    if kept is None or kept[0] is not markets:
        kept = (markets, Listing(exchange))
        _LISTINGS[exchange] = kept
    return kept[1]


_LISTINGS: WeakKeyDictionary[Any, tuple[Any, Listing]] = WeakKeyDictionary()


def _rank(market: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """Sort key among markets of one name: linear perpetuals first, then other contracts, options last."""
    contract = bool(market.get("swap") or market.get("future") or market.get("contract"))
    return not (market.get("swap") and market.get("linear")), not contract, bool(market.get("option"))


def _shown(name: str) -> str:
    return repr(name) if len(name) <= _SHOWN_CHARS_MAX else f"{name[:_SHOWN_CHARS_MAX]!r}..."


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
