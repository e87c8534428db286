"""Writing down what a row's own entry has filled since it was recorded.

An entry that was filled in part is recorded with that part, so that its stop is placed at once. What is left
of it may be filled later, where it cannot be taken back. Each such part becomes an intent of its own beside
the one to enter, which stays in doubt until nothing of the entry can be filled any more.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from lockguard_ccxt import Step
from lockguard_positions import _rows as rows
from lockguard_positions._fenced_writes import FencedWrites
from lockguard_positions._model import IntentOutcome, Progress
from lockguard_positions._rows import statement
from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from lockguard._lease import Lease
    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._model import Intent, Position

__all__ = ["PartWrites"]


class PartWrites(FencedWrites):
    """Writes of the parts that an entry was filled in."""

    @abstractmethod
    def _tell_settled(self, position: Position, intent: Intent | None, outcome: IntentOutcome) -> None:
        """Tell what became of an intent that was in doubt."""

    async def entry_filled(
        self,
        lease: Lease,
        position: Position,
        entry: PlacedOrder,
        *,
        closing: Intent | None = None,
        by: PlacedOrder | None = None,
        again: bool = False,
    ) -> Progress:
        """Record what the row's own entry has filled since it was recorded: the row grows by that.

        Only fills of that order make a row larger. Recording the same ones once more changes nothing.

        Args:
            lease: on the symbol.
            position: the row.
            entry: the order of its entry, as the exchange knows it now.
            closing: the intent to close, if all that the row had is closed: the row is left with what was
                filled since, without a stop of its own.
            by: the order of that intent, if one closed the rest of the row.
            again: whether what was filled since is to be closed as well, for the same reason.

        Returns:
            The row, and the new intent to close if there is one.
        """
        was = position.quantity
        outcome = _outcome_of(closing, by)

        async def work(conn: rows.Connection) -> Progress:
            more = await rows.add_part(conn, lease, position, entry.filled, entry.id)
            anew = closing is not None or position.status is PositionStatus.ACTIVE
            larger = (was + more, entry.average, lease.token, anew)
            row = await conn.fetchrow(
                statement("enlarge"), *rows.decided_on(position), *larger, timeout=rows.STATEMENT_S
            )
            moved = rows.changed(position, row)
            if closing is None:
                return Progress(moved)
            moved = await rows.reduce(conn, lease, moved, was, None, by_its_stop=True)
            told = f"its entry has filled {more} more"
            await rows.settle(conn, position, closing, outcome, None if by is None else by.id, told)
            if again:
                reason, asked = (
                    position.exit_reason or "exit",
                    rows.details_of(replace(closing, refused=False)),
                )
                return await rows.intend(conn, lease, moved, Step.CLOSE, reason, asked)
            row = await conn.fetchrow(
                statement("withdraw_close"), *rows.decided_on(moved), lease.token, timeout=rows.STATEMENT_S
            )
            return Progress(rows.changed(moved, row))

        progress = await self._write(lease, work)
        self._tell_settled(position, closing, outcome)
        return progress


def _outcome_of(closing: Intent | None, by: PlacedOrder | None) -> IntentOutcome:
    """What became of an intent to close that closes nothing more: by its order, if it had one."""
    if by is not None:
        return IntentOutcome.EXECUTED
    return IntentOutcome.REFUSED if closing is not None and closing.refused else IntentOutcome.ABSENT
