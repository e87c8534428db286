"""Finds symbols in logs, whatever their spelling: ``APTUSDT``, ``binance:APTUSDT``, ``APT-USDT-SWAP``.

All spellings of a perpetual are mapped to one: ccxt's (``APT/USDT:USDT``), Binance's and Bybit's
(``APTUSDT``), hummingbot's (``APT-USDT``), OKX's (``APT-USDT-SWAP``), Gate's (``APT_USDT``), KuCoin's
(``APTUSDTM``) and nautilus' (``APTUSDT-PERP.BINANCE``). A dated or inverse contract
(``BTC/USDT:USDT-250926``, ``BTC-USD-SWAP``) is a different instrument and keeps its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Named", "Spelling", "find_symbol", "plain_symbol"]

_QUOTES = "USDT|USDC|FDUSD|BUSD|USD"
_END = r"(?![\w/-]|:[A-Z])"
_UNIFIED = (
    rf"(?P<base>[A-Z0-9]{{1,20}})/(?P<quote>{_QUOTES})"
    r"(?::(?P<settle>[A-Z0-9]{2,10})(?P<rest>-\d{6}(?:-[\w-]+)?)?)?"
)
_PLAIN = rf"(?P<plain>(?=[A-Z0-9]*[A-Z])[A-Z0-9]{{1,20}}(?:{_QUOTES})(?:_(?:PERP|\d{{6}})|-PERP|M)?)"
_DASHED = (
    rf"(?P<dash_base>(?=[A-Z0-9]*[A-Z])[A-Z0-9]{{1,20}})(?:-|_(?=USD[TC]))(?P<dash_quote>{_QUOTES})"
    r"(?P<dash_rest>-(?:SWAP|PERP|\d{6}(?:-\d+-[CP])?))?"
)
_BY_BASE = r"(?P<by_base>(?=[A-Z0-9]*[A-Z])[A-Z0-9]{1,20}-?PERP)"
_SYMBOL = re.compile(
    rf"(?<![\w/])(?:(?P<venue>[a-z][a-z0-9_]{{2,20}}):)?(?P<name>{_UNIFIED}|{_DASHED}|{_PLAIN}|{_BY_BASE})"
    rf"(?:\.(?P<suffix>[A-Z][A-Z0-9_]{{2,20}})(?![\w.-]))?{_END}"
)
_VENUE_FIELD = re.compile(
    r"""\bexchange['"]?\s*[=:]\s*['"]?(?P<venue>[a-z][a-z0-9_]{2,20})\b""", re.IGNORECASE
)
_ON_VENUE = re.compile(r"\b(binance|binanceusdm|bybit|okx|kucoin|bitget|gateio|hyperliquid)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """A symbol, and its exchange if the text names one."""

    symbol: str
    exchange: str | None = None

    def __str__(self) -> str:
        return self.symbol if self.exchange is None else f"{self.exchange}:{self.symbol}"


_LINEAR = frozenset({"USDT", "USDC", "FDUSD", "BUSD"})


def plain_symbol(text: str) -> str:
    """The common spelling of a perpetual: ``APT/USDT:USDT`` and ``apt-usdt-swap`` become ``APTUSDT``."""
    name = text.strip().upper()
    name = re.sub(r"(?<=[A-Z])\.[A-Z][A-Z0-9_]+$", "", name)
    if match := re.fullmatch(_UNIFIED, name):
        linear = not match["rest"] and match["settle"] in {None, match["quote"]}
        return f"{match['base']}{match['quote']}" if linear else name
    if match := re.fullmatch(_DASHED, name):
        rest, linear = match["dash_rest"], match["dash_quote"] in _LINEAR
        plain = rest is None or (linear and rest in {"-SWAP", "-PERP"})
        return f"{match['dash_base']}{match['dash_quote']}" if plain else name
    if re.fullmatch(_PLAIN, name):
        return re.sub(rf"(?<=[A-Z0-9])({'|'.join(_LINEAR)})(?:-PERP|M)$", r"\1", name)
    return name


def find_symbol(text: str) -> Named | None:
    """The first symbol in a text, with its exchange if known; ``None`` if there is no symbol."""
    match = _SYMBOL.search(text)
    if match is None:
        return None
    venue: str | None = match["venue"] or match["suffix"]
    if venue is None and (named := _VENUE_FIELD.search(text) or _ON_VENUE.search(text)):
        venue = named[named.lastindex or 0]
    return Named(plain_symbol(match["name"]), None if venue is None else venue.lower())


class Spelling:
    """Finds one symbol in text, in any spelling."""

    def __init__(self, text: str) -> None:
        self.symbol = plain_symbol(re.sub(r"^[a-z]\w*:", "", text.strip()))
        split = re.fullmatch(rf"([A-Z0-9]+?)({_QUOTES})", self.symbol)
        spellings = [re.escape(self.symbol)]
        if split:
            base, quote = map(re.escape, split.groups())
            perpetual = r"(?:-SWAP|-PERP|M)?" if split[2] in _LINEAR else ""
            spellings.append(rf"{base}[/_-]?{quote}(?::{quote})?{perpetual}(?:\.[A-Z]\w+)?")
        self._pattern = re.compile(rf"(?<![\w/])(?:{'|'.join(spellings)}){_END}", re.IGNORECASE)

    def in_text(self, text: str) -> bool:
        """Whether the text names the symbol."""
        return self._pattern.search(text) is not None
