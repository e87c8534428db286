"""What the tests about real failures share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import asyncpg
import pytest

from lockguard import AcquireError, LeaseLost, LockGuard, StaleToken
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.servers import ClusterRedis
from tests.chaos.failures import ask, cut_off, until


@dataclass
class Ledger:
    """A number in Postgres that is read in one transaction and written, one higher, in a later one.

    Two writers at a time would lose an update; then there were more commits than the number says. The commits
    are counted in Postgres: a body that is cancelled while it commits does not learn whether it did.
    """

    pool: asyncpg.Pool
    resource: str
    commits: int = 0
    refused: int = 0
    retried: int = 0
    lost: int = 0
    """Leases, which are among the retried ones."""
    token: int = 0
    fallen: int = 0
    """Commits whose token was not above that of the commit before."""

    async def work(self, guard: LockGuard, go_on: Callable[[], bool]) -> None:
        while go_on():
            try:
                async with guard.hold(self.resource) as lease:
                    await self._add_one(lease.token)
                    self.fallen += lease.token <= self.token
                    self.token = lease.token
            except StaleToken:
                self.refused += 1
            except (AcquireError, LeaseLost) as exc:
                self.retried += 1
                self.lost += isinstance(exc, LeaseLost)
                await asyncio.sleep(0.01)

    async def _add_one(self, token: int) -> None:
        async with fenced_transaction(self.pool) as connection:
            number = await connection.fetchval("select number from ledger")
        await asyncio.sleep(0.005)  # what the holder does meanwhile
        async with fenced_transaction(self.pool) as connection:
            await connection.execute("update ledger set number = $1", number + 1)
            await connection.execute("insert into committed values ($1, $2)", number + 1, token)
        self.commits += 1

    async def number(self) -> int:
        return await self.pool.fetchval("select number from ledger")

    async def lost_updates(self) -> int:
        counted = await self.pool.fetchval("select count(*) from committed")
        assert counted >= self.commits
        return counted - await self.number()


@pytest.fixture
async def ledger(database_url) -> AsyncIterator[Ledger]:
    async with asyncpg.create_pool(database_url, min_size=2, max_size=8) as pool:
        async with pool.acquire() as connection:
            await install(connection)
            await connection.execute("create table ledger (number bigint not null)")
            await connection.execute("insert into ledger values (0)")
            await connection.execute("create table committed (number bigint, token bigint)")
        ledger = Ledger(pool, "binance:APTUSDT")
        ledger.fence = PostgresFence(pool)
        yield ledger


@pytest.fixture(name="ask")
def _ask():
    return ask


@pytest.fixture(name="until")
def _until():
    return until


@pytest.fixture(name="cut_off")
def _cut_off():
    return cut_off


@pytest.fixture(scope="module")
def cluster():
    """Three masters, for the tests of one file."""
    with ClusterRedis(password="") as made:
        yield made
