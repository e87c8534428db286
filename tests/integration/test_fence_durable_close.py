"""A close that does not wait for the disk: what a crash forgets of it, and what it does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Lease, Token
from lockguard.errors import ConfigurationError, StaleToken
from lockguard.ports import Sealed
from lockguard_asyncpg import PostgresFence, fenced_execute, install
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import SOON, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

INSERT = "insert into note values ($1)"
IS_OPEN = "select is_open from lockguard.status('binance:APTUSDT')"


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def _connected(server: PostgresServer) -> asyncpg.Pool[Any]:
    return await asyncpg.create_pool(server.url, min_size=1, max_size=3)


@pytest.fixture
async def pool(server: PostgresServer) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with await _connected(server) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
            # What nobody waits for is written after ten seconds, not after a fifth of one.
            await conn.execute("alter system set wal_writer_delay = '10s'")
            await conn.execute("select pg_reload_conf()")
        async with asyncio.timeout(5):
            while await pool.fetchval("show wal_writer_delay") != "10s":
                await asyncio.sleep(0.01)
        yield pool


@pytest.mark.parametrize("durable", [True, False])
async def test_a_crash_may_forget_a_close_that_did_not_wait_and_the_next_seal_shuts_out_all_the_same(
    server: PostgresServer, pool: asyncpg.Pool[Any], durable: bool
) -> None:
    fence, lease = PostgresFence(pool, durable_close=durable), lease_of(grant_of(7))
    assert await fence.seal(lease.grant, within=SOON) == Sealed(Token(7))
    await fenced_execute(pool, INSERT, 1, lease=lease)
    await fence.close(lease.grant, within=SOON)
    assert await pool.fetchval(IS_OPEN) is False
    await asyncio.to_thread(server.kill)
    pool.terminate()
    await asyncio.to_thread(server.restart)
    async with await _connected(server) as again:
        assert await again.fetchval("select count(*) from note") == 1
        assert await again.fetchval(IS_OPEN) is not durable
        successor = lease_of(grant_of(8))
        sealing = PostgresFence(again, durable_close=durable).seal(successor.grant, within=SOON)
        assert await sealing == Sealed(Token(8))
        blind = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        with pytest.raises(StaleToken):
            await fenced_execute(again, INSERT, 2, lease=blind)


async def test_what_is_no_yes_or_no_is_refused() -> None:
    pool = asyncpg.create_pool("postgresql://127.0.0.1/nobody_connects", min_size=0)
    with pytest.raises(ConfigurationError, match="durable_close= is"):
        PostgresFence(pool, durable_close=0)  # type: ignore[arg-type]
