"""Symbols as logs spell them: ``APTUSDT``, ``APT/USDT:USDT``, ``binance:APTUSDT``.

One spelling stands for all of a perpetual. A dated contract (``BTC/USDT:USDT-250926``) is another thing and
keeps its name.
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
_PLAIN = rf"(?P<plain>(?=[A-Z0-9]*[A-Z])[A-Z0-9]{{1,20}}(?:{_QUOTES})(?:_(?:PERP|\d{{6}}))?)"
_SYMBOL = re.compile(rf"(?<![\w/])(?:(?P<venue>[a-z][a-z0-9_]{{2,20}}):)?(?:{_UNIFIED}|{_PLAIN}){_END}")
_VENUE_FIELD = re.compile(
    r"""\bexchange['"]?\s*[=:]\s*['"]?(?P<venue>[a-z][a-z0-9_]{2,20})\b""", re.IGNORECASE
)
_ON_VENUE = re.compile(r"\b(binance|binanceusdm|bybit|okx|kucoin|bitget|gateio|hyperliquid)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Named:
    """A symbol, and the exchange if the text names one."""

    symbol: str
    exchange: str | None = None

    def __str__(self) -> str:
        return self.symbol if self.exchange is None else f"{self.exchange}:{self.symbol}"


def plain_symbol(text: str) -> str:
    """One spelling for all of a perpetual: ``APT/USDT:USDT`` and ``apt/usdt`` are ``APTUSDT``."""
    name = text.strip().upper()
    match = re.fullmatch(_UNIFIED, name)
    if match is None or match["rest"] or match["settle"] not in {None, match["quote"]}:
        return name
    return f"{match['base']}{match['quote']}"


def find_symbol(text: str) -> Named | None:
    """The first symbol in a text, and its exchange."""
    match = _SYMBOL.search(text)
    if match is None:
        return None
    venue: str | None = match["venue"]
    if venue is None and (named := _VENUE_FIELD.search(text) or _ON_VENUE.search(text)):
        venue = named[named.lastindex or 0]
    name = match[0].partition(":")[2] if match["venue"] else match[0]
    return Named(plain_symbol(name), None if venue is None else venue.lower())


class Spelling:
    """Finds one symbol in text, however it is spelt."""

    def __init__(self, text: str) -> None:
        self.symbol = plain_symbol(re.sub(r"^[a-z]\w*:", "", text.strip()))
        split = re.fullmatch(rf"([A-Z0-9]+?)({_QUOTES})", self.symbol)
        spellings = [re.escape(self.symbol)]
        if split:
            base, quote = map(re.escape, split.groups())
            spellings.append(rf"{base}[/_-]?{quote}(?::{quote})?")
        self._pattern = re.compile(rf"(?<![\w/])(?:{'|'.join(spellings)}){_END}", re.IGNORECASE)

    def in_text(self, text: str) -> bool:
        """Whether the text names it."""
        return self._pattern.search(text) is not None
