"""The fence under the whole lock: what Redis loses, Postgres remembers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis.asyncio as aioredis

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Resource, Token
from lockguard.errors import LeaseLost, LossReason, StaleToken
from lockguard.ports import AcquireRequest
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install, resolve, unfenced
from lockguard_asyncpg._errors import CommitUnknown
from lockguard_lab.servers import RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APT = "binance:APTUSDT"
INSERT = "insert into note values ($1)"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (text text)")
        yield pool


def guard(url: str, pool: asyncpg.Pool[Any], **options: Any) -> LockGuard:
    return LockGuard.from_url(url, fence=PostgresFence(pool), **options)


async def lose_the_data(url: str) -> None:
    """All keys go, the token floors too."""
    async with aioredis.Redis.from_url(url) as client:
        await client.flushall()


async def fence_ahead(pool: asyncpg.Pool[Any]) -> int:
    """Leave the fence a day ahead of anything that Redis will hand out."""
    return int(
        await pool.fetchval(
            "select token from lockguard.seal($1, (extract(epoch from now()) * 1e6)::bigint + 86400000000,"
            " gen_random_uuid(), 'yesterday''s host', 'open', 1000)",
            APT,
        )
    )


async def test_tokens_increase_and_nobody_is_refused_across_a_flush(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    tokens = []
    async with guard(redis_url, pool) as locks:
        for _ in range(5):
            async with locks.hold(APT) as lease:
                tokens.append(lease.token)
                await pool.execute(INSERT, str(lease.token))
            await lose_the_data(redis_url)
    assert tokens == sorted(set(tokens))


async def test_the_rightful_holder_is_not_refused_when_redis_went_back_in_time(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    ahead = await fence_ahead(pool)
    async with guard(redis_url, pool) as locks:
        async with locks.hold(APT) as first:
            await pool.execute(INSERT, "x")
        async with locks.hold(APT) as second:
            await pool.execute(INSERT, "y")
    assert ahead < first.token < second.token


async def test_tokens_increase_when_redis_restarts_empty(pool: asyncpg.Pool[Any]) -> None:
    with RedisServer() as server:
        await fence_ahead(pool)
        async with guard(server.url, pool) as locks, locks.hold(APT) as first:
            pass
        server.restart(keep_data=False)
        async with guard(server.url, pool) as locks, locks.hold(APT) as second:
            await pool.execute(INSERT, "x")
    assert first.token < second.token


async def test_two_holders_after_a_flush_only_the_second_writes(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    """FLUSHALL under a holder: until it notices, Redis has two; Postgres has one."""
    first_holds, second_done = asyncio.Event(), asyncio.Event()
    outcome: list[LossReason] = []

    async def first() -> None:
        async with guard(redis_url, pool, ttl=timedelta(seconds=30)) as locks:
            with pytest.raises(LeaseLost) as caught:
                async with locks.hold(APT):
                    first_holds.set()
                    await second_done.wait()
                    await pool.execute(INSERT, "first")
            outcome.append(caught.value.reason)

    async def second() -> None:
        await first_holds.wait()
        await lose_the_data(redis_url)
        async with guard(redis_url, pool) as locks, locks.hold(APT):
            await pool.execute(INSERT, "second")
        second_done.set()

    await asyncio.gather(first(), second())
    # Whichever came first: the refusal of the write, or the next renewal.
    assert set(outcome) <= {LossReason.FENCED, LossReason.REFUSED}
    assert [r["text"] for r in await pool.fetch("select text from note")] == ["second"]


async def test_nothing_is_written_after_the_body(redis_url: str, pool: asyncpg.Pool[Any]) -> None:
    async with guard(redis_url, pool) as locks:
        async with locks.hold(APT) as lease:
            pass
        stale = lease.grant
    row = await pool.fetchrow("select token, is_open, holder from lockguard.status($1)", APT)
    assert row is not None
    assert (row["token"], row["is_open"], row["holder"]) == (stale.token, False, stale.holder)


async def test_a_broken_holder_cannot_write(redis_url: str, pool: asyncpg.Pool[Any]) -> None:
    async with (
        guard(redis_url, pool, ttl=timedelta(seconds=2)) as holder,
        guard(redis_url, pool) as operator,
    ):
        with pytest.raises(LeaseLost):
            async with holder.hold(APT) as lease:
                await operator.break_(APT, reason="stuck")
                with pytest.raises((StaleToken, LeaseLost)):
                    await fenced_execute(pool, INSERT, "late", lease=lease)
                await asyncio.Event().wait()
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_nested_lease_is_sealed_outside_of_the_outer_ones_fence(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with guard(redis_url, pool) as locks, locks.hold("a"), locks.hold("b"):
        await pool.execute(INSERT, "both")
        with unfenced():
            open_ones = await pool.fetch("select resource from lockguard.status() where is_open")
    assert [r["resource"] for r in open_ones] == ["a", "b"]


async def test_a_holder_frozen_inside_a_transaction_is_taken_over_soon(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    """Its process stops between two statements: nothing renews, nothing commits, nothing rolls back."""
    ttl = timedelta(seconds=1)
    frozen = guard(redis_url, pool, ttl=ttl)
    hold = frozen.hold(APT)
    lease = await hold.__aenter__()
    conn = await pool.acquire()
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute(INSERT, "frozen")
    # As SIGSTOP would: its renewals end and nothing of it runs any more.
    frozen._core.keeper.drop(lease)
    began = asyncio.get_running_loop().time()

    async def successor() -> None:
        async with guard(redis_url, pool, ttl=ttl) as locks, locks.hold(APT, wait=timedelta(seconds=10)):
            await pool.execute(INSERT, "successor")

    import contextvars

    await asyncio.create_task(successor(), context=contextvars.Context())
    assert asyncio.get_running_loop().time() - began < ttl.total_seconds() + 1
    with unfenced():
        assert [r["text"] for r in await pool.fetch("select text from note")] == ["successor"]
        lost = CommitUnknown(resource=APT, token=lease.token, sequence=1)
        assert await resolve(pool, lost) is False
    await pool.release(conn)
    with pytest.raises(LeaseLost):
        await hold.__aexit__(None, None, None)
    await frozen.aclose()


@pytest.mark.parametrize(
    "floor", ["9223372036854775000", "9e15", "1e400", "-1e400", "inf", "nan", "-5", "1.5", "x"]
)
async def test_no_value_in_redis_leaves_a_resource_without_a_higher_token(
    redis_url: str, pool: asyncpg.Pool[Any], floor: str
) -> None:
    """Whoever can write lockguard's keys could brick a resource for good: Postgres never goes back."""
    async with aioredis.Redis.from_url(redis_url, decode_responses=True) as client:
        await client.set(f"lockguard:{{{APT}}}:token", floor)
        tokens = []
        async with guard(redis_url, pool) as locks:
            for _ in range(2):
                async with locks.hold(APT) as lease:
                    await pool.execute(INSERT, "x")
                    tokens.append(lease.token)
            await locks.break_(APT, reason="test")
            assert int(await client.get(f"lockguard:{{{APT}}}:token")) > tokens[1]
    now_us = SYSTEM_CLOCK.wall() * 1e6
    assert now_us - 60e6 < tokens[0] < tokens[1] <= now_us + 1e6


async def test_a_token_far_beyond_now_is_settled_nowhere(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as locks, locks.hold(APT) as lease:
        request = AcquireRequest(Resource(APT), lease.grant.id, "", "", 10_000)
        assert not await locks._core.locks.settle(request, Token(2**62))
        assert await locks._core.locks.settle(request, Token(lease.token + 1))


# Asking both before an order


async def test_a_lease_that_the_fence_would_refuse_is_not_confirmed_and_ends(
    redis_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with guard(redis_url, pool) as one:
        with pytest.raises(LeaseLost) as caught:
            async with one.hold(APT) as lease:
                await lease.confirm()
                # As an operator does who breaks it in Postgres only: Redis knows of nothing.
                await pool.execute("select lockguard.break_($1, 'by hand', 1000)", APT)
                lease.ensure(timedelta(seconds=2))
                await lease.confirm()
                raise AssertionError("confirmed")
        assert caught.value.reason is LossReason.FENCED


async def test_a_lease_that_the_fence_does_not_answer_for_is_not_confirmed_and_goes_on(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with create_pool(database_url, min_size=0, max_size=1) as small, guard(redis_url, small) as one:
        async with one.hold(APT) as lease:
            async with small.acquire():  # and the fence has no other connection
                with pytest.raises(LeaseLost, match="did not confirm") as caught:
                    await lease.confirm(within=timedelta(milliseconds=200))
                assert caught.value.reason is LossReason.UNCONFIRMED
            await lease.confirm()
