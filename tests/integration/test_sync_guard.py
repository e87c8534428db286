"""The guard for synchronous code: what it is made of, and what it refuses in one line."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import weakref
from datetime import timedelta

import asyncpg
import pytest

import lockguard
from lockguard import (
    ConfigurationError,
    FenceUnavailable,
    LeaseLost,
    LossReason,
    QuorumUnavailable,
    ResourceBusy,
    Skipped,
    current_lease,
)
from lockguard._context import outlived_lease
from lockguard.sync import LockGuard, exclusive
from lockguard.testing import MemoryStore
from lockguard_asyncpg import PostgresFence, install

NAME = "binance:APTUSDT"
SECOND = timedelta(seconds=1)
PATIENCE_S = 20


@pytest.fixture
def guard(redis_url):
    with LockGuard.from_url(redis_url, observers=[]) as guard:
        yield guard


def background_threads():
    return [thread for thread in threading.enumerate() if thread.name == "lockguard"]


# The decorator.


def test_the_decorator_locks_what_the_arguments_name(guard):
    @guard.exclusive("{exchange}:{symbol}")
    def open_position(symbol, exchange="binance"):
        """Opens."""
        lease = current_lease()
        seen = guard.inspect(NAME)
        assert seen.grant == lease.grant.id
        return seen.operation

    assert open_position("APTUSDT").endswith("open_position")
    assert (open_position.__doc__, open_position.__name__) == ("Opens.", "open_position")
    assert not guard.inspect(NAME).held
    with pytest.raises(TypeError, match=r"open_position\(\): missing a required argument"):
        open_position()


def test_a_busy_resource_is_skipped_or_raised(guard, redis_url):
    calls = []

    @guard.exclusive("binance:{symbol}", on_busy="skip")
    def skips(symbol):
        calls.append(symbol)
        return 1

    @guard.exclusive("binance:{symbol}", on_busy="raise")
    def raises(symbol):
        calls.append(symbol)

    with LockGuard.from_url(redis_url) as other:
        lease = other.acquire(NAME, operation="elsewhere")
        skipped = skips("APTUSDT")
        assert isinstance(skipped, Skipped)
        assert not skipped
        assert skipped.busy.operation == "elsewhere"
        with pytest.raises(ResourceBusy):
            raises("APTUSDT")
        assert not calls
        lease.release()
    assert skips("APTUSDT") == 1


def test_a_method_finds_its_guard_when_it_is_called(guard):
    class Bot:
        def __init__(self, guard):
            self.guard = guard

        @exclusive("binance:{symbol}", guard="guard")
        def trade(self, symbol):
            return current_lease().resource

    assert Bot(guard).trade("APTUSDT") == NAME
    with pytest.raises(ConfigurationError, match="the attribute 'guard' of Bot gave None"):
        Bot(None).trade("APTUSDT")
    with pytest.raises(ConfigurationError, match=r"lockguard\.sync\.LockGuard"):
        Bot(lockguard.LockGuard.in_memory()).trade("APTUSDT")


async def coroutine_function(symbol):
    pass


def hidden(symbol):
    return coroutine_function(symbol)


def generator(symbol):
    yield


@contextlib.asynccontextmanager
async def forgetful():
    yield


def test_what_would_run_after_the_release_is_refused(guard):
    decorate = guard.exclusive("{symbol}")
    with pytest.raises(ConfigurationError, match=r"'async def' function.*lockguard\.LockGuard"):
        decorate(coroutine_function)
    with pytest.raises(ConfigurationError, match="is a generator"):
        decorate(generator)
    with pytest.raises(ConfigurationError, match="gave a coroutine"):
        decorate(hidden)("APTUSDT")
    with pytest.raises(ConfigurationError, match="write it with a key"):
        guard.exclusive(lambda symbol: symbol)("APTUSDT")
    with pytest.raises(ConfigurationError, match=r"not an 'async def' function.*lockguard\.sync\.LockGuard"):
        lockguard.LockGuard.in_memory().exclusive("{symbol}")(lambda symbol: symbol)


# Where it may be called.


def test_a_callback_that_calls_the_guard_is_refused_and_waits_for_nothing(guard):
    told, heard = [], threading.Event()

    def on_loss(lost):
        for call in (
            lambda: guard.acquire("other"),
            lambda: guard.inspect(NAME),
            guard.close,
            lease.confirm_now,
        ):
            with pytest.raises((ConfigurationError, LeaseLost)) as raised:
                call()
            told.append(str(raised.value))
        with pytest.raises(LeaseLost):
            lease.release()
        heard.set()
        raise RuntimeError("an error of the callback ends nothing")

    lease = guard.acquire(NAME, on_loss=on_loss)
    guard.break_(NAME, reason="test")
    assert heard.wait(PATIENCE_S)
    assert all("background thread" in line for line in told[:3])
    assert "broken" in told[3]
    with guard.hold(NAME):
        pass


def test_an_observer_that_releases_is_refused(redis_url):
    refused, heard = [], threading.Event()

    class Releases:
        def on(self, event):
            if isinstance(event, lockguard.events.Renewed) and not refused:
                refused.append(None)
                try:
                    lease.release()
                except ConfigurationError as error:
                    refused[0] = str(error)
                heard.set()

    with LockGuard.from_url(redis_url, ttl=timedelta(milliseconds=300), observers=[Releases()]) as guard:
        lease = guard.acquire(NAME)
        assert heard.wait(PATIENCE_S)
        assert "background thread" in refused[0]
        lease.ensure()
        lease.release()


async def test_in_an_event_loop_it_names_the_other_guard(redis_url):
    guard = LockGuard.from_url(redis_url)
    for call in (
        lambda: guard.acquire(NAME),
        lambda: guard.hold(NAME).__enter__(),
        guard.__enter__,
        lambda: guard.inspect(NAME),
        lambda: list(guard.list()),
    ):
        with pytest.raises(ConfigurationError, match=r"running event loop.*async with guard\.hold"):
            call()
    assert not background_threads()

    def work():
        with guard.hold(NAME) as lease:
            return lease.resource

    assert await asyncio.to_thread(work) == NAME
    guard.close()


def test_in_a_notebook_it_blocks_as_its_user_wants(redis_url):
    pytest.importorskip("IPython")
    program = f"""
import asyncio
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
cell = '''
from lockguard.sync import LockGuard
guard = LockGuard.from_url({redis_url!r})
with guard.hold("x") as lease:
    print("held", lease.resource)
'''
async def main():
    await asyncio.sleep(0)
    (await shell.run_cell_async(cell, transformed_cell=shell.transform_cell(cell))).raise_error()
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ran.stdout.strip(), ran.returncode) == ("held x", 0), ran.stderr


def test_threads_that_are_none_are_refused(redis_url, monkeypatch):
    """gevent and eventlet put functions of their own there; tried with both."""
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    with pytest.raises(ConfigurationError, match="gevent or eventlet"):
        LockGuard.from_url(redis_url).acquire(NAME)


# Its life.


def test_a_guard_that_is_not_used_starts_no_thread_and_one_that_is_forgotten_ends_it(redis_url):
    guard = LockGuard.from_url(redis_url)
    assert not background_threads()
    with guard.hold(NAME):
        pass
    (thread,) = background_threads()
    gone = weakref.ref(guard)
    del guard
    gc.collect()
    assert gone() is None
    thread.join(PATIENCE_S)
    assert not background_threads()


@pytest.mark.parametrize("kind", [LockGuard, lockguard.LockGuard])
def test_a_guard_that_is_copied_is_refused_with_the_remedy(redis_url, kind):
    """A process that is spawned is given its arguments by pickle."""
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="make one in each process"):
            duplicate(kind.from_url(redis_url))


def test_a_lease_keeps_its_guard_until_its_release(redis_url):
    def acquire():
        leases.append(LockGuard.from_url(redis_url).acquire(NAME))

    leases = []
    thread = threading.Thread(target=acquire)  # with its context, the last reference to the guard would go
    thread.start()
    thread.join(PATIENCE_S)
    gc.collect()
    (lease,) = leases
    lease.confirm_now()
    lease.release()
    for thread in background_threads():
        thread.join(PATIENCE_S)
    assert not background_threads()


def test_a_hold_that_is_dropped_is_released(guard):
    lease = guard.hold(NAME).__enter__()
    gc.collect()
    with guard.hold("binance:OTHER"):  # the release was sent before
        assert not guard.inspect(NAME).held
    with pytest.raises(lockguard.LeaseNotHeld):
        lease.ensure()
    assert outlived_lease() is None, "this thread would be refused every write for ever"


def test_closing_ends_the_leases_and_what_waits_and_with_opens_again(redis_url):
    guard, told = LockGuard.from_url(redis_url, observers=[]), []
    lease = guard.acquire(NAME, on_loss=told.append)
    waiting = []

    def wait():
        with pytest.raises(ConfigurationError, match="closed"):
            guard.acquire(NAME, wait=timedelta(seconds=60))
        waiting.append("ended")

    thread = threading.Thread(target=wait)
    thread.start()
    while not guard.inspect(NAME).waiters:
        pass
    guard.close()
    guard.close()
    thread.join(PATIENCE_S)
    assert waiting == ["ended"]
    assert [lost.reason for lost in told] == [LossReason.CLOSED]
    assert current_lease() is lease
    with pytest.raises(LeaseLost, match="closed"):
        lease.release()
    with pytest.raises(ConfigurationError, match="this guard is closed"):
        guard.acquire(NAME)
    assert not background_threads()
    with guard, guard.hold(NAME):
        assert guard.inspect(NAME).held
        assert [seen.resource for seen in guard.list()] == [NAME]
    assert not background_threads()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_observer_that_ends_its_thread_costs_the_leases_and_not_the_guard(redis_url):
    class Ends:
        def on(self, event):
            if isinstance(event, lockguard.events.Waited):
                raise SystemExit

    with LockGuard.from_url(redis_url, observers=[Ends()]) as guard:
        lease = guard.acquire(NAME)
        with LockGuard.from_url(redis_url, observers=[]) as other, other.hold("binance:OTHER"):
            with pytest.raises((ConfigurationError, ResourceBusy)):
                guard.acquire("binance:OTHER", on_busy="raise")
        while background_threads():
            pass
        assert current_lease() is lease
        with pytest.raises(LeaseLost, match="closed"):
            lease.ensure()
        with pytest.raises(LeaseLost, match="closed"):
            lease.release()
        with guard.hold(NAME):
            pass


def test_it_inspects_lists_asks_and_tells_the_history(guard):
    with guard.hold(NAME, operation="open"):
        assert guard.request_handover(NAME, reason="test")
        assert [seen.operation for seen in guard.list("binance:*")] == ["open"]
        broken = guard.break_("binance:OTHER", reason="test")
        assert broken.grant == ""
    assert [line.event for line in guard.history(NAME)][-1] == "granted"
    with pytest.raises(ConfigurationError, match="pattern"):
        list(guard.list(""))


def test_it_takes_the_options_of_the_asynchronous_guard(redis_url, monkeypatch):
    with pytest.raises(ConfigurationError, match="did you mean ttl"):
        LockGuard.from_url(redis_url, tll=SECOND)
    with pytest.raises(ConfigurationError, match=r"LockGuard\.from_url\(url\)"):
        LockGuard(lockguard.LockGuard.from_url(redis_url))
    with pytest.raises(ConfigurationError, match="no unit"):
        LockGuard.from_url(redis_url).acquire(NAME, wait=5)
    with pytest.raises(ConfigurationError, match="on_loss="):
        LockGuard.from_url(redis_url).acquire(NAME, on_loss=coroutine_function)
    with pytest.raises(ConfigurationError, match="is a class"):
        LockGuard.from_url(redis_url, fence=PostgresFence)
    assert redis_url.rpartition("@")[0] not in repr(LockGuard.from_url(redis_url))
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", redis_url)
    store = MemoryStore()
    for guard in (
        LockGuard.from_env(ttl=SECOND),
        LockGuard.from_urls([redis_url]),
        LockGuard.in_memory(store),
        LockGuard(lambda fence: lockguard.LockGuard.from_url(redis_url, fence=fence)),
    ):
        with guard, guard.hold(NAME) as lease:
            lease.confirm_now()


def test_each_method_of_the_asynchronous_guard_has_its_counterpart():
    """With the same parameters, and ``on_loss`` where a lease is given."""
    for name, method in inspect.getmembers(lockguard.LockGuard, inspect.isfunction):
        if name.startswith("_") or name == "aclose":
            continue
        mine = set(inspect.signature(getattr(LockGuard, name)).parameters) - {"on_loss"}
        assert mine == set(inspect.signature(method).parameters), name


# The fence.


@contextlib.asynccontextmanager
async def fence_of(database_url, pools):
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool:
        async with pool.acquire() as connection:
            await install(connection)
        pools.append(pool)
        yield PostgresFence(pool)


def test_the_fence_is_made_in_the_background_loop_and_its_pool_is_closed(redis_url, database_url):
    pools = []
    with LockGuard.from_url(redis_url, fence=lambda: fence_of(database_url, pools)) as guard:
        with guard.hold(NAME) as first:
            pass
        with guard.hold(NAME) as second:
            second.confirm_now()
        assert second.token > first.token
        assert len(pools) == 1
        broken = guard.break_(NAME, reason="test")
        assert broken.token > second.token
    assert pools[0].is_closing()


def test_a_fence_that_cannot_be_made_gives_no_lease_and_is_made_later(redis_url, database_url):
    pools, works = [], []

    @contextlib.asynccontextmanager
    async def fence():
        if not works:
            raise OSError("postgresql://bot:hunter2@h is down")
        async with fence_of(database_url, pools) as made:
            yield made

    with LockGuard.from_url(redis_url, fence=fence, fence_within=timedelta(seconds=20)) as guard:
        with pytest.raises(FenceUnavailable, match=r"fence= failed: OSError$") as raised:
            guard.acquire(NAME)
        assert raised.value.resource == NAME
        works.append(True)
        with guard.hold(NAME):
            pass


def test_a_fence_that_takes_too_long_to_make_keeps_nobody(redis_url):
    @contextlib.asynccontextmanager
    async def fence():
        await asyncio.Event().wait()
        yield

    with (
        LockGuard.from_url(redis_url, fence=fence, fence_within=timedelta(milliseconds=100)) as guard,
        pytest.raises(FenceUnavailable, match="TimeoutError"),
    ):
        guard.acquire(NAME)


def test_a_call_at_the_interpreters_exit_is_told_how_to_open_this_guard(redis_url, database_url):
    closing, goes_on = threading.Event(), threading.Event()

    @contextlib.asynccontextmanager
    async def fence():
        async with fence_of(database_url, []) as made:
            yield made
            closing.set()
            await asyncio.to_thread(goes_on.wait, PATIENCE_S)

    guard = LockGuard.from_url(redis_url, fence=fence, fence_within=timedelta(seconds=20))
    guard.acquire(NAME).release()
    guard._background.close_soon()  # as the handler at the exit does
    assert closing.wait(PATIENCE_S)
    try:
        with pytest.raises(ConfigurationError, match="closed; `with guard:` opens it again"):
            guard.acquire(NAME)
    finally:
        goes_on.set()
        guard.close()


@pytest.mark.parametrize("wrong", [lambda: None, lambda: PostgresFence, coroutine_function, forgetful])
def test_a_function_that_gives_no_fence_is_refused_by_its_first_hold(redis_url, wrong, recwarn):
    guard = LockGuard.from_url(redis_url, fence=wrong)
    with pytest.raises((ConfigurationError, FenceUnavailable)):
        guard.acquire(NAME)
    guard.close()


def test_no_server_is_told_as_by_the_asynchronous_guard():
    with LockGuard.from_url("redis://127.0.0.1:1", observers=[]) as guard, pytest.raises(QuorumUnavailable):
        guard.acquire(NAME, wait=timedelta(0))
