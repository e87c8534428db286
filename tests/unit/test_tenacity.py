"""Retrying that knows leases."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import asyncpg
import pytest
import redis
from ccxt.base import errors as ccxt
from tenacity import AsyncRetrying, Future, RetryCallState, stop_after_attempt, wait_fixed, wait_none

from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard.errors import (
    AcquireError,
    ConfigurationError,
    FenceUnavailable,
    LeaseLost,
    LockguardError,
    LossReason,
    QueueFull,
    QuorumUnavailable,
    ResourceBusy,
    StaleToken,
)
from lockguard_tenacity import (
    retry_if_busy,
    retry_if_network_failed,
    retry_if_retryable,
    retry_reads,
    stop_at_lease_end,
    wait_for_retry_after,
)


class HandClock:
    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds


def busy(retry_after: timedelta | None = None) -> ResourceBusy:
    return ResourceBusy("busy", resource="r", retry_after=retry_after)


def state_after(exc: BaseException | None, *, sleep: float = 0) -> RetryCallState:
    state = RetryCallState(AsyncRetrying(), None, (), {})
    outcome = Future(1)
    if exc is None:
        outcome.set_result(None)
    else:
        outcome.set_exception(exc)
    state.outcome = outcome
    state.upcoming_sleep = sleep
    return state


def a_lease(clock: HandClock, seconds: float) -> Lease:
    grant = Grant(parse_resource("r"), new_grant_id(), Token(1), "test", "", 10_000)
    return Lease(grant, deadline=clock.now() + seconds, clock=clock)


@contextmanager
def held(lease: Lease) -> Iterator[None]:
    task = asyncio.current_task()
    assert task is not None
    token = enter_scope(LeaseScope(lease, task, None))
    try:
        yield
    finally:
        exit_scope(token)


LOST = LeaseLost("lost", resource="r", token=1, reason=LossReason.EXPIRED)
STALE = StaleToken("stale", resource="r", presented=1, current=2)


def test_only_a_held_resource_is_busy() -> None:
    again = retry_if_busy()
    assert again(state_after(busy()))
    assert again(state_after(QueueFull("full", resource="r")))
    for exc in (
        None,
        LOST,
        STALE,
        FenceUnavailable("x", resource="r"),
        ValueError(),
        asyncio.CancelledError(),
    ):
        assert not again(state_after(exc))


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (busy(), True),
        (QuorumUnavailable("x", resource="r", votes={}), True),
        (FenceUnavailable("x", resource="r"), True),
        (AcquireError("x", resource="r"), False),
        (LOST, False),
        (STALE, False),
        (ConfigurationError("x"), False),
        (LockguardError("x"), False),
        (KeyError("x"), False),
    ],
)
def test_what_calls_itself_retryable_is_retried(exc: BaseException, *, expected: bool) -> None:
    assert retry_if_retryable()(state_after(exc)) is expected


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (ccxt.ExchangeNotAvailable("x"), True),
        (ccxt.RequestTimeout("x"), True),
        (ccxt.DDoSProtection("x"), True),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (redis.ConnectionError(), True),
        (asyncpg.ConnectionDoesNotExistError("x"), True),
        (ccxt.ExchangeError("x"), False),
        (ccxt.OrderNotFound("x"), False),
        (redis.ResponseError(), False),
        (asyncpg.UniqueViolationError("x"), False),
        (LOST, False),
        (asyncio.CancelledError(), False),
    ],
)
def test_only_the_network_is_retried_for_reads(exc: BaseException, *, expected: bool) -> None:
    assert retry_if_network_failed()(state_after(exc)) is expected


def test_the_error_says_how_long_to_wait() -> None:
    wait = wait_for_retry_after(jitter=timedelta(milliseconds=100))
    pauses = [wait(state_after(busy(timedelta(seconds=2)))) for _ in range(50)]
    assert all(2 <= pause <= 2.1 for pause in pauses)
    assert len(set(pauses)) > 1


def test_the_wait_is_bounded_and_never_below_zero() -> None:
    wait = wait_for_retry_after(longest=timedelta(seconds=1), jitter=timedelta(0))
    assert wait(state_after(busy(timedelta(hours=1)))) == 1
    assert wait(state_after(busy(timedelta(seconds=-5)))) == 0


def test_an_error_that_does_not_say_waits_otherwise() -> None:
    wait = wait_for_retry_after(otherwise=wait_fixed(0.25))
    assert wait(state_after(busy())) == 0.25
    assert wait(state_after(FenceUnavailable("x", resource="r"))) == 0.25
    assert wait_for_retry_after(longest=timedelta(seconds=1))(state_after(busy())) <= 1


def test_it_gives_up_when_the_lease_would_be_over() -> None:
    clock = HandClock()
    lease = a_lease(clock, 5)
    stop = stop_at_lease_end(timedelta(seconds=1), lease=lease)
    assert not stop(state_after(busy(), sleep=3.9))
    assert stop(state_after(busy(), sleep=4))
    clock.seconds += 4.5
    assert stop(state_after(busy()))


def test_it_gives_up_when_the_lease_is_lost_or_released() -> None:
    for end in (lambda lease: lease.mark_lost(LossReason.BROKEN), lambda lease: lease.mark_released()):
        lease = a_lease(HandClock(), 5)
        end(lease)
        assert stop_at_lease_end(lease=lease)(state_after(busy()))


async def test_it_finds_the_lease_of_the_body_and_gives_up_without_one() -> None:
    stop = stop_at_lease_end()
    assert stop(state_after(busy()))
    with held(a_lease(HandClock(), 5)):
        assert not stop(state_after(busy(), sleep=4))
        assert stop(state_after(busy(), sleep=6))


async def test_the_strategies_compose_with_tenacitys_own() -> None:
    tries = 0

    async def body() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise busy(timedelta(0))
        return "done"

    retrying = AsyncRetrying(
        retry=retry_if_busy() | retry_if_retryable(),
        wait=wait_for_retry_after(jitter=timedelta(0)) + wait_none(),
        stop=stop_after_attempt(5) | stop_at_lease_end(lease=a_lease(HandClock(), 5)),
        reraise=True,
    )
    assert await retrying(body) == "done"
    assert tries == 3


async def test_reads_are_repeated_and_the_last_error_is_raised_as_it_is() -> None:
    tries = 0

    @retry_reads(attempts=3, longest=timedelta(milliseconds=1))
    async def read() -> None:
        nonlocal tries
        tries += 1
        raise ccxt.ExchangeNotAvailable(str(tries))

    with pytest.raises(ccxt.ExchangeNotAvailable, match="3"):
        await read()


async def test_reads_do_not_outlast_the_lease() -> None:
    tries = 0
    clock = HandClock()

    @retry_reads(attempts=100, longest=timedelta(milliseconds=1))
    async def read() -> None:
        nonlocal tries
        tries += 1
        clock.seconds += 1
        raise TimeoutError

    with held(a_lease(clock, 4.5)), pytest.raises(TimeoutError):
        await read()
    assert tries == 5


async def test_a_cancelled_read_stays_cancelled() -> None:
    started = asyncio.Event()

    @retry_reads()
    async def read() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
