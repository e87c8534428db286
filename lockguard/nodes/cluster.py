"""A lock node that is a whole cluster: each resource lives on the shard that serves its slot.

All keys of a resource have the same hash tag, so one script runs on one shard. What the shards answer when
slots move:

* MOVED: another shard serves the slot. It was not executed; it is sent there, and the map is read again.
* ASK: the slot is about to move, and these keys have. Sent there for this time.
* TRYAGAIN: some of the resource's keys have moved and some have not. Sent again a moment later.

A caller that was cancelled has its undo on the way already, so its command is not sent on; an undo always is.
The order that makes undoing work holds all the same: a command and its undo take the same way, one behind the
other, and the command does not take part in it once its caller is gone.

Releases that a shard lost with its connection are sent on to whoever serves the slot then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlunsplit

import hiredis
from redis.crc import key_slot

from lockguard.errors import ConfigurationError, NodeError, NodeRefused
from lockguard.lease import GrantId, Resource
from lockguard.lua import ACQUIRE, RELEASE, Script
from lockguard.nodes import votes
from lockguard.nodes.address import Address, split_url
from lockguard.nodes.releases import Place, Releases
from lockguard.nodes.scripted import NAMESPACE, ScriptedNode
from lockguard.nodes.standalone import Call, StandaloneNode
from lockguard.nodes.wire import Cut, NotSent
from lockguard.ports import Busy, Refused

__all__ = ["ClusterNode", "seeds_of"]

T = TypeVar("T")

_SLOTS = 16_384
_TRY_AGAIN_S = 0.025
_TRY_AGAIN_MAX = 80
_REFRESH_S = 0.2
_BACKOFF_S = 0.25
_INBOX = 4  # among the arguments of acquire.lua


def seeds_of(url: str) -> tuple[Address, ...]:
    """Read ``redis+cluster://[user:password@]host:port,host:port`` or, with TLS, ``rediss+cluster://``.

    Raises:
        ConfigurationError: a part of it is missing or makes no sense.
    """
    parts = split_url(url)
    credentials, at, places = parts.netloc.rpartition("@")
    if not places or parts.path not in {"", "/", "/0"}:
        raise ConfigurationError(
            "the Redis URL is not a cluster's; write redis+cluster://host:port,host:port without a database:"
            " a cluster has only one"
        )
    scheme = parts.scheme.removesuffix("+cluster")
    return tuple(
        Address.parse(urlunsplit((scheme, f"{credentials}{at}{place}", "", parts.query, "")))
        for place in places.split(",")
    )


class ClusterNode(ScriptedNode):
    """Keeps locks in a cluster.

    Args:
        seeds: servers to ask for the map first.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        connect_timeout_s: for connecting and logging in to one shard.
        reply_timeout_s: how long a shard may owe a reply.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        inbox: str,
        namespace: str = NAMESPACE,
        connect_timeout_s: float = 2.0,
        reply_timeout_s: float = 2.0,
    ) -> None:
        super().__init__(inbox=inbox, namespace=namespace)
        self._seeds = tuple(seeds)
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._shards: dict[Place, StandaloneNode] = {}
        self._slots: list[Place | None] = [None] * _SLOTS
        self._releases = Releases()
        self._mapped = False
        self._unreached = ""
        self._refreshing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._closed = False

    @property
    def name(self) -> str:
        """The first of the servers that it was given; no credentials."""
        return f"cluster {self._seeds[0].name}"

    @property
    def ready(self) -> bool:
        """Whether it is known who serves which slot."""
        return self._mapped

    async def connect(self) -> None:
        """Read the map and connect to its shards; one that cannot be reached goes on being tried.

        Raises:
            NodeRefused: no server told the map.
            ConfigurationError: a server refused the log-in, or is no cluster's.
        """
        if self._mapped:
            return
        fault = NodeRefused(f"{self.name} has no server", node=self.name)
        for seed in self._seeds:
            shard = self._shard((seed.host, seed.port))
            try:
                await shard.connect()
                await self._read_map(shard)
            except NodeRefused as exc:
                fault, self._unreached = exc, str(exc)
                continue
            await asyncio.gather(*(self._reach(shard) for shard in self._serving()))
            self._mapped, self._unreached = True, ""
            return
        raise fault

    async def aclose(self) -> None:
        """Send what is queued, then close everything."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(shard.aclose() for shard in self._shards.values()))

    def _run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,
    ) -> asyncio.Future[Any]:
        shard, place = self._shard_of(keys[0]), self._place_of(keys[0])
        if shard is None or place is None:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            text = self._unreached or f"{self.name}: nobody is known to serve {keys[0]!r}"
            future.set_result(Refused(NodeRefused(text, node=self.name)))
            return future
        if script is ACQUIRE:
            decode = partial(self._acquired, decode, keys[0], str(args[_INBOX]))
        elif script is RELEASE:
            self._releases.note(place, keys, args)
        return shard.run(script, decode, keys, *args, lone=lone)

    def _acquired(self, decode: Callable[[Any], T], lock: str, inbox: str, reply: Any) -> T:
        vote = decode(reply)
        if isinstance(vote, Busy) and vote.ticket and (shard := self._shard_of(lock)) is not None:
            shard.listen(inbox)
        return vote

    def _inbox_of(self, resource: Resource) -> str:
        # In the slot of the resource, so that the script that wakes may publish on its shard only.
        return f"{self._inbox}:{{{resource}}}"

    def _place_of(self, key: str) -> Place | None:
        return self._slots[key_slot(key.encode())]

    def _shard_of(self, key: str) -> StandaloneNode | None:
        place = self._place_of(key)
        return None if place is None else self._shards[place]

    def _redirected(self, fault: Exception, call: Call) -> bool:
        """Send a call on; tells whether it was."""
        if self._closed:
            return False
        is_undo = call.script is RELEASE
        if isinstance(fault, Cut | NotSent):
            self._refresh_soon()
            return is_undo and self._undo_again(call)
        if not isinstance(fault, hiredis.ReplyError):
            return False
        kind, _, rest = str(fault).partition(" ")
        if kind in {"MOVED", "ASK"}:
            if call.future.done() and not is_undo:
                return True
            slot, _, place = rest.partition(" ")
            shard = self._shard(_place(place))
            self._reach_soon(shard)
            if kind == "MOVED":
                self._slots[int(slot)] = _place(place)
                self._refresh_soon()
            if not shard.ready:
                return self._try_again(call, _TRY_AGAIN_S)
            shard.take_over(call, asking=kind == "ASK")
            return True
        if kind in {"TRYAGAIN", "CLUSTERDOWN"}:
            if call.future.done() and not is_undo:
                return True
            self._refresh_soon()
            return self._try_again(call, _TRY_AGAIN_S)
        return False

    def _undo_again(self, call: Call) -> bool:
        call.decode = votes.done_again
        return self._try_again(call, _BACKOFF_S)

    def _try_again(self, call: Call, after_s: float) -> bool:
        call.tries += 1
        if call.tries > _TRY_AGAIN_MAX:
            return False

        def again() -> None:
            self._timers.discard(timer)
            shard = self._shard_of(call.keys[0])
            if shard is not None and (call.script is RELEASE or not call.future.done()):
                shard.take_over(call)

        pause_s = after_s * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
        timer = asyncio.get_running_loop().call_later(pause_s, again)
        self._timers.add(timer)
        return True

    # The map and the connections.

    def _shard(self, place: Place) -> StandaloneNode:
        if place not in self._shards:
            host, port = place
            shard = StandaloneNode(
                replace(self._seeds[0], host=host, port=port),
                inbox=self._inbox,
                namespace=self._namespace,
                mode="cluster",
                redirect=self._redirected,
                connect_timeout_s=self._connect_timeout_s,
                reply_timeout_s=self._reply_timeout_s,
            )
            shard.on_wake(self._woken)
            self._shards[place] = shard
        return self._shards[place]

    def _woken(self, grant: GrantId | None) -> None:
        self._wake(grant)

    def _serving(self) -> list[StandaloneNode]:
        return [self._shards[place] for place in set(self._slots) if place is not None]

    async def _read_map(self, shard: StandaloneNode) -> None:
        """Ask one server who serves which slot.

        Raises:
            NodeRefused: it did not tell.
        """
        reply = await shard.ask("CLUSTER", "SLOTS")
        if isinstance(reply, Exception) or not reply:
            raise NodeRefused(f"{shard.name} told no map of its cluster: {reply}", node=shard.name)
        slots: list[Place | None] = [None] * _SLOTS
        for first, last, (host, port, *_), *_ in reply:
            # A server that does not know its own address leaves it out: it is where we asked.
            place = (host.decode() if host else shard.name.partition(":")[0], port)
            self._shard(place)
            slots[first : last + 1] = [place] * (last + 1 - first)
        self._slots = slots

    def _refresh_soon(self) -> None:
        if self._mapped and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._own(self._refresh())

    async def _refresh(self) -> None:
        for shard in sorted(self._shards.values(), key=lambda _: random.random()):  # noqa: S311 - not a secret
            if shard.ready:
                try:
                    await self._read_map(shard)
                except NodeRefused:
                    continue
                break
        for shard in self._serving():
            self._reach_soon(shard)
        for release in self._releases.moved(self._place_of):
            self._try_again(Call(self._shards[release.place], RELEASE, bool, release.keys, release.args), 0)
        await asyncio.sleep(_REFRESH_S)  # as often at most

    def _reach_soon(self, shard: StandaloneNode) -> None:
        if not shard.ready:
            self._own(self._reach(shard))

    async def _reach(self, shard: StandaloneNode) -> None:
        # Only once: a shard that stays away is tried again when somebody needs it, and after it was lost.
        try:
            await shard.connect()
        except NodeError:
            pass
        except ConfigurationError:
            if not self._mapped:
                raise

    def _own(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"lockguard-connect-{self.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _place(text: str) -> Place:
    host, _, port = text.rpartition(":")
    return host, int(port)
