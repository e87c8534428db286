"""How a client that does not hold a lock would free it, by each library's own call for that."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module

import aiohttp
import asyncpg

from lockguard_lab.bench.clients import aio, blocking, coredis_client
from lockguard_lab.bench.holders.ways import Place

__all__ = ["STRANGERS"]


async def _redis_py(place: Place, resource: str, ttl_s: int) -> None:
    async with aio(place.redis) as client:
        await client.lock(resource, timeout=ttl_s).release()


async def _coredis(place: Place, resource: str, ttl_s: int) -> None:
    client, _ = coredis_client(place.redis)
    async with client:
        await import_module("coredis.patterns.lock").Lock(client, resource, timeout=ttl_s).release()


async def _pottery(place: Place, resource: str, ttl_s: int) -> None:
    async with aio(place.redis) as client:
        lock = import_module("pottery").AIORedlock(key=resource, masters={client}, auto_release_time=ttl_s)
        await lock.release()


async def _python_redis_lock(place: Place, resource: str, ttl_s: int) -> None:
    with blocking(place.redis) as client:
        lock = import_module("redis_lock").Lock(client, resource, expire=ttl_s)
        await asyncio.get_running_loop().run_in_executor(None, lock.release)


async def _aioredlock(place: Place, resource: str, ttl_s: int) -> None:
    aioredlock = import_module("aioredlock")
    manager = aioredlock.Aioredlock([place.redis], internal_lock_timeout=ttl_s)
    try:
        await manager.unlock(
            aioredlock.Lock(manager, resource, "a stranger's", lock_timeout=ttl_s, valid=True)
        )
    finally:
        await manager.destroy()


async def _advisory(place: Place, resource: str, _: int) -> None:
    conn = await asyncpg.connect(place.postgres)
    try:
        if not await conn.fetchval("select pg_advisory_unlock(hashtextextended($1, 0))", resource):
            raise PermissionError("false, and a warning")
    finally:
        await conn.close()


async def _etcd(place: Place, resource: str, _: int) -> None:
    """The key of the holder is found by its prefix, and etcd's unlock asks for no more."""
    first, end = resource.encode(), resource.encode() + b"\xff"
    async with aiohttp.ClientSession(place.etcd) as session:
        asked = {"key": base64.b64encode(first).decode(), "range_end": base64.b64encode(end).decode()}
        async with session.post("/v3/kv/range", json=asked) as answer:
            keys = (await answer.json(content_type=None))["kvs"]
        async with session.post("/v3/lock/unlock", json={"key": keys[0]["key"]}) as answer:
            answer.raise_for_status()


STRANGERS: Mapping[str, Callable[[Place, str, int], Awaitable[None]]] = {
    "redis-py": _redis_py,
    "python-redis-lock": _python_redis_lock,
    "pottery": _pottery,
    "coredis": _coredis,
    "aioredlock": _aioredlock,
    "advisory-session": _advisory,
    "etcd": _etcd,
    "etcd-revision": _etcd,
}
"""By the way's name. lockguard and a lock of a transaction have no such call."""
