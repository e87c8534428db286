"""One position's way from intent to active, or out: the same code for an open, a repair and a recovery.

``drive`` looks at the row's status and does the next thing, until the position is active, has ended, or is in
doubt. Before each order its intent is committed; after each, its outcome. So wherever a holder dies, the next
one reads the row, looks for the order of the intent in doubt, and drives on from there:

=============  ==============================================================================================
pending_entry  a new intent is ordered; one found in the table is only looked for, as its signal is gone. Not
               found, and too old to be on its way still: canceled
               Found: written down with the intent of its stop, in one commit
entry_placed   intend the stop: it was adopted, or has no price to place one by
pending_sl     place the stop, or find it. It would trigger at once, or cannot be placed in time: close
any, closing   an intent to close is in doubt: finish closing
=============  ==============================================================================================

*Not visible yet is not absent*: an intent younger than the exchange's window stays in doubt, and its row
stays as it is. Every way out is reduce-only. ``LeaseLost`` and ``StaleToken`` pass through everything here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, assert_never

from lockguard_ccxt import Executed, OrderState, PlacedOrder, Refusal, Refused, Step, Unknown
from lockguard_positions.deadline import StopDeadline
from lockguard_positions.errors import DuplicatePosition
from lockguard_positions.events import Alert, Moved, PositionEvent
from lockguard_positions.model import Intent, IntentOutcome, Position, Progress, stop_price_of
from lockguard_positions.status import PositionStatus
from lockguard_positions.sweeping import Sweeper

if TYPE_CHECKING:
    from decimal import Decimal

    from lockguard.clock import Clock
    from lockguard.lease import Lease
    from lockguard_positions.store import PositionStore
    from lockguard_positions.venue import Pace, Venue

__all__ = ["Emit", "Flow"]

Emit: TypeAlias = Callable[[PositionEvent], None]

_STEPS_MAX = 200
_GONE = "gone from the exchange before its stop was placed"


class Flow:
    """Drives positions of one exchange, each under the lease that it was made for.

    Args:
        store: the rows.
        venue: the exchange.
        pace: how to wait.
        lease: on the position's resource; every write and every order is made under it.
        operation: what is going on, for events.
        emit: told of every change.
        clock: measures the time without a stop.
    """

    def __init__(
        self,
        store: PositionStore,
        venue: Venue,
        *,
        pace: Pace,
        lease: Lease,
        operation: str,
        emit: Emit,
        clock: Clock,
    ) -> None:
        self._store = store
        self._venue = venue
        self._pace = pace
        self._lease = lease
        self._operation = operation
        self._emit = emit
        self._unstopped = StopDeadline(pace.stop_deadline, clock)
        self.sweeper = Sweeper(store, venue, lease, emit)

    # --- the loop ---

    async def resume(self, position: Position) -> Position:
        """Go on with a row that somebody else has left, from what the table knows of it."""
        step = {
            PositionStatus.PENDING_ENTRY: (Step.ENTRY,),
            PositionStatus.PENDING_SL: (Step.STOP,),
        }.get(position.status, ())
        intent = await self._store.in_doubt(position, Step.CLOSE)
        if intent is None and step:
            intent = await self._store.in_doubt(position, *step)
        if position.status is PositionStatus.ENTRY_PLACED:
            self._without_stop(position, already_ms=position.age_ms)
        elif position.status is PositionStatus.PENDING_SL:
            self._without_stop(position, already_ms=0 if intent is None else intent.age_ms)
        return await self.drive(Progress(position, intent))

    async def drive(self, progress: Progress) -> Position:
        """Go on until the position is active, has ended, or is in doubt.

        Raises:
            LeaseLost: the lease has ended; the next holder goes on.
            StaleToken: the same, as Postgres saw it.
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        try:
            for _ in range(_STEPS_MAX):
                self._lease.ensure()
                position, intent = progress.position, progress.intent
                if not position.status.open or (position.status is PositionStatus.ACTIVE and intent is None):
                    return position
                moved = await self._next(position, intent)
                if moved is None:
                    return position
                progress = moved
        finally:
            self._unstopped.end()
        raise AssertionError(f"position {progress.position.id} did not settle in {_STEPS_MAX} steps")

    async def _next(self, position: Position, intent: Intent | None) -> Progress | None:
        """Do the next thing; ``None`` while the last one is in doubt."""
        if intent is not None and intent.step is Step.CLOSE:
            return await self._close(position, intent)
        match position.status:
            case PositionStatus.PENDING_ENTRY:
                return await self._enter(position, intent)
            case PositionStatus.ENTRY_PLACED:
                return await self._intend_stop(position)
            case PositionStatus.PENDING_SL:
                return await (self._intend_stop(position) if intent is None else self._stop(position, intent))
            case _:
                raise AssertionError(f"nothing is left to do for a position that is {position.status}")

    # --- the entry ---

    async def _enter(self, position: Position, intent: Intent | None) -> Progress | None:
        if intent is None:  # a row of the time before intents
            return await self._judge_missing_entry(position, None)
        if intent.sent_before:
            order = await self._venue.find(position, intent)
            if order is None:
                return await self._judge_missing_entry(position, intent)
            return await self._entered(position, intent, order)
        outcome = await self._venue.enter(position, intent, _planned_stop(position))
        match outcome:
            case Executed(order=order):
                return await self._entered(position, intent, order)
            case Refused():
                return await self._not_entered(position, intent, f"entry refused: {outcome.message}")
            case Unknown():
                await self._store.note_error(self._lease, position, f"entry in doubt: {outcome.message}")
                self._alert(position, f"the entry {intent.client_id} is in doubt: {outcome.message}")
                return None
            case _:
                assert_never(outcome)

    async def _entered(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        order = await self._venue.filled(position, intent, order)
        if not order.filled:
            if order.live:
                return None
            return await self._not_entered(position, intent, f"the entry ended as {order.state.value}")
        if order.live:
            # The rest of it could fill after the stop was placed and would be without one.
            await self._venue.cancel(order)
            order = await self._venue.find(position, intent) or order
        return await self._record_entry(position, intent, order.id, order.average, order.filled)

    async def _judge_missing_entry(self, position: Position, intent: Intent | None) -> Progress | None:
        """No order of that name is to be found."""
        age_ms = position.age_ms if intent is None else intent.age_ms
        if age_ms < self._venue.in_doubt_ms:
            return None
        held = await self._venue.holding(position.symbol)
        if held is None or held.side != position.side.entry:
            moved = await self._store.finish(
                self._lease,
                position,
                PositionStatus.CANCELED,
                intent=intent,
                outcome=IntentOutcome.ABSENT,
                error="the entry was never placed",
            )
            return Progress(self._moved(moved, position))
        # The exchange forgets old orders, but it holds a position, and this row is the only one for it.
        return await self._record_entry(position, intent, None, held.entry_price, held.amount)

    async def _record_entry(
        self,
        position: Position,
        intent: Intent | None,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
    ) -> Progress:
        """Write the fill down with the intent of its stop: the stop waits for one commit, not two."""
        self._without_stop(position)
        entered = replace(
            position, status=PositionStatus.ENTRY_PLACED, entry_price=price or position.entry_price
        )
        progress = await self._store.record_entry(
            self._lease,
            position,
            intent,
            order_id=order_id,
            price=price,
            quantity=quantity,
            stop=self._trigger(entered),
        )
        self._moved(replace(progress.position, status=PositionStatus.ENTRY_PLACED), position)
        if progress.intent is not None:
            self._moved(progress.position, entered)
        return progress

    async def _not_entered(self, position: Position, intent: Intent, why: str) -> Progress:
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.FAILED,
            intent=intent,
            outcome=IntentOutcome.REFUSED,
            error=why,
        )
        return Progress(self._moved(moved, position))

    # --- the stop ---

    async def _intend_stop(self, position: Position) -> Progress:
        self._without_stop(position)
        trigger = self._trigger(position)
        if trigger is None:
            return await self.intend_close(position, "no price or percentage to place a stop by")
        progress = await self._store.expect_stop(self._lease, position, trigger)
        self._moved(progress.position, position)
        return progress

    async def _stop(self, position: Position, intent: Intent) -> Progress | None:
        self._without_stop(position)
        outcome = await self._venue.stop(position, intent)
        match outcome:
            case Executed(order=order):
                return await self._stopped(position, intent, order)
            case Refused(refusal=Refusal.REDUCE_ONLY):
                return await self._gone(position, intent)
            case Refused(refusal=Refusal.WOULD_TRIGGER):
                await self._settled(position, intent, outcome)
                return await self.intend_close(position, "the price is beyond the stop already")
            case Refused():
                await self._settled(position, intent, outcome)
                if outcome.passing:
                    return await self._again_or_out(position, f"stop refused: {outcome.message}")
                self._alert(position, f"closing it, as its stop was refused: {outcome.message}")
                return await self.intend_close(position, f"stop refused: {outcome.message}")
            case Unknown():
                # It may stand or not: asked for again under the same name, it is found or placed.
                again = replace(intent, sent_before=True)
                return await self._again_or_out(position, f"stop in doubt: {outcome.message}", again)
            case _:
                assert_never(outcome)

    async def _stopped(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        if order.state is OrderState.CLOSED:
            moved = await self._store.finish(
                self._lease,
                position,
                PositionStatus.CLOSED,
                intent=intent,
                reason="stop",
                price=order.average,
                order_id=order.id,
            )
            return Progress(self._moved(moved, position))
        if not order.live:
            await self._store.settle(self._lease, position, intent, IntentOutcome.CANCELED, order_id=order.id)
            return Progress(position)
        try:
            moved = await self._store.activate(self._lease, position, intent, order.id)
        except DuplicatePosition as exc:
            return await self.intend_close(position, f"duplicate of position {exc.existing_id}")
        self._unstopped.end()
        return Progress(self._moved(moved, position))

    async def _gone(self, position: Position, intent: Intent) -> Progress:
        """There is nothing to protect: it was liquidated, or closed by hand."""
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CLOSED,
            intent=intent,
            outcome=IntentOutcome.REFUSED,
            reason=_GONE,
        )
        return Progress(self._moved(moved, position))

    async def _again_or_out(self, position: Position, why: str, intent: Intent | None = None) -> Progress:
        """Try once more while the time without a stop is not up; then close the position."""
        if not self._unstopped.over:
            await asyncio.sleep(self._pace.poll.total_seconds())
            return Progress(position, intent)
        self._alert(position, f"closing it, as it could not be given a stop: {why}")
        return await self.intend_close(position, why)

    # --- the way out ---

    async def intend_close(self, position: Position, reason: str) -> Progress:
        """Write down that the position is to be closed, and why."""
        return await self._store.expect_close(self._lease, position, reason)

    async def _close(self, position: Position, intent: Intent) -> Progress | None:
        swept = await self.sweeper.sweep(position)
        outcome = await self._venue.close(position, intent)
        match outcome:
            case Executed() | Refused(refusal=Refusal.REDUCE_ONLY):
                # Once more: a late copy of the stop may have arrived when the first one was gone.
                if not await self.sweeper.sweep(position, listed_only=swept):
                    return None
                if isinstance(outcome, Refused):
                    return await self._closed(position, intent, IntentOutcome.REFUSED, None)
                order = await self._venue.filled(position, intent, outcome.order)
                return await self._closed(position, intent, IntentOutcome.EXECUTED, order)
            case Refused() | Unknown():
                await self._store.note_error(self._lease, position, f"not closed: {outcome.message}")
                self._alert(position, f"the position could not be closed: {outcome.message}")
                return None
            case _:
                assert_never(outcome)

    async def _closed(
        self, position: Position, intent: Intent, outcome: IntentOutcome, order: PlacedOrder | None
    ) -> Progress:
        was_active = position.status is PositionStatus.ACTIVE
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CLOSED if was_active else PositionStatus.ROLLED_BACK,
            intent=intent,
            outcome=outcome,
            price=None if order is None else order.average,
            order_id=None if order is None else order.id,
        )
        return Progress(self._moved(moved, position))

    async def closed_elsewhere(self, position: Position, reason: str, price: Decimal | None) -> Position:
        """The exchange holds nothing any more: its stop goes, and then the row follows."""
        if not await self.sweeper.sweep(position):
            return position
        moved = await self._store.finish(
            self._lease, position, PositionStatus.CLOSED, reason=reason, price=price
        )
        return self._moved(moved, position)

    async def replace_stop(self, position: Position) -> Position:
        """Place the stop of an active position anew, as it is missing."""
        self._alert(position, "its stop is missing, placing a new one")
        self._without_stop(position)
        return await self.drive(await self._intend_stop(position))

    # --- inside ---

    def _trigger(self, position: Position) -> Decimal | None:
        """The stop's price, in the exchange's ticks."""
        planned = _planned_stop(position)
        return None if planned is None else self._venue.rules(position.symbol).price(planned)

    async def _settled(self, position: Position, intent: Intent, refused: Refused) -> None:
        await self._store.settle(
            self._lease, position, intent, IntentOutcome.REFUSED, details=refused.message
        )

    def _moved(self, now: Position, before: Position) -> Position:
        self._emit(Moved(now, before.status, self._operation))
        return now

    def _without_stop(self, position: Position, *, already_ms: int = 0) -> None:
        def passed(deadline_s: float) -> None:
            self._alert(position, f"without a stop for longer than {deadline_s:g} s")

        self._unstopped.begin(passed, already_ms=already_ms)

    def _alert(self, position: Position, message: str) -> None:
        self._emit(Alert(f"{position.exchange}:{position.symbol}", position.id, message))


def _planned_stop(position: Position) -> Decimal | None:
    """The stop's price before it is brought to the tick."""
    if position.entry_price is None or position.stop_loss_percent is None:
        return position.stop_price
    return stop_price_of(position.side, position.entry_price, position.stop_loss_percent)
