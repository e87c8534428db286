"""Closing a position: the one order that is never sent on a guess.

An exit is sent for two reasons: a person asked for it, or the stop of a position that is certainly ours can
never be placed. An exit that an earlier holder did not finish is judged again; see :meth:`Exits.still_right`.
Every exit is reduce-only, and a row ends only when all of it is closed and its stops are certainly gone.

The exit is sent first and the stops are cancelled after it: as both are reduce-only, both may fill without
harm, and an exit that is refused, or whose answer is lost, leaves the position with its stop. An exchange may
count open orders against the position; then the stop is cancelled first after all, and placed again if the
exit is still refused.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, assert_never

from lockguard_ccxt import Executed, OrderState, Outcome, PlacedOrder, Refusal, Refused, Unknown
from lockguard_positions._model import Intent, IntentOutcome, Position, Progress
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard_ccxt import Holding
    from lockguard_positions._scope import SymbolScope
    from lockguard_positions._stops import Sweeper

__all__ = ["Exits"]

_PRICE_SHARE = Decimal("0.0001")
"""The share by which the average prices of an order and of its position may differ."""
_MAY_BE_GONE = frozenset({Refusal.REDUCE_ONLY, Refusal.CROWDED})
"""Refusals of an exit if there is nothing to close, or if open orders count against the position."""


class Exits:
    """Closes positions of one symbol, under its lease.

    Args:
        scope: the symbol and its lease.
        sweeper: cancels the stops.
        put_back: places a stop again at the price of the one that was cancelled; returns the row.
    """

    def __init__(
        self, scope: SymbolScope, sweeper: Sweeper, put_back: Callable[[Position], Awaitable[Position]]
    ) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market = scope.lease, scope.market
        self._sweeper = sweeper
        self._put_back = put_back

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
        outcome = Executed(sent, found=True) if sent else await self._venue.close(self._market, intent)
        if isinstance(outcome, Refused) and outcome.refusal in _MAY_BE_GONE:
            held = await self._venue.holding(self._market)
            if held is None or held.side != position.side.entry:
                if not intent.sent_before:
                    return await self._has_closed(position, intent, None)
                # The copy that an earlier holder sent may be why nothing is left, and not be listed yet.
                sent = await self._venue.find(self._market, intent, patiently=True)
                if sent is None or not sent.filled:
                    return await self._has_closed(position, intent, None)
                return await self._exit_taken(position, intent, sent)
            if not intent.sent_before:  # else each pass would cancel its stop in vain
                position, outcome = await self._without_stop_in_the_way(position, intent, outcome)
        return await self._became(position, intent, outcome)

    async def _without_stop_in_the_way(
        self, position: Position, intent: Intent, refused: Refused
    ) -> tuple[Position, Outcome]:
        """Send an exit again with the stop cancelled, as an exchange may count it against the position."""
        if not await self._sweeper.sweep(position):
            return position, refused
        outcome = await self._venue.close(self._market, intent)
        if isinstance(outcome, Refused):
            position = await self._put_back(position)
        elif isinstance(outcome, Unknown):  # the next holder finds the order, or places a stop
            self._scope.alert(position, f"it may have no stop until the next look: {outcome.message}")
        return position, outcome

    async def _became(self, position: Position, intent: Intent, outcome: Outcome) -> Progress | None:
        match outcome:
            case Executed(order=order):
                return await self._exit_taken(position, intent, order)
            case Refused():
                if not intent.asked:
                    details = f"not closed: {outcome.message}"
                    await self.withdraw(position, intent, IntentOutcome.REFUSED, details)
                return await self._not_closed(position, intent, outcome.message)
            case Unknown():
                return await self._not_closed(position, intent, outcome.message)
            case _:
                assert_never(outcome)

    async def _exit_taken(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        """Follow an accepted exit, and see whether it closed all of the position."""
        order = await self._venue.done(self._market, intent, order)
        if order.live:
            return await self._not_closed(position, intent, "its order is still open")
        if order.state is not OrderState.CLOSED and order.filled < intent.amount:
            return await self._partly_closed(position, intent, order)
        return await self._has_closed(position, intent, order)

    async def still_right(self, position: Position, intent: Intent) -> bool:
        """Whether to send an exit that an earlier holder left, and whose order is not on the exchange.

        The reasons for it may no longer hold: the price, a refusal or, where the table was restored, the
        whole position. So an order that was sent is followed to its end; one that was not is only sent if a
        person asked for it and what is held has not changed. Otherwise the position gets a stop first. This
        is the last read before the order, as a person may trade while the exchange is slow to answer.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        if not intent.asked:
            return False
        held = await self._venue.holding(self._market)
        if held is None or self._is_as_written(position, held):
            return True
        self._scope.alert(position, f"not closed, as what is held is not what it was: {intent.client_id}")
        return False

    def is_ours(self, position: Position, held: Holding) -> bool:
        """Whether what is held is what this row's own order entered, unchanged since."""
        if not position.opened_here or position.entry_price is None or held.entry_price is None:
            return False
        apart = abs(held.entry_price - position.entry_price)
        near = max(self._market.rules.price_tick, position.entry_price * _PRICE_SHARE)
        return held.side == position.side.entry and held.amount == position.quantity and apart <= near

    def _is_as_written(self, position: Position, held: Holding) -> bool:
        entry = held.entry_price if position.entry_price is None else position.entry_price
        as_ours = replace(position, entry_order_id="", entry_price=entry)
        return self.is_ours(as_ours, held)

    async def withdraw(
        self, position: Position, intent: Intent, outcome: IntentOutcome, details: str
    ) -> Position:
        """Withdraw an intent to close; the next pass judges the position anew."""
        return await self._store.withdraw_close(self._lease, position, intent, outcome, details)

    async def _not_closed(self, position: Position, intent: Intent, why: str) -> Progress | None:
        """Note and alert that a position may still be open; after an earlier holder, restore its stop."""
        await self._store.note_error(self._lease, position, f"not closed: {why}")
        again = "it is tried again" if intent.asked else "it is judged again"
        self._scope.alert(position, f"the position could not be closed, {again}: {why}")
        if intent.sent_before:
            await self._with_stop_again(position)
        return None

    async def _with_stop_again(self, position: Position) -> None:
        """Place the stop again if an earlier holder cancelled it for its exit and died."""
        held = await self._venue.holding(self._market)
        if held is not None and held.side == position.side.entry and not await self._has_stop(position):
            await self._put_back(position)

    async def _has_stop(self, position: Position) -> bool:
        if any(is_own(position, stop) for stop in await self._venue.waiting_stops(self._market)):
            return True
        stop = await self._venue.find_stop(self._market, position)
        return stop is not None and stop.live  # not listed yet

    async def _partly_closed(self, position: Position, intent: Intent, order: PlacedOrder) -> Progress | None:
        """Handle an exit that ended before all of it was filled."""
        why = f"its order ended as {order.state.value}"
        if not order.filled and not intent.asked:
            await self.withdraw(position, intent, IntentOutcome.CANCELED, why)
            return await self._not_closed(position, intent, why)
        rest = await self._store.close_rest(self._lease, position, intent, order)
        if order.filled or intent.sent_before:
            return rest
        return await self._not_closed(position, intent, why)

    async def _has_closed(
        self, position: Position, intent: Intent, order: PlacedOrder | None
    ) -> Progress | None:
        if not await self._sweeper.sweep(position):
            return None
        was_active = position.status is PositionStatus.ACTIVE or intent.asked
        moved = await self._store.finish(
            self._lease,
            position,
            PositionStatus.CLOSED if was_active else PositionStatus.ROLLED_BACK,
            intent=intent,
            outcome=IntentOutcome.REFUSED if order is None else IntentOutcome.EXECUTED,
            price=None if order is None else order.average,
            order_id=None if order is None else order.id,
        )
        return Progress(self._scope.moved(moved, position))
