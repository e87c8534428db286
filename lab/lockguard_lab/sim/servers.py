"""The servers of a schedule, whatever they form: one, a quorum, a primary with Sentinels, a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from redis.crc import key_slot

from lockguard_lab.sim.cluster import Cluster
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.sentinel import Sentinel, fail_over

if TYPE_CHECKING:
    from lockguard_lab.sim.network import Network
    from lockguard_lab.sim.plan import Plan
    from lockguard_lab.sim.world import World

__all__ = ["Servers"]

_PORT = 6379
_SENTINEL_PORT = 26379
_SENTINELS = 3
_PRIMARIES = 3
_LAGS_S = (0.001, 0.02, 0.3)
_HEARD_S = 0.4


class Servers:
    """All servers of one schedule.

    Attributes:
        all: those that keep locks, replicas last.
        deciding: those that grant locks at the beginning.
        urls: how a guard is told of them.
    """

    def __init__(self, world: World, network: Network, plan: Plan) -> None:
        self._world = world
        self.topology = plan.topology
        count, decide = {"sentinel": (2, 1), "cluster": (2 * _PRIMARIES, _PRIMARIES)}.get(
            plan.topology, (plan.nodes, plan.nodes)
        )
        self.all = [RedisServer(world, f"127.0.0.{number + 1}:{_PORT}", number) for number in range(count)]
        self.deciding = self.all[:decide]
        for server in self.all:
            network.servers[server.name] = server
        lag_s = world.dice.choice(_LAGS_S)
        for master, replica in zip(self.deciding, self.all[decide:], strict=False):
            master.replica, master.lag_s, replica.master = replica, lag_s, master
        self.urls = [f"redis://{server.name}" for server in self.deciding]
        self.primary = self.all[0]
        self.cluster: Cluster | None = None
        self._sentinels: list[Sentinel] = []
        if plan.topology == "cluster":
            self._form_a_cluster()
        elif plan.topology == "sentinel":
            self._watch(network)

    def _form_a_cluster(self) -> None:
        self.cluster = Cluster(self._world, self.all, _PRIMARIES)
        for server in self.all:
            server.cluster = self.cluster
        self.urls = ["redis+cluster://" + ",".join(server.name for server in self.deciding[:2])]

    def _watch(self, network: Network) -> None:
        names = [f"127.0.1.{number + 1}:{_SENTINEL_PORT}" for number in range(_SENTINELS)]
        self._sentinels = [Sentinel(self.all[0]) for _ in names]
        network.servers.update(zip(names, self._sentinels, strict=True))
        self.urls = [f"redis+sentinel://{','.join(names)}/locks"]

    def kept_until(self, resource: str, grant: str) -> float:
        """Until when a majority, or whoever decides alone, keeps a resource for a grant; 0: they do not."""
        lock, ends = b"lockguard:{%b}" % resource.encode(), []
        for server in self.asked(lock):
            held = server.store.values.get(lock)
            if held is not None and held.get(b"grant") == grant.encode():
                ends.append(server.store.ends_ms.get(lock, 0.0) / 1000 - server.epoch_s)
            else:
                ends.append(0.0)
        return sorted(ends, reverse=True)[len(ends) // 2]

    def asked(self, lock: bytes) -> Sequence[RedisServer]:
        """The servers that decide who holds a lock."""
        if self.cluster is not None:
            holding = [server for server in self.all if server.master is None and lock in server.store.values]
            return holding[:1] or [self.cluster.owner(key_slot(lock)) or self.all[0]]
        if self._sentinels:
            return [self.primary]
        return self.deciding

    def responsible(self, server: RedisServer, key: bytes) -> bool:
        """Whether what a server knows of a key counts."""
        if self.cluster is not None:
            return self.cluster.owner(key_slot(key)) is server
        return not self._sentinels or server is self.primary

    # What befalls them together.

    def fail_over(self, resource: str, *, goes_on_s: float) -> None:
        """The replica of the primary that has a resource takes over, without the last writes."""
        master = self.primary if self.cluster is None else self.cluster.owner(_slot(resource))
        if master is None or master.replica is None:
            return
        if self.topology == "sentinel" and goes_on_s == 0.0 and self._world.dice.random() < 0.5:
            master.end_sessions()

        def tell(promoted: RedisServer) -> None:
            if self.cluster is not None:
                self.cluster.taken_over(master, promoted, goes_on_s=goes_on_s)
            self.primary = promoted
            epoch = max((sentinel.epoch for sentinel in self._sentinels), default=0) + 1
            deaf = self._world.dice.choice((0, 1, 2, _SENTINELS, _SENTINELS))  # cut off from the others
            for sentinel in [one for number, one in enumerate(self._sentinels) if number != deaf]:
                self._world.after(
                    self._world.dice.uniform(0, _HEARD_S),
                    partial(sentinel.hears, promoted, epoch),
                )

        fail_over(self._world, master, goes_on_s=goes_on_s, tell=tell)

    def move_slot(self, resource: str, number: int, *, takes_s: float) -> None:
        """The slot of a resource moves to another shard."""
        if self.cluster is not None:
            masters = [server for server in self.all if server.master is None]
            self.cluster.move(_slot(resource), masters[number % len(masters)], takes_s=takes_s)

    def lose_slot(self, resource: str, *, for_s: float) -> None:
        """Nobody serves the slot of a resource for a while."""
        if self.cluster is not None:
            self.cluster.lose(_slot(resource), for_s=for_s)


def _slot(resource: str) -> int:
    return int(key_slot(b"lockguard:{%b}" % resource.encode()))
