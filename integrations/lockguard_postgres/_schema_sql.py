"""The schema as SQL text, for whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_postgres._steps import SCHEMA_VERSION, Step, sql_file, steps

__all__ = ["INSTALL_LOCK_KEY", "POSTGRES_MIN", "Installed", "schema_sql", "steps_sql"]

# Two installers at once would both find version 0. The key is the text "lockgrd" as a number.
INSTALL_LOCK_KEY = 0x6C6F636B677264
POSTGRES_MIN = 13


@dataclass(frozen=True, slots=True)
class Installed:
    """The schema versions before and after :func:`install`; 0 for none.

    Attributes:
        before: the version that the database had.
        after: the version that it has now.
    """

    before: int
    after: int


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
  perform pg_advisory_xact_lock({INSTALL_LOCK_KEY});
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
{made}  execute {_quoted(sql_file("rights"), "rights")};
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


def steps_sql(*, after: int) -> str:
    """The steps that a schema of the version ``after`` lacks, and the rights."""
    parts = [f"-- {s.name}\n{s.sql}\n{_recorded(s)}" for s in steps() if s.version > after]
    return "\n".join([*parts, f"-- rights\n{sql_file('rights')}"])
