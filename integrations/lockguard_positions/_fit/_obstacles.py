"""What else at a table would refuse, swallow or double a write of the flow: keys, rules, references, numbers.

Each is found before the first statement runs, as a table that is said to fit is one on which a position can
be opened and closed, and then the next one of the same symbol.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import asyncpg

from lockguard_asyncpg._connection import whole
from lockguard_positions._fit._mapping import Names
from lockguard_positions._fit._samples import ours_of, sample_rows, textual
from lockguard_positions._fit._steps import Finding, Kind
from lockguard_positions._fit._table import Index, Table, ident, literal
from lockguard_positions._rows import statement
from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_positions._rows import Connection

__all__ = ["obstacles"]

_FILE = "fit.sql"
_SAME = frozenset({"exchange", "symbol", "market", "side", "status"})
"""What two positions of a symbol may have in common; all other columns of the flow differ, or are NULL."""
_MARKET_SINCE = 10
"""The first version of the positions schema that fills the column ``market``."""
_WORDS = {"status": tuple(status.value for status in PositionStatus), "side": ("long", "short")}


async def obstacles(conn: Connection, table: Table, names: Names) -> list[Finding]:
    """All of them, read in the transaction of the fit."""
    if table.partitioned:
        return []
    of = (_keys, _rules, _unlogged, _references, _numbers, _markets)
    return [finding for each in of async for finding in each(conn, table, names)]


async def _keys(conn: Connection, table: Table, names: Names) -> AsyncIterator[Finding]:
    """Keys that a symbol's next position would share with one that has ended."""
    for index in table.indexes:
        if not (index.unique or index.exclusion) or not index.valid or _tells_apart(index, table, names):
            continue
        keys = [ident(key) if key in table.columns else f"({textual(table, key)})" for key in index.columns]
        conditions = [] if index.predicate is None else [f"({textual(table, index.predicate)})"]
        if not index.nulls_equal:
            conditions += [f"{key} is not null" for key in keys]
        query = (
            f"select coalesce(bool_or({' and '.join(conditions) or 'true'}), false)"  # noqa: S608 - of the catalog
            f" from ({sample_rows(table, names, ended=True)}) as row"
        )
        try:
            async with whole(conn):
                shared = await conn.fetchval(query)
        except asyncpg.PostgresError as exc:
            told = f"{index.shown} could not be tried on a row of lockguard's ({exc.sqlstate})"
            yield Finding(Kind.NOTE, told, "read it: it may allow one position of a symbol for ever")
            continue
        if shared:
            where = "" if index.predicate is None else f" where {index.predicate}"
            told = (
                f"{index.shown} allows one row per {', '.join(index.columns)}{where} for ever, and each"
                " position is a row"
            )
            drop = (
                f"alter table {table.sql} drop constraint {ident(index.constraint)};"
                if index.constraint
                else f"drop index {index.shown};"
            )
            remedy = f"if no code of the bot relies on it (on conflict, upserts): {drop}"
            yield Finding(Kind.SHAPE, told, remedy, blocks=True)


def _tells_apart(index: Index, table: Table, names: Names) -> bool:
    """Whether a column of the key differs from row to row, such as an id, an order's id or a time."""
    for column in table.columns.values():
        if not any(_mentions(key, column.name) for key in index.columns):
            continue
        ours = ours_of(column, names)
        if ours is not None and ours not in _SAME:
            return True
        if ours is None and (column.identity or "(" in (column.default or "")):
            return True
    return False


def _mentions(key: str, name: str) -> bool:
    return key == name or re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", key) is not None


async def _rules(conn: Connection, table: Table, _: Names) -> AsyncIterator[Finding]:
    for rule in await conn.fetch(statement("rules", _FILE), table.oid):
        told = f"rule {ident(rule['name'])} on {rule['event']} rewrites what lockguard writes, or refuses it"
        remedy = f"make a trigger of it, and: drop rule {ident(rule['name'])} on {table.sql};"
        yield Finding(Kind.SHAPE, told, remedy, blocks=True)


async def _unlogged(conn: Connection, table: Table, _: Names) -> AsyncIterator[Finding]:
    if await conn.fetchval(statement("unlogged", _FILE), table.oid):
        told = f"{table.sql} is unlogged: a crash empties it, and no intent can refer to its rows"
        yield Finding(Kind.SHAPE, told, f"alter table {table.sql} set logged;", blocks=True)


async def _references(conn: Connection, table: Table, names: Names) -> AsyncIterator[Finding]:
    """Foreign keys of the columns that the flow fills."""
    for key in await conn.fetch(statement("pointing", _FILE), table.oid):
        ours = [ours_of(table.columns[name], names) for name in key["columns"]]
        name, target, there = ident(key["name"]), key["target"], ", ".join(map(ident, key["targets"]))
        words = _WORDS.get(ours[0] or "") if len(ours) == 1 else None
        if words is not None:
            missing = await _missing(conn, target, ident(key["targets"][0]), words)
            if missing:
                told = f"{name} refuses {ours[0]} {', '.join(missing)}: {target} lacks that"
                remedy = (
                    f"add them to {target} ({there}), or: alter table {table.sql} drop constraint {name};"
                )
                yield Finding(Kind.SHAPE, told, remedy, blocks=True)
        elif all(ours):
            told = f"{name} refuses a position whose {', '.join(key['columns'])} is not in {target}"
            remedy = f"have {target} ({there}) hold what the flow is to trade, in lockguard's spelling"
            yield Finding(Kind.NOTE, told, remedy)


async def _missing(conn: Connection, target: str, column: str, words: tuple[str, ...]) -> list[str]:
    query = (
        "select w.word from unnest($1::text[]) with ordinality as w(word, place)"  # noqa: S608 - of the catalog
        f" where not exists (select from {target} as t where t.{column}::text = w.word) order by w.place"
    )
    try:
        async with whole(conn):
            return [row[0] for row in await conn.fetch(query, list(words))]
    except asyncpg.InsufficientPrivilegeError:
        return []


async def _numbers(conn: Connection, table: Table, names: Names) -> AsyncIterator[Finding]:
    """A sequence that is behind the ids that rows were given by hand, or by a restore."""
    if not names.has("id") or table.columns[names.columns["id"]].base not in {"int2", "int4", "int8"}:
        return
    column = names.columns["id"]
    last = await conn.fetchval(f"select max({ident(column)}) from {table.sql}")  # noqa: S608 - quoted
    for row in await conn.fetch(statement("numbering", _FILE), table.oid, column):
        if last is not None and row["next"] <= last:
            told = f"the next {column} would be {row['next']}, and there are rows up to {last}"
            top = f"(select max({ident(column)}) from {table.sql})"  # noqa: S608 - quoted
            yield Finding(Kind.VALUE, told, f"select setval({literal(row['sequence'])}, {top});", blocks=True)


async def _markets(conn: Connection, table: Table, names: Names) -> AsyncIterator[Finding]:
    """A column ``market`` that says something else, such as ``futures``."""
    column = table.columns.get("market")
    if column is None or ours_of(column, names) is None or table.around.version >= _MARKET_SINCE:
        return
    other = await conn.fetchval(
        f"select market::text from {table.sql} where strpos(market::text, '/') = 0 limit 1"  # noqa: S608
    )
    if other is not None:
        told = f"market is {other!r} in a row, and lockguard keeps the unified symbol in market"
        remedy = f"rename it: alter table {table.sql} rename column market to market_old;"
        yield Finding(Kind.SHAPE, told, remedy, blocks=True)
