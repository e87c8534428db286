"""A cancel of the fence's own calls stays a cancel, although the connection breaks in the same moment."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._lease import Resource
from lockguard.errors import FenceUnavailable
from lockguard_asyncpg import PostgresFence, create_pool, install
from lockguard_asyncpg._errors import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APT = Resource("binance:APTUSDT")
LATE = timedelta(seconds=30)


class Breaking(asyncpg.Connection[Any] if TYPE_CHECKING else asyncpg.Connection):
    """Its backend ends in the moment in which its statement is cancelled."""

    asked: asyncio.Event

    async def fetchrow(self, *args: Any, **options: Any) -> Any:
        return await self._never()

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        if "update note" in query:
            return await self._never()
        return await super().execute(query, *args, **options)

    async def _never(self) -> Any:
        self.asked.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.terminate()
            raise


@pytest.fixture
async def breaking(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """A pool of such connections."""
    Breaking.asked = asyncio.Event()
    async with create_pool(database_url, min_size=0, max_size=4, connection_class=Breaking) as pool:
        async with pool.acquire() as conn:
            await install(conn)
        yield pool


async def test_a_break_whose_backend_ends_with_its_timeout_ends_in_time(
    breaking: asyncpg.Pool[Any],
) -> None:
    async with asyncio.timeout(5):
        with pytest.raises(FenceUnavailable, match=r"within 0\.2 s"):
            await PostgresFence(breaking).break_(APT, reason="test", within=timedelta(milliseconds=200))


async def test_a_break_whose_backend_ends_with_a_cancel_is_cancelled(breaking: asyncpg.Pool[Any]) -> None:
    task = asyncio.create_task(PostgresFence(breaking).break_(APT, reason="test", within=LATE))
    await Breaking.asked.wait()
    Breaking.asked.clear()
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not Breaking.asked.is_set()


async def test_a_transaction_whose_backend_ends_with_a_cancel_is_cancelled(
    breaking: asyncpg.Pool[Any],
) -> None:
    """On a fenced pool; with asyncpg's own `async with conn.transaction()` the cancel is gone."""
    swallowed = False

    async def body() -> None:
        nonlocal swallowed
        async with breaking.acquire() as conn:
            try:
                async with conn.transaction():
                    await conn.execute("update note set id = 1")
            except DATABASE_ERRORS:
                swallowed = True

    task = asyncio.create_task(body())
    await Breaking.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not swallowed
