"""A cluster whose slots move and whose masters die."""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

import pytest
from redis.crc import key_slot

from lockguard import ConfigurationError, LockGuard, QuorumUnavailable
from lockguard.clock import SYSTEM_CLOCK
from lockguard.testing import ClusterRedis, RedisServer, ReplicatedRedis

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
SLOT = key_slot(NAME.encode())
RESHARD = timedelta(seconds=float(os.environ.get("LOCKGUARD_RESHARD_SECONDS", "4")))


@pytest.fixture(scope="module")
def setup():
    with ClusterRedis() as setup:
        yield setup


async def test_locking_goes_on_while_the_slot_moves(setup, ledger):
    """LOCKGUARD_RESHARD_SECONDS sets for how long."""
    async with (
        LockGuard.from_url(setup.url, fence=ledger.fence) as guard,
        LockGuard.from_url(setup.url) as bare,
    ):
        busy, moves = True, 0
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for _ in range(3)]
        inside = 0

        async def exclude() -> None:
            nonlocal inside
            while busy:
                async with bare.hold("another", wait=timedelta(seconds=30)):
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

        others = [asyncio.create_task(exclude()) for _ in range(2)]
        end_at = SYSTEM_CLOCK.now() + RESHARD.total_seconds()
        while SYSTEM_CLOCK.now() < end_at:
            await asyncio.to_thread(setup.move_slot, SLOT, setup.servers[moves % 3])
            moves += 1
            await asyncio.sleep(0.05)
        busy = False
        await asyncio.gather(*workers, *others)
    assert moves > 5
    assert ledger.commits > 5
    assert ledger.refused == 0
    assert await ledger.number() == ledger.commits


async def test_a_cancelled_acquire_leaves_nothing_while_the_slot_moves(setup, ask, until):
    async with LockGuard.from_url(setup.url) as guard:
        for turn in range(30):
            moving = asyncio.create_task(asyncio.to_thread(setup.move_slot, SLOT, setup.servers[turn % 3]))
            task = asyncio.create_task(_once(guard))
            for _ in range(turn):
                await asyncio.sleep(0.0003)  # somewhere within the move
                if task.done():
                    break
            task.cancel()
            await asyncio.wait([task])
            await moving
            owner = setup.owner_of(SLOT)
            await until(lambda owner=owner: not ask(owner, "EXISTS", LOCK), within_s=5)


async def test_a_dead_master_stops_only_its_own_resources_and_its_replica_takes_over(until):
    with ClusterRedis(3, 1) as setup:
        async with LockGuard.from_url(setup.url) as guard:
            async with guard.hold(NAME) as lease:
                token = lease.token
            owner = setup.owner_of(SLOT)
            elsewhere = next(
                name for name in map(str, range(100)) if setup.owner_of(key_slot(name.encode())) is not owner
            )
            owner.kill()
            async with asyncio.timeout(1.5):
                async with guard.hold(elsewhere):
                    pass
            async with asyncio.timeout(30):
                async with guard.hold(NAME, wait=timedelta(seconds=30)) as lease:
                    assert lease.token > token


async def test_a_url_of_the_wrong_kind_is_refused_with_the_right_one(setup):
    with RedisServer() as single:
        for url, told in (
            (single.url.replace("redis://", "redis+cluster://"), "a single server; write redis://"),
            (setup.servers[0].url, r"part of a cluster; write redis\+cluster://"),
        ):
            with pytest.raises(ConfigurationError, match=told):
                async with LockGuard.from_url(url) as guard:
                    await _once(guard)
    with pytest.raises(ConfigurationError, match="has only one"):
        LockGuard.from_url("redis+cluster://localhost:6379/3")
    with pytest.raises(ConfigurationError, match="cannot be had from a cluster"):
        LockGuard.from_url(setup.url, min_replicas=1)
    with pytest.raises(ConfigurationError, match="min_replicas=-1"):
        LockGuard.from_url(single.url, min_replicas=-1)


async def test_a_lock_that_too_few_replicas_have_is_not_granted_and_given_back(ask, until):
    with ReplicatedRedis(1) as setup:
        async with LockGuard.from_url(setup.url, min_replicas=1, ttl=timedelta(seconds=2)) as guard:
            async with guard.hold(NAME) as lease:
                assert ask(setup.replicas[0], "HGET", LOCK, "grant") == lease.grant.id
            setup.replicas[0].pause()
            with pytest.raises(QuorumUnavailable, match="only 0 of 1 replicas have it"):
                async with guard.hold(NAME, on_busy="raise"):
                    raise AssertionError("the body ran")
            await until(lambda: not ask(setup.servers[0], "EXISTS", LOCK), within_s=3)
            setup.replicas[0].resume()
            async with guard.hold(NAME, wait=timedelta(seconds=10)):
                pass


async def _once(guard):
    async with guard.hold(NAME):
        pass


async def test_the_password_of_a_cluster_is_used_on_every_shard(ask):
    with ClusterRedis() as setup:
        for server in setup.servers:
            ask(server, "CONFIG", "SET", "requirepass", "pw")
        async with LockGuard.from_url(setup.url.replace("cluster://", "cluster://:pw@")) as guard:
            for number in range(12):
                async with guard.hold(f"resource-{number}"):
                    pass
        with pytest.raises(ConfigurationError, match="refused the log-in"):
            async with LockGuard.from_url(setup.url) as guard:
                await _once(guard)
