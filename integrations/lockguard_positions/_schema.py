"""The schema ``monitoring`` as numbered migrations, each of which can be undone.

Version 1 is the table as earlier bots have it, unique over active rows only; version 8 makes it unique over
all open rows. The numbers between are free for your bot's own changes to its table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import protect
from lockguard_asyncpg._connection import whole
from lockguard_positions._errors import MigrationRefused

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

__all__ = [
    "GIVEN_SINCE",
    "LATEST",
    "SIGNALS_SINCE",
    "TICK_COLUMNS",
    "VERSIONS",
    "Migrated",
    "Migration",
    "migrate",
    "migrations",
    "protect_positions",
    "version",
]

TICK_COLUMNS = ("current_price", "unrealized_pnl", "updated_at")
"""The columns of ``monitoring.positions`` that change without a lease: estimates that decide nothing."""

_SIGNALS = "monitoring.signals"
SIGNALS_SINCE = 9
"""The first version with a table of a bot's signals."""
GIVEN_SINCE = 12
"""The first version that keeps when a signal was given that a bot has begun and not decided."""
PROTECTED = {"monitoring.positions": TICK_COLUMNS, "monitoring.position_intents": (), _SIGNALS: ()}
RESOURCE = "{exchange}:{symbol}"

# Two concurrent migrations would both find the same version. The key is the text "lgrdpos" as a number.
_LOCK_KEY = 0x6C677264706F73
VERSIONS = """
create schema if not exists monitoring;
create table if not exists monitoring.schema_version (
  version integer primary key,
  name text not null,
  applied_at timestamptz not null default clock_timestamp()
);
"""
_DUPLICATES = "LG101"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema.

    Attributes:
        version: the schema version after it.
        name: the name of its files.
        up: the SQL that applies it.
        down: the SQL that undoes it.
    """

    version: int
    name: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Migrated:
    """The schema versions before and after :func:`migrate`; 0 for none.

    Attributes:
        before: the version that the database had.
        after: the version that it has now.
    """

    before: int
    after: int


@cache
def migrations() -> tuple[Migration, ...]:
    """All steps, in the order of their versions."""
    folder = files("lockguard_positions") / "sql" / "migrations"
    names = sorted(f.name.removesuffix(".up.sql") for f in folder.iterdir() if f.name.endswith(".up.sql"))
    return tuple(
        Migration(
            version=int(name[:3]),
            name=name,
            up=(folder / f"{name}.up.sql").read_text(encoding="utf-8"),
            down=(folder / f"{name}.down.sql").read_text(encoding="utf-8"),
        )
        for name in names
    )


LATEST = migrations()[-1].version
"""The version of the schema that this library works with."""


async def version(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> int:
    """The schema version of a database; 0 without the schema."""
    # In a transaction of its own: cancelled between a statement's Parse and Bind, asyncpg sends no Sync, and
    # the server would keep the session in a transaction until its next use.
    async with whole(conn):
        if await conn.fetchval("select to_regclass('monitoring.schema_version')") is None:
            return 0
        asked = "select coalesce(max(version), 0) from monitoring.schema_version"
        return int(await conn.fetchval(asked) or 0)


async def migrate(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, to: int | None = None
) -> Migrated:
    """Migrate the schema to a version, up or down, each step in its own transaction.

    Does nothing if the schema has that version. A step that is refused leaves the version before it.

    Args:
        conn: a connection that is not in a transaction, of a role that may create schemas.
        to: the version; by default the latest. 0 removes the tables with their data.

    Raises:
        ConfigurationError: there is no such version.
        MigrationRefused: existing rows or tables are in the way; the message names them and the remedy.
    """
    target = LATEST if to is None else to
    known = [0, *(m.version for m in migrations())]
    if target not in known:
        raise ConfigurationError(
            f"there is no version {target} of the positions schema; known are {', '.join(map(str, known))}"
        )
    before = after = await version(conn)
    for _ in migrations():
        if after == target:
            break
        after = await _step(conn, target)
    return Migrated(before, after)


async def protect_positions(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
) -> tuple[str, ...]:
    """Make Postgres refuse every write of state without a lease, from any program or person.

    Run it once every writing process uses the guard; ``lockguard fence unprotect`` undoes it.

    Args:
        conn: a connection of a role that owns the tables and lockguard's schema.

    Returns:
        The names of the protected tables.

    Raises:
        ConfigurationError: the fence or the tables are missing, or the role lacks a privilege.
    """
    found = await version(conn)
    tables = [table for table in PROTECTED if table != _SIGNALS or found >= SIGNALS_SINCE]
    for table in tables:
        await protect(conn, table, resource=RESOURCE, exempt=PROTECTED[table])
    return tuple(tables)


async def _step(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], target: int) -> int:
    """Apply or undo one step towards ``target``; returns the version after it."""
    async with whole(conn):
        await conn.execute("select pg_advisory_xact_lock($1)", _LOCK_KEY)
        await conn.execute(VERSIONS)
        # Read again under the lock: another process may have been here.
        current = await version(conn)
        if current == target:
            return current
        if current < target:
            step = next(m for m in migrations() if m.version > current)
            await _apply(conn, step, step.up)
            await conn.execute(
                "insert into monitoring.schema_version (version, name) values ($1, $2)",
                step.version,
                step.name,
            )
            return step.version
        undone = next((m for m in migrations() if m.version == current), None)
        if undone is None:
            raise MigrationRefused(
                f"the positions schema has version {current}, which this library does not know:"
                " upgrade the library"
            )
        await _apply(conn, undone, undone.down)
        await conn.execute("delete from monitoring.schema_version where version = $1", undone.version)
        return await version(conn)


async def _apply(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], step: Migration, sql: str) -> None:
    try:
        await conn.execute(sql)
    except asyncpg.DuplicateTableError as exc:
        raise MigrationRefused(
            f"migration {step.name}: {exc}; that table was not made by these migrations: rename it, or make"
            " it fit and record its version in monitoring.schema_version"
        ) from exc
    except asyncpg.PostgresError as exc:
        if exc.sqlstate == _DUPLICATES:
            raise MigrationRefused(f"migration {step.name}: {exc}; {exc.hint}") from exc
        raise
