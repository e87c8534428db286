"""A database with the fence and a table, and leases, for psycopg's tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from lockguard._lease import Lease
from lockguard.ports import Sealed
from lockguard_psycopg import (
    AsyncFencedConnection,
    PsycopgFence,
    install,
    unfenced,
)
from tests.integration.fence_leases import SOON, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


INSERT = "insert into note (id, text) values (%s, 'x')"


@pytest.fixture
def installed(database_url: str) -> str:
    """The URL of a database with the fence and a table."""
    with psycopg.connect(database_url) as conn:
        install(conn)
        conn.execute("create table note (id int, text text)")
    return database_url


@pytest.fixture
async def fence(installed: str) -> AsyncIterator[PsycopgFence]:
    async with AsyncConnectionPool(installed, min_size=1, max_size=4, open=False) as pool:
        async with PsycopgFence(pool) as fence:
            yield fence


async def held(fence: PsycopgFence, token: int = 7) -> Lease:
    grant = grant_of(token)
    assert isinstance(await fence.seal(grant, within=SOON), Sealed)
    return lease_of(grant)


@asynccontextmanager
async def connected(url: str, **options: Any) -> AsyncIterator[AsyncFencedConnection[Any]]:
    async with await AsyncFencedConnection.connect(url, **options) as conn:
        yield conn


async def count(conn: psycopg.AsyncConnection[Any]) -> int:
    with unfenced():
        row = await (await conn.execute("select count(*) from note")).fetchone()
    assert row is not None
    return int(row[0])
