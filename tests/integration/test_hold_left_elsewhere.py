"""A hold left by another task, in another context or loop, or not at all (S1, S10)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
from contextvars import Context, copy_context

import pytest

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseNotHeld,
    LeaseState,
    LockGuard,
    LossReason,
    current_lease,
    detached,
)
from lockguard._context import _seen, lost_sight
from lockguard_asyncpg import PostgresFence
from tests.integration.test_hold_use import NAME, Watcher, fenced_guard, held, is_open, not_, pool, until

__all__ = ["fenced_guard", "pool"]


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
        await until(lambda: not_(is_open(pool)))
        await until(lambda: not_(held(fenced_guard)))
        await pool.execute("insert into note values ('outside of the body')")
        assert current_lease() is None

    await asyncio.create_task(consume())
    assert asyncio.current_task().cancelling() == 0


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
        with pytest.raises(
            ConfigurationError, match="another event loop, which was stopped and not closed; close it there"
        ):
            asyncio.run(guard.aclose())
        home.run(guard.aclose())
