"""The life of a guard: one for several event loops in turn, closed and opened again, and after a fork."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import redis

from lockguard import ConfigurationError, LeaseLost, LockGuard, LossReason, ResourceBusy, current_lease
from lockguard._core import Core
from lockguard.events import Acquired, Lost, Released
from lockguard.testing import MemoryStore
from tests.loops import ENDINGS, close_only, open_sockets, run

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"


class Told:
    """An observer that keeps what it was told."""

    def __init__(self):
        self.events = []

    def on(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


async def once(guard, **options):
    async with guard.hold(NAME, **options) as lease:
        lease.ensure()
        return lease.token


def started(work):
    """A thread that runs ``work`` to its end, and an event that is set once ``work`` has set its argument."""
    ready, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: run(work(ready, go_on)))
    thread.start()
    assert ready.wait(20)
    return thread, go_on


async def until_set(event):
    while not event.is_set():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("then", ENDINGS)
@pytest.mark.parametrize("first", ENDINGS)
def test_one_guard_serves_loops_in_turn_and_leaves_nothing_in_those_that_ended(
    redis_url, first, then, caplog
):
    told = Told()
    guard = LockGuard.from_url(redis_url, observers=[told])
    before = open_sockets()
    with caplog.at_level(logging.DEBUG, "asyncio"):
        first_token = first(once(guard))
        assert then(once(guard)) > first_token
        run(once(guard))
        assert open_sockets() == before
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told.of(Acquired)) == len(told.of(Released)) == 3
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LOCK)


def test_a_guard_ends_with_its_loop_as_if_it_had_been_closed(redis_url):
    """Also what a body left behind that never was left."""
    told = Told()
    guard = LockGuard.from_url(redis_url, observers=[told])

    async def leave_open():
        hold = guard.hold(NAME)
        await hold.__aenter__()
        return hold

    hold = run(leave_open())
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LOCK)
        assert not [one for one in client.client_list() if one["name"] == "lockguard"]
    run(once(guard))
    del hold


def test_the_lock_of_a_loop_that_was_closed_around_it_runs_out_and_its_lease_is_lost(redis_url):
    told = Told()
    guard = LockGuard.from_url(redis_url, observers=[told], ttl=timedelta(seconds=0.5))
    loop = asyncio.new_event_loop()

    async def hold_for_ever(begun):
        async with guard.hold(NAME) as lease:
            begun.set_result(lease)
            await asyncio.get_running_loop().create_future()

    async def begin():
        begun = asyncio.get_running_loop().create_future()
        return asyncio.create_task(hold_for_ever(begun)), await begun

    task, lease = loop.run_until_complete(begin())
    loop.close()

    async def use():
        token = await once(guard, wait=timedelta(seconds=10))  # the old grant is in the way until it runs out
        assert current_lease() is None
        return token

    assert run(use()) > lease.token
    assert lease.loss in (LossReason.ABANDONED, LossReason.EXPIRED)
    with pytest.raises(LeaseLost):
        lease.ensure()
    assert [event.grant.id for event in told.of(Lost)] == [lease.grant.id]
    task._log_destroy_pending = False  # it was destroyed on purpose
    del task


def test_a_second_loop_beside_one_that_runs_is_refused_with_what_to_do(redis_url):
    guard = LockGuard.from_url(redis_url)

    async def hold(ready, go_on):
        async with guard.hold(NAME):
            ready.set()
            await until_set(go_on)

    thread, go_on = started(hold)
    try:
        with pytest.raises(
            ConfigurationError,
            match=r"another event loop, which still runs and in which it holds 1 lease\(s\); make one guard",
        ):
            run(once(guard))
        with pytest.raises(ConfigurationError, match="close it there"):
            run(guard.aclose())
    finally:
        go_on.set()
        thread.join()
    run(once(guard))


def test_of_two_loops_that_begin_at_the_same_time_one_has_the_guard(redis_url, monkeypatch):
    guard = LockGuard.from_url(redis_url)
    both, refused, bind = threading.Barrier(2), [], Core.bind

    def slowly(core, loop):
        time.sleep(0.05)  # long enough for the other thread to come as far, if nothing keeps it
        bind(core, loop)

    async def use():
        await asyncio.to_thread(both.wait)
        try:
            await once(guard)
        except ConfigurationError as exc:
            refused.append(exc)
        await asyncio.to_thread(both.wait)  # neither loop ends before the other has begun

    monkeypatch.setattr(Core, "bind", slowly)
    threads = [threading.Thread(target=lambda: run(use())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1


def test_a_loop_that_was_stopped_and_not_closed_is_named(redis_url):
    guard = LockGuard.from_url(redis_url)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(once(guard))
    with pytest.raises(ConfigurationError, match="stopped and not closed; make one guard for each loop"):
        run(once(guard))
    loop.run_until_complete(once(guard))
    loop.run_until_complete(guard.aclose())
    loop.close()


def test_without_a_task_it_says_what_to_use(redis_url):
    guard = LockGuard.from_url(redis_url)
    with pytest.raises(ConfigurationError, match=r"inside a running asyncio task.*lockguard\.sync"):
        guard.hold(NAME).__aenter__().send(None)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("used", [False, True])
def test_a_close_without_a_task_is_refused_or_has_nothing_to_close(redis_url, used):
    """As under trio, which runs no loop of asyncio: nothing is closed by half, and nothing left unawaited."""
    guard = LockGuard.from_url(redis_url)
    if used:
        run(once(guard))
        with pytest.raises(StopIteration):
            guard.aclose().send(None)
        return
    with pytest.raises(ConfigurationError, match=r"inside a running asyncio task.*lockguard\.sync"):
        guard.aclose().send(None)
    assert run(once(guard))  # it was not closed by half


@pytest.mark.parametrize("runs", ENDINGS)
def test_a_closed_guard_is_opened_again_by_async_with_and_by_nothing_else(redis_url, runs):
    guard = LockGuard.from_url(redis_url)

    async def lifespan():
        async with guard:
            return await once(guard)

    async def bare():
        with pytest.raises(ConfigurationError, match=r"is closed; `async with guard:` opens it again"):
            await once(guard)

    before = open_sockets()
    tokens = []
    for _ in range(3):
        tokens.append(runs(lifespan()))
        runs(bare())
        assert open_sockets() == before
    assert tokens == sorted(set(tokens))


async def test_a_release_whose_connection_was_lost_is_made_before_its_guard_is_closed(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        async with LockGuard.from_url(redis_url, ttl=timedelta(minutes=5)) as guard:
            async with guard.hold(NAME):
                assert client.exists(LOCK)
                client.client_kill_filter(_type="normal", skipme=True)
                client.client_kill_filter(_type="pubsub")
                while guard._core.locks.nodes[0].ready:
                    await asyncio.sleep(0)
        assert not client.exists(LOCK)


async def test_a_guard_is_opened_again_in_the_same_loop(redis_url):
    guard = LockGuard.from_url(redis_url)
    for _ in range(2):
        async with guard:
            await once(guard)
    await guard.__aenter__()
    closing = asyncio.create_task(guard.aclose())
    await asyncio.sleep(0)
    async with guard:  # waits for the close that is under way
        assert closing.done()
        await once(guard)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
async def test_a_close_while_a_caller_connects_is_told_as_that_and_not_as_a_cancel(scheme):
    reached, writers = asyncio.Event(), []

    def say_nothing(_, writer):
        writers.append(writer)
        reached.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        guard = LockGuard.from_url(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        connecting = asyncio.create_task(once(guard))
        await reached.wait()
        await guard.aclose()
        with pytest.raises(ConfigurationError, match="was closed while it waited for"):
            await connecting
        for writer in writers:
            writer.close()


def test_a_guard_whose_loop_was_closed_around_it_is_closed_from_another(redis_url):
    guard = LockGuard.from_url(redis_url)
    before = open_sockets()
    close_only(once(guard))
    run(guard.aclose())
    assert open_sockets() == before

    async def bare():
        with pytest.raises(ConfigurationError, match="closed"):
            await once(guard)

    run(bare())


def test_a_close_that_its_loop_cut_short_is_completed_by_the_loops_end_or_the_next_loop(redis_url):
    guard = LockGuard.from_url(redis_url)
    before = open_sockets()

    async def cut_short():
        await guard.__aenter__()
        closing = asyncio.create_task(guard.aclose())
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.wait([closing])

    async def lifespan():
        async with guard:
            await once(guard)

    for end in (run, close_only):
        end(cut_short())
        run(lifespan())
        assert open_sockets() == before


def test_a_guard_in_memory_serves_loops_in_turn_over_one_store():
    store = MemoryStore()
    guard, other = LockGuard.in_memory(store), LockGuard.in_memory(store)
    tokens = [runs(once(one)) for runs in ENDINGS for one in (guard, other)]
    assert tokens == sorted(set(tokens))


FORKING = """
import asyncio, os, sys
from lockguard import LockGuard
from lockguard.errors import ConfigurationError

guard = LockGuard.from_url(sys.argv[2])

async def once():
    async with guard.hold("x") as lease:
        await lease.confirm()
        return lease.token

async def in_children():
    for _ in range(3):
        assert not await asyncio.to_thread(in_child)

def in_child():
    if not (child := os.fork()):
        code = 1
        try:
            tokens = [asyncio.run(once()) for _ in range(3)]
            code = 0 if tokens == sorted(set(tokens)) else 2
            if sys.argv[1] == "exits":
                sys.exit(code)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

if sys.argv[1] == "never used":
    assert [in_child(), in_child()] == [0, 0]
elif sys.argv[1] == "closed":
    asyncio.run(once())
    assert [in_child(), in_child()] == [0, 0]
elif sys.argv[1] == "closed around it":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(once())
    loop.close()
    assert [in_child(), in_child()] == [0, 0]
else:
    # The parent holds a lease and goes on with it while its children come and go.
    async def main():
        async with guard.hold("y") as lease:
            wire = guard._core.locks.nodes[0]._connection._wire
            for _ in range(2):
                assert await asyncio.to_thread(in_child) == 0
                await once()
                await lease.confirm()
            assert guard._core.locks.nodes[0]._connection._wire is wire
    asyncio.run(main())
    assert in_child() == 0
asyncio.run(once())
print("as it was")
"""


@pytest.mark.parametrize("used", ["never used", "closed", "closed around it", "in use", "exits"])
def test_after_a_fork_each_process_has_parts_of_its_own(redis_url, used):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING, used, redis_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "as it was\n", "")


FORKED_IN_THE_LOOP = """
import asyncio, os, sys
from lockguard import LockGuard, current_lease, detached
from lockguard.errors import ConfigurationError, LeaseLost, LossReason

guard = LockGuard.from_url(sys.argv[1], observers=[])

async def once():
    async with guard.hold("x") as lease:
        await lease.confirm()

async def main():
    async with guard.hold("y") as lease:
        if not (child := os.fork()):
            try:
                assert current_lease().loss is LossReason.FORKED
                asyncio.run(once())
                asyncio.run(guard.aclose())
            except BaseException as exc:
                print(repr(exc), flush=True)
                os._exit(1)
            # What follows unwinds the parent's body, and its loop, in the child.
        elif os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) not in (0, 1):
            os._exit(3)
        else:
            await lease.confirm()
            await once()
            print("the parent goes on", flush=True)

parent = os.getpid()
try:
    asyncio.run(main())
except LeaseLost as lost:
    assert os.getpid() != parent and lost.reason is LossReason.FORKED, lost
    print("the child was refused", flush=True)
"""


def test_a_child_that_unwinds_the_parents_body_sends_nothing_of_it(redis_url):
    done = subprocess.run(
        [sys.executable, "-c", FORKED_IN_THE_LOOP, redis_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the child was refused\nthe parent goes on\n"


def test_nodes_of_ones_own_are_made_again_if_a_function_makes_them(redis_url):
    made = []

    def new_nodes():
        made.append(LockGuard.from_url(redis_url)._core.locks.nodes[0])
        return made[-1:]

    guard = LockGuard(new_nodes)
    run(once(guard))
    close_only(once(guard))
    run(once(guard))
    assert len(made) == 3
    fixed = LockGuard(new_nodes())
    run(once(fixed))
    with pytest.raises(ConfigurationError, match=r"was made of nodes.*give LockGuard\(\) a function"):
        run(once(fixed))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("bot-1", "bot-1@"),
        ("  the first bot\n\x1b[31m", r"the\x20first\x20bot\n\x1b[31m@"),
        ("x" * 300, "x" * 64 + "@"),
        (" ", ""),
    ],
)
async def test_a_holder_is_shown_with_the_name_of_its_guard_in_front(redis_url, name, shown):
    async with LockGuard.from_url(redis_url, name=name) as guard, LockGuard.from_url(redis_url) as other:
        async with other.hold("b"):
            bare = (await other.inspect("b")).holder
        asyncio.current_task().set_name("Task-1")
        async with guard.hold(NAME):
            with pytest.raises(ResourceBusy) as busy:
                async with other.hold(NAME, on_busy="raise"):
                    pass
        assert busy.value.holder == f"{shown}{bare.partition('/')[0]}/Task-1"
        assert f"held by {busy.value.holder} (" in str(busy.value)


def test_a_name_that_is_no_text_is_refused(redis_url):
    with pytest.raises(ConfigurationError, match="name= is an int; write text for people"):
        LockGuard.from_url(redis_url, name=7)


BREAKING = """
import asyncio, os, sys
from lockguard import LeaseLost, LockGuard, LossReason

guard = LockGuard.from_url(sys.argv[1], observers=[])

def break_in_child(lease):
    if not (child := os.fork()):
        code = 1
        try:
            asyncio.run(guard.break_("y", reason="a test"))
            code = 0 if lease.loss is LossReason.FORKED else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def main():
    async with guard.hold("y") as lease:
        assert await asyncio.to_thread(break_in_child, lease) == 0
        await lease.confirm()

try:
    asyncio.run(main())
except LeaseLost as lost:
    print("the parent learned of it from the server")
"""


def test_a_child_that_breaks_the_parents_lock_leaves_the_parents_event_loop_alone(redis_url):
    """A wake-up of the copied loop would go to the parent: the two share what wakes it."""
    done = subprocess.run(
        [sys.executable, "-c", BREAKING, redis_url], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the parent learned of it from the server\n"
