"""What the clean-up of a symbol would send to the exchange, for its dry run: every order, by name.

The clean-up itself looks again under the lease and decides by what it finds then; this is what it would find
now. What depends on an answer of the exchange is named with its condition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard_positions._duplicates import divide
from lockguard_positions._model import Adopt, Position, PositionSide, stop_price_of
from lockguard_positions._status import PositionStatus
from lockguard_positions._venue import standing_stop

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from lockguard_ccxt import Holding, PlacedOrder, Side
    from lockguard_positions._venue import Venue

__all__ = ["planned_orders"]


def planned_orders(
    venue: Venue,
    rows: Sequence[Position],
    held: Holding | None,
    stops: Sequence[PlacedOrder],
    *,
    adopt: Adopt,
    stop_loss_percent: Decimal,
) -> tuple[str, ...]:
    """The orders of one symbol's clean-up or recovery, one line each.

    Args:
        venue: the exchange, for its steps.
        rows: the open rows of the symbol.
        held: what the exchange holds.
        stops: the orders that wait for a price there.
        adopt: what is done about a position without a row.
        stop_loss_percent: where the stop of such a position goes.
    """
    waiting = [stop for stop in stops if stop.reduce_only]
    if len(rows) > 1:
        guarded = {row.id for row in rows if any(_is_of(row, stop) for stop in waiting)}
        division = divide(rows, held, guarded)
        if division is None:
            return ()
        ended = (*division.end, *division.close)
        gone = [s for s in waiting if any(_is_of(row, s) for row in ended) and not _is_of(division.keep, s)]
        return (
            *(_cancel(stop) for stop in gone),
            *(_exit(row.side.exit, row.quantity) for row in division.close),
            *_of_one(venue, division.keep, held, [stop for stop in waiting if stop not in gone]),
        )
    if rows:
        return _of_one(venue, rows[0], held, waiting)
    if held is None:
        return tuple(_cancel(stop) for stop in waiting)
    side = PositionSide.read(held.side)
    if adopt is not Adopt.STOP or held.entry_price is None or standing_stop(waiting, side.exit, held.amount):
        return ()
    trigger = venue.market(held.symbol).rules.price(stop_price_of(side, held.entry_price, stop_loss_percent))
    return (_stop(side.exit, held.amount, trigger),)


def _of_one(
    venue: Venue, row: Position, held: Holding | None, waiting: Sequence[PlacedOrder]
) -> tuple[str, ...]:
    if held is None or held.side != row.side.entry:
        return tuple(_cancel(stop) for stop in waiting if held is None or _is_of(row, stop))
    orders = []
    if row.exit_reason is not None:
        orders.append(
            f"{_exit(row.side.exit, row.quantity)}, if a person asked for that exit ({row.exit_reason})"
        )
    if row.status is PositionStatus.PENDING_ENTRY or any(_is_of(row, stop) for stop in waiting):
        return tuple(orders)
    if standing_stop(waiting, row.side.exit, row.quantity) is not None:
        return tuple(orders)
    planned = row.stop_price
    if planned is None and row.entry_price is not None and row.stop_loss_percent is not None:
        planned = stop_price_of(row.side, row.entry_price, row.stop_loss_percent)
    if planned is not None:
        orders.append(_stop(row.side.exit, row.quantity, venue.market(held.symbol).rules.price(planned)))
        if row.opened_here and held.amount == row.quantity:
            orders.append(f"{_exit(row.side.exit, row.quantity)}, if the exchange refuses that stop for good")
    return tuple(orders)


def _is_of(row: Position, stop: PlacedOrder) -> bool:
    return stop.id == row.stop_order_id or (bool(stop.client_id) and stop.client_id == row.stop_client_id)


def _cancel(stop: PlacedOrder) -> str:
    return f"cancel {stop.client_id or stop.id} ({stop.side} {stop.amount} at {stop.trigger})"


def _exit(side: Side, amount: Decimal) -> str:
    return f"{side} {amount} at market, reduce-only"


def _stop(side: Side, amount: Decimal, trigger: Decimal) -> str:
    return f"stop {side} {amount} at {trigger}, reduce-only"
