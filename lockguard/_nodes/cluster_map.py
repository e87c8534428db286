"""The slot map of a cluster, and the nodes of its shards.

An entry of the map changes only when a server names another owner. A server that names no owner for a slot
(no shard serves it now, or the server does not know) changes nothing: the last owner either still serves the
slot or redirects.

When no known server can be asked, the seeds are asked: their names may resolve to servers added since.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from redis.crc import key_slot

from lockguard._nodes.address import Address
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.dial import first_of
from lockguard._nodes.releases import Endpoint
from lockguard._nodes.standalone import StandaloneNode
from lockguard.errors import ConfigurationError, NodeError, NodeRefused

__all__ = ["ClusterMap"]

_SLOTS = 16_384
_REFRESH_S = 0.2
_GRACE_S = 0.5
_NO_HOST = ("", "?")


class ClusterMap:
    """The slot map and the shards.

    Args:
        name: the cluster's name for messages.
        seeds: the servers to ask first.
        new_shard: creates the node of one server.
        address_map: where to reach the servers that others announce.
    """

    def __init__(
        self,
        name: str,
        seeds: Sequence[Address],
        new_shard: Callable[[Address], StandaloneNode],
        address_map: AddressMap,
    ) -> None:
        self.shards: dict[Endpoint, StandaloneNode] = {}
        self.known = False
        """Whether the map has ever been read."""
        self.unreached = ""
        """Why the map could not be read; empty if it was, or was not tried yet."""
        self._name = name
        self._seeds = tuple(seeds)
        self._new_shard = new_shard
        self._reached_at = address_map
        self._slots: list[Endpoint | None] = [None] * _SLOTS
        self._reading: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._once_more = False
        """Whether something was heard that the reading under way, or just done, may have missed."""
        self._tasks: dict[asyncio.Task[None], None] = {}
        """What runs in the background, in the order in which it began."""
        self._refreshed: Callable[[], None] = lambda: None

    def on_refresh(self, callback: Callable[[], None]) -> None:
        """Register ``callback()`` to be called after each reading, and each attempt in the background."""
        self._refreshed = callback

    def endpoint_of(self, key: str) -> Endpoint | None:
        """The server that serves a key; ``None`` if unknown."""
        return self._slots[key_slot(key.encode())]

    def shard_for(self, key: str) -> StandaloneNode:
        """The shard to ask for a key: its owner if known, else any shard, which will redirect."""
        endpoint = self.endpoint_of(key)
        if endpoint is not None:
            return self.shard_at(endpoint)
        anybody = [shard for shard in self.shards.values() if shard.ready]
        if anybody:
            return random.choice(anybody)  # noqa: S311 - not a secret
        return self._shard_of(self._seeds[0])

    def shard_at(self, endpoint: Endpoint) -> StandaloneNode:
        """The node of the server at ``endpoint``, created if it is new."""
        if endpoint not in self.shards:
            host, port = endpoint
            self.shards[endpoint] = self._new_shard(replace(self._seeds[0], host=host, port=port))
        return self.shards[endpoint]

    def moved(self, slot: int, endpoint: Endpoint) -> None:
        """Note that a server named ``endpoint`` as the owner of ``slot``."""
        self._slots[slot] = endpoint
        self.refresh_soon(heard=True)

    def endpoint_in(self, text: str, *, by: StandaloneNode) -> Endpoint | None:
        """Where to reach the server that a redirection names; ``None`` if it names none."""
        host, _, port = text.rpartition(":")
        if host == "?":
            return None
        # An empty host means the host of the server that was asked: it does not know its own address.
        return self._reached_at(host or by.address.host, int(port))

    async def connect(self) -> None:
        """Read the map and connect to its shards; an unreachable shard is tried again later.

        Raises:
            NodeRefused: no server returned the map, and not all of them refused.
            ConfigurationError: each server refused the log-in, or is not part of a cluster.
        """
        if self.known:
            return
        if self._reading is None or self._reading.done():
            self._reading = self._own(self._read_first())
        reading = self._reading  # this one: another caller may begin the next before this one goes on
        await asyncio.wait([reading])  # see Connection.connect
        if reading.cancelled():
            raise NodeRefused(f"{self._name} was closed while its map was read", node=self._name)
        reading.result()

    async def aclose(self) -> None:
        """Stop reading the map. The shards are not closed; the cluster node does that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def owners(self) -> set[Endpoint]:
        """The servers that serve slots, as one of them says now.

        Raises:
            NodeError: no server returned the map, and not all of them refused.
            ConfigurationError: each server refused the log-in, or is not part of a cluster.
        """
        await first_of(self._to_ask(), self._read)
        self._refreshed()
        return {endpoint for endpoint in self._slots if endpoint is not None}

    def refresh_soon(self, *, heard: bool = False) -> None:
        """Read the map again in the background, unless that is in progress or was done just now.

        Args:
            heard: whether something was heard that a reading of just now may have missed: then it is read
                once more a moment later. Nobody may ask for anything after that, and a release that a
                failover lost would not be made again.
        """
        if not self.known:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._own(self._refresh())
        elif heard:
            self._once_more = True

    def reach_soon(self, shard: StandaloneNode) -> None:
        """Try once to connect to a shard in the background; the next call that needs it tries again."""
        if not shard.ready:
            self._own(shard.connect())

    async def _read_first(self) -> None:
        try:
            await first_of([self._shard_of(seed) for seed in self._seeds], self._read)
        except NodeRefused as exc:
            # One of several seeds that refuses decides nothing for one that is only away, but is told.
            refusal = f", and {exc.__cause__}" if isinstance(exc.__cause__, ConfigurationError) else ""
            self.unreached = f"{exc}{refusal}"
            raise
        connecting = [self._own(shard.connect()) for shard in self._serving()]
        # Do not wait for a dead shard: calls meant for it are retried until it is reachable.
        done, _ = await asyncio.wait(connecting, timeout=_GRACE_S)
        for attempt in done:
            if isinstance(fault := attempt.exception(), ConfigurationError):
                raise fault
        self.known, self.unreached = True, ""

    def _to_ask(self) -> list[StandaloneNode]:
        ready = [shard for shard in self.shards.values() if shard.ready]
        random.shuffle(ready)
        # The seeds too, after the known servers, which may hang or may all be gone.
        return [*ready, *(shard for seed in self._seeds if (shard := self._shard_of(seed)) not in ready)]

    async def _refresh(self) -> None:
        self._once_more = True
        while self._once_more:
            self._once_more = False
            try:
                await first_of(self._to_ask(), self._read)
            except (NodeError, ConfigurationError):
                pass
            else:
                self._forget_the_gone()
            for shard in self._serving():
                self.reach_soon(shard)
            self._refreshed()
            await asyncio.sleep(_REFRESH_S)  # limits how often the map is read

    async def _read(self, shard: StandaloneNode) -> None:
        """Read the slot map from one server.

        Raises:
            NodeRefused: the server did not return a map.
            ConfigurationError: the server refused the log-in or the map, or is not part of a cluster.
        """
        await shard.connect()
        reply = await shard.ask("CLUSTER", "SLOTS")
        if isinstance(reply, Exception) and str(reply).startswith("NOPERM"):
            raise ConfigurationError(
                f"{shard.name} refused the map of its cluster: {reply}; give its ACL user +cluster|slots"
            )
        if isinstance(reply, Exception) or not reply:
            raise NodeRefused(f"{shard.name} told no map of its cluster: {reply}", node=shard.name)
        for first, last, owner, *_ in reply:
            endpoint = self._reached_at(_host_of(owner) or shard.address.host, owner[1])
            self.shard_at(endpoint)
            self._slots[first : last + 1] = [endpoint] * (last + 1 - first)

    def _forget_the_gone(self) -> None:
        """Close the nodes of unreachable servers without slots, so that they are not retried for ever."""
        kept = {*self._slots, *((seed.host, seed.port) for seed in self._seeds)}
        for endpoint in [
            endpoint for endpoint, shard in self.shards.items() if endpoint not in kept and not shard.ready
        ]:
            self._own(self.shards.pop(endpoint).aclose())

    def _shard_of(self, seed: Address) -> StandaloneNode:
        return self.shard_at((seed.host, seed.port))

    def _serving(self) -> list[StandaloneNode]:
        return [self.shards[endpoint] for endpoint in dict.fromkeys(self._slots) if endpoint is not None]

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"lockguard-connect-{self._name}")
        self._tasks[task] = None
        task.add_done_callback(self._disown)
        return task

    def _disown(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            task.exception()  # retrieved, since no caller may be waiting for the task


def _host_of(server: Sequence[Any]) -> str:
    """The host of a server in a CLUSTER SLOTS entry; empty if the entry does not name it."""
    host = (server[0] or b"").decode()
    if host not in _NO_HOST:
        return str(host)
    facts = server[3] if len(server) > 3 else []
    pairs = facts if isinstance(facts, dict) else dict(zip(facts[::2], facts[1::2], strict=False))
    return str(pairs.get(b"ip", b"").decode())
