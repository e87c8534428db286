"""Listing what is held: complete, judged by a majority, and no burden on the server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import redis

from lockguard import LockGuard, QuorumUnavailable
from lockguard._lease import Resource, new_grant_id
from lockguard._nodes.member import MemberNode
from lockguard.ports import AcquireRequest, Granted
from lockguard_lab.bench.listing import plant
from lockguard_lab.servers import ClusterRedis, IndependentRedis, RedisServer

FOREIGN, HELD, WAITERS = 30_000, 3_000, 100


async def _names(guard: LockGuard) -> list[str]:
    return sorted([found.resource async for found in guard.list()])


async def test_all_are_listed_among_many_keys_and_no_step_keeps_the_server_busy() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        plant(client, foreign=FOREIGN, held=HELD, waiters=WAITERS)
        async with LockGuard.from_url(server.url) as guard:
            await _names(guard)
            client.config_set("slowlog-log-slower-than", 5_000)
            client.slowlog_reset()
            client.config_resetstat()
            found = [each async for each in guard.list()]
            slow = [entry["command"].split()[0] for entry in client.slowlog_get(1_000)]
            stats = client.info("commandstats")
        # A busy machine stops the server for a moment in any command. One that is long is so each time.
        for command in ("scan", "evalsha"):
            assert stats[f"cmdstat_{command}"]["usec_per_call"] < 2_500
            assert slow.count(command.upper().encode()) < stats[f"cmdstat_{command}"]["calls"] / 5
        assert len(found) == HELD
        assert len({each.resource for each in found}) == HELD
        (queued,) = [each for each in found if each.waiters]
        assert [waiter.operation for waiter in queued.waiters] == ["sync"] * WAITERS
        assert "cmdstat_keys" not in stats
        assert stats["cmdstat_scan"]["calls"] >= (FOREIGN + HELD) / 1_000  # in steps
        assert stats["cmdstat_evalsha"]["calls"] == HELD  # one each, and none for what is free


async def test_what_a_minority_holds_is_not_held_and_a_server_that_is_down_hides_nothing() -> None:
    with IndependentRedis(3) as servers:
        async with LockGuard.from_urls(servers.urls) as guard, LockGuard.from_urls(servers.urls) as other:
            async with guard.hold_many(["a", "b"]) as leases:
                for lease in leases:
                    await lease.confirm()
                split = MemberNode(other._core.locks.nodes[0].address, inbox="i", nodes=3)  # type: ignore[attr-defined]
                await split.connect()
                wish = AcquireRequest(Resource("split"), new_grant_id(), "h:1/t", "", 60_000)
                assert isinstance(await split.acquire(wish), Granted)
                assert await _names(other) == ["a", "b"]
                servers.servers[0].kill()
                assert await _names(other) == ["a", "b"]
                servers.servers[1].kill()
                with pytest.raises(QuorumUnavailable):
                    await _names(other)
                await split.aclose()


async def test_a_connection_that_was_dropped_while_idle_is_made_again(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold("a"):
            assert await _names(other) == ["a"]
            with redis.Redis.from_url(redis_url) as client:
                client.client_kill_filter(_type="normal", skipme=True)
                assert await _names(other) == ["a"]


async def test_a_cluster_without_one_of_its_masters_says_that_it_cannot_tell() -> None:
    with ClusterRedis(3) as cluster:
        async with LockGuard.from_url(cluster.url) as guard:
            names = [f"x:{number}" for number in range(20)]
            async with guard.hold_many(names):
                assert await _names(guard) == sorted(names)
            cluster.servers[1].kill()
            with pytest.raises(QuorumUnavailable):
                await _names(guard)


@pytest.mark.parametrize("call", ["scan", "lrange"])
async def test_a_user_without_the_right_is_told_which(call: str) -> None:
    with RedisServer(acl=["bot on >secret ~* &* +@all -scan -lrange"]) as server:
        async with LockGuard.from_url(f"redis://bot:secret@127.0.0.1:{server.port}") as guard:
            with pytest.raises(QuorumUnavailable, match=f"(?i){call}"):
                await (_names(guard) if call == "scan" else guard.history("a"))


async def _hold(guard: LockGuard) -> None:
    async with guard.hold("a", operation="sync"):
        pass


@pytest.mark.parametrize("user", ["operator", "viewer"])
async def test_the_documented_rights_of_who_looks_are_enough(user: str) -> None:
    page = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
    rules = re.search(rf"ACL SETUSER ({user} [^`]*?)(?:```|ACL)", page)
    assert rules is not None
    with RedisServer(acl=[" ".join(rules[1].split()).replace("SECRET", "secret")]) as server:
        looking = LockGuard.from_url(f"redis://{user}:secret@127.0.0.1:{server.port}")
        async with LockGuard.from_url(server.url) as guard, looking:
            async with guard.hold("a", operation="open"):
                waiting = asyncio.create_task(_hold(guard))
                async with asyncio.timeout(5):
                    while not (await looking.inspect("a")).waiters:
                        await asyncio.sleep(0.005)
                (found,) = [each async for each in looking.list()]
                assert (found.operation, found.waiters[0].operation) == ("open", "sync")
                assert [entry.event for entry in await looking.history("a")] == ["granted"]
                if user == "viewer":
                    with pytest.raises(QuorumUnavailable):
                        await looking.break_("a", reason="why")
            await waiting
        with redis.Redis.from_url(server.url) as client:
            denied = {each["object"] for each in client.acl_log()}
            assert user == "viewer" or denied <= {"script|load", "info"}  # which are optional
