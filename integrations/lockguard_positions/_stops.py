"""Stops: which position owns them, which one protects a position, and cancelling them.

A reduce-only stop cannot open a position, but a forgotten one cuts the next position short. So a row ends
only when its stops are certainly gone; while one may still exist, the row stays open with its exit in doubt,
and the next holder tries again. The same while a copy of one may still arrive whose answer was lost:
Binance takes an id again once its order has ended, and the copy would stand.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_ccxt import Executed, OrderState, Outcome, Refusal, Refused, Unknown
from lockguard_positions._model import Intent, IntentOutcome, Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lockguard_ccxt import PlacedOrder, Side
    from lockguard_positions._scope import SymbolScope

__all__ = [
    "Sweeper",
    "covers",
    "ended_it",
    "filled_in_part",
    "filled_whole",
    "is_own",
    "named",
    "only_follows",
    "short_by",
    "standing_stop",
]


def named(stop: PlacedOrder) -> str:
    """A stop as a text for display: its id, side, amount and trigger."""
    return f"{stop.client_id or stop.id} ({stop.side} {stop.amount} at {stop.trigger})"


def is_own(row: Position, stop: PlacedOrder) -> bool:
    """Whether a stop is the row's, by the exchange's id or by the client order id."""
    return stop.id == row.stop_order_id or (bool(stop.client_id) and stop.client_id == row.stop_client_id)


def only_follows(row: Position, stop: PlacedOrder) -> bool:
    """Whether a stop closes the whole position but triggers after the row's own, so that it never fires.

    Bybit's entries carry such a stop. If the row's own was moved away from the price since, the one that the
    entry carried triggers first.
    """
    if not stop.closes_all or stop.trigger is None or row.stop_price is None:
        return False
    return stop.trigger <= row.stop_price if stop.side == "sell" else stop.trigger >= row.stop_price


def standing_stop(stops: Iterable[PlacedOrder], side: Side, amount: Decimal) -> PlacedOrder | None:
    """The stop that protects a position best; ``None`` if none does.

    Args:
        stops: the open conditional orders of the symbol, no matter who placed them.
        side: the side that closes the position.
        amount: the amount held.

    Returns:
        A stop that covers all of ``amount``, the one reached first; else the largest one that covers a part.
    """
    found = [s for s in stops if s.live and s.reduce_only and s.side == side and not s.takes_profit]
    return max(found, key=lambda stop: _protects(stop, amount), default=None)


def short_by(stops: Iterable[PlacedOrder], side: Side, amount: Decimal, *rows: Position) -> Decimal:
    """How much of what is held no standing stop covers.

    All of them count together, no matter who placed them, and a row's own also if it is not reduce-only.

    Args:
        stops: the open conditional orders of the symbol.
        side: the side that closes the position.
        amount: the amount held, which may be more than the rows say.
        rows: the position's open rows.
    """
    rest = amount
    for stop in stops:
        protects = stop.live and stop.side == side and not stop.takes_profit
        if protects and (stop.reduce_only or any(is_own(row, stop) for row in rows)):
            rest -= amount if stop.closes_all else stop.amount
    return max(rest, Decimal(0))


def covers(stop: PlacedOrder, amount: Decimal) -> bool:
    """Whether a stop closes all of a position of ``amount``."""
    return stop.closes_all or stop.amount >= amount


def filled_in_part(stop: PlacedOrder, position: Position) -> bool:
    """Whether a stop has fired and ended, and has closed only a part of its position.

    What its state is called then depends on the exchange: Bybit says that it was cancelled.
    """
    ended = not (stop.live or stop.filling)
    return ended and 0 < stop.filled < position.quantity


def filled_whole(stop: PlacedOrder, position: Position) -> bool:
    """Whether a stop has fired, and has closed all of its position."""
    return not stop.live and stop.filled >= position.quantity


def ended_it(stop: PlacedOrder, position: Position) -> bool:
    """Whether a stop has ended a position that is gone; not if it is known to have closed a part only."""
    return stop.state is OrderState.CLOSED and not filled_in_part(stop, position)


def _protects(stop: PlacedOrder, amount: Decimal) -> tuple[bool, Decimal, Decimal]:
    trigger = stop.trigger or Decimal(0)
    nearness = trigger if stop.side == "sell" else -trigger
    whole = covers(stop, amount)
    return whole, Decimal(0) if whole else stop.amount, nearness


class Sweeper:
    """Cancels stops of one symbol, under its lease."""

    def __init__(self, scope: SymbolScope) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market = scope.lease, scope.market

    async def note_copy(self, position: Position, intent: Intent, outcome: Outcome) -> None:
        """Note, before a stop is settled, if another copy of it may still arrive.

        An earlier holder may have sent several, so a stop of its is taken for one that was.
        """
        if not isinstance(outcome, Unknown) and (intent.sent_before or outcome.copied):
            await self._store.renew_intent(self._lease, position, intent, copied=True)

    async def only_waits(self, position: Position) -> bool:
        """Whether nothing is left of a position to protect, but a stop of it may still arrive.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        if position.age_ms < self._scope.pace.grace_ms:
            return False
        _, _, unanswered = await self._store.stops_of(position)
        if not self._may_arrive(unanswered):
            return False
        held = await self._venue.holding(self._market)
        return held is None or held.side != position.side.entry

    def tell_of_rest(
        self, position: Position, waiting: Iterable[PlacedOrder], held: Decimal | None = None
    ) -> str:
        """Raise an alert if the standing stops cover only a part of a position; returns its text, or none.

        A stop of ours is no larger than the largest order, either.

        Args:
            position: the row.
            waiting: the open conditional orders of the symbol.
            held: the amount held; the row's, if it was not looked at.
        """
        amount = position.quantity if held is None else held
        rest = short_by(waiting, position.side.exit, amount, position)
        if rest < self._market.rules.amount_step:  # a stop is in whole steps
            return ""
        told = f"its stops cover only a part of it: {amount - rest} of {amount}"
        self._scope.alert(position, told)
        return told

    async def sweep(self, position: Position, *, for_good: bool = True) -> bool:
        """Cancel every open order of a position but an exit; returns whether none is left.

        That is its stops, what is left of one that has fired, and what is left of its entry. Each could be
        filled after the row has ended, and would change what is opened next.

        Args:
            position: the row.
            for_good: whether the row is to end, so that none may arrive later either.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        ours, may_stand, unanswered = await self._store.stops_of(position)
        gone, own = True, ours | ({position.entry_client_id} if position.entry_client_id else set())
        # By the exchange's id too: a row from before intents has no other.
        waiting = [
            order
            for order in await self._venue.open_orders(self._market)
            if order.client_id in own or order.id == position.stop_order_id
        ]
        placed = self._venue.placed_stop(self._market, position)
        if placed is not None and placed.id not in {order.id for order in waiting}:
            # Lists lag: a stop that was placed a moment ago may not be listed yet.
            waiting.append(placed)
        # Nor may one that a move has left, as the list did not show the new one yet.
        known = {order.client_id for order in waiting}
        waiting += [
            self._venue.intended_stop(self._market, intent)
            for intent in may_stand
            if intent.client_id not in known and intent.age_ms < self._venue.in_doubt_ms
        ]
        for order in waiting:
            gone &= self._told_gone(await self._venue.cancel(order), order, position)
        if for_good and self._may_arrive(unanswered):
            self._scope.alert(position, "a stop of it may still arrive; its row ends when none can")
            return False
        return gone

    def _may_arrive(self, unanswered: Iterable[Intent]) -> bool:
        return any(intent.may_arrive(self._venue.in_doubt_ms) for intent in unanswered)

    def _told_gone(self, outcome: Outcome, order: PlacedOrder, position: Position) -> bool:
        if _gone(outcome):
            if isinstance(outcome, Executed) and outcome.order.trigger != order.trigger:
                was, by_then = order.trigger, outcome.order.trigger
                if by_then is None:
                    what, read = "may have been", f"at {was}; where it was by then could not be read"
                else:
                    what, read = "was", f"at {was} when it was read and at {by_then} by then"
                why = (
                    f"a stop that {what} moved by hand has been taken back: it was {read};"
                    " set it again if it is still wanted"
                )
                self._scope.alert(position, why)
            return True
        what = "what is left of the entry" if _rest_of_entry(position, order) else "the stop"
        message = f"{what} {order.client_id or order.id} may still be waiting: {_told(outcome)}"
        self._scope.alert(position, message)
        return False

    async def sweep_old(self, position: Position, *, was: Position | None = None) -> None:
        """Cancel the stops that were intended for a position but are no longer its own.

        This includes the stop that its entry carried, if that would fire first. The row's own stop is kept.

        Args:
            position: the row.
            was: the row when the old stop was its own; that stop is then cancelled even if it is not listed
                yet.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        ours = await self._store.stop_ids(position)
        waiting = await self._venue.open_orders(self._market)
        if not any(is_own(position, order) and order.conditional for order in waiting):
            # An exchange may accept an order and drop it a moment later: trust what it shows, not its answer.
            shown = await self._venue.find_stop(self._market, position)
            if shown is None or not shown.live:
                return  # left to the next pass
        old = None if was is None else self._venue.placed_stop(self._market, was)
        if old is not None:
            self._told_gone(await self._venue.cancel(old), old, position)
        for order in waiting:
            if is_own(position, order) or (old is not None and order.id == old.id):
                continue
            if order.client_id in ours or await self._came_along_and_is_first(position, order):
                self._told_gone(await self._venue.cancel(order), order, position)

    async def _came_along_and_is_first(self, position: Position, order: PlacedOrder) -> bool:
        """Whether an order is the stop that the entry carried, and would fire before the row's own.

        A stop at another price than the entry's was set by a person, and is kept.
        """
        if not order.attached or order.side != position.side.exit or only_follows(position, order):
            return False
        return order.trigger == await self._store.attached_stop(position)

    async def sweep_loose(self, position: Position, intents: Sequence[Intent]) -> None:
        """Settle the stops in doubt of a position that has ended, as far as their outcome is known.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        for intent in intents:
            order = await self._venue.find(self._market, intent)
            if order is None:
                if intent.age_ms >= self._venue.in_doubt_ms:
                    await self._store.settle(self._lease, position, intent, IntentOutcome.ABSENT)
            elif not (order.live or order.filling) or _gone(await self._venue.cancel(order)):
                await self._store.settle(
                    self._lease, position, intent, IntentOutcome.CANCELED, order_id=order.id
                )


def _rest_of_entry(position: Position, order: PlacedOrder) -> bool:
    """Whether an open order is what is left of the position's entry."""
    return bool(order.client_id) and order.client_id == position.entry_client_id


def _gone(outcome: Outcome) -> bool:
    """Whether a cancel leaves no order: it was executed, or none was found. Any other refusal leaves it."""
    return isinstance(outcome, Executed) or (
        isinstance(outcome, Refused) and outcome.refusal is Refusal.NOT_FOUND
    )


def _told(outcome: Outcome) -> str:
    return "" if isinstance(outcome, Executed) else outcome.message
