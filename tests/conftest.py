"""Fixtures shared by all tests: real servers, started once per test process."""

from __future__ import annotations

import asyncio
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from lockguard.testing import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parent

ON_EACH_LOOP = (
    "chaos/test_topology_links.py",
    "contract/",
    "integration/test_cancellation.py",
    "integration/test_fence.py",
    "integration/test_fence_breakage.py",
    "integration/test_fence_cancelled_writes.py",
    "integration/test_fence_cancels.py",
    "integration/test_fence_dropin.py",
    "integration/test_fenced_loss.py",
    "integration/test_hold_use.py",
    "integration/test_loss.py",
    "integration/test_renewal_links.py",
    "integration/test_loops.py",
)
"""What runs on asyncio's own event loop and on uvloop, which users of ccxt and uvicorn have."""


def _uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed, so nothing is tried on it here")
    return uvloop.new_event_loop()


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On which event loops a test runs."""
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.relative_to(TESTS).as_posix().startswith(ON_EACH_LOOP):
        factories["uvloop"] = _uvloop
    return factories


def pytest_configure() -> None:
    """Let Ctrl-C reach what the tests start, also where a shell began in the background with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests of this process. A test that pauses or kills one starts its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process. A test that pauses or kills one starts its own."""
    with PostgresServer(max_connections=200) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a server without keys and without cached scripts."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)
