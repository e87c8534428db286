"""Protects the user's own tables, from Python. The database's part is in ``sql/0002_protect.sql``."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error
from lockguard_asyncpg._integrity import damage
from lockguard_asyncpg._schema import SCHEMA_VERSION, schema_version
from lockguard_postgres._in_force import unfenced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

__all__ = [
    "Finding",
    "Protection",
    "by_pgpool",
    "findings",
    "protect",
    "protections",
    "unprotect",
    "watch_anew",
]

_MAY_NOTE = "select has_function_privilege('lockguard.note_parts()', 'execute')"
# Also for a schema that has no function for it yet.
_WATCHED = """exists (select from pg_catalog.pg_trigger t where t.tgrelid = to_regclass({})
                 and t.tgname like 'zz\\_lockguard\\_%' and t.tgnargs = 4)"""
_UNGUARDED = f"""
select n as named, to_regclass(n) is not null as there, {_WATCHED.format("n")} as watched
  from unnest($1::text[]) n
 where not exists (select from lockguard.protections() p
                    where to_regclass(p.relation) = to_regclass(n) and not {_WATCHED.format("n")})
   and not exists (select from lockguard.findings() f
                    where f.grave and to_regclass(f.relation) = to_regclass(n))
"""  # noqa: S608 - our own text
_DEADLOCKS_MAX = 5
_GUARD = "select lockguard.set_guard($1::text::regclass, $2, $3, $4, $5, $6)"
_GO_ON, _BEGIN_ANEW = False, True
# CREATE TRIGGER waits for the table's writers, and later writers wait behind it.
_LOCK_TIMEOUT = "set local lock_timeout = '10s'"


@dataclass(frozen=True, slots=True)
class Protection:
    """A protected table.

    Attributes:
        table: its name.
        resource: the template that makes a row's resource from its columns.
        exempt: columns that may change without a lease.
        enabled: whether the protection holds: no trigger is disabled or missing, here or on a partition, no
            column that it needs is missing, and it is not only watched.
        subscriber: whether the workers of a subscription write it without a lease.
        watched: whether it is only watched: nothing is refused, and what would be is recorded.
    """

    table: str
    resource: str
    exempt: tuple[str, ...]
    enabled: bool
    subscriber: bool = False
    watched: bool = False


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
    resource: str | None = None,
    exempt: Sequence[str] | None = None,
    subscriber: bool = False,
    watch: bool = False,
) -> None:
    """Have Postgres refuse any change of a row that presents no lease of the row's resource.

    Calling it again changes the template and the exempt columns. A watched table goes over to protection
    without a moment in between; what is left out is as it was watched.

    Args:
        conn: a connection of a role that owns the table and lockguard's schema.
        table: its name, with its schema.
        resource: the resource of a row, such as ``"{exchange}:{symbol}"``; may be left out for a table that
            is watched.
        exempt: columns that need no fence, such as the last price.
        subscriber: whether a subscription fills the table: its workers, and no others, may write without a
            lease.
        watch: refuse nothing, and record what would be refused; :func:`watched` tells. What was recorded is
            kept when it is called again with the same settings, and begun anew with others.

    Raises:
        ConfigurationError: no such table or column, too little privilege, no ``resource`` and no watch that
            has one, or ``watch`` for a table that is protected.
    """
    free = None if exempt is None else list(exempt)
    await _change(conn, _GUARD, table, resource, free, subscriber, watch, _GO_ON)


async def watch_anew(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], table: str) -> None:
    """Forget what was recorded of a watched table, and go on watching it as before.

    Raises:
        ConfigurationError: it is not watched, or too little privilege.
    """
    await _change(conn, _GUARD, table, None, None, False, True, _BEGIN_ANEW)  # noqa: FBT003 - as SQL has them


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
        if await conn.fetchval(_MAY_NOTE):  # who only looks on finds what others have noted
            await conn.execute("select lockguard.note_parts()")
        rows = await conn.fetch("select relation, grave, finding, remedy from lockguard.findings()")
        unguarded = await conn.fetch(_UNGUARDED, list(tables))
        hurt = await damage(conn) if await schema_version(conn) == SCHEMA_VERSION else []
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
    found = [Finding(r["relation"], r["grave"], r["finding"], r["remedy"]) for r in rows]
    found += [Finding(table, grave=True, finding=what, remedy=remedy) for table, what, remedy in hurt]
    for row in unguarded:
        there = "it is only watched" if row["watched"] else "it is not"
        what = there if row["there"] else "there is no such table"
        remedy = f"lockguard fence protect {row['named']}"
        remedy += "" if row["watched"] else " --resource ..."
        found.append(
            Finding(row["named"], grave=True, finding=f"it ought to be protected, and {what}", remedy=remedy)
        )
    return tuple(found)


async def by_pgpool(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> tuple[Finding, ...]:
    """What to know of a connection that leads through pgpool-II; empty for any other."""
    try:
        await conn.execute("show pool_version")  # answered by pgpool itself; Postgres knows no such setting
    except asyncpg.UndefinedObjectError:
        return ()
    what = (
        "this URL leads through it: with load_balance_mode = on reads under a lease may come from a standby"
        " that is behind, and a savepoint under a lease ends the session"
    )
    remedy = "load_balance_mode = off in pgpool.conf"
    return (Finding("pgpool-II", grave=False, finding=what, remedy=remedy),)


async def protections(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> tuple[Protection, ...]:
    """The protected tables of the database, and those that are only watched."""
    tells = await conn.fetchval("select to_regprocedure('lockguard.is_fed(regclass)') is not null")
    fed = "lockguard.is_fed(to_regclass(p.relation))" if tells else "false"  # a schema before version 11
    watched = _WATCHED.format("p.relation")
    query = f"select p.*, {fed} as fed, {watched} as watched from lockguard.protections() p"  # noqa: S608
    rows = await conn.fetch(query)
    return tuple(
        Protection(
            r["relation"],
            r["template"],
            tuple(r["exempt"]),
            r["enabled"],
            r["fed"],
            r["watched"],
        )
        for r in rows
    )


async def _once(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], query: str, table: str, *args: object
) -> Any:
    async with whole(conn):
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
