"""Nodes whose servers are plain objects: a test says what was sent, and which reply comes when."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis

from lockguard._lease import GrantId, Resource
from lockguard._nodes.address import Address
from lockguard._nodes.cluster import ClusterNode, seeds_of
from lockguard._nodes.member import MemberNode
from lockguard._nodes.sentinel import SentinelNode, SentinelUrl
from lockguard._nodes.standalone import StandaloneNode
from lockguard.ports import AcquireRequest

APT = Resource("binance:APTUSDT")
MINE = GrantId("a" * 32)
NOSCRIPT = hiredis.ReplyError("NOSCRIPT No matching script")


def request(**more: Any) -> AcquireRequest:
    return AcquireRequest(APT, MINE, "h", "o", 9_000, **{"queue": True, **more})


class Link:
    """A connection that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.ready = True
        self.connected_before = True
        self.comes_back = True
        self.dropped: list[str] = []
        self.address = Address.parse("redis://127.0.0.1:1/0")

    def send_packed(self, on_reply: Any, command: bytes, *, lone: bool = False) -> None:
        self.sent.append((on_reply, command))

    def send(self, on_reply: Any, *command: Any, lone: bool = False) -> None:
        self.sent.append((on_reply, *command))

    def note_ttl(self, ttl_ms: int) -> None: ...

    def allow_silence(self, seconds: float) -> None: ...

    def drop(self, cause: str) -> None:
        self.dropped.append(cause)

    def words(self) -> list[str]:
        """The first word of each command that was sent."""
        return [
            sent[1].split(b"\r\n")[2].decode() if isinstance(sent[1], bytes) else str(sent[1])
            for sent in self.sent
        ]


def server(kind: type[Any] = StandaloneNode, **options: Any) -> tuple[Any, Link]:
    node = kind(Address.parse("redis://127.0.0.1:1/0"), inbox="in", **options)
    node._connection = link = Link()
    return node, link


def args_of(sent: tuple[Any, ...]) -> list[str]:
    """The arguments of a packed call, behind the grant."""
    words = sent[1].decode().split("\r\n")[2::2]
    return list(words[words.index(str(MINE)) + 1 :])


def member() -> tuple[Any, Link, list[bool]]:
    node, link = server(MemberNode, nodes=3)
    told: list[bool] = []
    node.on_admission_needed(lambda: told.append(True))
    return node, link, told


def sentinel(*states: Any) -> Any:
    node = SentinelNode(SentinelUrl.parse("redis+sentinel://a:1,b:1,c:1/main"), inbox="in")

    class Asked:
        def __init__(self, state: Any) -> None:
            self._state = state

        def ask(self) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if self._state is not None:
                future.set_result(self._state)
            return future

    anything: Any = node
    anything._sentinels = [Asked(state) for state in states]
    return anything


class Shard:
    """One server of a cluster, which keeps what it was given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = Address.parse(f"redis://{name}:1/0")
        self.ready = True
        self.calls: list[Any] = []
        self.taken: list[bool] = []
        self.heard: list[str] = []

    def send_call(self, call: Any, *, lone: bool = False) -> None:
        self.calls.append(call)

    def take_over(self, call: Any, *, asking: bool = False) -> None:
        call.node = self
        self.calls.append(call)
        self.taken.append(asking)

    def listen(self, channel: str) -> None:
        self.heard.append(channel)


class Slots:
    """A slot map of two servers; all slots are on the first."""

    known = True
    unreached = ""

    def __init__(self) -> None:
        self.first, self.second = Shard("first"), Shard("second")
        self.refreshed = 0
        self.heard = 0
        self.owner = ("first", 1)

    def shard_for(self, key: str) -> Shard:
        return self.first

    def shard_at(self, endpoint: Any) -> Shard:
        return self.first if endpoint[0] == "first" else self.second

    def endpoint_of(self, key: str) -> Any:
        return self.owner

    def endpoint_in(self, told: str, *, by: Any) -> Any:
        return (told.partition(":")[0], 1)

    def reach_soon(self, shard: Any) -> None: ...

    def moved(self, slot: int, endpoint: Any) -> None: ...

    def refresh_soon(self, *, heard: bool = False) -> None:
        self.refreshed += 1
        self.heard += heard


def cluster() -> tuple[Any, Slots]:
    node: Any = ClusterNode(seeds_of("redis+cluster://first:1"), inbox="in")
    slots = Slots()
    node._map = slots
    return node, slots
