"""Protects the user's own tables, from Python. The database's part is in ``sql/0002_protect.sql``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error
from lockguard_asyncpg._transaction_state import unfenced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["Finding", "Protection", "findings", "protect", "protections", "unprotect"]

_UNGUARDED = """
select n as named, to_regclass(n) is not null as there from unnest($1::text[]) n
 where not exists (select from lockguard.protections() p where to_regclass(p.relation) = to_regclass(n))
   and not exists (select from lockguard.findings() f where to_regclass(f.relation) = to_regclass(n))
"""
_DEADLOCKS_MAX = 5
# CREATE TRIGGER waits for the table's writers, and later writers wait behind it.
_LOCK_TIMEOUT = "set local lock_timeout = '10s'"


@dataclass(frozen=True, slots=True)
class Protection:
    """A protected table.

    Attributes:
        table: its name.
        resource: the template that makes a row's resource from its columns.
        exempt: columns that may change without a lease.
        enabled: whether the protection holds: no trigger is disabled or missing, here or on a partition, and
            no column that it needs is missing.
        subscriber: whether the workers of a subscription write it without a lease.
    """

    table: str
    resource: str
    exempt: tuple[str, ...]
    enabled: bool
    subscriber: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Where a protection does not hold, or holds less well than it could.

    Attributes:
        table: the name of the table.
        grave: whether rows can change without a lease, or every write fails.
        finding: what is wrong.
        remedy: the command that corrects it.
    """

    table: str
    grave: bool
    finding: str
    remedy: str


async def protect(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    table: str,
    *,
    resource: str,
    exempt: Sequence[str] = (),
    subscriber: bool = False,
) -> None:
    """Have Postgres refuse any change of a row that presents no lease of the row's resource.

    Calling it again changes the template and the exempt columns.

    Args:
        conn: a connection of a role that owns the table and lockguard's schema.
        table: its name, with its schema.
        resource: the resource of a row, such as ``"{exchange}:{symbol}"``.
        exempt: columns that need no fence, such as the last price.
        subscriber: whether a subscription fills the table: its workers, and no others, may write without a
            lease.

    Raises:
        ConfigurationError: no such table or column, or too little privilege.
    """
    query = "select lockguard.protect($1::text::regclass, $2, $3, $4)"
    await _change(conn, query, table, resource, list(exempt), subscriber)


async def unprotect(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], table: str) -> bool:
    """Remove the protection of ``table``; returns whether there was one.

    Call it for a dropped table too: until then :func:`findings` reports that the table is missing.

    Raises:
        ConfigurationError: no such table, or too little privilege.
    """
    try:
        return bool(await _change(conn, "select lockguard.unprotect($1::text::regclass)", table))
    except ConfigurationError:
        if await _is_there(conn, table) or not await _change(conn, "select lockguard.undeclare($1)", table):
            raise
        return True


async def _is_there(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], table: str) -> bool:
    try:
        with unfenced():
            return await conn.fetchval("select to_regclass($1)", table) is not None
    except asyncpg.InvalidNameError:
        return False


async def findings(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, tables: Sequence[str] = ()
) -> tuple[Finding, ...]:
    """Where the protections or the fence's own triggers do not hold; empty if all is well.

    Args:
        conn: a connection of a role that takes part in fencing.
        tables: further tables that ought to be protected; those that once were are included anyway.

    Raises:
        ConfigurationError: no schema, or one older than version 12.
    """
    try:
        await conn.execute("select lockguard.note_parts()")
        rows = await conn.fetch("select relation, grave, finding, remedy from lockguard.findings()")
        unguarded = await conn.fetch(_UNGUARDED, list(tables))
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
    found = [Finding(r["relation"], r["grave"], r["finding"], r["remedy"]) for r in rows]
    for row in unguarded:
        what = "it is not" if row["there"] else "there is no such table"
        remedy = f"lockguard fence protect {row['named']} --resource ..."
        found.append(
            Finding(row["named"], grave=True, finding=f"it ought to be protected, and {what}", remedy=remedy)
        )
    return tuple(found)


async def protections(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> tuple[Protection, ...]:
    """The protected tables of the database."""
    tells = await conn.fetchval("select to_regprocedure('lockguard.is_fed(regclass)') is not null")
    fed = "lockguard.is_fed(to_regclass(p.relation))" if tells else "false"  # a schema before version 11
    rows = await conn.fetch(f"select p.*, {fed} as fed from lockguard.protections() p")  # noqa: S608
    return tuple(
        Protection(r["relation"], r["template"], tuple(r["exempt"]), r["enabled"], r["fed"]) for r in rows
    )


async def _once(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], query: str, table: str, *args: object
) -> Any:
    async with conn.transaction():
        await conn.execute(_LOCK_TIMEOUT)
        return await conn.fetchval(query, table, *args)


async def _change(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], query: str, table: str, *args: object
) -> Any:
    try:
        with unfenced():
            for _ in range(_DEADLOCKS_MAX):
                # A subscription's worker that copies a partitioned table locks its parts in another order.
                with contextlib.suppress(asyncpg.DeadlockDetectedError):
                    return await _once(conn, query, table, *args)
            return await _once(conn, query, table, *args)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidNameError) as exc:
        raise ConfigurationError(
            f"there is no table {table!r} in this database; write it with its schema: trading.positions"
        ) from exc
    except asyncpg.LockNotAvailableError as exc:
        raise ConfigurationError(
            f"{table} was in use for 10 s; try again when its longest transaction is over"
        ) from exc
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(
            f"{exc.message}; protecting a table takes a role that owns both it and lockguard's schema"
        ) from exc
    except asyncpg.InvalidSchemaNameError as exc:
        raise _no_schema(exc, table) from exc
    except asyncpg.PostgresError as exc:
        if exc.sqlstate == "LG004":
            raise ConfigurationError(exc.message or str(exc)) from exc
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise


def _no_schema(exc: asyncpg.InvalidSchemaNameError, table: str) -> ConfigurationError:
    if '"lockguard"' in str(exc):
        return set_up_error(exc)
    return ConfigurationError(f"there is no table {table!r} in this database: {exc.message}")
