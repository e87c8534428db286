"""A cluster without full coverage serves each slot that has an owner."""

from __future__ import annotations

import asyncio

import redis
from redis.crc import key_slot

from lockguard import LockGuard
from lockguard_lab.servers import RedisServer

SLOTS = 16_384
NAME = "binance:APTUSDT"


async def test_a_slot_without_an_owner_keeps_nobody_from_a_lock_of_another() -> None:
    gap = key_slot(b"lockguard:member")  # a key of several servers, which a cluster does not have
    config = ("cluster-enabled yes", "cluster-require-full-coverage no")
    with RedisServer(password="", config=config) as server, redis.Redis.from_url(server.url) as client:
        for first, last in ((0, gap - 1), (gap + 1, SLOTS - 1)):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        async with asyncio.timeout(10):
            while client.cluster("info")["cluster_state"] != "ok":  # type: ignore[no-untyped-call]
                await asyncio.sleep(0.05)
        async with (
            LockGuard.from_url(f"redis+cluster://127.0.0.1:{server.port}", observers=[]) as guard,
            guard.hold(NAME, on_busy="raise"),
        ):
            pass
