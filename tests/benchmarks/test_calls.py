"""What a call costs in Python, counted and not timed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
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
