"""The database's settings as a bot's session has them, its load, and how the fence's tables grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockguard_ops._doctor._findings import Report, Severity, advice

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from lockguard_ops._doctor._session import Session

__all__ = ["check_growth", "check_settings"]

_SETTINGS = """
select name, setting, source, quote_ident(session_user) as role, quote_ident(current_database()) as database,
       pg_is_in_recovery() as standby
  from pg_catalog.pg_settings
 where name in ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout',
   'transaction_timeout', 'default_transaction_read_only',
   'synchronous_commit', 'synchronous_standby_names', 'fsync', 'full_page_writes', 'autovacuum')
"""
_LOAD = """
select (select count(*) from pg_catalog.pg_stat_activity where backend_type = 'client backend') as now,
       current_setting('max_connections')::int as most
"""
# A role without pg_read_all_stats sees that there is a standby, and not whether it is a synchronous one.
_FOLLOWED = """
select exists (select from pg_catalog.pg_stat_replication
                where sync_state in ('sync', 'quorum') or sync_state is null)
"""
_TABLES = """
select format('lockguard.%I', c.relname) as relation, pg_total_relation_size(c.oid) as octets,
       coalesce(s.n_live_tup, 0) as live, coalesce(s.n_dead_tup, 0) as dead,
       coalesce(c.reloptions::text, '') ~* 'autovacuum_enabled=(false|off|0|no)' as off
  from pg_catalog.pg_class c left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
 where c.relnamespace = to_regnamespace('lockguard') and c.relkind = 'r'
 order by 2 desc
"""
_LINE_MS = 5_000
"""For how long a check may stand in line: the fence's own lock_timeout, where the ttl is not shorter."""
_SHORT_MS = 1_000
_BUSY_SHARE = 0.8
_DEAD_MIN = 10_000
_DEAD_TIMES = 4
_LARGE_MB = 1_024


class _Settings:
    """The settings of the session, and the statements that change them for the role in this database."""

    def __init__(self, session: Session, rows: Mapping[str, Mapping[str, Any]], report: Report) -> None:
        self._session = session
        self._rows = rows
        self._report = report
        one = next(iter(rows.values()))
        self.standby: bool = one["standby"]
        self._whose = f"alter role {one['role']} in database {one['database']} set"

    def __getitem__(self, name: str) -> str:
        """A setting's value; empty if this version of Postgres has none of that name."""
        return str(self._rows[name]["setting"]) if name in self._rows else ""

    def tell(self, code: str, severity: Severity, name: str, found: str, better: str) -> None:
        """Add a finding about a setting that a session can have otherwise."""
        if self._rows[name]["source"] == "client":
            remedy = advice(f"leave {name} out of the URL and of PGOPTIONS")
        else:
            remedy = self._session.psql(f"{self._whose} {name} = {better}")
        self._report.add(code, severity, self._session.server, found, remedy)

    def tell_of_all(self, code: str, severity: Severity, name: str) -> None:
        """Add a finding about a setting of the whole server that is off."""
        remedy = self._session.psql(f"alter system set {name} = on", "select pg_reload_conf()")
        self._report.add(code, severity, self._session.server, f"{name} is off", remedy)


async def check_settings(session: Session, ttl: timedelta, report: Report) -> bool:
    """Judge the timeouts, the durability and the load; returns whether the session can write.

    Raises:
        asyncpg.PostgresError, OSError: the database does not answer.
    """
    rows = {row["name"]: row for row in await session.conn.fetch(_SETTINGS)}
    settings = _Settings(session, rows, report)
    ttl_ms = round(ttl.total_seconds() * 1000)
    for code, name, least_ms, grave_ms in (
        ("postgres.statement_timeout", "statement_timeout", min(_LINE_MS, ttl_ms), _SHORT_MS),
        ("postgres.lock_timeout", "lock_timeout", _SHORT_MS, 0),
        ("postgres.idle_timeout", "idle_in_transaction_session_timeout", _SHORT_MS, 0),
        ("postgres.transaction_timeout", "transaction_timeout", ttl_ms, _SHORT_MS),
    ):
        if 0 < (value := int(settings[name] or 0)) < least_ms:
            severity = Severity.ERROR if value < grave_ms else Severity.WARNING
            settings.tell(code, severity, name, f"{value} ms", "0")
    if settings["synchronous_commit"] == "off":
        name = "synchronous_commit"
        settings.tell("postgres.durability", Severity.ERROR, name, f"{name} is off", "on")
    for name in ("fsync", "full_page_writes"):
        if settings[name] == "off":
            settings.tell_of_all("postgres.durability", Severity.ERROR, name)
    if settings["autovacuum"] == "off":
        settings.tell_of_all("postgres.growth", Severity.WARNING, "autovacuum")
    if settings["synchronous_standby_names"] and settings["synchronous_commit"] not in {"off", "local"}:
        await _check_standbys(settings["synchronous_standby_names"], session, report)
    await _check_load(session, report)
    if settings.standby:
        remedy = advice("name the primary, or several hosts with ?target_session_attrs=read-write")
        report.add("postgres.read_only", Severity.ERROR, session.server, "it is a standby", remedy)
    elif settings[(name := "default_transaction_read_only")] == "on":
        settings.tell("postgres.read_only", Severity.ERROR, name, f"{name} is on", "off")
    else:
        return True
    return False


async def _check_standbys(names: str, session: Session, report: Report) -> None:
    if not await session.conn.fetchval(_FOLLOWED):
        found = f"synchronous_standby_names is {names}, and no such standby is there"
        remedy = advice("start the standby; or, to do without: alter system reset synchronous_standby_names")
        report.add("postgres.standby", Severity.ERROR, session.server, found, remedy)


async def _check_load(session: Session, report: Report) -> None:
    row = await session.conn.fetchrow(_LOAD)
    assert row is not None, "a select without FROM has a row"
    found = f"{row['now']} of at most {row['most']}"
    if row["now"] > _BUSY_SHARE * row["most"]:
        remedy = session.psql(f"alter system set max_connections = {2 * row['most']}") + "  # then restart it"
        report.add("postgres.connections", Severity.WARNING, session.server, found, remedy)
    else:
        report.add("postgres.connections", Severity.OK, session.server, found)


async def check_growth(session: Session, report: Report) -> None:
    """Look at the size of the fence's tables, at dead rows, and at tables that autovacuum leaves out.

    Raises:
        asyncpg.PostgresError, OSError: the database does not answer.
    """
    rows = await session.conn.fetch(_TABLES)
    amiss = False
    for row in rows:
        if row["off"]:
            remedy = session.psql(f"alter table {row['relation']} reset (autovacuum_enabled)")
            found = f"autovacuum is off for {row['relation']}"
        elif row["dead"] > max(_DEAD_MIN, _DEAD_TIMES * row["live"]):
            remedy = session.psql(f"vacuum {row['relation']}")
            found = f"{row['relation']} has {row['dead']:,} dead rows beside {row['live']:,} live ones"
        else:
            continue
        amiss = True
        report.add("postgres.growth", Severity.WARNING, session.server, found, remedy)
    if rows and not amiss:
        total = sum(row["octets"] for row in rows) / 1_048_576
        found = f"{total:,.1f} MB, most in {rows[0]['relation']}"
        severity, remedy = Severity.OK, ""
        if total > _LARGE_MB:
            severity = Severity.NOTE
            remedy = advice(session.lockguard("lockguard fence prune --older-than 30d"))
        report.add("postgres.growth", severity, session.server, found, remedy)
