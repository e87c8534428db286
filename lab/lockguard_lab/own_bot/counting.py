"""What came of a race, by the exchange's own record and the table. What a bot believes is not evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg

    from lockguard_lab.exchange import ExchangeRecord

__all__ = ["HALF_DONE", "Counted", "counted"]

HALF_DONE = ("pending_entry", "entry_placed", "pending_sl")
_ROWS = "select symbol, status from monitoring.positions order by id"


@dataclass(frozen=True, slots=True)
class Counted:
    """What came of a race in which every symbol was to be opened once.

    Attributes:
        symbols: how many were to be opened.
        opened: how many have a position, on the exchange.
        duplicates: how many were entered more than once.
        wrong_orders: entries after a symbol's first one, orders that reduced a position, and stops beside a
            position's own one or without a position; no signal asked for any of them.
        without_stop: positions that no stop guards.
        half_done: rows in a status of an open that has not ended, or was never ended.
        untrue_rows: symbols whose active rows are not as many as their positions.
        violations: how often the unique index was violated, by the bots' logs.
        broken: how many leases were taken from a holder.
        lost: how often a bot was told so, or was refused a write or an order, by their logs.
    """

    symbols: int
    opened: int
    duplicates: int
    wrong_orders: int
    without_stop: int
    half_done: int
    untrue_rows: int
    violations: int
    broken: int
    lost: int

    @property
    def harm(self) -> dict[str, int]:
        """What must be zero."""
        return {
            "duplicates": self.duplicates,
            "wrong orders": self.wrong_orders,
            "positions without a stop": self.without_stop,
            "half-done rows": self.half_done,
            "untrue rows": self.untrue_rows,
        }


async def counted(
    conn: asyncpg.Connection[Any],
    record: ExchangeRecord,
    symbols: Sequence[str],
    lines: Iterable[str],
    *,
    broken: int,
) -> Counted:
    """Count.

    Args:
        conn: to the bots' database.
        record: the exchange's.
        symbols: those that were to be opened, by the exchange's own names.
        lines: all that the bots have logged.
        broken: how many leases were taken from a holder.
    """
    rows = [(row["symbol"], row["status"]) for row in await conn.fetch(_ROWS)]
    entries = {symbol: len(record.entries(symbol)) for symbol in symbols}
    held = {symbol for symbol in symbols if record.position(symbol)}
    stops_too_many = sum(
        max(0, len(record.open_stops(symbol)) - (1 if symbol in held else 0)) for symbol in symbols
    )
    said = list(lines)
    return Counted(
        symbols=len(symbols),
        opened=len(held),
        duplicates=sum(count > 1 for count in entries.values()),
        wrong_orders=sum(max(0, count - 1) for count in entries.values())
        + len(record.reductions())
        + stops_too_many,
        without_stop=len(record.without_stop()),
        half_done=sum(status in HALF_DONE for _, status in rows),
        untrue_rows=sum(rows.count((symbol, "active")) != (symbol in held) for symbol in symbols),
        violations=sum("UniqueViolationError" in line for line in said),
        broken=broken,
        lost=sum("LeaseLost" in line or "StaleToken" in line for line in said),
    )
