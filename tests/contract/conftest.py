"""One lock, kept by one node or by five: the same laws."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import redis

from lockguard import LockGuard
from lockguard.testing import RedisServer

KEPT = (":token", ":history", ":member")
"""What outlives a lock on purpose: the token floor, the history, and the right to vote."""


@dataclass
class Cluster:
    """The servers behind one kind of lock."""

    urls: list[str]

    def clients(self) -> Iterator[redis.Redis]:
        for url in self.urls:
            with redis.Redis.from_url(url, decode_responses=True) as client:
                yield client

    def each(self, *command: Any) -> list[Any]:
        return [client.execute_command(*command) for client in self.clients()]

    def leftovers(self) -> list[str]:
        """Keys that a lock should not leave behind."""
        return [k for keys in self.each("KEYS", "*") for k in keys if not k.endswith(KEPT)]


@pytest.fixture(scope="session")
def five_servers() -> Iterator[list[RedisServer]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RedisServer()) for _ in range(5)]


@pytest.fixture(params=[1, 5], ids=["one-node", "five-nodes"])
def cluster(request: pytest.FixtureRequest, five_servers: list[RedisServer]) -> Cluster:
    found = Cluster([server.url for server in five_servers[: request.param]])
    found.each("FLUSHALL")
    found.each("SCRIPT", "FLUSH")
    return found


NewGuard = Callable[..., LockGuard]


@pytest.fixture
async def new_guard(cluster: Cluster) -> AsyncIterator[NewGuard]:
    """Guards over the cluster; each is its own process as far as Redis can tell."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**options: Any) -> LockGuard:
            options.setdefault("wait", timedelta(seconds=20))
            options.setdefault("node_timeout", timedelta(seconds=1))  # a busy machine is no fault
            guard = LockGuard.from_urls(cluster.urls, **options)
            stack.push_async_callback(guard.aclose)
            return guard

        yield make
