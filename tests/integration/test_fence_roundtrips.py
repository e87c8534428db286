"""What fencing costs on the wire, counted there: a round trip ends when the server says ReadyForQuery."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from lockguard._guard import LockGuard
from lockguard._lease import Lease
from lockguard_asyncpg import (
    FencedConnection,
    PostgresFence,
    fenced,
    fenced_execute,
    fenced_fetchval,
    fenced_transaction,
    install,
)
from lockguard_asyncpg._transaction_state import bare, give_back
from tests.integration.fence_leases import held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

INSERT = "insert into note (text) values ($1)"
_HEADER_BYTES = 5


class Counter:
    """A proxy that reads the server's messages and counts the ends of round trips."""

    def __init__(self, port: int) -> None:
        self._target = port
        self.trips = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Counter]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._forward(reader, up_writer))
                tasks.create_task(self._count(up_reader, writer))
        except* (OSError, EOFError):
            pass
        except* asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            for one in (writer, up_writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    @staticmethod
    async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65_536):
            writer.write(chunk)
        writer.write_eof()

    async def _count(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            header = await reader.readexactly(_HEADER_BYTES)
            body = await reader.readexactly(int.from_bytes(header[1:]) - 4)
            self.trips += header[:1] == b"Z"
            writer.write(header + body)


@pytest.fixture
async def counter(database_url: str) -> AsyncIterator[Counter]:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.execute("create table note (text text)")
    await conn.close()
    async with Counter(urlsplit(database_url).port or 0).listening() as counter:
        yield counter


@asynccontextmanager
async def far(counter: Counter, url: str, **options: Any) -> AsyncIterator[asyncpg.Pool[Any]]:
    """A pool of one warm connection by way of the counter, without TLS, whose handshake has no messages."""
    through = url.replace(f":{urlsplit(url).port}/", f":{counter.port}/")
    async with asyncpg.create_pool(through, min_size=1, max_size=1, ssl="disable", **options) as pool:
        yield pool


async def trips(counter: Counter, work: Callable[[], Awaitable[Any]]) -> int:
    """How many round trips ``work`` takes once its statements are prepared."""
    await work()
    before = counter.trips
    await work()
    return counter.trips - before


async def test_a_lease_costs_one_round_trip_to_take_and_one_to_give_back(
    counter: Counter, database_url: str, redis_url: str
) -> None:
    async with far(counter, database_url) as pool:
        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as locks:
            for first in (2, 0, 0):  # a process asks once which fence it is, with a prepared statement
                before = counter.trips
                async with locks.hold("binance:APTUSDT"):
                    assert counter.trips - before == first + 1
                assert counter.trips - before == first + 2


@pytest.mark.parametrize("why", ["it is good", "it has served enough", "all were expired", "it was dropped"])
async def test_a_connection_that_needs_no_reset_is_free_for_the_next_as_by_the_pools_own_release(
    database_url: str, why: str
) -> None:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    served = 1 if why == "it has served enough" else 1_000
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1, max_queries=served) as pool:
        first = await pool.fetchval("select pg_backend_pid()")
        for turn in range(3):
            lent = await asyncio.wait_for(pool.acquire(), 5)
            await lent.execute("select")
            if why == "all were expired" and turn == 0:
                await pool.expire_connections()
            if why == "it was dropped" and turn == 0:
                bare(lent).terminate()
            before = asyncio.all_tasks()
            await give_back(pool, lent, clean=True)
            if why == "it is good":  # the pool makes up for the others in the background
                assert asyncio.all_tasks() == before
            with pytest.raises(asyncpg.InterfaceError, match="released back to the pool"):
                await lent.execute("select")
            await give_back(pool, lent, clean=True)  # as the pool's own, which does nothing the second time
        after = await asyncio.wait_for(pool.fetchval("select pg_backend_pid()"), 5)
        assert (after == first) == (why == "it is good")
        assert "pg_advisory_unlock_all" in bare(await pool.acquire()).get_reset_query()
        pool.terminate()


@pytest.mark.parametrize("way", ["statement", "with its row", "transaction"])
async def test_a_native_write_costs_none(counter: Counter, database_url: str, way: str) -> None:
    async with far(counter, database_url) as pool:
        lease = await held(pool)

        async def plain_transaction() -> None:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute(INSERT, "x")

        async def native_transaction() -> None:
            async with fenced_transaction(pool, lease) as conn:
                await conn.execute(INSERT, "x")

        plain, native = {
            "statement": (
                lambda: pool.execute(INSERT, "x"),
                lambda: fenced_execute(pool, INSERT, "x", lease=lease),
            ),
            "with its row": (
                lambda: pool.fetchval(INSERT + " returning text", "x"),
                lambda: fenced_fetchval(pool, INSERT + " returning text", "x", lease=lease),
            ),
            "transaction": (plain_transaction, native_transaction),
        }[way]
        assert await trips(counter, native) == await trips(counter, plain)


@pytest.mark.parametrize("how", ["fenced", "connection_class"])
async def test_a_drop_in_write_costs_none_alone_and_none_in_a_transaction(
    counter: Counter, database_url: str, how: str
) -> None:
    options = {"connection_class": FencedConnection} if how == "connection_class" else {}
    async with far(counter, database_url, **options) as pool:
        if how == "fenced":
            fenced(pool)
        lease = await held(pool)

        async def alone() -> None:
            await pool.execute(INSERT, "x")

        async def many() -> None:
            await pool.executemany(INSERT, [("x",), ("y",)])

        async def transaction() -> None:
            async with pool.acquire() as conn, conn.transaction():
                await conn.execute(INSERT, "x")
                async with conn.transaction():
                    await conn.execute(INSERT, "y")

        for write, more in ((alone, 0), (many, 2), (transaction, 0)):
            plain = await trips(counter, write)
            with under(lease):
                assert await trips(counter, write) == plain + more


async def test_a_transaction_begun_before_the_lease_costs_one(counter: Counter, database_url: str) -> None:
    async with far(counter, database_url) as pool:
        fenced(pool)
        lease = await held(pool)

        async def write(*leases: Lease) -> None:
            async with pool.acquire() as conn, conn.transaction():
                for one in leases:
                    with under(one):
                        await conn.execute(INSERT, "x")
                        await conn.execute(INSERT, "y")
                if not leases:
                    await conn.execute(INSERT, "x")
                    await conn.execute(INSERT, "y")

        assert await trips(counter, lambda: write(lease)) == await trips(counter, write) + 1
