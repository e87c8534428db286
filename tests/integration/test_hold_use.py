"""A hold used twice, entered by children, gone at its release, cancelled anywhere (S1, S5, S11)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import pickle
import subprocess
import sys
from datetime import timedelta

import asyncpg
import pytest
import redis

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseState,
    LockGuard,
    LossReason,
    ResourceBusy,
    SelfDeadlock,
    Skipped,
    StaleToken,
)
from lockguard.events import Lost, Released
from lockguard.observe import LogObserver
from lockguard.testing import FakeClock
from lockguard_asyncpg import PostgresFence, create_pool, install, unfenced

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"


class Watcher:
    def __init__(self):
        self.lost = []
        self.unanswered = 0

    def on(self, event):
        if isinstance(event, Lost):
            self.lost.append(event.reason)
        elif isinstance(event, Released):
            self.unanswered += event.found is None


@pytest.fixture
async def pool(database_url):
    async with await create_pool(database_url, min_size=1, max_size=5) as made:
        async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as raw:
            async with raw.acquire() as conn:
                await install(conn)
                await conn.execute("create table note (text text)")
        yield made


@pytest.fixture
async def fenced_guard(redis_url, pool):
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as made:
        yield made


async def is_open(pool):
    with unfenced():
        return await pool.fetchval(
            "select released_at is null from lockguard.fence where resource = $1", NAME
        )


async def until(condition):
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


async def held(guard):
    return (await guard.inspect(NAME)).held


async def not_(coroutine):
    return not await coroutine


# For one use.


async def test_a_hold_entered_twice_is_refused_and_frees_nothing(guard):
    hold = guard.hold(NAME)
    async with hold as lease:
        with pytest.raises(ConfigurationError, match="for one use"):
            async with hold:
                raise AssertionError("entered")
        assert await held(guard)
        assert lease.state is LeaseState.HELD
    assert not await held(guard)


async def test_a_hold_entered_by_two_tasks_lets_no_third_in(guard, redis_url):
    hold, go = guard.hold(NAME), asyncio.Event()

    async def body():
        async with hold:
            await go.wait()

    tasks = [asyncio.create_task(body()) for _ in range(2)]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(done.pop().exception(), ConfigurationError)
    async with LockGuard.from_url(redis_url) as third:
        with pytest.raises(ResourceBusy):
            async with third.hold(NAME, on_busy="raise"):
                pass
        go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with third.hold(NAME, on_busy="raise"):
            pass


@pytest.mark.parametrize("make", [lambda g: g.hold(NAME), lambda g: g.hold_many([NAME, "other"])])
async def test_a_hold_that_was_used_is_neither_entered_nor_left_again(guard, make):
    hold = make(guard)
    with pytest.raises(ConfigurationError, match="nothing to leave"):
        await hold.__aexit__(None, None, None)
    async with hold:
        with pytest.raises(ConfigurationError, match="for one use"):
            await hold.__aenter__()
        assert await held(guard)
    with pytest.raises(ConfigurationError, match="for one use"):
        await hold.__aenter__()
    async with guard.hold(NAME):
        with pytest.raises(ConfigurationError, match="left before"):
            await hold.__aexit__(None, None, None)
        error = ValueError("mine")
        await hold.__aexit__(ValueError, error, None)  # says so on the body's error, and masks it not
        assert "left before" in error.__notes__[0]
        assert await held(guard)


async def test_a_hold_whose_entry_failed_is_used_up(guard, redis_url):
    async with LockGuard.from_url(redis_url) as other, other.hold(NAME):
        hold = guard.hold(NAME, on_busy="raise")
        with pytest.raises(ResourceBusy):
            await hold.__aenter__()
        with pytest.raises(ConfigurationError, match="for one use"):
            await hold.__aenter__()


# Children.


async def test_a_child_that_does_not_wait_finds_its_parents_lock_busy(guard):
    @guard.exclusive("{name}", on_busy="skip")
    async def sync(name):
        raise AssertionError("ran")

    async def ask():
        async with guard.hold(NAME, on_busy="raise"):
            raise AssertionError("ran")

    async with guard.hold(NAME, operation="open"):
        skipped = await asyncio.create_task(sync(NAME))
        assert isinstance(skipped, Skipped)
        assert skipped.busy.operation == "open"
        with pytest.raises(ResourceBusy):
            await asyncio.gather(ask())
        unattended = asyncio.create_task(sync(NAME))
        await asyncio.wait([unattended])
        assert isinstance(unattended.result(), Skipped)


async def test_a_child_that_nobody_awaits_waits_for_the_body_to_end(guard):
    async def later():
        async with guard.hold(NAME) as lease:
            return lease.token

    async with guard.hold(NAME) as lease:
        child = asyncio.create_task(later())

        async def queued():
            return bool((await guard.inspect(NAME)).waiters)

        await until(queued)
    assert await child > lease.token


@pytest.mark.parametrize("way", ["await", "nested", "gather", "group"])
async def test_a_child_that_its_parent_awaits_is_told_at_once(guard, way):
    async def ask():
        async with guard.hold(NAME, wait=timedelta(hours=1)):
            raise AssertionError("ran")

    async def nested():
        await asyncio.gather(asyncio.sleep(0), asyncio.create_task(ask()))

    told = None
    async with asyncio.timeout(5), guard.hold(NAME):
        try:
            match way:
                case "await":
                    await asyncio.create_task(ask())
                case "nested":
                    await asyncio.create_task(nested())
                case "gather":
                    await asyncio.gather(asyncio.sleep(0), ask())
                case _:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(nested())
        except* SelfDeadlock as group:
            told = group.exceptions[0]
    assert "detached()" in str(told)


async def test_a_child_whose_parent_waits_unseen_is_told_when_its_patience_ends(guard):
    async def ask():
        async with guard.hold(NAME, wait=timedelta(seconds=0.2)):
            raise AssertionError("ran")

    async with guard.hold(NAME):
        child = asyncio.create_task(ask())
        await asyncio.wait([child])
    assert isinstance(child.exception(), SelfDeadlock)


# What the release finds out.


def steal(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.delete(LOCK)


async def test_a_lock_that_was_gone_at_the_end_of_the_body_was_lost(redis_url):
    watcher = Watcher()
    async with LockGuard.from_url(redis_url, observers=[watcher]) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                steal(redis_url)
                lease.ensure(timedelta(seconds=2))
        assert caught.value.reason is LossReason.REFUSED
        with pytest.raises(ValueError, match="mine") as told:
            async with guard.hold(NAME):
                steal(redis_url)
                raise ValueError("mine")
        assert any("was lost" in note for note in told.value.__notes__)
        assert watcher.lost == [LossReason.REFUSED] * 2


async def test_a_break_elsewhere_is_found_out_by_the_release(redis_url, tmp_path):
    """What ``lockguard break`` in another process does."""
    standing = FakeClock()  # so that no check or renewal finds it out before
    async with LockGuard.from_url(redis_url, clock=standing) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME, ttl=timedelta(minutes=2)):
                operator = await asyncio.create_subprocess_exec(
                    "python3", "-c", _BREAK, redis_url, env=_environment()
                )
                assert await operator.wait() == 0


_BREAK = f"""
import asyncio, sys
from lockguard import LockGuard

async def main():
    async with LockGuard.from_url(sys.argv[1]) as guard:
        await guard.break_({NAME!r}, reason="an operator")

asyncio.run(main())
"""


def _environment():
    import os
    import sys

    return os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}


async def test_a_stale_token_in_the_body_and_a_lock_that_is_gone_leave_the_bodys_error(redis_url):
    watcher, tries = Watcher(), 0
    async with LockGuard.from_url(redis_url, observers=[watcher]) as guard:
        while watcher.unanswered == tries:  # a release that a busy server does not answer proves no loss
            tries += 1
            error = StaleToken("refused", resource=NAME, presented=1, current=2)
            with pytest.raises(StaleToken):
                async with guard.hold(NAME):
                    steal(redis_url)
                    raise error
        assert any("was lost" in note for note in error.__notes__)


# Under a deadline, and cancelled anywhere.


async def test_a_loss_inside_a_timeout_is_a_loss_and_a_timeout_is_a_timeout(guard):
    with pytest.raises(LeaseLost):
        async with asyncio.timeout(5), guard.hold(NAME) as lease:
            lease.end(LossReason.FENCED)
            await asyncio.Event().wait()
    with pytest.raises(LeaseLost):
        async with guard.hold(NAME) as lease:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.Event().wait()
            lease.end(LossReason.FENCED)
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), guard.hold(NAME):
            await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0
    assert not await held(guard)


async def test_a_body_that_is_cancelled_at_every_await_is_released_without_a_false_alarm(redis_url, caplog):
    """As a cancel scope of anyio does, in which Starlette and Litestar run what a client may hang up on."""
    told = []

    class Recorder:
        def on(self, event):
            told.append(event)

    async def body(entered):
        async with guard.hold(NAME):
            entered.set()
            await asyncio.Event().wait()

    async with LockGuard.from_url(redis_url, observers=[Recorder(), LogObserver()]) as guard:
        entered = asyncio.Event()
        task = asyncio.create_task(body(entered))
        await entered.wait()
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        await until(lambda: not_(held(guard)))
    (released,) = [event for event in told if isinstance(event, Released)]
    assert (released.found, released.cancelled) == (None, True)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_refusal_in_a_child_ends_the_parents_body(guard):
    async def write(lease):
        lease.lost_to_fence(StaleToken("refused", resource=NAME, presented=lease.token, current=None))
        await asyncio.Event().wait()

    with pytest.raises(LeaseLost):
        async with guard.hold(NAME) as lease:
            async with asyncio.TaskGroup() as group:
                group.create_task(write(lease))
                group.create_task(asyncio.Event().wait())
    assert asyncio.current_task().cancelling() == 0


async def test_cancel_at_every_await_of_a_task_that_enters_for_another_leaves_nothing(fenced_guard, pool):
    for turn in range(30):
        stack = contextlib.AsyncExitStack()
        task = asyncio.create_task(stack.enter_async_context(fenced_guard.hold(NAME)))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with contextlib.suppress(LeaseLost):
            await stack.aclose()
        await until(lambda: not_(held(fenced_guard)))
        while fenced_guard._core._closing:
            await asyncio.sleep(0)
        assert not await is_open(pool)
        assert len(fenced_guard._core.keeper) == 0


WORKERS = """
import asyncio, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from lockguard import LeaseError, LockGuard, current_lease, detached

def order(number):
    lease = current_lease()
    if lease is None:
        return "no lease"
    try:
        lease.ensure()
    except LeaseError as refusal:
        return f"{refusal.reason} {lease.state.value} {lease.remaining.total_seconds()}"
    return "sent"

async def main():
    loop = asyncio.get_running_loop()
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, fork) as inside, ProcessPoolExecutor(1, fork) as outside:
        async with LockGuard.from_url(sys.argv[1]) as guard:
            async with guard.hold("binance:APTUSDT"):
                with detached():
                    print(await loop.run_in_executor(outside, order, 1))
                print(await loop.run_in_executor(inside, order, 2))
            print(await loop.run_in_executor(inside, order, 3))
            async with guard.hold("binance:APTUSDT"):
                print(order(4))

asyncio.run(main())
"""


def test_no_forked_process_trusts_the_lease_of_the_one_that_holds_it(redis_url):
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, redis_url], check=False, timeout=30, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["no lease", "forked lost 0.0", "forked lost 0.0", "sent"]


async def test_no_copy_of_a_lease_outlives_it(guard):
    async with guard.hold(NAME) as lease:
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="'binance:APTUSDT' cannot be copied or pickled"):
                duplicate(lease)


# Closed in haste.


@pytest.mark.parametrize("way", ["in a body", "without patience", "twice at once"])
async def test_a_close_that_is_cut_closes_everything_all_the_same(redis_url, way):
    guard = LockGuard.from_url(redis_url)
    with contextlib.suppress(LeaseLost):
        async with guard.hold(NAME):
            if way == "in a body":  # which is cut by it
                await guard.aclose()
            else:
                closing = [asyncio.create_task(guard.aclose()) for _ in range(1 + (way == "twice at once"))]
                await asyncio.sleep(0)
                closing[0].cancel()
                await asyncio.wait(closing)
    async with asyncio.timeout(5):
        while guard._core.connected:
            await asyncio.sleep(0.01)
    await guard.aclose()  # again: nothing more happens
    assert [task.get_name() for task in asyncio.all_tasks()] == [asyncio.current_task().get_name()]


async def test_a_break_goes_on_though_its_guard_is_closed_in_haste(redis_url, pool):
    begun, go_on = asyncio.Event(), asyncio.Event()

    class SlowFence(PostgresFence):
        async def break_(self, *args, **options):
            begun.set()
            await go_on.wait()
            return await super().break_(*args, **options)

    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as holder:
        guard = LockGuard.from_url(redis_url, fence=SlowFence(pool))
        with pytest.raises(LeaseLost):
            async with holder.hold(NAME) as lease:
                breaking = asyncio.create_task(guard.break_(NAME, reason="test"))
                await begun.wait()
                closing = asyncio.create_task(guard.aclose())
                await asyncio.sleep(0)
                closing.cancel()
                await asyncio.wait([closing])
                go_on.set()
                assert (await breaking).grant == lease.grant.id
        await guard.aclose()
