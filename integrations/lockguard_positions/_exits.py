"""Closing a position: the one order that is never sent on a guess.

An exit is sent for two reasons: a person asked for it, or the stop of a position that is certainly ours can
never be placed. An exit that an earlier holder did not finish is judged again; see :meth:`Exits.judged`.
One that nobody asked for leaves only if its position was proved to be ours within the last second.
Every exit is reduce-only, and a row ends only when all of it is closed and its stops are certainly gone.

The exit is sent first and the stops are cancelled after it: as both are reduce-only, both may fill without
harm, and an exit that is refused, or whose answer is lost, leaves the position with its stop. An exchange may
count open orders against the position; then the stop is cancelled first after all, and placed again if the
exit does not close it. From that cancel on, whatever ends the exit but the end of its position puts the stop
back or raises an alert.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, assert_never

from lockguard_ccxt import Executed, OrderState, Outcome, PlacedOrder, Refusal, Refused, Unknown
from lockguard_positions._account import check_account
from lockguard_positions._model import GONE, Intent, IntentOutcome, Position, Progress
from lockguard_positions._ownership import Owner, fills_since_entry, is_as_written
from lockguard_positions._rows import WITHDRAWN
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import ended_it, filled_whole, is_own
from lockguard_positions._venue import too_small

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard_ccxt import Holding
    from lockguard_positions._rest import EntryRest, Rest
    from lockguard_positions._scope import SymbolScope
    from lockguard_positions._stops import Sweeper

__all__ = ["Exits"]

_MAY_BE_GONE = frozenset({Refusal.REDUCE_ONLY, Refusal.CROWDED})
"""Refusals of an exit if there is nothing to close, or if open orders count against the position."""


class Exits:
    """Closes positions of one symbol, under its lease.

    Attributes:
        owner: proves that a position is ours.

    Args:
        scope: the symbol and its lease.
        sweeper: cancels the stops.
        rest: follows what is left of the entries.
        put_back: places a stop again at the price of the one that was cancelled; returns the row.
        without_stop: begins to measure the time of a position without a stop.
    """

    def __init__(
        self,
        scope: SymbolScope,
        sweeper: Sweeper,
        rest: EntryRest,
        put_back: Callable[[Position], Awaitable[Position]],
        without_stop: Callable[[Position], object],
    ) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market = scope.lease, scope.market
        self.owner = Owner(scope)
        self._sweeper, self._rest = sweeper, rest
        self._put_back = put_back
        self._without_stop = without_stop
        self._bare: set[int] = set()  # ids of the positions whose stop made room for an exit under this lease

    async def close(
        self, position: Position, intent: Intent, sent: PlacedOrder | None = None
    ) -> Progress | None:
        """Send the exit of an intent, and follow it to its outcome; ``None`` while that is in doubt.

        Args:
            position: the row.
            intent: the intent to close it.
            sent: the intent's order, if an earlier holder had sent it.

        Raises:
            ExchangeUnreadable: the exchange did not answer; the intent stays in doubt.
        """
        outcome = Executed(sent, found=True) if sent else await self._send(position, intent)
        if isinstance(outcome, Refused) and outcome.refusal in _MAY_BE_GONE:
            stop = await self._venue.find_stop(self._market, position)
            held = await self._venue.holding(self._market)
            if held is None or held.side != position.side.entry:
                # Such a refusal proves nothing: orders that crowd a position out say that it exists.
                intent = await self._gone(position, replace(intent, refused=True), stop, held)
                if intent.ended and intent.sent_before:
                    return await self.end(position, intent)
                if intent.ended:
                    return await self._has_closed(position, intent, None)
            elif not intent.sent_before:  # else each pass would cancel its stop in vain
                position, outcome = await self._without_stop_in_the_way(position, intent, outcome)
        return await self._became(position, intent, outcome)

    async def _without_stop_in_the_way(
        self, position: Position, intent: Intent, refused: Refused
    ) -> tuple[Position, Outcome]:
        """Send an exit again with the stop cancelled, as an exchange may count it against the position."""
        await self._store.renew_intent(self._lease, position, intent)  # while it still has its stop
        self._bare.add(position.id)
        self._without_stop(position)
        if not await self._sweeper.sweep(position, for_good=False):
            return position, refused  # its own stop may be cancelled, and another one not
        outcome = await self._send(position, intent)
        if isinstance(outcome, Refused):
            position = await self._put_back(position)
            self._bare.discard(position.id)
        elif isinstance(outcome, Unknown):
            self._scope.alert(position, f"it may have no stop until the next look: {outcome.message}")
        return position, outcome

    async def _send(self, position: Position, intent: Intent) -> Outcome:
        renew: Callable[[], Awaitable[bool | None]] | None = None
        if not intent.asked:
            if not await self.owner.is_sure(position):
                why = "it may be a person's by now; it is not closed without a person's word"
                return Refused(Refusal.NOT_SENT, None, why, intent.client_id)
            renew = partial(self.owner.is_sure, position)
        elif position.status is PositionStatus.ACTIVE and position.id not in self._bare:
            # One without a stop does not wait for the database.
            renew = partial(self._store.renew_intent, self._lease, position, intent)
        outcome = await self._venue.close(self._market, intent, renew)
        if isinstance(outcome, Refused) and outcome.copied:  # only this copy was refused
            return Unknown(outcome.client_id, outcome.message, timedelta(0))
        return outcome

    async def _became(self, position: Position, intent: Intent, outcome: Outcome) -> Progress | None:
        match outcome:
            case Executed(order=order):
                return await self._exit_taken(position, intent, order)
            case Refused():
                if not intent.asked:
                    details = f"not closed: {outcome.message}"
                    await self.withdraw(position, intent, IntentOutcome.REFUSED, details)
                else:
                    intent = replace(intent, refused=True)
                    await self._store.renew_intent(self._lease, position, intent)
                return await self._not_closed(position, intent, outcome.message)
            case Unknown():
                await self._store.renew_intent(self._lease, position, intent)
                return await self._not_closed(position, intent, outcome.message)
            case _:
                assert_never(outcome)

    async def _exit_taken(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        """Follow an accepted exit, and see whether it closed all of the position."""
        order = await self._venue.done(self._market, intent, order)
        if order.live:
            left = replace(position, quantity=position.quantity - order.filled)
            return await self._not_closed(left, intent, "its order is still open")
        ended = order.state is not OrderState.CLOSED or order.filled >= order.amount
        if order.filled < intent.amount and ended:  # the order may be for less than all of it
            return await self._partly_closed(position, intent, order)
        return await self._has_closed(position, intent, order)

    async def wait(self, position: Position, intent: Intent) -> Progress | None:
        """Leave an exit in doubt while an order of an earlier holder may still arrive.

        A second one beside it could close the position first; the row would end, and the late one would
        reduce what is opened next. Meanwhile an active position gets its stop again, if that is missing. If
        what the exit was to close is gone meanwhile, it is never sent again, whatever is held afterwards.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        return await self._not_closed(position, intent, "its order may still arrive")

    async def ended(self, position: Position, reason: str) -> Progress:
        """Write down that a position has ended otherwise, before its stops are cancelled and its row ends.

        The row stays open while a stop may still be waiting or arrive. What is held meanwhile is somebody
        else's: a stop placed for it, at the old price, would sell what this table did not open.
        """
        await check_account(self._scope, position)
        return await self._store.expect_close(self._lease, position, reason, ended=True)

    async def judged(self, position: Position, intent: Intent) -> Intent:
        """Judge an exit that an earlier holder left, and of which no order is or will be on the exchange.

        The reasons for it may no longer hold: the price, a refusal or, where the table was restored, the
        whole position. So an order that was sent is followed to its end; one that was not is only sent if a
        person asked for it and what is held has not changed. Otherwise the position gets a stop first. What
        is held is the last read before the order, as a person may trade while the exchange is slow to answer.

        Returns:
            The intent; it is ``void`` if it must not be sent, and ``ended`` if its row is to end with it.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        fills = None
        if intent.asked and not intent.void:
            # Else its age would be that of its first order, and the next would be given up too early. Nor
            # may that one's refusal be written again with what is found out about the next.
            intent = replace(intent, refused=False)
            await self._store.renew_intent(self._lease, position, intent)
            fills = await fills_since_entry(self._scope, position)
        intent, held = await self._seen(position, intent)
        if intent.void or not intent.asked:
            return replace(intent, void=True)
        if held is not None and is_as_written(self._scope, position, held, fills):
            return intent
        self._not_as_it_was(position, intent)
        return replace(intent, void=True)

    async def _seen(self, position: Position, intent: Intent) -> tuple[Intent, Holding | None]:
        """What is held by now; if less of it than an exit was to close, that is written down first of all.

        The exit is never sent again then: whatever is held later may be what a person has opened since. An
        empty list that may lag is enough for that, but not to end the row.
        """
        stop = await self._venue.find_stop(self._market, position)
        held = await self._venue.holding(self._market)
        fired = stop is not None and (stop.state is OrderState.CLOSED or stop.filled > 0)
        whole = held is not None and held.side == position.side.entry and held.amount >= position.quantity
        if whole and not fired:
            return intent, held
        return await self._gone(position, intent, stop, held), held

    def _ended_by(self, position: Position, stop: PlacedOrder | None) -> bool:
        """Whether a position that no list shows has ended: its stop closed all, or no list lags any more.

        While its stop is still being filled it has not, whatever the list says: the rest of that would reduce
        what is opened next.
        """
        if stop is not None and stop.filling:
            return False
        whole = stop is not None and filled_whole(stop, position)
        return whole or position.age_ms >= self._scope.pace.grace_ms

    async def _gone(
        self, position: Position, intent: Intent, stop: PlacedOrder | None, held: Holding | None
    ) -> Intent:
        """Write down that less is held than an exit was to close, and whether its row is to end.

        Nothing is asked in between: if that failed, the exit could close what is opened meanwhile.
        """
        if held is None or held.side != position.side.entry:
            ended = self._ended_by(position, stop)
        else:
            ended = stop is not None and filled_whole(stop, position)
        known = replace(intent, void=True, ended=intent.ended or ended)
        if known != intent:
            await self._store.note_gone(self._lease, position, known)
        if not (intent.void or known.ended):
            self._not_as_it_was(position, intent)
        return known

    def _not_as_it_was(self, position: Position, intent: Intent) -> None:
        self._scope.alert(position, f"not closed, as what is held is not what it was: {intent.client_id}")

    async def end(self, position: Position, intent: Intent) -> Progress | None:
        """End the row of a position that has ended otherwise, when no order of its exit can arrive any more.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        # The copy that an earlier holder sent may be why nothing is left, and not be listed yet.
        sent = None if intent.unsent else await self._venue.find(self._market, intent, patiently=True)
        if sent is not None and (sent.filled or sent.live):
            return await self._exit_taken(position, intent, sent)
        stop = await self._venue.find_stop(self._market, position)
        by_stop = stop is not None and ended_it(stop, position)
        return await self._has_closed(position, intent, None, stop if by_stop else None)

    async def withdraw(
        self, position: Position, intent: Intent, outcome: IntentOutcome, details: str
    ) -> Position:
        """Withdraw an intent to close; the next pass judges the position anew."""
        return await self._store.withdraw_close(self._lease, position, intent, outcome, details)

    async def withdrawn(self, position: Position, intent: Intent) -> Position:
        """Withdraw an intent to close of which no order was sent that can still arrive, nor will be."""
        why = f"{WITHDRAWN}{position.exit_reason}" if intent.asked else "judged again"
        return await self.withdraw(position, intent, IntentOutcome.ABSENT, why)

    async def too_small(self, position: Position, intent: Intent) -> Position:
        """Withdraw an exit of less than the smallest order: none was sent, so none is in doubt."""
        why = too_small(self._market, intent.amount)
        moved = await self.withdrawn(position, intent)
        moved = await self._store.note_error(self._lease, moved, f"not closed: {why}")
        self._scope.alert(moved, f"the position cannot be closed by an order: {why}")
        return moved

    async def _not_closed(self, position: Position, intent: Intent, why: str) -> Progress | None:
        """Note and alert that a position may still be open, and restore a stop that made room for its exit.

        An earlier holder may have cancelled it too, and died.
        """
        await self._store.note_error(self._lease, position, f"not closed: {why}")
        again = "it is tried again" if intent.asked and not intent.void else "it is judged again"
        self._scope.alert(position, f"the position could not be closed, {again}: {why}")
        if intent.sent_before or position.id in self._bare:
            await self._with_stop_again(position, intent)
        return None

    async def _with_stop_again(self, position: Position, intent: Intent) -> None:
        """Place the stop again if it was cancelled for an exit that has not closed the position."""
        intent, held = await self._seen(position, intent)
        if intent.ended or await self.has_stop(position):
            return
        if held is None or held.side != position.side.entry:
            self._scope.alert(position, "it may have no stop, and is not shown yet: the next look goes on")
        else:
            await self._put_back(position)

    async def has_stop(self, position: Position) -> bool:
        """Whether a position has its own stop.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        stop = await self._venue.find_stop(self._market, position)
        if stop is not None:  # lists may lag behind its beginning, and behind its end
            return stop.live or stop.filling
        return any(is_own(position, stop) for stop in await self._venue.waiting_stops(self._market))

    async def _partly_closed(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        """Handle an exit that ended before all of it was filled."""
        why = f"its order ended as {order.state.value}"
        if not order.filled and not intent.asked:
            await self.withdraw(position, intent, IntentOutcome.CANCELED, why)
            return await self._not_closed(position, intent, why)
        rest = await self._store.close_rest(self._lease, position, intent, order)
        left = rest.intent or intent
        as_sent = order.amount in (intent.amount, self._market.rules.reduction(intent.amount))
        if intent.sent_before or not as_sent:
            # The order may have ended long ago, and a person may have closed the rest since. One that the
            # exchange has made smaller has closed all that there was.
            left, _ = await self._seen(rest.position, left)
        if intent.sent_before or order.filled:
            return replace(rest, intent=left)
        return await self._not_closed(rest.position, left, why)

    async def _has_closed(
        self, position: Position, intent: Intent, order: PlacedOrder | None, stop: PlacedOrder | None = None
    ) -> Progress | None:
        """End the row: by the order of the exit, by the stop that fired, or because nothing is left.

        What is left of its entry goes first, while its stops stand: it could be filled after them.
        """
        rest = await self._rest.taken_back(position)
        if rest is not None and rest.unrecorded > 0:
            return await self._entered_since(position, intent, order, rest)
        if rest is not None and rest.open:
            if intent.unsent:
                await self._store.note_error(self._lease, position, GONE)
            return None
        if not await self._sweeper.sweep(position):
            if intent.unsent:
                await self._store.note_error(self._lease, position, GONE)
            return None
        if rest is not None:
            await self._rest.settle(position, rest)
        by_itself = position.status is not PositionStatus.ACTIVE and not (intent.asked or intent.unsent)
        rolled_back = position.status is PositionStatus.PENDING_ENTRY or by_itself
        absent = IntentOutcome.REFUSED if intent.refused else IntentOutcome.ABSENT
        by = order or stop
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.ROLLED_BACK if rolled_back else PositionStatus.CLOSED,
            intent=intent,
            outcome=absent if order is None else IntentOutcome.EXECUTED,
            reason=None if stop is None else "stop",
            price=None if by is None else by.average,
            order_id=None if order is None else order.id,
        )
        return Progress(self._scope.moved(moved, position))

    async def _entered_since(
        self, position: Position, intent: Intent, order: PlacedOrder | None, rest: Rest
    ) -> Progress | None:
        """Go on with what an entry has filled since all else of its row was closed.

        It is closed too if a person asked for that and this holder has just sent the exit. After one of an
        earlier holder, or of the flow's own, it is judged anew, with a stop first.
        """
        again = intent.asked and order is not None and not intent.sent_before
        progress = await self._rest.closed_before(position, rest, intent, order, again=again)
        if not again:
            self._scope.alert(progress.position, "what its entry has filled since it was closed is kept")
        return progress
