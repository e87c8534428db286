"""A server that lost its data: a holder learns it at once, so no two believe in their leases side by side."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest

from lockguard import LeaseLost, LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import ClusterRedis, FaultProxy, IndependentRedis, RedisServer, SentinelRedis

NAME = "binance:APTUSDT"
TTL = timedelta(seconds=10)
"""A holder that learnt it by its next renewal only would believe for a third of that."""

AT_ONCE_S = 0.4


async def overlap_s(first, second, until, lose):
    """How long both hold: the second waits while the first holds; then ``lose`` makes the servers forget."""
    held_at = asyncio.get_running_loop().create_future()

    async def successor():
        async with second.hold(NAME, wait=timedelta(seconds=20)):
            held_at.set_result(SYSTEM_CLOCK.now())

    async def waits():
        return bool((await second.inspect(NAME)).waiters)

    with pytest.raises(LeaseLost):
        async with first.hold(NAME):
            waiting = asyncio.create_task(successor())
            while not await waits():
                await asyncio.sleep(0.005)
            await lose()
            try:
                await asyncio.Event().wait()
            finally:
                ended_at = SYSTEM_CLOCK.now()
    overlap = ended_at - await held_at
    await waiting
    return overlap


@pytest.fixture
def both():
    @contextlib.asynccontextmanager
    async def both(url):
        async with LockGuard.from_url(url, ttl=TTL) as first, LockGuard.from_url(url, ttl=TTL) as second:
            yield first, second

    return both


async def test_a_restart_without_data_leaves_no_two_who_believe(both, until):
    with RedisServer() as server:
        async with both(server.url) as (first, second):

            async def lose():
                await asyncio.to_thread(server.restart, keep_data=False)

            assert await overlap_s(first, second, until, lose) < AT_ONCE_S


@pytest.mark.parametrize("also", ["", "and the connections end"])
async def test_flushall_leaves_no_two_who_believe(both, until, ask, redis_server, redis_url, also):
    async with FaultProxy(redis_server.port) as proxy, both(proxy.url_for(redis_url)) as (first, second):

        async def lose():
            ask(redis_server, "FLUSHALL")
            if also:
                proxy.reset()

        assert await overlap_s(first, second, until, lose) < AT_ONCE_S


async def test_flushall_in_a_cluster_leaves_no_two_who_believe(both, until, ask):
    with ClusterRedis() as setup:
        async with both(setup.url) as (first, second):

            async def lose():
                for server in setup.servers:
                    ask(server, "FLUSHALL")

            assert await overlap_s(first, second, until, lose) < AT_ONCE_S


async def test_a_failover_that_lost_the_grant_leaves_no_two_who_believe(both, until, ask, cut_off):
    with SentinelRedis(1) as setup, contextlib.ExitStack() as stack:
        async with both(setup.url) as (first, second):
            master = setup.master
            stack.enter_context(cut_off(master))

            async def lose():
                master.kill()

            assert await overlap_s(first, second, until, lose) < AT_ONCE_S


async def test_a_majority_that_lost_its_data_ends_the_lease_at_once(ask):
    with IndependentRedis(3) as setup:
        async with LockGuard.from_urls(setup.urls, ttl=TTL) as guard:
            with pytest.raises(LeaseLost):
                async with guard.hold(NAME):
                    for server in setup.servers[:2]:
                        ask(server, "FLUSHALL")
                    flushed_at = SYSTEM_CLOCK.now()
                    try:
                        await asyncio.Event().wait()
                    finally:
                        assert SYSTEM_CLOCK.now() - flushed_at < AT_ONCE_S
