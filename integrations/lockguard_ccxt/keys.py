"""One name for one position, however it is spelt.

A lock protects nothing when the signal's code locks ``BTCUSDT`` and the sync pass ``BTC/USDT:USDT``. The key
of a resource is therefore made in one place. A perpetual that is settled in its quote currency is called by
its plain name, ``binance:BTCUSDT``; everything else, whose plain name would be mistaken for it, by its full
unified name: spot ``binance:BTC/USDT``, coin-margined ``binance:BTC/USD:BTC``, dated
``binance:BTC/USDT:USDT-250926``.

``binance`` with futures switched on and ``binanceusdm`` trade the same account, so they are one venue.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lockguard.errors import ConfigurationError
from lockguard.lease import Resource, parse_resource

__all__ = ["resource_key", "unified_symbol", "venue_name"]

_VENUES = {"binanceusdm": "binance", "binancecoinm": "binance"}

_UNIFIED = re.compile(r"^(?P<base>[^/:\s]+)/(?P<quote>[^/:\s-]+)(?::(?P<settle>[^/:\s-]+)(?P<rest>-\S+)?)?$")
_PLAIN = re.compile(r"^(?P<base>[A-Z0-9]+?)(?P<quote>USDT|USDC|FDUSD|BUSD)(?:_(?P<delivery>\d{6}))?$")
_COIN_MARGINED = re.compile(r"^(?P<base>[A-Z0-9]+?)USD_(?P<kind>PERP|\d{6})$")


def venue_name(exchange: Any) -> str:
    """The account's venue: a ccxt exchange or its id, variants of one account under one name."""
    name = exchange if isinstance(exchange, str) else str(exchange.id)
    lowered = name.strip().lower()
    return _VENUES.get(lowered, lowered)


def resource_key(exchange: Any, market: str | Mapping[str, Any]) -> Resource:
    """The resource that guards a position.

    Args:
        exchange: a ccxt exchange, or its id. With its markets loaded it knows every name that it trades
            under; an id alone knows unified names and Binance's plain ones.
        market: a unified symbol, an exchange's own name, or a ccxt market.

    Raises:
        ConfigurationError: the name is not that of one market.
    """
    symbol = unified_symbol(exchange, market) if isinstance(market, str) else str(market["symbol"])
    return parse_resource(f"{venue_name(exchange)}:{_short(symbol)}")


def unified_symbol(exchange: Any, name: str) -> str:
    """The unified symbol of a market, however it is spelt; takes and raises as :func:`resource_key`."""
    return _loaded_symbol(exchange, name) if getattr(exchange, "markets", None) else _read_symbol(name)


def _short(symbol: str) -> str:
    """The plain name of a perpetual settled in its quote currency; any other symbol as it is."""
    match = _UNIFIED.match(symbol)
    if match and match["settle"] == match["quote"] and not match["rest"]:
        return f"{match['base']}{match['quote']}"
    return symbol


def _loaded_symbol(exchange: Any, name: str) -> str:
    """What ccxt calls the market, or a clear error.

    A plain name may belong to spot and futures alike. ccxt then takes its default type, which is spot on
    many exchanges: a perpetual of that name wins here, as a position is what is guarded.
    """
    candidates = (exchange.markets_by_id or {}).get(name)
    perpetual = [m for m in candidates or () if m.get("swap") and m.get("linear")]
    if len(perpetual) == 1:
        return str(perpetual[0]["symbol"])
    try:
        return str(exchange.market(name)["symbol"])
    except Exception as exc:  # ccxt raises BadSymbol, a class that is expensive to import for one message
        if type(exc).__name__ != "BadSymbol":
            raise
        raise ConfigurationError(
            f"{exchange.id} has no market {name!r}; write the unified symbol, such as BTC/USDT:USDT"
        ) from exc


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
        f"symbol {name!r} cannot be read without the exchange's markets; write it as BTC/USDT:USDT,"
        " or give the ccxt exchange after load_markets()"
    )
