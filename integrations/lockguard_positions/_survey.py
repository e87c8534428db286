"""The first read of a pass: which symbols to look at, and what else a person should know.

Nothing is decided on this read. Each symbol that is not clearly in step is read again, under its own lease.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import SyncAction, SyncOutcome
from lockguard_positions._own_rows import OUR_STOPS
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own, only_follows, short_by

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lockguard_ccxt import Holding, PlacedOrder
    from lockguard_positions._model import Position
    from lockguard_positions._store import PositionStore
    from lockguard_positions._venue import Venue

__all__ = ["Survey", "survey"]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a pass found before it took any lease.

    Attributes:
        rows: the positions that are open in the table.
        in_step: the outcomes of symbols that need no further look.
        to_look_at: the symbols that do, in the table's spelling.
        strange_stops: reduce-only stops that belong to no row: symbol, order, and where they wait.
    """

    rows: tuple[Position, ...]
    in_step: tuple[SyncOutcome, ...]
    to_look_at: tuple[str, ...]
    strange_stops: tuple[tuple[str, PlacedOrder, str], ...]


async def survey(store: PositionStore, venue: Venue) -> Survey:
    """Read the table and the exchange, and compare them.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    found = await store.open_on(venue.name)
    rows = {row.symbol: row for row in found}
    listed = await venue.all_waiting_stops()
    holdings = await venue.holdings()
    with suppress(ExchangeUnreadable):  # each symbol then reports it
        await venue.refresh_for([one.symbol for one in holdings] + [r.market or s for s, r in rows.items()])
    held = {venue.name_of(holding.symbol): holding for holding in holdings}
    loose = set(await store.symbols_with_loose_orders(venue.name))
    stops: defaultdict[str, list[PlacedOrder]] = defaultdict(list)
    for stop in listed or ():
        if stop.reduce_only:
            stops[venue.name_of(stop.symbol)].append(stop)
    in_step: list[SyncOutcome] = []
    to_look_at: list[str] = []
    for symbol in sorted(rows.keys() | held.keys() | loose):
        row, holding = rows.get(symbol), held.get(symbol)
        if row is None and holding is not None and (why := venue.left_alone(holding.symbol)) is not None:
            in_step.append(SyncOutcome(symbol, SyncAction.LEFT_ALONE, None, why))
            continue
        plain = listed is not None and symbol not in loose and row is not None and holding is not None
        if (
            plain
            and row is not None
            and holding is not None
            and _in_step(row, holding, stops[symbol])
            and venue.can_close(holding)
            and (row.opened_here or not await _has_another_row(store, row, stops[symbol]))
        ):
            in_step.append(SyncOutcome(symbol, SyncAction.IN_STEP, row.id))
        else:
            to_look_at.append(symbol)
    return Survey(found, tuple(in_step), tuple(to_look_at), _strange(rows, held, stops))


def _in_step(row: Position, holding: Holding, stops: list[PlacedOrder]) -> bool:
    own = [stop for stop in stops if is_own(row, stop)]
    # Another stop of ours beside the row's own was left by an unfinished move.
    left = [stop for stop in stops if not is_own(row, stop) and _may_be_left(row, stop)]
    return (
        row.status is PositionStatus.ACTIVE
        and row.exit_reason is None
        and not holding.leg
        and row.side.entry == holding.side
        and row.quantity == holding.amount
        and bool(own)
        and not short_by(stops, row.side.exit, row.quantity, row)
        and not left
    )


async def _has_another_row(store: PositionStore, row: Position, stops: list[PlacedOrder]) -> bool:
    """Whether two labels of one account have adopted a position at the same time, by the other row's stop.

    The position of another account in the same symbol is no reason for a look in each pass.
    """
    others = await store.open_under_other_labels(row.exchange, row.symbol)
    return any(is_own(other, stop) for other in others for stop in stops)


def _may_be_left(row: Position, stop: PlacedOrder) -> bool:
    first = stop.attached and stop.side == row.side.exit and not only_follows(row, stop)
    return stop.client_id.startswith(OUR_STOPS) or first


def _strange(
    rows: Mapping[str, Position], held: Mapping[str, Holding], stops: Mapping[str, list[PlacedOrder]]
) -> tuple[tuple[str, PlacedOrder, str], ...]:
    """The stops that belong to no row. They are reported and left alone: a person may have placed them."""
    found = []
    for symbol, waiting in sorted(stops.items()):
        row = rows.get(symbol)
        for stop in waiting:
            if row is None and symbol not in held:
                found.append((symbol, stop, "without a position: it would cut the next one short"))
            elif (
                row is not None
                and row.status is PositionStatus.ACTIVE
                and stop.side == row.side.exit
                and not stop.takes_profit
                and not is_own(row, stop)
                and not only_follows(row, stop)
            ):
                found.append((symbol, stop, "beside the position's own stop"))
    return tuple(found)
