"""Masking signatures and credentials in a text.

ccxt puts the whole URL of a request, including its signature, into the error that it raises, and from there
it gets into logs, rows, alerts and bug reports. So errors are masked where they leave ccxt, and logs again.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from lockguard.text import hidden

__all__ = ["MASK", "mask_error", "mask_log", "masked"]

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
_OF_THE_ACCOUNT = ("apiKey", "secret", "password", "twofa", "privateKey", "token")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{6,}")
_LOG_IN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s/\"]*@")


def masked(text: str) -> str:
    """The text with signatures, keys and the credentials of URLs replaced by :data:`MASK`."""
    text = _LOG_IN.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", text)
    return _ASSIGNED.sub(rf"\g<name>{MASK}", text)


def mask_error(exc: BaseException, exchange: Any) -> None:
    """Mask an error of ccxt, and those that led to it, in place.

    ccxt's message has the request's whole URL, and with it the signature, and quotes what the exchange
    answered: some exchanges, and proxies before them, name the key that they refuse.

    Args:
        exc: the error.
        exchange: the instance of ccxt that raised it, whose keys are masked too.
    """
    secrets = _secrets_of(exchange)
    seen: set[int] = set()
    waiting: list[BaseException | None] = [exc]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        each.args = tuple(masked(hidden(arg, *secrets)) if isinstance(arg, str) else arg for arg in each.args)
        waiting += (each.__cause__, each.__context__)


class _MaskedRecords(logging.Filter):
    """Masks what ccxt logs at DEBUG: each request with its key and its signature, and each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanges: WeakSet[Any] = WeakSet()

    def filter(self, record: logging.LogRecord) -> bool:
        with suppress(TypeError, ValueError):  # a record that cannot be formatted, which logging reports
            secrets = {secret for exchange in tuple(self.exchanges) for secret in _secrets_of(exchange)}
            record.msg, record.args = masked(hidden(record.getMessage(), *secrets)), ()
        return True


_MASKED_RECORDS = _MaskedRecords()


def mask_log(exchange: Any) -> None:
    """Mask what the instance's class of ccxt logs; again is harmless."""
    logger = getattr(exchange, "logger", None)
    if isinstance(logger, logging.Logger):
        _MASKED_RECORDS.exchanges.add(exchange)
        logger.addFilter(_MASKED_RECORDS)


def _secrets_of(exchange: Any) -> list[str]:
    given = (getattr(exchange, name, None) for name in _OF_THE_ACCOUNT)
    return [text for text in given if isinstance(text, str)]
