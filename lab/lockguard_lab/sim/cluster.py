"""Simulated clusters: who serves which slot, as each server sees it, and slots that move."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot

if TYPE_CHECKING:
    from lockguard_lab.sim.redis_server import RedisServer
    from lockguard_lab.sim.world import World

__all__ = ["Cluster"]

_SLOTS = 16_384
_GOSSIP_S = 0.3


class Cluster:
    """The slots of a cluster.

    Args:
        world: the schedule.
        servers: the primaries, between which the slots are divided evenly, and then their replicas.
        primaries: how many of them are primaries.
    """

    def __init__(self, world: World, servers: Sequence[RedisServer], primaries: int) -> None:
        self.world, self.servers = world, list(servers)
        self._size = _SLOTS // primaries + 1
        self._shards = list(servers[:primaries])
        self._old_shards: dict[str, list[RedisServer]] = {}
        """What a server still takes for the shards, where it has not heard of a change."""
        self._changed: dict[int, RedisServer | None] = {}
        self._views: dict[tuple[str, int], RedisServer | None] = {}
        self._moving: dict[int, tuple[RedisServer, RedisServer]] = {}

    def owner(self, slot: int, by: RedisServer | None = None) -> RedisServer | None:
        """Who serves a slot, as ``by`` sees it."""
        if by is not None and (by.name, slot) in self._views:
            return self._views[by.name, slot]
        if slot in self._changed:
            return self._changed[slot]
        shards = self._shards if by is None else self._old_shards.get(by.name, self._shards)
        return shards[slot // self._size]

    def slots(self, by: RedisServer) -> list[Any]:
        """The reply to CLUSTER SLOTS."""
        single = {*self._changed, *(slot for name, slot in self._views if name == by.name)}
        begins = {shard * self._size for shard in range(len(self._shards))}
        cuts = sorted(begins | single | {slot + 1 for slot in single if slot + 1 < _SLOTS})
        ranges = zip(cuts, [*cuts[1:], _SLOTS], strict=True)
        owned = [(first, after - 1, self.owner(first, by)) for first, after in ranges]
        return [[first, last, self._told(owner)] for first, last, owner in owned if owner is not None]

    @staticmethod
    def _told(server: RedisServer) -> list[Any]:
        host, _, port = server.name.rpartition(":")
        return [host.encode(), int(port), b"id-" + server.name.encode()]

    def elsewhere(self, server: RedisServer, keys: Sequence[bytes], *, asking: bool) -> str:
        """Why a server does not execute a command for these keys of one slot; empty if it does."""
        slot = key_slot(keys[0])
        owner = self.owner(slot, server)
        if owner is None:
            return "CLUSTERDOWN Hash slot not served"
        source, target = self._moving.get(slot, (None, None))
        there = sum(server.store.do(b"EXISTS", key) for key in set(keys))
        if server is owner:
            if target is not None and server is source and there < len(set(keys)):
                return (
                    "TRYAGAIN Multiple keys request during rehashing of slot"
                    if there
                    else self._ask(slot, target)
                )
            return ""
        if asking and server is target:
            several = len(set(keys)) > 1 and there < len(set(keys))
            return "TRYAGAIN Multiple keys request during rehashing of slot" if several else ""
        return f"MOVED {slot} {owner.name}"

    @staticmethod
    def _ask(slot: int, target: RedisServer) -> str:
        return f"ASK {slot} {target.name}"

    def move(self, slot: int, target: RedisServer, *, takes_s: float) -> None:
        """Move a slot to another server, one key after another."""
        source = self.owner(slot)
        if source is None or source is target or slot in self._moving or source.master or target.master:
            return
        self.world.tell(f"slot {slot} begins to move from {source.name} to {target.name}")
        self._moving[slot] = source, target
        keys = sorted(key for key in source.store.values if key_slot(key) == slot)
        for number, key in enumerate(keys, 1):
            self.world.after(takes_s * number / (len(keys) + 1), partial(self._move, source, target, key))
        self.world.after(takes_s, lambda: self._moved(slot, source, target))

    @staticmethod
    def _move(source: RedisServer, target: RedisServer, key: bytes) -> None:
        value, end_ms = source.store.values.get(key), source.store.ends_ms.get(key)
        if value is None:
            return
        target.store.put(key, value, end_ms)
        source.store.put(key, None, None)
        source.replicate((key,))
        target.replicate((key,))

    def _moved(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        # What was written meanwhile moves at last.
        for key in sorted(key for key in source.store.values if key_slot(key) == slot):
            self._move(source, target, key)
        self._moving.pop(slot, None)
        self._owned_by(slot, target, knows=(source, target))
        self.world.tell(f"slot {slot} is at {target.name}")
        source.end_channels(lambda channel: key_slot(channel) == slot)

    def _owned_by(self, slot: int, owner: RedisServer | None, *, knows: Sequence[RedisServer]) -> None:
        before, self._changed[slot] = self.owner(slot), owner
        for server in self.servers:
            self._views.pop((server.name, slot), None)
            if server not in knows:
                self._views[server.name, slot] = before
                self.world.after(
                    self.world.dice.uniform(0, _GOSSIP_S),
                    partial(self._forget_view, server, slot),
                )

    def _forget_view(self, server: RedisServer, slot: int) -> None:
        self._views.pop((server.name, slot), None)

    def lose(self, slot: int, *, for_s: float) -> None:
        """Leave a slot without an owner for a while."""
        owner = self.owner(slot)
        if owner is None or slot in self._moving:
            return
        self.world.tell(f"nobody serves slot {slot}")
        self._owned_by(slot, None, knows=self.servers)
        self.world.after(for_s, lambda: self._owned_by(slot, owner, knows=self.servers))

    def taken_over(self, old: RedisServer, new: RedisServer, *, goes_on_s: float) -> None:
        """A replica serves the slots of its primary, which learns of it last."""
        self._old_shards[old.name] = list(self._shards)
        self._shards = [new if one is old else one for one in self._shards]
        for slot, owner in self._changed.items():
            if owner is old:
                self._changed[slot], self._views[old.name, slot] = new, old
        self.world.after(goes_on_s, lambda: self._hears(old))

    def _hears(self, server: RedisServer) -> None:
        self._old_shards.pop(server.name, None)
        self._views = {key: owner for key, owner in self._views.items() if key[0] != server.name}
