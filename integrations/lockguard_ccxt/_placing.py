"""Sending an order so that it is never placed twice and never lost.

Send the order; if the outcome is unknown, look for it by its client order id in every book; only then, and
only where a second copy cannot do harm, send it again *under the same id*:

- a stop may be sent again after one look: while its first copy is open, the exchange refuses the second
  because of its id. Once that one has ended, a late copy stands again: so the outcome says that one may
  arrive, and the caller ends nothing before that is over;
- an entry or a closing order is sent again only where ids stay unique forever. On Binance the id of a filled
  order may be used again: a second entry would double the position, and of two closing orders the late one
  would reduce what was opened after the other. There the outcome stays unknown, and the caller or the next
  holder looks again later.
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
from lockguard_ccxt._money import decimal_of
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
from lockguard_ccxt._venues import IN_HEDGE_MODE, UNREAD, parse_order

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
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
    once: bool = False

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
                    # Answered or found, it is one of the copies; each of the others may still arrive.
                    return await self._confirmed(plan, replace(outcome, copied=number > 1))
                case Refused():
                    return await self._after_refusal(plan, outcome, lost=number - 1)
                case Unknown():
                    if not self._may_send_again(plan):
                        return outcome
                case _:
                    assert_never(outcome)
        return outcome

    def _may_send_again(self, plan: Plan) -> bool:
        return not plan.once and (plan.step is Step.STOP or self._venue.ids_unique_for_good)

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
            return _judged(plan, _taken(plan, order))
        message = _with_remedy(verdict.refusal, message)
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

    async def _after_refusal(self, plan: Plan, refused: Refused, *, lost: int) -> Outcome:
        """Judge a refusal: a second copy may have been refused because the first one was executed.

        Args:
            plan: the order.
            refused: the answer to its latest copy.
            lost: how many copies were sent before that one, without an answer.
        """
        if not lost:
            return refused
        found = await self.search(
            plan.symbol, plan.client_id, conditional=plan.conditional, patience=self._patience.search
        )
        if found is not None:
            return Executed(found, found=True, copied=lost > 1)
        # A refusal that is not about the order says nothing about the first copy, which may be in flight.
        if refused.final:
            return replace(refused, copied=True)
        return Unknown(plan.client_id, refused.message, self._patience.search)

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
        """Judge a refused cancel: an order not found may have been cancelled by an unanswered request.

        Or it has just fired, which the exchange's reads do not show yet: what is left of it could be filled.
        """
        if verdict.refusal is Refusal.NOT_FOUND and order.client_id:
            found = await self.find(order.symbol, order.client_id, conditional=order.conditional)
            if found is not None and found.state is OrderState.CANCELED:
                return Executed(found, found=True)
            if found is not None and (found.live or found.filling):
                return Unknown(order.client_id, f"{message}, and it is shown as {found.state.value}", _NONE)
        return Refused(verdict.refusal or Refusal.INVALID, verdict.code, message, order.client_id)


def _with_remedy(refusal: Refusal | None, message: str) -> str:
    """A refusal's message, with what to do if the account was switched over since the markets were loaded."""
    mode = refusal is Refusal.POSITION_MODE
    return f"{message}; {IN_HEDGE_MODE.format(what='the account')}" if mode else message


def told(exc: BaseException) -> str:
    """The text of an error without the signed query of the request's URL, at most 300 characters."""
    text = _QUERY.sub("?...", str(exc)) or type(exc).__name__
    return text if len(text) <= _MESSAGE_CHARS_MAX else f"{text[:_MESSAGE_CHARS_MAX]}..."


def _taken(plan: Plan, answer: Mapping[str, Any]) -> PlacedOrder:
    """The order of an answer, as it was asked for where the answer does not say: Bybit's gives the ids only.

    Otherwise a stop for all of a long position would be taken for an order that buys nothing.
    """
    order = parse_order(answer)
    return replace(
        order,
        side=order.side if answer.get("side") else plan.side,
        amount=order.amount or plan.amount,
        trigger=order.trigger or decimal_of(plan.params.get("stopLossPrice")),
        reduce_only=order.reduce_only or bool(plan.params.get("reduceOnly")),
    )


def _judged(plan: Plan, order: PlacedOrder) -> Outcome:
    """``Executed``, or ``Refused`` for an order that ended without a fill."""
    if order.state in _ENDED and not order.filled:
        return Refused(Refusal.UNFILLED, None, f"the order ended as {order.state.value}", plan.client_id)
    return Executed(order)
