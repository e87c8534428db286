"""What an exception of ccxt says about a request that changes something.

Three tables decide, in this order:

1. The exchange's own code, where there is one: a code that is known to mean "not executed", "executed
   before", or "nobody knows".
2. The class: of what ccxt calls *OperationFailed* (the network, an overloaded exchange), nothing is known
   except where the table says so; the exchange's other refusals are refusals.
3. A bare *ExchangeError* without a code is unknown. A 200 whose body broke off arrives as one: it looks
   like a refusal, and the order was executed.

A request that certainly never left this machine cannot have been executed, whatever was raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lockguard_ccxt.outcome import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Doubt", "Verdict", "ccxt_errors", "classify", "exchange_code"]

_CODE = re.compile(r'"(?:code|retCode|ret_code)"\s*:\s*"?(-?\d+)"?')


class Doubt(Enum):
    """What an error leaves open."""

    NONE = "refused"
    DUPLICATE = "an order of this name is there already"
    OPEN = "unknown"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error says.

    Attributes:
        refusal: why it was refused, where there is no doubt.
        code: the exchange's code, or ``None``.
    """

    doubt: Doubt
    refusal: Refusal | None
    code: str | None


_REFUSED_BY_CODE: Mapping[str, Refusal] = {
    # Binance
    "-1003": Refusal.RATE_LIMITED,
    "-1008": Refusal.OVERLOADED,
    "-1015": Refusal.RATE_LIMITED,
    "-1021": Refusal.CLOCK,
    "-2011": Refusal.NOT_FOUND,
    "-2013": Refusal.NOT_FOUND,
    "-2018": Refusal.FUNDS,
    "-2019": Refusal.FUNDS,
    "-2021": Refusal.WOULD_TRIGGER,
    "-2022": Refusal.REDUCE_ONLY,
    "-4142": Refusal.WOULD_TRIGGER,
    "-5028": Refusal.CLOCK,
    # Bybit
    "10002": Refusal.CLOCK,
    "10006": Refusal.RATE_LIMITED,
    "10018": Refusal.RATE_LIMITED,
    "110001": Refusal.NOT_FOUND,
    "110004": Refusal.FUNDS,
    "110007": Refusal.FUNDS,
    "110012": Refusal.FUNDS,
    "110017": Refusal.REDUCE_ONLY,
    "110092": Refusal.WOULD_TRIGGER,
    "110093": Refusal.WOULD_TRIGGER,
}
_DUPLICATE_CODES = frozenset({"-4116", "110072", "110030"})
_OPEN_CODES = frozenset(
    {
        "-1000",  # unknown error while processing
        "-1001",  # internal error
        "-1006",  # unexpected response: execution status unknown
        "-1007",  # timeout: execution status unknown
        "10000",  # Bybit: server timeout
        "10016",  # Bybit: internal server error
    }
)


@lru_cache(maxsize=1)
def ccxt_errors() -> Any:
    """Ccxt's error classes, imported when first needed: that takes a second or two."""
    try:
        return import_module("ccxt.base.errors")
    except ImportError as exc:
        raise ImportError("ccxt is not installed; pip install 'lockguard[ccxt]'") from exc


def exchange_code(exc: BaseException) -> str | None:
    """The exchange's own error code out of an exception of ccxt, or ``None``."""
    match = _CODE.search(str(exc))
    return match[1] if match else None


def classify(exc: BaseException, *, sent: bool) -> Verdict:
    """What an error of a request that changes something says.

    Args:
        exc: an exception of ccxt, or ``TimeoutError`` when the time was up.
        sent: whether the request may have left this machine.
    """
    code = exchange_code(exc)
    if not sent:
        return Verdict(Doubt.NONE, Refusal.NOT_SENT, code)
    if code is not None:
        if code in _DUPLICATE_CODES:
            return Verdict(Doubt.DUPLICATE, None, code)
        if code in _OPEN_CODES:
            return Verdict(Doubt.OPEN, None, code)
        if (refusal := _REFUSED_BY_CODE.get(code)) is not None:
            return Verdict(Doubt.NONE, refusal, code)
    refusal = _refusal_by_class(exc, code)
    return Verdict(Doubt.OPEN if refusal is None else Doubt.NONE, refusal, code)


def _refusal_by_class(exc: BaseException, code: str | None) -> Refusal | None:
    """Why it was refused as far as the class tells; ``None`` when it does not tell."""
    errors = ccxt_errors()
    if isinstance(exc, (errors.DDoSProtection, errors.RateLimitExceeded)):
        return Refusal.RATE_LIMITED
    if isinstance(exc, errors.InvalidNonce):
        return Refusal.CLOCK
    if isinstance(exc, errors.OperationFailed) or not isinstance(exc, errors.ExchangeError):
        return None
    if type(exc) is errors.ExchangeError and code is None:
        return None
    for kind, refusal in (
        (errors.OrderImmediatelyFillable, Refusal.WOULD_TRIGGER),
        (errors.OrderNotFound, Refusal.NOT_FOUND),
        (errors.InsufficientFunds, Refusal.FUNDS),
        (errors.AuthenticationError, Refusal.AUTHENTICATION),
    ):
        if isinstance(exc, kind):
            return refusal
    return Refusal.INVALID
