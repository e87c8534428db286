"""Protected tables: the database refuses a row's change that presents no current lease."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._lease import new_grant_id
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import create_pool, fenced_transaction, install, unfenced, uninstall
from tests.integration.fence_leases import blocked, held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_lab.servers import PostgresServer

TABLE = """
create schema monitoring;
create table monitoring.positions (
  id bigint primary key generated always as identity, exchange text, symbol text,
  status text not null default 'active', price numeric, twice numeric generated always as (price * 2) stored,
  raw json
);
select lockguard.protect('monitoring.positions', '{exchange}:{symbol}', '{price}');
"""
INSERT = "insert into monitoring.positions (exchange, symbol, price) values ('binance', 'APTUSDT', 1)"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(TABLE)
        yield pool


async def row(pool: asyncpg.Pool[Any]) -> dict[str, Any]:
    async with pool.acquire() as conn:
        record = await conn.fetchrow("select * from monitoring.positions")
    return dict(record) if record else {}


async def refused(pool: asyncpg.Pool[Any], statement: str) -> asyncpg.PostgresError:
    with pytest.raises(StaleToken) as caught:
        await pool.execute(statement)
    cause = caught.value.__cause__
    assert isinstance(cause, asyncpg.PostgresError)
    assert (cause.sqlstate, caught.value.presented) == ("LG002", None)
    return cause


@pytest.mark.parametrize(
    "statement",
    [
        INSERT,
        "update monitoring.positions set status = 'closed'",
        "update monitoring.positions set raw = '{}'",
        "update monitoring.positions set symbol = 'BTCUSDT'",
        "delete from monitoring.positions",
        "truncate monitoring.positions",
        "merge into monitoring.positions p using (select 1) on true when matched then delete",
        "set session_replication_role = replica; delete from monitoring.positions",
        "set lockguard.maintenance = '1'; delete from monitoring.positions",
    ],
)
async def test_a_session_without_a_token_cannot_change_a_row(pool: asyncpg.Pool[Any], statement: str) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
    error = await refused(pool, statement)
    if "truncate" not in statement:
        assert "no token for binance:APTUSDT" in str(error) or "no token for binance:BTCUSDT" in str(error)
        assert "monitoring.positions" in str(error)
    assert (await row(pool))["status"] == "active"


async def test_the_refusal_names_the_token_in_force(pool: asyncpg.Pool[Any]) -> None:
    await held(pool, 7)
    error = await refused(pool, INSERT)
    assert str(error).splitlines()[0] == (
        "no token for binance:APTUSDT: a row of monitoring.positions belongs to it"
        " and this transaction presented no lease, current 7"
    )
    assert "maintenance" in str(error.hint)


async def test_plain_code_under_the_lease_changes_its_rows(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
        await pool.execute("update monitoring.positions set status = 'closed'")
        assert (await row(pool))["status"] == "closed"
        await pool.execute("delete from monitoring.positions")
    assert await row(pool) == {}


async def test_a_lease_on_one_resource_is_none_on_another(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool, 7, "binance:BTCUSDT")), pytest.raises(StaleToken) as caught:
        await pool.execute(INSERT)
    assert (caught.value.resource, caught.value.presented) == ("binance:APTUSDT", None)


async def test_a_superseded_lease_is_refused_by_the_table_itself(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool, 7)
    async with pool.acquire() as conn:
        await held(pool, 8)
        # By hand, as code that presents a pair without the check would.
        claim = f'{{"binance:APTUSDT": [7, "{stale.grant.id}"]}}'
        async with conn.transaction():
            await conn.execute("select set_config('lockguard.leases', $1, true)", claim)
            with pytest.raises(StaleToken, match="presented 7, current 8"):
                await conn.execute(INSERT)
            with pytest.raises(asyncpg.InFailedSQLTransactionError):
                await conn.execute("select 1")


async def test_moving_a_row_needs_both_leases(pool: asyncpg.Pool[Any]) -> None:
    apt, btc = await held(pool), await held(pool, 7, "binance:BTCUSDT")
    move = "update monitoring.positions set symbol = 'BTCUSDT'"
    with under(apt):
        await pool.execute(INSERT)
        with pytest.raises(StaleToken) as caught:
            await pool.execute(move)
        assert caught.value.resource == "binance:BTCUSDT"
    with under(apt, btc):
        await pool.execute(move)
    assert (await row(pool))["symbol"] == "BTCUSDT"


async def test_an_exempt_column_changes_without_a_lease_and_only_it(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
        await pool.execute("update monitoring.positions set raw = '{}'")
    await pool.execute("update monitoring.positions set price = 2")
    assert (await row(pool))["twice"] == 4
    await refused(pool, "update monitoring.positions set price = 3, status = 'closed'")


async def test_an_exempt_column_is_changed_many_times_in_a_transaction(
    pool: asyncpg.Pool[Any],
) -> None:
    """What the guard opens it closes: up to Postgres 14 its cursor has a name, and may be open once."""
    async with pool.acquire() as conn, conn.transaction():
        for _ in range(3):
            await conn.execute("update monitoring.positions set price = price + 1")
        left = await conn.fetch("select name from pg_cursors where name <> ''")
    assert not left


async def test_a_column_added_later_is_fenced(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
    await pool.execute("alter table monitoring.positions add column stop numeric")
    await refused(pool, "update monitoring.positions set stop = 1")
    await pool.execute("update monitoring.positions set price = 9")


async def test_a_row_without_a_resource_is_refused(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)), pytest.raises(StaleToken, match="resource is null"):
        await pool.execute("insert into monitoring.positions (exchange) values ('binance')")


async def test_a_person_may_change_rows_for_a_reason_that_is_kept(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute("select lockguard.maintenance('wrong symbol, ticket 12')")
            await conn.execute("update monitoring.positions set status = 'closed'")
        with pytest.raises(StaleToken, match="no token"):
            await conn.execute("update monitoring.positions set status = 'active'")
        with pytest.raises(asyncpg.PostgresError, match="needs a reason"):
            await conn.execute("select lockguard.maintenance(' ')")
    kept = await pool.fetch("select action, reason from lockguard.audit where action = 'maintenance'")
    assert [tuple(r) for r in kept] == [("maintenance", "wrong symbol, ticket 12")]


async def test_the_application_role_cannot_switch_maintenance_on(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("set local role lockguard_app")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("select lockguard.maintenance('please')")


async def test_a_role_that_knows_nothing_of_lockguard_gets_the_same_message(pool: asyncpg.Pool[Any]) -> None:
    role = "stranger_" + new_grant_id()[:8]
    await pool.execute(
        f"create role {role}; grant usage on schema monitoring to {role};"
        f" grant all on monitoring.positions to {role}"
    )
    try:
        await refused(pool, f"set role {role}; {INSERT}")
    finally:
        await pool.execute(f"reset role; drop owned by {role}; drop role {role}")


async def test_unprotect_leaves_the_table_as_it_was(pool: asyncpg.Pool[Any]) -> None:
    assert await pool.fetchval("select lockguard.unprotect('monitoring.positions')") is True
    await pool.execute(INSERT)
    assert await pool.fetchval("select lockguard.unprotect('monitoring.positions')") is False
    left = """select count(*) from pg_proc
        where pronamespace = 'lockguard'::regnamespace
          and proname like 'guard_%'"""
    assert await pool.fetchval(left) == 0


async def test_protecting_again_changes_what_is_exempt(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        "select lockguard.protect('monitoring.positions', '{exchange}:{symbol}', '{price,status}')"
    )
    found = await pool.fetch("select * from lockguard.protections()")
    assert [tuple(r) for r in found] == [
        ("monitoring.positions", "{exchange}:{symbol}", ["price", "status"], True)
    ]


async def test_a_protected_table_survives_a_rename(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute("alter table monitoring.positions rename to holdings")
    await refused(pool, INSERT.replace("positions", "holdings"))
    await pool.execute("select lockguard.unprotect('monitoring.holdings')")


async def test_partitions_and_odd_names_are_protected(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute("""
        create table "Odd ""Table" ("The Symbol" text, n int) partition by list (n);
        create table odd_one partition of "Odd ""Table" for values in (1);
        select lockguard.protect('"Odd ""Table"', 'it''s-{The Symbol}');
    """)
    for table in ('"Odd ""Table"', "odd_one"):
        error = await refused(pool, f"insert into {table} values ('x', 1)")
        assert "it's-x" in str(error)
    with under(await held(pool, 7, "it's-x")):
        await pool.execute("insert into odd_one values ('x', 1)")


async def test_uninstall_is_refused_while_a_table_is_protected(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(ConfigurationError, match="unprotect"):
            await uninstall(conn)
        await conn.execute("select lockguard.unprotect('monitoring.positions')")
        assert await uninstall(conn) is True
        await conn.execute(INSERT)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("'monitoring.positions', '{exchange}:{pair}'", "names a column 'pair'"),
        ("'monitoring.positions', 'fixed'", "write columns in braces"),
        ("'monitoring.positions', '{exchange'", "write columns in braces"),
        ("'monitoring.positions', '{exchange}:{symbol}', '{symbol}'", "cannot exempt symbol"),
        ("'monitoring.positions', '{exchange}:{symbol}', '{tick}'", "cannot exempt tick"),
        ("'pg_catalog.pg_tables', '{tablename}'", "is not a table"),
    ],
)
async def test_a_protection_that_cannot_work_is_refused(
    pool: asyncpg.Pool[Any], call: str, says: str
) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await pool.execute(f"select lockguard.protect({call})")
    assert caught.value.sqlstate == "LG004"
    assert says in str(caught.value)
    assert len(await pool.fetch("select * from lockguard.protections()")) == 1


async def test_a_row_is_kept_until_the_writers_transaction_ends(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute(INSERT)
        with unfenced():
            sealing = asyncio.create_task(held(pool, 8))
        await blocked(pool)
    await sealing


async def test_psql_prints_what_the_page_says(
    pool: asyncpg.Pool[Any], postgres_server: PostgresServer
) -> None:
    """A person at a prompt, with no lease: the listing of the reference page, line by line."""
    page = (Path(__file__).parents[2] / "docs/reference/fence.md").read_text(encoding="utf-8")
    (listing,) = re.findall(r"\$ psql -c \"(insert.*?)\"\n(ERROR.*?)```", page, re.DOTALL)
    await held(pool, 1795214723604113)
    database = await pool.fetchval("select current_database()")
    program = postgres_server.binary.path.parent / "psql"
    done = await asyncio.create_subprocess_exec(
        *(str(program), "--no-psqlrc", "--host=127.0.0.1", f"--port={postgres_server.port}"),
        *("--username=postgres", f"--dbname={database}", "--command", listing[0]),
        env={"PGPASSFILE": str(postgres_server.passfile)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await done.communicate()
    printed, _, where = err.decode().partition("CONTEXT:")
    assert (out, done.returncode) == (b"", 1)
    fence = r'"fence" : "[0-9a-f-]{36}"'
    assert re.sub(fence, "", printed) == re.sub(fence, "", listing[1])
    assert re.search(fence, printed)
    assert "lockguard.require" in where
    assert await row(pool) == {}
