"""What an exception of ccxt says about a request that changes something.

Three tables decide, in this order:

1. The exchange's own code, where there is one: a code that is known to mean "not executed", "executed
   before", or "outcome unknown".
2. The class: the outcome of an *OperationFailed* of ccxt (the network, an overloaded exchange) is unknown
   except where the table says otherwise; the exchange's other errors are refusals, of no known meaning
   unless the class has one. Only a code tells that an order can *never* be taken: all other refusals count
   as passing.
3. A bare *ExchangeError* without a code leaves the outcome unknown. A truncated answer with status 200
   arrives as one: it looks like a refusal, but the order was executed.

A request that certainly never left this machine cannot have been executed, no matter what was raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lockguard_ccxt._outcome import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["REFUSED_BY_CODE", "Doubt", "Verdict", "ccxt_errors", "classify", "exchange_code"]

_CLOSED = re.compile(r"\b418\b|banned until|calls are closed")
_OTHER_MODE = re.compile(r"position ?idx not match position mode|position side does not match", re.IGNORECASE)
_CODE = re.compile(r'"(?:code|retCode|ret_code)"\s*:\s*"?(-?\d+)"?')


class Doubt(Enum):
    """What an error leaves open."""

    NONE = "refused"
    """Nothing: the request was refused."""
    DUPLICATE = "an order of this name is there already"
    """Whose order it is: one of this client order id is there already."""
    OPEN = "unknown"
    """Everything: the request may have been executed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means.

    Attributes:
        doubt: what the error leaves open.
        refusal: why the request was refused; ``None`` while there is doubt.
        code: the exchange's code, or ``None``.
    """

    doubt: Doubt
    refusal: Refusal | None
    code: str | None


_CODES: Mapping[Refusal, tuple[str, ...]] = {
    Refusal.WOULD_TRIGGER: ("-2021", "-4142", "110092", "110093"),
    Refusal.REDUCE_ONLY: ("-2022", "110017"),
    Refusal.NOT_FOUND: ("-2011", "-2013", "110001", "34040"),
    # The market's own rules that a reduce-only order can break. Nothing else belongs here: only for these
    # is it known that the same order will not be taken tomorrow either. Not -1013: it stands for any filter.
    Refusal.INVALID: (
        "-1111",  # more digits than the market has
        "-4001",  # price below zero
        "-4002",  # price above the largest
        "-4003",  # amount of zero or below
        "-4004",  # amount below the smallest
        "-4005",  # amount above the largest
        "-4006",  # trigger below zero
        "-4007",  # trigger above the largest
        "-4013",  # price below the smallest
        "-4014",  # price off the tick
        "-4023",  # amount off the step
    ),
    # Rules whose bound moves with the price: in a crash the band of the book is passed for seconds.
    Refusal.PRICE: (
        "-4016",  # price above the band
        "-4024",  # price below the band
        "-4131",  # the best price is outside the band
        "-4164",  # worth less than the smallest order
        "110003",  # Bybit: price out of range
        "110094",  # Bybit: worth less than the smallest order
    ),
    Refusal.RATE_LIMITED: ("-1003", "-1015", "-5041", "10006", "10018", "10429"),
    Refusal.OVERLOADED: ("-1008", "-4149", "10019"),
    Refusal.CLOCK: ("-1021", "-5028", "10002"),
    Refusal.MARKET_CLOSED: ("-1016", "-4108", "-4140", "-4141", "110074", "30228"),
    Refusal.AUTHENTICATION: (
        "-1002",
        "-1005",
        "-1011",
        "-1022",
        "-1099",
        "-1109",
        "-1125",
        "-2008",
        "-2014",
        "-2015",
        "-2017",
        "-2023",
        "-4056",
        "-4057",
        "-4087",
        "-4088",
        "-4192",
        "-4400",
        "-4401",
        "-4402",
        "-4403",
        "10003",
        "10004",
        "10005",
        "10007",
        "10008",
        "10009",
        "10010",
        "10020",
        "10024",
        "10027",
        "10028",
        "10029",
        "33004",
        "100028",
        "110065",
        "110067",
        "110068",
        "110069",
    ),
    Refusal.POSITION_MODE: ("-4059", "-4060", "-4061", "-4062", "-4067", "-4068"),
    Refusal.LIMIT: ("-2025", "-2027", "-4045", "110009", "110020", "110021", "110022", "110023"),
    Refusal.CROWDED: ("-4118",),
    Refusal.FUNDS: (
        "-2018",
        "-2019",
        "-2024",
        "-2028",
        "-4050",
        "-4051",
        "110004",
        "110006",
        "110007",
        "110012",
        "110014",
        "110044",
        "110045",
        "110051",
        "110052",
        "110053",
    ),
}
REFUSED_BY_CODE: Mapping[str, Refusal] = {
    code: refusal for refusal, codes in _CODES.items() for code in codes
}
"""Every code of Binance and Bybit that is known to mean a refusal."""
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
    """The module of ccxt's error classes; imported when first needed, which takes a second or two."""
    try:
        return import_module("ccxt.base.errors")
    except ImportError as exc:
        raise ImportError("ccxt is not installed; pip install 'lockguard[ccxt]'") from exc


def exchange_code(exc: BaseException) -> str | None:
    """The exchange's own error code in an exception of ccxt; ``None`` if there is none."""
    match = _CODE.search(str(exc))
    return match[1] if match else None


def classify(exc: BaseException, *, sent: bool) -> Verdict:
    """Judge the error of a request that changes something.

    Args:
        exc: an exception of ccxt, or ``TimeoutError`` when the time limit passed.
        sent: whether the request may have left this machine.
    """
    code = exchange_code(exc)
    if not sent:
        return Verdict(Doubt.NONE, Refusal.BANNED if _closes(exc) else Refusal.NOT_SENT, code)
    if code is not None:
        if code in _DUPLICATE_CODES:
            return Verdict(Doubt.DUPLICATE, None, code)
        if code in _OPEN_CODES:
            return Verdict(Doubt.OPEN, None, code)
        if (known := REFUSED_BY_CODE.get(code)) is not None:
            return Verdict(Doubt.NONE, Refusal.BANNED if _closes(exc) else known, code)
    refusal = _refusal_by_class(exc, code)
    return Verdict(Doubt.OPEN if refusal is None else Doubt.NONE, refusal, code)


def _refusal_by_class(exc: BaseException, code: str | None) -> Refusal | None:
    """Why a request was refused, by the error's class; ``None`` if the class does not tell."""
    errors = ccxt_errors()
    if isinstance(exc, (errors.DDoSProtection, errors.RateLimitExceeded)):
        return Refusal.BANNED if _closes(exc) else Refusal.RATE_LIMITED
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
        (errors.MarketClosed, Refusal.MARKET_CLOSED),
    ):
        if isinstance(exc, kind):
            return refusal
    return Refusal.POSITION_MODE if _OTHER_MODE.search(str(exc)) else Refusal.UNRECOGNISED


def _closes(exc: BaseException) -> bool:
    """Whether an error says that the exchange accepts no calls of this account or address for a while."""
    return bool(_CLOSED.search(str(exc)))
