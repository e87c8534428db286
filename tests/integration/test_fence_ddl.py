"""A protected table lives on: its columns change, it is renamed, partitioned, inherited and restored."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard._lease import Lease, new_grant_id
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import create_pool, findings, install, protect, protections, unprotect
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._schema import steps
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import POSTGRES_15, held, postgres_15, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TABLE = """
create sequence numbers;
create table {name} (
  id bigint default nextval('numbers'), exchange text, symbol text, status text, price integer,
  twice integer generated always as (price * 2) stored
) {tail};
"""
KINDS = {
    "ordinary": TABLE.format(name="trades", tail=""),
    "partitioned": TABLE.format(name="trades", tail="partition by list (exchange)")
    + "create table trades_1 partition of trades for values in ('binance');"
    "create table trades_2 partition of trades default;",
    "child": TABLE.format(name="parent", tail="") + "create table trades () inherits (parent);"
    "alter table trades add column sorted int;",
}
RESOURCE = "{exchange}:{symbol}"
INSERT = "insert into trades (exchange, symbol, price) values ('binance', 'A', 1)"
TICK = "update trades set price = price + 1"
CLOSE = "update trades set status = concat(status, 'x')"


@pytest.fixture(scope="module", params=["newest", "oldest"])
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The newest Postgres, and the oldest that can be had."""
    binary = postgres_15() if request.param == "oldest" else None
    with PostgresServer(binary=binary) as server:
        asyncio.run(installed(server.create_database("template_fenced")))
        yield server


async def installed(url: str) -> None:
    conn = await asyncpg.connect(url)
    await install(conn)
    await conn.close()


@pytest.fixture
async def pool(server: PostgresServer) -> AsyncIterator[asyncpg.Pool[Any]]:
    name = f"test_{new_grant_id()[:12]}"
    admin = await asyncpg.connect(server.url)
    await admin.execute(f"create database {name} template template_fenced")
    await admin.close()
    async with create_pool(server.url, database=name, min_size=0, max_size=5) as pool:
        yield pool
    server.drop_database(name)


async def refused(writing: Any) -> None:
    with pytest.raises(StaleToken) as caught:
        await writing
    assert caught.value.presented is None


async def made(pool: asyncpg.Pool[Any], kind: str) -> None:
    async with pool.acquire() as conn:
        await conn.execute(KINDS[kind])
        await protect(conn, "trades", resource=RESOURCE, exempt=["price"])


async def grave(pool: asyncpg.Pool[Any]) -> list[str]:
    async with pool.acquire() as conn:
        return [f"{f.table}: {f.finding}" for f in await findings(conn) if f.grave]


async def told(pool: asyncpg.Pool[Any]) -> list[str]:
    async with pool.acquire() as conn:
        return [f"{f.table}: {f.finding}" for f in await findings(conn)]


async def guarded(pool: asyncpg.Pool[Any], conn: Any, lease: Lease) -> None:
    """On ``conn`` nothing but a tick passes without the lease, and all with it."""
    with under(lease):
        await pool.execute(INSERT)
    await refused(conn.execute(INSERT))
    await refused(conn.execute(CLOSE))
    await conn.execute(TICK)
    with under(lease):
        await pool.execute(INSERT)
        await pool.execute(CLOSE)
        await pool.execute(f"{TICK}, status = 'open'")


DDL = {
    "an exempt column's type": "alter table trades drop column twice, alter column price type numeric",
    "a template column's type": "alter table trades alter column symbol type varchar(40)",
    "another column's type": "alter table trades alter column status type varchar(40)",
    "a column more": "alter table trades add column note text default 'x'",
    "a column less": "alter table trades drop column status; alter table trades add column status text",
    "a template column's name": "alter table trades rename column symbol to ticker",
    "an exempt column's name": "alter table trades rename column price to last_price",
    "an exempt column gone": "alter table trades drop column twice, drop column price",
    "the table's name": "alter table trades rename to trades_of_before",
    "the table's schema": "create schema other; alter table trades set schema other",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ddl", DDL)
async def test_writes_go_on_and_stay_fenced_through_ddl_on_connections_old_and_new(
    pool: asyncpg.Pool[Any], server: PostgresServer, kind: str, ddl: str
) -> None:
    await made(pool, kind)
    lease = await held(pool, resource="binance:A")
    # The first has run each of the guards, and keeps their plans.
    async with pool.acquire() as old, pool.acquire() as new:
        with under(lease):
            for _ in range(7):
                await old.execute(INSERT)
                await old.execute(CLOSE)
        for _ in range(7):
            await old.execute(TICK)
        async with pool.acquire() as conn:
            # What a child inherits is changed with its parent.
            words = (
                DDL[ddl].replace("alter table trades", "alter table parent") if kind == "child" else DDL[ddl]
            )
            await conn.execute(DDL[ddl] if "rename to" in words or "schema" in words else words)
        table = {"the table's name": "trades_of_before", "the table's schema": "other.trades"}.get(
            ddl, "trades"
        )
        symbol = "ticker" if ddl == "a template column's name" else "symbol"
        price = "last_price" if ddl == "an exempt column's name" else "price"
        insert = f"insert into {table} (exchange, {symbol}) values ('binance', 'A')"
        close, move = f"update {table} set status = concat(status, 'x')", f"update {table} set {symbol} = 'B'"
        for conn in (old, new, old):
            for statement in (insert, close, f"delete from {table}"):
                await refused(conn.execute(statement))
            if ddl != "an exempt column gone":
                await conn.execute(f"update {table} set {price} = {price} + 1")
            with under(lease):
                await conn.execute(insert)
                await conn.execute(close)
                await conn.execute(f"update {table} set status = status")
                await refused(conn.execute(move))
                await conn.execute(f"delete from {table}")
                await conn.execute(insert)
    if "name" in ddl and "table" not in ddl:
        assert any("is called" in line for line in await told(pool))
        assert await grave(pool) == []
    if ddl in ("the table's name", "the table's schema"):
        assert any("no such table" in line for line in await grave(pool))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_template_column_that_is_gone_is_named_to_whoever_writes_and_by_check(
    pool: asyncpg.Pool[Any], kind: str
) -> None:
    await made(pool, kind)
    await pool.execute(f"alter table {'parent' if kind == 'child' else 'trades'} drop column symbol")
    for statement in ("insert into trades (exchange) values ('binance')",):
        with pytest.raises(asyncpg.PostgresError, match="has no column symbol now") as caught:
            await pool.execute(statement)
        assert caught.value.sqlstate == "LG004"
    assert any("column symbol, which the resource is made of, is gone" in line for line in await grave(pool))
    async with pool.acquire() as conn:
        assert [p.enabled for p in await protections(conn)] == [False]


async def test_a_table_put_in_the_place_of_a_protected_one_is_noticed(pool: asyncpg.Pool[Any]) -> None:
    await made(pool, "ordinary")
    assert await told(pool) == []
    await pool.execute(
        "create table trades_new (like trades including all);"
        "alter table trades rename to trades_old; alter table trades_new rename to trades"
    )
    await pool.execute(INSERT)  # nothing guards it
    (line,) = await grave(pool)
    assert line.endswith("the table that has this name is not; the guard is on public.trades_old")
    async with pool.acquire() as conn:
        await protect(conn, "trades", resource=RESOURCE)
        await refused(conn.execute(INSERT))
        assert await unprotect(conn, "trades_old") is True
    assert await told(pool) == []


async def test_a_table_that_is_gone_is_asked_for_until_it_is_let_go(pool: asyncpg.Pool[Any]) -> None:
    await made(pool, "ordinary")
    await pool.execute("drop table trades")
    assert await grave(pool) == ["public.trades: it ought to be protected, and there is no such table"]
    async with pool.acquire() as conn:
        assert await unprotect(conn, "trades") is True
        with pytest.raises(ConfigurationError, match="there is no table"):
            await unprotect(conn, "trades")
    assert await told(pool) == []


async def test_a_partition_that_was_detached_is_noticed_and_guarded_again_when_it_is_attached(
    pool: asyncpg.Pool[Any],
) -> None:
    await made(pool, "partitioned")
    await pool.execute("alter table trades detach partition trades_1")
    assert any("trades_1" in line and "and is not any more" in line for line in await grave(pool))
    await pool.execute("alter table trades attach partition trades_1 for values in ('binance')")
    assert await told(pool) == []
    await refused(pool.execute(INSERT.replace("trades", "trades_1")))


LIKE = "create table {} (like trades including all);"
ATTACH = "alter table trades attach partition {} for values in ('late');"
DETACH = "alter table trades detach partition late;"
DETACHED = {
    "attached after protect": (LIKE.format("late") + ATTACH.format("late"), DETACH, "public.late"),
    "with rows, triggers and columns in another order": (
        """
        create table late (price int, twice int generated always as (price * 2) stored,
                           symbol text, status text, exchange text, id bigint);
        insert into late (exchange, symbol) values ('late', 'A');
        create function moves() returns trigger language plpgsql
          as $$ begin new.symbol := 'A'; return new; end $$;
        create trigger zzzz before insert or update on late for each row execute function moves();
        alter table trades attach partition late for values in ('late');
        """,
        DETACH,
        "public.late",
    ),
    "renamed and moved before it is detached": (
        LIKE.format("first") + ATTACH.format("first"),
        """
        create schema old; alter table first rename to late; alter table late set schema old;
        alter table trades detach partition old.late;
        """,
        "old.late",
    ),
    "attached to a table that nothing guards": (
        LIKE.format("late") + ATTACH.format("late"),
        """
        create table archive (like trades including all) partition by list (exchange);
        alter table trades detach partition late;
        alter table archive attach partition late for values in ('late');
        """,
        "public.late",
    ),
    "of a table that was itself renamed and moved": (
        LIKE.format("late")
        + """
        create schema old; alter table trades rename to all_trades; alter table all_trades set schema old;
        alter table old.all_trades attach partition late for values in ('late');
        """,
        "alter table old.all_trades detach partition late",
        "public.late",
    ),
    "a tree of partitions": (
        """
        create table late (like trades including all) partition by list (symbol);
        create table leaf partition of late default;
        alter table trades attach partition late for values in ('late');
        """,
        DETACH,
        "public.late",
    ),
}


@pytest.mark.parametrize("way", DETACHED)
@pytest.mark.parametrize("seen_by", ["check", "who clears away"])
async def test_what_was_a_partition_after_protect_is_guarded_and_its_going_is_noticed(
    pool: asyncpg.Pool[Any], way: str, seen_by: str
) -> None:
    await made(pool, "partitioned")
    attach, detach, name = DETACHED[way]
    await pool.execute(attach)
    if seen_by == "check":
        found = await grave(pool)
        assert not any("late" in line or "first" in line for line in found)
    else:
        await pool.execute("set role lockguard_app; select lockguard.prune(); reset role")
    partition = "first" if "create table first" in attach else "late"
    write = f"insert into {partition} (exchange, symbol) values ('late', 'A')"
    await refused(pool.execute(write))
    with under(await held(pool, resource="late:A")):
        await pool.execute(write)
    await pool.execute(detach)
    (line, *_) = [line for line in await grave(pool) if line.startswith(f"{name}: ")]
    assert "and is not any more: nothing guards it" in line
    async with pool.acquire() as conn:
        assert await unprotect(conn, name) is True  # it is meant to be a table of its own
    assert not any(line.startswith(f"{name}: ") for line in await grave(pool))


async def test_a_child_that_inherits_no_more_is_noticed(pool: asyncpg.Pool[Any]) -> None:
    await made(pool, "ordinary")
    await pool.execute("create table late () inherits (trades)")
    assert any("late inherits from it" in line for line in await grave(pool))
    await pool.execute("alter table late no inherit trades")
    assert any(line.startswith("public.late: it was part of public.trades") for line in await grave(pool))
    async with pool.acquire() as conn:
        await protect(conn, "late", resource=RESOURCE)
    assert await told(pool) == []
    await pool.execute("drop table late")
    assert [line for line in await grave(pool) if "part of" in line] == []


async def test_a_table_with_a_guard_of_its_own_becomes_no_partition(pool: asyncpg.Pool[Any]) -> None:
    """Its statements would be checked by one of the two, and nobody would know by which."""
    await made(pool, "partitioned")
    await pool.execute("create table late (like trades including all)")
    async with pool.acquire() as conn:
        await protect(conn, "late", resource=RESOURCE)
        with pytest.raises(asyncpg.PostgresError, match="zz_lockguard"):
            await conn.execute("alter table trades attach partition late for values in ('late')")
        await unprotect(conn, "late")
        await conn.execute("create table parent2 (like trades including all)")
        await conn.execute("alter table late inherit parent2")
        await protect(conn, "late", resource=RESOURCE)
        await conn.execute("alter table late no inherit parent2")
        with pytest.raises(asyncpg.PostgresError, match="zz_lockguard"):
            await conn.execute("alter table trades attach partition late for values in ('late')")
    assert await told(pool) == []


async def test_protecting_a_table_again_forgets_no_partition_that_has_gone(pool: asyncpg.Pool[Any]) -> None:
    await made(pool, "partitioned")
    await pool.execute("alter table trades detach partition trades_1")
    async with pool.acquire() as conn:
        await protect(conn, "trades", resource=RESOURCE)
    assert any(line.startswith("public.trades_1: ") for line in await grave(pool))


@pytest.mark.parametrize(
    ("kind", "ddl", "finding"),
    [
        ("ordinary", "alter table trades disable trigger all", "disabled"),
        ("ordinary", "alter table trades enable trigger all", "an ordinary one"),
        ("ordinary", "drop trigger zz_lockguard_insert on trades", "no more"),
        ("ordinary", "drop trigger zz_lockguard_delete on trades", "no more"),
        ("partitioned", "alter table trades_1 disable trigger all", "trades_1 has its trigger"),
        ("partitioned", "alter table trades_2 enable trigger all", "trades_2 has its trigger"),
        ("child", "alter table trades disable trigger zz_lockguard_row", "disabled"),
        ("ordinary", "alter table lockguard.fence disable trigger all", "a token could go back"),
        ("ordinary", "alter table lockguard.fence enable trigger all", "not enabled ALWAYS"),
    ],
)
async def test_triggers_that_are_off_gone_or_ordinary_are_found_and_mended_by_what_the_finding_says(
    pool: asyncpg.Pool[Any], kind: str, ddl: str, finding: str
) -> None:
    await made(pool, kind)
    assert await told(pool) == []
    await pool.execute(ddl)
    assert any(finding in line for line in await grave(pool))
    async with pool.acquire() as conn:
        if "lockguard.fence" not in ddl:
            assert [p.enabled for p in await protections(conn)] == [False]
        for remedy in {f.remedy for f in await findings(conn)}:
            if remedy == "lockguard fence install":
                await install(conn)
            else:
                assert (
                    remedy
                    == "lockguard fence protect public.trades --resource '{exchange}:{symbol}' --exempt price"
                )
                await protect(conn, "trades", resource=RESOURCE, exempt=["price"])
    if "disable" not in ddl or "lockguard.fence" not in ddl:
        assert await told(pool) == []


async def test_an_inheriting_table_that_nothing_guards_is_refused_at_protect_and_found_afterwards(
    pool: asyncpg.Pool[Any],
) -> None:
    await pool.execute(KINDS["child"])
    async with pool.acquire() as conn:
        with pytest.raises(ConfigurationError, match=r"is inherited by public\.trades"):
            await protect(conn, "parent", resource=RESOURCE)
        await protect(conn, "trades", resource=RESOURCE)
        await protect(conn, "parent", resource=RESOURCE)
        assert await told(pool) == []
        await conn.execute("create table late () inherits (parent)")
        assert any("late inherits from it" in line for line in await grave(pool))
        await protect(conn, "late", resource=RESOURCE)
    assert await told(pool) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_no_trigger_changes_the_resource_of_a_row_behind_the_guard(
    pool: asyncpg.Pool[Any], kind: str
) -> None:
    await made(pool, kind)
    await pool.execute("""
        create function moved() returns trigger language plpgsql as
          $$ begin new.symbol := 'B'; return new; end $$;
        create trigger zzzz_last before insert or update on trades for each row execute function moved();
    """)
    with under(await held(pool, resource="binance:A")):
        await refused(pool.execute(INSERT))
    with under(await held(pool, resource="binance:B")):
        await pool.execute(INSERT)
    assert await told(pool) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_table_protected_before_this_version_is_followed_from_the_upgrade_on(
    server: PostgresServer, kind: str
) -> None:
    name = f"test_{new_grant_id()[:12]}"
    url = server.create_database(name)
    async with create_pool(url, min_size=0, max_size=4) as pool, pool.acquire() as old:
        for step in steps()[:5]:
            await old.execute(step.sql)
            await old.execute("insert into lockguard.schema_version (version) values ($1)", step.version)
        await old.execute(KINDS[kind])
        await old.execute("select lockguard.protect('trades', '{exchange}:{symbol}', '{price}')")
        lease = await held(pool, resource="binance:A")
        with under(lease):
            for _ in range(7):
                await old.execute(INSERT)
                await old.execute(CLOSE)
        await old.execute(TICK)
        async with pool.acquire() as conn:
            await install(conn)
            assert await told(pool) == []
            table = "parent" if kind == "child" else "trades"
            await conn.execute(f"alter table {table} drop column twice, alter column price type numeric")
            await conn.execute(f"alter table {table} alter column symbol type varchar(40)")
        await guarded(pool, old, lease)
        await old.execute("""
            create function moved() returns trigger language plpgsql as $$ begin return new; end $$;
            create trigger zzzz_last before insert on trades for each row execute function moved();
        """)
        late = [line for line in await grave(pool) if "runs after the guard" in line]
        assert len(late) == (0 if kind == "ordinary" else 1)
        await protect(old, "trades", resource=RESOURCE, exempt=["price"])
        assert await told(pool) == []
    server.drop_database(name)


def test_check_ends_with_1_and_names_what_to_do(server: PostgresServer) -> None:
    name = f"test_{new_grant_id()[:12]}"
    url = server.create_database(name)
    run = CliRunner()

    def command(*words: str) -> Any:
        return run.invoke(fence, [*words, "--url", url])

    psql(server, url, KINDS["ordinary"])
    assert command("install").exit_code == 0
    assert command("protect", "trades", "--resource", RESOURCE).exit_code == 0
    good = command("check", "trades")
    assert (good.exit_code, good.output) == (0, "all 1 protected tables hold\n")
    missing = command("check", "trades", "parent")
    assert missing.exit_code == 1
    assert "parent: it ought to be protected" in missing.output
    psql(server, url, "alter table trades disable trigger all")
    bad = command("check")
    assert bad.exit_code == 1
    assert "public.trades" in bad.output
    assert "lockguard fence protect public.trades --resource '{exchange}:{symbol}'" in bad.output
    server.drop_database(name)


def copied(url: str, to: str) -> None:
    dump = subprocess.run([POSTGRES_15 / "pg_dump", url], capture_output=True, check=True, timeout=30)
    subprocess.run(
        [POSTGRES_15 / "psql", "-q", to], input=dump.stdout, capture_output=True, check=True, timeout=30
    )


def psql(server: PostgresServer, url: str, sql: str) -> None:
    async def run() -> None:
        conn = await asyncpg.connect(url)
        await conn.execute(sql)
        await conn.close()

    asyncio.run(run())


@pytest.mark.skipif(
    not POSTGRES_15.exists(), reason="needs pg_dump of PostgreSQL 15: apt-get install postgresql-15"
)
async def test_a_restored_database_tells_what_a_restore_has_weakened(server: PostgresServer) -> None:
    if not server.version.startswith("15"):
        pytest.skip("pg_dump of PostgreSQL 15 reads servers up to 15")
    name, copy = (f"test_{new_grant_id()[:12]}" for _ in range(2))
    url = server.create_database(name)
    async with create_pool(url, min_size=0, max_size=2) as pool:
        async with pool.acquire() as conn:
            await install(conn)
        await made(pool, "ordinary")
    restored = server.create_database(copy)
    await asyncio.to_thread(copied, url, restored)
    async with create_pool(restored, min_size=0, max_size=3) as pool:
        assert await grave(pool) == []
        lease = await held(pool, resource="binance:A")
        async with pool.acquire() as conn:
            await guarded(pool, conn, lease)
    server.drop_database(name)
    server.drop_database(copy)
