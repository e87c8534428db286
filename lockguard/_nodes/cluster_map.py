"""Who serves which slot of a cluster, and the connections to them.

What is known is only ever replaced by what is told. A server that tells nothing of a slot (nobody serves it
now, or the server has not heard) changes nothing: the last owner serves it still, or says where it went.

When no server that is known can be asked, the seeds are: their names may lead to servers that came since.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from redis.crc import key_slot

from lockguard._nodes.address import Address
from lockguard._nodes.dial import first_of
from lockguard._nodes.releases import Place
from lockguard._nodes.standalone import StandaloneNode
from lockguard.errors import ConfigurationError, NodeError, NodeRefused

__all__ = ["ClusterMap"]

_SLOTS = 16_384
_REFRESH_S = 0.2
_GRACE_S = 0.5
_NO_HOST = ("", "?")


class ClusterMap:
    """The map and the shards.

    Args:
        name: the cluster, for people.
        seeds: servers to ask first.
        new_shard: makes the node of one server.
    """

    def __init__(
        self, name: str, seeds: Sequence[Address], new_shard: Callable[[Address], StandaloneNode]
    ) -> None:
        self.shards: dict[Place, StandaloneNode] = {}
        self.known = False
        """Whether a map was ever read."""
        self.unreached = ""
        """Why not."""
        self._name = name
        self._seeds = tuple(seeds)
        self._new_shard = new_shard
        self._slots: list[Place | None] = [None] * _SLOTS
        self._reading: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._refreshed: Callable[[], None] = lambda: None

    def on_refresh(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called when the map was read anew."""
        self._refreshed = callback

    def place_of(self, key: str) -> Place | None:
        """Which server has a key, as far as it is known."""
        return self._slots[key_slot(key.encode())]

    def shard_for(self, key: str) -> StandaloneNode:
        """Whom to ask for a key: its owner; where none is known, anybody, who will say who it is."""
        place = self.place_of(key)
        if place is not None:
            return self.shard_at(place)
        anybody = [shard for shard in self.shards.values() if shard.ready]
        if anybody:
            return random.choice(anybody)  # noqa: S311 - not a secret
        return self._shard_of(self._seeds[0])

    def shard_at(self, place: Place) -> StandaloneNode:
        """The node of one server."""
        if place not in self.shards:
            host, port = place
            self.shards[place] = self._new_shard(replace(self._seeds[0], host=host, port=port))
        return self.shards[place]

    def moved(self, slot: int, place: Place) -> None:
        """A server said so."""
        self._slots[slot] = place
        self.refresh_soon()

    def place_told(self, text: str, *, by: StandaloneNode) -> Place | None:
        """The place in a redirection; ``None`` if the server does not know its name."""
        host, _, port = text.rpartition(":")
        if host == "?":
            return None
        # A server that does not know its own address leaves it out: it is where we asked.
        return host or by.address.host, int(port)

    async def connect(self) -> None:
        """Read the map and connect to its shards; one that cannot be reached goes on being tried.

        Raises:
            NodeRefused: no server told the map.
            ConfigurationError: a server refused the log-in, or is no cluster's.
        """
        if self.known:
            return
        if self._reading is None or self._reading.done():
            self._reading = self._own(self._read_first())
        await asyncio.shield(self._reading)

    async def aclose(self) -> None:
        """Ask nobody any more. The shards are left to whoever uses them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def refresh_soon(self) -> None:
        """Read the map anew, unless that is under way or was done just now."""
        if self.known and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._own(self._refresh())

    def reach_soon(self, shard: StandaloneNode) -> None:
        """Connect to a shard, once: one that stays away is tried again when somebody needs it."""
        if not shard.ready:
            self._own(shard.connect())

    async def _read_first(self) -> None:
        try:
            await first_of([self._shard_of(seed) for seed in self._seeds], self._read)
        except NodeRefused as exc:
            self.unreached = str(exc)
            raise
        connecting = [self._own(shard.connect()) for shard in self._serving()]
        # One that is dead is not waited for: what is meant for it is tried again until it is there.
        done, _ = await asyncio.wait(connecting, timeout=_GRACE_S)
        for attempt in done:
            if isinstance(fault := attempt.exception(), ConfigurationError):
                raise fault
        self.known, self.unreached = True, ""

    async def _refresh(self) -> None:
        ready = [shard for shard in self.shards.values() if shard.ready]
        random.shuffle(ready)
        # The seeds too, behind the others: one that is known may hang, and all of them may have gone.
        asked = [*ready, *(shard for seed in self._seeds if (shard := self._shard_of(seed)) not in ready)]
        try:
            await first_of(asked, self._read)
        except (NodeError, ConfigurationError):
            pass
        else:
            self._forget_the_gone()
        for shard in self._serving():
            self.reach_soon(shard)
        self._refreshed()
        await asyncio.sleep(_REFRESH_S)  # as often at most

    async def _read(self, shard: StandaloneNode) -> None:
        """Ask one server who serves which slot.

        Raises:
            NodeRefused: it did not tell.
            ConfigurationError: it refused the log-in, or is no cluster's.
        """
        await shard.connect()
        reply = await shard.ask("CLUSTER", "SLOTS")
        if isinstance(reply, Exception) or not reply:
            raise NodeRefused(f"{shard.name} told no map of its cluster: {reply}", node=shard.name)
        for first, last, owner, *_ in reply:
            place = _host_of(owner) or shard.address.host, owner[1]
            self.shard_at(place)
            self._slots[first : last + 1] = [place] * (last + 1 - first)

    def _forget_the_gone(self) -> None:
        """Servers that serve nothing and cannot be reached are not tried for ever."""
        kept = {*self._slots, *((seed.host, seed.port) for seed in self._seeds)}
        for place in [place for place, shard in self.shards.items() if place not in kept and not shard.ready]:
            self._own(self.shards.pop(place).aclose())

    def _shard_of(self, seed: Address) -> StandaloneNode:
        return self.shard_at((seed.host, seed.port))

    def _serving(self) -> list[StandaloneNode]:
        return [self.shards[place] for place in set(self._slots) if place is not None]

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"lockguard-connect-{self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it


def _host_of(server: Sequence[Any]) -> str:
    """Of an entry of CLUSTER SLOTS; empty where the server does not say."""
    host = (server[0] or b"").decode()
    if host not in _NO_HOST:
        return str(host)
    facts = server[3] if len(server) > 3 else []
    pairs = facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2], strict=False))
    return str(pairs.get(b"ip", b"").decode())
