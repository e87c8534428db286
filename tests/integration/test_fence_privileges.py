"""What roles may do: install, take part, and not brick a resource or write under another one's lease."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Token
from lockguard.errors import ConfigurationError, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import PostgresFence, fenced_transaction, install, protect, unprotect
from lockguard_asyncpg._schema import steps
from tests.integration.fence_leases import SOON, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_lab.servers import PostgresServer

TEN_YEARS_US = 315_360_000_000_000


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=4) as pool:
        yield pool


@pytest.fixture
async def installed(pool: asyncpg.Pool[Any]) -> asyncpg.Pool[Any]:
    async with pool.acquire() as conn:
        await install(conn)
    return pool


# Tokens far beyond now


async def test_a_token_far_beyond_now_is_refused_whoever_brings_it(installed: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(installed)
    for token in (2**63 - 1, 2**53, int(SYSTEM_CLOCK.wall() * 1e6) + 2 * TEN_YEARS_US):
        with pytest.raises(ConfigurationError, match="ten years ahead; Tokens are microseconds"):
            await fence.seal(grant_of(token), within=SOON)
        with pytest.raises(ConfigurationError, match="ten years ahead"):
            await fence.close(grant_of(token), within=SOON)
    assert await installed.fetchval("select count(*) from lockguard.status()") == 0
    now = grant_of(int(SYSTEM_CLOCK.wall() * 1e6))
    assert await fence.seal(now, within=SOON) == Sealed(now.token)


async def test_the_highest_token_that_is_taken_leaves_room_for_the_rightful_holder(
    installed: asyncpg.Pool[Any],
) -> None:
    fence = PostgresFence(installed)
    highest = int(SYSTEM_CLOCK.wall() * 1e6) + TEN_YEARS_US - 1_000_000
    await fence.seal(grant_of(highest), within=SOON)
    late = grant_of(int(SYSTEM_CLOCK.wall() * 1e6))
    answer = await fence.seal(late, within=SOON)
    assert answer == Outrun(Token(highest))
    again = Grant(late.resource, late.id, Token(highest + 1), late.holder, late.operation, late.ttl_ms)
    assert await fence.seal(again, within=SOON) == Sealed(Token(highest + 1))


# One lease, one resource


@pytest.mark.parametrize(
    ("kind", "value", "resource", "setting"),
    [
        ("date", "2026-02-03", "2026-02-03", "datestyle = 'SQL, DMY'"),
        ("timestamptz", "2026-02-03 04:05+00", "2026-02-03 04:05:00+00", "timezone = 'Asia/Tokyo'"),
        ("interval", "1 day 2 hours", "1 day 02:00:00", "intervalstyle = 'iso_8601'"),
        ("float8", "0.1", "0.1", "extra_float_digits = -15"),
        ("bytea", "\\x01ff", "\\x01ff", "bytea_output = 'escape'"),
        ("date[]", "{2026-02-03}", "{2026-02-03}", "datestyle = 'German'"),
    ],
)
@pytest.mark.parametrize("partitioned", [False, True])
async def test_the_resource_of_a_row_follows_no_setting_of_the_session(
    installed: asyncpg.Pool[Any], *, kind: str, value: str, resource: str, setting: str, partitioned: bool
) -> None:
    lease = lease_of(grant_of(7, resource))
    await PostgresFence(installed).seal(lease.grant, within=SOON)
    async with installed.acquire() as conn:
        await conn.execute(
            f"create table t (k {kind}, n int){' partition by list (n)' if partitioned else ''}"
        )
        if partitioned:
            await conn.execute("create table t1 partition of t default")
        await protect(conn, "t", resource="{k}")
        await conn.execute(f"set {setting}")
        try:
            async with fenced_transaction(conn, lease):
                await conn.execute(f"insert into t values ('{value}', 1)")
        finally:
            await conn.execute("reset all")


async def test_a_generated_column_makes_no_resource(installed: asyncpg.Pool[Any]) -> None:
    async with installed.acquire() as conn:
        await conn.execute("create table t (a text, b text generated always as (upper(a)) stored)")
        with pytest.raises(ConfigurationError, match=r"'b' of public\.t is generated"):
            await protect(conn, "t", resource="{b}")


@pytest.mark.parametrize("partitioned", [False, True])
async def test_a_refusal_names_the_columns_that_changed(
    installed: asyncpg.Pool[Any], *, partitioned: bool
) -> None:
    async with installed.acquire() as conn:
        await conn.execute(
            "create table t (k text, status text, note text, price int)"
            + (" partition by list (k); create table t1 partition of t default" if partitioned else "")
        )
        await protect(conn, "t", resource="{k}", exempt=["price"])
        await conn.execute(
            "begin; select lockguard.maintenance('x'); insert into t values ('a', 'b', 'c', 1); commit"
        )
        with pytest.raises(asyncpg.PostgresError, match=r"\(changed: note, status\)"):
            await conn.execute("update t set status = 'x', note = 'y', price = 2")


# The schema's rights


async def test_a_schema_restored_where_the_role_is_missing_has_its_rights_after_install(
    pool: asyncpg.Pool[Any], postgres_server: PostgresServer, database_url: str
) -> None:
    async with pool.acquire() as conn:
        await install(conn)
        # As a restore leaves it that could not find the role.
        await conn.execute(
            "drop owned by lockguard_app; grant execute on all functions in schema lockguard to public"
        )
        done = await install(conn)
        assert done.before == done.after
        async with conn.transaction():
            await conn.execute("set local role lockguard_app")
            assert await conn.fetchval("select lockguard.version()") == done.after
        stranger = f"stranger_{secrets.token_hex(4)}"
        await conn.execute(f"create role {stranger}")
        try:
            async with conn.transaction():
                await conn.execute(f"set local role {stranger}")
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await conn.execute("select lockguard.version()")
        except asyncpg.InFailedSQLTransactionError:
            pass
        finally:
            await conn.execute(f"drop role {stranger}")


async def test_an_owner_who_may_not_create_roles_installs_and_lets_a_role_take_part(
    postgres_server: PostgresServer, pool: asyncpg.Pool[Any]
) -> None:
    owner, bot = f"owner_{secrets.token_hex(4)}", f"bot_{secrets.token_hex(4)}"
    name = f"test_{secrets.token_hex(6)}"
    postgres_server.create_database(name)
    for role in (owner, bot):
        await pool.execute(f"create role {role} login password 'secret'")
    await pool.execute(f"alter database {name} owner to {owner}")
    try:
        conn = await asyncpg.connect(postgres_server.url_for(name, user=owner, password="secret"))
        await install(conn, allow=[bot])
        await conn.close()
        async with asyncpg.create_pool(
            postgres_server.url_for(name, user=bot, password="secret"), min_size=0, max_size=3
        ) as bots:
            g = grant_of(7)
            assert await PostgresFence(bots).seal(g, within=SOON) == Sealed(Token(7))
            async with fenced_transaction(bots, lease_of(g)):
                pass
            await PostgresFence(bots).close(g, within=SOON)
    finally:
        postgres_server.drop_database(name)
        await pool.execute(f"drop role {owner}; drop role {bot}")


# From the schema before


async def test_an_upgrade_in_place_keeps_tokens_and_makes_the_guards_anew(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        for step in steps():
            if step.version <= 2:
                await conn.execute(step.sql)
                await conn.execute(f"insert into lockguard.schema_version (version) values ({step.version})")
        await conn.execute("create table t (k date, status text)")
        await conn.execute("select lockguard.protect('t', '{k}')")
        old = grant_of(7, "2026-02-03")
        fence = PostgresFence(pool)
        assert await fence.seal(old, within=SOON) == Sealed(Token(7))
        async with fenced_transaction(pool, lease_of(old)) as other:
            await other.execute("insert into t values ('2026-02-03', 'a')")
        assert (await install(conn)).before == 2
        await conn.execute("set datestyle = 'SQL, DMY'")
        with pytest.raises(asyncpg.PostgresError, match="no token for 2026-02-03"):
            await conn.execute("update t set status = 'b'")
        await conn.execute("reset all")
        async with fenced_transaction(pool, lease_of(old)) as other:
            await other.execute("update t set status = 'c'")
        assert await fence.seal(grant_of(8, "2026-02-03"), within=SOON) == Sealed(Token(8))
        with pytest.raises(StaleToken):
            async with fenced_transaction(pool, lease_of(old)):
                pass
        assert await unprotect(conn, "t")
        left = (
            "select count(*) from pg_proc where pronamespace = 'lockguard'::regnamespace and proname like $1"
        )
        assert await conn.fetchval(left, r"guard\_%") == 0
