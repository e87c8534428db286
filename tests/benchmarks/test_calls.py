"""What a call costs in Python, counted and not timed."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import redis.asyncio

from lockguard import LockGuard
from lockguard.ports import Sealed
from lockguard_lab.servers import RedisServer

BATCHES, CYCLES = 25, 20


class AtOnce:
    """A fence that takes one turn of the event loop for an answer: what is left is the guard's own work."""

    async def seal(self, grant, *, within):
        await asyncio.sleep(0)
        return Sealed(grant.token)

    async def close(self, grant, *, within):
        await asyncio.sleep(0)

    async def break_(self, resource, *, reason, within):
        raise NotImplementedError


async def calls(cycle: Callable[[], Any]) -> float:
    """Python functions entered and gone on with in one cycle, those of the event loop among them.

    The least of many batches: a timer that fires meanwhile, or an answer that comes in two parts on a busy
    machine, is nobody's cycle.
    """
    counted, batches = 0, []

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event == "call"

    for _ in range(3):  # connects, and fills caches
        await cycle()
    for _ in range(BATCHES):
        counted = 0
        sys.setprofile(count)
        try:
            for _ in range(CYCLES):
                await cycle()
        finally:
            sys.setprofile(None)
        batches.append(counted / CYCLES)
    return min(batches)


async def test_a_hold_makes_at_most_136_calls_and_a_third_of_those_of_a_bare_lock_of_redis_py():
    with RedisServer() as server:
        client = redis.asyncio.Redis.from_url(server.url)
        async with client, LockGuard.from_url(server.url) as guard:

            async def hold() -> None:
                async with guard.hold("binance:APTUSDT"):
                    pass

            async def lock() -> None:
                async with client.lock("bare", timeout=10):
                    pass

            ours, theirs = await calls(hold), await calls(lock)
    assert ours <= 136, ours
    assert ours < theirs / 3, (ours, theirs)


async def test_a_fence_that_answers_at_once_adds_at_most_85_calls():
    with RedisServer() as server:
        async with (
            LockGuard.from_url(server.url) as plain,
            LockGuard.from_url(server.url, fence=AtOnce()) as fenced,
        ):

            async def hold(guard: LockGuard) -> None:
                async with guard.hold("binance:APTUSDT"):
                    pass

            without, with_fence = await calls(lambda: hold(plain)), await calls(lambda: hold(fenced))
    assert with_fence - without <= 85, (without, with_fence)


def questions(guard: LockGuard) -> list[int]:
    """How often each server is asked for a lease from now on, a count for each."""
    counts = [0 for _ in guard._core.locks.nodes]

    def counted(number: int, ask: Callable[..., None]) -> Callable[..., None]:
        def asks(*args: Any) -> None:
            counts[number] += 1
            ask(*args)

        return asks

    for number, node in enumerate(guard._core.locks.nodes):
        node.acquire_into = counted(number, node.acquire_into)
    return counts


async def test_a_lease_over_three_servers_asks_each_once_also_the_first_of_a_guard_and_after_an_admission():
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(password="")) for _ in range(3)]
        urls = [server.url for server in servers]

        def guard() -> LockGuard:
            return LockGuard.from_urls(urls, ttl=timedelta(seconds=1), node_timeout=timedelta(seconds=5))

        async def hold(over: LockGuard) -> None:
            async with over.hold("binance:APTUSDT"):
                pass

        async with guard() as first:
            await hold(first)  # admits the servers, which are new
        async with guard() as second:
            asked = questions(second)
            await hold(second)
            assert asked == [1, 1, 1]
            await hold(second)
            assert asked == [2, 2, 2]
            async with redis.asyncio.Redis.from_url(urls[0]) as client:
                await client.flushall()
                await hold(second)  # has it admitted, for its vote after the longest lease
                while await client.hget("lockguard:member", "admission") is None:
                    await asyncio.sleep(0.01)
            asked[:] = [0, 0, 0]
            await hold(second)
            assert asked == [1, 1, 1]  # the admission has asked the two others
        async with guard() as third:
            asked = questions(third)
            await hold(third)
            assert asked == [1, 1, 1]
