"""The functions of the fence, case by case, as any client of Postgres may call them.

The guard calls them in a fixed order and keeps its connections apart, which hides some of these cases: a late
seal, a second lease in one transaction, a grant that comes back, a database that was pruned or recovered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from lockguard_asyncpg import install
from lockguard_lab.servers import PostgresServer

YEAR_US = 365 * 86_400 * 1_000_000
WRITER = 1 << 62
"""A sequence from here on is of a writer that numbers its writes."""


@dataclass
class Fence:
    """Two sessions on one resource of the test's own."""

    conn: asyncpg.Connection[Any]
    other: asyncpg.Connection[Any]
    now: int
    resource: str = field(default_factory=lambda: f"test:{secrets.token_hex(6)}")

    async def seal(
        self, token: int, grant: UUID, *, by: Any = None, within_ms: int = 5_000
    ) -> tuple[bool, int]:
        told = await (by or self.conn).fetchrow(
            "select * from lockguard.seal($1, $2, $3, 'h', 'o', $4)", self.resource, token, grant, within_ms
        )
        return told["accepted"], told["token"]

    async def close(self, token: int, grant: UUID, *, within_ms: int = 5_000) -> None:
        await self.conn.execute(
            "select lockguard.close($1, $2, $3, $4)", self.resource, token, grant, within_ms
        )

    async def check(
        self, token: int | None, grant: UUID, sequence: int | None = None, *, by: Any = None
    ) -> None:
        await (by or self.conn).execute(
            "select lockguard.check($1, $2, $3, $4)", self.resource, token, grant, sequence
        )

    async def refused(self, token: int | None, grant: UUID, sequence: int | None = None) -> str:
        """Why a check is refused."""
        with pytest.raises(asyncpg.PostgresError) as caught:
            await self.check(token, grant, sequence)
        assert caught.value.sqlstate == "LG001", caught.value
        return str(json.loads(caught.value.detail)["reason"])

    async def resolve(self, token: int, sequence: int, *, first: bool = False) -> bool:
        name = "resolve_first" if first else "resolve"
        return bool(
            await self.conn.fetchval(
                f"select lockguard.{name}($1, $2, $3, 1000)", self.resource, token, sequence
            )
        )

    async def break_grant(self, token: int, grant: UUID) -> tuple[bool, int]:
        told = await self.conn.fetchrow(
            "select * from lockguard.break_grant($1, $2, $3, 'why', 1000)", self.resource, token, grant
        )
        return told["broken"], told["token"]

    async def row(self) -> asyncpg.Record | None:
        return await self.conn.fetchrow("select * from lockguard.fence where resource = $1", self.resource)

    async def audited(self) -> list[str]:
        found = await self.conn.fetch(
            "select action from lockguard.audit where subject = $1 order by id", self.resource
        )
        return [row["action"] for row in found]


@pytest.fixture(scope="module")
def fenced_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the fence; no test of it prunes or recovers."""
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        conn = await asyncpg.connect(url)
        await install(conn)
        await conn.close()

    asyncio.run(prepare())
    yield url
    postgres_server.drop_database(name)


async def fence_on(url: str) -> AsyncIterator[Fence]:
    conn, other = await asyncpg.connect(url), await asyncpg.connect(url)
    now = await conn.fetchval("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
    yield Fence(conn, other, now - 1_000_000_000)
    for one in (conn, other):
        await one.close()


@pytest.fixture
async def fence(fenced_url: str) -> AsyncIterator[Fence]:
    async for made in fence_on(fenced_url):
        yield made


@pytest.fixture
async def fence_alone(database_url: str) -> AsyncIterator[Fence]:
    """In a database of its own."""
    async for made in fence_on(database_url):
        await install(made.conn)
        yield made


CHECK_FIRST = "select lockguard.check_first($1, $2, $3, 'h', 'o', $4)"
