"""The rows of the old table, read in the same read-only transaction as its shape."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_ccxt._markets import short_name, venue_name
from lockguard_positions._fit._mapping import Names, known_status
from lockguard_positions._fit._table import Table, ident, literal
from lockguard_positions._status import OPEN, PositionStatus

if TYPE_CHECKING:
    from lockguard_positions._rows import Connection

__all__ = ["Content", "Row", "read_rows", "read_side"]

_ROWS_MAX = 5000
_VALUES_MAX = 100
_SIDES = {"long": "long", "buy": "long", "short": "short", "sell": "short"}


def read_side(text: str | None) -> str | None:
    """``long`` or ``short``, of a side in any of the usual spellings; ``None`` if it is none of them."""
    return None if text is None else _SIDES.get(text.strip().lower())


@dataclass(frozen=True, slots=True)
class Row:
    """An open row, its values as they are, but the stage."""

    id: str
    exchange: str | None
    symbol: str | None
    side: str | None
    quantity: Decimal | None
    status: str
    stage: PositionStatus
    entry_price: Decimal | None
    stop_price: Decimal | None
    stop_order_id: str | None
    stop_client_id: str | None
    market: str | None
    age_s: float | None

    @property
    def name(self) -> str | None:
        """Its symbol as lockguard spells it."""
        return None if self.symbol is None else short_name(self.symbol)

    @property
    def venue(self) -> str | None:
        """Its exchange as lockguard spells it."""
        return None if self.exchange is None else venue_name(self.exchange)


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a table.

    Attributes:
        statuses: the statuses of all rows and how many have each, the most frequent first; ``None`` is NULL.
        may_be: further statuses that a CHECK or an enum allows, as far as they could be read.
        sides: the sides of all rows that are not long or short.
        open: the open rows.
        cut: whether there are more open rows than were read.
        to_copy: lockguard's columns that lack values of open rows which another column has.
    """

    statuses: dict[str | None, int]
    may_be: tuple[str, ...]
    sides: dict[str | None, int]
    open: tuple[Row, ...]
    cut: bool
    to_copy: tuple[str, ...]

    def unknown(self, names: Names) -> dict[str | None, int]:
        """The statuses whose stage a person has to say, and how many rows have each."""
        all_of: dict[str | None, int] = dict.fromkeys(self.may_be, 0)
        all_of |= self.statuses
        return {s: n for s, n in all_of.items() if s is None or known_status(s, names.statuses) is None}


async def read_rows(conn: Connection, table: Table, names: Names) -> Content:
    """Read what the decisions need: figures of all rows, and the open rows one by one."""
    statuses: dict[str | None, int] = {}
    may_be: tuple[str, ...] = ()
    if names.has("status"):
        statuses = await _counted(conn, table, names.columns["status"])
        may_be = await _allowed(conn, table, names.columns["status"])
    sides = {}
    if names.has("side"):
        sides = await _counted(conn, table, names.columns["side"])
        sides = {side: count for side, count in sides.items() if side not in {"long", "short"}}
    stages = {s: known_status(s, names.statuses) for s in statuses if s is not None}
    open_ = {status: stage for status, stage in stages.items() if stage is not None and stage in OPEN}
    found = await _open_rows(conn, table, names, open_) if open_ else []
    to_copy = await _to_copy(conn, table, names, list(open_)) if open_ else ()
    return Content(statuses, may_be, sides, tuple(found[:_ROWS_MAX]), len(found) > _ROWS_MAX, to_copy)


async def _to_copy(conn: Connection, table: Table, names: Names, open_statuses: list[str]) -> tuple[str, ...]:
    lacking = []
    for ours, theirs in names.sources.items():
        empty = f"{ident(ours)} is null and" if names.has(ours) else ""
        where = f"{empty} {ident(theirs)} is not null and {ident(names.columns['status'])}::text = any($1)"
        query = f"select from {table.sql} where {where} limit 1"
        if await conn.fetchrow(query, open_statuses) is not None:
            lacking.append(ours)
    return tuple(lacking)


async def _counted(conn: Connection, table: Table, column: str) -> dict[str | None, int]:
    name = ident(column)
    counted = f"{name}::text as value, count(*) as count from {table.sql}"
    query = f"select {counted} group by 1 order by 2 desc, 1 limit {_VALUES_MAX}"
    return {row["value"]: row["count"] for row in await conn.fetch(query)}


async def _allowed(conn: Connection, table: Table, column: str) -> tuple[str, ...]:
    """What an enum, or a CHECK that lists values, allows beside what is there."""
    labels = table.columns[column].labels
    listed: list[str] = list(labels)
    for check in table.checks:
        if check.columns == (column,) and check.name != "positions_status":
            query = "select distinct m[1] from regexp_matches($1, '''((?:[^'']|'''')*)''', 'g') m"
            listed += [row[0].replace("''", "'") for row in await conn.fetch(query, check.expression)]
    return tuple(dict.fromkeys(listed))


async def _open_rows(
    conn: Connection, table: Table, names: Names, stages: dict[str, PositionStatus]
) -> list[Row]:
    def column(name: str, cast: str = "text") -> str:
        there = [ident(c[name]) + f"::{cast}" for c in (names.columns, names.sources) if name in c]
        return f"coalesce({', '.join(there)})" if there else f"null::{cast}"

    times = [
        f"{ident(there[name])}::timestamptz"
        for name in ("opened_at", "created_at", "updated_at")
        for there in (names.columns, names.sources)
        if name in there and table.columns[there[name]].base in {"timestamptz", "timestamp"}
    ]
    age = f"extract(epoch from now() - coalesce({', '.join(times)}))::float8" if times else "null::float8"
    exchange = column("exchange") if names.has("exchange") else literal(names.exchange or "EXCHANGE")
    query = f"""
select coalesce({column("id")}, '?') as id, {exchange} as exchange, {column("symbol")} as symbol,
       {column("side")} as side,
       {column("quantity", "numeric")} as quantity, {column("status")} as status,
       {column("entry_price", "numeric")} as entry_price, {column("stop_price", "numeric")} as stop_price,
       {column("stop_order_id")} as stop_order_id, {column("stop_client_id")} as stop_client_id,
       {column("market")} as market, {age} as age_s
  from {table.sql}
 where {column("status")} = any($1)
 order by {ident(names.columns.get("id", names.columns["symbol"]))}
 limit {_ROWS_MAX + 1}
"""  # noqa: S608 - identifiers and the literal are quoted
    rows = await conn.fetch(query, list(stages))
    return [Row(stage=stages[row["status"]], **row) for row in rows]
