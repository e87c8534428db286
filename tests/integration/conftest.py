"""Fixtures that several rooms of the integration tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard_asyncpg import install
from lockguard_lab.servers import PostgresServer
from tests.integration.examples import EXAMPLES
from tests.integration.fence_leases import postgres_15


@pytest.fixture
async def guard(redis_url: str) -> AsyncIterator[LockGuard]:
    async with LockGuard.from_url(redis_url) as made:
        yield made


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """To an empty database."""
    conn = await asyncpg.connect(database_url)
    yield conn
    await conn.close()


@pytest.fixture
async def example_database(conn: asyncpg.Connection[Any]) -> asyncpg.Connection[Any]:
    """With the fence and the tables of the examples that the pages show."""
    await install(conn)
    await conn.execute((EXAMPLES / "tables.sql").read_text(encoding="utf-8"))
    return conn


@pytest.fixture(scope="module", params=["embedded", "15"])
def any_server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """The newest Postgres, and the oldest that is supported."""
    if request.param == "embedded":
        yield request.getfixturevalue("postgres_server")
        return
    with PostgresServer(binary=postgres_15()) as server:
        yield server
