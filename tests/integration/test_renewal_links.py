"""Renewal over links that are slow, and after servers that forgot; asking before what must not be late."""

from __future__ import annotations

import asyncio
import contextvars
from datetime import timedelta

import pytest
import redis

from lockguard import LeaseLost, LeaseNotHeld, LeaseState, LockGuard, LossReason, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Token
from lockguard._single_node import ANSWER_S
from lockguard.errors import FenceUnavailable
from lockguard.events import FenceCloseFailed, Released, Renewed
from lockguard.ports import Sealed
from lockguard_lab.servers import FaultProxy, Flow, RedisServer

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
HOUR = timedelta(hours=1)


class Watcher:
    def __init__(self):
        self.seen = []

    def on(self, event):
        self.seen.append(event)

    def of(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]


@pytest.fixture
async def link(redis_server, redis_url):
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy, proxy.url_for(redis_url)


async def until(condition, within=5.0):
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("round_trip", [0.12, 0.3, 0.45], ids=lambda share: f"{share:g}-of-the-ttl")
async def test_a_lease_lives_on_a_link_whose_round_trip_is_long(link, round_trip):
    """A good answer counts from its own sending, whenever it comes."""
    proxy, url = link
    ttl_s = 2.0  # what is short of it is then longer than the pauses of a busy machine
    watcher = Watcher()
    async with LockGuard.from_url(url, ttl=timedelta(seconds=ttl_s), observers=[watcher]) as guard:
        async with guard.hold(NAME) as lease:
            proxy.to_client.set(Flow(latency=timedelta(seconds=ttl_s * round_trip)))
            first = lease.deadline
            await until(lambda: lease.deadline > first + 1.5 * ttl_s)
            assert lease.state in (LeaseState.HELD, LeaseState.UNKNOWN)
        proxy.heal()
    assert len(watcher.of(Renewed)) > 1


@pytest.mark.parametrize("protocol", [3, 2])
async def test_a_log_in_over_a_long_way_is_made_in_time_also_when_it_comes_back(link, protocol):
    """All there is to say at a log-in has to be said in 2 s, so a few round trips have to do."""
    proxy, url = link
    url += ("&" if "?" in url else "?") + f"protocol={protocol}"
    far = Flow(latency=timedelta(seconds=0.2))
    proxy.to_server.set(far)
    proxy.to_client.set(far)
    async with LockGuard.from_url(url, wait=timedelta(seconds=8)) as guard:
        async with guard.hold(NAME):
            pass
        proxy.reset()
        async with guard.hold(NAME):
            pass
        proxy.heal()


@pytest.mark.parametrize("after", ["restart", "flushall"])
async def test_two_guards_do_not_both_believe_after_the_server_forgot(after):
    """Everything is renewed when a connection comes back, and when the server says that its data are gone."""
    with RedisServer() as server:
        guard = LockGuard.from_url(server.url, ttl=timedelta(minutes=1))
        other = LockGuard.from_url(server.url, ttl=timedelta(minutes=1))
        clock, times = SYSTEM_CLOCK, {}

        async def first():
            try:
                async with guard.hold(NAME) as lease:
                    times["lease"] = lease
                    await asyncio.Event().wait()
            except LeaseLost:
                times["lost"] = clock.now()
                raise

        async def second():
            async with other.hold(NAME, wait=HOUR):
                times["entered"] = clock.now()

        holding = asyncio.create_task(first(), context=contextvars.Context())
        await until(lambda: "lease" in times)
        waiting = asyncio.create_task(second(), context=contextvars.Context())
        with redis.Redis.from_url(server.url) as client:
            await until(lambda: client.zcard(f"{LOCK}:queue"))
            if after == "flushall":
                client.flushall()
        if after == "restart":
            await asyncio.to_thread(server.restart, keep_data=False)
        async with asyncio.timeout(10):  # its own renewal is twenty seconds away
            await asyncio.wait([holding, waiting])
        assert isinstance(holding.exception(), LeaseLost)
        assert holding.exception().reason is LossReason.REFUSED
        # Connections come back within a second of each other; nothing waits for a renewal.
        assert times["lost"] - times["entered"] < 1.5
        await guard.aclose()
        await other.aclose()


async def test_a_lease_survives_a_server_that_restarts_with_its_data():
    with RedisServer(persistence="aof") as server:
        watcher = Watcher()
        async with LockGuard.from_url(server.url, ttl=timedelta(minutes=1), observers=[watcher]) as guard:
            async with guard.hold(NAME) as lease:
                await asyncio.to_thread(server.restart, keep_data=True)
                await until(lambda: watcher.of(Renewed))
                lease.ensure()


# Asking before an order.


async def test_a_lease_that_is_held_is_confirmed_by_the_server_and_renewed(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold(NAME) as lease:
            before = lease.deadline
            await lease.confirm()
            assert lease.deadline > before
            await asyncio.gather(*(lease.confirm() for _ in range(20)))
        with pytest.raises(LeaseNotHeld):
            await lease.confirm()


async def test_a_lease_whose_lock_was_taken_is_not_confirmed(redis_url):
    async with LockGuard.from_url(redis_url, ttl=HOUR) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                with redis.Redis.from_url(redis_url) as client:
                    client.delete(LOCK)
                lease.ensure(timedelta(seconds=2))  # trusts the last renewal
                await lease.confirm()
                raise AssertionError("confirmed")
        assert caught.value.reason is LossReason.REFUSED


async def test_a_lease_that_no_server_answers_for_is_not_confirmed_and_goes_on(link):
    proxy, url = link
    async with LockGuard.from_url(url) as guard:
        async with guard.hold(NAME) as lease:
            proxy.partition()
            began = SYSTEM_CLOCK.now()
            with pytest.raises(LeaseLost, match="did not confirm") as caught:
                await lease.confirm(within=timedelta(milliseconds=300))
            assert caught.value.reason is LossReason.UNCONFIRMED
            assert 0.29 < SYSTEM_CLOCK.now() - began < 1.3
            lease.ensure()
            proxy.heal()
            await lease.confirm(within=timedelta(seconds=5))


# Leaving, and entering, end in time (L8).


class HangingFence:
    """Seals, and never answers again."""

    def __init__(self, *, seals=True):
        self.seals = seals

    async def seal(self, grant, *, within):
        if not self.seals:
            await asyncio.Event().wait()
        return Sealed(grant.token)

    async def close(self, grant, *, within):
        await asyncio.Event().wait()

    async def break_(self, resource, *, reason, within):
        return Token(1)


def never(*_, **__):
    return asyncio.get_running_loop().create_future()


async def test_leaving_a_body_ends_although_the_node_never_answers(redis_url, monkeypatch):
    watcher = Watcher()
    async with LockGuard.from_url(redis_url, observers=[watcher]) as guard:
        began = SYSTEM_CLOCK.now()
        async with guard.hold(NAME):
            monkeypatch.setattr(guard._core.locks.nodes[0], "release", never)
        assert SYSTEM_CLOCK.now() - began < ANSWER_S + 1
        assert [event.found for event in watcher.of(Released)] == [None]
        monkeypatch.undo()


async def test_a_hold_ends_in_time_although_the_node_never_answers(redis_url, monkeypatch):
    async with LockGuard.from_url(redis_url) as guard:
        monkeypatch.setattr(guard._core.locks.nodes[0], "acquire", never)
        began = SYSTEM_CLOCK.now()
        with pytest.raises(QuorumUnavailable, match="no answer within"):
            async with guard.hold(NAME, wait=timedelta(milliseconds=500)):
                raise AssertionError("entered")
        assert SYSTEM_CLOCK.now() - began < 0.5 + ANSWER_S + 1
        monkeypatch.undo()


async def test_entering_and_leaving_end_in_time_although_the_fence_never_answers(redis_url):
    watcher, within = Watcher(), timedelta(milliseconds=200)
    options = {"fence_within": within, "observers": [watcher]}
    async with LockGuard.from_url(redis_url, fence=HangingFence(), **options) as guard:
        began = SYSTEM_CLOCK.now()
        async with guard.hold(NAME):
            pass
        assert SYSTEM_CLOCK.now() - began < 0.2 + 1 + 1
        assert len(watcher.of(FenceCloseFailed)) == 1
    async with LockGuard.from_url(redis_url, fence=HangingFence(seals=False), **options) as guard:
        with pytest.raises(FenceUnavailable):
            async with guard.hold(NAME):
                raise AssertionError("entered")


async def test_a_fence_that_breaks_masks_no_error_of_the_body(redis_url):
    class Broken(HangingFence):
        async def close(self, grant, *, within):
            raise RuntimeError("the pool is closed")

    watcher = Watcher()
    async with LockGuard.from_url(redis_url, fence=Broken(), observers=[watcher]) as guard:
        with pytest.raises(ValueError, match="mine"):
            async with guard.hold(NAME):
                raise ValueError("mine")
        assert "the pool is closed" in watcher.of(FenceCloseFailed)[0].cause
