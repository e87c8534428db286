"""What an operator sees with plain redis-cli is a contract: keys, fields and command counts."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest
import redis

from lockguard import LeaseLost, LockGuard, QuorumUnavailable
from lockguard_lab.servers import IndependentRedis, RedisServer

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"


async def test_a_held_lock_is_one_hash_with_these_fields(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold(NAME, operation="open_position_atomic") as lease:
            seen = client.hgetall(LOCK)
            assert set(seen) == {
                "grant",
                "token",
                "holder",
                "operation",
                "acquired_at_ms",
                "ttl_ms",
                "renewals",
            }
            assert re.fullmatch(r"[0-9a-f]{32}", seen["grant"])
            assert seen["token"] == str(lease.token)
            assert re.fullmatch(r".+:\d+/.+", seen["holder"])
            assert seen["operation"] == "open_position_atomic"
            assert seen["ttl_ms"] == "10000"
            assert seen["renewals"] == "0"
            assert 9000 < client.pttl(LOCK) <= 10000
        assert not client.exists(LOCK)
    client.close()


async def test_every_key_has_a_ttl_and_all_share_one_slot(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(NAME):
            waiting = asyncio.create_task(_hold_once(other))
            async with asyncio.timeout(5):
                while not client.zcard(f"{LOCK}:queue"):
                    await asyncio.sleep(0.005)
            keys = sorted(client.keys("*"))
            assert keys == [
                LOCK,
                *(f"{LOCK}:{each}" for each in ("history", "inboxes", "queue", "token", "waiting")),
            ]
            assert all(client.pttl(key) > 0 for key in keys)
            assert all(key.startswith(LOCK) for key in keys)
        await waiting
    client.close()


async def test_a_waiter_is_one_field_of_a_hash_until_it_leaves_the_queue(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(NAME):
            waiting = asyncio.create_task(_hold_once(other, operation="close long"), name="my task")
            async with asyncio.timeout(5):
                while not (found := (await guard.inspect(NAME)).waiters):
                    await asyncio.sleep(0.005)
            ((grant, who),) = client.hgetall(f"{LOCK}:waiting").items()
            assert grant == found[0].grant
            assert re.fullmatch(r"\S+:\d+/my\\x20task close long", who)
            assert 0 < client.pttl(f"{LOCK}:waiting") <= 60_000
        await waiting
        assert not client.exists(f"{LOCK}:waiting")
    client.close()


async def test_what_older_clients_leave_of_waiters_is_not_shown_is_bounded_and_goes_with_the_queue(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(NAME):
            client.hset(
                f"{LOCK}:waiting", mapping={f"{number:032x}": "left behind" for number in range(9_999)}
            )
            client.zadd(f"{LOCK}:queue", {f"{'a' * 32} inbox": 1})  # as an older client waits
            first = asyncio.create_task(_hold_once(other))
            await _waiters(guard, 2)
            unknown, known = (await guard.inspect(NAME)).waiters
            assert (unknown.holder, unknown.operation) == ("", "")
            assert known.holder
            assert client.hlen(f"{LOCK}:waiting") == 10_000
            client.hset(f"{LOCK}:waiting", "one more", "")
            second = asyncio.create_task(_hold_once(other))
            await _waiters(guard, 3)
            assert 1 <= client.hlen(f"{LOCK}:waiting") <= 2
            client.hset(f"{LOCK}:waiting", "left behind", "")
        await first
        await second
        assert not client.exists(f"{LOCK}:waiting")
    client.close()


async def test_history_tells_what_became_of_each_grant(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url, ttl=timedelta(milliseconds=500)) as guard:
        async with guard.hold(NAME, operation="open long") as first:
            pass
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                client.delete(LOCK)  # as an expiry or an eviction would
                async with LockGuard.from_url(redis_url) as other, other.hold(NAME) as third:
                    await other.break_(NAME, reason="it hangs")
        newest_first = client.lrange(f"{LOCK}:history", 0, -1)
    told = [(event, facts) for _, event, facts in (line.split(" ", 2) for line in reversed(newest_first))]
    assert [event for event, _ in told] == ["granted", "released", "granted", "granted", "broken"]
    holder = f"{first.grant.holder} operation=open long"
    assert told[0][1] == f"token={first.token} grant={first.grant.id} holder={holder}"
    assert told[1][1] == f"grant={first.grant.id}"
    assert told[4][1] == f"grant={third.grant.id} reason=it hangs"
    at_us = [int(line.split(" ", 1)[0]) for line in newest_first]
    assert at_us == sorted(at_us, reverse=True)
    assert abs(at_us[0] / 1e6 - client.time()[0]) < 60
    client.close()


async def test_history_is_cut_and_keeps_the_newest(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard:
        for _ in range(150):
            async with guard.hold(NAME) as last:
                pass
        lines = client.lrange(f"{LOCK}:history", 0, -1)
    assert 200 <= len(lines) <= 220
    assert [line.split()[1] for line in lines[:2]] == ["released", "granted"]
    assert f"grant={last.grant.id}" in lines[0]
    client.close()


async def test_a_key_of_another_kind_in_the_history_s_place_does_not_stop_the_lock(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    client.set(f"{LOCK}:history", "not a list")
    async with LockGuard.from_url(redis_url) as guard:
        await _hold_once(guard)
    assert not client.exists(LOCK)
    client.close()


async def test_a_full_server_still_renews_and_releases_without_history():
    with RedisServer() as server, redis.Redis.from_url(server.url, decode_responses=True) as client:
        async with LockGuard.from_url(server.url, ttl=timedelta(seconds=1)) as guard:
            async with guard.hold(NAME):
                client.config_set("maxmemory", "1")
                async with asyncio.timeout(5):
                    while client.hget(LOCK, "renewals") == "0":
                        await asyncio.sleep(0.01)
            assert not client.exists(LOCK)
            with pytest.raises(QuorumUnavailable, match="OOM"):
                async with guard.hold(NAME, on_busy="raise"):
                    raise AssertionError("the body ran")
            client.config_set("maxmemory", "0")
            await _hold_once(guard)
        told = [line.split()[1] for line in client.lrange(f"{LOCK}:history", 0, -1)]
    assert told == ["released", "granted", "granted"]


async def test_an_uncontended_guarded_call_sends_exactly_two_commands(redis_url):
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    async with LockGuard.from_url(redis_url) as guard:

        @guard.exclusive("{exchange}:{symbol}")
        async def open_position(symbol: str, exchange: str) -> None:
            pass

        await open_position("APTUSDT", "binance")  # the first call connects
        marker = redis.Redis.from_url(redis_url, single_connection_client=True)
        with client.monitor() as monitor:
            await open_position("APTUSDT", "binance")
            marker.echo("end")
            sent = []
            for command in monitor.listen():
                if command["command"] == "ECHO end":
                    break
                if command["client_type"] != "lua":
                    sent.append(command["command"].split()[0])
    assert sent == ["EVALSHA", "EVALSHA"]
    marker.close()
    client.close()


async def _hold_once(guard, **options):
    async with guard.hold(NAME, **options):
        pass


async def _waiters(guard, count):
    async with asyncio.timeout(5):
        while len((await guard.inspect(NAME)).waiters) < count:
            await asyncio.sleep(0.005)


async def test_a_minority_that_shows_nobody_does_not_say_that_a_lock_is_free():
    with IndependentRedis(3) as servers:
        async with LockGuard.from_urls(servers.urls) as guard, LockGuard.from_urls(servers.urls) as other:
            async with guard.hold(NAME) as lease:
                await lease.confirm()
                await other.inspect(NAME)
                for server in servers.servers[:2]:
                    server.pause()
                # What the last one shows may be held by the two that do not answer.
                assert (await other.inspect(NAME)).grant == lease.grant.id
                with pytest.raises(QuorumUnavailable):
                    await other.inspect("another")
                for server in servers.servers[:2]:
                    server.resume()
