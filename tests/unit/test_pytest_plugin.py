"""The fixtures that users' tests get."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from lockguard import LockGuard, ResourceBusy

pytest_plugins = ["lockguard.testing.pytest_plugin"]


async def test_guards_in_memory_meet(lockguard_memory, new_lockguard):
    other = new_lockguard()
    async with lockguard_memory.hold("binance:APTUSDT") as lease:
        assert lease.token > 0
        with pytest.raises(ResourceBusy):
            async with other.hold("binance:APTUSDT", on_busy="raise"):
                raise AssertionError("the body ran")
    async with other.hold("binance:APTUSDT") as later:
        assert later.token > lease.token


async def test_guards_of_two_stores_do_not_meet(lockguard_memory):
    async with lockguard_memory.hold("a"), LockGuard.in_memory().hold("a", wait=timedelta(0)):
        pass


async def test_a_body_that_locks_in_a_loop_lets_others_run(lockguard_memory):
    ran = asyncio.Event()
    task = asyncio.create_task(_set(ran))
    for _ in range(3):
        async with lockguard_memory.hold("a"):
            pass
    assert ran.is_set()
    await task


async def _set(event):
    event.set()


async def test_the_real_server_is_empty_at_the_beginning(lockguard_redis_url):
    async with LockGuard.from_url(lockguard_redis_url) as guard:
        assert not (await guard.inspect("a")).token
