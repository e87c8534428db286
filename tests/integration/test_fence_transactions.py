"""What is known of a connection is tied to the transaction that Postgres is in, whoever began it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError, LeaseNotHeld, StaleToken
from lockguard_asyncpg import (
    CommitUnknown,
    NotCommitted,
    PostgresFence,
    create_pool,
    fenced_execute,
    fenced_transaction,
    install,
    protect,
    resolve,
    unfenced,
)
from lockguard_asyncpg._transaction import Isolation
from lockguard_asyncpg._transaction_state import bare, transaction_state
from lockguard_lab.servers import FaultProxy
from lockguard_lab.servers.fault_proxy import DROP
from tests.integration.fence_leases import APT, SOON, held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lockguard_lab.servers import PostgresServer

TABLE = "create table note (id int, exchange text default 'binance', symbol text default 'APTUSDT')"
INSERT = "insert into note values ($1)"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """Not fenced: what the application does by itself passes lockguard by."""
    async with asyncpg.create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(TABLE)
        yield pool


async def ids(pool: asyncpg.Pool[Any]) -> list[int]:
    return [row["id"] for row in await pool.fetch("select id from note order by id")]


# A transaction of the caller's own, on a connection that is not fenced


async def test_a_cancel_while_a_savepoint_is_rolled_back_is_one_for_the_callers_own_transaction_too(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)

    async def write(conn: Any) -> None:
        async with conn.transaction():
            async with fenced_transaction(conn, lease):
                writing = asyncio.current_task()
                assert writing is not None
                asyncio.get_running_loop().call_soon(writing.cancel)  # once its rollback has begun
                raise ZeroDivisionError

    async with pool.acquire() as conn:
        writing = asyncio.create_task(write(conn))
        await asyncio.wait([writing])
        assert writing.cancelled()
        assert not conn.is_closed()
        assert not conn.is_in_transaction()


@pytest.mark.parametrize("end", ["seal", "break", "close"])
async def test_each_transaction_of_the_callers_is_checked_on_a_connection_used_before(
    pool: asyncpg.Pool[Any], end: str
) -> None:
    lease, fence = await held(pool, 7), PostgresFence(pool)
    async with pool.acquire() as conn:
        async with conn.transaction(), fenced_transaction(conn, lease):
            await conn.execute(INSERT, 1)
        match end:
            case "seal":
                await held(pool, 8)
            case "break":
                await fence.break_(APT, reason="test", within=SOON)
            case _:
                await fence.close(lease.grant, within=SOON)
        with pytest.raises(StaleToken):
            async with conn.transaction(), fenced_transaction(conn, lease):
                await conn.execute(INSERT, 2)
    assert await ids(pool) == [1]


async def test_a_rolled_back_savepoint_is_checked_again_in_the_same_transaction(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(ZeroDivisionError):
            async with fenced_transaction(conn, lease):
                raise ZeroDivisionError
        await held(pool, 8)  # which the savepoint's lock on the row would have kept waiting
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                await conn.execute(INSERT, 2)
    assert await ids(pool) == []


async def test_a_savepoint_of_the_callers_that_is_rolled_back_takes_the_check_with_it(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(ZeroDivisionError):
            async with conn.transaction():
                async with fenced_transaction(conn, lease):
                    await conn.execute(INSERT, 1)
                raise ZeroDivisionError
        await held(pool, 8)
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                await conn.execute(INSERT, 2)
    assert await ids(pool) == []


@pytest.mark.parametrize("chain", ["commit and chain", "rollback and chain"])
async def test_a_chained_transaction_is_checked_like_any_other(pool: asyncpg.Pool[Any], chain: str) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn, conn.transaction():
        async with fenced_transaction(conn, lease):
            await conn.execute(INSERT, 1)
        await conn.execute(chain)
        await held(pool, 8)
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                await conn.execute(INSERT, 2)
    assert await ids(pool) == ([1] if chain.startswith("commit") else [])


async def test_the_rightful_holder_writes_to_a_protected_table_in_each_transaction(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn:
        await protect(conn, "note", resource="{exchange}:{symbol}")
        for n in (1, 2, 3):
            async with conn.transaction(), fenced_transaction(conn, lease):
                await conn.execute(INSERT, n)
    assert await ids(pool) == [1, 2, 3]


async def test_nothing_is_kept_of_leases_that_a_connection_has_seen(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        for n in range(20):
            lease = await held(pool, 7, f"r{n}")
            async with conn.transaction(), fenced_transaction(conn, lease):
                await conn.execute("select 1")
        tx = transaction_state(bare(conn))
        assert (tx.leases, tx.claims, tx.presentation, tx.body) == ({}, set(), None, None)
        assert type(bare(conn)) is asyncpg.Connection


# The body of a fenced transaction


@pytest.mark.parametrize(
    "text",
    [
        "commit",
        "rollback",
        "COMMIT AND CHAIN",
        "end; begin",
        "/* x */ commit; insert into note values (2)",
        "prepare transaction 'x'",
        "abort",
    ],
)
async def test_nothing_in_the_body_of_a_fenced_transaction_ends_it(
    pool: asyncpg.Pool[Any], text: str
) -> None:
    lease = await held(pool, 7)
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute(INSERT, 1)
        with pytest.raises(ConfigurationError, match="leave the body"):
            await conn.execute(text)
        with pytest.raises(ConfigurationError, match="leave the body"):
            await (await conn.prepare("commit")).fetch()
        await conn.execute(INSERT, 3)
    assert await ids(pool) == [1, 3]


async def test_a_connection_reset_in_the_body_writes_nothing_more(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool, 7)
    with pytest.raises((NotCommitted, asyncpg.InterfaceError)):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, 1)
            await conn.reset()
            await conn.execute(INSERT, 2)
    assert await ids(pool) == []


async def test_a_savepoint_by_text_that_is_rolled_back_in_the_body_is_checked_again(
    pool: asyncpg.Pool[Any],
) -> None:
    lease, refused = await held(pool, 7), False
    with pytest.raises(asyncpg.InterfaceError):  # the body's own savepoint has gone, so the connection has to
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute("savepoint before")
            async with fenced_transaction(conn, lease):
                await conn.execute(INSERT, 1)
                await conn.execute("rollback to before")
                await held(pool, 8)
                with pytest.raises(StaleToken):
                    await conn.execute(INSERT, 2)
                refused = True
                raise ZeroDivisionError
    assert refused
    assert await ids(pool) == []


async def test_a_body_costs_no_message_more_on_a_connection_that_is_not_fenced(
    pool: asyncpg.Pool[Any],
) -> None:
    lease, sent = await held(pool, 7), list[str]()
    async with pool.acquire() as conn:
        conn.add_query_logger(lambda record: sent.append(record.query))
        async with fenced_transaction(conn, lease):
            await conn.execute("select 1")
            async with fenced_transaction(conn, lease):
                await conn.fetch("select 2")
        async with conn.transaction(), fenced_transaction(conn, lease):
            await conn.execute("select 3")
    *work, reset = sent  # the pool's own, on release
    assert "pg_advisory_unlock_all" in reset
    assert [query.partition(";")[0].split()[0].upper() for query in work] == [
        *("BEGIN", "SELECT", "SAVEPOINT", "SELECT", "RELEASE", "COMMIT"),
        *("BEGIN", "SAVEPOINT", "SELECT", "RELEASE", "COMMIT"),
    ]


# A fenced connection


@pytest.fixture
async def dropin(database_url: str, pool: asyncpg.Pool[Any]) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=3) as fenced_pool:
        yield fenced_pool


async def test_what_an_unfenced_text_did_to_the_transaction_is_not_known(
    pool: asyncpg.Pool[Any], dropin: asyncpg.Pool[Any]
) -> None:
    lease = await held(pool, 7)
    with under(lease):
        async with dropin.acquire() as conn:
            await conn.execute("begin")
            await conn.execute(INSERT, 1)
            with unfenced():
                await conn.execute("commit; begin")
            await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute(INSERT, 2)
            await conn.execute("rollback")
    assert await ids(pool) == [1]


async def test_a_rollback_is_sent_whatever_became_of_the_lease(
    pool: asyncpg.Pool[Any], dropin: asyncpg.Pool[Any]
) -> None:
    lease = await held(pool, 7)
    with under(lease):
        async with dropin.acquire() as conn:
            await conn.execute("begin")
            await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute(INSERT, 1)
            await conn.execute("rollback")
            assert not conn.is_in_transaction()


async def test_a_commit_by_text_after_the_body_writes_nothing_of_the_released_lease(
    pool: asyncpg.Pool[Any], dropin: asyncpg.Pool[Any]
) -> None:
    lease = await held(pool, 7)
    async with dropin.acquire() as conn:
        await conn.execute("begin")
        with under(lease):
            await conn.execute(INSERT, 1)
        lease.mark_released()
        with pytest.raises(LeaseNotHeld):
            await conn.execute("commit")
        assert not conn.is_in_transaction()
    assert await ids(pool) == []


async def test_an_outcome_recorded_behind_a_savepoint_that_went_is_recorded_anew(
    database_url: str, pool: asyncpg.Pool[Any], postgres_server: PostgresServer
) -> None:
    """The transaction began before the lease, and what made its outcome known was rolled back."""
    lease = await held(pool, 7)
    async with FaultProxy(postgres_server.port) as proxy:
        async with create_pool(proxy.url_for(database_url), min_size=0, max_size=1) as dropin:
            conn = await dropin.acquire()
            await conn.execute("begin")
            with under(lease):
                await conn.execute("savepoint s")
                await conn.execute(INSERT, 1)
                await conn.execute("rollback to s")
                with unfenced():
                    await conn.execute(INSERT, 2)
                before = proxy.to_client.received_bytes
                proxy.to_client.set(DROP)
                committing = asyncio.ensure_future(conn.execute("commit"))
                await asyncio.wait_for(proxy.to_client.wait_received(before + 1), 5)
                proxy.reset()
                with pytest.raises(CommitUnknown) as caught:
                    await committing
            await dropin.release(conn)
    assert await resolve(pool, caught.value) is True
    assert await ids(pool) == [2]


async def test_a_swallowed_error_is_told_where_the_outcome_is_recorded_anew(
    pool: asyncpg.Pool[Any], dropin: asyncpg.Pool[Any]
) -> None:
    with under(await held(pool, 7)):
        async with dropin.acquire() as conn:
            await conn.execute("begin")
            await conn.execute(INSERT, 1)
            with pytest.raises(asyncpg.DivisionByZeroError):
                await conn.execute("select 1 / 0")
            with pytest.raises(NotCommitted):
                await conn.execute("commit")
            assert not conn.is_in_transaction()
            await conn.execute(INSERT, 2)
    assert await ids(pool) == [2]


# A snapshot that is older than the lease


async def _plainly(conn: Any) -> None:
    await conn.execute(INSERT, 1)


async def _by_statement(conn: Any) -> None:
    await fenced_execute(conn, INSERT, 1)


async def _in_a_savepoint(conn: Any) -> None:
    async with fenced_transaction(conn):
        await conn.execute(INSERT, 1)


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
@pytest.mark.parametrize("write", [_plainly, _by_statement, _in_a_savepoint])
@pytest.mark.parametrize("sealed_before", [False, True], ids=["the first seal", "a later seal"])
async def test_a_snapshot_older_than_the_lease_is_told_so_and_ends_no_lease(
    database_url: str, pool: asyncpg.Pool[Any], isolation: Isolation, write: Any, *, sealed_before: bool
) -> None:
    if sealed_before:
        await held(pool, 6)
    async with create_pool(database_url, min_size=0, max_size=1) as fenced, fenced.acquire() as conn:
        with pytest.raises(asyncpg.SerializationError) as caught:
            async with conn.transaction(isolation=isolation):
                await conn.fetchval("select count(*) from note")
                lease = await held(pool, 7)
                with under(lease):
                    await write(conn)
        if not sealed_before:
            says = "the snapshot of this transaction is older than the lease on binance:APTUSDT"
            assert str(caught.value).startswith(says)
        lease.ensure()
        with under(lease):
            async with conn.transaction(isolation=isolation):
                await write(conn)
    assert await ids(pool) == [1]


# A fenced transaction is one transaction


@pytest.mark.parametrize("first", ["committed", "rolled back", "open"])
async def test_a_fenced_transaction_is_entered_once(pool: asyncpg.Pool[Any], first: str) -> None:
    """Its number belongs to the next writer when it has ended, who would be told of the other's end."""
    transaction = fenced_transaction(pool, await held(pool, 7))

    async def once_more() -> None:
        with pytest.raises(ConfigurationError, match="entered once: write"):
            async with transaction as conn:
                await conn.execute(INSERT, 2)

    with suppress(ZeroDivisionError):
        async with transaction as conn:
            await conn.execute(INSERT, 1)
            if first == "open":
                await once_more()
            if first == "rolled back":
                raise ZeroDivisionError
    await once_more()
    assert await ids(pool) == ([] if first == "rolled back" else [1])
