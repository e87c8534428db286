"""A transaction that also gives its lease back: all of it or nothing, and nothing after it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._guard import LockGuard
from lockguard._lease import Grant
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import PostgresFence, fenced_execute, fenced_transaction, install
from tests.integration.fence_leases import APT, SOON, held

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

INSERT = "insert into note values (1)"
LEVELS = ["read_committed", "repeatable_read", "serializable"]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key)")
        yield pool


async def is_open(pool: asyncpg.Pool[Any]) -> bool:
    return bool(await pool.fetchval("select is_open from lockguard.status($1)", APT))


@pytest.mark.parametrize("isolation", LEVELS)
async def test_a_closing_transaction_commits_its_write_and_accepts_none_after_it(
    pool: asyncpg.Pool[Any], isolation: Any
) -> None:
    lease = await held(pool)
    async with fenced_transaction(pool, lease, isolation=isolation, closes=True) as conn:
        await conn.execute(INSERT)
        assert await is_open(pool)
    assert await pool.fetchval("select count(*) from note") == 1
    assert not await is_open(pool)
    with pytest.raises(StaleToken, match="closed"):
        await fenced_execute(pool, "insert into note values (2)", lease=lease)
    await held(pool, 8)


@pytest.mark.parametrize("isolation", LEVELS)
async def test_a_closing_transaction_that_fails_leaves_the_lease_open_and_nothing_written(
    pool: asyncpg.Pool[Any], isolation: Any
) -> None:
    lease = await held(pool)
    with pytest.raises(ValueError, match="of my own"):
        async with fenced_transaction(pool, lease, isolation=isolation, closes=True) as conn:
            await conn.execute(INSERT)
            raise ValueError("of my own")
    assert await is_open(pool)
    assert await pool.fetchval("select count(*) from note") == 0
    await fenced_execute(pool, INSERT, lease=lease)


async def test_a_closing_transaction_waits_for_the_other_writes_under_its_lease(
    pool: asyncpg.Pool[Any],
) -> None:
    lease = await held(pool)
    async with fenced_transaction(pool, lease) as other:
        await other.execute(INSERT)
        closing = fenced_transaction(pool, lease, closes=True)
        await closing.__aenter__()
        leaving = asyncio.create_task(closing.__aexit__(None, None, None))
        async with asyncio.timeout(5):
            while not await pool.fetchval("select exists (select from pg_locks where not granted)"):
                await asyncio.sleep(0.01)
        assert not leaving.done()
    await leaving
    assert await pool.fetchval("select count(*) from note") == 1
    assert not await is_open(pool)


async def test_a_closing_transaction_inside_another_is_refused(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(ConfigurationError, match="outermost"):
            async with fenced_transaction(conn, lease, closes=True):
                raise AssertionError("unreachable")
        assert await conn.fetchval("select 1") == 1


async def test_a_lease_that_its_last_transaction_closed_costs_the_fence_nothing_to_give_back(
    pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    calls = "select xact_commit from pg_stat_database where datname = current_database()"
    fence = PostgresFence(pool)
    closed: list[str] = []
    part = fence._attached.here()
    close = part._close

    async def counted(grant: Grant, *, within: timedelta) -> None:
        closed.append(grant.id)
        await close(grant, within=within)

    part._close = counted  # type: ignore[method-assign]
    assert await pool.fetchval(calls) is not None
    async with LockGuard.from_url(redis_url, fence=fence) as guard:
        async with guard.hold(APT), fenced_transaction(pool, closes=True) as conn:
            await conn.execute(INSERT)
        assert not closed
        assert not await is_open(pool)
        async with guard.hold(APT):  # the next one is its own
            pass
        assert len(closed) == 1


async def test_the_fences_row_is_updated_in_its_own_page(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        for token in range(1, 41):
            lease = await held(pool, token)
            await fenced_execute(pool, INSERT, lease=lease)
            await PostgresFence(pool).close(lease.grant, within=SOON)
    asked = (
        "select n_tup_upd, n_tup_hot_upd from pg_stat_all_tables where relid = 'lockguard.fence'::regclass"
    )
    conn = await asyncpg.connect(database_url)  # what a session did is counted when it ends
    try:
        async with asyncio.timeout(5):
            while (row := await conn.fetchrow(asked))["n_tup_upd"] < 79:
                await asyncio.sleep(0.05)
        assert row["n_tup_hot_upd"] >= 0.9 * row["n_tup_upd"]
    finally:
        await conn.close()
