"""One lock over every kind of node and every server: the same laws."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from lockguard import LockGuard
from lockguard._nodes import sentinel
from lockguard._nodes.cluster import ClusterNode
from lockguard._nodes.member import MemberNode
from lockguard._nodes.sentinel import SentinelNode
from lockguard._nodes.standalone import StandaloneNode
from lockguard.testing import MemoryStore
from lockguard_lab.servers import (
    ClusterRedis,
    IndependentRedis,
    ReplicatedRedis,
    SentinelRedis,
    find_redis,
    find_system_redis,
    find_valkey,
)

KEPT = (":token", ":history", ":member")
"""What outlives a lock on purpose: the token floor, the history, and the right to vote."""

SERVERS = {"valkey": find_valkey(), "redis": find_redis()}
"""The servers of this machine; ``None`` for one that is not installed."""

if system := find_system_redis():
    SERVERS[f"redis{system.version}"] = system

KINDS = {
    "one-node": lambda binary: IndependentRedis(1, binary=binary),
    "five-nodes": lambda binary: IndependentRedis(5, binary=binary),
    "replicated": lambda binary: ReplicatedRedis(1, binary=binary),
    "sentinel": lambda binary: SentinelRedis(1, binary=binary),
    "cluster": lambda binary: ClusterRedis(3, binary=binary),
}

COMBINATIONS = [
    *(f"{kind}-{server}" for server, binary in SERVERS.items() if binary for kind in KINDS),
    "memory-fakeredis",
]


WHOLE_PRODUCT = os.environ.get("LOCKGUARD_CONTRACT") == "all"
"""Every kind on every server on every loop. By default each kind meets each server on one loop, and each loop
meets every kind and every server: servers differ in what they answer, loops in how bytes come and go, and
nothing depends on both."""


def by_pairs(kinds: Iterable[str], servers: Sequence[str]) -> dict[str, list[str]]:
    """What each loop runs over: with any two of kind, server and loop there is a combination of that pair."""
    others = itertools.cycle([*servers[1:], servers[0]])  # scripts/lowest has the first of both on asyncio
    on_uvloop = [f"{kind}-{server}" for kind, server in zip(kinds, others, strict=False)]
    every = [f"{kind}-{server}" for server in servers for kind in kinds]
    alone = len(servers) == 1  # then asyncio would be left with no kind at all
    on_asyncio = [one for one in every if alone or one not in on_uvloop]
    return {
        "asyncio": [*on_asyncio, "memory-fakeredis"],
        "uvloop": [*on_uvloop, "memory-fakeredis"],
    }


ON_LOOP = by_pairs(KINDS, [server for server, binary in SERVERS.items() if binary])


def loop_of(item: pytest.Item) -> str:
    """The name of the event loop that a test runs on."""
    return "uvloop" if "uvloop" in item.callspec.id.split("-") else "asyncio"  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out of the product what the rest covers."""
    if WHOLE_PRODUCT:
        return
    left_out = {
        item
        for item in items
        if item.path.parent == Path(__file__).parent
        and "topology" in getattr(item, "fixturenames", ())
        and item.callspec.params["topology"] not in ON_LOOP[loop_of(item)]  # type: ignore[attr-defined]
    }
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def combinations() -> list[str]:
    """What the suite runs over."""
    return COMBINATIONS


@pytest.fixture
def choose() -> Callable[[Iterable[str], Sequence[str]], dict[str, list[str]]]:
    """How the suite chooses what runs on which loop."""
    return by_pairs


@pytest.fixture
def on_loop() -> dict[str, list[str]]:
    """What of it runs on each loop."""
    return dict.fromkeys(ON_LOOP, COMBINATIONS) if WHOLE_PRODUCT else ON_LOOP


@dataclass
class Cluster:
    """The servers behind one kind of lock."""

    kind: str
    topology: Any = None
    store: MemoryStore = field(default_factory=MemoryStore)

    def guard(self, **options: Any) -> LockGuard:
        """A guard of its own process, as far as the servers can tell."""
        match self.kind:
            case "memory":
                return LockGuard.in_memory(self.store, **options)
            case "one-node" | "five-nodes":
                return LockGuard.from_urls(self.topology.urls, **options)
            case "replicated":
                return LockGuard.from_url(self.topology.url, min_replicas=1, **options)
            case _:
                return LockGuard.from_url(self.topology.url, **options)

    def each(self, *command: Any) -> list[Any]:
        """What each server that decides answers; in a cluster, only the one that has the key."""
        if self.kind == "memory":
            return [_text(self.store.client.execute_command(*command))]
        return [_asked(server.url, command) for server in self._deciding(command)]

    def leftovers(self) -> list[str]:
        """Keys that a lock should not leave behind."""
        return [k for keys in self.each("KEYS", "*") for k in keys if not k.endswith(KEPT)]

    def _deciding(self, command: tuple[Any, ...]) -> list[Any]:
        match self.kind:
            case "sentinel":
                return [self.topology.master]
            case "replicated":
                return self.topology.servers[:1]
            case "cluster" if command[0] not in {"FLUSHALL", "KEYS", "SCRIPT"}:
                return [self.topology.owner_of(key_slot(command[1].encode()))]
            case _:
                return list(self.topology.servers)


def _asked(url: str, command: tuple[Any, ...]) -> Any:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.execute_command(*command)


def _text(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_text(part) for part in reply]
    return reply.decode() if isinstance(reply, bytes) else reply


@pytest.fixture(scope="module", params=COMBINATIONS)
def topology(request: pytest.FixtureRequest) -> Iterator[tuple[str, Any]]:
    """Runs one set-up at a time: all of them are dozens of servers, which take time also when nobody asks."""
    kind, _, server = request.param.rpartition("-")
    if kind == "memory":
        yield kind, None
        return
    with KINDS[kind](SERVERS[server]) as started:
        yield kind, started


@pytest.fixture
def cluster(topology: tuple[str, Any]) -> Cluster:
    kind, started = topology
    if started is None:
        return Cluster(kind)
    found = Cluster(kind, started)
    found.each("FLUSHALL")
    found.each("SCRIPT", "FLUSH")
    return found


NewGuard = Callable[..., LockGuard]


@pytest.fixture
def patient_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a guard as long as it takes to connect: every server runs, so no law here is about this bound.

    Only a hold tries again by itself. An inspection, a break or a history that is the first call of its guard
    failed on a busy machine, where a log-in, or what a Sentinel is asked before it, takes more than a second.
    """
    for kind in (StandaloneNode, MemberNode, SentinelNode, ClusterNode):
        defaults = kind.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "connect_timeout_s", 20.0)
    monkeypatch.setattr(sentinel, "_ANSWER_S", 20.0)


@pytest.fixture
async def new_guard(cluster: Cluster, patient_connects: None) -> AsyncIterator[NewGuard]:
    """Guards over the cluster; each is its own process as far as Redis can tell."""
    async with contextlib.AsyncExitStack() as stack:

        def make(**options: Any) -> LockGuard:
            options.setdefault("wait", timedelta(seconds=20))
            options.setdefault("node_timeout", timedelta(seconds=1))  # a busy machine is no fault
            guard = cluster.guard(**options)
            stack.push_async_callback(guard.aclose)
            return guard

        yield make
