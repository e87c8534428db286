"""Each end of a hold tells its facts once, where it happens."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import Context
from datetime import timedelta

import asyncpg
import pytest

from lockguard import LeaseLost, LockGuard, LossReason, QuorumUnavailable, ResourceBusy, StaleToken
from lockguard.events import (
    Acquired,
    Lost,
    NotAcquired,
    NotAcquiredReason,
    Released,
    StaleWrite,
    Unwound,
    Waited,
)
from lockguard.observe import LogObserver
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.servers import RedisServer

NAME = "binance:APTUSDT"
S = timedelta(seconds=1)
MS = timedelta(milliseconds=1)


class Seen:
    def __init__(self):
        self.events = []

    def on(self, event):
        self.events.append(event)

    def of(self, *kinds):
        return [event for event in self.events if isinstance(event, kinds)]


@pytest.fixture
def seen():
    return Seen()


@pytest.fixture
async def guard(redis_url, seen):
    async with LockGuard.from_url(redis_url, observers=[seen]) as made:
        yield made


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_release_tells_how_much_of_the_lease_was_left_and_how_long_it_took(guard, seen):
    async with guard.hold(NAME, ttl=7 * S) as lease:
        left = lease.remaining.total_seconds() * 1000
    (released,) = seen.of(Released)
    assert left - 1_000 < released.margin_ms <= left
    assert 0 < released.released_ms <= released.held_ms


async def test_a_lease_without_a_fence_has_no_time_of_a_seal_and_one_with_a_fence_has(
    guard, seen, redis_url, database_url
):
    async with guard.hold(NAME):
        pass
    async with asyncpg.create_pool(database_url) as pool:
        async with pool.acquire() as connection:
            await install(connection)
        async with (
            LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[seen]) as fenced,
            fenced.hold(NAME),
        ):
            pass
    without, fenced = seen.of(Acquired)
    assert without.sealed_ms == 0
    assert 0 < fenced.sealed_ms < fenced.waited_ms


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"wait": 20 * MS}, NotAcquiredReason.GAVE_UP),
        ({"on_busy": "raise"}, NotAcquiredReason.SKIPPED),
    ],
)
async def test_a_caller_that_got_no_lease_is_told_once_with_its_reason(guard, seen, options, reason):
    async def other():
        async with guard.hold(NAME, **options):
            raise AssertionError("unreachable")

    async with guard.hold(NAME):
        task = asyncio.create_task(other(), context=Context())
        with pytest.raises(ResourceBusy):
            await task
    (told,) = seen.of(NotAcquired)
    assert (told.resource, told.reason) == (NAME, reason)
    assert told.waited_ms >= (20 if options.get("wait") else 0)
    assert {event.grant for event in seen.of(Waited)} == {told.grant}


async def test_a_skipped_call_of_the_decorator_is_told_as_skipped(guard, seen):
    @guard.exclusive("{name}", on_busy="skip")
    async def sync(name):
        return True

    async with guard.hold(NAME):
        task = asyncio.create_task(sync(NAME), context=Context())
        assert not await task
    assert [event.reason for event in seen.of(NotAcquired)] == [NotAcquiredReason.SKIPPED]


async def test_a_waiter_is_told_once_that_the_servers_cannot_be_reached(seen, caplog):
    def wait_for(guard, name):
        return asyncio.create_task(guard.hold(name, wait=60 * S).__aenter__(), context=Context())

    with RedisServer(persistence="aof") as server:
        options = {"ttl": 30 * S, "observers": [seen, LogObserver()]}
        async with (
            LockGuard.from_url(server.url) as other,
            LockGuard.from_url(server.url, **options) as guard,
        ):
            holder = other.hold(NAME, ttl=30 * S)
            await holder.__aenter__()
            in_line = wait_for(guard, NAME)
            await until(lambda: seen.of(Waited))
            server.kill()
            await until(lambda: len(seen.of(Waited)) == 2)
            late = wait_for(guard, "binance:LATE")
            await until(lambda: len(seen.of(Waited)) == 3)
            server.restart(keep_data=True)
            await late
            with suppress(LeaseLost):  # what a killed server wrote last may be gone
                await holder.__aexit__(None, None, None)
            await in_line
    first, again, new = seen.of(Waited)
    assert (first.cause, first.grant, first.ahead) == ("", again.grant, 0)
    assert all(str(server.port) in event.cause for event in (again, new))
    told = [record.getMessage() for record in caplog.records if "cannot be reached" in record.getMessage()]
    assert [line.split(": its")[0] for line in told] == [f"waiting for {NAME}", "waiting for binance:LATE"]


async def test_a_cancelled_waiter_is_told_with_its_place(guard, seen, redis_url):
    async with LockGuard.from_url(redis_url) as other, other.hold(NAME):
        waiters = []
        for number in range(2):
            waiters.append(asyncio.create_task(guard.hold(NAME).__aenter__()))
            await until(lambda number=number: len(seen.of(Waited)) == number + 1)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
    assert [event.ahead for event in seen.of(Waited)] == [0, 1]
    assert [event.reason for event in seen.of(NotAcquired)] == [NotAcquiredReason.CANCELLED] * 2
    assert {event.grant for event in seen.of(NotAcquired)} == {event.grant for event in seen.of(Waited)}


async def test_a_server_that_is_not_there_is_told_as_no_quorum(seen):
    async with LockGuard.from_url("redis://127.0.0.1:1", observers=[seen]) as guard:
        with pytest.raises(QuorumUnavailable):
            await guard.hold(NAME, wait=10 * MS).__aenter__()
    assert [event.reason for event in seen.of(NotAcquired)] == [NotAcquiredReason.NO_QUORUM]


async def test_the_end_of_a_lost_body_is_told_after_the_loss_in_the_task_that_held_it(seen):
    tasks = []

    class Tasks:
        def on(self, event):
            if isinstance(event, Unwound):
                tasks.append(asyncio.current_task())

    with RedisServer() as server:
        async with LockGuard.from_url(server.url, ttl=300 * MS, observers=[seen, Tasks()]) as guard:
            with pytest.raises(LeaseLost):
                async with guard.hold(NAME):
                    server.pause()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        server.resume()
    assert [type(event) for event in seen.of(Lost, Unwound, Released)] == [Lost, Unwound]
    (unwound,) = seen.of(Unwound)
    assert unwound.reason is LossReason.EXPIRED
    assert unwound.held_ms >= 150
    assert tasks == [asyncio.current_task()]


async def test_a_loss_that_only_the_end_of_the_body_finds_is_told_as_one_too(redis_url, seen):
    async with LockGuard.from_url(redis_url, ttl=300 * MS, observers=[seen]) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME) as lease:
                while lease.loss is None:  # the body blocks its event loop for longer than the ttl
                    time.sleep(0.01)
    assert [type(event) for event in seen.of(Lost, Unwound, Released)] == [Lost, Unwound]
    assert seen.of(Lost)[0].reason is LossReason.EXPIRED


async def test_a_release_whose_answer_is_not_awaited_to_the_end_is_told_all_the_same(seen):
    with RedisServer() as server:
        async with LockGuard.from_url(server.url, ttl=60 * S, observers=[seen]) as guard:
            paused = asyncio.Event()

            async def hold():
                async with guard.hold(NAME):
                    server.pause()
                    paused.set()

            task = asyncio.create_task(hold())
            await paused.wait()  # by then the task waits for the answer to its release
            task.cancel()
            server.resume()
            await asyncio.wait([task])
    assert len(seen.of(Released)) == 1


async def test_each_stale_write_is_told_with_both_tokens(redis_url, database_url, seen):
    async with asyncpg.create_pool(database_url) as pool:
        async with pool.acquire() as connection:
            await install(connection)
            await connection.execute("create table t (a int)")
        fence = PostgresFence(pool)
        async with LockGuard.from_url(redis_url, fence=fence, observers=[seen]) as guard:
            with pytest.raises((StaleToken, LeaseLost)):
                async with guard.hold(NAME) as lease:
                    floor = await fence.break_(lease.resource, reason="test", within=S)
                    async with fenced_transaction(pool) as connection:
                        await connection.execute("insert into t values (1)")
    (stale,) = seen.of(StaleWrite)
    assert stale.grant.resource == NAME
    assert stale.current == floor
    assert [event.reason for event in seen.of(Lost)] == [LossReason.FENCED]
