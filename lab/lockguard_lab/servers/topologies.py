"""Several real servers that work together: a master with replicas, Sentinel, Cluster, independent nodes.

Each is a context manager, sync and async, that stops all its servers::

    with SentinelRedis(replicas=1) as redis:
        guard = LockGuard.from_url(redis.url)
        redis.failover()
"""

from __future__ import annotations

import contextlib
import secrets
from abc import abstractmethod
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from lockguard.errors import ConfigurationError, NodeError
from lockguard_lab.servers import supervision
from lockguard_lab.servers.embedded import Startable
from lockguard_lab.servers.ports import LOOPBACK
from lockguard_lab.servers.redis_commands import Answer, credentials
from lockguard_lab.servers.redis_server import RedisServer, TlsFiles
from lockguard_lab.servers.topologies_sentinel import SentinelServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockguard_lab.servers.binaries import ServerBinary

__all__ = ["ClusterRedis", "IndependentRedis", "ReplicatedRedis", "SentinelRedis", "Topology"]

_SETTLE_WAIT_S = 30.0
_SLOTS = 16_384
_NODE_TIMEOUT_MS = 2_000


class Topology(Startable):
    """Several servers on the loopback address that end with this process, however the process ends."""

    def __init__(
        self, binary: ServerBinary | None, tls: TlsFiles | None = None, password: str | None = None
    ) -> None:
        self._binary = binary
        self._tls = tls
        self._password = secrets.token_hex(16) if password is None else password
        self._stack = contextlib.ExitStack()
        self.servers: list[RedisServer] = []
        """The servers that keep data."""

    @abstractmethod
    def _build(self) -> None:
        """Start the servers and connect them to each other."""

    def start(self) -> Self:
        """Start all servers and return when they are ready for use.

        Raises:
            ConfigurationError: a server did not come up, or the servers did not connect to each other.
        """
        try:
            self._build()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all servers and delete their data."""
        self._stack.close()
        self.servers.clear()

    def _url(self, kind: str, servers: Sequence[RedisServer], path: str = "") -> str:
        scheme, query = ("rediss", f"?{self._tls.query}") if self._tls is not None else ("redis", "")
        places = ",".join(f"{LOOPBACK}:{server.told_port}" for server in servers)
        return f"{scheme}{kind}://{credentials(self._password)}{places}{path}{query}"

    def _add(self, *config: str) -> RedisServer:
        server = self._stack.enter_context(
            RedisServer(binary=self._binary, config=config, tls=self._tls, password=self._password)
        )
        self.servers.append(server)
        return server


class IndependentRedis(Topology):
    """Servers that do not know each other, for ``LockGuard.from_urls(independent.urls)``.

    Args:
        nodes: how many.
        password: of all of them; by default a random one. ``""`` asks for none.
        binary: which server to run; by default :func:`find_valkey` decides.
    """

    def __init__(
        self, nodes: int = 5, *, password: str | None = None, binary: ServerBinary | None = None
    ) -> None:
        super().__init__(binary, password=password)
        if nodes < 1:
            raise ConfigurationError(f"nodes={nodes} cannot work; give at least 1")
        self._nodes = nodes

    @property
    def urls(self) -> list[str]:
        """One URL for each server."""
        return [server.url for server in self.servers]

    def _build(self) -> None:
        for _ in range(self._nodes):
            self._add()


class ReplicatedRedis(Topology):
    """A master and its replicas, without failover.

    Args:
        replicas: how many.
        password: of all of them; by default a random one. ``""`` asks for none.
        binary: which server to run; by default :func:`find_valkey` decides.
    """

    def __init__(
        self, replicas: int = 1, *, password: str | None = None, binary: ServerBinary | None = None
    ) -> None:
        super().__init__(binary, password=password)
        self._replicas = replicas

    @property
    def url(self) -> str:
        """The master's URL."""
        return self.servers[0].url

    @property
    def replicas(self) -> list[RedisServer]:
        """The replicas."""
        return self.servers[1:]

    def _build(self) -> None:
        master = self._add("repl-diskless-sync-delay 0")
        for _ in range(self._replicas):
            self._add(f"replicaof {LOOPBACK} {master.port}", "repl-diskless-sync-delay 0")
        wait_settled(lambda: all(replicates(server) for server in self.replicas), "the replicas", self)


class SentinelRedis(Topology):
    """A master, its replicas, and Sentinels that promote one when the master is gone.

    Args:
        replicas: how many.
        sentinels: how many; a majority of them has to agree on a failover.
        down_after_ms: how long a master may be silent before a Sentinel considers it down.
        service: the name that the Sentinels know the master by.
        tls: to use between all of them and with clients.
        password: of all of them; by default a random one. ``""`` asks for none.
        binary: which server to run; by default :func:`find_valkey` decides.
    """

    def __init__(
        self,
        replicas: int = 1,
        sentinels: int = 3,
        *,
        down_after_ms: int = 1_000,
        service: str = "main",
        tls: TlsFiles | None = None,
        password: str | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        super().__init__(binary, tls, password)
        self._replicas = replicas
        self._sentinels = sentinels
        self._down_after_ms = down_after_ms
        self.service = service
        """The name that the Sentinels know the master by."""
        self.sentinels: list[SentinelServer] = []
        """The Sentinels that run."""

    @property
    def url(self) -> str:
        """``redis+sentinel://default:password@127.0.0.1:port,127.0.0.1:port/service/0?sentinel_password=...``."""
        url = self._url("+sentinel", self.sentinels, f"/{self.service}/0")
        if not self._password:
            return url
        return f"{url}{'&' if '?' in url else '?'}sentinel_password={quote(self._password, safe='')}"

    @property
    def master(self) -> RedisServer:
        """The master according to the first Sentinel that answers."""
        for sentinel in self.sentinels:
            with contextlib.suppress(NodeError):
                found = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
                if isinstance(found, list):
                    return next(server for server in self.servers if str(server.told_port) == found[1])
        raise ConfigurationError("no Sentinel answers: start() them")

    def failover(self) -> None:
        """Have the Sentinels promote a replica although the master is healthy; returns when it is done."""
        old = self.master
        wait_settled(self._begin_failover, "the failover", self)
        wait_settled(lambda: self.master is not old and is_master(self.master), "the failover", self)

    def stop(self) -> None:
        """End all servers and delete their data."""
        super().stop()
        self.sentinels.clear()

    def _begin_failover(self) -> bool:
        # Refused while an earlier failover is not over, or while the Sentinel does not know the replica.
        with contextlib.suppress(NodeError):
            return self.sentinels[0].command("SENTINEL", "FAILOVER", self.service) == "OK"
        return False

    def _build(self) -> None:
        lines = ("repl-diskless-sync-delay 0", "replica-priority 100")
        master = self._add(*lines)
        for _ in range(self._replicas):
            self._add(f"replicaof {LOOPBACK} {master.told_port}", *lines)
        wait_settled(lambda: all(replicates(server) for server in self.servers[1:]), "the replicas", self)
        for _ in range(self._sentinels):
            sentinel = SentinelServer(
                master_port=master.told_port,
                service=self.service,
                quorum=self._sentinels // 2 + 1,
                down_after_ms=self._down_after_ms,
                tls=self._tls,
                binary=self._binary,
                password=self._password,
            )
            self.sentinels.append(self._stack.enter_context(sentinel))
        wait_settled(lambda: all(map(self._informed, self.sentinels)), "the Sentinels", self)

    def _informed(self, sentinel: SentinelServer) -> bool:
        facts = sentinel.command("SENTINEL", "MASTER", self.service)
        assert isinstance(facts, list)
        known = dict(zip(facts[::2], facts[1::2], strict=True))
        return (known["num-slaves"], known["num-other-sentinels"]) == (
            str(self._replicas),
            str(self._sentinels - 1),
        )


class ClusterRedis(Topology):
    """A cluster: several masters that share the slots, each with its replicas.

    Args:
        masters: how many; at least 3, because a majority of them has to agree on a failover.
        replicas: of each master.
        tls: to use between all of them and with clients.
        password: of all of them; by default a random one. ``""`` asks for none.
        binary: which server to run; by default :func:`find_valkey` decides.
    """

    def __init__(
        self,
        masters: int = 3,
        replicas: int = 0,
        *,
        tls: TlsFiles | None = None,
        password: str | None = None,
        binary: ServerBinary | None = None,
    ) -> None:
        super().__init__(binary, tls, password)
        if masters < 3:
            raise ConfigurationError(f"masters={masters} cannot work; a cluster needs at least 3")
        self._masters = masters
        self._replicas = replicas

    @property
    def url(self) -> str:
        """``redis+cluster://default:password@127.0.0.1:port,127.0.0.1:port``."""
        return self._url("+cluster", self.servers)

    def owner_of(self, slot: int) -> RedisServer:
        """The master that serves a slot."""
        return self._owner_seen_by(self.servers[0], slot)

    def _owner_seen_by(self, asked: RedisServer, slot: int) -> RedisServer:
        shards = asked.command("CLUSTER", "SLOTS")
        assert isinstance(shards, list)
        for shard in shards:
            assert isinstance(shard, list)
            first, last, master, *_ = shard
            assert isinstance(first, int)
            assert isinstance(last, int)
            assert isinstance(master, list)
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == master[1])
        raise ConfigurationError(f"nobody serves slot {slot}")

    def move_slot(self, slot: int, to: RedisServer) -> None:
        """Move a slot with its keys to another master, as resharding does; returns when all servers know."""
        source = self.owner_of(slot)
        if source is to:
            return
        source_id, to_id = self._id(source), self._id(to)
        to.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to_id)
        while self._migrate_some(slot, source, to):
            pass
        for server in (to, source, *self.servers):
            with contextlib.suppress(NodeError):  # replicas refuse it, and learn it from their masters
                server.command("CLUSTER", "SETSLOT", slot, "NODE", to_id)
        # The owner's claim must be the newest that any server knows. Otherwise a former owner's claim that
        # reaches a server late would count: it would end the next move's import, or have keys dropped.
        wait_settled(lambda: self._is_agreed(slot, to, over=source_id), "the move", self)

    def _migrate_some(self, slot: int, source: RedisServer, to: RedisServer) -> bool:
        keys = source.command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        assert isinstance(keys, list)
        if keys:
            source.command(
                *("MIGRATE", LOOPBACK, str(to.told_port), "", "0", "5000"),
                *(("AUTH", to.password) if to.password else ()),
                *("KEYS", *map(str, keys)),
            )
        return bool(keys)

    def _is_agreed(self, slot: int, owner: RedisServer, *, over: str) -> bool:
        """Whether all servers see the same owner, with the same epoch, which is above that of ``over``."""
        owner_id, epochs = self._id(owner), set()
        for server in self.servers:
            if self._owner_seen_by(server, slot) is not owner:
                return False
            seen = self._epochs_seen_by(server)
            if seen[owner_id] <= seen[over]:
                return False
            epochs.add(seen[owner_id])
        return len(epochs) == 1

    def _epochs_seen_by(self, server: RedisServer) -> dict[str, int]:
        nodes = [line.split() for line in str(server.command("CLUSTER", "NODES")).splitlines()]
        return {node[0]: int(node[6]) for node in nodes}

    def _build(self) -> None:
        for _ in range(self._masters * (1 + self._replicas)):
            self._add(
                "cluster-enabled yes",
                f"cluster-node-timeout {_NODE_TIMEOUT_MS}",
                "repl-diskless-sync-delay 0",
            )
        masters = self.servers[: self._masters]
        for index, server in enumerate(masters):
            first, last = (_SLOTS * step // self._masters for step in (index, index + 1))
            server.command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            server.command("CLUSTER", "MEET", LOOPBACK, self.servers[0].told_port)
        wait_settled(lambda: all(map(self._knows_all, self.servers)), "the cluster", self)
        for index, replica in enumerate(self.servers[self._masters :]):
            replica.command("CLUSTER", "REPLICATE", self._id(masters[index % self._masters]))
        wait_settled(lambda: all(map(self._serves, self.servers)), "the cluster", self)
        replicas = self.servers[self._masters :]
        wait_settled(lambda: all(replicates(server) for server in replicas), "the replicas", self)

    def _knows_all(self, server: RedisServer) -> bool:
        return str(server.command("CLUSTER", "NODES")).count("connected") >= len(self.servers)

    def _serves(self, server: RedisServer) -> bool:
        return "cluster_state:ok" in str(server.command("CLUSTER", "INFO"))

    def _id(self, server: RedisServer) -> str:
        return str(server.command("CLUSTER", "MYID"))


def replicates(server: RedisServer) -> bool:
    """Whether the server follows its master."""
    role = _role(server)
    return role[0] == "slave" and role[3] == "connected"


def is_master(server: RedisServer) -> bool:
    """Whether the server takes writes."""
    return _role(server)[0] == "master"


def _role(server: RedisServer) -> list[Answer]:
    role = server.command("ROLE")
    assert isinstance(role, list)
    return role


def wait_settled(condition: Callable[[], bool], what: str, topology: Topology) -> None:
    """Wait until the servers of a topology meet the condition.

    Raises:
        ConfigurationError: they did not in time.
    """
    if not supervision.wait_until(condition, _SETTLE_WAIT_S):
        raise ConfigurationError(
            f"{what} of {type(topology).__name__} did not come together in {_SETTLE_WAIT_S:.0f} s"
        )
