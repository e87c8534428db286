"""Plain asyncpg code on a fenced pool: fenced inside a guarded body, asyncpg's own outside of it."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason, StaleToken
from lockguard_asyncpg import (
    FencedConnection,
    NotCommitted,
    create_pool,
    fenced,
    fenced_execute,
    fenced_transaction,
    install,
    unfenced,
)
from tests.integration.fence_leases import held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

INSERT = "insert into note values (1, 'x')"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with fenced(asyncpg.create_pool(database_url, min_size=0, max_size=5)) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key, text text)")
        yield pool


async def rows(pool: asyncpg.Pool[Any]) -> int:
    with unfenced():
        return int(await pool.fetchval("select count(*) from note"))


async def _copy_in(conn: Any) -> None:
    await conn.copy_to_table("note", source=BytesIO(b"1\tx\n"), format="text")


async def _copy_records(conn: Any) -> None:
    await conn.copy_records_to_table("note", records=[(1, "x")])


async def _prepared(conn: Any) -> None:
    await (await conn.prepare(INSERT)).fetch()


async def _transaction(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(INSERT)


async def _manual(conn: Any) -> None:
    await conn.execute("BEGIN")
    try:
        await conn.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        await conn.execute(INSERT)
        await conn.execute("COMMIT")
    except BaseException:
        await conn.execute("ROLLBACK")
        raise


async def _cursor(conn: Any) -> None:
    async with conn.transaction():
        async for _ in conn.cursor(INSERT + " returning id"):
            pass


WAYS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "execute": lambda c: c.execute(INSERT),
    "execute with arguments": lambda c: c.execute("insert into note values ($1, 'x')", 1),
    "several statements": lambda c: c.execute(f"{INSERT}; select 1"),
    "executemany": lambda c: c.executemany("insert into note values ($1, $2)", [(1, "x")]),
    "fetch": lambda c: c.fetch(INSERT + " returning id"),
    "fetchrow": lambda c: c.fetchrow(INSERT + " returning id"),
    "fetchval": lambda c: c.fetchval(INSERT + " returning id"),
    "copy_to_table": _copy_in,
    "copy_records_to_table": _copy_records,
    "prepared": _prepared,
    "transaction": _transaction,
    "manual transaction": _manual,
    "cursor": _cursor,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


@ways
async def test_each_way_to_write_is_refused_once_the_lease_is_superseded(
    pool: asyncpg.Pool[Any], way: Callable[[Any], Awaitable[Any]]
) -> None:
    stale = await held(pool, 7)
    await held(pool, 8)
    async with pool.acquire() as conn:
        with under(stale), pytest.raises(StaleToken) as caught:
            await way(conn)
        assert (caught.value.presented, caught.value.current) == (7, 8)
        assert not conn.is_in_transaction()
        assert await rows(pool) == 0
        await way(conn)
    assert await rows(pool) == 1


@ways
async def test_each_way_to_write_works_under_the_lease_and_is_committed(
    pool: asyncpg.Pool[Any], way: Callable[[Any], Awaitable[Any]]
) -> None:
    with under(await held(pool, 7)):
        async with pool.acquire() as conn:
            await way(conn)
            assert not conn.is_in_transaction()
    assert await rows(pool) == 1


@ways
async def test_each_way_to_write_is_refused_after_the_lease_is_known_lost(
    pool: asyncpg.Pool[Any], way: Callable[[Any], Awaitable[Any]]
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn:
        with under(lease):
            lease.mark_lost(LossReason.EXPIRED)
            with pytest.raises(LeaseLost):
                await way(conn)
    assert await rows(pool) == 0


@pytest.mark.parametrize("lost", ["before it is prepared", "after it was prepared"])
async def test_a_statement_that_is_refused_before_it_is_sent_leaves_no_table_locked(
    pool: asyncpg.Pool[Any], lost: str
) -> None:
    """SQLAlchemy prepares whatever it sends, and its pool resets nothing that ran in autocommit."""
    lease = await held(pool, 7)
    async with pool.acquire() as conn, pool.acquire() as other:
        with under(lease):
            if lost == "before it is prepared":
                lease.mark_lost(LossReason.EXPIRED)
            with pytest.raises(LeaseLost):
                statement = await conn.prepare(INSERT)
                lease.mark_lost(LossReason.EXPIRED)
                await statement.fetch()
        await other.execute("set lock_timeout = '2s'")
        await other.execute("alter table note add more int")


async def test_the_pools_own_methods_are_fenced(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool, 7)
    await held(pool, 8)
    with under(stale), pytest.raises(StaleToken):
        await pool.execute(INSERT)


async def test_a_connection_taken_before_the_lease_is_fenced(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        with under(await held(pool, 7)):
            await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute(INSERT)


async def test_a_transaction_begun_before_the_lease_is_fenced(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        lease = await held(pool, 7)
        await held(pool, 8)
        with under(lease), pytest.raises(StaleToken):
            await conn.execute(INSERT)
        await transaction.rollback()


async def test_a_pool_that_others_hold_already_is_fenced_in_place(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=2) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key, text text)")
        assert fenced(pool) is pool
        assert fenced(pool) is pool
        stale = await held(pool, 7)
        await held(pool, 8)
        with under(stale), pytest.raises(StaleToken):
            await pool.execute(INSERT)
        assert isinstance(pool, asyncpg.Pool)
        async with pool.acquire() as conn:
            assert isinstance(conn, asyncpg.Connection)


async def test_a_connection_class_of_the_users_own_is_kept(database_url: str) -> None:
    class Mine(asyncpg.Connection):  # type: ignore[type-arg]
        async def greet(self) -> str:
            return str(await self.fetchval("select 'hello'"))

    async with create_pool(database_url, min_size=0, max_size=1, connection_class=Mine) as pool:
        async with pool.acquire() as conn:
            assert await conn.greet() == "hello"  # type: ignore[attr-defined]


async def test_the_connection_class_alone_is_enough(database_url: str) -> None:
    options: dict[str, Any] = {"min_size": 0, "max_size": 2, "connection_class": FencedConnection}
    async with asyncpg.create_pool(database_url, **options) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key, text text)")
        stale = await held(pool, 7)
        await held(pool, 8)
        with under(stale), pytest.raises(StaleToken):
            await pool.execute(INSERT)


async def test_a_native_transaction_on_a_fenced_connection_presents_the_lease_once(
    pool: asyncpg.Pool[Any],
) -> None:
    with under(await held(pool, 7)):
        async with fenced_transaction(pool) as conn:
            before = await conn.fetchval("select sequence from lockguard.writer")
            await conn.execute(INSERT)
            assert before is not None
            assert before == await conn.fetchval("select sequence from lockguard.writer")


async def test_a_rollback_to_a_savepoint_presents_the_lease_again(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        lease = await held(pool, 7)
        with under(lease):
            with pytest.raises(ZeroDivisionError):
                async with conn.transaction():
                    await conn.execute(INSERT)
                    raise ZeroDivisionError
            # The savepoint held the row of the fence; without it a successor gets in.
            with unfenced():
                await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute(INSERT)
        await transaction.rollback()


async def test_a_refusal_that_is_swallowed_comes_back_at_commit(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        lease = await held(pool, 7)
        with under(lease), pytest.raises((StaleToken, NotCommitted)) as caught:
            async with conn.transaction():
                with pytest.raises(asyncpg.UniqueViolationError):
                    await conn.execute(f"{INSERT}; {INSERT}")
    assert isinstance(caught.value, NotCommitted)
    assert await rows(pool) == 0


async def test_a_read_only_transaction_may_read_under_a_lease(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool, 7)):
        async with pool.acquire() as conn, conn.transaction(readonly=True):
            assert await conn.fetchval("select 1") == 1


@pytest.mark.parametrize(
    "change",
    [
        "set transaction read write",
        "begin read write",
        'set "transaction_read_only" = off',
        "/* /* */ */ set transaction_read_only = off",
    ],
)
async def test_a_read_only_transaction_that_becomes_read_write_presents_the_lease(
    pool: asyncpg.Pool[Any], change: str
) -> None:
    lease = await held(pool, 7)
    await held(pool, 8)
    async with pool.acquire() as conn:
        with under(lease):
            await conn.execute("begin read only")
            await conn.execute(change)
            with pytest.raises(StaleToken):
                await conn.execute(INSERT)
            await conn.execute("rollback")
    assert await rows(pool) == 0


@pytest.mark.parametrize("change", ["set transaction_read_only = off; ", "set transaction read write;"])
async def test_a_text_that_makes_its_transaction_read_write_and_writes_is_not_sent(
    pool: asyncpg.Pool[Any], change: str
) -> None:
    lease = await held(pool, 7)
    await held(pool, 8)
    async with pool.acquire() as conn:
        with under(lease), pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with conn.transaction(readonly=True):
                await conn.execute(change + INSERT)
    assert await rows(pool) == 0


async def test_two_resources_are_presented_together(pool: asyncpg.Pool[Any]) -> None:
    one, two = await held(pool, 7, "a"), await held(pool, 7, "b")
    with under(one), under(two):
        await pool.execute(INSERT)
        await held(pool, 8, "a")
        with pytest.raises(StaleToken) as caught:
            await pool.execute("delete from note")
    assert caught.value.resource == "a"


async def test_a_task_that_outlives_the_body_cannot_write(pool: asyncpg.Pool[Any]) -> None:
    lease, ended = await held(pool, 7), asyncio.Event()

    async def straggler() -> None:
        await ended.wait()
        await pool.execute(INSERT)

    with under(lease):
        task = asyncio.create_task(straggler())
        await asyncio.sleep(0)
    lease.mark_released()
    ended.set()
    with pytest.raises(LeaseNotHeld, match="await it inside the body"):
        await task
    assert await rows(pool) == 0


async def _plain_write(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(INSERT)


async def _fenced_write(pool: asyncpg.Pool[Any]) -> None:
    await fenced_execute(pool, INSERT)


async def _write_in_a_transaction(pool: asyncpg.Pool[Any]) -> None:
    async with fenced_transaction(pool) as conn:
        await conn.execute(INSERT)


@pytest.mark.parametrize("write", [_plain_write, _fenced_write, _write_in_a_transaction])
async def test_a_task_that_outlives_one_of_two_bodies_does_not_write_under_the_other_alone(
    pool: asyncpg.Pool[Any], write: Callable[[asyncpg.Pool[Any]], Awaitable[None]]
) -> None:
    outer, inner, ended = await held(pool, 7, "a"), await held(pool, 7, "b"), asyncio.Event()

    async def straggler() -> None:
        await ended.wait()
        await write(pool)

    with under(outer):
        with under(inner):
            task = asyncio.create_task(straggler())
            await asyncio.sleep(0)
        inner.mark_released()
        ended.set()
        with pytest.raises(LeaseNotHeld, match="began in the body of the lease on 'b'"):
            await task
    assert await rows(pool) == 0


async def test_a_write_that_was_answered_succeeds_whatever_becomes_of_its_body_and_connection(
    pool: asyncpg.Pool[Any], database_url: str
) -> None:
    """A body that is cut leaves at once, and `asyncio.gather` in it waits for the first of its tasks only."""
    lease, ended = await held(pool, 7), list[bool]()

    class Breaking(asyncpg.Connection):  # type: ignore[type-arg]  # not generic when it runs
        async def reset(self, *, timeout: float | None = None) -> None:
            lease.mark_released()
            with unfenced():
                ended.append(
                    await pool.fetchval("select pg_terminate_backend($1, 5000)", self.get_server_pid())
                )
            await super().reset(timeout=timeout)

    async with create_pool(database_url, min_size=0, max_size=1, connection_class=Breaking) as breaking:
        with under(lease):
            task = asyncio.create_task(breaking.execute(INSERT))
        await task
    assert ended == [True]
    assert await rows(pool) == 1


async def test_a_lost_lease_does_not_cost_the_pool_its_connection(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool, 7)
    pid = await pool.fetchval("select pg_backend_pid()")
    with under(lease):
        async with pool.acquire():
            lease.mark_lost(LossReason.EXPIRED)
    assert await pool.fetchval("select pg_backend_pid()") == pid


async def test_another_task_cannot_slip_into_the_transaction_of_one_statement(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn:
        with under(lease):
            first = asyncio.create_task(conn.execute("select pg_sleep(0.05)"))
            await asyncio.sleep(0)
            with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
                await conn.execute(INSERT)
            await first
    assert await rows(pool) == 0


async def test_a_text_that_would_escape_the_fence_is_not_sent(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool, 7)), pytest.raises(ConfigurationError, match="send BEGIN and COMMIT"):
        await pool.execute(f"select 1; commit; {INSERT}")
    assert await rows(pool) == 0


async def test_outside_of_bodies_nothing_is_added(pool: asyncpg.Pool[Any]) -> None:
    sent: list[str] = []
    async with pool.acquire() as conn:
        conn.add_query_logger(lambda record: sent.append(record.query))
        await conn.execute(INSERT)
        async with conn.transaction():
            await conn.fetch("select 1")
        await asyncio.sleep(0)
    assert sent[:4] == [INSERT, "BEGIN;", "select 1", "COMMIT;"]


async def test_a_statement_that_is_no_lone_write_costs_two_messages_more_and_a_transaction_none(
    pool: asyncpg.Pool[Any],
) -> None:
    sent: list[str] = []
    async with pool.acquire() as conn:
        with under(await held(pool, 7)):
            conn.add_query_logger(lambda record: sent.append(record.query))
            await conn.execute("truncate note")
            async with conn.transaction():
                await conn.execute("delete from note")
                await conn.execute("select 1")
            await asyncio.sleep(0)
    starts = [q.partition(";")[0].split()[0].lower() for q in sent[:7]]
    assert starts == ["begin", "truncate", "commit", "begin", "delete", "select", "commit"]


async def test_listening_under_a_lease_outlives_it(pool: asyncpg.Pool[Any]) -> None:
    heard: asyncio.Queue[object] = asyncio.Queue()

    async def listen(*args: object) -> None:
        heard.put_nowait(args[-1])

    async with pool.acquire() as conn:
        with under(await held(pool, 7)):
            await conn.add_listener("news", listen)
        with unfenced():
            await pool.execute("select pg_notify('news', 'hello')")
        assert await asyncio.wait_for(heard.get(), 5) == "hello"
        await conn.remove_listener("news", listen)
