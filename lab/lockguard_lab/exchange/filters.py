"""The exchange's rules for one order: pure functions that raise the exchange's own refusal."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_lab.exchange.model import ZERO, Side
from lockguard_lab.exchange.rejections import Rejection, illegal

if TYPE_CHECKING:
    from lockguard_lab.exchange.markets import MarketSpec

__all__ = [
    "ALGO_ORDERS_MAX",
    "BAND_DOWN",
    "BAND_UP",
    "check_band",
    "check_client_id",
    "check_notional",
    "check_price",
    "check_quantity",
    "number",
]

ALGO_ORDERS_MAX = 10
"""How many algo orders may wait in one contract: ``MAX_NUM_ALGO_ORDERS``."""
BAND_UP = Decimal("1.0500")
BAND_DOWN = Decimal("0.9500")
"""How far beyond the mark price a limit may be on the side that fills it: ``PERCENT_PRICE``."""

CLIENT_ID_CHARS_MAX = 36
_CLIENT_ID = re.compile(r"^[.A-Z:/a-z0-9_-]+$")
_NUMBER = re.compile(r"^-?\d{1,20}(\.\d{1,20})?$")


def number(name: str, text: str) -> Decimal:
    """Parse a parameter as a number; the exchange accepts neither exponents nor blanks."""
    if not _NUMBER.match(text):
        raise illegal(name, r"^([0-9]{1,20})(\.[0-9]{1,20})?$")
    return Decimal(text)


def check_client_id(name: str, text: str) -> None:
    """Require at most 36 characters of the legal range."""
    if len(text) > CLIENT_ID_CHARS_MAX:
        raise Rejection(-4015, "Client order id length should be less than 36 chars")
    if not _CLIENT_ID.match(text):
        raise illegal(name, r"^[\.A-Z\:/a-z0-9_-]{1,36}$")


def check_quantity(spec: MarketSpec, qty: Decimal) -> None:
    """Require a quantity above zero, in whole steps, and no larger than one order may have."""
    if qty <= ZERO:
        raise Rejection(-4003, "Quantity less than or equal to zero.")
    if qty % spec.step != ZERO:
        raise Rejection(-1111, "Precision is over the maximum defined for this asset.")
    if qty < spec.step:
        raise Rejection(-4004, "Quantity less than min quantity.")
    if qty > spec.max_qty:
        raise Rejection(-4005, "Quantity greater than max quantity.")


def check_price(spec: MarketSpec, price: Decimal) -> None:
    """Require a price above zero and in whole ticks."""
    if price <= ZERO:
        raise Rejection(-4001, "Price less than 0.")
    if price % spec.tick != ZERO:
        raise Rejection(-4014, "Price not increased by tick size.")


def check_band(spec: MarketSpec, side: Side, price: Decimal, mark: Decimal) -> None:
    """Require a buy not too far above the mark price, and a sell not too far below it."""
    if side is Side.BUY and price > (most := mark * BAND_UP):
        raise Rejection(-4016, f"Limit price can't be higher than {_floor(most, spec.tick)}.")
    if side is Side.SELL and price < (least := mark * BAND_DOWN):
        raise Rejection(-4024, f"Limit price can't be lower than {_floor(least, spec.tick)}.")


def _floor(value: Decimal, step: Decimal) -> str:
    return format(value // step * step, "f")


def check_notional(spec: MarketSpec, qty: Decimal, price: Decimal) -> None:
    """Require an order to be worth at least the contract's minimum."""
    if not spec.inverse and spec.worth(qty, price) < spec.min_notional:
        raise Rejection(
            -4164,
            f"Order's notional must be no smaller than {spec.min_notional} (unless you choose reduce only).",
        )
