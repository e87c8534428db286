"""Masking signatures and credentials in a text.

ccxt puts the whole URL of a request, including its signature, into the error that it raises, and from there
it gets into logs, rows, alerts and bug reports. So errors are masked where they leave ccxt, and logs again.
"""

from __future__ import annotations

import re

__all__ = ["MASK", "masked"]

MASK = "***"

_NAMES = (
    "signature|sign|api[_-]?key|secret|api[_-]?secret|secret[_-]?key|passphrase|password|listen[_-]?key|"
    "access[_-]?token|private[_-]?key|twofa|authorization|x-mbx-apikey|x-bapi-(?:api-key|sign)|"
    "[a-z]{2,4}-access-(?:key|sign|passphrase)|kc-api-(?:key|sign|passphrase)|api-sign"
)
_ASSIGNED = re.compile(
    rf"""(?P<name>(?<![A-Za-z0-9])(?:{_NAMES})(?:["']?\s*(?:=|%3D|:)\s*["']?|["']\s*,\s*["']))"""
    r"""(?P<value>[^\s&"',;)}\]]{6,})""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
_LOG_IN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]*@")


def masked(text: str) -> str:
    """The text with signatures, keys and the credentials of URLs replaced by :data:`MASK`."""
    text = _LOG_IN.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _ASSIGNED.sub(rf"\g<name>{MASK}", text)
