"""A connection to a real server that ends is made again, where the server is then, and cuts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis

from lockguard._nodes.address import Address
from lockguard._nodes.connection import Connection


class Told:
    def __init__(self, url: str, locate: Callable[[], Awaitable[Address]] | None = None) -> None:
        self.connected: list[bool] = []
        self.refused = 0

        async def nothing(wire: Any) -> None: ...

        self.connection = Connection(
            Address.parse(url),
            inbox="in:test",
            on_message=lambda _: None,
            on_login=nothing,
            on_connect=lambda *, again: self.connected.append(again),
            on_refused=self._refused,
            on_wiped=lambda: None,
            connect_timeout_s=5.0,
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
