"""A hold used twice, left elsewhere, entered in a task that ends, gone at its release (S1, S5, S10, S11)."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import subprocess
import sys
from contextvars import Context, copy_context
from datetime import timedelta

import asyncpg
import pytest
import redis

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseNotHeld,
    LeaseState,
    LockGuard,
    LossReason,
    ResourceBusy,
    SelfDeadlock,
    Skipped,
    StaleToken,
    current_lease,
    detached,
)
from lockguard._context import _seen, lost_sight
from lockguard.events import Lost, Released
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


# Left in another context or task.


async def test_a_generator_that_nobody_finishes_gives_everything_back(fenced_guard, pool):
    async def ticks():
        async with fenced_guard.hold(NAME):
            while True:
                yield 1

    async def consume():
        async for _ in ticks():
            break
        gc.collect()
        await until(lambda: _not(is_open(pool)))
        await until(lambda: _not(held(fenced_guard)))
        await pool.execute("insert into note values ('outside of the body')")
        assert current_lease() is None

    await asyncio.create_task(consume())
    assert asyncio.current_task().cancelling() == 0


async def _not(coroutine):
    return not await coroutine


async def test_a_hold_left_by_another_task_masks_no_error_and_closes_everything(fenced_guard, pool):
    stack, go = contextlib.AsyncExitStack(), asyncio.Event()

    async def enter():
        await stack.enter_async_context(fenced_guard.hold(NAME))
        await go.wait()
        with pytest.raises(LeaseNotHeld):  # somebody ended its body, and it does not know
            await pool.execute("insert into note values ('beside a successor')")

    entering = asyncio.create_task(enter())
    await until(lambda: held(fenced_guard))
    await until(lambda: is_open(pool))
    with pytest.raises(ValueError, match="mine"):
        async with stack:
            raise ValueError("mine")
    assert not await is_open(pool)
    assert not await held(fenced_guard)
    go.set()
    await entering


@pytest.mark.parametrize("enter", ["wait_for", "task", "helper"])
async def test_a_task_that_lost_sight_of_its_hold_writes_nothing(fenced_guard, pool, redis_url, enter):
    """Its hold was entered in a task of its own, which ended: the lease is over."""

    async def entered(stack):
        await stack.enter_async_context(fenced_guard.hold(NAME))

    async def body():
        with pytest.raises(LeaseLost, match=r"instead of asyncio\.wait_for") as caught:
            async with contextlib.AsyncExitStack() as stack:
                match enter:
                    case "helper":
                        await asyncio.create_task(entered(stack))
                    case "wait_for":
                        # What asyncio.wait_for is before Python 3.12.
                        hold = stack.enter_async_context(fenced_guard.hold(NAME))
                        await asyncio.wait([asyncio.create_task(hold)])
                    case _:
                        await asyncio.create_task(stack.enter_async_context(fenced_guard.hold(NAME)))
                with pytest.raises((LeaseNotHeld, LeaseLost)):
                    await pool.execute("insert into note values ('past the fence')")
                async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as other:
                    async with other.hold(NAME):  # the lock was given back at once
                        await pool.execute("insert into note values ('the successor')")
                with pytest.raises((LeaseNotHeld, LeaseLost)):
                    await asyncio.create_task(pool.execute("insert into note values ('from a child')"))
        assert caught.value.reason is LossReason.ABANDONED
        await pool.execute("insert into note values ('outside of the body')")

    await asyncio.create_task(body())
    written = await pool.fetch("select text from note")
    assert [row["text"] for row in written] == ["the successor", "outside of the body"]


async def test_a_task_that_has_nothing_to_do_with_a_forgotten_hold_writes_on(fenced_guard, pool):
    go, write = asyncio.Event(), "insert into note values ('a heartbeat')"

    async def heartbeat():
        await pool.execute(write)
        await go.wait()
        await pool.execute(write)

    beating = asyncio.create_task(heartbeat())
    async with contextlib.AsyncExitStack() as stack:

        async def forget():
            hold = fenced_guard.hold(NAME)
            entering = asyncio.create_task(stack.enter_async_context(hold))
            await asyncio.wait([entering])

        await until(lambda: pool.fetchval("select count(*) > 0 from note"))
        await forget()
        with pytest.raises(LeaseNotHeld, match="has ended"):
            await pool.execute(write)
        go.set()
        await beating
        with detached():
            await pool.execute(write)
        with pytest.raises(LeaseLost):
            await stack.aclose()
    await pool.execute(write)
    assert await pool.fetchval("select count(*) from note") == 4


async def test_a_body_that_lost_sight_of_an_inner_hold_writes_nothing(fenced_guard, pool):
    """What it carries is the outer lease, which says nothing about rows of the inner one's resource."""
    async with fenced_guard.hold("outer"):
        with pytest.raises(LeaseLost):
            async with contextlib.AsyncExitStack() as stack:
                await asyncio.create_task(stack.enter_async_context(fenced_guard.hold(NAME)))
                with pytest.raises(LeaseNotHeld, match="has ended"):
                    await pool.execute("insert into note values ('past the fence')")
        await pool.execute("insert into note values ('under the outer lease')")
    assert await pool.fetchval("select count(*) from note") == 1


async def test_a_hold_that_a_service_forgot_stops_the_service_and_not_what_started_it(fenced_guard, pool):
    write, go, forgot = "insert into note values ('mine')", asyncio.Event(), asyncio.Event()

    async def service():
        stack = contextlib.AsyncExitStack()
        await asyncio.create_task(stack.enter_async_context(fenced_guard.hold(NAME)))
        forgot.set()
        await go.wait()
        with pytest.raises(LeaseNotHeld):
            await pool.execute("insert into note values ('past the fence')")
        with pytest.raises(LeaseLost):
            await stack.aclose()

    await pool.execute(write)
    running = asyncio.create_task(service())
    await forgot.wait()
    await pool.execute(write)
    async with fenced_guard.hold("other"):
        await pool.execute(write)
    go.set()
    await running
    assert await pool.fetchval("select count(*) from note") == 3


async def test_a_task_that_ends_with_its_hold_open_ends_the_lease(redis_url):
    watcher = Watcher()
    async with LockGuard.from_url(redis_url, observers=[watcher]) as guard:

        async def enter():
            return await guard.hold(NAME).__aenter__()

        lease = await asyncio.create_task(enter())
        await asyncio.sleep(0)
        assert lease.state is LeaseState.LOST
        assert watcher.lost == [LossReason.ABANDONED]
        async with guard.hold(NAME, on_busy="raise"):
            pass


def test_a_hold_left_in_another_event_loop_says_so_and_masks_nothing(redis_url):
    guard = LockGuard.from_url(redis_url)
    hold = guard.hold(NAME)

    async def enter():
        await hold.__aenter__()

    async def leave():
        error = ValueError("mine")
        await hold.__aexit__(ValueError, error, None)
        return error.__notes__

    with asyncio.Runner() as home:
        home.run(enter())
        with asyncio.Runner() as other:
            notes = other.run(leave())
        home.run(guard.aclose())
    assert any("was lost" in note for note in notes)


FORKED = """
import asyncio, os, sys
from lockguard import LockGuard

async def main():
    async with LockGuard.from_url(sys.argv[1]) as guard:
        async with guard.hold("x") as lease:
            if not (child := os.fork()):
                raise ValueError("mine")
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            await lease.confirm()  # on the connection that both had: behind whatever the child has sent
            assert (await guard.inspect("x")).grant == lease.grant.id
    print("as it was")

parent = os.getpid()
main = main()
try:
    asyncio.run(main)
except ValueError as error:
    assert os.getpid() != parent
    os._exit(7 if any("copy of the one that holds it" in note for note in error.__notes__) else 1)
"""


LOOP_CLOSED = """
import asyncio, sys
from lockguard import LockGuard

async def main():
    async with LockGuard.from_url(sys.argv[1]) as guard, guard.hold("x"):
        entered.set()
        try:
            await asyncio.Event().wait()
        except GeneratorExit:
            raise ValueError("mine")

entered, main, loop = asyncio.Event(), main(), asyncio.new_event_loop()
task = loop.create_task(main)
loop.run_until_complete(entered.wait())
loop.close()
try:
    main.close()
except ValueError as error:
    assert any("was lost" in note for note in error.__notes__)
    print("as it was")
"""


@pytest.mark.parametrize("script", [FORKED, LOOP_CLOSED], ids=["a forked child", "its loop was closed"])
def test_a_body_that_is_left_where_its_loop_does_not_run_keeps_its_error_and_gives_nothing_back(
    redis_url, script
):
    run = subprocess.run(
        [sys.executable, "-c", script, redis_url], check=False, capture_output=True, text=True, timeout=20
    )
    assert run.stdout == "as it was\n", run.stderr


async def test_detached_code_sees_no_lease(guard):
    seen = []

    async def writer():
        seen.append((current_lease(), lost_sight()))
        await asyncio.sleep(0)
        seen.append((current_lease(), lost_sight()))

    async with guard.hold(NAME) as lease:
        with detached():
            assert current_lease() is None
            task = asyncio.create_task(writer())
        assert current_lease() is lease
    await task
    assert seen == [(None, None), (None, None)]


async def test_a_background_writer_started_in_a_body_writes_on_after_it(fenced_guard, pool):
    go = asyncio.Event()

    async def writer():
        await go.wait()
        await pool.execute("insert into note values ('later')")

    async with fenced_guard.hold(NAME):
        with detached():
            free = asyncio.create_task(writer())
        bound = asyncio.create_task(writer())
    go.set()
    await free
    with pytest.raises(LeaseNotHeld):
        await bound
    assert await pool.fetchval("select count(*) from note") == 1


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
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
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


async def test_cancel_at_every_await_of_a_confirmation_leaves_nothing(guard):
    async def body():
        async with guard.hold(NAME) as lease:
            confirming.set()
            await lease.confirm()
            await lease.confirm()

    for turn in range(40):
        confirming = asyncio.Event()
        task = asyncio.create_task(body())
        await confirming.wait()
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
        assert not await held(guard)
        assert len(guard._core.keeper) == 0


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
        await until(lambda: _not(held(fenced_guard)))
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


# --- contexts that are shared, threads, loops that end ---


async def test_what_is_noted_of_tasks_that_share_a_context_does_not_grow(guard):
    """As under runners that start every task in one context."""
    shared, turn = copy_context(), asyncio.Condition()
    told: list[str] = []

    async def in_turns(me):
        for _ in range(20):
            async with turn:
                await turn.wait_for(lambda: not told or told[-1] != me)
                async with guard.hold(f"binance:{me}"):
                    told.append(me)
                turn.notify_all()

    await asyncio.gather(*(asyncio.create_task(in_turns(me), context=shared) for me in ("A", "B")))
    assert len(told) == 40
    links, link = 0, shared.run(_seen.get)
    while link is not None:
        links, link = links + 1, link.before
    assert links <= 3  # theirs, and that of the task that started them


async def test_a_thread_that_enters_a_hold_in_one_task_writes_nothing_in_the_next(fenced_guard, pool):
    """With run_coroutine_threadsafe each step is a task of its own: the first one ends with the hold open."""
    loop, hold = asyncio.get_running_loop(), fenced_guard.hold(NAME)

    def thread():
        def step(work):
            return asyncio.run_coroutine_threadsafe(work, loop).result(10)

        step(hold.__aenter__())
        with pytest.raises(LeaseNotHeld, match="has ended"):
            step(pool.execute("insert into note values ('past the fence')"))
        with pytest.raises(LeaseLost) as caught:
            step(hold.__aexit__(None, None, None))
        return caught.value.reason

    assert await Context().run(asyncio.to_thread, thread) is LossReason.ABANDONED
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_task_noted_between_starting_a_helper_and_its_hold_is_the_case_that_is_not_seen(
    fenced_guard, pool
):
    """ADR 8 and the page on leases say so: whoever makes this go away takes it out of both."""
    begin = asyncio.Event()

    async def helper(stack):
        await begin.wait()
        await stack.enter_async_context(fenced_guard.hold(NAME))

    async def body():
        async with contextlib.AsyncExitStack() as stack:
            helping = asyncio.create_task(helper(stack))
            await pool.execute("insert into note values ('before')")  # noted here for the first time
            begin.set()
            await helping
            assert lost_sight() is None
            await pool.execute("insert into note values ('without a lease')")
        raise AssertionError("the body was left without an error")

    with pytest.raises(LeaseLost):
        await asyncio.create_task(body())


def test_a_guard_whose_loop_has_ended_says_so_when_it_is_closed_in_another(redis_url):
    guard = LockGuard.from_url(redis_url)

    async def use():
        async with guard.hold(NAME):
            pass

    with asyncio.Runner() as home:
        home.run(use())
        with pytest.raises(ConfigurationError, match="another event loop; close it there"):
            asyncio.run(guard.aclose())
        home.run(guard.aclose())


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
