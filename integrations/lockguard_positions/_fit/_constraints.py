"""The constraints and indexes: what of the old ones would refuse the flow's rows, and what the flow needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from lockguard_asyncpg._connection import whole
from lockguard_positions._fit._mapping import CORE, Names
from lockguard_positions._fit._samples import sample_rows, textual
from lockguard_positions._fit._steps import Finding, Kind, Phase, Step
from lockguard_positions._fit._table import Check, Table, ident, literal
from lockguard_positions._status import OPEN, PositionStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_positions._rows import Connection

__all__ = [
    "drop_checks",
    "drop_not_null",
    "indexes",
    "own_checks",
    "refusing_checks",
    "unfit_keys",
    "widen_checks",
]

_MOMENT = "ACCESS EXCLUSIVE for a moment"
_EXCEPT = "token IS NOT NULL"
_WRITTEN = frozenset(CORE) - {"id"} | {"token"}
_STATUSES = ", ".join(literal(status.value) for status in PositionStatus)
_OPEN = ", ".join(literal(status.value) for status in PositionStatus if status in OPEN)
_ENDED = ", ".join(literal(status.value) for status in PositionStatus if status not in OPEN)
_OWN = {
    "positions_side": "coalesce(side in ('long', 'short'), false)",
    "positions_status": f"coalesce(status in ({_STATUSES}), false)",
    # an old bot sets the amount of an ended position to 0, which harms nobody
    "positions_quantity": f"coalesce(quantity > 0, false) or status in ({_ENDED})",
    "positions_named": "exchange is not null and symbol is not null",
}


def own_checks(table: Table, home: str) -> Iterator[Step]:
    """The CHECKs that keep rows readable for the flow: added without a look at the rows, then validated.

    Args:
        table: the old table.
        home: its name by then.
    """
    there = {check.name: check for check in table.checks}
    named = all(name in table.columns and table.columns[name].not_null for name in ("exchange", "symbol"))
    for name, expression in _OWN.items():
        if (name in there and there[name].validated) or (name == "positions_named" and named):
            continue
        if name not in there:
            yield Step(
                f"alter table {home} add constraint {name} check ({expression}) not valid;",
                f"new rows are ones that lockguard can read. {_MOMENT}: existing rows are not looked at",
                Phase.SWITCH,
            )
        yield Step(
            f"alter table {home} validate constraint {name};",
            "and the existing rows are too. SHARE UPDATE EXCLUSIVE: readers and writers go on",
            Phase.SWITCH,
        )


async def refusing_checks(conn: Connection, table: Table, names: Names) -> tuple[list[Check], list[Finding]]:
    """The CHECKs of the table that would refuse a row of the flow, found by evaluating them on such rows."""
    refusing, findings = [], []
    for check in table.checks:
        if check.name in _OWN or _EXCEPT in check.expression:
            continue
        expression = textual(table, check.expression)
        rows = sample_rows(table, names)
        fits_all = f"coalesce(bool_and(coalesce(({expression})::boolean, true)), true)"
        query = f"select {fits_all} from ({rows}) as row"  # noqa: S608 - of the catalog, and of literals
        try:
            async with whole(conn):
                fits = await conn.fetchval(query)
        except asyncpg.PostgresError as exc:
            told = f"CHECK {check.name} could not be tried on a row of lockguard's ({exc.sqlstate})"
            findings.append(Finding(Kind.NOTE, told, "read it: it may refuse what the flow writes"))
            continue
        if not fits:
            refusing.append(check)
    return refusing, findings


def widen_checks(table: Table, refusing: list[Check]) -> Iterator[Step]:
    """Old CHECKs made to let the flow's rows pass; they hold for the old code's as before."""
    for check in table.checks:
        if _EXCEPT in check.expression and not check.validated:
            yield _validated(table, ident(check.name))
    for check in refusing:
        name = ident(check.name)
        yield Step(
            f"alter table {table.sql}\n  drop constraint {name},\n"
            f"  add constraint {name} check (({check.expression}) or token is not null) not valid;",
            f"{check.name} refuses rows of lockguard's, which have a token; the old code's rows are checked"
            f" as before. {_MOMENT}",
        )
        yield _validated(table, name)


def drop_checks(table: Table, home: str, refusing: list[Check], names: Names) -> Iterator[Step]:
    """The old CHECKs in the old code's words, which the rows' new words would not satisfy."""
    core = {names.columns[name] for name in CORE if names.has(name)}
    for check in table.checks:
        if core & set(check.columns) and (check in refusing or _EXCEPT in check.expression):
            yield Step(
                f"alter table {home} drop constraint if exists {ident(check.name)};",
                f"{check.name} is in the old code's words; lockguard's own CHECKs follow. {_MOMENT}",
                Phase.SWITCH,
            )


def _validated(table: Table, name: str) -> Step:
    sql = f"alter table {table.sql} validate constraint {name};"
    return Step(sql, "SHARE UPDATE EXCLUSIVE: readers and writers go on")


def drop_not_null(table: Table, names: Names) -> Iterator[Step]:
    """NOT NULL of columns that the flow does not fill."""
    changed, filled = [], []
    for column in table.columns.values():
        ours = next((o for o, theirs in names.columns.items() if theirs == column.name), None)
        own = ours is not None and (ours in CORE or ours == column.name)
        if not column.not_null or (own and ours in _WRITTEN) or column.generated or column.identity:
            continue
        if own and ours in ("created_at", "updated_at"):
            if column.default is None:
                filled.append(f"alter column {ident(column.name)} set default now()")
        elif ours == "id" or (column.default is not None and not own) or _in_key(table, column.name):
            continue
        else:
            changed.append(f"alter column {ident(column.name)} drop not null")
    if changed or filled:
        lines = ",\n  ".join([*changed, *filled])
        yield Step(
            f"alter table {table.sql}\n  {lines};",
            f"lockguard's rows do not fill them; the old code's may go on to. {_MOMENT}, no rewrite",
        )


def indexes(table: Table, home: str, names: Names) -> Iterator[Step]:
    """The indexes of the flow, built beside readers and writers; what an earlier attempt left goes first."""
    core = all(names.has(name) or (name == "exchange" and names.exchange) for name in ("exchange", "symbol"))
    there = {index.name: index for index in table.indexes}
    wanted = {
        "idx_positions_exchange_symbol": (
            "index",
            "(exchange, symbol, id)",
            "",
            "every read of a symbol's rows",
        ),
        "idx_positions_signal": (
            *("index", "(exchange, symbol, signal_id)", " where signal_id is not null"),
            "the position that a signal opened",
        ),
        "idx_unique_open_position": (
            *("unique index", "(symbol, exchange)", f" where status in ({_OPEN})"),
            "one open position per symbol and exchange: a second one is refused to the old code too",
        ),
    }
    for name, (kind, columns, where, why) in wanted.items():
        if not core or (name in there and there[name].valid):
            continue
        if name in there:
            left = f"{ident(there[name].schema)}.{ident(name)}"
            yield Step(
                f"drop index concurrently if exists {left};",
                "left invalid by an attempt that failed",
                Phase.SWITCH,
                alone=True,
            )
        yield Step(
            f"create {kind} concurrently if not exists {name} on {home} {columns}{where};",
            f"{why}. SHARE UPDATE EXCLUSIVE: readers and writers go on; it waits for transactions that are"
            " open",
            Phase.SWITCH,
            alone=True,
        )


def unfit_keys(table: Table, names: Names) -> Iterator[Finding]:
    """Keys with which no row of the flow could be written."""
    never_for = (
        "the levels look and guard work as it is; for flow, let 'lockguard positions migrate' make a table"
    )
    if table.partitioned:
        told = (
            f"{table.sql} is partitioned: its unique indexes must have the partition key, and lockguard"
            " needs one on"
            " (id) and one on (symbol, exchange)"
        )
        yield Finding(Kind.SHAPE, told, never_for, blocks=True, never=True)
        return
    if names.has("id"):
        yield from _unfit_id(table, names, never_for)


def _unfit_id(table: Table, names: Names, never_for: str) -> Iterator[Finding]:
    column = table.columns[names.columns["id"]]
    name = ident(column.name)
    if column.base not in {"int2", "int4", "int8"}:
        told = f"{column.name} is {column.type}: lockguard's intents and client order ids need a whole number"
        yield Finding(Kind.SHAPE, told, never_for, blocks=True, never=True)
        return
    if not any(
        i.unique and i.valid and i.predicate is None and i.columns == (column.name,) for i in table.indexes
    ):
        key = next((i.columns for i in table.indexes if i.primary), ())
        told = f"{column.name} alone is not unique: the primary key is " + (
            f"({', '.join(key)})" if key else "missing"
        )
        remedy = (
            f"if no two rows share it: create unique index concurrently on {table.sql} ({name});"
            f" and alter table {table.sql} alter column {name} set not null;"
        )
        yield Finding(Kind.SHAPE, told, remedy, blocks=True)
    if column.default is None and not column.identity:
        told = f"{column.name} has no default: the flow's rows would have no number"
        remedy = (
            "if the old code does not give numbers of its own:"
            f" alter table {table.sql} alter column {name} add generated by default as identity (start with"
            " N);"
        )
        yield Finding(Kind.SHAPE, told, remedy, blocks=True)


def _in_key(table: Table, column: str) -> bool:
    return any(index.primary and column in index.columns for index in table.indexes)
