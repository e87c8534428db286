"""The scripts of the lock on a real server, each case as the header of its script states it.

The contract runs the same scripts through a guard, which hides some of them: what a guard asks again, what
it gives back in time, and what only happens after long waits, over several nodes or with a clock that was
set back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from lockguard._lease import parse_resource
from lockguard._namespace import NAMESPACE
from lockguard._nodes.scripted import keys_of
from lockguard._scripts import (
    ACQUIRE,
    ADMIT,
    BREAK,
    CHECK,
    EXTEND,
    INSPECT,
    REJOIN,
    RELEASE,
    SETTLE,
    Script,
)

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
KEYS = keys_of(NAMESPACE, parse_resource("binance:APTUSDT"))
LOCK, FLOOR, QUEUE, INBOXES, NEXT, TENURE, LINES, SEAL, WAITING = KEYS.acquire
MEMBER = f"{NAMESPACE}:member"
RUN, OTHER_RUN, UNKNOWN = "1" * 40, "2" * 40, ""
NODE = "127.0.0.1:7001"
TTL = 60_000
YEAR_US = 365 * 86_400 * 1_000_000


_PLAIN: dict[str, Any] = {
    "ttl": TTL,
    "holder": "h",
    "operation": "o",
    "inbox": "",
    "ticket": 0,
    "closing": "0",
    "history": 3,
    "proposal": 0,
    "run": None,
    "nodes": "",
}
"""The arguments of acquire.lua, in order, of a caller that does not queue."""


@dataclass
class Server:
    client: redis.Redis

    def run(self, script: Script, keys: tuple[str, ...], *args: object) -> Any:
        return self.client.eval(script.source, len(keys), *keys, *map(str, args))

    def acquire(self, grant: str, **options: Any) -> Any:
        """By default of a caller that does not queue; ``member`` is asked as one of several nodes."""
        given = {
            **_PLAIN,
            **options,
        }
        if given["run"] is None:
            return self.run(ACQUIRE, KEYS.acquire, grant, *list(given.values())[:-2])
        return self.run(ACQUIRE, (*KEYS.acquire, MEMBER), grant, *given.values())

    def queue(self, grant: str, inbox: str = "in:1", **options: Any) -> Any:
        return self.acquire(grant, inbox=inbox, **options)

    def release(self, grant: str, *, inbox: str = "", lost: int = 0, seal: str = "", **options: int) -> int:
        return int(self.run(RELEASE, KEYS.release, grant, inbox, lost, seal, *options.values()))

    def extend(self, grant: str, *, ttl: int = TTL, seal: str = "") -> int:
        return int(self.run(EXTEND, KEYS.extend, grant, ttl, seal))

    def check(self, grant: str) -> int:
        return int(self.run(CHECK, KEYS.check, grant))

    def break_(self, how: str = "force", *, reason: str = "why", token: int = 0, grant: str = "") -> Any:
        return self.run(BREAK, KEYS.break_, how, reason, token, grant)

    def inspect(self, waiters: int = 10) -> Any:
        return self.run(INSPECT, KEYS.inspect, waiters)

    def settle(self, grant: str, token: int) -> int:
        return int(self.run(SETTLE, KEYS.settle, grant, token))

    def rejoin(self, grant: str, token: int, run: str = RUN, *, closing: str = "0", age_ms: int = 0) -> int:
        keys = (*KEYS.rejoin, MEMBER)
        return int(self.run(REJOIN, keys, grant, token, "h", "o", TTL, run, closing, age_ms))

    def look(self, admission: str = "", run: str = RUN) -> list[Any]:
        return list(self.run(ADMIT, (MEMBER,), run, -1, 0, admission, "", NODE))

    def ask(self, admission: str, *, after: bytes, run: str = RUN) -> list[Any]:
        return list(self.run(ADMIT, (MEMBER,), run, -2, 0, admission, after.decode(), NODE))

    def admit(self, quarantine_ms: int, ttl_max_ms: int = 0, run: str = RUN, *, loss: bytes) -> list[Any]:
        return list(self.run(ADMIT, (MEMBER,), run, quarantine_ms, ttl_max_ms, "ad", loss.decode(), NODE))

    @property
    def now_us(self) -> int:
        seconds, us = self.client.time()
        return int(seconds * 1_000_000 + us)

    def waiting(self) -> list[str]:
        """The grants in the queue, in order."""
        return [member.decode().partition(" ")[0] for member in self.client.zrange(QUEUE, 0, -1)]

    def reserved_for(self) -> str:
        return (self.client.get(NEXT) or b"").decode().partition(" ")[0]

    def lines(self) -> list[str]:
        return [line.decode().split()[1] for line in self.client.lrange(LINES, 0, -1)]


@pytest.fixture
def server(redis_url: str) -> Server:
    return Server(redis.Redis.from_url(redis_url, protocol=2))


Told = Callable[[], list[bytes]]


@pytest.fixture
def told(server: Server) -> Told:
    """The grants that were published to a waiter's channel."""
    listener = server.client.pubsub()
    listener.subscribe("in:1", "in:2")
    for _ in range(2):
        assert listener.get_message(timeout=5)["type"] == "subscribe"

    def messages() -> list[bytes]:
        found = []
        while (message := listener.get_message(timeout=0.2)) is not None:
            found.append(message["data"])
        return found

    return messages
