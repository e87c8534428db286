"""Installs the schema and protects tables, over a synchronous connection of psycopg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row

from lockguard.errors import ConfigurationError
from lockguard.text import first_line, kind_of
from lockguard_postgres._errors import Meaning
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._schema_sql import POSTGRES_MIN, Installed, schema_sql
from lockguard_postgres._steps import SCHEMA_VERSION
from lockguard_psycopg._errors import ERRORS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["install", "protect", "require_synchronous", "schema_version", "unprotect"]

# CREATE TRIGGER waits for the table's writers, and later writers wait behind it.
_LOCK_TIMEOUT = "set local lock_timeout = '10s'"


def schema_version(conn: psycopg.Connection[Any]) -> int:
    """The version of the installed schema; 0 for none.

    Raises:
        ConfigurationError: ``conn`` is no synchronous connection.
    """
    require_synchronous(conn)
    with unfenced(), conn.transaction():
        if _value(conn, "select to_regprocedure('lockguard.version()')") is None:
            return 0
        return int(_value(conn, "select lockguard.version()") or 0)


def install(
    conn: psycopg.Connection[Any],
    *,
    allow: Sequence[str] = (),
    viewers: Sequence[str] = (),
    operators: Sequence[str] = (),
) -> Installed:
    """Bring the schema to this library's version, in one transaction; at that version, renew its rights.

    Asynchronous bots install it over a synchronous connection too: it is done once, before they run. It does
    what ``lockguard fence install`` does, except that what was replaced at the same version stays as it is.

    Args:
        conn: a connection of a role that owns the database, or may create schemas in it.
        allow: roles that may take part in fencing, besides ``lockguard_app``.
        viewers: further roles that may do what ``lockguard_viewer`` may.
        operators: further roles that may do what ``lockguard_operator`` may.

    Raises:
        ConfigurationError: the role may not create it, the schema is newer than this library, the server is
            older than PostgreSQL 13, or one of the roles does not exist.
    """
    require_synchronous(conn)
    for name, roles in {"allow": allow, "viewers": viewers, "operators": operators}.items():
        _require_several(name, roles)
    if (found := conn.info.server_version // 10_000) < POSTGRES_MIN:
        raise ConfigurationError(
            f"this is PostgreSQL {found}, and the fence needs {POSTGRES_MIN} or newer: upgrade it"
        )
    try:
        with unfenced(), conn.transaction():
            before = schema_version(conn)
            if before > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"the lockguard schema has version {before} and this library knows {SCHEMA_VERSION}:"
                    " upgrade the library"
                )
            conn.execute(schema_sql().encode())
            for function, roles in (
                (b"allow", allow),
                (b"allow_to_view", viewers),
                (b"allow_to_operate", operators),
            ):
                for role in roles:
                    conn.execute(b"select lockguard.%s(%%s)" % function, [role])
    except psycopg.errors.UndefinedObject as exc:
        raise ConfigurationError(f"{first_line(exc)}; create the role first") from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise ConfigurationError(
            f"{first_line(exc)}; install as the schema's owner, or as a role that may create one in this"
            " database"
        ) from exc
    return Installed(before, SCHEMA_VERSION)


def protect(
    conn: psycopg.Connection[Any],
    table: str,
    *,
    resource: str | None = None,
    exempt: Sequence[str] | None = None,
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
        watch: refuse nothing, and record what would be refused; :func:`watched` tells.

    Raises:
        ConfigurationError: no such table or column, too little privilege, no ``resource`` and no watch that
            has one, or ``watch`` for a table that is protected.
    """
    if exempt is not None:
        _require_several("exempt", exempt)
    query = "select lockguard.set_guard(%s::text::regclass, %s, %s, false, %s, false)"
    _change(conn, query, table, resource, None if exempt is None else list(exempt), watch)


def unprotect(conn: psycopg.Connection[Any], table: str) -> bool:
    """Remove the protection of ``table``; returns whether there was one.

    Raises:
        ConfigurationError: no such table, or too little privilege.
    """
    return bool(_change(conn, "select lockguard.unprotect(%s::text::regclass)", table))


def _change(conn: psycopg.Connection[Any], query: str, table: str, *args: object) -> Any:
    require_synchronous(conn)
    try:
        with unfenced(), conn.transaction():
            conn.execute(_LOCK_TIMEOUT)
            return _value(conn, query, table, *args)
    except psycopg.errors.UndefinedTable as exc:
        raise ConfigurationError(
            f"there is no table {table!r} in this database; write it with its schema: trading.positions"
        ) from exc
    except psycopg.errors.LockNotAvailable as exc:
        raise ConfigurationError(
            f"{table} was in use for 10 s; try again when its longest transaction is over"
        ) from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise ConfigurationError(
            f"{first_line(exc)}; protecting a table takes a role that owns both it and lockguard's schema"
        ) from exc
    except psycopg.Error as exc:
        if ERRORS.meaning_of(exc) is Meaning.CONFIGURATION:
            raise ERRORS.set_up_error(exc) from exc
        raise


def require_synchronous(conn: object) -> None:
    """Raise ``ConfigurationError`` unless ``conn`` is a synchronous connection of psycopg."""
    info = getattr(conn, "info", None)  # SQLAlchemy hands out its own object in front of psycopg's
    if isinstance(conn, psycopg.AsyncConnection) or not isinstance(info, psycopg.ConnectionInfo):
        raise ConfigurationError(
            "the fence is installed, and tables are protected, with a synchronous connection, also for an"
            f" asynchronous bot: psycopg.connect(url); this is {kind_of(conn)}"
        )


def _require_several(name: str, names: object) -> None:
    if isinstance(names, str):
        raise ConfigurationError(f"{name}={names!r} is one text; write a list: {name}=[{names!r}]")


def _value(conn: psycopg.Connection[Any], query: str, *args: object) -> Any:
    with conn.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(query.encode(), args or None).fetchone()
    assert row is not None, f"{query!r} gives one row"
    return row[0]
