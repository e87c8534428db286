"""Client order ids that are derived from the intent, not from the attempt.

An order whose answer was lost can be found again, and is not placed twice, only if every attempt in every
process gives it the same id. The id is made of the resource, the number of the intent (the row that says what
is about to be done) and the step: nothing random, nothing of this process. Python's ``hash`` of a text must
not be used here, as it differs between processes.
"""

from __future__ import annotations

import base64
import hashlib
from enum import StrEnum
from functools import lru_cache

from lockguard.errors import ConfigurationError

__all__ = ["CLIENT_ID_CHARS_MAX", "Step", "client_order_id"]

CLIENT_ID_CHARS_MAX = 36
"""Binance's limit, and Bybit's."""

_INTENT_MAX = 2**63 - 1
_DIGEST_BYTES = 10
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class Step(StrEnum):
    """What an order is for."""

    ENTRY = "entry"
    """It opens a position."""
    STOP = "stop"
    """It waits to close the position at a loss that was agreed to."""
    CLOSE = "close"
    """It closes the position now."""


_LETTERS = {Step.ENTRY: "e", Step.STOP: "s", Step.CLOSE: "c"}


def client_order_id(resource: str, intent: int, step: Step) -> str:
    """The client order id of one step of one intent, the same in every process.

    Its form is ``lge-<intent in base 36>-<80 bits of digest>``: an operator can tell our orders from others
    and an entry from a stop, and the digest keeps resources apart. At most 34 characters, only ``a-z``,
    ``0-9`` and ``-``.

    Args:
        resource: the resource, as :func:`~lockguard_ccxt.resource_key` returns it.
        intent: the intent's number; a new order for the same step (a stop at another price, say) is a new
            intent.
        step: what the order is for.

    Raises:
        ConfigurationError: the intent is below 0 or above 2**63 - 1.
    """
    if not 0 <= intent <= _INTENT_MAX:
        raise ConfigurationError(f"an intent's number must be from 0 to {_INTENT_MAX}, got {intent}")
    return _named(str(resource), intent, step)


@lru_cache(maxsize=256, typed=True)  # each id is needed when its order is intended, recorded and sent
def _named(resource: str, intent: int, step: Step) -> str:
    digest = hashlib.sha256(f"{resource}\0{intent}\0{step.value}".encode()).digest()[:_DIGEST_BYTES]
    tail = base64.b32encode(digest).decode().lower()
    return f"lg{_LETTERS[step]}-{_base36(intent)}-{tail}"


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
        if not number:
            return digits
