"""A table as the catalog describes it, read in one read-only transaction."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_asyncpg import Protection, protections
from lockguard_asyncpg._connection import whole
from lockguard_positions._rows import statement
from lockguard_positions._schema import version

if TYPE_CHECKING:
    from lockguard_positions._rows import Connection

__all__ = ["Check", "Column", "Index", "Surroundings", "Table", "ident", "literal", "read_table", "update"]

_FILE = "fit.sql"
_PLAIN = re.compile(r"^[a-z_][a-z0-9_]*$")
_KINDS = {
    "v": "is a view: name the table under it",
    "m": "is a materialized view: name the table under it",
    "f": "is a foreign table: no lock and no trigger here reaches its rows; run fit in the database that has"
    " them",
}
# Words of SQL that are names of columns in real tables, and need quotes.
_RESERVED = frozenset(
    [
        "all",
        "and",
        "any",
        "array",
        "as",
        "asc",
        "both",
        "case",
        "cast",
        "check",
        "collate",
        "column",
        "constraint",
        "create",
        "current_date",
        "current_time",
        "current_user",
        "default",
        "desc",
        "distinct",
        "do",
        "else",
        "end",
        "except",
        "false",
        "fetch",
        "for",
        "foreign",
        "from",
        "grant",
        "group",
        "having",
        "in",
        "initially",
        "into",
        "limit",
        "not",
        "null",
        "offset",
        "on",
        "only",
        "or",
        "order",
        "primary",
        "references",
        "returning",
        "select",
        "session_user",
        "some",
        "symmetric",
        "table",
        "then",
        "to",
        "trailing",
        "true",
        "union",
        "unique",
        "user",
        "using",
        "when",
        "where",
        "window",
        "with",
    ]
)


def ident(name: str) -> str:
    """A name as an identifier of SQL, in quotes unless it plainly needs none."""
    if _PLAIN.match(name) and name not in _RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as a literal of SQL."""
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def update(table: str, changes: str, where: str) -> str:
    """An UPDATE of parts that :func:`ident` and :func:`literal` have quoted."""
    return f"update {table} set {changes} where {where};"  # noqa: S608 - the callers quote


@dataclass(frozen=True, slots=True)
class Column:
    """A column; ``used_by`` are the views, triggers and policies that keep its type from being changed."""

    name: str
    type: str
    base: str
    kind: str
    length: int | None
    digits: int | None
    scale: int | None
    not_null: bool
    default: str | None
    identity: str
    generated: str
    labels: tuple[str, ...]
    used_by: tuple[str, ...]

    @property
    def textual(self) -> bool:
        """Whether it holds text of its own, and not the labels of an enum type."""
        return self.base in {"text", "varchar", "bpchar", "citext", "name"}

    @property
    def filled(self) -> bool:
        """Whether an insert that does not name it succeeds."""
        return not self.not_null or self.default is not None or bool(self.identity or self.generated)


@dataclass(frozen=True, slots=True)
class Check:
    """A CHECK."""

    name: str
    expression: str
    validated: bool
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """An index, of a constraint or by itself; an expression in ``columns`` is as SQL writes it."""

    shown: str
    name: str
    schema: str
    unique: bool
    exclusion: bool
    nulls_equal: bool
    primary: bool
    valid: bool
    predicate: str | None
    definition: str
    columns: tuple[str, ...]
    constraint: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is around the table: the version of the positions schema, the fence, and what the role may do."""

    version: int
    positions: int | None
    fence: bool
    protected: bool
    watched: bool
    may_create: bool
    database: str
    time_zone: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table; ``referencing`` are the tables whose foreign keys point to it."""

    oid: int
    schema: str
    name: str
    kind: str
    owner: str
    owned: bool
    role: str
    rows: int
    bytes: int
    row_security: bool
    columns: dict[str, Column]
    checks: tuple[Check, ...]
    indexes: tuple[Index, ...]
    triggers: tuple[tuple[str, str], ...]
    referencing: tuple[str, ...]
    grants: tuple[tuple[str | None, str], ...]
    around: Surroundings

    @property
    def sql(self) -> str:
        """Its name in statements."""
        return f"{ident(self.schema)}.{ident(self.name)}"

    @property
    def at_home(self) -> bool:
        """Whether it is where lockguard_positions looks for it."""
        return (self.schema, self.name) == ("monitoring", "positions")

    @property
    def partitioned(self) -> bool:
        """Whether its rows are in partitions."""
        return self.kind == "p"


async def read_table(conn: Connection, name: str) -> Table:
    """Read a table's shape.

    Raises:
        ConfigurationError: there is no such table, it cannot be fitted, or the role may not read it.
    """
    row = await _named(conn, name)
    table = f"{ident(row['schema'])}.{ident(row['name'])}"
    if row["kind"] == "v" and await _shows_the_flows_table(conn, row["oid"]):
        raise ConfigurationError(f"{table} is a view of monitoring.positions: fit that, without --column")
    if (why := _KINDS.get(row["kind"])) is not None:
        raise ConfigurationError(f"{table} {why}")
    if row["is_partition"]:
        raise ConfigurationError(f"{table} is a partition: name the table that it is a part of")
    if not row["readable"]:
        role = ident(row["role"])
        raise ConfigurationError(
            f"role {role} may not read {table}; its owner grants that:"
            f" grant usage on schema {ident(row['schema'])} to {role};"
            f" grant select on {table} to {role};"
        )
    oid = row["oid"]

    async def all_of(block: str) -> list[dict[str, Any]]:
        return [dict(one) for one in await conn.fetch(statement(block, _FILE), oid)]

    return Table(
        **{k: row[k] for k in ("oid", "schema", "name", "kind", "owner", "owned", "role", "rows", "bytes")},
        row_security=row["row_security"],
        columns={
            c["name"]: Column(**{**c, **_tuples(c, "labels", "used_by")}) for c in await all_of("columns")
        },
        checks=tuple(Check(**{**c, **_tuples(c, "columns")}) for c in await all_of("checks")),
        indexes=tuple(Index(**{**i, **_tuples(i, "columns")}) for i in await all_of("indexes")),
        triggers=tuple((t["name"], t["definition"]) for t in await all_of("triggers")),
        referencing=tuple(r["name"] for r in await all_of("referencing")),
        grants=tuple((g["role"], g["privilege"]) for g in await all_of("grants")),
        around=await _surroundings(conn, oid),
    )


def _tuples(row: dict[str, Any], *names: str) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(row[name]) for name in names}


async def _named(conn: Connection, name: str) -> asyncpg.Record:
    try:
        async with whole(conn):  # a savepoint: what cannot be parsed as a name may still be one
            oid = await conn.fetchval("select to_regclass($1)::oid", name)
    except (asyncpg.InvalidNameError, asyncpg.PostgresSyntaxError, asyncpg.InsufficientPrivilegeError):
        oid = None
    found = await conn.fetch(statement("named", _FILE), oid, name)
    if not found:
        raise ConfigurationError(
            f"there is no table {printable(name)!r} in this database; write it with its schema:"
            " trading.positions"
        )
    if len(found) > 1:
        those = ", ".join(f"{ident(one['schema'])}.{ident(one['name'])}" for one in found)
        raise ConfigurationError(f"{printable(name)!r} stands for several tables: {those}; name one of them")
    row: asyncpg.Record = found[0]
    return row


async def _shows_the_flows_table(conn: Connection, view: int) -> bool:
    return bool(await conn.fetchval(statement("is_view_of_positions", _FILE), view))


async def _surroundings(conn: Connection, oid: int) -> Surroundings:
    row = await conn.fetchrow(statement("surroundings", _FILE))
    assert row is not None
    protection = await _protection(conn, oid) if row["fence"] else None
    return Surroundings(
        version=await version(conn) if row["versioned"] else 0,
        positions=row["positions"],
        fence=row["fence"],
        protected=protection is not None and not protection.watched,
        watched=protection is not None and protection.watched,
        may_create=bool(row["may_create"]),
        database=row["database"],
        time_zone=row["time_zone"],
    )


async def _protection(conn: Connection, oid: int) -> Protection | None:
    """The table's protection by the fence; ``None`` also for a role that may not see it."""
    try:
        async with whole(conn):
            for each in await protections(conn):
                if await conn.fetchval("select to_regclass($1)::oid", each.table) == oid:
                    return each
    except (asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError):
        return None
    return None
