"""Poolers and caches between the fence and Postgres."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, create_pool, fenced_transaction, install
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lockguard_lab.servers import PostgresServer

RESOURCE = "binance:APTUSDT"


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.execute(
        "create table trades (id int primary key, price int); insert into trades values (1, 1)"
    )
    yield conn
    await conn.close()


class InMode(PgBouncer):
    """One that pools by statement, session or transaction."""

    mode = "statement"

    def _lines(self, users: Path) -> tuple[str, ...]:
        lines = super()._lines(users)
        assert "pool_mode = transaction" in lines
        return tuple(line.replace("= transaction", f"= {self.mode}") for line in lines)


@pytest.fixture(params=["statement", "session"])
def pooler(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> Iterator[InMode]:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    pooler = InMode(postgres_server)
    pooler.mode = request.param
    with pooler:
        yield pooler


async def test_a_pooler_in_statement_mode_is_refused_before_the_first_lease(
    conn: asyncpg.Connection[Any], pooler: InMode, database_url: str, redis_url: str
) -> None:
    url = pooler.url_for(database_url)
    async with (
        create_pool(url, min_size=0, max_size=4, statement_cache_size=0) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
    ):
        if pooler.mode == "session":
            async with guard.hold(RESOURCE):
                await pool.execute("update trades set price = 2")
        else:
            for _ in range(2):  # not the first time only
                with pytest.raises(
                    ConfigurationError, match=r"statement pooling mode; .*pool_mode = transaction"
                ):
                    async with guard.hold(RESOURCE, wait=timedelta(seconds=5)):
                        pytest.fail("a body without a fence")
    assert await conn.fetchval("select price from trades") == (2 if pooler.mode == "session" else 1)


async def test_select_star_goes_on_after_a_column_was_added_under_a_lease(
    conn: asyncpg.Connection[Any], database_url: str, redis_url: str
) -> None:
    async with (
        create_pool(database_url, min_size=1, max_size=1) as pool,
        create_pool(database_url, min_size=0, max_size=2) as sealing,
        LockGuard.from_url(redis_url, fence=PostgresFence(sealing)) as guard,
        guard.hold(RESOURCE),
    ):
        raising = "update trades set price = price + 1 returning *"
        assert len(await pool.fetchrow("select * from trades") or ()) == 2
        assert len(await pool.fetchrow(raising) or ()) == 2
        await conn.execute("alter table trades add column note text")
        assert len(await pool.fetchrow("select * from trades") or ()) == 3
        await conn.execute("alter table trades add column more text")
        assert len(await pool.fetchrow(raising) or ()) == 4
        assert await conn.fetchval("select price from trades") == 3  # once each
        await conn.execute("alter table trades add column last text")
        with pytest.raises(asyncpg.InvalidCachedStatementError):  # as asyncpg does: nobody else can repeat it
            async with fenced_transaction(pool) as inside:
                await inside.fetchrow("select * from trades")
