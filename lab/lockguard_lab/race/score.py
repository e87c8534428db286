"""The score of a round by the two authoritative records: the database's rows and the exchange's own."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard_lab.statements import statement

if TYPE_CHECKING:
    import asyncpg

    from lockguard_lab.exchange import ExchangeRecord

__all__ = ["Score", "score_round"]

_FILE = "race.sql"


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one round, or the sum of several. Counts are of symbols, each opened once a round."""

    duplicates: int = 0
    overlapping_rows: int = 0
    unique_violations: int = 0
    double_entries: int = 0
    reversed_positions: int = 0
    without_stop: int = 0
    orphan_stops: int = 0
    stale_committed: int = 0
    rolled_back: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


async def score_round(
    conn: asyncpg.Connection[Any], record: ExchangeRecord, *, violations: list[str], guard: bool
) -> Score:
    """Count what went wrong, then forget the round's rows.

    Args:
        conn: the scratch database.
        record: the exchange's record since the round began.
        violations: symbols, in any spelling without punctuation of their own, where an index was violated.
        guard: whether the rows have tokens to check.
    """
    rows = await conn.fetch(statement("overlapping", _FILE))
    overlapping = {str(row[0]) for row in rows}
    violated = {_plain(symbol) for symbol in violations if symbol}
    doubled, turned = entered_twice_and_turned(record)
    stale = int(await conn.fetchval(statement("stale_committed", _FILE))) if guard else 0
    rolled_back = int(await conn.fetchval(statement("rolled_back", _FILE)))
    await conn.execute(statement("forget", _FILE))
    return Score(
        duplicates=len(overlapping | violated | doubled),
        overlapping_rows=len(overlapping),
        unique_violations=len(violated),
        double_entries=len(doubled),
        reversed_positions=len(turned),
        without_stop=len(record.without_stop()),
        orphan_stops=len(record.orphan_stops()),
        stale_committed=stale,
        rolled_back=rolled_back,
    )


def entered_twice_and_turned(record: ExchangeRecord) -> tuple[set[str], set[str]]:
    """Contracts bought while held, and contracts that went short; all signals of a race are long."""
    held: dict[str, Decimal] = {}
    doubled: set[str] = set()
    turned: set[str] = set()
    for fill in record.fills:
        before = held.get(fill.symbol, Decimal(0))
        after = held[fill.symbol] = before + fill.qty * fill.side.sign
        if before > 0 and after > before:
            doubled.add(fill.symbol)
        if after < 0:
            turned.add(fill.symbol)
    return doubled, turned


def _plain(symbol: str) -> str:
    """``APTUSDT`` for ``APT/USDT:USDT``, as in the rows and on the exchange."""
    return symbol.partition(":")[0].replace("/", "")
