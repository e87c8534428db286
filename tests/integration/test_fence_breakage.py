"""What else people do with a connection and a table: each is either right or refused."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._lease import Lease, new_grant_id
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install, unfenced
from tests.integration import fence_leases
from tests.integration.fence_leases import SOON, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_lab.servers import PostgresServer

APT, BTC = "APTUSDT", "BTCUSDT"
SET_UP = """
create table position (
  symbol text, leg int default 1, status text default 'active', price numeric default 0, unique (symbol, leg)
);
create table fill (id int, symbol text, leg int, foreign key (symbol, leg) references position (symbol, leg)
  on delete cascade on update cascade);
create table note (text text);
select lockguard.protect('position', '{symbol}', '{price}');
select lockguard.protect('fill', '{symbol}');
"""
INSERT = "insert into position (symbol) values ('APTUSDT')"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(SET_UP)
        yield pool


async def held(pool: asyncpg.Pool[Any], token: int = 7, resource: str = APT) -> Lease:
    return await fence_leases.held(pool, token, resource)


async def rows(pool: asyncpg.Pool[Any], table: str = "position") -> list[tuple[Any, ...]]:
    with unfenced():
        return [tuple(r) for r in await pool.fetch(f"select * from {table} order by 1, 2")]


async def refused(pool: asyncpg.Pool[Any], statement: str, state: str = "LG002") -> asyncpg.PostgresError:
    before = await rows(pool), await rows(pool, "fill")
    with pytest.raises(StaleToken) as caught:
        await pool.execute(statement)
    cause = caught.value.__cause__
    assert isinstance(cause, asyncpg.PostgresError)
    assert cause.sqlstate == state, cause
    assert before == (await rows(pool), await rows(pool, "fill"))
    return cause


# Statements of every kind on a protected table


CHANGES = [
    "insert into position (symbol, leg) values ('APTUSDT', 2)",
    (
        "insert into position (symbol, leg, status) values ('APTUSDT', 1, 'x')"
        " on conflict (symbol, leg) do update set status = excluded.status"
    ),
    (
        "merge into position p using (values ('APTUSDT', 1, 'closed')) v (s, l, t)"
        " on p.symbol = v.s and p.leg = v.l when matched then update set status = v.t"
        " when not matched then insert (symbol) values (v.s)"
    ),
    "merge into position p using (values ('APTUSDT')) v (s) on p.symbol = v.s when matched then delete",
    "with gone as (delete from position returning symbol) insert into note select symbol from gone",
    "update position set status = 'x' from (values (1)) v (n) where v.n = position.leg",
    "do $$ begin update position set status = 'x'; end $$",
    "update only position set status = 'x'",
    "update shown set status = 'x'",
    "delete from fill",
    "delete from position",
    "update position set leg = 9",
]


@pytest.mark.parametrize("change", CHANGES)
async def test_each_kind_of_change_takes_the_lease(pool: asyncpg.Pool[Any], change: str) -> None:
    await pool.execute("create view shown as select * from position")
    lease = await held(pool)
    with under(lease):
        await pool.execute(INSERT)
        await pool.execute("insert into fill values (1, 'APTUSDT', 1)")
    before = await rows(pool), await rows(pool, "fill")
    await refused(pool, change)
    with under(lease):
        await pool.execute(change)
    assert before != (await rows(pool), await rows(pool, "fill"))


@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_that_touches_no_row_takes_none(pool: asyncpg.Pool[Any], change: str) -> None:
    if "insert into position" in change or "insert (symbol)" in change or "shown" in change:
        return
    await pool.execute(change)


async def test_a_statement_over_two_resources_takes_both_leases(pool: asyncpg.Pool[Any]) -> None:
    apt, btc = await held(pool), await held(pool, 7, BTC)
    both = "insert into position (symbol) values ('APTUSDT'), ('BTCUSDT')"
    with under(apt), pytest.raises(StaleToken) as caught:
        await pool.execute(both)
    assert caught.value.resource == BTC
    with under(btc), pytest.raises(StaleToken) as caught:
        await pool.execute(both)
    assert caught.value.resource == APT
    with under(btc, apt):
        await pool.execute(both)
        await pool.execute("update position set status = 'x'")
    await held(pool, 8, BTC)
    stale = '{"APTUSDT": [7, "%s"], "BTCUSDT": [7, "%s"]}' % (apt.grant.id, btc.grant.id)  # noqa: UP031
    await refused(pool, f"set local lockguard.leases = '{stale}'; delete from position", "LG001")


async def test_prices_of_many_resources_tick_in_one_statement(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool), await held(pool, 7, BTC)):
        await pool.execute("insert into position (symbol) values ('APTUSDT'), ('BTCUSDT')")
    tick = "update position p set price = v.price from (values ('APTUSDT', 2), ('BTCUSDT', 3)) v (s, price)"
    await pool.execute(tick + " where p.symbol = v.s")
    assert sorted(r[3] for r in await rows(pool)) == [2, 3]
    # One row among the ticks that changes more than its price.
    error = await refused(pool, "update position set price = 9, status = case leg when 1 then symbol end")
    assert "APTUSDT" in str(error)
    error = await refused(
        pool, "update position set price = 9, status = case symbol when 'BTCUSDT' then 'x' else status end"
    )
    assert "BTCUSDT" in str(error)


async def test_rows_that_change_places_are_refused(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool), await held(pool, 7, BTC)):
        await pool.execute("insert into position (symbol, leg) values ('APTUSDT', 1), ('BTCUSDT', 2)")
    await refused(
        pool,
        "update position set price = 1, symbol = case leg when 1 then 'BTCUSDT' else 'APTUSDT' end",
    )


async def test_a_copy_takes_the_lease(pool: asyncpg.Pool[Any]) -> None:
    records = [("APTUSDT", n) for n in range(100)]
    async with pool.acquire() as conn:
        with pytest.raises(StaleToken, match="no token for APTUSDT"):
            await conn.copy_records_to_table("position", records=records, columns=["symbol", "leg"])
        with under(await held(pool)):
            await conn.copy_records_to_table("position", records=records, columns=["symbol", "leg"])
            with pytest.raises(StaleToken):
                await conn.copy_records_to_table("position", records=[("X", 1)], columns=["symbol", "leg"])
    assert len(await rows(pool)) == 100


async def test_executemany_is_all_or_nothing(pool: asyncpg.Pool[Any]) -> None:
    insert = "insert into position (symbol, leg) values ($1, $2)"
    with under(await held(pool)):
        with pytest.raises(StaleToken) as caught:
            await pool.executemany(insert, [(APT, 1), (APT, 2), (BTC, 1)])
        assert caught.value.resource == BTC
        assert await rows(pool) == []
        await pool.executemany(insert, [(APT, 1), (APT, 2)])
    assert len(await rows(pool)) == 2


async def test_a_table_that_is_checked_by_statements_cannot_become_a_child(pool: asyncpg.Pool[Any]) -> None:
    """Its parent's statements would change its rows past its own triggers."""
    await pool.execute(
        "create table parent (symbol text); create table parted (like position) partition by list (symbol)"
    )
    for attach in (
        "alter table position inherit parent",
        "alter table parted attach partition position for values in ('APTUSDT')",
    ):
        with pytest.raises(asyncpg.PostgresError, match="zz_lockguard_alone"):
            await pool.execute(attach)


@pytest.mark.parametrize(
    "make",
    [
        (
            "create table parent (symbol text, status text); create table child () inherits (parent);"
            " select lockguard.protect('child', '{symbol}')"
        ),
        (
            "create table parent (symbol text, status text) partition by list (symbol);"
            " create table child partition of parent default; select lockguard.protect('parent', '{symbol}')"
        ),
        (
            "create table parent (symbol text, status text) partition by list (symbol);"
            " create table child partition of parent default; select lockguard.protect('child', '{symbol}')"
        ),
        (
            "create table parent (symbol text, status text) partition by list (symbol);"
            " select lockguard.protect('parent', '{symbol}'); create table child partition of parent default"
        ),
    ],
    ids=["inherited", "partitioned", "one partition", "partition added later"],
)
async def test_rows_of_children_are_fenced_through_either_table(pool: asyncpg.Pool[Any], make: str) -> None:
    await pool.execute(make)
    lease = await held(pool)
    with under(lease):
        await pool.execute("insert into child values ('APTUSDT', 'new')")
    for change in (
        "update parent set status = 'x'",
        "update child set status = 'x'",
        "delete from parent",
        "delete from child",
        "insert into child values ('APTUSDT', 'new')",
    ):
        await refused(pool, change)
        transaction_of_one = f"{change}; select 1 / 0"
        with under(lease), pytest.raises(asyncpg.DivisionByZeroError):
            await pool.execute(transaction_of_one)
    assert len(await pool.fetch("select * from parent")) == 1


# People who try


async def test_the_application_role_cannot_switch_the_protection_off(pool: asyncpg.Pool[Any]) -> None:
    role = "bot_" + new_grant_id()[:8]
    await pool.execute(
        f"create role {role}; grant lockguard_app to {role};"
        f" grant select, insert, update, delete, truncate on position, fill to {role}"
    )
    try:
        for attempt in (
            "alter table position disable trigger all",
            "alter table position disable trigger zz_lockguard_update",
            "drop trigger zz_lockguard_update on position",
            "select lockguard.unprotect('position')",
            "select lockguard.protect('position', '{status}')",
            "set session_replication_role = replica",
            "create or replace function lockguard.keep_table() returns trigger language sql as 'select 1'",
            "select lockguard.maintenance('please')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await pool.execute(f"set role {role}; {attempt}")
        await refused(pool, f"set role {role}; {INSERT}")
        await refused(pool, f"set role {role}; truncate position, fill")
        lease = await held(pool)
        with under(lease):
            await pool.execute(f"set local role {role}; {INSERT}")
    finally:
        await pool.execute(f"reset role; drop owned by {role}; drop role {role}")
    assert len(await rows(pool)) == 1


async def test_a_protection_that_was_switched_off_shows(pool: asyncpg.Pool[Any]) -> None:
    assert {r["enabled"] for r in await pool.fetch("select * from lockguard.protections()")} == {True}
    await pool.execute("alter table position disable trigger zz_lockguard_update")
    switched = await pool.fetch("select relation from lockguard.protections() where not enabled")
    assert [r["relation"] for r in switched] == ['public."position"']


@pytest.mark.parametrize("level", ["set", "set local"])
async def test_somebody_elses_grant_is_worth_what_it_is_worth_to_them(
    pool: asyncpg.Pool[Any], level: str
) -> None:
    """Whoever presents the pair in force writes as its holder, and is shut out together with it."""
    lease = await held(pool)
    claim = f'{level} lockguard.leases = \'{{"APTUSDT": [7, "{lease.grant.id}"]}}\''
    await pool.execute(f"{claim}; {INSERT}")
    await held(pool, 8)
    await refused(pool, f"{claim}; delete from position", "LG001")
    guessed = f'{level} lockguard.leases = \'{{"APTUSDT": [8, "{lease.grant.id}"]}}\''
    await refused(pool, f"{guessed}; delete from position", "LG001")
    assert len(await rows(pool)) == 1


@pytest.mark.parametrize(
    "claim",
    ["nonsense", "[]", "{}", "7", '"x"', '{"APTUSDT": null}', '{"APTUSDT": ["x", "y"]}', '{"APTUSDT": {}}'],
)
async def test_a_claim_that_cannot_be_read_is_none(pool: asyncpg.Pool[Any], claim: str) -> None:
    await held(pool)
    with pytest.raises((StaleToken, asyncpg.PostgresError)):
        await pool.execute(f"set local lockguard.leases = '{claim}'; {INSERT}")
    assert await rows(pool) == []


@pytest.mark.parametrize(("token", "grant_id"), [("null", "null"), ("7", "null"), ("null", "$1")])
async def test_null_is_no_token(pool: asyncpg.Pool[Any], token: str, grant_id: str) -> None:
    lease = await held(pool)
    grant_id = grant_id.replace("$1", f"'{lease.grant.id}'")
    await refused(pool, f"select lockguard.check('APTUSDT', {token}, {grant_id})", "LG001")


async def test_a_pool_on_a_database_without_the_schema_says_so(
    pool: asyncpg.Pool[Any], postgres_server: PostgresServer
) -> None:
    """The fence is in one database and the writes go to another."""
    lease, name = await held(pool), "other_" + new_grant_id()[:8]
    try:
        async with create_pool(postgres_server.create_database(name), min_size=0, max_size=1) as other:
            await other.execute("create table note (text text)")
            native = "insert into note values ('x')"
            for write in (
                lambda: other.execute("select 1"),
                lambda: _transaction(other),
                lambda: fenced_execute(other, native),
            ):
                with under(lease), pytest.raises(ConfigurationError, match="lockguard fence install"):
                    await write()
            async with other.acquire() as conn:
                await conn.execute("begin")
                with under(lease), pytest.raises(ConfigurationError, match="lockguard fence install"):
                    await conn.execute("select 1")
                await conn.execute("rollback")
    finally:
        postgres_server.drop_database(name)


async def test_a_role_that_may_not_take_part_is_told_the_grant(
    pool: asyncpg.Pool[Any], database_url: str
) -> None:
    role = "bot_" + new_grant_id()[:8]
    await pool.execute(f"create role {role} login password 'poor'")
    try:
        lease = await held(pool)
        poor = f"postgresql://{role}:poor@{database_url.rpartition('@')[2]}"
        async with create_pool(poor, min_size=0, max_size=1) as other:
            with under(lease), pytest.raises(ConfigurationError, match="GRANT lockguard_app"):
                await other.execute("select 1")
            with pytest.raises(ConfigurationError, match="GRANT lockguard_app"):
                await PostgresFence(other).close(lease.grant, within=SOON)
    finally:
        await pool.execute(f"drop role {role}")


async def _transaction(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute("select 1")


async def test_a_dump_that_is_restored_elsewhere_is_protected_there(
    pool: asyncpg.Pool[Any], postgres_server: PostgresServer, database_url: str
) -> None:
    with under(await held(pool)):
        await pool.execute(INSERT)
    name, tools = "copy_" + new_grant_id()[:8], postgres_server.binary.path.parent
    url = postgres_server.create_database(name)
    try:
        dump = await _output(str(tools / "pg_dump"), database_url)
        await _output(str(tools / "psql"), "--no-psqlrc", "--set=ON_ERROR_STOP=1", url, given=dump)
        async with create_pool(url, min_size=0, max_size=2) as restored:
            assert await rows(restored) == await rows(pool)
            assert len(await restored.fetch("select * from lockguard.protections() where enabled")) == 2
            await refused(restored, "delete from position")
            with under(await held(restored, 8)):
                await restored.execute("delete from position")
            assert await restored.fetchval("select lockguard.unprotect('position')") is True
    finally:
        postgres_server.drop_database(name)


async def _output(*command: str, given: bytes = b"") -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(given)
    assert process.returncode == 0, err.decode()
    return out


async def test_a_cascade_from_a_table_that_is_not_protected_takes_the_lease(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        "create table owner (id int primary key);"
        " create table owned (symbol text, owner int references owner on delete cascade on update set null);"
        " select lockguard.protect('owned', '{symbol}'); insert into owner values (1)"
    )
    lease = await held(pool)
    with under(lease):
        await pool.execute("insert into owned values ('APTUSDT', 1)")
    await refused(pool, "delete from owner")
    await refused(pool, "update owner set id = 2")
    with under(lease):
        await pool.execute("delete from owner")
    assert await rows(pool, "owned") == []


async def test_a_deferred_trigger_writes_under_the_lease_too(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        "create function late() returns trigger language plpgsql as"
        " $$ begin insert into position (symbol) values (new.text); return null; end $$;"
        " create constraint trigger late after insert on note deferrable initially deferred"
        " for each row execute function late()"
    )
    await refused(pool, "insert into note values ('APTUSDT')")
    with under(await held(pool)):
        await pool.execute("insert into note values ('APTUSDT')")
        with pytest.raises(StaleToken):
            await pool.execute("insert into note values ('BTCUSDT')")
    assert [r[0] for r in await rows(pool)] == [APT]
