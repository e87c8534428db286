"""Watching a table: nothing is refused, delayed or failed for it, and what was written is told."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from click.testing import CliRunner

import lockguard_psycopg
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import (
    Readiness,
    WatchedTable,
    create_pool,
    findings,
    install,
    protect,
    protections,
    unprotect,
    watched,
)
from lockguard_asyncpg._cli import fence
from lockguard_postgres._steps import steps
from tests.integration.fence_leases import held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TABLE = """
create schema trading;
create table trading.positions (
  id bigint primary key generated always as identity, exchange text, symbol text,
  status text not null default 'active', price numeric, twice numeric generated always as (price * 2) stored,
  updated_at timestamptz
);
insert into trading.positions (exchange, symbol, price)
  select 'binance', s, 1 from unnest('{APTUSDT,BTCUSDT}'::text[]) s;
"""
TOUCH = """
create function trading.touch() returns trigger language plpgsql as $$
begin
  -- new.id := 0;
  if new.status = 'closed' then raise notice 'closed'; end if;
  new.updated_at = now();
  return new;
end $$;
create trigger touch before update on trading.positions for each row execute function trading.touch();
"""
POSITIONS = "trading.positions"
RESOURCE = "{exchange}:{symbol}"
UPDATE = "update trading.positions set status = 'closed' where id = 1"
TICK = "update trading.positions set price = price + 1 where id = 1"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=20) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(TABLE)
            await protect(conn, POSITIONS, resource=RESOURCE, watch=True)
        yield pool


async def report(pool: asyncpg.Pool[Any], **options: Any) -> WatchedTable:
    async with pool.acquire() as conn:
        (table,) = await watched(conn, [POSITIONS], **options)
    return table


def command(url: str, *args: str, code: int = 0) -> str:
    result = CliRunner().invoke(fence, args, env={"LOCKGUARD_DATABASE_URL": url, "COLUMNS": "250"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


async def run(url: str, *args: str, code: int = 0) -> str:
    return await asyncio.to_thread(command, url, *args, code=code)


async def test_who_writes_without_a_lease_is_told(pool: asyncpg.Pool[Any], database_url: str) -> None:
    conn = await asyncpg.connect(database_url, server_settings={"application_name": "ticker"})
    try:
        for price in (5, 6, 7):
            await conn.execute(
                "update trading.positions set price = $1, status = status || 'it''s secret'"
                " where id = 1 /* secret */",
                price,
            )
        pid = conn.get_server_pid()
    finally:
        await conn.close()
    with under(await held(pool)):
        await pool.execute(UPDATE)
    table = await report(pool)
    tick, leased = table.writes
    assert (tick.operation, tick.verdict, tick.times, tick.refused) == ("UPDATE", "unguarded", 3, 3)
    assert tick.columns == ("price", "status", "twice")
    assert (tick.role, tick.application, tick.address, tick.backend) == (
        "postgres",
        "ticker",
        "127.0.0.1",
        pid,
    )
    assert tick.statement == "update trading.positions set price = $1, status = status || ? where id = ?"
    assert table.since is not None
    assert table.since < tick.first_at < tick.at < table.until
    assert (leased.verdict, leased.times, leased.refused, leased.columns) == ("leased", 1, 0, ("status",))
    assert (table.refused, table.leased, table.readiness) == (3, 1, Readiness.UNSAFE)


async def test_a_stale_token_is_told_apart_from_none(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool, 7)
    await held(pool, 8)
    async with pool.acquire() as conn:
        async with conn.transaction():
            claim = json.dumps({"binance:APTUSDT": [7, stale.grant.id]})
            await conn.execute("select set_config('lockguard.leases', $1, true)", claim)
            await conn.execute(UPDATE)
        await conn.execute(UPDATE)
    assert {w.verdict: w.refused for w in (await report(pool)).writes} == {"superseded": 1, "unguarded": 1}


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_writers_of_one_kind_neither_wait_for_each_other_nor_fail(
    pool: asyncpg.Pool[Any], level: str
) -> None:
    """Each has a table of its own, so that only the records could be in each other's way."""
    tables = [f"trading.t{i}" for i in range(8)]
    async with pool.acquire() as conn:
        for table in tables:
            await conn.execute(f"create table {table} (id int, symbol text, n int default 0)")
            await conn.execute(f"insert into {table} values (1, 'APTUSDT')")
            await protect(conn, table, resource="{symbol}", watch=True)

    async def writer(number: int) -> None:
        async with pool.acquire() as conn:
            for _ in range(15):
                await conn.execute(
                    f"begin isolation level {level}; set local lock_timeout = '5s';"
                    " set local deadlock_timeout = '10ms'"
                )
                # Every transaction is open while all the others write.
                for table in (tables[number], tables[number]):
                    await conn.execute(f"update {table} set n = n + 1")
                await asyncio.sleep(0)
                await conn.execute("commit")

    await asyncio.gather(*(writer(n) for n in range(len(tables))))
    async with pool.acquire() as conn:
        seen = await watched(conn, tables)
    assert [t.refused for t in seen] == [30] * len(tables)


async def test_transactions_that_overlap_on_one_kind_all_commit(pool: asyncpg.Pool[Any]) -> None:
    writers = [await pool.acquire() for _ in range(10)]
    try:
        for conn in writers:
            await conn.execute("begin isolation level serializable; set local lock_timeout = '2s'")
            insert = "insert into trading.positions (exchange, symbol) values ('binance', $1)"
            await conn.execute(insert, "APTUSDT")  # all of them are open now
        for conn in reversed(writers):
            await conn.execute("commit")
    finally:
        for conn in writers:
            await pool.release(conn)
    (write,) = (await report(pool)).writes
    assert (write.operation, write.times) == ("INSERT", 10)


async def test_a_snapshot_older_than_the_record_fails_no_transaction(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as one, pool.acquire() as other:
        await one.execute(TICK)
        await one.execute("begin isolation level repeatable read")
        await one.fetchval("select 1 from trading.positions")  # the snapshot
        # As if another process with the same slot had written.
        await other.execute("update lockguard.watched set times = times")
        await one.execute(TICK)
        await one.execute("commit")
        assert await other.fetchval("select count(*) from lockguard.watched where slot >= 1024") == 1
        assert (await report(pool)).refused == 2
        await other.execute("select lockguard.prune()")
        assert await other.fetchval("select count(*) from lockguard.watched where slot >= 1024") == 0
        assert (await report(pool)).refused == 2


async def test_a_slot_that_is_in_use_is_left_alone(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as one, pool.acquire() as other:
        await one.execute(TICK)
        await other.execute("begin")  # as a prepared transaction of that process would hold it
        slot = (
            "select pg_advisory_xact_lock('lockguard.watched'::regclass::oid::bigint::bit(32)::integer, $1)"
        )
        await other.execute(slot, one.get_server_pid() % 1024)
        await other.execute("update lockguard.watched set times = times")
        await one.execute(f"set lock_timeout = '1s'; {TICK}; reset lock_timeout")
        await other.execute("commit")
        assert await other.fetchval("select count(distinct slot) from lockguard.watched") == 2
    assert (await report(pool)).refused == 2


async def test_many_writes_of_a_transaction_are_one_row(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        async with conn.transaction():
            for _ in range(50):
                await conn.execute(TICK)
            with pytest.raises(asyncpg.DivisionByZeroError):
                async with conn.transaction():
                    await conn.execute(TICK)  # is rolled back, with its record
                    await conn.execute("select 1/0")
            await conn.execute("set constraints all immediate")
            for _ in range(5):
                await conn.execute(TICK)
        await conn.execute("begin")
        await conn.execute(TICK)
        await conn.execute("rollback")
        assert await conn.fetchval("select count(*) from lockguard.watched") == 1
    assert [(w.times, w.refused) for w in (await report(pool)).writes] == [(55, 55)]


async def test_a_record_that_cannot_be_made_fails_no_write(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute("alter table lockguard.watched rename to gone")
    assert await pool.execute(UPDATE) == "UPDATE 1"
    await pool.execute("alter table lockguard.gone rename to watched")
    await pool.execute("alter function lockguard.verdict(text, regclass) rename to lost")
    assert await pool.execute(UPDATE) == "UPDATE 1"
    assert await pool.fetchval("select status from trading.positions where id = 1") == "closed"
    assert [w.verdict for w in (await report(pool)).writes] == ["error 42883"]


async def test_a_writer_needs_no_right_of_the_fence_and_a_viewer_reads_the_report(
    pool: asyncpg.Pool[Any], database_url: str
) -> None:
    writer, viewer = f"writer_{uuid4().hex[:8]}", f"viewer_{uuid4().hex[:8]}"
    await pool.execute(
        f"create role {writer} login password 'w'; grant usage on schema trading to {writer};"
        f"grant select, update on trading.positions to {writer};"
        f"create role {viewer} login password 'v'; select lockguard.allow_to_view('{viewer}')"
    )
    try:
        conn = await asyncpg.connect(database_url, user=writer, password="w")
        assert await conn.execute(UPDATE) == "UPDATE 1"
        with pytest.raises(ConfigurationError, match="permission denied"):
            await watched(conn)
        await conn.close()
        conn = await asyncpg.connect(database_url, user=viewer, password="v")
        (table,) = await watched(conn)
        assert [(w.role, w.refused) for w in table.writes] == [(writer, 1)]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("delete from lockguard.watched")
        await conn.close()
    finally:
        await pool.execute(f"drop owned by {writer}, {viewer}; drop role {writer}, {viewer}")


async def test_watching_becomes_protection_in_one_step(pool: asyncpg.Pool[Any], database_url: str) -> None:
    assert await pool.execute(UPDATE) == "UPDATE 1"
    assert "as {exchange}:{symbol}" in await run(database_url, "protect", POSITIONS)
    with pytest.raises(StaleToken):
        await pool.execute(UPDATE)
    async with pool.acquire() as conn:
        (made,) = await protections(conn)
    assert (made.watched, made.enabled, made.resource) == (False, True, RESOURCE)
    said = await run(database_url, "protect", POSITIONS, "--resource", RESOURCE, "--watch", code=2)
    assert "lockguard fence unprotect trading.positions" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(StaleToken):
        await pool.execute(UPDATE)
    assert "no table is watched" in await run(database_url, "watch", POSITIONS, code=2)


async def test_writers_at_work_see_no_gap_when_watching_becomes_protection(pool: asyncpg.Pool[Any]) -> None:
    """Each write is either recorded or refused."""
    done = asyncio.Event()
    counts = {"made": 0, "refused": 0}

    async def writer() -> None:
        async with pool.acquire() as conn:
            while not done.is_set():
                try:
                    await conn.execute(
                        "insert into trading.positions (exchange, symbol) values ('binance', 'X')"
                    )
                    counts["made"] += 1
                except StaleToken:
                    counts["refused"] += 1

    writers = [asyncio.create_task(writer()) for _ in range(4)]
    async with pool.acquire() as conn:
        while counts["made"] < 50:
            await asyncio.sleep(0)
        async with conn.transaction():
            await protect(conn, POSITIONS)
            recorded = await conn.fetchval("select sum(times) from lockguard.watched")
        while counts["refused"] < 50:
            await asyncio.sleep(0)
        done.set()
        await asyncio.gather(*writers)
        assert (
            await conn.fetchval("select count(*) from trading.positions where symbol = 'X'") == counts["made"]
        )
    assert recorded == counts["made"]


async def test_watching_twice_keeps_the_record_unless_the_settings_change(
    pool: asyncpg.Pool[Any], database_url: str
) -> None:
    await pool.execute(TICK)
    since = (await report(pool)).since
    async with pool.acquire() as conn:
        await protect(conn, POSITIONS, watch=True)
    again = await report(pool)
    assert (again.refused, again.since) == (1, since)
    assert "price may change" in await run(database_url, "protect", POSITIONS, "--exempt", "price", "--watch")
    await pool.execute(TICK)
    anew = await report(pool)
    assert (anew.exempt, anew.refused, anew.writes) == (("price",), 0, ())
    await pool.execute(UPDATE)
    assert "1 kind of write is forgotten" in await run(database_url, "watch", "--clear")
    assert ((await report(pool)).writes, (await report(pool)).exempt) == ((), ("price",))
    await pool.execute("select lockguard.prune()")
    assert await pool.fetchval("select count(*) from lockguard.watched") == 0


async def test_the_trap_of_updated_at_is_told_and_its_exemption_proposed(
    pool: asyncpg.Pool[Any], database_url: str
) -> None:
    await pool.execute(TOUCH)
    for _ in range(3):
        await pool.execute(TICK)
    assert (await report(pool)).proposed == ()  # nobody knows yet what the lease is for
    assert "sets updated_at before each UPDATE" in await run(database_url, "watch", code=1)
    with under(await held(pool)):
        await pool.execute(UPDATE)
    await pool.execute("update trading.positions set status = 'lost' where id = 2")
    table = await report(pool)
    assert [t.columns for t in table.triggers] == [("updated_at",)]
    assert (table.proposed, table.refused, table.freed) == (("price", "updated_at"), 4, 3)
    said = await run(database_url, "watch", POSITIONS, code=1)
    proposal = (
        f"lockguard fence protect {POSITIONS} --resource '{RESOURCE}' --exempt price,updated_at --watch"
    )
    assert proposal in said
    assert "were that exempt, 3 of 4 writes would pass" in said
    assert "twice: generated" in said
    assert "NOT SAFE to protect: 4 writes" in said
    facts = json.loads(await run(database_url, "watch", "--json", code=1))["tables"][0]
    assert (facts["readiness"], facts["proposed"], facts["refused"]) == ("unsafe", ["price", "updated_at"], 4)
    async with pool.acquire() as conn:
        await protect(conn, POSITIONS, exempt=table.proposed, watch=True)
    await pool.execute(TICK)
    assert "UNKNOWN" in await run(database_url, "watch", code=3)  # nothing seen is not nothing wrong
    with under(await held(pool, 8)):
        await pool.execute("update trading.positions set status = 'open' where id = 1")
    said = await run(database_url, "watch")
    assert "SAFE to protect: no write would have been refused" in said
    assert "1 write presented the lease" in said
    assert "that is less than a day" in said
    assert proposal.removesuffix(" --watch") in said.splitlines()[-1]


async def test_since_leaves_out_what_is_long_ago(pool: asyncpg.Pool[Any], database_url: str) -> None:
    with under(await held(pool)):
        await pool.execute(UPDATE)
    await pool.execute(TICK)
    await pool.execute(
        "update lockguard.watched set at = at - interval '2 hours' where verdict = 'unguarded'"
    )
    assert (await report(pool)).readiness is Readiness.UNSAFE
    assert (await report(pool, since=timedelta(hours=1))).readiness is Readiness.SAFE
    assert "SAFE to protect" in await run(database_url, "watch", "--since", "1h")
    assert "NOT SAFE" in await run(database_url, "watch", "--since", "3h", code=1)
    assert "give a number" in await run(database_url, "watch", "--since", "yesterday", code=2)


async def test_status_and_check_tell_what_is_only_watched(pool: asyncpg.Pool[Any], database_url: str) -> None:
    assert "watched only" in await run(database_url, "status")
    said = await run(database_url, "check")
    assert "it is only watched: no write of it is refused" in said
    assert "all 0 protected tables hold" in said
    assert "it ought to be protected, and it is only watched" in await run(
        database_url, "check", POSITIONS, code=1
    )
    await pool.execute("alter table trading.positions disable trigger zz_lockguard_update")
    said = await run(database_url, "check", code=1)
    assert "disabled: its writes are not recorded" in said
    assert said.count("--watch") == 1
    async with pool.acquire() as conn:
        await protect(conn, POSITIONS, watch=True)
        assert [f.grave for f in await findings(conn)] == [False]
        assert await unprotect(conn, POSITIONS) is True
        assert await findings(conn) == ()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("watch", "trading.none"), "there is no table 'trading.none'"),
        (("watch", "a..b"), "there is no table 'a..b'"),
        (("watch", "trading.other"), "trading.other is not watched; watched are: trading.positions"),
        (("protect", "trading.other"), "--resource '{exchange}:{symbol}'"),
        (("protect", "trading.positions", "--exempt", "prise", "--watch"), "cannot exempt prise"),
    ],
)
async def test_a_mistake_is_told_in_one_line(
    pool: asyncpg.Pool[Any], database_url: str, args: tuple[str, ...], says: str
) -> None:
    await pool.execute("create table trading.other (symbol text)")
    said = (await run(database_url, *args, code=2)).strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert (await report(pool)).readiness is Readiness.UNKNOWN


async def test_no_watched_table_is_told_with_the_way_to_one(conn: asyncpg.Connection[Any]) -> None:
    await install(conn)
    with pytest.raises(ConfigurationError, match="no table is watched: begin with lockguard fence protect"):
        await watched(conn)


async def test_psycopg_watches_too(pool: asyncpg.Pool[Any], database_url: str) -> None:
    def go() -> tuple[WatchedTable, ...]:
        with psycopg.connect(database_url) as conn:
            lockguard_psycopg.protect(conn, POSITIONS, exempt=["price"], watch=True)
            conn.execute("update trading.positions set status = 'x', price = 5 where id = 1")
            conn.commit()
            seen = lockguard_psycopg.watched(conn)
            lockguard_psycopg.protect(conn, POSITIONS)
        return seen

    (table,) = await asyncio.to_thread(go)
    assert [(w.columns, w.refused) for w in table.writes] == [(("status", "twice"), 1)]
    async with pool.acquire() as conn:
        (made,) = await protections(conn)
    assert (made.watched, made.exempt) == (False, ("price",))


async def test_a_schema_before_this_version_is_named(conn: asyncpg.Connection[Any]) -> None:
    with pytest.raises(ConfigurationError, match="lockguard fence install"):
        await watched(conn)


async def test_a_schema_with_a_protected_table_is_upgraded_and_watches(conn: asyncpg.Connection[Any]) -> None:
    for step in steps()[:18]:
        await conn.execute(step.sql)
        await conn.execute("insert into lockguard.schema_version (version) values ($1)", step.version)
    await conn.execute(TABLE)
    await conn.execute("create table trading.other (symbol text)")
    await conn.execute(f"select lockguard.protect('{POSITIONS}', '{RESOURCE}', '{{price}}')")
    await install(conn)
    await protect(conn, "trading.other", resource="{symbol}", watch=True)
    with pytest.raises(asyncpg.PostgresError, match="no token for binance:APTUSDT"):
        await conn.execute(UPDATE)
    assert await conn.execute(TICK) == "UPDATE 1"
    await conn.execute("insert into trading.other values ('APTUSDT')")
    (other,) = await watched(conn)
    assert (other.table, other.refused) == ("trading.other", 1)
    assert [f.finding for f in await findings(conn)] == ["it is only watched: no write of it is refused"]
