"""The servers of a round, and the links by which each process reaches them."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Self

from lockguard_lab.servers.fault_proxy import FaultProxy
from lockguard_lab.servers.ports import LOOPBACK
from lockguard_lab.servers.topologies import ClusterRedis, IndependentRedis, SentinelRedis

if TYPE_CHECKING:
    from types import TracebackType

    from lockguard_lab.servers.embedded import EmbeddedServer
    from lockguard_lab.servers.topologies import Topology

__all__ = ["Links", "failovers_of", "servers_of", "urls_of"]

_PROMOTED = re.compile(
    r"(\d\d \w{3} \d{4} \d\d:\d\d:\d\d\.\d{3}) [^ ] (?:\+switch-master|Failover election won)"
)
_PORT = re.compile(r"(?<=127\.0\.0\.1:)\d+")


def servers_of(topology: str) -> Topology:
    """The servers of a topology by its name, to be started by ``with`` or ``async with``.

    Behind Sentinel, a master has one replica and three Sentinels; a cluster has three masters with one each.
    """
    match topology:
        case "single":
            return IndependentRedis(1)
        case "sentinel":
            return SentinelRedis()
        case "cluster":
            return ClusterRedis(replicas=1)
        case _:
            return IndependentRedis(int(topology.removeprefix("quorum-")))


def urls_of(topology: Topology) -> tuple[str, ...]:
    """The URLs of started servers."""
    if isinstance(topology, IndependentRedis):
        return tuple(topology.urls)
    assert isinstance(topology, SentinelRedis | ClusterRedis)
    return (topology.url,)


def failovers_of(topology: Topology) -> list[float]:
    """When replicas became masters, ordered or not, as the servers' logs say; in seconds since 1970.

    On a busy machine a server may seem dead to the others, which then act without being told to.
    """
    servers: list[EmbeddedServer] = [*topology.servers]
    if isinstance(topology, SentinelRedis):
        servers += topology.sentinels
    said = "".join(server.log for server in servers)
    return sorted({_local(found[1]).timestamp() for found in _PROMOTED.finditer(said)})


def _local(at: str) -> datetime:
    return datetime.strptime(at, "%d %b %Y %H:%M:%S.%f").astimezone()


class Links:
    """The links of one process: a fault proxy before each server, so that it can be cut off by itself.

    Args:
        topology: the Redis servers, started.
        database_url: where Postgres, or its pooler, listens.
    """

    def __init__(self, topology: Topology, database_url: str) -> None:
        listening = [server.port for server in topology.servers]
        if isinstance(topology, SentinelRedis):
            listening += [sentinel.port for sentinel in topology.sentinels]
        found = _PORT.search(database_url)
        assert found is not None, "a race's own Postgres listens on 127.0.0.1"
        self._urls = urls_of(topology)
        self._database_url = database_url
        self._announces = not isinstance(topology, IndependentRedis)
        self._redis = {port: FaultProxy(port) for port in listening}
        self._postgres_port = int(found.group())
        self.postgres = FaultProxy(self._postgres_port)
        """The link to Postgres."""
        self._stack = AsyncExitStack()

    @property
    def redis(self) -> list[FaultProxy]:
        """The links to the Redis servers, and to Sentinels."""
        return list(self._redis.values())

    @property
    def redis_urls(self) -> tuple[str, ...]:
        """The URLs of the locks' servers, through the links."""
        return tuple(_PORT.sub(self._through, url) for url in self._urls)

    @property
    def address_map(self) -> tuple[tuple[str, int, int], ...]:
        """Where the servers that Sentinels and a cluster announce are reached: host, port announced, port."""
        if not self._announces:
            return ()
        return tuple((LOOPBACK, port, proxy.port) for port, proxy in self._redis.items())

    @property
    def database_url(self) -> str:
        """The URL of the database, through the link."""
        return self.postgres.url_for(self._database_url)

    def _through(self, port: re.Match[str]) -> str:
        return str(self._redis[int(port.group())].port)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for proxy in (*self.redis, self.postgres):
                await stack.enter_async_context(proxy)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
