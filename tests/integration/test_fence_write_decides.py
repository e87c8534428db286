"""A lone write, and one that leaves in one message with its check."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest

from lockguard._lease import Resource
from lockguard.errors import ConfigurationError, LeaseLost, LossReason, StaleToken
from lockguard_asyncpg import (
    CommitUnknown,
    fenced,
    fenced_execute,
    fenced_fetchval,
    fenced_transaction,
    resolve,
)
from lockguard_asyncpg import _native as native
from lockguard_asyncpg._dropin import run
from lockguard_asyncpg._pipelining import NotPipelined, PipelinedCheck, run_pipelined
from lockguard_asyncpg._transaction_state import bare
from lockguard_postgres._claims import Limits
from tests.integration.fence_leases import held, under
from tests.integration.fence_notes import INSERT, noted, notes_url, pool, resource, unaware

__all__ = ["notes_url", "pool", "resource"]


# --- a lone write ---


async def test_a_lone_write_checks_all_its_leases_and_writes_nothing_past_them(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    await held(pool, 8, Resource(f"{resource}:other"))
    for write in (fenced_execute, fenced_fetchval):
        with pytest.raises(StaleToken):
            query = INSERT if write is fenced_execute else INSERT + " returning text"
            await write(pool, query, resource, lease=[lease, unaware(other)])
    assert await noted(pool, resource) == 0


async def test_a_lone_write_inside_a_transaction_has_no_outcome_of_its_own(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn, conn.transaction():
        await fenced_execute(conn, INSERT, resource, lease=lease)
    count = "select (select count(*) from lockguard.writer where resource = $1)"
    count += " + (select count(*) from lockguard.outcome where resource = $1)"
    assert await pool.fetchval(count, resource) == 0


async def test_a_last_write_that_cannot_leave_with_its_close_closes_in_a_transaction(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "can_pipeline", lambda _: False)
    lease = await held(pool, 7, resource)
    await fenced_execute(pool, INSERT, resource, lease=lease, closes=True)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, resource, lease=unaware(lease))
    assert await noted(pool, resource) == 1


async def test_nothing_of_another_task_gets_between_the_begin_and_the_commit_of_one_statement(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def send() -> None:
        begun.set()
        await go_on.wait()

    async with fenced(pool).acquire() as conn:
        with under(lease):
            first = asyncio.create_task(run(bare(conn), "select 1", send, None))
            await begun.wait()
            with pytest.raises(asyncpg.InterfaceError, match="another operation is in progress"):
                await conn.execute(INSERT, resource)
            go_on.set()
            await first
    assert await noted(pool, resource) == 0


async def test_under_a_lost_lease_nothing_is_sent_not_even_what_writes_nothing(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with fenced(pool).acquire() as conn:
        with under(lease):
            async with conn.transaction(readonly=True):
                lease.end(LossReason.REFUSED)
                for text in ("select 1", "savepoint one", "set local work_mem = '1MB'"):
                    with pytest.raises(LeaseLost):
                        await conn.execute(text)


async def test_after_a_rollback_to_a_savepoint_by_text_the_lease_is_presented_again(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with fenced(pool).acquire() as conn:
        with under(lease):
            await conn.execute("begin")
            await conn.execute("savepoint one")
            await conn.execute(INSERT, resource)
            await conn.execute("rollback to one")
            await held(pool, 8, resource)  # which waits for nothing: the fence's row is free again
            with pytest.raises(StaleToken):
                await conn.execute(INSERT, resource)
            await conn.execute("rollback")


async def test_a_statement_of_several_messages_that_failed_leaves_its_connection_in_no_transaction(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with fenced(pool).acquire() as conn:
        with under(lease), pytest.raises(asyncpg.DivisionByZeroError):
            await conn.executemany("insert into note select 1 / $1::int", [(1,), (0,)])
        assert not conn.is_in_transaction()
        assert not conn.is_closed()


async def test_in_the_body_of_a_fenced_transaction_a_deeper_hold_s_lease_is_presented_too(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease, other = await held(pool, 7, resource), await held(pool, 7, Resource(f"{resource}:other"))
    await held(pool, 8, Resource(f"{resource}:other"))
    async with fenced(pool).acquire() as conn:
        with under(lease), pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease):
                with under(unaware(other)):
                    await conn.execute(INSERT, resource)
    assert await noted(pool, resource) == 0


@pytest.mark.parametrize("how", ["row by row", "by hand"])
async def test_a_cursor_opens_only_under_a_lease_that_was_presented(
    pool: asyncpg.Pool[Any], resource: Resource, how: str
) -> None:
    lease = unaware(await held(pool, 7, resource))
    await held(pool, 8, resource)
    async with fenced(pool).acquire() as conn:
        with pytest.raises(StaleToken):
            async with conn.transaction():  # which began under no lease
                with under(lease):
                    writes = conn.cursor(f"{INSERT} returning text", resource)
                    if how == "by hand":
                        await writes
                    async for _ in writes:
                        pytest.fail("it was opened")
    assert await noted(pool, resource) == 0


async def test_in_a_body_a_connection_that_cannot_be_given_back_raises_nothing(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a write that was answered its error would look like the write's, which would be made twice."""
    released = asyncpg.Pool.release

    async def fails(self: asyncpg.Pool[Any], connection: Any, *, timeout: float | None = None) -> None:
        await released(self, connection, timeout=timeout)
        raise ConnectionResetError

    monkeypatch.setattr(asyncpg.Pool, "release", fails)
    lease = await held(pool, 7, resource)
    made = fenced(pool)
    with under(lease):
        conn = await made.acquire()
        await conn.execute(INSERT, resource)
        await made.release(conn)
    conn = await made.acquire()
    with pytest.raises(ConnectionResetError):
        await made.release(conn)
    assert made.get_idle_size() == made.get_size()


async def test_a_connection_that_was_lent_for_a_body_is_as_it_was_after_it(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn:
        async with fenced_transaction(conn, lease):
            assert type(bare(conn)) is not asyncpg.Connection
        assert type(bare(conn)) is asyncpg.Connection


# --- a write that leaves in one message with its check ---


async def test_a_lease_that_ends_while_the_write_is_prepared_writes_nothing(
    pool: asyncpg.Pool[Any], resource: Resource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await held(pool, 7, resource)
    leaves = PipelinedCheck.__call__

    async def prepared(self: PipelinedCheck, stmt: Any, timeout_s: float | None) -> Any:
        lease.end(LossReason.REFUSED)
        return await leaves(self, stmt, timeout_s)

    monkeypatch.setattr(PipelinedCheck, "__call__", prepared)
    with pytest.raises(LeaseLost):
        await fenced_execute(pool, INSERT, resource, lease=lease, closes=True)
    assert await noted(pool, resource) == 0


async def test_a_write_that_left_without_its_check_is_told_as_one(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn:
        con = bare(conn)
        with pytest.raises(ConfigurationError, match="without the check"):
            await run_pipelined(con, (lease,), Limits(), lambda _: con.execute(INSERT, resource))


@pytest.mark.parametrize(
    ("left", "recorded", "error", "told"),
    [
        (False, False, ConnectionResetError(), ConnectionResetError),
        (True, False, ConnectionResetError(), CommitUnknown),
        (True, False, TimeoutError(), TimeoutError),
        (True, True, TimeoutError(), CommitUnknown),
        (True, False, asyncpg.UniqueViolationError("no"), asyncpg.UniqueViolationError),
        (True, False, asyncpg.SerializationError("lockguard.check overtaken"), NotPipelined),
        (True, False, asyncpg.SerializationError("the caller's own"), asyncpg.SerializationError),
    ],
)
async def test_a_write_that_failed_is_in_doubt_only_if_it_may_have_been_made(
    pool: asyncpg.Pool[Any],
    resource: Resource,
    error: Exception,
    told: type[Exception],
    *,
    left: bool,
    recorded: bool,
) -> None:
    lease = await held(pool, 7, resource)
    async with pool.acquire() as conn:
        con = bare(conn)

        async def send(check: PipelinedCheck) -> None:
            check.left = left
            if recorded:
                await con.execute(check._presentation.sql())
            raise error

        with pytest.raises(told) as caught:
            await run_pipelined(con, (lease,), Limits(), send)
    if isinstance(caught.value, CommitUnknown):
        assert await resolve(pool, caught.value) is recorded
