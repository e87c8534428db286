"""What a wake-up costs in a cluster, by shard channel and by PUBLISH: messages between servers, and time.

Run by hand: ``python tests/benchmarks/cluster_wakeups.py``. Not a test: the times are a machine's.
"""

from __future__ import annotations

import asyncio
import statistics
from datetime import timedelta

import redis

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.cluster import ClusterNode
from lockguard_lab.servers import ClusterRedis

NAME = "binance:APTUSDT"
HAND_OVERS = 300


def sent(setup: ClusterRedis, kind: str) -> int:
    """Messages of a kind that all servers sent on the bus so far."""
    total = 0
    for server in setup.servers:
        with redis.Redis.from_url(server.url, decode_responses=True) as client:
            facts = client.execute_command("CLUSTER INFO")
            total += int(facts.get(f"cluster_stats_messages_{kind}_sent", 0))
    return total


async def hand_over(first: LockGuard, second: LockGuard) -> float:
    """From the release by one to the lease of the other, in ms."""

    async def wait() -> float:
        async with second.hold(NAME, wait=timedelta(seconds=10)):
            return SYSTEM_CLOCK.now()

    async with first.hold(NAME):
        waiting = asyncio.create_task(wait())
        while not (await first.inspect(NAME)).waiters:
            await asyncio.sleep(0)
        released_at = SYSTEM_CLOCK.now()
    return (await waiting - released_at) * 1000


async def measure(setup: ClusterRedis, how: str) -> None:
    """One line of figures."""
    async with LockGuard.from_url(setup.url) as first, LockGuard.from_url(setup.url) as second:
        for _ in range(20):
            await hand_over(first, second)
        before = sent(setup, "publish"), sent(setup, "publishshard")
        times_ms = [await hand_over(first, second) for _ in range(HAND_OVERS)]
        publish, shard = sent(setup, "publish") - before[0], sent(setup, "publishshard") - before[1]
    print(
        f"{len(setup.servers)} servers, {how}: {publish / HAND_OVERS:.2f} messages to all and"
        f" {shard / HAND_OVERS:.2f} within the shard for each wake-up;"
        f" {statistics.median(times_ms):.2f} ms median, {sorted(times_ms)[int(HAND_OVERS * 0.99)]:.2f} ms p99"
    )


async def main() -> None:
    """Both ways on three servers, and on six, of which three are replicas."""
    by_shard = ClusterNode._inbox_of
    for replicas in (0, 1):
        with ClusterRedis(3, replicas) as setup:
            for _ in range(2):
                ClusterNode._inbox_of = by_shard
                await measure(setup, "shard channel")
                ClusterNode._inbox_of = lambda self, _: self._inbox
                await measure(setup, "PUBLISH      ")


if __name__ == "__main__":
    asyncio.run(main())
