"""What became of a request that changes something: executed, refused, or unknown.

There is no fourth outcome and none of them is an exception, so that a caller has to handle each. *Unknown is
not no*: an order whose outcome is unknown may be open, filled, or still in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Literal, TypeAlias, assert_never

__all__ = [
    "Executed",
    "OrderAnswered",
    "OrderResult",
    "OrderState",
    "Outcome",
    "PlacedOrder",
    "Refusal",
    "Refused",
    "Side",
    "Unknown",
    "opposite",
    "result_of",
]

Side: TypeAlias = Literal["buy", "sell"]
"""The side of an order."""


def opposite(side: Side) -> Side:
    """The side that closes what ``side`` opened."""
    return "sell" if side == "buy" else "buy"


class OrderState(StrEnum):
    """The state of an order."""

    ACCEPTED = "accepted"
    """The exchange took the order and has not reported more."""
    OPEN = "open"
    """It is in the exchange's book."""
    CLOSED = "closed"
    """Filled; or, for a conditional order, triggered."""
    CANCELED = "canceled"
    """It was cancelled; part of it may have been filled before."""
    EXPIRED = "expired"
    """Its time ran out; part of it may have been filled before."""
    REJECTED = "rejected"
    """The exchange refused it."""


@dataclass(frozen=True, slots=True)
class PlacedOrder:
    """An order as the exchange knows it.

    Attributes:
        id: the exchange's id.
        client_id: the client order id; empty for an order that was placed without one.
        symbol: the unified symbol.
        side: the order's own side.
        state: the order's state.
        amount: the amount ordered, in the base currency or contracts.
        filled: how much of it is filled. The order's own fill counts, whether or not the position endpoint
            shows it yet.
        average: the average price of the fill; ``None`` when nothing is filled.
        trigger: the price at which the order triggers; ``None`` for an ordinary order.
        reduce_only: whether the order can only reduce a position.
        takes_profit: whether it waits for a better price than now, and so protects nothing: a take-profit, or
            a stop whose limit lies on the wrong side of its trigger.
        closes_all: whether it closes all that is held, regardless of ``amount``.
        attached: whether it is a stop of the position itself, such as one that an entry at Bybit carries.
        filling: whether it is a stop that has triggered and may still be filled further.
    """

    id: str
    client_id: str
    symbol: str
    side: Side
    state: OrderState
    amount: Decimal
    filled: Decimal
    average: Decimal | None
    trigger: Decimal | None
    reduce_only: bool
    takes_profit: bool = False
    closes_all: bool = False
    attached: bool = False
    filling: bool = False

    @property
    def conditional(self) -> bool:
        """Whether the order has a trigger; it is then in the exchange's second book, where there is one."""
        return self.trigger is not None

    @property
    def live(self) -> bool:
        """Whether the order may still be filled or triggered."""
        return self.state in {OrderState.ACCEPTED, OrderState.OPEN}


class Refusal(StrEnum):
    """Why nothing was executed."""

    # About this order, as it is:
    WOULD_TRIGGER = "would trigger at once"
    """The stop's price has been passed."""
    REDUCE_ONLY = "nothing to reduce"
    """There is no position on the other side to reduce."""
    NOT_FOUND = "no such order"
    """The exchange knows no such order."""
    INVALID = "not acceptable"
    """The price or amount breaks a rule of the market, by a code that is known to mean that."""
    UNFILLED = "taken and ended without a fill"
    """The exchange took the order, which then ended with nothing filled."""

    # About the account, the exchange or the moment; the same order may be taken later:
    PRICE = "not at the price of now"
    """The price of the moment does not permit it: its band is passed, or the order is worth too little."""
    RATE_LIMITED = "too many requests"
    """Too many requests were sent."""
    BANNED = "calls are closed for a while"
    """The exchange takes no calls from here for a while."""
    OVERLOADED = "exchange overloaded"
    """The exchange had too much to do."""
    CLOCK = "clock out of step"
    """The request's timestamp was too far from the exchange's clock."""
    MARKET_CLOSED = "market closed or under maintenance"
    """The market takes no orders now."""
    AUTHENTICATION = "key or permission refused"
    """The key was refused, or may not do this."""
    POSITION_MODE = "account in another position mode"
    """The account is in another position mode (one-way or hedge) than the order needs."""
    LIMIT = "too many orders or too large a position"
    """The account has too many orders, or the position would become too large."""
    CROWDED = "other orders that only reduce are counted against the position"
    """Other orders that only reduce use up the position already."""
    FUNDS = "not enough margin"
    """The account has too little margin."""
    UNRECOGNISED = "a refusal of no known meaning"
    """The code has no meaning that is known here; the message tells more."""
    NOT_SENT = "never left this machine"
    """The request never left this machine."""


_PASSING = frozenset({Refusal.PRICE, Refusal.RATE_LIMITED, Refusal.BANNED, Refusal.OVERLOADED, Refusal.CLOCK})
_FINAL = frozenset(
    {
        Refusal.WOULD_TRIGGER,
        Refusal.REDUCE_ONLY,
        Refusal.NOT_FOUND,
        Refusal.INVALID,
        Refusal.UNFILLED,
    }
)


@dataclass(frozen=True, slots=True)
class Executed:
    """The exchange executed the request.

    Attributes:
        order: the order as the exchange knows it.
        found: ``True`` when the answer was lost, or another attempt had placed it, and the order was found
            by its client id.
        copied: whether another copy, sent before under the same id, got no answer and may still arrive.
    """

    order: PlacedOrder
    found: bool = False
    copied: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The request was certainly not executed.

    Attributes:
        refusal: the reason.
        code: the exchange's own code; ``None`` when there was none.
        message: a text for display.
        client_id: the client order id of the order.
        copied: whether another copy, sent before under the same id, got no answer and may still arrive.
    """

    refusal: Refusal
    code: str | None
    message: str
    client_id: str
    copied: bool = False

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed a little later, so that it is worth retrying at once."""
        return self.refusal in _PASSING

    @property
    def final(self) -> bool:
        """Whether the refusal is about this order. All other refusals pass, even if only after hours."""
        return self.refusal in _FINAL


@dataclass(frozen=True, slots=True)
class Unknown:
    """The outcome is not known yet. Do not order again under another id; look for this one.

    Attributes:
        client_id: the client order id to look for.
        message: a text for display.
        searched: for how long the order was looked for in every book and not found.
    """

    client_id: str
    message: str
    searched: timedelta


Outcome: TypeAlias = Executed | Refused | Unknown
"""What became of a request: one of the three."""


class OrderResult(StrEnum):
    """What became of one request to place or cancel an order."""

    EXECUTED = "executed"
    """The exchange executed it."""
    FOUND = "found"
    """The answer was lost, or an earlier attempt had placed it: the order was found by its client id."""
    REFUSED = "refused"
    """It was certainly not executed."""
    UNKNOWN = "unknown"
    """Not known yet; a later look finds out."""


@dataclass(frozen=True, slots=True)
class OrderAnswered:
    """An event: the outcome of a request to place or cancel an order, as the caller gets it.

    Attributes:
        resource: the resource under whose lease it was sent.
        token: the lease's token.
        step: ``entry``, ``stop``, ``close`` or ``cancel``.
        client_id: the client order id; empty for an order without one.
        result: what became of it.
        refusal: why it was refused; ``None`` if it was not.
        margin_ms: how much of the lease was left when the request left this machine, in milliseconds;
            ``None`` if nothing was sent.
        took_ms: how long it took, with all retries and searches, in milliseconds.
    """

    resource: str
    token: int
    step: str
    client_id: str
    result: OrderResult
    refusal: Refusal | None
    margin_ms: float | None
    took_ms: float


def result_of(outcome: Outcome) -> tuple[OrderResult, Refusal | None]:
    """An outcome as an event tells it."""
    match outcome:
        case Executed(found=found):
            return (OrderResult.FOUND if found else OrderResult.EXECUTED), None
        case Refused(refusal=refusal):
            return OrderResult.REFUSED, refusal
        case Unknown():
            return OrderResult.UNKNOWN, None
        case _:
            assert_never(outcome)
