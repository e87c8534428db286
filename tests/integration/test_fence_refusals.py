"""A refusal of a lease's own pair ends that lease at once, by whatever way of writing, swallowed or not."""

from __future__ import annotations

from contextlib import suppress
from io import BytesIO
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, LeaseState, Resource, Token, new_grant_id
from lockguard.errors import LeaseLost, LeaseNotHeld, LossReason, StaleToken
from lockguard_asyncpg import (
    CommitUnknown,
    create_pool,
    fenced_execute,
    fenced_fetch,
    fenced_transaction,
    install,
    protect,
    resolve,
    unfenced,
)
from tests.integration.fence_leases import APT, held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

INSERT = "insert into note values (1, 'x')"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int, text text)")
        yield pool


async def _connection(pool: Any) -> None:
    async with pool.acquire() as conn:
        await conn.execute(INSERT)


async def _prepared(pool: Any) -> None:
    async with pool.acquire() as conn:
        await (await conn.prepare(INSERT)).fetch()


async def _copy(pool: Any) -> None:
    async with pool.acquire() as conn:
        await conn.copy_to_table("note", source=BytesIO(b"1\tx\n"), format="text")


async def _own_transaction(pool: Any) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(INSERT)


async def _by_text(pool: Any) -> None:
    async with pool.acquire() as conn:
        await conn.execute("begin")
        try:
            await conn.execute(INSERT)
        finally:
            await conn.execute("rollback")


async def _cursor(pool: Any) -> None:
    async with pool.acquire() as conn:
        with unfenced():
            transaction = conn.transaction()
            await transaction.start()
        try:
            await conn.cursor(INSERT + " returning id")
        finally:
            await transaction.rollback()


async def _fenced_transaction(pool: Any) -> None:
    async with fenced_transaction(pool) as conn:
        await conn.execute(INSERT)


async def _inside_a_plain_one(pool: Any) -> None:
    async with pool.acquire() as conn:
        with unfenced():
            transaction = conn.transaction()
            await transaction.start()
        try:
            async with fenced_transaction(conn):
                await conn.execute(INSERT)
        finally:
            await transaction.rollback()


WAYS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "pool": lambda p: p.execute(INSERT),
    "pool, fetch": lambda p: p.fetch(INSERT + " returning id"),
    "connection": _connection,
    "executemany": lambda p: p.executemany("insert into note values ($1, 'x')", [(1,), (2,)]),
    "prepared": _prepared,
    "COPY": _copy,
    "transaction": _own_transaction,
    "transaction by text": _by_text,
    "cursor": _cursor,
    "native": lambda p: fenced_execute(p, INSERT),
    "native, rows": lambda p: fenced_fetch(p, INSERT + " returning id"),
    "fenced transaction": _fenced_transaction,
    "fenced transaction in a plain one": _inside_a_plain_one,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_refused_write_ends_its_lease_at_once_though_the_error_is_swallowed(
    pool: asyncpg.Pool[Any], way: Callable[[Any], Awaitable[Any]]
) -> None:
    lease, other = await held(pool, 7), await held(pool, 7, "other")
    await held(pool, 8)
    with under(other, lease):
        with suppress(StaleToken, LeaseLost):
            await way(pool)
        assert lease.state is LeaseState.LOST
        assert lease.loss is LossReason.FENCED
        with pytest.raises(LeaseLost):
            lease.ensure()
    assert other.state is LeaseState.HELD
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_deferred_triggers_refusal_at_commit_ends_the_lease(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool, 7)
    await pool.execute(
        f"""
        create function late() returns trigger language plpgsql as $$
        begin perform lockguard.check('{APT}', 7, '{new_grant_id()}'); return null; end $$;
        create constraint trigger late after insert on note deferrable initially deferred
          for each row execute function late();
        """
    )
    with under(lease):
        with pytest.raises(StaleToken):
            async with fenced_transaction(pool) as conn:
                await conn.execute(INSERT)
        # Another grant's pair was presented there: no word about this lease.
        assert lease.state is LeaseState.HELD
        refuse = f"lockguard.refuse('{APT}', 7, '{lease.grant.id}', 'superseded', null)"
        await pool.execute(
            "create or replace function late() returns trigger language plpgsql as"
            f" $$ begin perform {refuse}; return null; end $$"
        )
        with pytest.raises(StaleToken):
            await pool.execute(INSERT)
        assert lease.loss is LossReason.FENCED


async def test_the_refusal_of_another_resource_or_of_a_lost_reply_ends_nothing(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool, 7)
    async with pool.acquire() as conn:
        await protect(conn, "note", resource="{text}")
    with under(lease):
        with pytest.raises(StaleToken) as caught:
            await pool.execute(INSERT)
        assert (caught.value.resource, caught.value.presented) == ("x", None)
        assert lease.state is LeaseState.HELD
        with unfenced(), pytest.raises(StaleToken):
            await pool.execute("insert into note values (1, $1)", APT)
        assert lease.state is LeaseState.HELD
        transaction = fenced_transaction(pool)
        unknown = CommitUnknown(resource=APT, token=7, sequence=transaction.sequence)
        assert await resolve(pool, unknown) is False
        with pytest.raises(StaleToken, match="already declared lost"):
            async with transaction:
                pass
        assert lease.state is LeaseState.HELD


async def test_a_guard_without_a_fence_is_told_so(pool: asyncpg.Pool[Any]) -> None:
    grant = Grant(Resource("unsealed"), new_grant_id(), Token(7), "host/1", "open", 10_000)
    with under(Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)):
        with pytest.raises(StaleToken, match=r"never sealed in this database: the guard .* has no fence="):
            await pool.execute(INSERT)


async def test_a_connection_that_breaks_under_a_lease_that_ended_is_a_lost_lease(
    pool: asyncpg.Pool[Any],
) -> None:
    """As after a stalled event loop: the server has ended what lay idle, and the lease is over."""
    for write in (_own_transaction_then_stall, _fenced_transaction_then_stall):
        lease = await held(pool, int(SYSTEM_CLOCK.wall() * 1e6))
        with under(lease), pytest.raises(LeaseLost):
            await write(pool, lease)
    with pytest.raises(LeaseNotHeld):
        lease.mark_released()
        lease.ensure()


async def _end_of(conn: Any, pool: Any, lease: Lease) -> None:
    with unfenced():
        pid = await conn.fetchval("select pg_backend_pid()")
        await pool.fetchval("select pg_terminate_backend($1, 5000)", pid)
    lease.mark_lost(LossReason.EXPIRED)


async def _own_transaction_then_stall(pool: Any, lease: Lease) -> None:
    async with pool.acquire() as conn, conn.transaction():
        await conn.execute(INSERT)
        await _end_of(conn, pool, lease)
        await conn.execute(INSERT)


async def _fenced_transaction_then_stall(pool: Any, lease: Lease) -> None:
    async with fenced_transaction(pool) as conn:
        await conn.execute(INSERT)
        await _end_of(conn, pool, lease)
        await conn.execute(INSERT)
