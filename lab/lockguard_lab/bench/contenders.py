"""The contenders: lockguard, and the installed peers, each used as its documentation shows.

Each has a lock timeout of ten seconds and one client. URLs name the servers of the locks, as
``LockGuard.from_urls`` takes them; not every peer supports every topology. python-redis-lock is for
threads: a single task runs it in the event loop's thread, which is its best case; with many tasks each lock
has a thread of its own.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from lockguard._guard import LockGuard
from lockguard_lab.bench.clients import CANNOT, aio, blocking, coredis_client
from lockguard_lab.servers.topology_names import TopologyKind

__all__ = ["PEERS", "Contender", "Lockguard", "contender", "installed_version", "left_out", "missing"]

_TTL_S = 10


class Contender(ABC):
    """One lock library on one topology."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        yield

    @abstractmethod
    def lock(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """Hold ``resource`` in the body, as one of many tasks."""

    def lock_alone(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """Hold ``resource`` in the body, as the only task."""
        return self.lock(resource)

    async def cycle_alone(self, resource: str) -> None:
        """Lock and unlock once, as the only task."""
        async with self.lock_alone(resource):
            pass

    async def cycles(self, resource: str, number: int) -> None:
        """Lock and unlock ``number`` times, as one of many tasks."""
        for _ in range(number):
            async with self.lock(resource):
                pass


class Lockguard(Contender):
    """lockguard with its defaults."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.guard = LockGuard.from_urls(urls)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        async with self.guard:
            yield

    def lock(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """``guard.hold()``."""
        return self.guard.hold(resource)


class RedisPy(Contender):
    """The lock of redis-py's asyncio client; it polls every 0.1 s."""

    def __init__(self, urls: Sequence[str]) -> None:
        (url,) = urls
        self._client = aio(url)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        async with self._client:
            yield

    def lock(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """``client.lock()``."""
        lock: AbstractAsyncContextManager[Any] = self._client.lock(resource, timeout=_TTL_S)
        return lock


class Coredis(Contender):
    """The lock of coredis; it polls every 0.1 s."""

    def __init__(self, urls: Sequence[str]) -> None:
        (url,) = urls
        self._client, self._first = coredis_client(url)
        self._lock = import_module("coredis.patterns.lock").Lock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        async with self._first or nullcontext(), self._client:
            yield

    def lock(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """``coredis.patterns.lock.Lock``."""
        lock: AbstractAsyncContextManager[Any] = self._lock(self._client, resource, timeout=_TTL_S)
        return lock


class Pottery(Contender):
    """pottery's asyncio Redlock over one server or several."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._clients = [aio(url) for url in urls]
        self._lock = import_module("pottery").AIORedlock

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        async with AsyncExitStack() as stack:
            for client in self._clients:
                await stack.enter_async_context(client)
            yield

    def lock(self, resource: str) -> AbstractAsyncContextManager[Any]:
        """``pottery.AIORedlock``."""
        lock: AbstractAsyncContextManager[Any] = self._lock(
            key=resource, masters=set(self._clients), auto_release_time=_TTL_S
        )
        return lock


class PythonRedisLock(Contender):
    """python-redis-lock, for threads; a waiter blocks in BLPOP."""

    def __init__(self, urls: Sequence[str]) -> None:
        (url,) = urls
        self._client = blocking(url)
        self._lock = import_module("redis_lock").Lock
        self._threads = ThreadPoolExecutor(max_workers=200)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected for the length of the body."""
        try:
            yield
        finally:
            self._threads.shutdown()
            self._client.close()

    @asynccontextmanager
    async def lock(self, resource: str) -> AsyncIterator[None]:
        """``redis_lock.Lock``, in a thread."""
        loop = asyncio.get_running_loop()
        lock = self._lock(self._client, resource, expire=_TTL_S)
        await loop.run_in_executor(self._threads, lock.acquire)
        try:
            yield
        finally:
            await loop.run_in_executor(self._threads, lock.release)

    @asynccontextmanager
    async def lock_alone(self, resource: str) -> AsyncIterator[None]:
        """``redis_lock.Lock``, in this thread."""
        with self._lock(self._client, resource, expire=_TTL_S):
            yield


_KINDS: Mapping[str, Callable[[Sequence[str]], Contender]] = {
    "lockguard": Lockguard,
    "redis-py": RedisPy,
    "coredis": Coredis,
    "pottery": Pottery,
    "python-redis-lock": PythonRedisLock,
}
_IMPORTED = {"coredis": "coredis", "pottery": "pottery", "python-redis-lock": "redis_lock"}

PEERS = tuple(name for name in _KINDS if name != "lockguard")
"""The peers with which lockguard can be compared."""


def contender(name: str, urls: Sequence[str]) -> Contender:
    """The contender of this name."""
    return _KINDS[name](urls)


def left_out(names: Sequence[str], kind: TopologyKind) -> dict[str, str]:
    """The peers of ``names`` that cannot be measured, each with the reason."""
    why = {name: f"not on {kind}: {reason}" for name, reason in CANNOT[kind].items()}
    why |= {name: "not installed: pip install 'lockguard[bench]'" for name in names if missing(name)}
    return {name: why[name] for name in names if name in why}


def missing(name: str) -> bool:
    """Whether a peer is not installed."""
    return name in _IMPORTED and find_spec(_IMPORTED[name]) is None


def installed_version(name: str) -> str:
    """The installed version of a contender or a package."""
    try:
        return version({"redis-py": "redis"}.get(name, name))
    except PackageNotFoundError:
        return "unknown"
