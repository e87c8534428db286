"""Ending the row of a market that the exchange no longer lists; nothing can be asked or ordered there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lockguard_ccxt import Step
from lockguard_positions._events import Moved
from lockguard_positions._model import IntentOutcome
from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard._lease import Lease
    from lockguard_positions._events import PositionEvent
    from lockguard_positions._model import Position
    from lockguard_positions._store import PositionStore
    from lockguard_positions._venue import Venue

__all__ = ["end_delisted"]


async def end_delisted(
    store: PositionStore,
    venue: Venue,
    symbol: str,
    lease: Lease,
    reason: str,
    tell: Callable[[PositionEvent], None],
) -> Position | None:
    """End the open row of a market that is no longer listed, and its intents in doubt, without an order.

    The contract may be listed again at any moment, so what may still arrive there stays in doubt: an entry
    that nobody looks for would be a position without a stop, and a stop or an exit would reduce what is
    opened next. The row stays open for that time, with a note to close it again after it.

    Returns:
        The row as it is now; ``None`` if there was no open row.

    Raises:
        UnknownMarket: there is neither a row nor an intent of that name.
    """
    row = await store.open_of(venue.name, symbol)
    loose = await store.loose_stops(venue.name, symbol)
    if row is None and not loose:
        venue.market(symbol)  # raises: there is no such market
    if row is not None:
        row = await _end_row(store, venue, row, lease, reason, tell)
    for stop in loose:
        ended = None if stop.may_arrive(venue.in_doubt_ms) else await store.get(stop.position_id)
        if ended is not None:
            await store.settle(lease, ended, stop, IntentOutcome.ABSENT, details=reason)
    return row


async def _end_row(
    store: PositionStore,
    venue: Venue,
    row: Position,
    lease: Lease,
    reason: str,
    tell: Callable[[PositionEvent], None],
) -> Position:
    entry, stop, exit_ = [await store.in_doubt(row, step) for step in (Step.ENTRY, Step.STOP, Step.CLOSE)]
    _, _, unanswered = await store.stops_of(row)  # also those that were placed by another copy
    named = (("its entry", (entry,)), ("a stop of it", unanswered), ("its exit", (exit_,)))
    late = [
        name
        for name, intents in named
        if any(intent is not None and intent.may_arrive(venue.in_doubt_ms) for intent in intents)
    ]
    if late:
        if exit_ is not None:  # never sent again, whatever is held once the contract is back
            await store.note_gone(lease, row, replace(exit_, void=True, ended=True))
        why = f"its market is gone, and {' and '.join(late)} may still arrive: close it again after that"
        return await store.note_error(lease, row, f"not closed: {why}")
    entered = row.status is not PositionStatus.PENDING_ENTRY
    for intent in (entry, stop, exit_):
        if intent is not None:
            outcome = IntentOutcome.EXECUTED if entered and intent is entry else IntentOutcome.ABSENT
            await store.settle(lease, row, intent, outcome, details=reason)
    status = PositionStatus.CLOSED if entered else PositionStatus.ROLLED_BACK
    ended = await store.finish(lease, row, status, reason=f"{reason}: its market is gone")
    tell(Moved(ended, row.status, lease.grant.operation))
    return ended
