"""One name for each position, in whatever spelling its symbol is given.

A lock protects nothing when one part of a bot locks ``BTCUSDT`` and another ``BTC/USDT:USDT``. So the key of
a resource is made in one place. A perpetual that is settled in its quote currency has its plain name,
``binance:BTCUSDT``; every other market, whose plain name could be mistaken for that, has its full unified
name: spot ``binance:BTC/USDT``, coin-margined ``binance:BTC/USD:BTC``, dated
``binance:BTC/USDT:USDT-250926``.

``BTCUSDT.P``, as TradingView spells a perpetual, is that perpetual too. A plain name is always the
perpetual's, also where a spot market has the same id.

``binance`` with futures switched on and ``binanceusdm`` trade the same account, so they are one venue. Two
accounts at one venue each have a label, which is part of the name: ``binance@scalper:BTCUSDT``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from lockguard._lease import Resource, parse_resource
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_ccxt._markets import in_capitals, listing_of, short_name, venue_name

__all__ = [
    "account_label",
    "account_name",
    "could_be_listed",
    "lock_name",
    "reads_alike",
    "resource_key",
    "resource_keys",
    "unified_symbol",
]

_LABEL_CHARS_MAX = 32
_NAME_CHARS_MAX = 40
_SHOWN_CHARS = 60
_PERPETUAL = ".P"
_LABEL = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_LABEL_CHARS_MAX - 1}}}")
_UNIFIED = re.compile(r"^[^/:\s]+/[^/:\s-]+(?::[^/:\s-]+(?:-\S+)?)?$")
_PLAIN = re.compile(r"^(?P<base>[A-Z0-9]+?)(?P<quote>USDT|USDC|FDUSD|BUSD)(?:_(?P<delivery>[0-9]{6}))?$")
_COIN_MARGINED = re.compile(r"^(?P<base>[A-Z0-9]+?)USD_(?P<kind>PERP|[0-9]{6})$")


def account_name(exchange: Any, account: str | None) -> str:
    """The name of one account in locks, rows and reports, such as ``binance@scalper``.

    Raises:
        ConfigurationError: the label cannot be part of a name.
    """
    venue = venue_name(exchange)
    return venue if account is None else f"{venue}@{account_label(account)}"


def account_label(text: str) -> str:
    """Check the label of an account, and return it.

    Two spellings of one label would be two names, and so two locks for one account. Hence only one spelling
    is allowed: lower case, without characters that have a meaning in lock names, rows or shells.

    Raises:
        ConfigurationError: it is not a text, is empty or too long, or has other characters.
    """
    if not isinstance(text, str):
        raise ConfigurationError(f"account label is {kind_of(text)}; give a text, such as 'scalper'")
    if not _LABEL.fullmatch(text):
        shown = repr(text) if len(text) <= _LABEL_CHARS_MAX else f"{text[:_LABEL_CHARS_MAX]!r}..."
        if "://" in text or "@" in text:
            shown = "(not shown, as it may be a URL)"
        raise ConfigurationError(
            f"account label {shown} cannot be part of a name; write 1 to {_LABEL_CHARS_MAX} of a-z, 0-9, -"
            " and _, such as 'scalper'"
        )
    return text


def resource_key(exchange: Any, market: str | Mapping[str, Any]) -> Resource:
    """The resource that guards a position.

    Args:
        exchange: a ccxt exchange, or its id. An exchange with its markets loaded resolves every name it
            trades under; an id alone resolves unified names and Binance's plain ones.
        market: a unified symbol, an exchange's own name, or a ccxt market.

    Raises:
        ConfigurationError: the name does not stand for exactly one market, or would be read as another one
            where no markets are loaded.
    """
    if isinstance(market, str):
        symbol = unified_symbol(exchange, market)
        if not isinstance(exchange, str):
            _require_one_meaning(exchange.id, market.strip(), symbol)
    else:
        symbol = str(market["symbol"])
    return parse_resource(f"{venue_name(exchange)}:{short_name(symbol)}")


def resource_keys(*exchanges: Any) -> Callable[[str], str]:
    """One name for each position, in whatever spelling, for ``resource_key=`` of a guard.

    What it returns takes a name such as ``Binance:aptusdt``, ``binance:APT/USDT:USDT`` or
    ``BINANCE:APTUSDT.P`` and gives ``binance:APTUSDT``; the label of an account stays, as in
    ``binance@scalper:APTUSDT``. It never guesses: a name that does not stand for exactly one market is
    refused with ``ConfigurationError``, and so is a venue that is not among ``exchanges``. A spot market is
    named by its unified symbol, since its id is the name of the perpetual.

    Args:
        *exchanges: a ccxt exchange, synchronous or not, for each venue: its markets have to be loaded before
            the first name is looked up, and are looked at anew after each load, so that what is not listed is
            refused. Or an exchange's id, where no markets are at hand: then only names of which the form says
            all are read, whether or not the market exists: unified symbols, and Binance's plain ones.

    Raises:
        ConfigurationError: none is given, what is no exchange, or two of one venue.
    """
    known: dict[str, Any] = {}
    for exchange in exchanges:
        if isinstance(exchange, type) or not isinstance(getattr(exchange, "id", exchange), str):
            raise ConfigurationError(
                f"resource_keys() got {kind_of(exchange)}; give a ccxt exchange, or its id, such as 'binance'"
            )
        venue = venue_name(exchange)
        if not venue or not set(venue).isdisjoint("@:"):
            raise ConfigurationError(
                f"resource_keys() got {venue[:_SHOWN_CHARS]!r}, which is no exchange's id; write 'binance',"
                " without the label of an account, which the names have"
            )
        if venue in known:
            raise ConfigurationError(
                f"two exchanges are the venue {venue!r}, as binance and binanceusdm are; give one of them"
            )
        known[venue] = exchange
    if not known:
        raise ConfigurationError("resource_keys() got no exchange; give one, or its id, for each venue")

    def resource_key_of(name: str) -> str:
        place, colon, symbol = name.partition(":")
        venue, at, label = place.partition("@")
        venue = venue_name(venue)
        if not colon or venue not in known:
            raise ConfigurationError(
                f"{name[:_SHOWN_CHARS]!r} names no market of {' or '.join(known)}; write"
                f" {next(iter(known))}:BTCUSDT, and lock other things under a guard without resource_key="
            )
        account = f"{venue}@{account_label(label)}" if at else venue
        return f"{account}:{_exact_name(known[venue], symbol.strip())}"

    return resource_key_of


def _exact_name(exchange: Any, text: str) -> str:
    """The name in locks of the one market that a text stands for."""
    plain = text[: -len(_PERPETUAL)] if text.upper().endswith(_PERPETUAL) else text
    if isinstance(exchange, str):
        symbol, kind = _read_exactly(plain), ""
    else:
        if (listing := listing_of(exchange)) is None:
            raise ConfigurationError(
                f"the markets of {exchange.id} are not loaded; await exchange.load_markets() before the first"
                " lock"
            )
        market = listing.only(plain)
        symbol, kind = market.symbol, market.kind
        _require_one_meaning(exchange.id, plain, symbol)
    if plain is not text and (kind or _kind_of(symbol)) != "swap":
        raise ConfigurationError(f"{text[:_SHOWN_CHARS]!r} means a perpetual, and {symbol} is none")
    return short_name(symbol)


def _require_one_meaning(exchange_id: str, text: str, symbol: str) -> None:
    """Refuse the name of a market that is read as another one where no markets are at hand.

    An exchange may name a coin otherwise than ccxt does: Bitmex's ``XBTUSDT`` is ``BTC/USDT:USDT``. A process
    that knows the exchange by its id only would lock ``bitmex:XBTUSDT``, beside the one that has the markets.
    """
    try:
        read = _read_exactly(text)
    except ConfigurationError:
        return
    if short_name(read) != short_name(symbol):
        raise ConfigurationError(
            f"{exchange_id}: {text[:_SHOWN_CHARS]!r} is its name of {symbol}, and reads as {read} where no"
            f" markets are loaded; write {symbol}"
        )


def _read_exactly(text: str) -> str:
    """The unified symbol that a text says, where no markets tell which one is meant.

    Its name has to be read as the same symbol again: ``AB/USD:USD`` would have that of ``A/BUSD:BUSD``. And
    what is written in both cases may be a market that is listed so, as Hyperliquid's ``kPEPE/USDC:USDC`` or
    Bitget's ``omni/USDT:USDT``.
    """
    symbol = _read_symbol(text)
    if not text.isascii() or text not in (text.lower(), text.upper()):
        raise _unread(text)
    try:
        again = _read_symbol(short_name(symbol))
    except ConfigurationError:
        again = ""
    if again != symbol:
        raise _unread(text)
    return symbol


def _kind_of(symbol: str) -> str:
    settle = symbol.partition(":")[2]
    return "swap" if settle and "-" not in settle else "other"


def unified_symbol(exchange: Any, name: str) -> str:
    """The unified symbol of a market in any spelling; takes what :func:`resource_key` takes.

    Raises:
        ConfigurationError: the name does not stand for exactly one market.
    """
    listing = listing_of(exchange)
    return _read_exactly(name.strip()) if listing is None else listing.market(name).symbol


def lock_name(exchange: Any, name: str) -> str:
    """The name in locks of a market, by a name of which the meaning does not change when markets are loaded.

    An exchange's own name is read by its form while there are no markets, and by them afterwards: ``XBTUSDT``
    would be two locks in one process. So would ``BTCUSDT`` on the day when a perpetual is listed beside spot.

    Raises:
        ConfigurationError: the name does not stand for exactly one market, or only the markets tell which one
            and they are not loaded.
    """
    symbol = unified_symbol(exchange, name)
    if listing_of(exchange) is None and not reads_alike(name):
        raise ConfigurationError(
            f"{exchange.id}: only its markets tell what {name[:_SHOWN_CHARS]!r} is; load them first, or write"
            " the unified symbol of a contract, such as BTC/USDT:USDT"
        )
    if ":" not in symbol:
        _require_one_meaning(exchange.id, name, symbol)
    return short_name(symbol)


def reads_alike(name: str) -> bool:
    """Whether a name is the unified symbol of a contract, which is the same with and without markets."""
    return ":" in name and _UNIFIED.match(name.strip()) is not None


def could_be_listed(name: str) -> bool:
    """Whether a name has the form of a listed market's name, whether or not the market exists."""
    try:
        _read_symbol(name)
    except ConfigurationError:
        return False
    return name == name.strip().upper() and len(name) <= _NAME_CHARS_MAX


def _read_symbol(name: str) -> str:
    text = in_capitals(name.strip())
    if _UNIFIED.match(text):
        return text
    if match := _PLAIN.match(text):
        delivery = f"-{match['delivery']}" if match["delivery"] else ""
        return f"{match['base']}/{match['quote']}:{match['quote']}{delivery}"
    if match := _COIN_MARGINED.match(text):
        delivery = "" if match["kind"] == "PERP" else f"-{match['kind']}"
        return f"{match['base']}/USD:{match['base']}{delivery}"
    raise _unread(name)


def _unread(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"symbol {name[:_SHOWN_CHARS]!r} cannot be read without the exchange's markets; write it as"
        " BTC/USDT:USDT, or give the ccxt exchange after load_markets()"
    )
