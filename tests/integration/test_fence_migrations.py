"""The schema in the hands of migration tools, which have their own ideas of statements and transactions."""

from __future__ import annotations

import re
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import SCHEMA_VERSION, Installed, install, schema_sql, schema_version
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._schema import steps

MADE = "insert into lockguard.schema_version (version) values ($1)"


def notices_of(conn: asyncpg.Connection[Any]) -> list[str]:
    found: list[str] = []
    conn.add_log_listener(lambda _, message: found.append(str(message)))
    return found


async def test_the_script_is_one_statement_for_drivers_that_take_no_more(
    conn: asyncpg.Connection[Any],
) -> None:
    await conn.fetch(schema_sql())  # prepared, as SQLAlchemy's asyncpg dialect does: several would be refused
    assert await install(conn) == Installed(SCHEMA_VERSION, SCHEMA_VERSION)


async def test_what_is_printed_is_that_statement_and_nothing_around_it() -> None:
    printed = CliRunner().invoke(fence, ["sql"]).output
    assert printed == schema_sql()
    assert not re.search(
        r"^\s*(begin|commit)\s*;", printed.partition("begin\n")[0], re.MULTILINE | re.IGNORECASE
    )


@pytest.mark.parametrize("after", range(SCHEMA_VERSION))
def test_sqlalchemy_finds_no_parameter_in_the_script(after: int) -> None:
    # The pattern of its text(), by which Alembic's op.execute() reads a string.
    assert not re.findall(r"(?<![:\w\x5c]):(\w+)(?!:)", schema_sql(after=after))


async def test_a_migration_that_fails_after_the_script_leaves_nothing(conn: asyncpg.Connection[Any]) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with conn.transaction():  # the tool's own
            await conn.execute(schema_sql())
            await conn.execute("select 1/0")
    assert await conn.fetchval("select to_regnamespace('lockguard')") is None
    await conn.execute(schema_sql())  # the second try
    assert await schema_version(conn) == SCHEMA_VERSION


async def test_a_script_that_fails_by_itself_leaves_nothing_without_any_transaction(
    conn: asyncpg.Connection[Any],
) -> None:
    await conn.execute("create schema lockguard; create table lockguard.outcome (x int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await conn.execute(schema_sql())
    assert await conn.fetchval("select to_regclass('lockguard.fence')") is None


async def test_the_script_applied_again_says_so_and_succeeds(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    await conn.execute("select lockguard.seal('r', 7, gen_random_uuid(), 'holder', 'op', 1000)")
    said = notices_of(conn)
    await conn.execute(schema_sql())
    assert f"at version {SCHEMA_VERSION} already" in "".join(said)
    assert await conn.fetchval("select token from lockguard.status('r')") == 7


@pytest.mark.parametrize("before", range(1, SCHEMA_VERSION))
async def test_the_whole_script_brings_any_older_schema_up_to_date(
    conn: asyncpg.Connection[Any], before: int
) -> None:
    for step in steps()[:before]:
        await conn.execute(step.sql)
        await conn.execute(MADE, step.version)
    await conn.execute("select lockguard.seal('r', 7, gen_random_uuid(), 'holder', 'op', 1000)")
    await conn.execute(schema_sql())
    assert await schema_version(conn) == SCHEMA_VERSION
    assert await conn.fetchval("select token from lockguard.status('r')") == 7


async def test_a_script_of_later_steps_refuses_a_schema_that_is_older_than_they_are(
    conn: asyncpg.Connection[Any],
) -> None:
    for after in (2, SCHEMA_VERSION):
        with pytest.raises(
            asyncpg.PostgresError,
            match=f"no lockguard schema here, and this script begins after version {after}",
        ):
            await conn.execute(schema_sql(after=after))
    assert await conn.fetchval("select to_regnamespace('lockguard')") is None
    await conn.execute(steps()[0].sql)
    await conn.execute(MADE, 1)
    with pytest.raises(asyncpg.PostgresError, match="version 1 here, and this script begins after version 2"):
        await conn.execute(schema_sql(after=2))


@pytest.mark.parametrize("after", [SCHEMA_VERSION + 1, 99, -1, True, "3", 10**30])
def test_a_script_that_begins_after_a_version_that_is_none_is_refused_in_one_line(after: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"versions 1 to {SCHEMA_VERSION}") as caught:
        schema_sql(after=after)
    assert "\n" not in str(caught.value)
    printed = CliRunner().invoke(fence, ["sql", "--after", str(after)])
    if not isinstance(after, int) or isinstance(after, bool):
        return
    assert printed.exit_code == 2
    assert printed.stdout == ""
    assert f"0<=x<={SCHEMA_VERSION}" in printed.stderr


async def test_a_script_of_no_steps_renews_the_rights_of_the_newest_schema(
    conn: asyncpg.Connection[Any],
) -> None:
    await install(conn)
    await conn.execute("revoke all on schema lockguard from lockguard_app")
    await conn.execute(schema_sql(after=SCHEMA_VERSION))
    assert await conn.fetchval("select has_schema_privilege('lockguard_app', 'lockguard', 'usage')") is True


async def test_the_script_of_an_older_library_takes_nothing_back(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    await conn.execute(MADE, 99)
    await conn.execute(
        "create or replace function lockguard.allow(p_role text) returns void language sql as ''"
    )
    said = notices_of(conn)
    await conn.execute(schema_sql())
    assert "at version 99 already" in "".join(said)
    kept = await conn.fetchval("select prosrc from pg_proc where oid = 'lockguard.allow(text)'::regprocedure")
    assert kept == ""
