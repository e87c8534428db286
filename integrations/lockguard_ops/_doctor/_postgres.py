"""The database with the fence: its schema, the role's rights, protected tables, and a pooler before it."""

from __future__ import annotations

import secrets
import shlex
import uuid
from importlib.util import find_spec
from typing import TYPE_CHECKING

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard.text import first_line
from lockguard_asyncpg import SCHEMA_VERSION, Finding, findings, protections, schema_version
from lockguard_asyncpg._connection import whole
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._integrity import functions_of_app
from lockguard_asyncpg._protection import by_pgpool
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._postgres_settings import check_growth, check_settings
from lockguard_ops._doctor._session import CONNECT_S, Session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

__all__ = ["check_database"]

_OLDEST = 13
_LOOKS = 5
_SEAL = "select lockguard.seal($1, $2, $3, 'lockguard doctor', 'doctor', 1000)"
_CHECK = "select lockguard.check($1, $2, $3)"
_CLOSE = "select lockguard.close($1, $2, $3, 1000)"
_MAY_ASK = """
select to_regnamespace('lockguard') is null
    or has_schema_privilege('lockguard', 'usage')
   and not exists (select from pg_catalog.pg_proc
                    where pronamespace = to_regnamespace('lockguard') and proname = 'version'
                      and not has_function_privilege(oid, 'execute'))
"""
_REFUSED = """
select n from unnest($1::text[]) n
 where to_regprocedure(n) is null or not has_function_privilege(to_regprocedure(n), 'execute') order by 1
"""
_TAKES_PART = "select pg_has_role(to_regrole('lockguard_app'), 'usage')"
_OTHERWISE = """
select p.relation, p.template, p.exempt from lockguard.protections() p
 where to_regclass(p.relation) = to_regclass($1)
   and (p.template <> $2 or not p.exempt <@ $3::text[])
"""
_TABLE_RIGHTS = {
    "monitoring.positions": ("select", "insert", "update"),
    "monitoring.position_intents": ("select", "insert", "update"),
    "monitoring.signals": ("select", "insert"),
    "monitoring.signal_attempts": ("select", "insert", "update", "delete"),
    "monitoring.schema_version": ("select",),
    "monitoring.status_transitions": ("select",),
}
"""The rights of a bot's role that docs/howto/least-privilege.md lists."""
_LACKING = """
select t as relation, string_agg(r, ', ' order by r) as rights
  from unnest($1::text[], $2::text[]) as v (t, r)
 where to_regclass(t) is not null and not has_table_privilege(to_regclass(t), r)
 group by t order by t
"""
_NO_NAME = (
    asyncpg.InvalidNameError,
    asyncpg.PostgresSyntaxError,  # a.b.c.d
    asyncpg.FeatureNotSupportedError,  # other_database.schema.table
)
_WRITTEN = ("monitoring.positions", "monitoring.position_intents", "monitoring.signals")
_THERE = """
select n from unnest($1::text[]) n where to_regclass(n) is not null
   and not exists (select from lockguard.protections() p where to_regclass(p.relation) = to_regclass(n))
"""
_KEYED = """
select array_agg(attname::text) from pg_catalog.pg_attribute
 where attrelid = to_regclass($1) and attname in ('exchange', 'symbol') and not attisdropped
"""


async def check_database(session: Session, ttl: timedelta, tables: Sequence[str], report: Report) -> None:
    """Look at all of a database.

    Args:
        session: a session of the bot's role.
        ttl: of the bot's leases.
        tables: further tables that the bot writes.
        report: gets the findings.

    Raises:
        asyncpg.PostgresError, OSError: the database does not answer any more.
    """
    await _Checks(session, report).run(ttl, tables)


class _Checks:
    def __init__(self, session: Session, report: Report) -> None:
        self._session = session
        self._conn = session.conn
        self._server = session.server
        self._report = report
        self._by_transaction = True

    async def run(self, ttl: timedelta, tables: Sequence[str]) -> None:
        version = self._conn.get_server_version()
        old = version.major < _OLDEST
        severity, remedy = (Severity.ERROR, advice("upgrade the server")) if old else (Severity.OK, "")
        told = f"PostgreSQL {await self._conn.fetchval('show server_version')}"
        self._report.add("postgres.version", severity, self._server, told, remedy)
        await self._check_pooler()
        writes = await check_settings(self._session, ttl, self._report)
        found = await self._check_schema()
        may_call = bool(found) and await self._check_rights(
            trial=writes and self._by_transaction, known=found == SCHEMA_VERSION
        )
        if may_call and found == SCHEMA_VERSION:
            await self._check_protections(tables)
        await check_growth(self._session, self._report)

    async def _check_schema(self) -> int:
        """The version of the schema; 0 for none, or for one that the role may not use."""
        if not await self._conn.fetchval(_MAY_ASK):
            role, grant = await self._role()
            lacks = f"role {role} may not use the schema lockguard and its functions"
            self._report.add("postgres.rights", Severity.ERROR, self._server, lacks, grant)
            return 0
        found = await schema_version(self._conn)
        severity, remedy, told = Severity.OK, "", f"version {found}"
        if not found:
            severity, told = Severity.ERROR, "there is none"
            remedy = self._session.lockguard("lockguard fence install")
        elif found < SCHEMA_VERSION:
            severity, told = Severity.ERROR, f"version {found}, this library has {SCHEMA_VERSION}"
            remedy = self._session.lockguard("lockguard fence upgrade")
        elif found > SCHEMA_VERSION:
            severity, told = Severity.WARNING, f"version {found}, this library has {SCHEMA_VERSION}"
            remedy = "pip install --upgrade lockguard"
        self._report.add("postgres.schema", severity, self._server, told, remedy)
        return found

    async def _check_rights(self, *, trial: bool, known: bool) -> bool:
        """Whether the role may call every function of the fence."""
        role, grant = await self._role()
        asked = list(functions_of_app()) if known else []
        refused = [row[0] for row in await self._conn.fetch(_REFUSED, asked)]
        if refused:
            if await self._conn.fetchval(_TAKES_PART):  # the group's own rights are not whole
                grant = self._session.lockguard("lockguard fence install")
            found = f"role {role} may not call {', '.join(refused[:3])}" + (
                " and more" if refused[3:] else ""
            )
            self._report.add("postgres.rights", Severity.ERROR, self._server, found, grant)
        elif trial and (failed := await self._try_seal()) is not None:
            told = f"a seal that was tried failed: {first_line(failed)}"
            if not isinstance(failed, asyncpg.InsufficientPrivilegeError):
                grant = advice("see what was changed in the schema lockguard: lockguard fence check")
            self._report.add("postgres.rights", Severity.ERROR, self._server, told, grant)
        else:
            tried = "sealed, checked and closed a scratch resource, rolled back" if trial else "has them all"
            self._report.add("postgres.rights", Severity.OK, self._server, f"role {role}: {tried}")
        await self._check_tables(role)
        return not refused

    async def _role(self) -> tuple[str, str]:
        """The role of the session, and the line that lets it take part."""
        row = await self._conn.fetchrow(
            "select session_user::text, quote_ident(session_user), to_regrole('lockguard_app') is not null"
        )
        assert row is not None, "a select without FROM has a row"
        role, quoted, is_there = row
        if not is_there:  # an owner who may not create roles installed the fence
            command = f"lockguard fence install --grant-to {shlex.quote(role)}"
            return role, self._session.lockguard(command)
        return role, self._session.psql(f"grant lockguard_app to {quoted}")

    async def _check_tables(self, role: str) -> None:
        asked = [(table, right) for table, rights in _TABLE_RIGHTS.items() for right in rights]
        if await self._conn.fetchval("select to_regclass('monitoring.positions') is null"):
            return
        quoted = await self._conn.fetchval("select quote_ident(session_user)")
        for row in await self._conn.fetch(_LACKING, [t for t, _ in asked], [r for _, r in asked]):
            found = f"role {role} lacks {row['rights']} on {row['relation']}"
            usage = f"grant usage on schema monitoring to {quoted}"
            remedy = self._session.psql(usage, f"grant {row['rights']} on {row['relation']} to {quoted}")
            self._report.add("postgres.rights", Severity.ERROR, self._server, found, remedy)

    async def _try_seal(self) -> asyncpg.PostgresError | None:
        """Why a bot could take no lease; what the trial writes is rolled back."""
        resource = f"lockguard-doctor:{secrets.token_hex(6)}"
        token, grant = int(SYSTEM_CLOCK.wall() * 1e6), uuid.uuid4()
        transaction = whole(self._conn, isolation="read_committed")
        await transaction.start()
        try:
            for call in (_SEAL, _CHECK, _CLOSE):
                await self._conn.execute(call, resource, token, grant)
        except asyncpg.PostgresError as exc:
            return exc
        finally:
            if not self._conn.is_closed():
                await transaction.rollback()
        return None

    async def _check_protections(self, tables: Sequence[str]) -> None:
        found = await findings(self._conn)
        for one in found:
            grave = Severity.ERROR if one.grave else Severity.NOTE
            what = f"{one.table}: {one.finding}"
            whole = one.remedy.startswith("lockguard fence ") and not {";", "or"} & set(one.remedy.split())
            if one.remedy.startswith("alter table "):
                remedy = self._session.psql(one.remedy)
            else:
                remedy = self._session.lockguard(one.remedy) if whole else advice(one.remedy)
            self._report.add("postgres.protection", grave, self._server, what, remedy)
        if not found:
            told = f"all {len(await protections(self._conn))} protected tables hold"
            self._report.add("postgres.protection", Severity.OK, self._server, told)
        await self._check_templates()
        for table in tables:
            await self._check_named(table, found)
        already = {*tables, *(one.table for one in found)}
        open_ = [row[0] for row in await self._conn.fetch(_THERE, list(_WRITTEN)) if row[0] not in already]
        if open_:
            remedy = self._session.lockguard("lockguard positions migrate --protect")
            told = f"{', '.join(open_)}: not protected"
            self._report.add("postgres.unprotected", Severity.WARNING, self._server, told, remedy)

    async def _check_templates(self) -> None:
        """Compare how the bot's tables are protected with the resources that it locks."""
        if any(find_spec(name) is None for name in ("ccxt", "tenacity")):
            return
        from lockguard_positions._schema import PROTECTED, RESOURCE  # noqa: PLC0415 - it needs an extra

        for table, exempt in PROTECTED.items():
            row = await self._conn.fetchrow(_OTHERWISE, table, RESOURCE, list(exempt))
            if row is not None:
                free = f", {', '.join(row['exempt'])} exempt" if row["exempt"] else ""
                found = f"{table} is protected as {row['template']}{free}; the bot needs {RESOURCE}"
                if exempt:
                    found += f", no more exempt than {', '.join(exempt)}"
                remedy = self._session.lockguard("lockguard positions migrate --protect")
                self._report.add("postgres.protection", Severity.ERROR, self._server, found, remedy)

    async def _check_named(self, table: str, known: Sequence[Finding]) -> None:
        try:
            found = [one for one in await findings(self._conn, tables=[table]) if one not in known]
        except _NO_NAME:
            remedy = advice("write the table's name as SQL does: --tables trading.positions")
            told = f"{table!r} is no name of a table"
            self._report.add("postgres.unprotected", Severity.ERROR, self._server, told, remedy)
            return
        for one in found:
            remedy = await self._protecting(table)
            what = f"{one.table}: {one.finding}"
            self._report.add("postgres.unprotected", Severity.ERROR, self._server, what, remedy)

    async def _protecting(self, table: str) -> str:
        if await self._conn.fetchval("select to_regclass($1) is null", table):
            return advice("write the table's name with its schema: --tables trading.positions")
        columns = await self._conn.fetchval(_KEYED, table) or []
        if "symbol" not in columns:
            return advice(f"lockguard fence protect {shlex.quote(table)} --resource TEMPLATE-OF-ITS-COLUMNS")
        template = shlex.quote("{exchange}:{symbol}" if "exchange" in columns else "{symbol}")
        return self._session.lockguard(f"lockguard fence protect {shlex.quote(table)} --resource {template}")

    async def _check_pooler(self) -> None:
        for one in await by_pgpool(self._conn):
            self._report.add(
                "postgres.pooler",
                Severity.NOTE,
                self._server,
                f"{one.table}: {one.finding}",
                advice(one.remedy),
            )
        # A pooler makes up the process id that it gives at log-in.
        if await self._conn.fetchval("select pg_backend_pid()") == self._conn.get_server_pid():
            self._report.add("postgres.pooler", Severity.OK, self._server, "none, the connection is direct")
            return
        if not await self._pools_transactions():
            self._by_transaction = False
            remedy = advice("in pgbouncer.ini: pool_mode = transaction (or session), then RELOAD")
            self._report.add("postgres.pooler", Severity.ERROR, self._server, "it pools by statement", remedy)
            return
        if not await self._keeps_session():
            found = "it pools by transaction"
            remedy = advice(
                "create_pool(..., statement_cache_size=0) unless max_prepared_statements is set; give"
                " PostgresFence(listen=) the server's own URL"
            )
            self._report.add("postgres.pooler", Severity.NOTE, self._server, found, remedy)
        else:
            self._report.add("postgres.pooler", Severity.OK, self._server, "it pools by session")

    async def _pools_transactions(self) -> bool:
        """Whether a transaction keeps its session. The refusal ends the connection, so it is another one."""
        other = await self._session.another()
        try:
            async with other.transaction():
                return True
        except DATABASE_ERRORS as exc:
            if "statement pooling" not in str(exc):
                raise
            return False
        finally:
            other.terminate()

    async def _keeps_session(self) -> bool:
        """Whether each client has a session of its own: no two then ever work in the same backend."""
        other = await self._session.another()
        try:
            mine, theirs = set[int](), set[int]()
            for _ in range(_LOOKS):
                mine.add(await self._conn.fetchval("select pg_backend_pid()"))
                theirs.add(await other.fetchval("select pg_backend_pid()"))
            return not mine & theirs
        finally:
            await other.close(timeout=CONNECT_S)
