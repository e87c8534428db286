"""Installing the schema, and what it refuses by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import SCHEMA_VERSION, Installed, install, schema_sql, schema_version, uninstall

if TYPE_CHECKING:
    from lockguard_lab.servers import PostgresServer


async def seal(conn: asyncpg.Connection[Any], token: int = 7) -> None:
    await conn.execute("select lockguard.seal('r', $1, $2, 'holder', 'op', 1000)", token, uuid4())


async def test_install_twice_is_install_once(conn: asyncpg.Connection[Any]) -> None:
    assert await install(conn) == Installed(0, SCHEMA_VERSION)
    await seal(conn)
    assert await install(conn) == Installed(SCHEMA_VERSION, SCHEMA_VERSION)
    assert await conn.fetchval("select token from lockguard.status('r')") == 7


async def test_installers_at_the_same_time_do_not_disturb_each_other(database_url: str) -> None:
    conns = [await asyncpg.connect(database_url) for _ in range(4)]
    try:
        results = await asyncio.gather(*(install(c) for c in conns))
    finally:
        await asyncio.gather(*(c.close() for c in conns))
    assert sorted(r.before for r in results) == [0, SCHEMA_VERSION, SCHEMA_VERSION, SCHEMA_VERSION]


async def test_an_install_that_fails_leaves_nothing(conn: asyncpg.Connection[Any]) -> None:
    await conn.execute("create schema lockguard; create table lockguard.audit (x int)")
    with pytest.raises(asyncpg.DuplicateTableError):
        await install(conn)
    assert await schema_version(conn) == 0
    assert await conn.fetchval("select to_regclass('lockguard.fence')") is None


async def test_the_script_for_a_migration_tool_installs_the_same(conn: asyncpg.Connection[Any]) -> None:
    await conn.execute(schema_sql())
    assert await install(conn) == Installed(SCHEMA_VERSION, SCHEMA_VERSION)


async def test_a_schema_newer_than_the_library_is_left_alone(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    await conn.execute("insert into lockguard.schema_version (version) values (99)")
    with pytest.raises(ConfigurationError, match="version 99"):
        await install(conn)


async def test_uninstall_removes_all_of_it(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    assert await uninstall(conn) is True
    assert await conn.fetchval("select to_regnamespace('lockguard')") is None
    assert await uninstall(conn) is False


async def test_a_role_that_may_not_install_is_told_so(
    conn: asyncpg.Connection[Any], postgres_server: PostgresServer, database_url: str
) -> None:
    role = f"poor_{uuid4().hex[:8]}"
    await conn.execute(f"create role {role} login password 'poor'")
    try:
        poor = await asyncpg.connect(database_url, user=role, password="poor")
        try:
            with pytest.raises(ConfigurationError, match="permission denied"):
                await install(poor)
        finally:
            await poor.close()
    finally:
        await conn.execute(f"drop role {role}")


@pytest.mark.parametrize(
    "statement",
    [
        "update lockguard.fence set token = token - 1",
        "update lockguard.fence set grant_id = gen_random_uuid()",
        "update lockguard.fence set resource = 'other'",
        "update lockguard.fence set released_at = now(); update lockguard.fence set released_at = null",
        "delete from lockguard.fence",
        "truncate lockguard.fence",
        "set session_replication_role = replica; delete from lockguard.fence",
    ],
)
async def test_the_fence_goes_forward_only_for_a_superuser_too(
    conn: asyncpg.Connection[Any], statement: str
) -> None:
    await install(conn)
    await seal(conn)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await conn.execute(statement)
    assert caught.value.sqlstate == "LG003"
    row = await conn.fetchrow("select token, is_open from lockguard.status('r')")
    assert row is not None
    assert tuple(row) == (7, True)


async def test_the_application_role_takes_part_and_cannot_write_the_fence(
    conn: asyncpg.Connection[Any],
) -> None:
    await install(conn)
    await conn.execute("set role lockguard_app")
    await seal(conn)
    assert await conn.fetchval("select token from lockguard.status('r')") == 7
    assert await conn.fetchval("select lockguard.version()") == SCHEMA_VERSION
    for statement in (
        "select * from lockguard.fence",
        "update lockguard.fence set token = 99",
        "insert into lockguard.outcome values ('r', 7, 1)",
        "delete from lockguard.audit",
        "create table lockguard.mine (x int)",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute(statement)


async def test_nobody_else_may_call_the_functions(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    query = """
        select p.oid::regprocedure::text from pg_proc p
         where p.pronamespace = 'lockguard'::regnamespace
           and has_function_privilege('public', p.oid, 'execute')
    """
    assert await conn.fetch(query) == []


async def test_functions_with_the_owners_rights_pin_their_search_path(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    query = """
        select proname from pg_proc where pronamespace = 'lockguard'::regnamespace and prosecdef
         and not exists (select from unnest(proconfig) c where c like 'search_path=pg_catalog, pg_temp')
    """
    assert await conn.fetch(query) == []


async def test_every_object_has_a_comment(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    query = """
        select 'schema' where obj_description('lockguard'::regnamespace, 'pg_namespace') is null
        union all
        select oid::regclass::text from pg_class
         where relnamespace = 'lockguard'::regnamespace and relkind in ('r', 'v')
           and obj_description(oid, 'pg_class') is null
        union all
        select attrelid::regclass || '.' || attname from pg_attribute a join pg_class c on c.oid = attrelid
         where c.relnamespace = 'lockguard'::regnamespace and c.relkind in ('r', 'v') and attnum > 0
           and not attisdropped
           and col_description(attrelid, attnum) is null
        union all
        select oid::regprocedure::text from pg_proc
         where pronamespace = 'lockguard'::regnamespace and obj_description(oid, 'pg_proc') is null
        union all
        select t.tgname::text from pg_trigger t join pg_class c on c.oid = t.tgrelid
         where c.relnamespace = 'lockguard'::regnamespace and not tgisinternal
           and obj_description(t.oid, 'pg_trigger') is null
        union all
        select 'role' where shobj_description('lockguard_app'::regrole, 'pg_authid') is null
    """
    assert [row[0] for row in await conn.fetch(query)] == []
