"""Stops that have fired and were filled only in part: their row is left with the rest.

The orders' own fills count, as everywhere. A stop may fire in part while it is the row's own, before the row
has it, or while another is taking its place; each fill is counted once.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_positions._model import Progress
from lockguard_positions._stops import filled_in_part

if TYPE_CHECKING:
    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._model import Intent, Position
    from lockguard_positions._scope import SymbolScope

__all__ = ["filled_before", "less_a_new_one", "less_its_stop"]

_LATEST = 5
"""How many stops of a position are read for what they have filled."""


async def less_its_stop(scope: SymbolScope, position: Position) -> Position:
    """The row less what its own stop has filled, if that ended with a rest; it is replaced then.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    stop = await scope.venue.find_stop(scope.market, position)
    if stop is None or not filled_in_part(stop, position):
        return position
    filled = stop.filled + await filled_before(scope, position, but=position.stop_client_id)
    if filled >= position.quantity:
        return position  # nothing is left, which the next look finds out
    scope.alert(position, f"its stop has filled {stop.filled} of {position.quantity} only")
    return await scope.store.stop_filled(scope.lease, position, filled, own=True)


async def less_a_new_one(
    scope: SymbolScope, position: Position, intent: Intent, order: PlacedOrder
) -> Progress:
    """The row less what a stop has filled that it did not have yet."""
    # One for another quantity than the row's was counted when that became smaller.
    filled = order.filled if _is_for(intent, position) else Decimal(0)
    own = intent.client_id == position.stop_client_id  # while its answer is awaited, it may be the row's
    moved = await scope.store.stop_filled(scope.lease, position, filled, own=own, fired=(intent, order.id))
    return Progress(moved)


async def filled_before(scope: SymbolScope, position: Position, *, but: str | None = None) -> Decimal:
    """How much the latest stops have filled that were intended for the row's present quantity.

    What was counted before made the row smaller, so that it is not counted again.

    Args:
        scope: the symbol and its lease.
        position: the row.
        but: the client order id of a stop that is left out.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    _, placed, _ = await scope.store.stops_of(position)
    same = [one for one in placed if _is_for(one, position) and one.client_id != but]
    filled = Decimal(0)
    for intent in sorted(same, key=lambda one: one.number)[-_LATEST:]:
        stop = await scope.venue.find(scope.market, intent)
        filled += Decimal(0) if stop is None or stop.filling else stop.filled
    return filled


def _is_for(stop: Intent, position: Position) -> bool:
    """Whether a stop was intended for the row's quantity, but for what its entry has filled since."""
    return stop.amount + stop.entered_since == position.quantity
