"""Fixtures of the worlds in which calls are cancelled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from lockguard_lab.servers import IndependentRedis
from tests.cancellation.worlds import Servers


@pytest.fixture(scope="module")
def three_servers() -> Iterator[IndependentRedis]:
    with IndependentRedis(3) as started:
        yield started


@pytest.fixture
def servers(request: pytest.FixtureRequest, redis_url: str) -> Servers:
    needs = request.getfixturevalue("world").needs
    database_url = request.getfixturevalue("database_url") if "database_url" in needs else ""
    urls: tuple[str, ...] = ()
    if "redis_urls" in needs:
        urls = tuple(request.getfixturevalue("three_servers").urls)
        for url in urls:
            with redis.Redis.from_url(url) as client:
                client.flushall()
    return Servers(redis_url, database_url, urls)
