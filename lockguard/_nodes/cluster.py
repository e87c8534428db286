"""A lock node that is a whole cluster: each resource is kept on the shard that serves its slot.

All keys of a resource have the same hash tag, so a script runs on one shard. While slots move, shards answer:

* MOVED: another shard serves the slot. The call was not executed; it is sent there and the map is read again.
* ASK: the slot is being moved, and these keys have moved already. This one call is sent to the new shard.
* TRYAGAIN, CLUSTERDOWN: only some of the resource's keys have moved, or no shard serves the slot now. The
  call is sent again a moment later. So are calls that could not be sent, and idempotent calls that were lost
  with a connection.

Each call gets its vote within the time that one server may take to reply, whatever happens to the map. A
release is tried for a while longer, after its caller has been given an unknown outcome.

The command of a cancelled caller is not redirected, because its release is already in flight; a release
always is. The order that undoes a cancelled acquire still holds: a command and its release take the same
route one behind the other, and the command drops out once its caller is gone.

Releases that a shard lost with its connection are sent to the shard that serves the slot by then. A release
still in flight is not sent a second time meanwhile: the later of the two would find the lock gone, and the
holder would be told that another process had taken it.

The map is read again whenever a connection has to be made anew, also while nobody asks for anything: a
replica that has taken over may lack the last release of a process that is idle since.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlunsplit

import hiredis

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import GrantId, Resource
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address, split_url
from lockguard._nodes.address_map import AddressMap
from lockguard._nodes.cluster_map import ClusterMap
from lockguard._nodes.releases import Endpoint, Releases
from lockguard._nodes.scripted import ScriptedNode, parse_done_again
from lockguard._nodes.standalone import SAME_AGAIN, Call, StandaloneNode
from lockguard._nodes.wire import Cut, NotSent
from lockguard._scripts import ACQUIRE, CHECK, RELEASE, Script
from lockguard.errors import ConfigurationError, NodeRefused, NodeUnknown
from lockguard.ports import Busy, MaybeExecuted, NotExecuted

__all__ = ["ClusterNode", "seeds_of"]

T = TypeVar("T")

_TRY_AGAIN_S = 0.025
_BACKOFF_S = 0.25
_ONCE_MORE_S = 0.25
_FOLLOWED_AT_ONCE_MAX = 3
_RELEASED_FOR_S = 30.0
"""How long a release is tried, even after its caller has stopped waiting."""

_INBOX = 4  # its index among the arguments of acquire.lua


def seeds_of(url: str) -> tuple[Address, ...]:
    """Parse ``redis+cluster://[user:password@]host:port,host:port`` or, with TLS, ``rediss+cluster://``.

    Raises:
        ConfigurationError: a part of the URL is missing or invalid.
    """
    parts = split_url(url)
    credentials, at, endpoints = parts.netloc.rpartition("@")
    if not endpoints or parts.path not in {"", "/", "/0"}:
        raise ConfigurationError(
            "the Redis URL is not a cluster's; write redis+cluster://host:port,host:port without a database:"
            " a cluster has only one"
        )
    scheme = parts.scheme.removesuffix("+cluster")
    return tuple(
        Address.parse(urlunsplit((scheme, f"{credentials}{at}{endpoint}", "", parts.query, "")))
        for endpoint in endpoints.split(",")
    )


class ClusterNode(ScriptedNode):
    """Keeps locks in a cluster.

    Args:
        seeds: the servers to ask for the map first.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        address_map: where to reach the servers that others announce.
        connect_timeout_s: the time limit for connecting and logging in to one shard.
        reply_timeout_s: how long a shard may leave a reply outstanding, and how long a call may take.
    """

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        inbox: str,
        namespace: Namespace = NAMESPACE,
        address_map: AddressMap | None = None,
        connect_timeout_s: float = 2.0,
        reply_timeout_s: float = 2.0,
    ) -> None:
        super().__init__(inbox=inbox, namespace=namespace)
        self._name = f"cluster {seeds[0].name}"
        self._connect_timeout_s = connect_timeout_s
        self._reply_timeout_s = reply_timeout_s
        self._releases = Releases()
        self._map = ClusterMap(self._name, seeds, self._new_shard, address_map or AddressMap())
        self._map.on_refresh(self._send_releases_on)
        self._waiting: dict[Call, asyncio.TimerHandle] = {}
        self._bounds: dict[Call, asyncio.TimerHandle] = {}
        self._releasing: set[asyncio.Future[Any]] = set()
        """The releases that are neither made nor given up; their callers may wait no longer."""
        self._all_released = asyncio.Event()
        self._closed = False

    @property
    def name(self) -> str:
        """The first seed's name for messages; contains no credentials."""
        return self._name

    @property
    def ready(self) -> bool:
        """Whether the slot map is known."""
        return self._map.known

    async def connect(self) -> None:
        """Read the map and connect to its shards; an unreachable shard is tried again later.

        Raises:
            NodeRefused: no server returned the map.
            ConfigurationError: a server refused the log-in, or is not part of a cluster.
        """
        await self._map.connect()

    async def aclose(self) -> None:
        """Send what is queued, then close all connections; a release that meets a slot move is completed."""
        # Halfway through a slot move its last attempt would be refused, and the lock stay closed for its ttl.
        # Bodies that the close cancels release their leases meanwhile.
        with suppress(TimeoutError):
            async with asyncio.timeout(self._reply_timeout_s):
                while self._releasing:
                    self._all_released.clear()
                    await self._all_released.wait()
        waiting, self._waiting = self._waiting, {}
        for call, timer in waiting.items():
            timer.cancel()
            if call.script is RELEASE:
                self._map.shard_for(call.keys[0]).take_over(call)
        self._closed = True
        await self._map.aclose()
        await asyncio.gather(*(shard.aclose() for shard in self._map.shards.values()))
        for call in list(self._bounds):
            self._tell_nothing(call, "the guard is closed")

    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them; send nothing."""
        self._closed = True
        for shard in self._map.shards.values():
            shard.abandon()

    async def masters(self) -> list[StandaloneNode]:
        """The servers that serve slots, as one of them says now.

        Raises:
            NodeError: no server returned the map.
        """
        return [self._map.shard_at(endpoint) for endpoint in await self._map.owners()]

    async def names(self, prefix: str) -> AsyncIterator[list[Resource]]:
        """The resources in use on all shards, see :meth:`lockguard.ports.ReadableNode.names`.

        Shards that began to serve a slot meanwhile are read too. What moved from a shard before it was read
        to one that had been read already may be missing.
        """
        read: set[Endpoint] = set()
        while unread := await self._map.owners() - read:
            for endpoint in unread:
                shard = self._map.shard_at(endpoint)
                await shard.connect()
                async for names in shard.names(prefix):
                    yield names
            read |= unread

    def _run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,
    ) -> asyncio.Future[Any]:
        if not self._map.known:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            text = self._map.unreached or f"{self.name} is not connected"
            future.set_result(NotExecuted(NodeRefused(text, node=self.name)))
            return future
        shard = self._map.shard_for(keys[0])
        if script is ACQUIRE:
            decode = partial(self._acquired, decode, keys[0], str(args[_INBOX]))
        call = self._call(shard, script, decode, keys, args)
        if script is RELEASE:
            call.future.add_done_callback(partial(self._released, call))
        shard.send_call(call, lone=lone)
        asked: asyncio.Future[Any] = call.future
        return asked

    def _acquired(self, decode: Callable[[Any], T], lock: str, inbox: str, reply: Any) -> T:
        vote = decode(reply)
        if isinstance(vote, Busy) and vote.ticket:
            self._map.shard_for(lock).listen(inbox)
        return vote

    def _released(self, call: Call, _: object) -> None:
        """Remember a completed release, so that it can be sent again to the resource's next shard."""
        if self._closed:
            return
        said_to = call.node.address.host, call.node.address.port
        serves = self._map.endpoint_of(call.keys[0]) or said_to
        self._releases.note(serves, call.keys, call.args)
        if serves != said_to:  # answered by the former master
            self._release_again(serves, call.keys, call.args)

    def _made(self, future: asyncio.Future[Any], decode: Callable[[Any], T], reply: Any) -> T:
        """Decode the answer to a release: it is made."""
        future.add_done_callback(self._release_is_over)
        return decode(reply)

    def _failed(self, fault: Exception, call: Call) -> bool:
        sent_again = self._redirected(fault, call)
        if call.script is RELEASE and not sent_again:
            call.future.add_done_callback(self._release_is_over)
        return sent_again

    def _release_is_over(self, future: asyncio.Future[Any]) -> None:
        self._releasing.discard(future)
        if not self._releasing:
            self._all_released.set()

    def _inbox_of(self, resource: Resource) -> str:
        # In the resource's slot, so that the script that wakes a waiter can publish on its own shard only.
        return f"{self._inbox}:{{{resource}}}"

    def _new_shard(self, address: Address) -> StandaloneNode:
        shard = StandaloneNode(
            address,
            inbox=self._inbox,
            namespace=self._namespace,
            mode="cluster",
            redirect=self._failed,
            locate=partial(self._located, address),
            connect_timeout_s=self._connect_timeout_s,
            reply_timeout_s=self._reply_timeout_s,
        )
        shard.on_wake(self._woken)
        return shard

    async def _located(self, address: Address) -> Address:
        if not self._closed:  # the map is closed first, and begins nothing that nobody would end
            self._map.refresh_soon()  # what has to be connected again may serve nothing any more
        return address

    def _woken(self, grant: GrantId | None) -> None:
        if grant is None and not self._closed:
            # A shard is back, or was emptied, as a master is that becomes a replica.
            self._map.refresh_soon(heard=True)
        self._wake(grant)

    def _redirected(self, fault: Exception, call: Call) -> bool:
        """Send a failed call again where it belongs; returns whether that was done or is not needed."""
        if self._closed:
            return False
        if isinstance(fault, Cut | NotSent):
            self._map.refresh_soon()
            if isinstance(fault, Cut) and call.script not in (*SAME_AGAIN, RELEASE):
                return False
            if isinstance(fault, Cut) and call.script is RELEASE:
                call.decode = partial(self._made, call.future, parse_done_again)
            return self._try_again(call, fault, _TRY_AGAIN_S)
        if not isinstance(fault, hiredis.ReplyError):
            return False
        kind, _, rest = str(fault).partition(" ")
        if kind in {"MOVED", "ASK"}:
            return self._follow(kind, rest, fault, call)
        if kind in {"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN"}:
            self._map.refresh_soon()
            return self._try_again(call, fault, _TRY_AGAIN_S)
        return False

    def _follow(self, kind: str, rest: str, fault: Exception, call: Call) -> bool:
        if call.future.done() and call.script is not RELEASE:
            return True
        slot, _, told = rest.partition(" ")
        endpoint = self._map.endpoint_in(told, by=call.node)
        if endpoint is None:
            self._map.refresh_soon()
            return self._try_again(call, fault, _TRY_AGAIN_S)
        shard = self._map.shard_at(endpoint)
        self._map.reach_soon(shard)
        if kind == "MOVED":
            self._map.moved(int(slot), endpoint)
        if not shard.ready or call.tries >= _FOLLOWED_AT_ONCE_MAX:  # two shards may redirect to each other
            return self._try_again(call, fault, _TRY_AGAIN_S)
        call.tries += 1
        shard.take_over(call, asking=kind == "ASK")
        return True

    def _try_again(self, call: Call, fault: Exception, after_s: float) -> bool:
        if call.script is CHECK:
            return False  # the next one comes by itself; thousands, tried again, would keep the loop busy
        if call.future.done() and call.script is not RELEASE:
            return True
        now, loop = SYSTEM_CLOCK.now(), asyncio.get_running_loop()
        if now - call.began_at > _RELEASED_FOR_S:
            return False
        call.tries += 1
        # The server is named: behind a NAT it is one that nobody wrote into a URL.
        call.fault = f"{call.node.name}: {fault}" if isinstance(fault, Cut | NotSent) else str(fault)
        if call.future.done():
            after_s = _BACKOFF_S
        elif call not in self._bounds:
            left_s = max(_ONCE_MORE_S, call.began_at + self._reply_timeout_s - now)
            self._bounds[call] = loop.call_later(left_s, self._tell_nothing, call)
        pause_s = after_s * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
        self._waiting[call] = loop.call_later(pause_s, self._send_on, call)
        return True

    def _send_on(self, call: Call) -> None:
        self._waiting.pop(call, None)
        if call.script is RELEASE or not call.future.done():
            self._map.shard_for(call.keys[0]).take_over(call)

    def _tell_nothing(self, call: Call, why: str = "") -> None:
        """Give a call that has run out of time an unknown outcome: it may have been executed."""
        if (bound := self._bounds.pop(call, None)) is not None:
            bound.cancel()
        if not call.future.done():
            text = f"{self.name}: {call.script.name}: {why or call.fault}"
            call.future.set_result(MaybeExecuted(NodeUnknown(text, node=self.name)))

    def _send_releases_on(self) -> None:
        for release in self._releases.moved(self._map.endpoint_of):
            self._release_again(release.endpoint, release.keys, release.args)

    def _release_again(self, endpoint: Endpoint, keys: tuple[str, ...], args: tuple[str | int, ...]) -> None:
        call = self._call(self._map.shard_at(endpoint), RELEASE, bool, keys, args)
        self._try_again(call, NotSent("moved"), 0)

    def _call(
        self,
        shard: StandaloneNode,
        script: Script,
        decode: Callable[[Any], Any],
        keys: tuple[str, ...],
        args: tuple[str | int, ...],
    ) -> Call:
        future = self._loop.create_future()
        if script is RELEASE:
            self._releasing.add(future)
            decode = partial(self._made, future, decode)
        return Call(shard, script, decode, keys, args, future, began_at=SYSTEM_CLOCK.now())
