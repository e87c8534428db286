"""Five independent servers behind links that fail: a minority cut off, a majority cut off, one slow."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
from datetime import timedelta

import pytest

from lockguard import LeaseLost, LeaseState, LockGuard, LossReason, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import FaultProxy, Flow, IndependentRedis

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"


@pytest.fixture
async def links():
    """The servers, and a link to each."""
    with IndependentRedis(5) as independent:
        async with contextlib.AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(FaultProxy(server.port)) for server in independent.servers
            ]
            yield independent.servers, proxies


def over(links, **options):
    urls = [proxy.url_for(server.url) for server, proxy in zip(*links, strict=True)]
    options = {"ttl": timedelta(seconds=2), "node_timeout": timedelta(milliseconds=500)} | options
    return LockGuard.from_urls(urls, **options)


async def once(guard):
    began = SYSTEM_CLOCK.now()
    async with guard.hold(NAME):
        pass
    return SYSTEM_CLOCK.now() - began


async def test_a_minority_that_is_cut_off_changes_nothing_and_takes_part_again(links, ask, until):
    servers, proxies = links
    async with over(links) as guard:
        await once(guard)
        async with guard.hold(NAME) as lease:
            for proxy in proxies[:2]:
                proxy.partition()
            await until(lambda: not any(ask(server, "EXISTS", LOCK) for server in servers[:2]))
            assert lease.state is not LeaseState.LOST
            for proxy in proxies[:2]:
                proxy.heal()
            grant = lease.grant.id
            await until(lambda: all(ask(server, "HGET", LOCK, "grant") == grant for server in servers))
            assert lease.state is not LeaseState.LOST
        await until(lambda: not any(ask(server, "EXISTS", LOCK) for server in servers))


async def test_a_holder_cut_off_from_the_majority_ends_before_anybody_else_can_begin(links, ask):
    servers, proxies = links
    async with over(links) as guard, LockGuard.from_urls([server.url for server in servers]) as other:
        await once(other)
        began = asyncio.Event()
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME):
                waiting = asyncio.create_task(_when_held(other, began))
                for proxy in proxies[:3]:
                    proxy.partition()
                await began.wait()  # cancelled before it is set
        ended_at = SYSTEM_CLOCK.now()
        assert caught.value.reason is LossReason.EXPIRED
        with pytest.raises(QuorumUnavailable):
            async with guard.hold(NAME, on_busy="raise"):
                raise AssertionError("the body ran")
        assert await waiting > ended_at
        for proxy in proxies[:3]:
            proxy.heal()
        async with asyncio.timeout(10):
            async with guard.hold(NAME, wait=timedelta(seconds=10)):
                pass


async def _when_held(guard, began):
    async with guard.hold(NAME, wait=timedelta(seconds=30)):
        began.set()
        return SYSTEM_CLOCK.now()


async def test_one_slow_node_slows_nothing(links):
    _, proxies = links
    async with over(links) as guard:
        await once(guard)
        even_s = statistics.median([await once(guard) for _ in range(20)])
        for direction in (proxies[0].to_server, proxies[0].to_client):
            direction.set(Flow(latency=timedelta(milliseconds=150)))
        slow_s = statistics.median([await once(guard) for _ in range(20)])
        assert slow_s < even_s + 0.1
        for direction in (proxies[0].to_server, proxies[0].to_client):
            direction.set(Flow())


async def test_links_that_fail_at_random_lose_no_update(links, ledger, until):
    _, proxies = links
    seed = 20_261_121
    dice = random.Random(seed)
    options = {"fence": ledger.fence, "ttl": timedelta(seconds=1)}
    async with over(links, **options) as first, over(links, **options) as second:
        await once(first)  # the nodes are no longer new
        busy = True
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for guard in (first, second)]
        end_at = SYSTEM_CLOCK.now() + 6
        while SYSTEM_CLOCK.now() < end_at:
            for proxy in dice.sample(proxies, dice.randint(1, 3)):
                dice.choice([proxy.partition, proxy.reset, proxy.heal])()
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            for proxy in proxies:
                proxy.heal()
        since = ledger.commits
        await until(lambda: ledger.commits > since + 3, within_s=20)
        busy = False
        await asyncio.gather(*workers)
    assert await ledger.lost_updates() == 0
