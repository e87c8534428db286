"""A holder whose open grant is superseded hears of it at once, before it writes or renews."""

from __future__ import annotations

import asyncio
import contextvars
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard import LeaseLost, LockGuard
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, LossReason
from lockguard_asyncpg import PostgresFence, install
from tests.integration.fence_leases import SOON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

APT = Resource("binance:APTUSDT")


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=4) as pool:
        async with pool.acquire() as conn:
            await install(conn)
        yield pool


async def _sealed_by_another(pool: asyncpg.Pool[Any]) -> None:
    token = await pool.fetchval("select token from lockguard.status($1)", APT)
    grant = Grant(APT, new_grant_id(), Token(token + 1), "host/2", "open", 10_000)
    await PostgresFence(pool).seal(grant, within=SOON)


async def _broken(pool: asyncpg.Pool[Any]) -> None:
    await PostgresFence(pool).break_(APT, reason="test", within=SOON)


@pytest.mark.parametrize("supersede", [_sealed_by_another, _broken])
async def test_a_lease_that_is_superseded_while_it_is_open_ends_at_once(
    redis_url: str,
    database_url: str,
    pool: asyncpg.Pool[Any],
    supersede: Callable[[asyncpg.Pool[Any]], Awaitable[None]],
) -> None:
    ttl = timedelta(seconds=60)
    async with (
        PostgresFence(pool, listen=database_url) as fence,
        LockGuard.from_url(redis_url, ttl=ttl, fence=fence) as guard,
    ):
        await asyncio.wait_for(fence.listening(), 5)
        with pytest.raises(LeaseLost) as caught:
            async with asyncio.timeout(5), guard.hold(APT):
                await asyncio.create_task(supersede(pool), context=contextvars.Context())
                await asyncio.Event().wait()
    assert caught.value.reason is LossReason.FENCED


async def test_it_listens_again_after_its_connection_was_lost(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
) -> None:
    async with (
        PostgresFence(pool, listen=database_url) as fence,
        LockGuard.from_url(redis_url, ttl=timedelta(seconds=60), fence=fence) as guard,
    ):
        await asyncio.wait_for(fence.listening(), 5)
        listens = "from pg_stat_activity where query ilike 'listen%' and datname = current_database()"
        assert await pool.fetchval(f"select count(pg_terminate_backend(pid, 5000)) {listens}") == 1
        async with asyncio.timeout(8):
            while not await pool.fetchval(f"select count(*) {listens}"):
                await asyncio.sleep(0.01)
        await asyncio.wait_for(fence.listening(), 5)
        with pytest.raises(LeaseLost):
            async with asyncio.timeout(5), guard.hold(APT):
                await asyncio.create_task(_broken(pool), context=contextvars.Context())
                await asyncio.Event().wait()


async def test_nobody_is_told_of_a_grant_that_was_closed(pool: asyncpg.Pool[Any]) -> None:
    heard: list[object] = []
    async with pool.acquire() as conn:
        await conn.add_listener("lockguard_superseded", lambda *word: heard.append(word[-1]))
        fence = PostgresFence(pool)
        grant = Grant(APT, new_grant_id(), Token(7), "host/1", "open", 10_000)
        await fence.seal(grant, within=SOON)
        await fence.close(grant, within=SOON)
        await _sealed_by_another(pool)
        assert heard == []
        await _sealed_by_another(pool)
        await conn.execute("select")  # what was said before its answer has been read
        assert len(heard) == 1
        await conn.reset()


async def test_a_listener_that_cannot_connect_says_so_once_and_shows_no_password(
    pool: asyncpg.Pool[Any],
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tries, connect = 0, asyncpg.connect

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        return await connect(*args, **options)

    monkeypatch.setattr(asyncpg, "connect", counted)
    with pytest.raises(ConfigurationError, match="cannot be read") as refused:
        PostgresFence(pool, listen="postgresql://bot:pass/word@host/db")
    assert "word" not in str(refused.value).replace("password", "")
    place = database_url.rpartition("@")[2]
    async with PostgresFence(pool, listen=f"postgresql://nobody:sesame@{place}"):
        async with asyncio.timeout(10):
            while tries < 3:  # it has failed twice, and tries again
                await asyncio.sleep(0.01)
    told = [r.getMessage() for r in caplog.records if "not listening" in r.message]
    assert len(told) == 1
    assert f"at {place.partition('/')[0]}" in told[0]
    assert "sesame" not in told[0]
