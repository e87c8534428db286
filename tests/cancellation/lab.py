"""What the lab offers to users' tests: servers that end with a block, and a proxy with faults."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import psutil

from lockguard_lab import servers
from lockguard_lab.servers import FaultProxy, RedisServer
from tests.cancellation.worlds import Row, World

__all__ = ["LabWorld"]

SERVERS = [
    kind
    for name in servers.__all__
    if isinstance(kind := getattr(servers, name), type)
    and getattr(kind, "__aenter__", None) is RedisServer.__aenter__
]
"""All are started and stopped by the same two methods, so one of them is tried, which starts fastest."""


def processes() -> set[int]:
    return {one.pid for one in psutil.Process().children(recursive=True) if one.is_running()}


class LabWorld(World):
    """Processes, and sockets that listen."""

    noise = ("unclosed",)  # a connection that asyncio accepts in the moment in which its server closes

    async def begin(self, stack: AsyncExitStack) -> None:
        """Start and stop one, so that what all share is there."""
        with RedisServer():
            pass
        self.processes = processes()

    async def left(self) -> list[str]:
        listening = [
            f"port {connection.laddr.port}"
            for connection in psutil.Process().net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        return [*listening, *(f"process {pid}" for pid in processes() - self.processes)]

    async def works(self) -> None:
        """There is nothing to work."""


async def served(_world: LabWorld) -> None:
    async with RedisServer():
        await asyncio.sleep(0)


async def proxied(world: LabWorld) -> None:
    async with FaultProxy(int(world.servers.redis_url.rpartition(":")[2].partition("/")[0])) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            writer.write(b"PING\r\n")
            await reader.readline()
        finally:
            writer.close()


async def started(world: Any) -> None:
    proxy = FaultProxy(1)
    await proxy.start()  # cancelled, it has not been started
    await proxy.stop()


def of_each(kinds: Any, *names: str) -> tuple[str, ...]:
    return tuple(f"lockguard_lab.servers.{kind.__name__}.{name}" for kind in kinds for name in names)


LabWorld.rows = (
    Row(of_each(SERVERS, "__aenter__", "__aexit__"), served, thorough=True, name="servers"),
    Row(of_each([FaultProxy], "__aenter__", "__aexit__", "stop"), proxied),
    Row(of_each([FaultProxy], "start"), started),
)
