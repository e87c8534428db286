"""A connection to a real server that ends is made again, where the server is then, and cuts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from lockguard import LockGuard
from lockguard._nodes.address import Address
from lockguard._nodes.connection import Connection
from lockguard.errors import NodeRefused
from lockguard_lab.servers import FaultProxy, Flow, RedisServer


class Told:
    def __init__(
        self,
        url: str,
        locate: Callable[[], Awaitable[Address]] | None = None,
        *,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self.connected: list[bool] = []
        self.refused = 0

        async def nothing(*_: Any) -> None: ...

        self.connection = Connection(
            Address.parse(url),
            inbox="in:test",
            on_message=lambda _: None,
            on_login=nothing,
            on_connect=lambda *, again: self.connected.append(again),
            on_refused=self._refused,
            on_wiped=lambda: None,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=5.0,
            locate=locate,
        )

    def _refused(self) -> None:
        self.refused += 1


@pytest.fixture
async def told(redis_url: str) -> AsyncIterator[Told]:
    made = Told(redis_url)
    await made.connection.connect()
    yield made
    await made.connection.aclose()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def cut(url: str) -> None:
    """End every other client's connection."""
    with redis.Redis.from_url(url) as client:
        client.execute_command("CLIENT", "KILL", "SKIPME", "yes")


async def test_a_connection_that_ended_is_made_again_and_told_as_one(told: Told, redis_url: str) -> None:
    assert told.connected == [False]
    cut(redis_url)
    await until(lambda: len(told.connected) == 2)
    assert told.connected == [False, True]
    assert told.connection.ready


async def test_a_server_that_moved_is_looked_for_each_time(redis_url: str) -> None:
    asked: list[int] = []

    async def locate() -> Address:
        asked.append(1)
        return Address.parse(redis_url)

    made = Told(redis_url, locate)
    await made.connection.connect()
    cut(redis_url)
    await until(lambda: len(made.connected) == 2)
    assert len(asked) == 2
    await made.connection.aclose()


async def test_a_close_waits_for_what_was_sent(redis_url: str) -> None:
    made = Told(redis_url)
    await made.connection.connect()
    replies: list[Any] = []
    made.connection.send(replies.append, "DEBUG", "SLEEP", "0.2")
    await asyncio.sleep(0)
    await made.connection.aclose()
    assert replies == [b"OK"]


@pytest.mark.parametrize("options", ["", "protocol=2"])
async def test_a_log_in_over_a_long_way_is_not_given_up(
    redis_url: str, redis_server: Any, options: str
) -> None:
    """Each round trip is longer than the first patience, and each log-in takes several."""
    async with FaultProxy(redis_server.port) as proxy:
        proxy.to_client.set(Flow(latency=timedelta(seconds=0.4)))
        url = proxy.url_for(redis_url)
        made = Told(f"{url}{'&' if '?' in url else '?'}{options}")
        await made.connection.connect()
        known = proxy.accepted
        proxy.reset()
        await until(lambda: len(made.connected) == 2)
        assert proxy.accepted == 2 * known == (4 if options else 2)
        assert made.refused == 0
        proxy.heal()
        await made.connection.aclose()


async def test_a_reconnect_gives_up_what_is_silent_with_ever_more_patience(
    redis_url: str, redis_server: Any
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        made = Told(proxy.url_for(redis_url), connect_timeout_s=0.65)
        await made.connection.connect()
        made.connection.note_ttl(500)  # doubted after a tenth of a second
        made.connection._slowest_s = 0.0
        known = proxy.accepted
        proxy.partition()
        proxy.reset()
        await until(lambda: made.refused == 1)
        # After 0.1 and 0.3 s; then after 0.7 s would be too late, so the third has its 0.65 s.
        assert proxy.accepted - known == 3
        proxy.heal()
        await until(lambda: made.connection.ready)
        await made.connection.aclose()


async def test_a_first_connection_has_its_whole_time_however_silent(
    redis_url: str, redis_server: Any
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        proxy.partition()
        made = Told(proxy.url_for(redis_url), connect_timeout_s=0.65)
        made.connection.note_ttl(500)
        with pytest.raises(NodeRefused):
            await made.connection.connect()
        assert proxy.accepted == 1
        await made.connection.aclose()


async def test_a_connection_that_dies_in_its_log_in_is_killed_by_the_one_that_is_kept(
    redis_url: str, redis_server: Any
) -> None:
    async with FaultProxy(redis_server.port) as proxy:
        url = proxy.url_for(redis_url)
        # With the older protocol the server says who it is before a second connection logs in, to listen.
        made = Told(f"{url}{'&' if '?' in url else '?'}protocol=2")
        await made.connection.connect()
        first = made.connection._left
        proxy.to_client.set(Flow(latency=timedelta(seconds=0.05)))
        proxy.reset()
        await until(lambda: made.connection._left not in (None, first))
        dead = made.connection._left
        proxy.forget()
        await until(lambda: len(made.connected) == 2)
        assert dead is not None
        with redis.Redis.from_url(redis_url) as client:
            await until(lambda: dead.addr not in {one["addr"] for one in client.client_list()})
        await made.connection.aclose()


async def test_a_server_that_may_drop_locks_is_warned_of_once_and_not_at_each_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A node that refuses its log-in behind that is tried again for ever."""
    with RedisServer(config=["maxmemory 100mb", "maxmemory-policy allkeys-lru"]) as server:
        async with LockGuard.from_url(server.url) as guard:
            for _ in range(3):
                async with guard.hold("binance:APTUSDT"):
                    server.command("CLIENT", "KILL", "TYPE", "pubsub")
        warned = [record for record in caplog.records if "drops keys when it is full" in record.getMessage()]
        assert len(warned) == 1
