"""S1: who logs in while a server is busy with somebody's script is no client that knows no run."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import redis

from lockguard._lease import Resource, new_grant_id
from lockguard._nodes.address import Address
from lockguard._nodes.member import MemberNode
from lockguard.errors import NodeRefused
from lockguard.ports import AcquireRequest, Granted
from lockguard_lab.servers import RedisServer

SPIN = """
local t = redis.call('TIME'); local b = t[1] * 1000000 + t[2]
repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] - b > 4000
"""


def spin(url: str, over: threading.Event) -> None:
    with redis.Redis.from_url(url) as client:
        while not over.wait(0.002):
            with contextlib.suppress(redis.RedisError):
                client.eval(SPIN, 0)


async def test_a_node_that_restarted_with_old_data_gives_no_vote_though_it_was_busy_at_the_log_in() -> None:
    over, busy, granted, unknowing = threading.Event(), 0, 0, 0
    with RedisServer(password="", config=("busy-reply-threshold 1",)) as server:
        # As after a restart with old data: the member hash names the process of before.
        facts: dict[str, str | int] = {"run": "1" * 40, "quiet_until_ms": 0, "ttl_max_ms": 10_000, "nodes": 3}
        with redis.Redis.from_url(server.url) as client:
            client.hset("lockguard:member", mapping=facts)
        spinning = threading.Thread(target=spin, args=(server.url, over))
        spinning.start()
        try:
            for _ in range(150):
                node = MemberNode(Address.parse(server.url), inbox="lockguard:inbox:test", nodes=3)
                try:
                    await node.connect()
                    unknowing += not node._facts.run_id
                    name = Resource(f"r{new_grant_id()}")
                    vote = await node.acquire(AcquireRequest(name, new_grant_id(), "h", "o", 10_000))
                    granted += isinstance(vote, Granted)
                except NodeRefused as refused:
                    busy += "BUSY" in str(refused)
                await node.aclose()
        finally:
            over.set()
            await asyncio.to_thread(spinning.join)
    assert (unknowing, granted) == (0, 0)
    assert busy
