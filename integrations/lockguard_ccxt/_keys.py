"""One name for each position, in whatever spelling its symbol is given.

A lock protects nothing when one part of a bot locks ``BTCUSDT`` and another ``BTC/USDT:USDT``. So the key of
a resource is made in one place. A perpetual that is settled in its quote currency has its plain name,
``binance:BTCUSDT``; every other market, whose plain name could be mistaken for that, has its full unified
name: spot ``binance:BTC/USDT``, coin-margined ``binance:BTC/USD:BTC``, dated
``binance:BTC/USDT:USDT-250926``.

``binance`` with futures switched on and ``binanceusdm`` trade the same account, so they are one venue. Two
accounts at one venue each have a label, which is part of the name: ``binance@scalper:BTCUSDT``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lockguard._lease import Resource, parse_resource
from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_ccxt._markets import listing_of, short_name, venue_name

__all__ = ["account_label", "account_name", "could_be_listed", "resource_key", "unified_symbol"]

_LABEL_CHARS_MAX = 32
_NAME_CHARS_MAX = 40
_LABEL = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_LABEL_CHARS_MAX - 1}}}")
_UNIFIED = re.compile(r"^[^/:\s]+/[^/:\s-]+(?::[^/:\s-]+(?:-\S+)?)?$")
_PLAIN = re.compile(r"^(?P<base>[A-Z0-9]+?)(?P<quote>USDT|USDC|FDUSD|BUSD)(?:_(?P<delivery>\d{6}))?$")
_COIN_MARGINED = re.compile(r"^(?P<base>[A-Z0-9]+?)USD_(?P<kind>PERP|\d{6})$")


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
        ConfigurationError: the name does not stand for exactly one market.
    """
    symbol = unified_symbol(exchange, market) if isinstance(market, str) else str(market["symbol"])
    return parse_resource(f"{venue_name(exchange)}:{short_name(symbol)}")


def unified_symbol(exchange: Any, name: str) -> str:
    """The unified symbol of a market in any spelling; takes and raises the same as :func:`resource_key`."""
    listing = listing_of(exchange)
    return _read_symbol(name) if listing is None else listing.market(name).symbol


def could_be_listed(name: str) -> bool:
    """Whether a name has the form of a listed market's name, whether or not the market exists."""
    try:
        _read_symbol(name)
    except ConfigurationError:
        return False
    return name == name.strip().upper() and len(name) <= _NAME_CHARS_MAX


def _read_symbol(name: str) -> str:
    text = name.strip().upper()
    if _UNIFIED.match(text):
        return text
    if match := _PLAIN.match(text):
        delivery = f"-{match['delivery']}" if match["delivery"] else ""
        return f"{match['base']}/{match['quote']}:{match['quote']}{delivery}"
    if match := _COIN_MARGINED.match(text):
        delivery = "" if match["kind"] == "PERP" else f"-{match['kind']}"
        return f"{match['base']}/USD:{match['base']}{delivery}"
    raise ConfigurationError(
        f"symbol {name[:60]!r} cannot be read without the exchange's markets; write it as BTC/USDT:USDT,"
        " or give the ccxt exchange after load_markets()"
    )
