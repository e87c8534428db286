"""Several open rows of one symbol, left by a bot from before schema version 8, whose index prevents them.

Exchanges net positions, so the rows share one holding, and amounts tell which rows it belongs to. One row is
kept, preferably one whose stop stands. Of the others, those whose amounts make up the rest of the holding
were entered as well: they are closed, reduce-only, each by its own amount. The remaining rows were never
entered, or record the same position twice, and are only ended. Where the amounts do not add up, nothing is
done and an alert is raised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_ccxt import Step
from lockguard_positions._account import check_account
from lockguard_positions._model import IntentOutcome, Position, PositionSide, SyncAction, SyncOutcome
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_ccxt import Holding, PlacedOrder
    from lockguard_positions._flow import Flow
    from lockguard_positions._scope import SymbolScope

__all__ = ["Division", "Duplicates", "divide"]

_ZERO = Decimal(0)
_RANK = (
    PositionStatus.ACTIVE,
    PositionStatus.PENDING_SL,
    PositionStatus.ENTRY_PLACED,
    PositionStatus.PENDING_ENTRY,
)


@dataclass(frozen=True, slots=True)
class Division:
    """What becomes of the rows.

    Attributes:
        keep: the row that stays open.
        close: rows whose amounts are closed on the exchange.
        end: rows that are ended without an order.
    """

    keep: Position
    close: tuple[Position, ...]
    end: tuple[Position, ...]


def divide(rows: Sequence[Position], held: Holding | None, waiting: Sequence[PlacedOrder]) -> Division | None:
    """Decide which rows the exchange's position belongs to; ``None`` when the amounts do not add up.

    Args:
        rows: the open rows of one symbol, at least two.
        held: what the exchange holds.
        waiting: the open stops of the symbol.
    """
    guarded = {row.id for row in rows if any(is_own(row, stop) for stop in waiting)}
    best = sorted(rows, key=lambda row: (row.id not in guarded, _RANK.index(row.status), row.id))
    if held is None:
        return Division(best[0], (), tuple(best[1:]))
    way = PositionSide.read(held.side)
    keep = next((row for row in best if row.side is way and row.quantity <= held.amount), None)
    if keep is None:
        return None
    surplus = held.amount - keep.quantity
    close: list[Position] = []
    end: list[Position] = []
    for row in best:
        if row is keep:
            continue
        if row.side is way and _ZERO < row.quantity <= surplus:
            close.append(row)
            surplus -= row.quantity
        else:
            end.append(row)
    return None if surplus else Division(keep, tuple(close), tuple(end))


class Duplicates:
    """Ends all but one of a symbol's open rows, under its lease.

    Args:
        scope: the symbol and its lease.
        flow: closes what was entered twice.
    """

    def __init__(self, scope: SymbolScope, flow: Flow) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._flow = flow

    async def settle(self) -> tuple[SyncOutcome, ...]:
        """End all open rows but one; returns the outcomes, none if there is at most one row.

        Raises:
            ExchangeUnreadable: the exchange did not answer; what was done so far stands.
        """
        market, symbol = self._scope.market, self._scope.symbol
        rows = await self._scope.open_rows()
        if len(rows) < 2:
            return ()
        young = [row for row in rows if await self._in_doubt(row)]
        if young:
            return (SyncOutcome(symbol, SyncAction.IN_DOUBT, young[0].id, "its order may still arrive"),)
        for row in rows:
            await check_account(self._scope, row)
        waiting = await self._venue.waiting_stops(market)
        held = await self._venue.holding(market)
        division = divide(rows, held, waiting)
        if division is None:
            what = "nothing" if held is None else f"{PositionSide.read(held.side).value} {held.amount}"
            message = f"{len(rows)} open rows and the exchange holds {what}: it does not add up"
            self._scope.alert(rows[0], message)
            return (SyncOutcome(symbol, SyncAction.MISMATCH, rows[0].id, message),)
        reason = f"duplicate of position {division.keep.id}"
        ended = [await self._end(row, division.keep, reason) for row in division.end]
        closed = [await self._close(row, reason) for row in division.close]
        return (*ended, *closed)

    async def _in_doubt(self, row: Position) -> bool:
        intent = await self._store.in_doubt(row, Step.ENTRY, Step.CLOSE)
        return intent is not None and intent.may_arrive(self._venue.in_doubt_ms)

    async def _end(self, row: Position, keep: Position, reason: str) -> SyncOutcome:
        shared = row.stop_order_id is not None and row.stop_order_id == keep.stop_order_id
        if not await self._flow.sweeper.sweep(replace(row, stop_order_id=None) if shared else row):
            return SyncOutcome(row.symbol, SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
        before_entry = row.status is PositionStatus.PENDING_ENTRY
        intent = await self._store.in_doubt(row, Step.ENTRY, Step.CLOSE)
        in_part = intent is not None and intent.step is Step.ENTRY and not before_entry
        ended = await self._store.finish(
            self._scope.lease,
            row,
            PositionStatus.ROLLED_BACK if before_entry else PositionStatus.CLOSED,
            intent=intent,
            outcome=IntentOutcome.EXECUTED if in_part else IntentOutcome.ABSENT,
            reason=reason,
        )
        self._scope.moved(ended, row)
        return SyncOutcome(row.symbol, SyncAction.ENDED, row.id, reason)

    async def _close(self, row: Position, reason: str) -> SyncOutcome:
        ended = await self._flow.drive(await self._flow.intend_close(row, reason, asked=True))
        action = SyncAction.IN_DOUBT if ended.status.open else SyncAction.ENDED
        return SyncOutcome(row.symbol, action, row.id, f"{reason}, closed on the exchange")
