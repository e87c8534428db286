"""How a lease ends when it should not: before the server drops it, as one typed error that masks none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import redis

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseState,
    LockGuard,
    LossReason,
    QuorumUnavailable,
    ResourceBusy,
    current_lease,
)
from lockguard._clock import SYSTEM_CLOCK
from lockguard.events import RenewalUnanswered
from lockguard_lab.servers import HOLD, FaultProxy, RedisServer

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
SHORT = timedelta(milliseconds=600)


@pytest.fixture
async def link(redis_server, redis_url):
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy, proxy.url_for(redis_url), redis_url


async def test_the_body_is_cancelled_before_the_server_would_drop_the_key(link):
    proxy, url, direct = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                proxy.partition()
                with redis.Redis.from_url(direct) as client:
                    client.ping()  # connecting takes time that would count as life
                    asked_at = SYSTEM_CLOCK.now()
                    dropped_at = asked_at + client.pttl(LOCK) / 1000
                assert asked_at < lease.deadline < dropped_at
                try:
                    await asyncio.Event().wait()
                finally:
                    ended_at = SYSTEM_CLOCK.now()
        assert lease.deadline <= ended_at < lease.deadline + 0.25
        assert caught.value.reason is LossReason.EXPIRED
        assert caught.value.token == lease.token
        assert asyncio.current_task().cancelling() == 0
        proxy.heal()


async def test_a_server_that_hangs_at_connect_does_not_outlast_a_caller_s_patience(link):
    """Connecting may take two seconds; who waits for less is told sooner, and the attempt goes on."""
    proxy, url, _ = link
    proxy.partition()
    guard = LockGuard.from_url(url)
    for patience in (timedelta(0), timedelta(seconds=0.6)):
        began = SYSTEM_CLOCK.now()
        with pytest.raises(QuorumUnavailable):
            async with guard.hold(NAME, wait=patience):
                raise AssertionError("the body ran")
        assert SYSTEM_CLOCK.now() - began < patience.total_seconds() + 1.2
    proxy.heal()
    async with guard.hold(NAME):
        pass
    await guard.aclose()


async def test_the_caller_learns_of_the_loss_although_the_server_still_hangs(link):
    proxy, url, _ = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:
        began = time.monotonic()
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                proxy.partition()
                await asyncio.Event().wait()
        assert time.monotonic() - began < 1.0
        proxy.heal()


async def test_one_unanswered_renewal_does_not_end_a_lease(link):
    proxy, url, _ = link
    seen = []

    class Watcher:
        def on(self, event):
            seen.append(event)
            if isinstance(event, RenewalUnanswered):
                proxy.heal()

    async with LockGuard.from_url(url, ttl=timedelta(seconds=1), observers=[Watcher()]) as guard:
        async with guard.hold(NAME) as lease:
            first_deadline = lease.deadline
            proxy.to_client.set(HOLD)
            async with asyncio.timeout(5):
                while lease.deadline < first_deadline + 0.5:
                    await asyncio.sleep(0.01)
            assert lease.state is LeaseState.HELD
    assert any(isinstance(event, RenewalUnanswered) for event in seen)


async def test_a_lease_survives_a_reset_connection(link):
    proxy, url, _ = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:
        async with guard.hold(NAME) as lease:
            first_deadline = lease.deadline
            proxy.reset()
            async with asyncio.timeout(5):
                while lease.deadline < first_deadline + 1.0:
                    await asyncio.sleep(0.01)


async def test_the_bodys_own_error_wins_and_the_loss_is_noted_on_it(link):
    proxy, url, _ = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:
        with pytest.raises(ValueError, match="mine") as caught:
            async with guard.hold(NAME):
                proxy.partition()
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ValueError("mine")
        assert any("was lost" in note for note in caught.value.__notes__)
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)
        proxy.heal()


async def test_a_cancel_from_outside_stays_a_cancel(link):
    _, url, direct = link
    async with LockGuard.from_url(url) as guard:

        async def body():
            async with guard.hold(NAME):
                inside.set()
                await asyncio.Event().wait()

        inside = asyncio.Event()
        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        with redis.Redis.from_url(direct) as client:
            assert not client.exists(LOCK)


async def test_an_outside_cancel_together_with_the_loss_stays_a_cancel(link):
    proxy, url, _ = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:

        async def body():
            async with guard.hold(NAME):
                proxy.partition()
                inside.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    task.cancel()
                    raise

        inside = asyncio.Event()
        task = asyncio.create_task(body())
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.heal()


async def test_a_task_group_that_failed_before_does_not_make_a_cancel_of_the_loss(redis_url):
    """In Python 3.11 a group whose child fails while it is left does not count its own cancel back."""

    async with LockGuard.from_url(redis_url) as guard:
        for _ in range(2):
            with pytest.raises(LeaseLost):
                async with guard.hold(NAME):
                    await _handled_failure()
                    await guard.break_(NAME, reason="an operator")
                    await asyncio.Event().wait()
            with pytest.raises(LeaseLost):
                async with guard.hold(NAME):
                    await _handled_failure()
                    await guard.break_(NAME, reason="an operator")
        await asyncio.sleep(0)


async def test_a_break_whose_caller_is_cancelled_midway_ends_the_holder_as_broken(link):
    """Half of one would free the lock and leave the holder of this process believing."""
    proxy, url, direct = link
    async with LockGuard.from_url(direct) as holding, LockGuard.from_url(url) as operator:
        await operator.inspect(NAME)

        async def body():
            async with holding.hold(NAME):
                inside.set_result(None)
                await asyncio.Event().wait()

        inside = asyncio.get_running_loop().create_future()
        holder = asyncio.create_task(body())
        await inside
        sent = proxy.to_server.received_bytes
        proxy.to_client.set(HOLD)
        breaking = asyncio.create_task(operator.break_(NAME, reason="an operator"))
        await proxy.to_server.wait_received(sent + 1)
        breaking.cancel()
        await asyncio.wait([breaking])
        proxy.heal()
        with pytest.raises(LeaseLost) as caught:
            await holder
        assert caught.value.reason is LossReason.BROKEN


async def test_a_break_whose_answer_is_lost_ends_the_holder_of_its_guard_as_broken(link):
    """The command may have arrived: to believe that it has not would let an order out."""
    proxy, url, _ = link
    async with LockGuard.from_url(url) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME):
                sent = proxy.to_server.received_bytes
                proxy.partition()
                breaking = asyncio.create_task(guard.break_(NAME, reason="an operator"))
                await proxy.to_server.wait_received(sent + 1)
                proxy.reset()
                try:
                    await asyncio.Event().wait()
                finally:
                    proxy.heal()
                    await asyncio.wait([breaking])
        assert caught.value.reason is LossReason.BROKEN
        with pytest.raises(QuorumUnavailable):
            await breaking


def test_a_program_that_ends_as_its_server_dies_leaves_no_task_behind():
    with RedisServer() as server:
        script = f"""
import asyncio, os, signal, socket
from lockguard import LockGuard

async def main():
    guard = LockGuard.from_url({server.url!r})
    await guard.inspect({NAME!r})
    os.kill({server.pid}, signal.SIGKILL)
    try:  # the loop stands still until it is dead, and learns of it in its last turns
        while True:
            socket.create_connection(("127.0.0.1", {server.port})).close()
    except OSError:
        pass

asyncio.run(main())
"""
        ended = subprocess.run(
            [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
        )
    assert ended.returncode == 0, ended.stderr
    assert "Task" not in ended.stderr


async def test_tls_to_a_port_that_speaks_none_is_told_with_the_remedy_also_to_the_impatient(redis_server):
    url = f"rediss://127.0.0.1:{redis_server.port}"
    guard = LockGuard.from_url(url, wait=timedelta(milliseconds=300))
    try:
        with pytest.raises(QuorumUnavailable, match="speaks none: write redis:// for that"):
            async with guard.hold(NAME):
                pass
    finally:
        await guard.aclose()


async def _handled_failure():
    async def fail():
        await asyncio.sleep(0)
        raise ValueError("handled")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
    except* ValueError:
        pass


async def _unwind():
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(20):
            await asyncio.sleep(0)


async def _busy():
    while True:
        await asyncio.sleep(0)


BODIES = {
    "plain": lambda: asyncio.Event().wait(),
    "child": lambda: asyncio.create_task(_unwind()),
    "gather": lambda: asyncio.gather(_unwind(), _unwind()),
    "finally": _unwind,
    "busy": _busy,
}


@pytest.mark.parametrize("first", ["outside", "loss"])
@pytest.mark.parametrize("body", BODIES)
async def test_a_cancel_from_outside_wins_over_the_loss_whichever_came_first(redis_url, body, first):
    """Also where a task group has left a count behind: a supervisor's cancel must never be taken for ours."""
    leases: list = []

    async def run(guard):
        async with guard.hold(NAME) as lease:
            await _handled_failure()
            leases.append(lease)
            await BODIES[body]()

    for turns in range(4):
        async with LockGuard.from_url(redis_url) as guard:
            task = asyncio.create_task(run(guard))
            while len(leases) <= turns:
                await asyncio.sleep(0.001)
            for _ in range(3):
                await asyncio.sleep(0)
            end = [task.cancel, lambda: leases[-1].end(LossReason.FENCED)]
            for cancel in end if first == "outside" else end[::-1]:
                cancel()
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.wait([task])
            # A body that does not unwind may have ended as lost before the cancel came.
            if first == "outside" or turns == 0 or body in ("child", "gather", "finally"):
                assert task.cancelled(), f"{turns} turns apart: {task}"


async def test_a_body_that_swallows_the_cancel_still_ends_as_lost(link):
    proxy, url, _ = link
    async with LockGuard.from_url(url, ttl=SHORT) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                proxy.partition()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass
        await asyncio.sleep(0)
        proxy.heal()


async def test_a_body_that_stalled_the_loop_past_its_deadline_ends_as_lost(redis_url):
    async with LockGuard.from_url(redis_url, ttl=timedelta(milliseconds=200)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME) as lease:
                time.sleep(0.4)  # a stalled event loop: nothing of ours could run meanwhile
                with pytest.raises(LeaseLost):
                    lease.ensure()
                assert current_lease() is lease
        await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0


async def test_ensure_refuses_what_would_outlast_the_lease(redis_url):
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=5)) as guard:
        async with guard.hold(NAME) as lease:
            lease.ensure(timedelta(seconds=1))
            with pytest.raises(LeaseLost, match=r"6\.000 s are needed, which its ttl of 5 s never gives"):
                lease.ensure(timedelta(seconds=6))
            assert lease.state is LeaseState.HELD


async def test_ensure_refuses_what_would_outlast_the_longest_hold(redis_url):
    longest = timedelta(seconds=1)
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=10), max_hold=longest) as guard:
        with pytest.raises(LeaseLost, match="max_hold"):
            async with guard.hold(NAME) as lease:
                lease.ensure(longest / 10)
                await lease.confirm()  # a renewal does not move that end
                assert lease.remaining <= longest
                with pytest.raises(LeaseLost, match=r"2\.000 s are needed") as refused:
                    lease.ensure(2 * longest)
                assert refused.value.reason is LossReason.MAX_HOLD
                assert lease.state is LeaseState.HELD
                time.sleep(longest.total_seconds())  # a stalled event loop: nobody cuts the body meanwhile
                with pytest.raises(LeaseLost, match="max_hold"):
                    lease.ensure()


async def test_a_time_without_a_unit_is_refused_before_an_order(redis_url):
    async with LockGuard.from_url(redis_url) as guard, guard.hold(NAME) as lease:
        for wrong in (3, None):
            with pytest.raises(ConfigurationError, match=f"needed={wrong} has no unit"):
                lease.ensure(wrong)
            with pytest.raises(ConfigurationError, match=f"within={wrong} has no unit"):
                await lease.confirm(within=wrong)


async def test_a_closed_guard_ends_its_leases(redis_url):
    guard = LockGuard.from_url(redis_url)
    with pytest.raises(LeaseLost) as caught:
        async with guard.hold(NAME):
            closing = asyncio.create_task(guard.aclose())
            await asyncio.Event().wait()
    assert caught.value.reason is LossReason.CLOSED
    await closing
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LOCK)


async def test_a_key_deleted_under_a_waiter_is_noticed_within_a_second(redis_url):
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        entered = asyncio.Event()

        async def wait_for_it():
            async with other.hold(NAME):
                entered.set()

        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                task = asyncio.create_task(wait_for_it())
                with redis.Redis.from_url(redis_url) as client:
                    async with asyncio.timeout(5):
                        while not client.zcard(f"{LOCK}:queue"):
                            await asyncio.sleep(0.005)
                    client.flushall()
                async with asyncio.timeout(1):
                    await entered.wait()
                await asyncio.Event().wait()
        await task


async def test_a_dead_waiter_at_the_head_costs_at_most_a_second(redis_server, redis_url):
    async with (
        FaultProxy(redis_server.port) as proxy,
        LockGuard.from_url(redis_url) as holder,
        LockGuard.from_url(proxy.url_for(redis_url)) as dead,
        LockGuard.from_url(redis_url) as alive,
    ):
        client = redis.Redis.from_url(redis_url)

        async def queued(count):
            async with asyncio.timeout(5):
                while client.zcard(f"{LOCK}:queue") != count:
                    await asyncio.sleep(0.005)

        async def once(guard):
            async with guard.hold(NAME):
                return time.monotonic()

        async with holder.hold(NAME):
            head = asyncio.create_task(once(dead))
            await queued(1)
            second = asyncio.create_task(once(alive))
            await queued(2)
            proxy.partition()  # still connected as far as the server knows, like a stopped process
        released = time.monotonic()
        assert await second - released < 1.05
        proxy.heal()
        await head
        client.close()


async def test_waiters_of_many_processes_are_served_in_the_order_they_came(redis_url):
    guards = [LockGuard.from_url(redis_url) for _ in range(4)]
    client = redis.Redis.from_url(redis_url)
    served = []

    async def once(number):
        async with guards[number % 4].hold(NAME):
            served.append(number)

    async with guards[0].hold(NAME):
        tasks = []
        for number in range(40):
            tasks.append(asyncio.create_task(once(number), context=_fresh()))
            async with asyncio.timeout(5):
                while client.zcard(f"{LOCK}:queue") != number + 1:
                    await asyncio.sleep(0.001)
    await asyncio.gather(*tasks)
    assert served == list(range(40))
    for guard in guards:
        await guard.aclose()
    client.close()


async def test_a_newcomer_does_not_overtake_the_queue(redis_url):
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(NAME):
            waiting = asyncio.create_task(_hold_until(other, release := asyncio.Event()))
            with redis.Redis.from_url(redis_url) as client:
                async with asyncio.timeout(5):
                    while not client.zcard(f"{LOCK}:queue"):
                        await asyncio.sleep(0.005)
        with pytest.raises(ResourceBusy):
            async with guard.hold(NAME, on_busy="raise"):
                pass
        release.set()
        await waiting


async def test_a_waiter_keeps_its_place_through_a_reconnect(redis_server, redis_url):
    async with (
        FaultProxy(redis_server.port) as proxy,
        LockGuard.from_url(redis_url) as holder,
        LockGuard.from_url(proxy.url_for(redis_url)) as first,
        LockGuard.from_url(redis_url) as second,
    ):
        client = redis.Redis.from_url(redis_url)
        served = []

        async def once(guard, name):
            async with guard.hold(NAME):
                served.append(name)

        async with holder.hold(NAME):
            tasks = []
            for count, (guard, name) in enumerate([(first, "first"), (second, "second")], start=1):
                tasks.append(asyncio.create_task(once(guard, name), context=_fresh()))
                async with asyncio.timeout(5):
                    while client.zcard(f"{LOCK}:queue") != count:
                        await asyncio.sleep(0.005)
            proxy.reset()
            async with asyncio.timeout(5):
                while not first._core.connected:
                    await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        client.close()
    assert served == ["first", "second"]


async def test_waiting_goes_on_through_a_restart_of_the_server():
    with RedisServer() as server:
        guard, other = LockGuard.from_url(server.url, ttl=SHORT), LockGuard.from_url(server.url, ttl=SHORT)
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                waiting = asyncio.create_task(_hold_until(other, done := asyncio.Event()))
                await asyncio.to_thread(server.restart, keep_data=False)
                await asyncio.Event().wait()
        done.set()
        async with asyncio.timeout(5):
            await waiting
        await guard.aclose()
        await other.aclose()


async def _hold_until(guard, event):
    async with guard.hold(NAME):
        await event.wait()


def _fresh():
    import contextvars

    return contextvars.Context()
