"""Redis loses what it knew between two holders: the fence knows who is the rightful one."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis.asyncio as aioredis

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Lease
from lockguard.errors import LeaseLost, LeaseNotHeld, StaleToken
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install
from lockguard_lab.servers import HOLD, FaultProxy, RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager


APT = "binance:APTUSDT"
KEY = "lockguard:{binance:APTUSDT}"
INSERT = "insert into note values ($1)"
TTL = timedelta(seconds=30)


class Flushed:
    """``FLUSHALL`` on a running server."""

    def __init__(self, server: RedisServer) -> None:
        self.url = server.url

    async def before_the_last_write(self) -> None:
        """Nothing."""

    async def lose(self) -> str:
        async with aioredis.Redis.from_url(self.url) as client:
            await client.flushall()
        return self.url


class Restarted(Flushed):
    """The server comes back empty."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        self.server = server

    async def lose(self) -> str:
        await asyncio.to_thread(self.server.restart, keep_data=False)
        return self.url


class FailedOver(Flushed):
    """A replica that did not get the last write is promoted; the master is dead."""

    def __init__(self, master: RedisServer, replica: RedisServer, proxy: FaultProxy) -> None:
        super().__init__(master)
        self.master, self.replica, self.proxy = master, replica, proxy

    async def before_the_last_write(self) -> None:
        async with aioredis.Redis.from_url(self.master.url) as client:
            assert await client.wait(1, 5_000) == 1  # it has all that was written so far
        self.proxy.to_client.set(HOLD)

    async def lose(self) -> str:
        self.master.kill()
        async with aioredis.Redis.from_url(self.replica.url, decode_responses=True) as client:
            assert await client.hget(KEY, "grant") is None, "the replica got the last write: nothing was lost"
            await client.execute_command("REPLICAOF", "NO", "ONE")
            assert (await client.info("replication"))["role"] == "master"
        return self.replica.url


@asynccontextmanager
async def flushed() -> AsyncIterator[Flushed]:
    async with RedisServer() as server:
        yield Flushed(server)


@asynccontextmanager
async def restarted() -> AsyncIterator[Flushed]:
    async with RedisServer() as server:
        yield Restarted(server)


@asynccontextmanager
async def failed_over() -> AsyncIterator[Flushed]:
    async with AsyncExitStack() as stack:
        master = await stack.enter_async_context(RedisServer(config=["repl-diskless-sync-delay 0"]))
        proxy = await stack.enter_async_context(FaultProxy(master.port))
        replica = RedisServer(config=[f"replicaof 127.0.0.1 {proxy.port}"], password=master.password)
        await stack.enter_async_context(replica)
        async with aioredis.Redis.from_url(replica.url, decode_responses=True) as client, asyncio.timeout(20):
            while (await client.info("replication"))["master_link_status"] != "up":
                await asyncio.sleep(0.01)
        yield FailedOver(master, replica, proxy)


losses = pytest.mark.parametrize("loss", [flushed, restarted, failed_over])


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (text text)")
        yield pool


def guard(url: str, pool: asyncpg.Pool[Any]) -> LockGuard:
    return LockGuard.from_url(url, fence=PostgresFence(pool), ttl=TTL)


@losses
@pytest.mark.parametrize("ahead", [False, True], ids=["clock is right", "fence is a day ahead"])
async def test_tokens_increase_and_only_the_old_holder_is_refused(
    loss: Callable[[], AbstractAsyncContextManager[Flushed]], ahead: bool, pool: asyncpg.Pool[Any]
) -> None:
    if ahead:  # what Redis hands out by its clock is lower than what the fence has seen
        await pool.execute(
            "select lockguard.seal($1, (extract(epoch from now()) * 1e6)::bigint + 86400000000,"
            " gen_random_uuid(), 'yesterday', 'open', 1000)",
            APT,
        )
    tokens: list[int] = []
    first_holds, second_done = asyncio.Event(), asyncio.Event()
    refused: list[StaleToken] = []

    async with loss() as servers:

        async def first() -> None:
            async with guard(servers.url, pool) as locks:
                async with locks.hold(APT) as earlier:
                    tokens.append(earlier.token)
                await servers.before_the_last_write()
                # Redis has forgotten it, so giving it back finds nothing, or no server.
                with suppress(LeaseLost, LeaseNotHeld):
                    async with locks.hold(APT) as lease:
                        await pool.execute(INSERT, "first")
                        tokens.append(lease.token)
                        first_holds.set()
                        await second_done.wait()
                await second_done.wait()  # the loss may have ended the body before that
                refused.append(await late_write(pool, lease))

        async def second() -> None:
            await first_holds.wait()
            url = await servers.lose()
            async with guard(url, pool) as locks:
                for _ in range(3):
                    async with locks.hold(APT) as lease:
                        tokens.append(lease.token)
                        for _ in range(3):
                            await pool.execute(INSERT, "second")
            second_done.set()

        async with asyncio.timeout(60):
            await asyncio.gather(first(), second())
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 5
    (error,) = refused
    assert (error.presented, error.current) == (tokens[1], tokens[-1])
    written = [r["text"] for r in await pool.fetch("select text from note")]
    assert written == ["first"] + ["second"] * 9


async def late_write(pool: asyncpg.Pool[Any], lease: Lease) -> StaleToken:
    """As a holder writes that has not heard of its loss."""
    lease = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
    with pytest.raises(StaleToken) as caught:
        await fenced_execute(pool, INSERT, "late", lease=lease)
    return caught.value
