"""The time that tests move, and a store that fails on demand."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import fakeredis
import pytest

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LockGuard,
    LossReason,
    QuorumUnavailable,
    ResourceBusy,
    sync,
)
from lockguard.testing import FakeClock, MemoryStore

pytest_plugins = ["lockguard.testing.pytest_plugin"]

S = timedelta(seconds=1)
NAME = "binance:APTUSDT"


class Body:
    """A body under a lease that waits until it is told to end."""

    def __init__(self, guard, clock, **options):
        self.end = asyncio.Event()
        self.lost_at = None
        self.task = asyncio.create_task(self._run(guard, clock, options))

    async def _run(self, guard, clock, options):
        async with guard.hold(NAME, **options):
            try:
                await self.end.wait()
            finally:
                self.lost_at = clock.now()


async def test_a_lease_is_renewed_for_as_long_as_time_runs(lockguard_clock, lockguard_memory, monkeypatch):
    loop, on_the_machines = asyncio.get_running_loop(), []
    call_at = loop.call_at  # call_later goes through it too

    def noted(when, callback, *args, **options):
        on_the_machines.append(callback)
        return call_at(when, callback, *args, **options)

    async with lockguard_memory.hold(NAME) as lease:
        monkeypatch.setattr(loop, "call_at", noted)
        # Six times the ttl is enough: each instant at which something is due is a hundred turns of the loop.
        await lockguard_clock.run_for(60 * S)
        lease.ensure()
        seen = await lockguard_memory.inspect(NAME)
    assert seen.age_ms == pytest.approx(60_000, abs=10)
    assert seen.renewals > 10
    assert on_the_machines == [], "the machine's own clock decides"


async def test_a_waiter_gives_up_at_the_instant_and_not_before(
    lockguard_clock, lockguard_memory, new_lockguard
):
    async with lockguard_memory.hold(NAME):
        waiting = asyncio.create_task(_held(new_lockguard(), wait=5 * S))
        await lockguard_clock.run_for(timedelta(seconds=4.99))
        assert not waiting.done()
        await lockguard_clock.run_for(timedelta(seconds=0.02))
        with pytest.raises(ResourceBusy) as busy:
            waiting.result()
    assert busy.value.age == pytest.approx(5 * S, abs=timedelta(milliseconds=10))


async def test_a_waiter_gets_the_lock_when_it_is_released(lockguard_clock, lockguard_memory, new_lockguard):
    body = Body(lockguard_memory, lockguard_clock)
    waiting = asyncio.create_task(_held(new_lockguard(), wait=60 * S))
    await lockguard_clock.run_for(10 * S)
    assert not waiting.done()
    body.end.set()
    await lockguard_clock.run_for(timedelta(0))
    assert waiting.done()
    await body.task


async def test_a_body_is_cut_when_its_lease_runs_out_and_another_begins_after_that(
    lockguard_clock, lockguard_memory, lockguard_store
):
    body = Body(lockguard_memory, lockguard_clock, ttl=10 * S)
    await lockguard_clock.run_for(S)
    lockguard_store.hang()
    began = lockguard_clock.now()
    await lockguard_clock.run_for(30 * S)
    with pytest.raises(LeaseLost) as lost:
        await body.task
    assert lost.value.reason is LossReason.EXPIRED
    assert 5 < body.lost_at - began < 10


async def test_at_a_leap_nothing_runs_meanwhile_and_all_that_is_due_after_it(
    lockguard_clock, lockguard_memory, new_lockguard
):
    body = Body(lockguard_memory, lockguard_clock)
    await lockguard_clock.run_for(S)
    lockguard_clock.advance(60 * S)
    async with new_lockguard().hold(NAME, on_busy="raise"):
        await lockguard_clock.run_for(timedelta(0))
        with pytest.raises(LeaseLost):
            await body.task


async def test_a_process_that_is_stopped_is_a_guard_whose_clock_stands_still(lockguard_clock, new_lockguard):
    its_own = FakeClock()
    body = Body(new_lockguard(clock=its_own), its_own)
    await its_own.run_for(S)
    await lockguard_clock.run_for(60 * S)
    async with new_lockguard().hold(NAME, on_busy="raise"):
        assert not body.task.done(), "it was told although it does not run"
        its_own.advance(60 * S)
        await its_own.run_for(timedelta(0))
        with pytest.raises(LeaseLost):
            await body.task


async def test_a_lock_outlives_its_process_by_the_ttl_on_the_stores_own_clock(
    lockguard_clock, lockguard_store
):
    real = fakeredis.FakeRedis()
    real.set("a", "b", ex=100)
    lockguard_store.execute("SET", "a", "b", "PX", "5000")
    await lockguard_clock.run_for(timedelta(seconds=4.9))
    assert lockguard_store.execute("GET", "a") == b"b"
    await lockguard_clock.run_for(timedelta(seconds=0.2))
    assert lockguard_store.execute("GET", "a") is None
    await lockguard_clock.run_for(200 * S)
    assert real.get("a") == b"b", "another user of fakeredis got this clock"


async def test_sleep_may_stand_in_for_that_of_asyncio(lockguard_clock, monkeypatch):
    monkeypatch.setattr("asyncio.sleep", lockguard_clock.sleep)
    sleeping = asyncio.create_task(asyncio.sleep(3600, "slept"))  # on the clock of the test
    await lockguard_clock.run_for(timedelta(seconds=3599))
    assert not sleeping.done()
    await lockguard_clock.run_for(S)
    assert await sleeping == "slept"
    assert await asyncio.sleep(0, "at once") == "at once"  # as well


async def test_a_sleep_that_is_cancelled_leaves_no_timer_that_runs(lockguard_clock):
    sleeping = asyncio.create_task(lockguard_clock.sleep(1))  # of the test
    await lockguard_clock.run_for(timedelta(0))
    sleeping.cancel()
    await lockguard_clock.run_for(2 * S)
    assert sleeping.cancelled()


async def test_timers_run_in_order_and_in_the_course_of_time(lockguard_clock):
    told: list[tuple[str, float]] = []

    def tell(what):
        told.append((what, lockguard_clock.now()))
        if what == "first":
            lockguard_clock.call_later(0.5, tell, "from within")

    began = lockguard_clock.now()
    lockguard_clock.call_later(2, tell, "second")
    lockguard_clock.call_later(1, tell, "first")
    lockguard_clock.call_later(1.2, tell, "never").cancel()
    await lockguard_clock.run_for(3 * S)
    assert told == [("first", began + 1), ("from within", began + 1.5), ("second", began + 2)]
    assert lockguard_clock.now() == began + 3


async def test_time_does_not_go_back():
    clock = FakeClock()
    with pytest.raises(ConfigurationError, match="cannot advance"):
        await clock.run_for(-S)


@pytest.mark.parametrize("by", [5, 0.5, None, "5 s"])
async def test_a_time_without_a_unit_is_told(by):
    clock = FakeClock()
    for call in (clock.advance, clock.set_wall_back):
        with pytest.raises(ConfigurationError, match="has no unit; write a timedelta"):
            call(by)
    with pytest.raises(ConfigurationError, match="has no unit; write a timedelta"):
        await clock.run_for(by)


@pytest.mark.parametrize("kind", [LockGuard, sync.LockGuard])
@pytest.mark.parametrize("store", [7, "redis://127.0.0.1", FakeClock()])
def test_what_is_no_store_is_told_when_the_guard_is_made(kind, store):
    with pytest.raises(ConfigurationError, match=r"shares a MemoryStore, and not (an?|the) ") as told:
        kind.in_memory(store)
    assert "127.0.0.1" not in str(told.value)


async def test_a_store_that_cannot_be_reached_grants_nothing_until_it_recovers(
    lockguard_clock, lockguard_memory, lockguard_store
):
    lockguard_store.fail()
    with pytest.raises(QuorumUnavailable, match=r"store\.fail\(\)"):
        await _held(lockguard_memory, wait=timedelta(0))
    with pytest.raises(QuorumUnavailable):
        await lockguard_memory.inspect(NAME)
    waiting = asyncio.create_task(_held(lockguard_memory, wait=60 * S))
    await lockguard_clock.run_for(5 * S)
    assert not waiting.done()
    lockguard_store.recover()
    await lockguard_clock.run_for(S)
    assert waiting.done()
    await waiting


async def test_a_store_that_fails_for_a_while_costs_no_lease(
    lockguard_clock, lockguard_memory, lockguard_store
):
    async with lockguard_memory.hold(NAME, ttl=10 * S) as lease:
        lockguard_store.fail()
        await lockguard_clock.run_for(5 * S)
        lockguard_store.recover()
        await lockguard_clock.run_for(30 * S)
        lease.ensure()


async def test_what_was_asked_of_a_store_that_hangs_is_done_when_it_recovers(
    lockguard_clock, lockguard_memory, lockguard_store, new_lockguard
):
    body = Body(lockguard_memory, lockguard_clock)
    await lockguard_clock.run_for(S)
    lockguard_store.hang()
    body.end.set()
    await lockguard_clock.run_for(4 * S)
    await body.task  # the release is not known to have been done, and the body was whole
    lockguard_store.recover()
    async with new_lockguard().hold(NAME, on_busy="raise"):
        pass


async def test_the_answer_of_a_release_is_lost(
    lockguard_clock, lockguard_memory, lockguard_store, new_lockguard
):
    lockguard_store.lose_answers(of="release")
    await _held(lockguard_memory)
    async with new_lockguard().hold(NAME, on_busy="raise"):
        pass


async def test_the_answer_of_an_acquire_is_lost_and_asked_for_again(
    lockguard_clock, lockguard_memory, lockguard_store
):
    lockguard_store.lose_answers(of="acquire")
    held = asyncio.create_task(_held(lockguard_memory))
    await lockguard_clock.run_for(S)
    assert not held.done()
    lockguard_store.recover()
    await lockguard_clock.run_for(S)
    await held


def test_an_answer_that_does_not_exist_cannot_be_lost(lockguard_store):
    with pytest.raises(ConfigurationError, match="'renewal' is not known; write one of acquire"):
        lockguard_store.lose_answers(of="renewal")


async def test_without_the_clock_a_store_has_the_machines(lockguard_memory):
    async with lockguard_memory.hold(NAME):
        seen = await lockguard_memory.inspect(NAME)
    assert seen.server_ms > 1_760_000_000_000


def test_a_store_without_a_clock_of_tests_is_as_before():
    store = MemoryStore()
    assert store.execute("PING")


async def _held(guard, **options):
    async with guard.hold(NAME, **options):
        pass
