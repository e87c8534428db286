"""The columns: which are added, which change their type, which are renamed, and which can never serve.

Sources of the costs: PostgreSQL's documentation of ALTER TABLE. ADD COLUMN with a constant or stable default
is a change of the catalog only (since version 11). ALTER TYPE rewrites the table and its indexes, except from
varchar to text and to a numeric without limits.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lockguard_positions._fit._mapping import CORE, TYPES, Names
from lockguard_positions._fit._steps import Finding, Kind, Phase, Step
from lockguard_positions._fit._table import Column, Table, ident, literal

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["add_columns", "change_types", "new_type", "unfit_columns", "without_enum"]

_MOMENT = "ACCESS EXCLUSIVE for a moment, no rewrite"
_NOT_NULL = ("created_at", "updated_at")
_TICKS = ("current_price", "unrealized_pnl")
_INTEGERS = {"int2", "int4", "int8"}
_FLOATS = {"float4", "float8"}
_DIGITS_WHOLE, _DIGITS_AFTER = 10, 8
_WIDTHS = {"status": 13, "side": 5, "symbol": 20, "exchange": 20}
_WIDTH_OF_IDS = 36
_FREE_TEXT = ("error_details", "exit_reason")


def new_type(name: str, column: Column) -> tuple[str, bool] | None:
    """The type that a column has to get, and whether that rewrites the table; ``None`` if it may stay."""
    if column.kind == "d" and name != "id":  # a domain may have a CHECK of its own
        return TYPES[name], False
    match TYPES[name]:
        case "text":
            return _new_text(name, column)
        case "numeric":
            if column.base == "numeric":
                whole = 0 if column.digits is None else column.digits - (column.scale or 0)
                fine = column.digits is None or (
                    (column.scale or 0) >= _DIGITS_AFTER and whole >= _DIGITS_WHOLE
                )
                return None if fine else ("numeric", False)
            return None if name in _TICKS and column.base in _FLOATS else ("numeric", True)
        case "bigint" if name != "id" and column.base != "int8":
            return "bigint", True
        case _:
            return None


def _new_text(name: str, column: Column) -> tuple[str, bool] | None:
    """A varchar stays where it is long enough: a session's prepared reads live through it."""
    if column.base != "varchar":
        return None if column.base == "text" else ("text", column.base != "citext")
    wanted = _WIDTHS.get(name, _WIDTH_OF_IDS)
    short = column.length is not None and (name in _FREE_TEXT or column.length < wanted)
    return ("text", False) if short else None


def add_columns(table: Table, names: Names) -> Iterator[Step]:
    """The columns that are missing, in one statement: each is a change of the catalog only."""
    added = []
    for name, kind in TYPES.items():
        missing = name not in table.columns and not (name in CORE and names.has(name))
        if not missing or name == "id":
            continue
        if name == "exchange":
            if names.exchange is not None:
                added.append(
                    f"add column if not exists exchange text not null default {literal(names.exchange)}"
                )
            continue
        if name in CORE:
            continue
        shown = "timestamptz" if kind.startswith("timestamp") else kind
        extra = " not null default now()" if name in _NOT_NULL else ""
        added.append(f"add column if not exists {name} {shown}{extra}")
    if added:
        lines = ",\n  ".join(added)
        yield Step(
            f"alter table {table.sql}\n  {lines};",
            f"what lockguard_positions writes and the table lacks. {_MOMENT}; a transaction of a driver that"
            " has"
            " prepared 'select *' of this table meets one error 'cached plan must not change result type'",
        )


def change_types(table: Table, names: Names) -> Iterator[Step]:
    """The changes of types, each with its cost. Only where no write of the flow would succeed or be exact."""
    for name, theirs in names.columns.items():
        column = table.columns[theirs]
        changed = new_type(name, column)
        if changed is None or column.used_by:
            continue
        target, rewrites = changed
        cost = (
            f"rewrites the table ({_size(table)}) and its indexes under ACCESS EXCLUSIVE: every reader and"
            " writer"
            " waits for that long"
            if rewrites
            else _MOMENT
        )
        why = f"{theirs} is {column.type}: {_because(name, column)}. {cost}"
        yield Step(_alter_type(table, column, target), why, Phase.SWITCH)


def _because(name: str, column: Column) -> str:
    if column.kind == "e":
        return "lockguard's statements and its trigger compare texts; old code that casts to the type fails"
    if column.base in _INTEGERS and TYPES[name] == "text":
        return "lockguard keeps words; CHECKs and partial indexes that compare it with numbers go"
    if column.base in _FLOATS:
        return "a float is not the amount that was ordered; asyncpg then reads Decimal where it read float"
    if TYPES[name] == "numeric" and column.base == "numeric":
        return "it would round prices or amounts of small steps"
    if column.base == "varchar":
        return "it is too short for what lockguard writes"
    return f"lockguard writes {TYPES[name]}"


def _alter_type(table: Table, column: Column, target: str) -> str:
    name = ident(column.name)
    before, after = _that_cannot_follow(table, column, target)
    default = "" if column.default is None or column.generated else without_enum(column.default, column)
    if default:
        before.append(f"alter table {table.sql} alter column {name} drop default;")
        after.insert(0, f"alter table {table.sql} alter column {name} set default {default};")
    using = "" if column.base in {"varchar", "numeric"} else f" using {name}::{target}"
    return "\n".join([*before, f"alter table {table.sql} alter column {name} type {target}{using};", *after])


def _that_cannot_follow(table: Table, column: Column, target: str) -> tuple[list[str], list[str]]:
    """What goes before a change of type: CHECKs and partial indexes that compare with the old type.

    Those of an enum are made again with texts. Those that compare with numbers are not.
    """
    before: list[str] = []
    after: list[str] = []
    if column.kind != "e" and not (target == "text" and column.base in _INTEGERS):
        return before, after
    for check in table.checks:
        if column.name in check.columns:
            before.append(f"alter table {table.sql} drop constraint {ident(check.name)};")
            expression = without_enum(check.expression, column)
            after.append(f"alter table {table.sql} add constraint {ident(check.name)} check ({expression});")
    for index in table.indexes:
        if index.predicate and _names(index.predicate, column) and index.constraint is None:
            before.append(f"drop index {index.shown};")
            after.append(f"{without_enum(index.definition, column)};")
    return before, after if column.kind == "e" else []


def _names(expression: str, column: Column) -> bool:
    """Whether an expression of the catalog may name a column."""
    return re.search(rf"(?<!\w){re.escape(ident(column.name))}(?!\w)", expression) is not None


def without_enum(expression: str, column: Column) -> str:
    """An expression of the catalog with the casts to a column's enum type made casts to text."""
    return expression.replace(f"::{column.type}", "::text") if column.kind == "e" else expression


def unfit_columns(table: Table, names: Names) -> Iterator[Finding]:
    """Columns that stand in the way, each with its remedy."""
    for core in CORE[:1] + CORE[3:]:
        if not names.has(core):
            listed = ", ".join(table.columns)
            told = f"{table.sql} has no column for {core}; it has {listed}"
            yield Finding(
                Kind.SHAPE, told, f"name it with --column {core}=NAME, or add and fill one", blocks=True
            )
    if not names.has("exchange") and names.exchange is None:
        told = f"{table.sql} has no column for the exchange"
        yield Finding(Kind.SHAPE, told, "say which it is: --exchange-name binance", blocks=True)
    for name, theirs in names.columns.items():
        column = table.columns[theirs]
        aside = (
            f"rename it: alter table {table.sql} rename column {ident(theirs)} to {ident(theirs + '_old')};"
        )
        if column.generated:
            told = f"{theirs} is a generated column, which lockguard cannot write"
            yield Finding(Kind.SHAPE, told, aside, blocks=True)
        elif column.base not in _accepted(name) and not (TYPES[name] == "text" and column.kind == "e"):
            told = f"{theirs} is {column.type}, and lockguard keeps {TYPES[name]} in {name}"
            yield Finding(Kind.SHAPE, told, aside, blocks=True)
        elif new_type(name, column) is not None and column.used_by:
            told = (
                f"the type of {theirs} ({column.type}) cannot be changed: {', '.join(column.used_by)}"
                " depends on it"
            )
            yield Finding(Kind.SHAPE, told, "drop that, apply the fit, and make it again", blocks=True)


def _accepted(name: str) -> set[str]:
    match TYPES[name]:
        case "bigint":
            # what an id may be is told with the primary key
            return {*_INTEGERS, "uuid", "text", "varchar", "numeric"} if name == "id" else _INTEGERS
        case "numeric":
            return {"numeric", "money", *_INTEGERS, *_FLOATS}
        case "text":
            return {"text", "varchar", "bpchar", "citext", "name", "uuid", *_INTEGERS}
        case _:
            return {"timestamptz", "timestamp"}


def _size(table: Table) -> str:
    mebibytes = table.bytes / (1 << 20)
    return f"{mebibytes:.1f} MiB" if mebibytes >= 1 else f"{table.bytes / 1024:.0f} KiB"
