"""Applies the schema: numbered SQL files, in order, each once, all in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard.text import printable
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error
from lockguard_asyncpg._integrity import restore
from lockguard_postgres._schema_sql import INSTALL_LOCK_KEY, POSTGRES_MIN, Installed, schema_sql, steps_sql
from lockguard_postgres._steps import SCHEMA_VERSION, Step, sql_file, steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

__all__ = [
    "SCHEMA_VERSION",
    "Installed",
    "Step",
    "install",
    "require_current",
    "require_owner",
    "schema_sql",
    "schema_version",
    "steps",
    "uninstall",
]

_OWNER = """
select current_user::text as us, nspowner::regrole::text as owner, pg_has_role(nspowner, 'USAGE') as ours
  from pg_catalog.pg_namespace where nspname = 'lockguard'
"""


async def schema_version(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> int:
    """The version of the installed schema; 0 for none."""
    # By the function: an application role may not read the table.
    if await conn.fetchval("select to_regprocedure('lockguard.version()')") is None:
        return 0
    return int(await conn.fetchval("select lockguard.version()") or 0)


async def require_current(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> None:
    """Refuse a schema that is missing or older than this library.

    Raises:
        ConfigurationError: it is; the message names the command to run.
    """
    version = await schema_version(conn)
    if version == 0:
        raise ConfigurationError(
            "there is no lockguard schema in this database: run `lockguard fence install`"
        )
    if version < SCHEMA_VERSION:
        raise ConfigurationError(
            f"the lockguard schema has version {version}, this library {SCHEMA_VERSION}:"
            " run `lockguard fence upgrade`"
        )


async def install(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    *,
    allow: Sequence[str] = (),
    viewers: Sequence[str] = (),
    operators: Sequence[str] = (),
) -> Installed:
    """Bring the schema to this library's version, in one transaction; at that version, renew its rights.

    At that version its own functions and triggers are also made again where they were replaced or dropped.

    The role ``lockguard_app`` may take part in fencing, ``lockguard_viewer`` may see the fence, its audit and
    its refusals, and ``lockguard_operator`` may also break a lock. They are created where they are missing,
    unless the caller may not create roles.

    Args:
        conn: a connection of a role that owns the database, or may create schemas in it.
        allow: further roles that may take part, each by a grant of its own: needed where ``lockguard_app`` is
            missing or belongs to another owner.
        viewers: further roles that may do what ``lockguard_viewer`` may.
        operators: further roles that may do what ``lockguard_operator`` may.

    Raises:
        ConfigurationError: the role may not create it, the schema is newer than this library, the server is
            older than PostgreSQL 13, or one of the roles does not exist.
    """
    if (found := conn.get_server_version()) < (POSTGRES_MIN,):
        raise ConfigurationError(
            f"this is PostgreSQL {found.major}, and the fence needs {POSTGRES_MIN} or newer: upgrade it"
        )
    try:
        # Whatever the default is: a snapshot from before the wait does not show what another installer did.
        async with whole(conn, isolation="read_committed"):
            await conn.execute("select pg_advisory_xact_lock($1)", INSTALL_LOCK_KEY)
            before = await schema_version(conn)
            if before > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"the lockguard schema has version {before} and this library knows {SCHEMA_VERSION}:"
                    " upgrade the library"
                )
            if before == SCHEMA_VERSION:
                await restore(conn)
            await conn.execute(steps_sql(after=before))
            for function, roles in (
                ("allow", allow),
                ("allow_to_view", viewers),
                ("allow_to_operate", operators),
            ):
                for role in roles:
                    await _allow(conn, function, role)
            return Installed(before, SCHEMA_VERSION)
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(
            f"{exc.message}; install as the schema's owner, or as a role that may create one in this database"
        ) from exc


async def _allow(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], function: str, role: str) -> None:
    try:
        await conn.execute(f"select lockguard.{function}($1)", role)
    except asyncpg.UndefinedObjectError as exc:
        raise ConfigurationError(f"there is no role {role!r}; create it first") from exc


async def require_owner(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> None:
    """Refuse a role that may not remove the schema; without a schema, pass.

    Raises:
        ConfigurationError: it belongs to another role; the message names both.
    """
    row = await conn.fetchrow(_OWNER)
    if row is not None and not row["ours"]:
        raise ConfigurationError(
            f"the lockguard schema belongs to {printable(row['owner'])}, and only its owner may remove it,"
            f" not {printable(row['us'])}: give the URL of that role"
        )


async def uninstall(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> bool:
    """Remove the schema with all its tokens; returns whether there was one. The role lockguard_app stays.

    It fails while tables are protected: unprotect them first.

    Raises:
        ConfigurationError: the role may not, or tables are still protected.
    """
    try:
        async with whole(conn, isolation="read_committed"):
            # Inside: cancelled between its statement's Parse and Bind, asyncpg sends no Sync, and the server
            # would keep the session in a transaction until its next use.
            await require_owner(conn)
            await conn.execute("select pg_advisory_xact_lock($1)", INSTALL_LOCK_KEY)
            if await conn.fetchval("select to_regnamespace('lockguard')") is None:
                return False
            # Not only DROP SCHEMA ... CASCADE: what users made dependent on it must not vanish silently.
            await conn.execute(sql_file("uninstall"))
            return True
    except asyncpg.DependentObjectsStillExistError as exc:
        raise ConfigurationError(
            f"the lockguard schema is still in use ({exc.detail}); unprotect those tables first"
        ) from exc
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise
