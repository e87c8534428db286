"""A write of which the statement itself returns no row is refused a stale lease all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._lease import Lease
from lockguard.errors import LeaseLost, StaleToken
from lockguard_asyncpg import (
    create_pool,
    fenced_execute,
    fenced_fetch,
    fenced_fetchrow,
    install,
)
from tests.integration.fence_leases import held

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Partitioning as before Postgres 10: the trigger writes elsewhere, and the statement has written nothing.
TABLES = """
create table note (id int);
create table note_2026 () inherits (note);
create function elsewhere() returns trigger language plpgsql as $$
begin insert into note_2026 values (new.id); return null; end $$;
create trigger elsewhere before insert on note for each row execute function elsewhere();
create table other (id int);
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(TABLES)
        yield pool


async def write(pool: asyncpg.Pool[Any], lease: Lease, way: str) -> object:
    insert = "insert into note values ($1) returning id"
    match way:
        case "fetch":
            return await fenced_fetch(pool, insert, 1, lease=lease)
        case "fetchrow, also":
            return await fenced_fetchrow(pool, insert, 1, lease=lease, also=["insert into other values (1)"])
        case _:
            return await fenced_execute(pool, "insert into note values ($1)", 1, lease=lease)


@pytest.mark.parametrize("way", ["fetch", "fetchrow, also", "execute"])
async def test_a_stale_write_that_returns_no_row_is_refused(pool, way):
    old = await held(pool, 1)
    await write(pool, old, way)
    await held(pool, 2)
    with pytest.raises((StaleToken, LeaseLost)):
        await write(pool, old, way)
    assert await pool.fetchval("select count(*) from note_2026") == 1
    assert await pool.fetchval("select count(*) from other") == (1 if "also" in way else 0)
