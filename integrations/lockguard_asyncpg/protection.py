"""Protecting a table of the user's own, from Python. What it does is in ``sql/0002_protect.sql``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_asyncpg.errors import Meaning, meaning_of, set_up_error
from lockguard_asyncpg.wire import unfenced

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["Protection", "protect", "protections", "unprotect"]

# CREATE TRIGGER waits for the table's writers and holds up those behind it.
_LOCK_TIMEOUT = "set local lock_timeout = '10s'"


@dataclass(frozen=True, slots=True)
class Protection:
    """A protected table.

    Attributes:
        table: its name.
        resource: the template that makes a row's resource of its columns.
        exempt: columns that change without a lease.
        enabled: whether nobody has switched the trigger off.
    """

    table: str
    resource: str
    exempt: tuple[str, ...]
    enabled: bool


async def protect(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    table: str,
    *,
    resource: str,
    exempt: Sequence[str] = (),
) -> None:
    """Have Postgres refuse any change of a row that presents no lease of the row's resource.

    Doing it again changes the template and the exempt columns.

    Args:
        conn: a connection of a role that owns the table and lockguard's schema.
        table: its name, with its schema.
        resource: the resource of a row, such as ``"{exchange}:{symbol}"``.
        exempt: columns that need no fence, such as the last price.

    Raises:
        ConfigurationError: no such table or column, or too little privilege.
    """
    await _change(conn, "select lockguard.protect($1::text::regclass, $2, $3)", table, resource, list(exempt))


async def unprotect(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], table: str) -> bool:
    """Remove the protection of ``table``; tells whether there was one.

    Raises:
        ConfigurationError: no such table, or too little privilege.
    """
    return bool(await _change(conn, "select lockguard.unprotect($1::text::regclass)", table))


async def protections(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> tuple[Protection, ...]:
    """The protected tables of the database."""
    rows = await conn.fetch("select relation, template, exempt, enabled from lockguard.protections()")
    return tuple(Protection(r["relation"], r["template"], tuple(r["exempt"]), r["enabled"]) for r in rows)


async def _change(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], query: str, table: str, *args: object
) -> Any:
    try:
        with unfenced():
            async with conn.transaction():
                await conn.execute(_LOCK_TIMEOUT)
                return await conn.fetchval(query, table, *args)
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
