"""What the fence in Python decides at each turn of a write: before it, in it, and when an answer is lost.

All tests of a file share a database and have a resource of their own, so that each case takes milliseconds.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from lockguard._lease import Grant, Lease, Resource
from lockguard_asyncpg import (
    PostgresFence,
    install,
)
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import SOON, grant_of, lease_of

INSERT = "insert into note values ($1)"
REFUSED_AT_COMMIT = """
create table late (text text);
create function refuse() returns trigger language plpgsql
  as $$ begin perform lockguard.check(new.text, 6, gen_random_uuid()); return null; end $$;
create constraint trigger refuse after insert on late deferrable initially deferred
  for each row execute function refuse();
"""


@pytest.fixture(scope="module")
def notes_url(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        conn = await asyncpg.connect(url)
        await install(conn)
        await conn.execute("create table note (text text)")
        await conn.execute(REFUSED_AT_COMMIT)
        await conn.close()

    asyncio.run(prepare())
    yield url
    postgres_server.drop_database(name)


@pytest.fixture
async def pool(notes_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(notes_url, min_size=0, max_size=4) as made:
        yield made


@pytest.fixture
def resource() -> Resource:
    return Resource(f"test:{secrets.token_hex(6)}")


async def noted(pool: asyncpg.Pool[Any], resource: str) -> int:
    return int(await pool.fetchval("select count(*) from note where text = $1", resource))


def unaware(lease: Lease) -> Lease:
    """The same lease, as code has it that was not told of a loss."""
    return lease_of(lease.grant)


# --- the fence ---


async def fence_over(pool: asyncpg.Pool[Any], **options: Any) -> Any:
    """The part of a fence that is of this event loop."""
    made: Any = PostgresFence(pool, **options)
    return made


async def sealed(fence: Any, token: int, resource: Resource, *, seal: str = "") -> tuple[Grant, Any]:
    grant = replace(grant_of(token, resource), seal=seal)
    return grant, await fence.seal(grant, within=SOON)
