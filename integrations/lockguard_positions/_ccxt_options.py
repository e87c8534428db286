"""What the values of ccxt's options may be: ccxt checks none, and fails with the first request, or later.

An option outside the table is compared with ccxt's own default; without one it is passed on as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lockguard.errors import ConfigurationError
from lockguard.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_as_default", "check_value"]

_LEVERAGE_MAX = 200
_WINDOW_MAX_MS = 60_000  # Binance refuses every request with a longer one
_SPAN_MAX_MS = 600_000
_HOUR_MS = 3_600_000
_TYPES = ("spot", "margin", "swap", "future", "delivery", "option")
_SUB_TYPES = ("linear", "inverse")
_SHOWN_CHARS = 40


@dataclass(frozen=True, slots=True)
class _Kind:
    wanted: str
    fits: Callable[[Any], bool]


def check_value(key: str, value: Any) -> None:
    """Refuse a value that an option cannot have, if it is one of those that are known.

    Raises:
        ConfigurationError: the type or the range is wrong; the value is not echoed, as it may be a secret.
    """
    kind = _KINDS.get(key)
    if kind is not None and not kind.fits(value):
        raise ConfigurationError(f"option {key} must be {kind.wanted}")


def check_as_default(exchange: str, key: str, value: Any, default: object) -> None:
    """Refuse a value of another type than ccxt's own default for the option at an exchange.

    Raises:
        ConfigurationError: the type is another one; the value is not echoed.
    """
    for types, kind in _OF_DEFAULTS:
        if isinstance(default, types):
            if not kind.fits(value):
                shown = printable(key[:_SHOWN_CHARS])
                raise ConfigurationError(f"option {shown} must be {kind.wanted}, as ccxt's is for {exchange}")
            return


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _is_headers(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_text(name) and _is_text(value[name]) for name in value)


def _whole(lowest: int, highest: int, example: str, unit: str = "") -> _Kind:
    return _Kind(
        f"a whole number{unit} from {lowest} to {highest}; write {example}",
        lambda value: type(value) is int and lowest <= value <= highest,
    )


def _one_of(*words: str) -> _Kind:
    return _Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def _url_of(*schemes: str) -> _Kind:
    def fits(value: Any) -> bool:
        try:
            parts = urlsplit(value if _is_text(value) else "")
            return parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text may quote a password
            return False

    return _Kind(f"the URL of a proxy; write {schemes[0]}://host:port", fits)


_BOOLEAN = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXT = _Kind("text of printable characters; write digits as '\"5\"'", _is_text)
_KINDS = {
    "leverage": _whole(1, _LEVERAGE_MAX, "leverage=5"),
    "timeout": _whole(1, _SPAN_MAX_MS, "timeout=10000", " of milliseconds"),
    "recvWindow": _whole(1, _WINDOW_MAX_MS, "recvWindow=5000", " of milliseconds"),
    "timeDifference": _whole(-_HOUR_MS, _HOUR_MS, "timeDifference=0", " of milliseconds"),
    "rateLimit": _Kind(
        f"a number of milliseconds from 1 to {_SPAN_MAX_MS}; write rateLimit=50",
        lambda value: _is_number(value) and 1 <= value <= _SPAN_MAX_MS,
    ),
    "defaultType": _one_of(*_TYPES),
    "defaultSubType": _one_of(*_SUB_TYPES),
    "httpProxy": _url_of("http", "https"),
    "httpsProxy": _url_of("http", "https"),
    "socksProxy": _url_of("socks5", "socks5h", "socks4", "socks4a"),
    "headers": _Kind('a table of texts; write {"name": "value"}', _is_headers),
    **dict.fromkeys(("demo", "sandbox", "enableRateLimit", "adjustForTimeDifference"), _BOOLEAN),
    **dict.fromkeys(("portfolioMargin", "enableUnifiedAccount", "aiohttp_trust_env"), _BOOLEAN),
    **dict.fromkeys(("defaultSettle", "hostname", "userAgent", "brokerId"), _TEXT),
}
_OF_DEFAULTS = (
    (bool, _BOOLEAN),
    ((int, float), _Kind("a number", _is_number)),
    (str, _TEXT),
    (dict, _Kind("a table, a JSON object", lambda value: isinstance(value, dict))),
    (list, _Kind("a JSON list", lambda value: isinstance(value, list))),
)
