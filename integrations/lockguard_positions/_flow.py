"""The flow of one position from intent to active or ended: one code for opens, repairs and recoveries.

``drive`` follows :data:`STAGES` by the row's status until the position is active, has ended, or is in doubt.
The intent of an order is committed before it is sent, and its outcome after. So wherever a holder dies, the
next one reads the row, looks for the order of the intent in doubt, and continues from there. An intent to
close takes precedence over everything else.

*Not visible yet is not absent*: an intent younger than the exchange's window stays in doubt, and its row
stays as it is. *A transient failure is no reason to sell*: while a stop cannot be placed for a reason that
passes, an alert is raised and the next pass tries again. *What this table did not open is not closed* unless
a person asks for it. Every exit is reduce-only. ``LeaseLost`` and ``StaleToken`` propagate to the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

from lockguard_ccxt import Executed, OrderState, PlacedOrder, Refusal, Refused, Step, Unknown
from lockguard_positions._early import EarlyOrder
from lockguard_positions._errors import DuplicatePosition, ExchangeUnreadable
from lockguard_positions._exits import Exits
from lockguard_positions._model import (
    Intent,
    IntentOutcome,
    NewPosition,
    Position,
    PositionSide,
    Progress,
    stop_price_of,
)
from lockguard_positions._pace import StopDeadline
from lockguard_positions._rows import WITHDRAWN, intent_to_enter, stop_intent
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import Sweeper, covers, is_own, standing_stop

if TYPE_CHECKING:
    from lockguard_positions._scope import SymbolScope

__all__ = ["STAGES", "Flow", "Stage"]

_LATER = frozenset(
    {
        *(Refusal.RATE_LIMITED, Refusal.BANNED, Refusal.OVERLOADED, Refusal.CLOCK, Refusal.MARKET_CLOSED),
        *(Refusal.AUTHENTICATION, Refusal.NOT_SENT),
    }
)
"""Refusals of an entry that say nothing about the entry itself: they pass."""
_STEPS_MAX = 200
_GONE = "gone from the exchange before its stop was placed"
_BEYOND = "the price is beyond the stop already"
_NEVER_SENT = Refused(Refusal.NOT_SENT, None, "never placed", "")


_Step: TypeAlias = Coroutine[Any, Any, Progress | None]


@dataclass(frozen=True, slots=True)
class Stage:
    """The next step for a row in one status.

    Attributes:
        intents: the steps whose order may be in doubt when a holder has left the row in this status.
        begin: the step without an intent; ``None`` where the row is as it should be.
        go_on: the step with an intent, new or found; ``None`` where this status has none.
        told: the text of both for the reference.
    """

    intents: tuple[Step, ...]
    begin: Callable[[Flow, Position], _Step] | None
    go_on: Callable[[Flow, Position, Intent], _Step] | None
    told: str

    @property
    def rests(self) -> bool:
        """Whether a row in this status, with no order in doubt, needs no further step."""
        return self.begin is None


class Flow:
    """Drives positions of one symbol, under its lease.

    Args:
        scope: the symbol and its lease.
    """

    def __init__(self, scope: SymbolScope) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market = scope.lease, scope.market
        self._unstopped = StopDeadline(scope.pace.stop_deadline, scope.clock)
        self._bought: set[int] = set()  # ids of the positions entered under this lease
        self._early = EarlyOrder(scope.venue)
        self.sweeper = Sweeper(scope)
        self._exits = Exits(scope, self.sweeper, self._put_back)

    # --- the loop ---

    async def begin(
        self,
        new: NewPosition,
        *,
        number: int | None,
        attached: Decimal | None,
        begun: Callable[[Position], None],
    ) -> Progress:
        """Write a new position and the intent to enter. Then :meth:`drive` it: its order may have been sent.

        Args:
            new: the position, with its quantity in the exchange's steps.
            number: the number of the intent to enter; asked for if it is ``None``.
            attached: the price of the stop that the entry carries.
            begun: called with the row that was written.

        Raises:
            DuplicatePosition: there is an open row; nothing was ordered.
        """
        if number is not None:
            entering = intent_to_enter(self._lease, new, number, attached)
            planned = stop_price_of(new.side, new.entry_price, new.stop_loss_percent)
            self._early.make_ready(
                entering, partial(self._venue.enter, self._market, entering, planned), planned
            )
        try:
            progress = await self._store.begin(
                self._lease, new, number=number, attached=attached, then=self._early.send
            )
            begun(progress.position)
        except BaseException:
            await self._early.drop()
            raise
        return progress

    async def resume(self, position: Position) -> Position:
        """Continue with a row that another holder has left, from its state in the table."""
        steps = STAGES[position.status].intents
        intent = await self._store.in_doubt(position, Step.CLOSE)
        if intent is None and steps:
            intent = await self._store.in_doubt(position, *steps)
        if position.status is PositionStatus.ENTRY_PLACED:
            self._without_stop(position, already_ms=position.age_ms)
        elif position.status is PositionStatus.PENDING_SL:
            self._without_stop(position, already_ms=0 if intent is None else intent.age_ms)
        return await self.drive(Progress(position, intent))

    async def drive(self, progress: Progress) -> Position:
        """Take steps until the position is active, has ended, or is in doubt.

        Raises:
            LeaseLost: the lease has ended; the next holder continues.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        try:
            for _ in range(_STEPS_MAX):
                self._lease.ensure()
                position, intent = progress.position, progress.intent
                step = self._next(position, intent)
                moved = None if step is None else await step
                if moved is None:
                    return position
                progress = moved
        except ExchangeUnreadable as exc:
            if self._unstopped.running:
                self._scope.alert(
                    progress.position, f"it may be without a stop, and that cannot be looked at: {exc}"
                )
            raise
        finally:
            unstopped = self._unstopped.running
            self._unstopped.end()
            await self._early.drop()
        why = f"it did not settle in {_STEPS_MAX} steps; the next look goes on"
        self._scope.alert(progress.position, f"without a stop: {why}" if unstopped else why)
        return progress.position

    def _next(self, position: Position, intent: Intent | None) -> _Step | None:
        """The next step, which returns ``None`` if an order stays in doubt; ``None`` if no step is left."""
        stage = STAGES.get(position.status)
        if stage is None:
            return None
        if intent is not None and intent.step is Step.CLOSE:
            return self._close(position, intent)
        if intent is not None and stage.go_on is not None:
            return stage.go_on(self, position, intent)
        return None if stage.begin is None else stage.begin(self, position)

    # --- the entry ---

    async def _enter(self, position: Position, intent: Intent) -> Progress | None:
        if intent.sent_before:
            order = await self._venue.find(self._market, intent)
            if order is None:
                return await self._judge_missing_entry(position, intent)
            return await self._entered(position, intent, order)
        outcome = await self._early.placed(
            intent, partial(self._venue.enter, self._market, intent, position.planned_stop)
        )
        match outcome:
            case Executed(order=order):
                self._bought.add(position.id)
                return await self._entered(position, intent, order)
            case Refused():
                why = f"entry refused: {outcome.message}"
                return await self._not_entered(position, intent, why, passing=outcome.refusal in _LATER)
            case Unknown():
                await self._store.note_error(self._lease, position, f"entry in doubt: {outcome.message}")
                self._scope.alert(position, f"the entry {intent.client_id} is in doubt: {outcome.message}")
                return None
            case _:
                assert_never(outcome)

    async def _entered(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        order = await self._venue.done(self._market, intent, order)
        if not order.filled:
            if order.live:
                self._scope.alert(
                    position, f"the entry {intent.client_id} is neither filled nor can it be taken back"
                )
                return None
            return await self._not_entered(position, intent, f"the entry ended as {order.state.value}")
        return await self._record_entry(position, intent, order.id, order.average, order.filled)

    async def _judge_missing_entry(self, position: Position, intent: Intent | None = None) -> Progress | None:
        """Handle an entry that cannot be found, or a row from before intents, whose entry has no id."""
        age_ms = position.age_ms if intent is None else intent.age_ms
        if age_ms < self._venue.in_doubt_ms:
            return None
        # A position that is held nevertheless may be a person's: it is adopted, or not, like any other.
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CANCELED,
            intent=intent,
            outcome=IntentOutcome.ABSENT,
            error="the entry was never placed",
        )
        return Progress(self._scope.moved(moved, position))

    async def _record_entry(
        self,
        position: Position,
        intent: Intent | None,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
    ) -> Progress:
        """Record the fill together with the intent of its stop: the stop waits for one commit, not two."""
        self._without_stop(position)
        entered = replace(
            position, status=PositionStatus.ENTRY_PLACED, entry_price=price or position.entry_price
        )
        stop = self._trigger(entered) if position.id in self._bought else None
        if intent is not None and stop is not None:
            following = stop_intent(
                self._lease, replace(position, quantity=quantity), intent.number + 1, stop
            )
            self._early.make_ready(following, partial(self._venue.stop, self._market, following))
        progress = await self._store.record_entry(
            self._lease,
            position,
            intent,
            order_id=order_id,
            price=price,
            quantity=quantity,
            stop=stop,
            then=self._early.send,
        )
        self._scope.moved(replace(progress.position, status=PositionStatus.ENTRY_PLACED), position)
        if progress.intent is not None:
            self._scope.moved(progress.position, entered)
        return progress

    async def _not_entered(
        self, position: Position, intent: Intent, why: str, *, passing: bool = False
    ) -> Progress:
        """End a row whose entry was not executed: ``canceled`` if the reason passes, else ``failed``."""
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CANCELED if passing else PositionStatus.FAILED,
            intent=intent,
            outcome=IntentOutcome.REFUSED,
            error=why,
        )
        return Progress(self._scope.moved(moved, position))

    # --- the stop ---

    async def _intend_stop(self, position: Position) -> Progress | None:
        self._without_stop(position)
        trigger = self._trigger(position)
        if position.id not in self._bought:
            # A standing stop may be a person's, or ours from before a restore: it is kept.
            taken = await self.take_over(position)
            if taken is not None:
                return Progress(taken) if taken.status is PositionStatus.ACTIVE else None
        if trigger is None:
            return await self._leave(position, "it has neither a price nor a percentage to place a stop by")
        if not position.opened_here and await self._beyond(position, trigger):
            return await self._leave(position, f"{_BEYOND} at {trigger}")
        progress = await self._store.expect_stop(self._lease, position, trigger)
        self._scope.moved(progress.position, position)
        return progress

    async def _beyond(self, position: Position, trigger: Decimal) -> bool:
        """Whether a stop at ``trigger`` would fire at once; sending it would amount to an exit."""
        price = await self._venue.price(self._market)
        return price <= trigger if position.side is PositionSide.LONG else price >= trigger

    async def take_over(self, position: Position) -> Position | None:
        """Make a standing stop, no matter who placed it, the position's own; ``None`` if none stands.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        waiting = await self._venue.waiting_stops(self._market)
        stop = standing_stop(waiting, position.side.exit, position.quantity)
        if stop is None:
            return None
        try:
            moved = await self._store.take_over_stop(self._lease, position, stop)
        except DuplicatePosition as exc:
            self._scope.alert(
                position, f"it is a duplicate of position {exc.existing_id}; nothing is done about it"
            )
            return position
        if not covers(stop, position.quantity):
            told = f"its stop {stop.client_id or stop.id} covers {stop.amount} of {position.quantity}"
            self._scope.alert(moved, told)
        return self._has_its_stop(moved, position)

    async def _stop(self, position: Position, intent: Intent) -> Progress | None:
        self._without_stop(position)
        outcome = await self._early.placed(intent, partial(self._venue.stop, self._market, intent))
        match outcome:
            case Executed(order=order):
                return await self._stopped(position, intent, order)
            case Refused(refusal=Refusal.REDUCE_ONLY):
                return await self._gone(position, intent, outcome)
            case Refused(refusal=Refusal.WOULD_TRIGGER):
                await self._settled(position, intent, outcome)
                return await self._out(position, _BEYOND)
            case Refused(refusal=Refusal.INVALID):
                await self._settled(position, intent, outcome)
                return await self._out(position, f"stop refused: {outcome.message}")
            case Refused():
                await self._settled(position, intent, outcome)
                return await self._again(
                    position, f"stop refused: {outcome.message}", at_once=outcome.passing
                )
            case Unknown():
                # The stop may stand or not: asked for again under the same id, it is found or placed.
                again = replace(intent, sent_before=True)
                return await self._again(position, f"stop in doubt: {outcome.message}", again)
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
            return Progress(self._scope.moved(moved, position))
        if not order.live:
            await self._store.settle(self._lease, position, intent, IntentOutcome.CANCELED, order_id=order.id)
            return Progress(position)
        try:
            moved = await self._store.activate(self._lease, position, intent, order.id)
        except DuplicatePosition as exc:
            return await self._out(position, f"duplicate of position {exc.existing_id}")
        return Progress(self._has_its_stop(moved, position))

    async def _gone(self, position: Position, intent: Intent, refused: Refused) -> Progress | None:
        """Handle a stop refused for want of a position: end the row, unless the exchange still shows one.

        The position may have been liquidated, or closed by hand.
        """
        held = None if position.id in self._bought else await self._venue.holding(self._market)
        if held is not None and held.side == position.side.entry:
            await self._settled(position, intent, refused)
            return await self._again(position, f"stop refused: {refused.message}")
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CLOSED,
            intent=intent,
            outcome=IntentOutcome.REFUSED,
            reason=_GONE,
        )
        return Progress(self._scope.moved(moved, position))

    async def _again(
        self, position: Position, why: str, intent: Intent | None = None, *, at_once: bool = True
    ) -> Progress | None:
        """Try once more within this holder's time for it; then leave the stop to the next pass.

        Never exits: the obstacle passes, and a position must not be sold because an API key was denied.
        """
        if not at_once or self._unstopped.over or self._venue.closed:
            return await self._leave(position, why)
        await asyncio.sleep(self._scope.pace.poll.total_seconds())
        return Progress(position, intent)

    async def _leave(self, position: Position, why: str) -> Progress | None:
        """Raise an alert for a position whose stop cannot be placed now; the next pass tries again."""
        await self._store.note_error(self._lease, position, f"without a stop: {why}")
        self._scope.alert(position, f"it has no stop: {why}")
        return None

    # --- moving it ---

    async def move_stop(self, position: Position, trigger: Decimal) -> Position:
        """Place a second stop, make it the position's, cancel the first; there is always one in place.

        Raises:
            ExchangeUnreadable: the exchange did not answer; the old stop stands.
        """
        return await self.drive(await self._store.expect_move(self._lease, position, trigger))

    async def _move(self, position: Position, intent: Intent) -> Progress | None:
        """Finish a move of the stop that was begun here or by an earlier holder."""
        if not intent.sent_before:
            outcome = await self._venue.stop(self._market, intent)
        else:
            order = await self._venue.find(self._market, intent)
            if order is None and intent.age_ms < self._venue.in_doubt_ms:
                return None
            outcome = _NEVER_SENT if order is None else Executed(order, found=True)
        match outcome:
            case Executed(order=order) if order.live:
                moved = await self._store.move_stop(self._lease, position, intent, order)
                self._scope.moved(moved, position)
                await self.sweeper.sweep_old(moved, was=position)
                return Progress(moved)
            case Executed(order=order):  # it fired, or was cancelled, before the row had it
                await self._store.settle(
                    self._lease, position, intent, IntentOutcome.CANCELED, order_id=order.id
                )
                return Progress(position)
            case Refused():
                settled = IntentOutcome.ABSENT if outcome is _NEVER_SENT else IntentOutcome.REFUSED
                told = f"stop not moved to {intent.trigger}: {outcome.message}"
                await self._store.settle(self._lease, position, intent, settled, details=told)
                return Progress(await self._store.note_error(self._lease, position, told))
            case Unknown():
                await self._store.note_error(self._lease, position, f"move in doubt: {outcome.message}")
                self._scope.alert(
                    position, f"its stop may stand twice, the move is in doubt: {outcome.message}"
                )
                return None
            case _:
                assert_never(outcome)

    # --- the way out ---

    async def intend_close(self, position: Position, reason: str, *, asked: bool = False) -> Progress:
        """Write the intent to close a position, with the reason and whether a person asked for it."""
        return await self._store.expect_close(self._lease, position, reason, asked=asked)

    async def _out(self, position: Position, why: str) -> Progress | None:
        """Close a position whose stop can never be placed, if it is certainly ours; otherwise raise an alert.

        A position is ours if an order of this table opened it and nothing has changed it since. One entered
        under this lease is; for any other the exchange must show the same side, amount and price.
        """
        if position.id not in self._bought:
            held = await self._venue.holding(self._market)
            if held is None and position.age_ms >= self._scope.pace.grace_ms:
                ended = await self.closed_elsewhere(position, _GONE, None)
                return None if ended.status.open else Progress(ended)
            if held is None or not self._exits.is_ours(position, held):
                return await self._leave(position, f"{why}; it is not closed without a person's word")
        self._scope.alert(position, f"closing it: {why}")
        return await self.intend_close(position, why)

    async def _close(self, position: Position, intent: Intent) -> Progress | None:
        sent = await self._venue.find(self._market, intent) if intent.sent_before else None
        if intent.sent_before and sent is None and not await self._exits.still_right(position, intent):
            why = f"{WITHDRAWN}{position.exit_reason}" if intent.asked else "judged again"
            moved = await self._exits.withdraw(position, intent, IntentOutcome.ABSENT, why)
            if moved.status is PositionStatus.ACTIVE and not await self._has_stop(moved):
                return await self._intend_stop(moved)
            return Progress(moved)
        return await self._exits.close(position, intent, sent)

    async def _put_back(self, position: Position) -> Position:
        """Place a stop again at its former price, after it was cancelled for an exit that failed."""
        if position.status is not PositionStatus.ACTIVE or position.stop_price is None:
            return position
        self._without_stop(position)
        progress = await self._store.expect_move(self._lease, position, position.stop_price)
        assert progress.intent is not None
        moved = await self._move(progress.position, progress.intent)
        now = progress.position if moved is None else moved.position
        if now.stop_client_id == progress.intent.client_id:
            self._unstopped.end()
        else:
            self._scope.alert(
                now, f"it has no stop: {now.error_details or 'the one that was put back is in doubt'}"
            )
        return now

    async def _has_stop(self, position: Position) -> bool:
        waiting = await self._venue.waiting_stops(self._market)
        return any(is_own(position, stop) for stop in waiting)

    async def closed_elsewhere(self, position: Position, reason: str, price: Decimal | None) -> Position:
        """Cancel the stop of a position that the exchange no longer holds, then end its row.

        The row stays open while a stop may still be waiting.
        """
        if not await self.sweeper.sweep(position):
            return position
        moved = await self._store.finish(
            self._lease, position, PositionStatus.CLOSED, reason=reason, price=price
        )
        return self._scope.moved(moved, position)

    async def replace_stop(self, position: Position) -> Position:
        """Replace the missing stop of an active position: by one that stands already, or a new one."""
        self._without_stop(position)
        taken = await self.take_over(position)
        if taken is not None:
            return taken
        self._scope.alert(position, "its stop is missing, placing a new one")
        progress = await self._intend_stop(position)
        return position if progress is None else await self.drive(progress)

    # --- inside ---

    def _trigger(self, position: Position) -> Decimal | None:
        """The stop's price rounded to the exchange's tick; ``None`` if no price can be derived."""
        planned = position.planned_stop
        return None if planned is None else self._market.rules.price(planned)

    async def _settled(self, position: Position, intent: Intent, refused: Refused) -> None:
        await self._store.settle(
            self._lease, position, intent, IntentOutcome.REFUSED, details=refused.message
        )

    def _has_its_stop(self, now: Position, before: Position) -> Position:
        without_stop_ms = self._unstopped.lasted_ms
        self._unstopped.end()
        return self._scope.moved(now, before, without_stop_ms=without_stop_ms)

    def _without_stop(self, position: Position, *, already_ms: int = 0) -> None:
        def passed(deadline_s: float) -> None:
            self._scope.alert(position, f"without a stop for longer than {deadline_s:g} s")

        self._unstopped.begin(passed, already_ms=already_ms)


STAGES: Mapping[PositionStatus, Stage] = {
    PositionStatus.PENDING_ENTRY: Stage(
        (Step.ENTRY,),
        Flow._judge_missing_entry,
        Flow._enter,
        "The entry is sent; one that an earlier holder may have sent is only searched for, as its signal is"
        " gone. Found: the fill is written with the intent of its stop, in one commit. Not found, and older"
        " than the time for which the exchange accepts late orders (`GuardedExchange.in_doubt_for`):"
        " `canceled`",
    ),
    PositionStatus.ENTRY_PLACED: Stage(
        (),
        Flow._intend_stop,
        None,
        "An existing stop is taken over, or the intent of one is written",
    ),
    PositionStatus.PENDING_SL: Stage(
        (Step.STOP,),
        Flow._intend_stop,
        Flow._stop,
        "The stop is placed, or found; [see above](#what-is-never-sold) for one that can never be placed",
    ),
    PositionStatus.ACTIVE: Stage(
        (Step.STOP,),
        None,
        Flow._move,
        "Nothing; a move of its stop is finished: the new stop, if it exists, then the old one is cancelled",
    ),
}
"""The stage of each open status; a row in any other status has ended."""
