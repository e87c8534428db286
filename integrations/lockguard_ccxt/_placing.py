"""Sending an order so that it is never placed twice and never lost.

Send the order; if the outcome is unknown, look for it by its client order id in every book; only then, and
only where a second copy cannot do harm, send it again *under the same id*:

- a stop may be sent again after one look: while its first copy is open, the exchange refuses the second
  because of its id;
- a closing order may be sent again after the whole search: it is reduce-only, so a second copy finds nothing
  to reduce;
- an entry is sent again only where ids stay unique forever. On Binance the id of a filled order may be used
  again, so a second entry would double the position. There the outcome stays unknown, and the caller or the
  next holder looks again later.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from lockguard.errors import LockguardError
from lockguard_ccxt._classify import Doubt, Verdict, ccxt_errors, classify
from lockguard_ccxt._gate import attempt
from lockguard_ccxt._ids import Step
from lockguard_ccxt._outcome import (
    Executed,
    OrderState,
    Outcome,
    PlacedOrder,
    Refusal,
    Refused,
    Side,
    Unknown,
)
from lockguard_ccxt._venues import UNREAD, parse_order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from decimal import Decimal

    from lockguard._clock import Clock
    from lockguard._lease import Lease
    from lockguard_ccxt._venues import Venue

__all__ = ["PATIENCE", "Patience", "Placer", "Plan", "told"]

_NONE = timedelta(0)
_ENDED = frozenset({OrderState.CANCELED, OrderState.EXPIRED, OrderState.REJECTED})
_QUERY = re.compile(r"\?\S*")
_MESSAGE_CHARS_MAX = 300
_ATTEMPTS_MAX = 3
_READS_MAX = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """The time limits of a guarded exchange.

    Attributes:
        needed: how much of the lease must be left when a request is sent.
        search: how long an order without an answer is looked for; longer than the exchange's reads lag.
        poll: the pause between two looks.
    """

    needed: timedelta = timedelta(milliseconds=500)
    search: timedelta = timedelta(seconds=6)
    poll: timedelta = timedelta(milliseconds=250)


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Plan:
    """One order to be placed."""

    step: Step
    symbol: str
    side: Side
    amount: Decimal
    client_id: str
    params: dict[str, Any]

    @property
    def conditional(self) -> bool:
        """Whether the order goes to the book of conditional orders."""
        return self.step is Step.STOP


class Placer:
    """Places, looks for and cancels orders on one exchange.

    Attributes:
        margin_ms: how much of the lease was left when the last request to place or cancel left this machine,
            in milliseconds; ``None`` if none did.
    """

    def __init__(self, exchange: Any, venue: Venue, patience: Patience, clock: Clock) -> None:
        self._exchange = exchange
        self._venue = venue
        self._patience = patience
        self._clock = clock
        self.margin_ms: float | None = None

    async def place(self, plan: Plan, lease: Lease) -> Outcome:
        """Place an order under a lease, and return what became of it.

        Raises:
            LeaseLost: the lease ended before the order was sent.
        """
        outcome: Outcome = Unknown(plan.client_id, "not sent yet", _NONE)
        for number in range(1, _ATTEMPTS_MAX + 1):
            outcome = await self._send(plan, lease, first=number == 1)
            match outcome:
                case Executed():
                    return await self._confirmed(plan, outcome)
                case Refused():
                    return await self._after_refusal(plan, outcome, first=number == 1)
                case Unknown():
                    if not self._may_send_again(plan):
                        return outcome
                case _:
                    assert_never(outcome)
        return outcome

    def _may_send_again(self, plan: Plan) -> bool:
        return plan.step is not Step.ENTRY or self._venue.ids_unique_for_good

    async def _send(self, plan: Plan, lease: Lease, *, first: bool) -> Outcome:
        order, verdict, message = await self._ask(
            partial(
                self._exchange.create_order,
                plan.symbol,
                "market",
                plan.side,
                format(plan.amount, "f"),
                None,
                dict(plan.params),
            ),
            lease,
        )
        if order is not None:
            return _judged(plan, parse_order(order))
        if verdict.doubt is Doubt.NONE and verdict.refusal is not None:
            return Refused(verdict.refusal, verdict.code, message, plan.client_id)
        one_look = plan.step is Step.STOP and verdict.doubt is Doubt.OPEN and first
        patience = _NONE if one_look else self._patience.search
        started = self._clock.now()
        found = await self.search(
            plan.symbol, plan.client_id, conditional=plan.conditional, patience=patience
        )
        if found is not None:
            return Executed(found, found=True)
        return Unknown(plan.client_id, message, timedelta(seconds=self._clock.now() - started))

    async def _ask(self, call: Callable[[], Awaitable[Any]], lease: Lease) -> tuple[Any | None, Verdict, str]:
        """Make one call that changes something, for no longer than the lease lasts.

        Returns:
            The answer, or ``None`` with the verdict and the message of the error.
        """
        with attempt(lease, self._patience.needed) as running:
            try:
                async with asyncio.timeout(self._time_for(lease)):
                    answer = await call()
            except LockguardError:
                raise
            except TimeoutError as exc:
                return None, classify(exc, sent=running.sent), "no answer in time"
            except Exception as exc:  # any error after sending leaves the outcome unknown
                if not running.sent and not isinstance(exc, ccxt_errors().BaseError):
                    raise
                return None, classify(exc, sent=running.sent), told(exc)
            finally:
                self.margin_ms = running.margin_ms if running.sent else self.margin_ms
        if not answer.get("id"):
            # ccxt turns a truncated body of Bybit into an order without an id, not into an error.
            return None, Verdict(Doubt.OPEN, None, None), "the answer names no order"
        return answer, Verdict(Doubt.NONE, None, None), ""

    def _time_for(self, lease: Lease) -> float:
        return min(float(self._exchange.timeout) / 1000, lease.remaining.total_seconds())

    async def _confirmed(self, plan: Plan, outcome: Executed) -> Outcome:
        """Look up what became of an order that the exchange has only accepted."""
        if outcome.order.state is not OrderState.ACCEPTED or plan.conditional:
            return outcome
        found = await self.search(
            plan.symbol, plan.client_id, conditional=False, patience=self._patience.search
        )
        return outcome if found is None else _judged(plan, found)

    async def _after_refusal(self, plan: Plan, refused: Refused, *, first: bool) -> Outcome:
        """Judge a refusal: a second copy may have been refused because the first one was executed."""
        if first:
            return refused
        found = await self.search(
            plan.symbol, plan.client_id, conditional=plan.conditional, patience=self._patience.search
        )
        if found is not None:
            return Executed(found, found=True)
        # A refusal that is not about the order says nothing about the first copy, which may be in flight.
        return refused if refused.final else Unknown(plan.client_id, refused.message, self._patience.search)

    # --- looking ---

    async def search(
        self, symbol: str, client_id: str, *, conditional: bool, patience: timedelta
    ) -> PlacedOrder | None:
        """Look for an order until it appears or ``patience`` is over; a failed look is only repeated."""
        until = self._clock.now() + patience.total_seconds()
        while True:
            try:
                found = await self._venue.find(self._exchange, symbol, client_id, conditional=conditional)
            except ccxt_errors().OperationFailed:
                found = None
            if found is not None or self._clock.now() >= until:
                return found
            await asyncio.sleep(self._patience.poll.total_seconds())

    async def read(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call that changes nothing; repeat it if the exchange does not answer.

        Raises:
            ccxt.OperationFailed: the exchange did not answer, after retries.
        """
        for _ in range(_READS_MAX - 1):
            try:
                return await call()
            except ccxt_errors().OperationFailed:
                await asyncio.sleep(self._patience.poll.total_seconds())
        return await call()

    async def find(self, symbol: str, client_id: str, *, conditional: bool) -> PlacedOrder | None:
        """Look for an order once, with retries while the exchange does not answer."""
        found: PlacedOrder | None = await self.read(
            lambda: self._venue.find(self._exchange, symbol, client_id, conditional=conditional)
        )
        return found

    # --- cancelling ---

    async def cancel(self, order: PlacedOrder, lease: Lease) -> Outcome:
        """Cancel an order under a lease. Cancelling is idempotent, so the request is simply repeated.

        Returns:
            The outcome. If executed, with the order as it was when it was cancelled; without a trigger if
            that may have been moved before and could not be read.
        """
        message = ""
        for number in range(_ATTEMPTS_MAX):
            answer, verdict, message = await self._ask(
                partial(self._venue.cancel, self._exchange, order), lease
            )
            if answer is not None:
                trigger = None if answer.get(UNREAD) else parse_order(answer).trigger or order.trigger
                return Executed(replace(order, state=OrderState.CANCELED, trigger=trigger))
            if verdict.doubt is Doubt.NONE and verdict.refusal is not None:
                if number and order.attached and verdict.refusal is Refusal.NOT_FOUND:
                    # The previous request cancelled it; its answer, which had the trigger, was lost.
                    return Executed(replace(order, state=OrderState.CANCELED, trigger=None))
                return await self._cancel_refused(order, verdict, message)
        return Unknown(order.client_id, message, _NONE)

    async def _cancel_refused(self, order: PlacedOrder, verdict: Verdict, message: str) -> Outcome:
        """Judge a refused cancel: an order not found may have been cancelled by an unanswered request."""
        if verdict.refusal is Refusal.NOT_FOUND and order.client_id:
            found = await self.find(order.symbol, order.client_id, conditional=order.conditional)
            if found is not None and found.state is OrderState.CANCELED:
                return Executed(found, found=True)
        return Refused(verdict.refusal or Refusal.INVALID, verdict.code, message, order.client_id)


def told(exc: BaseException) -> str:
    """The text of an error without the signed query of the request's URL, at most 300 characters."""
    text = _QUERY.sub("?...", str(exc)) or type(exc).__name__
    return text if len(text) <= _MESSAGE_CHARS_MAX else f"{text[:_MESSAGE_CHARS_MAX]}..."


def _judged(plan: Plan, order: PlacedOrder) -> Outcome:
    """``Executed``, or ``Refused`` for an order that ended without a fill."""
    if order.state in _ENDED and not order.filled:
        return Refused(Refusal.UNFILLED, None, f"the order ended as {order.state.value}", plan.client_id)
    return Executed(order)
