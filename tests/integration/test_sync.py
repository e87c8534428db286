"""The guard for synchronous code: the laws of a lease, in threads."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis

import lockguard
from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseNotHeld,
    LeaseState,
    LossReason,
    ResourceBusy,
    SelfDeadlock,
    current_lease,
    current_leases,
)
from lockguard._context import outlived_lease
from lockguard.sync import Lease, LockGuard

NAME = "binance:APTUSDT"
SECOND = timedelta(seconds=1)
PATIENCE_S = 20


@pytest.fixture
def guard(redis_url):
    with LockGuard.from_url(redis_url, ttl=timedelta(seconds=5)) as guard:
        yield guard


def in_thread(function, *arguments):
    """Run it in a thread of its own; returns what it returns, or raises what it raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result(PATIENCE_S)


def is_free(guard):
    return not guard.inspect(NAME).held


def test_the_body_runs_under_the_lease(guard):
    with guard.hold(NAME, operation="open") as lease:
        assert isinstance(lease, Lease)
        lease.ensure(SECOND)
        assert lease.state is LeaseState.HELD
        assert SECOND < lease.remaining <= timedelta(seconds=5)
        assert current_lease() is lease
        seen = guard.inspect(NAME)
        assert (seen.grant, seen.operation) == (lease.grant.id, "open")
        assert seen.holder.endswith("/MainThread")
    assert is_free(guard)
    assert lease.state is LeaseState.RELEASED
    assert current_lease() is None
    with pytest.raises(LeaseNotHeld):
        lease.ensure()


def test_an_error_of_the_body_releases_and_is_raised_as_it_was(guard):
    class Mine(BaseException):
        pass

    for error in (ValueError("mine"), Mine()):
        with pytest.raises(type(error)) as raised, guard.hold(NAME):
            raise error
        assert raised.value is error
        assert not hasattr(error, "__notes__")
        assert is_free(guard)


def test_one_hook_acquires_and_another_thread_releases(guard):
    lease = guard.acquire(NAME)
    assert current_lease() is lease
    assert in_thread(current_lease) is None
    in_thread(lease.ensure)
    in_thread(lease.release)
    assert is_free(guard)
    assert current_lease() is None
    assert outlived_lease() is None, "this thread would be refused every write for ever"
    with pytest.raises(LeaseNotHeld, match="was released before"):
        lease.release()
    with guard.hold(NAME) as again:
        assert current_leases() == (again,)


def test_a_release_in_the_body_ends_the_hold(guard):
    with guard.hold(NAME) as lease:
        lease.release()
        assert is_free(guard)
        assert current_lease() is None


def test_threads_exclude_each_other(guard):
    """A counter that is read and written with a switch of threads in between must not lose one."""
    counted, switch = 0, threading.Event()

    def work():
        nonlocal counted
        for _ in range(5):
            with guard.hold(NAME, wait=timedelta(seconds=60)):
                seen = counted
                switch.wait(0.0005)
                counted = seen + 1

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert counted == 100


def test_threads_are_served_in_the_order_in_which_they_asked(guard):
    served = []

    def work(number):
        with guard.hold(NAME):
            served.append(number)

    threads = []
    with guard.hold(NAME):
        for number in range(8):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(guard.inspect(NAME).waiters) <= number:
                pass
    for thread in threads:
        thread.join(PATIENCE_S)
    assert served == list(range(8))


def test_the_same_thread_enters_again_with_its_token(guard):
    with guard.hold(NAME) as lease:
        with guard.hold(NAME) as again:
            assert again is lease
        with guard.hold_many([NAME, "binance:OTHER"]) as (inner, other):
            assert inner is lease
            assert current_leases() == (lease, other)
        lease.ensure()
        assert not is_free(guard)
        with (
            pytest.raises(ConfigurationError, match="the outer hold releases it"),
            guard.hold(NAME, at_least=SECOND),
        ):
            pass
    assert is_free(guard)


def test_a_thread_that_acquires_what_it_has_acquired_is_told_at_once(guard):
    lease = guard.acquire(NAME)
    with pytest.raises(SelfDeadlock, match="acquired 'binance:APTUSDT' before"):
        guard.acquire(NAME)
    lease.release()


def test_a_thread_with_the_context_of_the_holder_is_told_that_it_would_wait_for_ever(guard):
    def ask():
        assert current_lease() is not None
        with guard.hold(NAME, wait=timedelta(0)):
            pass

    with guard.hold(NAME):
        with pytest.raises(SelfDeadlock, match="whose context it was given"):
            in_thread(contextvars.copy_context().run, ask)
        with pytest.raises(ResourceBusy), ThreadPoolExecutor(1) as pool:
            pool.submit(guard.acquire, NAME, on_busy="raise").result(PATIENCE_S)


def test_a_loss_is_told_by_callback_and_by_the_next_guarded_call(guard):
    told, heard = [], threading.Event()

    def on_loss(lost):
        told.append((lost.reason, threading.current_thread().name))
        heard.set()

    with pytest.raises(LeaseLost) as raised, guard.hold(NAME, on_loss=on_loss) as lease:
        guard.break_(NAME, reason="test")
        assert heard.wait(PATIENCE_S)
        assert told == [(LossReason.BROKEN, "lockguard")]
        assert current_lease() is lease, "a write would go out as if there had never been a lease"
        assert lease.state is LeaseState.LOST
        with pytest.raises(LeaseLost, match="broken"):
            lease.ensure()
        with pytest.raises(LeaseLost, match="broken"), guard.hold(NAME):
            pass
    assert raised.value.reason is LossReason.BROKEN
    assert current_lease() is None


def test_the_loss_is_a_note_on_the_bodys_own_error(guard):
    heard = threading.Event()
    with pytest.raises(ValueError, match="mine") as raised, guard.hold(NAME, on_loss=lambda _: heard.set()):
        guard.break_(NAME, reason="test")
        assert heard.wait(PATIENCE_S)
        raise ValueError("mine")
    assert "was lost: broken" in raised.value.__notes__[0]


def test_a_lost_lease_of_several_is_the_loss_of_all(guard):
    heard = threading.Event()
    with (
        pytest.raises(LeaseLost),
        guard.hold_many([NAME, "binance:B"], on_loss=lambda _: heard.set()) as leases,
    ):
        guard.break_("binance:B", reason="test")
        assert heard.wait(PATIENCE_S)
        assert current_leases() == leases
        for lease in leases:
            with pytest.raises(LeaseLost, match="broken"):
                lease.ensure()


def test_release_of_a_lost_lease_tells_it_once(guard):
    lease = guard.acquire(NAME)
    guard.break_(NAME, reason="test")
    with pytest.raises(LeaseLost, match="broken"):
        lease.release()
    assert current_lease() is None
    with pytest.raises(LeaseNotHeld):
        lease.release()


def test_what_was_lost_can_be_acquired_anew(guard):
    lost = guard.acquire(NAME)
    guard.break_(NAME, reason="test")
    with pytest.raises(LeaseLost):
        lost.ensure()
    lease = guard.acquire(NAME)
    assert current_leases() == (lease,)
    lease.ensure()
    with pytest.raises(LeaseLost):
        lost.release()
    assert current_leases() == (lease,)
    lease.release()


@pytest.mark.parametrize("by", [in_thread, lambda release: release()], ids=["another thread", "itself"])
def test_a_body_that_was_entered_again_is_refused_after_the_release_and_not_let_through(guard, by):
    """The hook that releases does not know of it; its writes would carry no token."""
    lease = guard.acquire(NAME)
    with guard.hold(NAME):
        with guard.hold_many([NAME, "binance:OTHER"]):
            by(lease.release)
        assert outlived_lease() is lease
    assert outlived_lease() is None, "this thread would be refused every write for ever"
    with guard.hold(NAME) as again:
        assert current_leases() == (again,)


@pytest.mark.parametrize("begin", ["hold", "acquire and hold"])
def test_a_lease_of_its_own_lets_no_body_through_whose_lease_was_released(guard, begin):
    with contextlib.ExitStack() as stack:
        acquired = guard.acquire(NAME) if begin == "acquire and hold" else None
        lease = stack.enter_context(guard.hold(NAME))
        with guard.hold("binance:OTHER"):
            assert outlived_lease() is None
            in_thread(lease.release)
            assert outlived_lease() is lease
        assert acquired in (None, lease)
    with guard.hold("binance:OTHER"):
        assert outlived_lease() is None


def test_a_hold_that_was_not_entered_is_no_body(guard):
    lease = guard.acquire(NAME)
    in_thread(guard.acquire, "binance:OTHER")
    with pytest.raises(ResourceBusy) as kept, guard.hold_many([NAME, "binance:OTHER"], on_busy="raise"):
        pytest.fail("it is busy")
    lease.release()
    assert outlived_lease() is None, "this thread would be refused every write as long as the error lives"
    assert kept.value.resource == "binance:OTHER"


@pytest.mark.parametrize("entered_again", [False, True], ids=["hold", "acquire and hold"])
def test_inside_a_body_whose_lease_was_lost_no_new_one_begins(guard, entered_again):
    """After its release, the body would go on as if there had never been a lease."""
    with contextlib.ExitStack() as stack:
        if entered_again:
            stack.callback(guard.acquire(NAME).mark_left)
        held = guard.hold(NAME)
        lost = held.__enter__()
        guard.break_(NAME, reason="test")
        with pytest.raises(LeaseLost):
            guard.acquire(NAME)
        assert current_leases() == (lost,)
        with contextlib.suppress(LeaseLost):
            held.__exit__(None, None, None)
    assert outlived_lease() is None
    guard.acquire(NAME).release()


def test_a_generator_that_ends_in_another_thread_leaves_the_one_that_began_it_free(guard):
    def ticks():
        with guard.hold(NAME) as lease:
            yield lease

    generator = ticks()
    lease = next(generator)
    assert current_lease() is lease
    in_thread(generator.close)
    assert is_free(guard)
    assert current_lease() is None
    assert outlived_lease() is None, "this thread would be refused every write for ever"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_generator_that_the_background_thread_collects_releases_and_says_nothing(guard):
    class Tick:
        def __init__(self):
            self.generator, self.itself = self.ticks(), self
            next(self.generator)

        @staticmethod
        def ticks():
            with guard.hold(NAME):
                yield

    gc.disable()
    try:
        Tick()
        guard._background.soon(gc.collect)
        with guard.hold(NAME, wait=SECOND):
            pass
    finally:
        gc.enable()
    assert outlived_lease() is None


def test_coroutines_in_the_body_have_the_lease(guard):
    async def main():
        lease = current_lease()
        lease.ensure()
        await lease.confirm()
        with pytest.raises(ConfigurationError, match="inside a running event loop"):
            guard.acquire("binance:OTHER")
        with pytest.raises(ConfigurationError, match="inside a running event loop"), guard.hold(NAME):
            pytest.fail("two tasks of this loop could be inside at once")
        return lease

    with guard.hold(NAME) as lease:
        assert asyncio.run(main()) is lease
        lease.confirm_now()
        with pytest.raises(ConfigurationError, match=r"write lease\.confirm_now"):
            lease.confirm()


def test_a_lease_whose_lock_is_gone_is_not_confirmed(guard, redis_url):
    lease = guard.acquire(NAME)
    lease.confirm_now()
    with redis.Redis.from_url(redis_url) as client:
        client.delete(f"lockguard:{{{NAME}}}")
    with pytest.raises(LeaseLost, match="refused"):
        lease.confirm_now()
    with pytest.raises(LeaseLost, match="refused"):
        lease.release()


async def test_a_guard_of_the_other_kind_is_refused_in_one_line(redis_url):
    with pytest.raises(ConfigurationError, match=r"is one of lockguard\.sync"):
        async with LockGuard.from_url(redis_url).hold(NAME):
            pass
    async with lockguard.LockGuard.from_url(redis_url) as guard:
        with pytest.raises(ConfigurationError, match="async with"), guard.hold(NAME):
            pass
