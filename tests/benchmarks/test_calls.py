"""What a call costs in Python, counted and not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import redis.asyncio

from lockguard import LockGuard
from lockguard.testing import RedisServer

CYCLES = 100


async def calls(cycle: Callable[[], Any]) -> float:
    """Python functions entered and gone on with in one cycle, those of the event loop among them."""
    counted = 0

    def count(_frame: object, event: str, _arg: object) -> None:
        nonlocal counted
        counted += event == "call"

    for _ in range(3):  # connects, and fills caches
        await cycle()
    sys.setprofile(count)
    try:
        for _ in range(CYCLES):
            await cycle()
    finally:
        sys.setprofile(None)
    return counted / CYCLES


async def test_a_hold_makes_less_than_two_fifths_of_the_calls_of_a_bare_lock_of_redis_py():
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
    assert ours < 0.4 * theirs, (ours, theirs)
