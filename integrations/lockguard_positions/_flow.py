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
from collections.abc import Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cached_property, partial
from typing import TYPE_CHECKING, assert_never

from lockguard_ccxt import Executed, PlacedOrder, Refusal, Refused, Step, Unknown
from lockguard_positions._account import check_account
from lockguard_positions._early import EarlyOrder
from lockguard_positions._errors import DuplicatePosition, ExchangeUnreadable
from lockguard_positions._exits import Exits
from lockguard_positions._fired import less_a_new_one, less_its_stop
from lockguard_positions._model import (
    Intent,
    IntentOutcome,
    NewPosition,
    Position,
    PositionSide,
    Progress,
    stop_price_of,
)
from lockguard_positions._ownership import Whose
from lockguard_positions._pace import StopDeadline
from lockguard_positions._rest import EntryRest
from lockguard_positions._rows import intent_to_enter, stop_intent
from lockguard_positions._stage import Stage, Taken
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import Sweeper, filled_in_part, standing_stop
from lockguard_positions._venue import too_small

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
_WITHOUT_STOP = frozenset({PositionStatus.ENTRY_PLACED, PositionStatus.PENDING_SL})
_GONE = "gone from the exchange before its stop was placed"
_BEYOND = "the price is beyond the stop already"
_NEVER_SENT = Refused(Refusal.NOT_SENT, None, "never placed", "")


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
        self._already_ms = 0  # for how long the position may have been without a stop before it was looked at
        self._bought: set[int] = set()  # ids of the positions entered under this lease
        self._early = EarlyOrder(scope.venue)
        self.sweeper = Sweeper(scope)
        self.rest = EntryRest(scope, self._with_its_stop)

    @cached_property
    def _exits(self) -> Exits:
        return Exits(self._scope, self.sweeper, self.rest, self._put_back, self._without_stop)

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
            renew = partial(self._store.renew_intent, self._lease, new, entering)
            self._early.make_ready(
                entering, partial(self._venue.enter, self._market, entering, planned, renew), planned
            )
        try:
            progress = await self._store.begin(
                self._lease, new, number=number, attached=attached, then=self._early.send
            )
            self._venue.own_rows.shown(progress.position)
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
        if position.status is not PositionStatus.PENDING_ENTRY:
            await self.rest.look_up(position)
        # An intent's age would begin anew with each order that is sent for it.
        self._already_ms = position.age_ms if position.status in _WITHOUT_STOP else 0
        if position.status in _WITHOUT_STOP and intent is not None and not intent.unsent:
            self._without_stop(position)
        return await self.drive(Progress(position, intent))

    async def drive(self, progress: Progress) -> Position:
        """Take steps until the position is active, has ended, or is in doubt.

        Raises:
            LeaseLost: the lease has ended; the next holder continues.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        self.rest.begin()
        try:
            for _ in range(_STEPS_MAX):
                self._lease.ensure()
                if progress.position not in self._venue.own_rows:  # no step is for another account
                    await check_account(self._scope, progress.position)
                step = self._next(progress.position, progress.intent)
                moved = None if step is None else await step
                if moved is None:
                    return progress.position
                progress = moved
        except BaseException as exc:
            # By the table an active row has its stop, so nobody else tells of one that made room for an exit.
            bare, now = self._unstopped.running, progress.position.status
            unread = isinstance(exc, ExchangeUnreadable) and (bare or now in _WITHOUT_STOP)
            if unread or (bare and now is PositionStatus.ACTIVE):
                why = "it may be without a stop, and that cannot be looked at: " + (str(exc) or repr(exc))
                self._scope.alert(progress.position, why)
            raise
        finally:
            unstopped = self._unstopped.running
            self._unstopped.end()
            await self._early.drop()
        why = f"it did not settle in {_STEPS_MAX} steps; the next look goes on"
        self._scope.alert(progress.position, f"without a stop: {why}" if unstopped else why)
        return progress.position

    def _next(self, position: Position, intent: Intent | None) -> Taken | None:
        """The next step, which returns ``None`` if an order stays in doubt; ``None`` if no step is left."""
        stage = STAGES.get(position.status)
        if stage is None:
            return None
        if intent is not None and intent.step is Step.CLOSE:
            return self._close(position, intent)
        if intent is not None and stage.go_on is not None:
            return stage.go_on(self, position, intent)
        if self.rest.due(position):
            if position.names_no_stop:
                self._without_stop(position)  # the look takes of the time for its stop
            return self.rest.catch_up(position)
        return None if stage.begin is None else stage.begin(self, position)

    # --- the entry ---

    async def _enter(self, position: Position, intent: Intent) -> Progress | None:
        sent_at = self._scope.clock.now() - (position.age_ms / 1000 if intent.sent_before else 0)
        if intent.sent_before:
            order = await self._venue.find(self._market, intent)
            if order is None:
                return await self._judge_missing_entry(position, intent)
            return await self._entered(position, intent, order, sent_at)
        renew = partial(self._store.renew_intent, self._lease, position, intent)
        outcome = await self._early.placed(
            intent, partial(self._venue.enter, self._market, intent, position.planned_stop, renew)
        )
        match outcome:
            case Executed(order=order):
                self._bought.add(position.id)
                return await self._entered(position, intent, order, sent_at)
            case Refused(copied=False):
                why = f"entry refused: {outcome.message}"
                return await self._not_entered(position, intent, why, passing=outcome.refusal in _LATER)
            case Unknown() | Refused():  # another copy of one that was refused may still arrive
                await self._store.renew_intent(self._lease, position, intent)
                await self._store.note_error(self._lease, position, f"entry in doubt: {outcome.message}")
                self._scope.alert(position, f"the entry {intent.client_id} is in doubt: {outcome.message}")
                return None
            case _:
                assert_never(outcome)

    async def _entered(
        self, position: Position, intent: Intent, order: PlacedOrder, sent_at: float
    ) -> Progress | None:
        self._venue.own_rows.shown(position)
        # The answer may be late or lost: the position may be as old as the order is. Before its first fill
        # its time has not begun, whatever a row that ended before under this lease has left here.
        self._already_ms = round((self._scope.clock.now() - sent_at) * 1000) if order.filled else 0
        order = await self._venue.done(self._market, intent, order, partial(self._without_stop, position))
        if not order.filled:
            if order.live:
                why = f"the entry {intent.client_id} is neither filled nor can it be taken back"
                self._scope.alert(position, why)
                return None
            return await self._not_entered(position, intent, f"the entry ended as {order.state.value}")
        if order.live:
            why = f"the entry {intent.client_id} has filled {order.filled} of {order.amount}"
            self._scope.alert(position, f"{why}, and what is left cannot be taken back now")
            self.rest.rests(position, intent, order)
        else:
            self.rest.none_of(position)
        return await self._record_entry(position, intent, order.id, order.average, order.filled)

    async def _judge_missing_entry(self, position: Position, intent: Intent | None = None) -> Progress | None:
        """Handle an entry that cannot be found, or a row from before intents, whose entry has no id."""
        if intent is None:
            intent = await self._store.in_doubt(position, Step.ENTRY)
            if intent is not None:  # a close of it was withdrawn: its entry goes on
                return Progress(position, intent)
        age_ms = position.age_ms if intent is None else intent.age_ms
        if age_ms < self._venue.in_doubt_ms:
            return None
        # A position that is held nevertheless may be a person's: it is adopted, or not, like any other.
        absent, why = IntentOutcome.ABSENT, "the entry was never placed"
        moved = await self._store.finish(
            self._lease, position, PositionStatus.CANCELED, intent=intent, outcome=absent, error=why
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
        rests = self.rest.noted(position)
        entered = replace(
            position, status=PositionStatus.ENTRY_PLACED, entry_price=price or position.entry_price
        )
        stop = self._trigger(entered) if position.id in self._bought else None
        if intent is not None and stop is not None and not rests:
            sized = replace(position, quantity=quantity)
            following = stop_intent(self._lease, sized, intent.number + 1, stop)
            self._early.make_ready(following, partial(self._venue.stop, self._market, following))
        progress = await self._store.record_entry(
            self._lease,
            position,
            intent,
            order_id=order_id,
            price=price,
            quantity=quantity,
            stop=stop,
            rests=rests,
            then=self._early.send,
        )
        age_ms = round(self._unstopped.lasted_ms or 0)
        now = replace(progress.position, status=PositionStatus.ENTRY_PLACED, age_ms=age_ms)
        self._scope.moved(now, position)
        if progress.intent is not None:
            self._scope.moved(progress.position, entered)
        return progress

    async def _not_entered(
        self, position: Position, intent: Intent, why: str, *, passing: bool = False
    ) -> Progress:
        """End a row whose entry was not executed: ``canceled`` if the reason passes, else ``failed``."""
        ended, refused = PositionStatus.CANCELED if passing else PositionStatus.FAILED, IntentOutcome.REFUSED
        moved = await self._store.finish(
            self._lease, position, ended, intent=intent, outcome=refused, error=why
        )
        return Progress(self._scope.moved(moved, position))

    # --- the stop ---

    async def _intend_stop(self, position: Position) -> Progress | None:
        if position.id not in self._bought and await self.sweeper.only_waits(position):
            return await self.ended(position, _GONE)
        self._without_stop(position)
        trigger = self._trigger(position)
        if position.id not in self._bought:
            position = await less_its_stop(self._scope, position)
            # A standing stop may be a person's, or ours from before a restore: it is kept.
            taken = await self.take_over(position)
            if taken is not None:
                return Progress(taken) if taken.status is PositionStatus.ACTIVE else None
        if trigger is None:
            return await self._leave(position, "it has neither a price nor a percentage to place a stop by")
        if not position.opened_here and await self._beyond(position, trigger):
            return await self._leave(position, f"{_BEYOND} at {trigger}")
        if self._market.rules.reduction(position.quantity) is None:
            return await self._leave(position, too_small(self._market, position.quantity))
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
            why = f"it is a duplicate of position {exc.existing_id}; nothing is done about it"
            self._scope.alert(position, why)
            return position
        self.sweeper.tell_of_rest(moved, waiting)
        return self._has_its_stop(moved, position)

    async def _stop(self, position: Position, intent: Intent) -> Progress | None:
        self._without_stop(position)
        outcome = await self._early.placed(intent, partial(self._venue.stop, self._market, intent))
        await self.sweeper.note_copy(position, intent, outcome)
        match outcome:
            case Executed(order=order):
                return await self._stopped(position, intent, order)
            case Refused(refusal=Refusal.REDUCE_ONLY):
                return await self._gone(position, intent, outcome)
            case Refused(refusal=Refusal.WOULD_TRIGGER):
                await self._settled(position, intent, outcome.message)
                return await self._out(position, _BEYOND)
            case Refused(refusal=Refusal.INVALID):
                await self._settled(position, intent, outcome.message)
                return await self._out(position, f"stop refused: {outcome.message}")
            case Refused():
                await self._settled(position, intent, outcome.message)
                why = f"stop refused: {outcome.message}"
                return await self._again(position, why, at_once=outcome.passing)
            case Unknown():
                # The stop may stand or not: asked for again under the same id, it is found or placed.
                await self._store.renew_intent(self._lease, position, intent)
                again = replace(intent, sent_before=True)
                return await self._again(position, f"stop in doubt: {outcome.message}", again)
            case _:
                assert_never(outcome)

    async def _stopped(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        executed = not order.live and order.filled > 0  # else all of it is held still
        if order.filling:
            return await self._leave(position, f"it has filled {order.filled}, and is not done yet")
        if filled_in_part(order, position):
            return await less_a_new_one(self._scope, position, intent, order)
        if not order.live:  # if it was executed, another order of the row may still stand or arrive
            progress = await self.ended(position, "stop") if executed else Progress(position)
            outcome = IntentOutcome.EXECUTED if executed else IntentOutcome.CANCELED
            await self._store.settle(self._lease, position, intent, outcome, order_id=order.id)
            return progress
        try:
            moved = await self._store.activate(self._lease, position, intent, order.id)
        except DuplicatePosition as exc:
            await self._store.settle(self._lease, position, intent, IntentOutcome.EXECUTED, order_id=order.id)
            return await self._out(position, f"duplicate of position {exc.existing_id}", stands=True)
        self.sweeper.tell_of_rest(moved, [order])
        return Progress(self._has_its_stop(moved, position))

    async def _gone(self, position: Position, intent: Intent, refused: Refused) -> Progress | None:
        """End a row whose stop was refused for want of a position, unless there may be one all the same."""
        held = await self._venue.holding(self._market)
        shown = held is not None and held.side == position.side.entry
        # Right after a fill the exchange may not know of the position yet: neither word is proof.
        if shown or position.age_ms < self._scope.pace.grace_ms:
            await self._settled(position, intent, refused.message)
            return await self._again(position, f"stop refused: {refused.message}")
        ended = await self.ended(position, _GONE)
        await self._settled(position, intent, refused.message)
        return ended

    async def ended(self, position: Position, reason: str) -> Progress:
        """Begin to end the row of a position that has ended otherwise: :meth:`drive` it."""
        self._unstopped.end()  # nothing is left to protect
        return await self._exits.ended(position, reason)

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

    async def _move(self, position: Position, intent: Intent) -> Progress | None:
        """Move the stop: place a second one, make it the row's, cancel the first; or finish such a move."""
        if not intent.sent_before or self.rest.of(position):  # all of it is to have a stop, soon
            outcome = await self._venue.stop(self._market, intent)
        else:
            order = await self._venue.find(self._market, intent)
            if order is None and intent.age_ms < self._venue.in_doubt_ms:
                return None
            outcome = _NEVER_SENT if order is None else Executed(order, found=True)
        if outcome is not _NEVER_SENT:
            await self.sweeper.note_copy(position, intent, outcome)
        match outcome:
            case Executed(order=order) if order.live:
                moved = await self._store.move_stop(self._lease, position, intent, order)
                self._scope.moved(moved, position)
                await self.sweeper.sweep_old(moved, was=position)
                return Progress(moved)
            case Executed(order=order) if filled_in_part(order, position):
                return await less_a_new_one(self._scope, position, intent, order)
            case Executed(order=order) if order.filling:
                return None  # a later pass reads what it came to
            case Executed(order=order):  # it fired, or was cancelled, before the row had it
                ended = IntentOutcome.CANCELED
                await self._store.settle(self._lease, position, intent, ended, order_id=order.id)
                return Progress(position)
            case Refused():
                settled = IntentOutcome.ABSENT if outcome is _NEVER_SENT else IntentOutcome.REFUSED
                told = f"stop not moved to {intent.trigger}: {outcome.message}"
                await self._store.settle(self._lease, position, intent, settled, details=told)
                return Progress(await self._store.note_error(self._lease, position, told))
            case Unknown():
                await self._store.renew_intent(self._lease, position, intent)
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
        await check_account(self._scope, position)
        return await self._store.expect_close(self._lease, position, reason, asked=asked)

    async def _out(self, position: Position, why: str, *, stands: bool = False) -> Progress | None:
        """Close a position whose stop can never be placed, if it is certainly ours; otherwise raise an alert.

        After an entry of this lease, too: a person may have traded while its stop was refused for seconds.
        """
        if self._market.rules.reduction(position.quantity) is None:
            return await self._leave(position, too_small(self._market, position.quantity))
        whose = await self._exits.owner.look(position, quietly=position.id in self._bought)
        if whose is Whose.NOTHING and position.age_ms >= self._scope.pace.grace_ms:
            return await self.ended(position, _GONE)
        if whose is not Whose.OURS:
            why = f"{why}; it is not closed without a person's word"
            if position.id in self._bought and whose is not Whose.ANOTHERS and not stands:
                return await self._again(position, why)  # lists lag behind it, or are not to be had
            return await self._leave(position, why)
        self._scope.alert(position, f"closing it: {why}")
        return await self.intend_close(position, why)

    async def _close(self, position: Position, intent: Intent) -> Progress | None:
        sent = await self._venue.find(self._market, intent) if intent.sent_before else None
        if intent.sent_before and sent is None and intent.may_arrive(self._venue.in_doubt_ms):
            return await self._exits.wait(position, intent)
        if intent.sent_before and sent is None:
            intent = await self._exits.judged(position, intent)
        if intent.ended and sent is None:
            return await self._exits.end(position, intent)
        if intent.void and sent is None:
            return await self._with_its_stop(await self._exits.withdrawn(position, intent))
        if sent is None and self._market.rules.reduction(intent.amount) is None:
            return await self._with_its_stop(await self._exits.too_small(position, intent))
        return await self._exits.close(position, intent, sent)

    async def _with_its_stop(self, position: Position) -> Progress | None:
        bare = position.status is PositionStatus.ACTIVE and not await self._exits.has_stop(position)
        return (await self._intend_stop(position) if bare else None) or Progress(position)

    async def _put_back(self, position: Position) -> Position:
        """Place a stop again at its former price, after it was cancelled for an exit that failed."""
        if position.status is not PositionStatus.ACTIVE or position.stop_price is None:
            return position
        self._without_stop(position)
        position = await less_its_stop(self._scope, position)
        assert position.stop_price is not None
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

    async def replace_stop(self, position: Position) -> Position | None:
        """Replace a missing stop by one that stands already, or a new one; ``None`` if it is left without."""
        self._without_stop(position)
        position = await less_its_stop(self._scope, position)
        taken = await self.take_over(position)
        if taken is not None:
            return taken
        self._scope.alert(position, "its stop is missing, placing a new one")
        progress = await self._intend_stop(position)
        return None if progress is None else await self.drive(progress)

    def _trigger(self, position: Position) -> Decimal | None:
        """The stop's price rounded to the exchange's tick; ``None`` if no price can be derived."""
        planned = position.planned_stop
        return None if planned is None else self._market.rules.price(planned)

    async def _settled(self, position: Position, intent: Intent, why: str) -> None:
        await self._store.settle(self._lease, position, intent, IntentOutcome.REFUSED, details=why)

    def _has_its_stop(self, now: Position, before: Position) -> Position:
        without_stop_ms = self._unstopped.lasted_ms
        self._unstopped.end()
        self._already_ms = 0  # a stop that makes room for an exit later begins a time of its own
        return self._scope.moved(now, before, without_stop_ms=without_stop_ms)

    def _without_stop(self, position: Position) -> float:
        """Begin its time without a stop; returns for how many seconds the rest of its entry may wait."""

        def passed(deadline_s: float) -> None:
            self._scope.alert(position, f"without a stop for longer than {deadline_s:g} s")

        self._unstopped.begin(passed, already_ms=self._already_ms)
        return self._unstopped.for_the_rest_s


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
