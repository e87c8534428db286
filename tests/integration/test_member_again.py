"""One of several nodes whose connection is made again, perhaps to another process of the same server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest
import redis

from lockguard._lease import Resource, new_grant_id
from lockguard._nodes.address import Address
from lockguard._nodes.member import MemberNode
from lockguard.ports import AcquireRequest, Busy, Granted, Membership, Quarantined
from lockguard_lab.servers import FaultProxy, RedisServer

TTL_MS = 10_000
ADMISSION = "a" * 16


@pytest.fixture
def servers() -> Iterator[list[RedisServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RedisServer(password="")) for _ in range(2)]


def asked() -> AcquireRequest:
    return AcquireRequest(Resource("binance:APTUSDT"), new_grant_id(), "h", "o", TTL_MS)


@pytest.mark.parametrize("restarts", [True, False])
async def test_a_node_that_restarted_with_older_data_gives_no_vote_to_a_question_from_before(
    servers: list[RedisServer], restarts: bool
) -> None:
    """It has forgotten what it granted last. As the same process it answers a question that is sent again."""
    before, after = servers
    async with FaultProxy(before.port) as proxy:
        node = MemberNode(Address.parse(proxy.url_for(before.url)), inbox="lockguard:inbox:test", nodes=3)
        await node.connect()
        told = await node.membership(admission=ADMISSION)
        assert isinstance(told, Membership)
        await node.admit(quarantine_ms=0, ttl_max_ms=TTL_MS, admission=ADMISSION, loss=told.loss)
        with redis.Redis.from_url(before.url) as old, redis.Redis.from_url(after.url) as new:
            new.hset("lockguard:member", mapping=old.hgetall("lockguard:member"))  # type: ignore[arg-type]
        assert isinstance(await node.acquire(asked()), Granted)

        proxy.partition()
        rival = node.acquire(asked())
        await asyncio.sleep(0)
        if restarts:
            proxy.redirect(after.port)
        proxy.reset()
        proxy.heal()
        vote = await rival
        await node.aclose()
    assert isinstance(vote, Quarantined if restarts else Busy)
    if isinstance(vote, Quarantined):
        assert vote.quarantine_ms == 0  # not admitted
