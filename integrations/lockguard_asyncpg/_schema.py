"""Applies the schema: numbered SQL files, in order, each once, all in one transaction."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of, printable
from lockguard_asyncpg._errors import Meaning, meaning_of, set_up_error

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
# Two installers at once would both find version 0. The key is the text "lockgrd" as a number.
_INSTALL_LOCK_KEY = 0x6C6F636B677264
_POSTGRES_MIN = (13,)


@dataclass(frozen=True, slots=True)
class Step:
    """One numbered file of the schema."""

    version: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Installed:
    """The schema versions before and after :func:`install`; 0 for none."""

    before: int
    after: int


@cache
def steps() -> tuple[Step, ...]:
    """The schema's files in order."""
    found = [f for f in (files("lockguard_asyncpg") / "sql").iterdir() if f.name[:4].isdigit()]
    return tuple(
        Step(int(f.name[:4]), f.name.removesuffix(".sql"), f.read_text(encoding="utf-8"))
        for f in sorted(found, key=lambda f: f.name)
    )


SCHEMA_VERSION = steps()[-1].version


def _recorded(step: Step) -> str:
    return f"insert into lockguard.schema_version (version) values ({step.version});\n"  # noqa: S608 - an int of ours


def schema_sql(*, after: int = 0) -> str:
    """The schema for a migration tool: one statement that creates what is missing and renews the rights.

    Being one statement, it is applied whole or not at all, whatever the tool does with transactions, and a
    driver that takes one statement at a time accepts it. On a complete schema it succeeds, with a notice. It
    contains no ``:name`` that SQLAlchemy would take for a parameter.

    Args:
        after: leave out the steps up to this version; on an older schema the statement then fails.

    Raises:
        ConfigurationError: there is no such version.
    """
    _require_version(after)
    made = "".join(_where_missing(s) for s in steps() if s.version > after)
    return f"""do $lockguard_schema$
declare
  had integer := 0;
begin
  perform pg_advisory_xact_lock({_INSTALL_LOCK_KEY});
  if to_regprocedure('lockguard.version()') is not null then
    execute 'select coalesce(lockguard.version(), 0)' into had;
  end if;
  if had > {SCHEMA_VERSION} then
    raise notice 'the lockguard schema is at version % already, beyond this script ({SCHEMA_VERSION})', had;
    return;
  elsif had = {SCHEMA_VERSION} then
    raise notice 'the lockguard schema is at version % already', had;
  elsif had < {after} then
    raise exception '% here, and this script begins after version {after}',
        case had when 0 then 'there is no lockguard schema'
          else 'the lockguard schema is at version ' || had end
      using errcode = 'LG004', hint = 'Print it for that version: lockguard fence sql --after ' || had;
  end if;
{made}  execute {_quoted(_file("rights"), "rights")};
end
$lockguard_schema$;
"""


def _require_version(after: object) -> None:
    if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= SCHEMA_VERSION:
        shown = after if isinstance(after, int) else kind_of(after)
        raise ConfigurationError(
            f"there is no version {shown} to begin after: this library's schema has versions 1 to"
            f" {SCHEMA_VERSION}; leave it out for all of them"
        )


def _where_missing(step: Step) -> str:
    make = _quoted(f"{step.sql}\n{_recorded(step)}", step.name)
    return f"  if had < {step.version} then\n    execute {make};\n  end if;\n"


def _quoted(sql: str, name: str) -> str:
    return f"$lockguard_{name}${sql}$lockguard_{name}$"


def _steps_sql(*, after: int) -> str:
    parts = [f"-- {s.name}\n{s.sql}\n{_recorded(s)}" for s in steps() if s.version > after]
    return "\n".join([*parts, f"-- rights\n{_file('rights')}"])


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
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], *, allow: Sequence[str] = ()
) -> Installed:
    """Bring the schema to this library's version, in one transaction; at that version, renew its rights.

    The role ``lockguard_app`` may take part in fencing; it is created where it is missing, unless the caller
    may not create roles.

    Args:
        conn: a connection of a role that owns the database, or may create schemas in it.
        allow: further roles that may take part, each by a grant of its own: needed where ``lockguard_app`` is
            missing or belongs to another owner.

    Raises:
        ConfigurationError: the role may not create it, the schema is newer than this library, the server is
            older than PostgreSQL 13, or one of ``allow`` is no role.
    """
    if (found := conn.get_server_version()) < _POSTGRES_MIN:
        raise ConfigurationError(
            f"this is PostgreSQL {found.major}, and the fence needs {_POSTGRES_MIN[0]} or newer: upgrade it"
        )
    try:
        # Whatever the default is: a snapshot from before the wait does not show what another installer did.
        async with conn.transaction(isolation="read_committed"):
            await conn.execute("select pg_advisory_xact_lock($1)", _INSTALL_LOCK_KEY)
            before = await schema_version(conn)
            if before > SCHEMA_VERSION:
                raise ConfigurationError(
                    f"the lockguard schema has version {before} and this library knows {SCHEMA_VERSION}:"
                    " upgrade the library"
                )
            await conn.execute(_steps_sql(after=before))
            for role in allow:
                await _allow(conn, role)
            return Installed(before, SCHEMA_VERSION)
    except asyncpg.InsufficientPrivilegeError as exc:
        raise ConfigurationError(
            f"{exc.message}; install as the schema's owner, or as a role that may create one in this database"
        ) from exc


async def _allow(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], role: str) -> None:
    try:
        await conn.execute("select lockguard.allow($1)", role)
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
    await require_owner(conn)
    try:
        async with conn.transaction(isolation="read_committed"):
            await conn.execute("select pg_advisory_xact_lock($1)", _INSTALL_LOCK_KEY)
            if await conn.fetchval("select to_regnamespace('lockguard')") is None:
                return False
            # Not only DROP SCHEMA ... CASCADE: what users made dependent on it must not vanish silently.
            await conn.execute(_file("uninstall"))
            return True
    except asyncpg.DependentObjectsStillExistError as exc:
        raise ConfigurationError(
            f"the lockguard schema is still in use ({exc.detail}); unprotect those tables first"
        ) from exc
    except asyncpg.PostgresError as exc:
        if meaning_of(exc) is Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        raise


def _file(name: str) -> str:
    return (files("lockguard_asyncpg") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
