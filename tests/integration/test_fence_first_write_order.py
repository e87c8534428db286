"""A first write that carries its seal, beside successors, breaks and lost replies; and a last one."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from lockguard._context import detached
from lockguard._guard import LockGuard
from lockguard.errors import ConfigurationError, FenceUnavailable, LeaseLost, StaleToken
from lockguard.ports import Sealed
from lockguard_asyncpg import (
    CommitUnknown,
    PostgresFence,
    fenced_execute,
    fenced_fetchval,
    fenced_transaction,
    protect,
    resolve,
)
from lockguard_lab.servers import DROP, FaultProxy
from tests.integration.fence_leases import APT, SOON, blocked, lease_of
from tests.integration.test_fence_first_write import (
    COUNT,
    INSERT,
    each_way,
    fence,
    grant_of,
    guard,
    pool,
    row,
    sealed,
    unsealed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["fence", "guard", "pool"]


# Who came first


@each_way
async def test_a_first_write_whose_successor_has_sealed_is_refused_and_the_next_lease_seals_at_once(
    pool: asyncpg.Pool[Any], fence: PostgresFence, write: Callable[..., Awaitable[None]]
) -> None:
    lease = await unsealed(fence, 7)
    await sealed(pool, 8)
    with pytest.raises(StaleToken) as said:
        await write(pool, lease)
    assert (said.value.presented, said.value.current) == (7, 8)
    assert lease.loss is not None
    assert await row(pool) == (8, True)
    assert await pool.fetchval(COUNT) == 0
    low = grant_of(5)
    assert await fence.seal(low, within=SOON) != Sealed(low.token)  # outrun, so that Redis is asked


async def test_a_lease_whose_token_is_too_low_is_refused_once_and_then_given_a_higher_one(
    pool: asyncpg.Pool[Any], guard: LockGuard
) -> None:
    """As after a clock that went back: without the second step nobody could write until it is right again."""
    await sealed(pool, int(time.time() * 1e6) + 10**12)
    with pytest.raises((StaleToken, LeaseLost)):
        async with guard.hold(APT):
            await fenced_execute(pool, INSERT, 1)
    async with guard.hold(APT):
        await fenced_execute(pool, INSERT, 1)
    assert await pool.fetchval(COUNT) == 1


@each_way
async def test_a_break_before_the_first_write_shuts_it_out(
    pool: asyncpg.Pool[Any], fence: PostgresFence, write: Callable[..., Awaitable[None]]
) -> None:
    lease = await unsealed(fence)
    await PostgresFence(pool).break_(APT, reason="test", within=SOON)
    with pytest.raises(StaleToken):
        await write(pool, lease)
    assert await pool.fetchval(COUNT) == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("state", ["held", "expired"])
async def test_a_break_shuts_out_who_has_not_sealed_though_redis_is_ahead_of_postgres(
    pool: asyncpg.Pool[Any],
    guard: LockGuard,
    redis_server: RedisServer,
    redis_url: str,
    database_url: str,
    state: str,
) -> None:
    """By an hour: no time of Postgres's is above the token of a holder that is not in the fence yet."""
    ahead = int((time.time() + 3600) * 1e6)
    redis_server.command("SET", f"lockguard:{{{APT}}}:token", ahead)
    if state == "expired":
        lease = await unsealed(PostgresFence(pool, seal_with_first_write=True), ahead)
        broken = await guard.break_(APT, reason="test")
        assert broken.token >= ahead
        with pytest.raises(StaleToken):
            await fenced_execute(pool, INSERT, 1, lease=lease)
    else:
        with pytest.raises(LeaseLost):
            async with guard.hold(APT) as held:
                lease = lease_of(held.grant)
                await break_from_elsewhere(redis_url, database_url)
                with pytest.raises(StaleToken):
                    await fenced_execute(pool, INSERT, 1, lease=lease)
        with pytest.raises(StaleToken):  # also where a slow command lets a renewal cut the body before that
            await fenced_execute(pool, INSERT, 1, lease=lease_of(lease.grant))
    async with guard.hold(APT):
        await fenced_execute(pool, INSERT, 3)
    assert await pool.fetchval(COUNT) == 1


async def test_a_break_of_a_holder_of_this_process_shuts_out_an_older_one_that_has_not_sealed(
    pool: asyncpg.Pool[Any], guard: LockGuard, redis_server: RedisServer
) -> None:
    """The thrown-out grant never reached the database, and its token is what the break has to tell there."""
    ahead = int((time.time() + 3600) * 1e6)
    redis_server.command("SET", f"lockguard:{{{APT}}}:token", ahead)
    older = await unsealed(PostgresFence(pool, seal_with_first_write=True), ahead)
    with pytest.raises(LeaseLost):
        async with guard.hold(APT):
            with detached():
                breaking = asyncio.create_task(guard.break_(APT, reason="test"))
            try:
                await asyncio.Event().wait()  # until the lease ends
            finally:
                await asyncio.wait([breaking])  # the body takes its time to end
    assert (await breaking).token >= ahead
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, 1, lease=older)
    assert await pool.fetchval(COUNT) == 0


async def break_from_elsewhere(redis_url: str, database_url: str) -> None:
    """This process hears nothing of it until it renews."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", "break", APT, "--reason", "test", "--yes"),
        env={**os.environ, "LOCKGUARD_REDIS_URL": redis_url, "LOCKGUARD_DATABASE_URL": database_url},
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        await process.wait()
    finally:
        assert await process.wait() == 0  # also where the body is cut before the command has ended


@each_way
async def test_a_lease_that_was_given_back_unsealed_writes_nothing(
    pool: asyncpg.Pool[Any], fence: PostgresFence, write: Callable[..., Awaitable[None]]
) -> None:
    lease = await unsealed(fence)
    await fence.close(lease.grant, within=SOON)
    with pytest.raises(StaleToken):
        await write(pool, lease_of(lease.grant))
    assert await pool.fetchval(COUNT) == 0


async def test_a_first_write_that_failed_leaves_nothing_and_may_be_made_again(
    pool: asyncpg.Pool[Any], fence: PostgresFence
) -> None:
    await pool.execute(INSERT, 1)
    lease = await unsealed(fence)
    with pytest.raises(asyncpg.UniqueViolationError):
        await fenced_execute(pool, INSERT, 1, lease=lease)
    assert await row(pool) is None
    await fenced_execute(pool, INSERT, 2, lease=lease)
    assert await row(pool) == (7, True)
    await fence.close(lease.grant, within=SOON)
    assert await row(pool) == (7, False)


async def test_a_first_write_that_failed_is_shut_out_by_the_close(
    pool: asyncpg.Pool[Any], fence: PostgresFence
) -> None:
    """It may be on its way still, so giving the lease back has to say so."""
    await pool.execute(INSERT, 1)
    lease = await unsealed(fence)
    with pytest.raises(asyncpg.UniqueViolationError):
        await fenced_execute(pool, INSERT, 1, lease=lease)
    await fence.close(lease.grant, within=SOON)
    assert await row(pool) == (7, False)
    late = f"select lockguard.check_first('{APT}', 7, '{UUID(lease.grant.id)}', 'h', 'o', 99)"
    with pytest.raises(asyncpg.PostgresError) as said:
        await pool.execute(late)
    assert said.value.sqlstate == "LG006"


async def test_who_asks_whether_its_lease_is_in_force_has_it_sealed(
    pool: asyncpg.Pool[Any], guard: LockGuard, fence: PostgresFence
) -> None:
    async with guard.hold(APT) as lease:
        await lease.confirm()
        assert await row(pool) == (lease.token, True)
        await fenced_execute(pool, INSERT, 1)
    stale = await unsealed(fence, 8)
    assert await fence.confirm(stale.grant, within=SOON) is False


async def test_a_fence_that_answers_nothing_fails_the_first_write_and_not_the_hold(
    pool: asyncpg.Pool[Any], redis_url: str, database_url: str, postgres_server: PostgresServer
) -> None:
    async with (
        FaultProxy(postgres_server.port) as proxy,
        asyncpg.create_pool(proxy.url_for(database_url), min_size=1, max_size=2) as through,
        LockGuard.from_url(
            redis_url,
            fence=PostgresFence(through, seal_with_first_write=True),
            fence_within=timedelta(milliseconds=300),
        ) as guard,
    ):
        async with guard.hold(APT):
            pass
        proxy.to_server.set(DROP)
        async with guard.hold(APT):
            with pytest.raises(FenceUnavailable):
                async with fenced_transaction(pool):
                    raise AssertionError("unreachable")
        through.terminate()
    assert await pool.fetchval(COUNT) == 0


# A reply that was lost


async def _lost(proxy: FaultProxy, work: Awaitable[Any]) -> CommitUnknown:
    before = proxy.to_client.received_bytes
    proxy.to_client.set(DROP)
    task = asyncio.ensure_future(work)
    await asyncio.wait_for(proxy.to_client.wait_received(before + 1), 5)
    proxy.reset()
    with pytest.raises(CommitUnknown) as said:
        await task
    return said.value


@pytest.mark.parametrize("closes", [False, True])
async def test_a_lost_reply_to_a_first_write_is_found_to_have_committed(
    pool: asyncpg.Pool[Any],
    fence: PostgresFence,
    database_url: str,
    postgres_server: PostgresServer,
    closes: bool,
) -> None:
    lease = await unsealed(fence)
    async with FaultProxy(postgres_server.port) as proxy:
        conn = await asyncpg.connect(proxy.url_for(database_url), timeout=5)
        await conn.fetch(INSERT, 100)  # prepared: the reply that is lost is that to the write
        error = await _lost(proxy, fenced_execute(conn, INSERT, 1, lease=lease, closes=closes))
        conn.terminate()
    assert error.first
    assert await resolve(pool, error) is True
    assert await pool.fetchval("select count(*) from note where id = 1") == 1
    await fence.close(lease.grant, within=SOON)
    assert await row(pool) == (7, False)


async def test_a_first_write_declared_lost_never_commits(
    pool: asyncpg.Pool[Any], fence: PostgresFence
) -> None:
    lease = await unsealed(fence)
    for number in ((1 << 62) + 1025, (1 << 62) + 5 * 1024 + 7):
        error = CommitUnknown(resource=APT, token=7, sequence=number, first=True)
        assert await resolve(pool, error) is False
        assert await resolve(pool, error) is False
        late = f"select lockguard.check_first('{APT}', 7, '{UUID(lease.grant.id)}', 'h', 'o', {number})"
        with pytest.raises(StaleToken, match="already declared lost"):
            await pool.execute(late)
    assert await row(pool) is None
    await fenced_execute(pool, INSERT, 1, lease=lease)
    assert await resolve(pool, error) is False


async def test_asking_waits_for_a_first_write_that_is_under_way(
    pool: asyncpg.Pool[Any], fence: PostgresFence
) -> None:
    lease = await unsealed(fence)
    number = (1 << 62) + 1025
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute(
            f"select lockguard.check_first('{APT}', 7, '{UUID(lease.grant.id)}', 'h', 'o', {number})"
        )
        error = CommitUnknown(resource=APT, token=7, sequence=number, first=True)
        asking = asyncio.create_task(resolve(pool, error))
        await blocked(pool)
        await transaction.commit()
        assert await asking is True
    assert await resolve(pool, error) is True


# The last write


@pytest.mark.parametrize("table", ["plain", "protected", "protected, partitioned"])
@pytest.mark.parametrize("first", [False, True])
async def test_a_closing_write_commits_with_its_close_and_nothing_is_accepted_after_it(
    pool: asyncpg.Pool[Any], fence: PostgresFence, table: str, first: bool
) -> None:
    lease = await unsealed(fence) if first else await sealed(pool, 7)
    async with pool.acquire() as conn:
        await conn.execute(
            "create table trade (id int, resource text) partition by list (id);"
            "create table trade_1 partition of trade for values in (1)"
            if "partitioned" in table
            else "create table trade (id int, resource text)"
        )
        if "protected" in table:
            await protect(conn, "trade", resource="{resource}")
    write = "insert into trade values ($1, $2) returning id"
    assert await fenced_fetchval(pool, write, 1, APT, lease=lease, closes=True) == 1
    assert await row(pool) == (7, False)
    with pytest.raises(StaleToken, match="closed"):
        await fenced_execute(pool, "insert into trade values (1, $1)", APT, lease=lease_of(lease.grant))
    await fence.close(lease.grant, within=SOON)
    await sealed(pool, 8)


async def test_a_closing_write_that_fails_leaves_the_lease_open(pool: asyncpg.Pool[Any]) -> None:
    lease = await sealed(pool, 7)
    await pool.execute(INSERT, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        await fenced_execute(pool, INSERT, 1, lease=lease, closes=True)
    assert await row(pool) == (7, True)
    await fenced_execute(pool, INSERT, 2, lease=lease, closes=True)
    assert await row(pool) == (7, False)


async def test_closing_writes_at_once_wait_for_each_other_and_all_but_one_are_refused(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await sealed(pool, 7)
    async with fenced_transaction(pool, lease):
        writing = [
            asyncio.create_task(fenced_execute(pool, INSERT, n, lease=lease_of(lease.grant), closes=True))
            for n in range(3)
        ]
        await blocked(pool, count=3)
    answers = await asyncio.gather(*writing, return_exceptions=True)
    assert sorted(type(answer).__name__ for answer in answers) == ["NoneType", "StaleToken", "StaleToken"]
    assert await pool.fetchval(COUNT) == 1


async def test_a_closing_write_inside_a_transaction_is_refused(pool: asyncpg.Pool[Any]) -> None:
    lease = await sealed(pool, 7)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(ConfigurationError, match="outermost"):
            await fenced_execute(conn, INSERT, 1, lease=lease, closes=True)


async def test_the_same_from_sql_alone(pool: asyncpg.Pool[Any]) -> None:
    lease = await sealed(pool, 7)
    last = f"select lockguard.check_last('{APT}', 7, '{UUID(lease.grant.id)}')"
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute(last)
            await conn.execute(INSERT, 1)
        assert await row(pool) == (7, False)
        with pytest.raises(StaleToken, match="closed"):
            await conn.execute(last)


async def test_what_is_no_yes_or_no_is_refused(pool: asyncpg.Pool[Any]) -> None:
    with pytest.raises(ConfigurationError, match="seal_with_first_write= is"):
        PostgresFence(pool, seal_with_first_write=1)  # type: ignore[arg-type]
