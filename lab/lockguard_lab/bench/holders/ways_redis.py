"""The ways to lock whose lock is in Redis: lockguard, with its fence and without, and its peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import import_module
from typing import ClassVar

from lockguard._guard import LockGuard
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import create_pool
from lockguard_lab.bench.clients import aio, blocking, coredis_client
from lockguard_lab.bench.holders.ways import MANY, Server, Way, Write, plain_write

__all__ = [
    "AioredlockWay",
    "CoredisWay",
    "LockguardPool",
    "LockguardQuorum",
    "LockguardToken",
    "LockguardUnfenced",
    "PotteryWay",
    "PythonRedisLockWay",
    "RedisPyWay",
]

_PATIENCE = timedelta(minutes=10)
_FENCED_WRITE = "update bot set status = $1, token = lockguard.check($2, $3, $4) where id = 1"


class _InRedis(Way):
    server: ClassVar[Server] = "Redis"


class LockguardUnfenced(_InRedis):
    """lockguard's lease alone, and writes that nothing checks."""

    name = "lockguard-no-fence"
    label = "lockguard without its fence"

    async def open(self) -> None:
        """A guard without a fence."""
        self._guard = await self.stack.enter_async_context(
            LockGuard.from_url(self.place.redis, ttl=timedelta(seconds=self.ttl_s), wait=_PATIENCE)
        )

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``guard.hold()``."""
        async with self._guard.hold(self.resource):
            yield plain_write(self.pool)


class LockguardQuorum(LockguardUnfenced):
    """lockguard's lease from a majority of several servers, without a fence."""

    name = "lockguard-quorum"
    label = "lockguard over three servers, without its fence"

    async def open(self) -> None:
        """A guard over all of them."""
        self._guard = await self.stack.enter_async_context(
            LockGuard.from_urls(self.place.quorum, ttl=timedelta(seconds=self.ttl_s), wait=_PATIENCE)
        )


class _Fenced(_InRedis):
    async def open(self) -> None:
        """A guard with a fence, on a fenced pool."""
        self._fenced = await create_pool(self.place.postgres, min_size=2, max_size=MANY)
        self.stack.callback(self._fenced.terminate)
        self._guard = await self.stack.enter_async_context(
            LockGuard.from_url(
                self.place.redis,
                ttl=timedelta(seconds=self.ttl_s),
                wait=_PATIENCE,
                fence=PostgresFence(self._fenced),
            )
        )


class LockguardPool(_Fenced):
    """lockguard with its fence, and writes through its pool, as its documentation shows."""

    name = "lockguard"
    label = "lockguard, `pool.execute`"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``guard.hold()`` with a fence."""
        async with self._guard.hold(self.resource):
            yield plain_write(self._fenced)


class LockguardToken(_Fenced):
    """lockguard with its fence, and a write that no code of lockguard's sees before Postgres does."""

    name = "lockguard-raw-sql"
    label = "lockguard, raw SQL with its token"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``guard.hold()`` with a fence; the statement carries the token."""
        async with self._guard.hold(self.resource) as lease:
            yield lambda status: self.pool.execute(
                _FENCED_WRITE, status, lease.resource, lease.token, lease.grant.id
            )


class RedisPyWay(_InRedis):
    """The lock of redis-py's asyncio client."""

    name = "redis-py"
    label = "redis-py `Lock`"

    async def open(self) -> None:
        """A client."""
        self._client = aio(self.place.redis)
        self.stack.push_async_callback(self._client.aclose)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``client.lock()``."""
        async with self._client.lock(self.resource, timeout=self.ttl_s):
            yield plain_write(self.pool)


class CoredisWay(_InRedis):
    """The lock of coredis."""

    name = "coredis"
    label = "coredis `Lock`"

    async def open(self) -> None:
        """A client."""
        client, _ = coredis_client(self.place.redis)
        self._client = await self.stack.enter_async_context(client)
        self._lock = import_module("coredis.patterns.lock").Lock

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``coredis.patterns.lock.Lock``."""
        async with self._lock(self._client, self.resource, timeout=self.ttl_s):
            yield plain_write(self.pool)


class PotteryWay(_InRedis):
    """pottery's asyncio Redlock, on one server."""

    name = "pottery"
    label = "pottery `AIORedlock`"

    async def open(self) -> None:
        """A client."""
        self._client = aio(self.place.redis)
        self.stack.push_async_callback(self._client.aclose)
        self._lock = import_module("pottery").AIORedlock

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``pottery.AIORedlock``."""
        async with self._lock(key=self.resource, masters={self._client}, auto_release_time=self.ttl_s):
            yield plain_write(self.pool)


class PythonRedisLockWay(_InRedis):
    """python-redis-lock with its thread that renews."""

    name = "python-redis-lock"
    label = "python-redis-lock, `auto_renewal`"

    async def open(self) -> None:
        """A client, and threads: its lock blocks."""
        self._client = blocking(self.place.redis)
        self._threads = ThreadPoolExecutor(max_workers=MANY)
        self._lock = import_module("redis_lock").Lock

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``redis_lock.Lock``, in a thread."""
        loop = asyncio.get_running_loop()
        lock = self._lock(self._client, self.resource, expire=self.ttl_s, auto_renewal=True)
        await loop.run_in_executor(self._threads, lock.acquire)
        try:
            yield plain_write(self.pool)
        finally:
            await loop.run_in_executor(self._threads, lock.release)


class AioredlockWay(_InRedis):
    """aioredlock with its task that renews."""

    name = "aioredlock"
    label = "aioredlock"

    async def open(self) -> None:
        """A lock manager that waits; by default it tries three times and gives up."""
        self._manager = import_module("aioredlock").Aioredlock(
            [self.place.redis], internal_lock_timeout=self.ttl_s, retry_count=10_000
        )
        self.stack.push_async_callback(self._manager.destroy)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``manager.lock()``."""
        async with await self._manager.lock(self.resource):
            yield plain_write(self.pool)
