"""The ways to lock whose lock is in etcd, by its JSON gateway: a lease kept alive, and the lock service."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import aiohttp

from lockguard_lab.bench.holders.ways import Server, Way, Write, plain_write

__all__ = ["EtcdRevision", "EtcdWay"]

_WITH_REVISION = "update bot set status = $1, token = $2 where id = 1 and token <= $2"


class EtcdWay(Way):
    """etcd's lock, and writes that nothing checks."""

    name = "etcd"
    label = "etcd lock"
    server: ClassVar[Server] = "etcd"

    async def open(self) -> None:
        """A client of the gateway."""
        self._session = await self.stack.enter_async_context(
            aiohttp.ClientSession(self.place.etcd, connector=aiohttp.TCPConnector(limit=0))
        )

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``lease/grant``, ``lock/lock``; the lease is kept alive, also while it waits."""
        lease = (await self._call("lease/grant", TTL=self.ttl_s))["ID"]
        keeping = asyncio.create_task(self._keep_alive(lease))
        try:
            name = base64.b64encode(self.resource.encode()).decode()
            key = (await self._call("lock/lock", name=name, lease=lease))["key"]
            yield await self.write(key)
            await self._call("lock/unlock", key=key)
        finally:
            keeping.cancel()
            with suppress(asyncio.CancelledError, aiohttp.ClientError):
                await keeping
            await self._call("lease/revoke", ID=lease)

    async def write(self, key: str) -> Write:  # noqa: ARG002 - the next one uses it
        """How it writes."""
        return plain_write(self.pool)

    async def _keep_alive(self, lease: str) -> None:
        while True:
            await asyncio.sleep(self.ttl_s / 3)
            await self._call("lease/keepalive", ID=lease)

    async def _call(self, path: str, **body: Any) -> dict[str, Any]:
        async with self._session.post(f"/v3/{path}", json=body) as answer:
            answer.raise_for_status()
            told: dict[str, Any] = await answer.json(content_type=None)
            return told


class EtcdRevision(EtcdWay):
    """etcd's lock, and writes that carry the revision of its key, where the row compares it."""

    name = "etcd-revision"
    label = "the same, the row compares the revision"

    async def write(self, key: str) -> Write:
        """How it writes."""
        found = await self._call("kv/range", key=key)
        revision = int(found["kvs"][0]["create_revision"])

        async def write(status: str) -> None:
            if await self.pool.execute(_WITH_REVISION, status, revision) != "UPDATE 1":
                raise LookupError("no row with an older revision")

        return write
