"""The common part of all nodes: the script, keys and arguments of each operation, and what a reply means."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from lockguard._lease import GrantId, Resource, Token
from lockguard._scripts import ACQUIRE, BREAK, EXTEND, INSPECT, RELEASE, SETTLE, Script
from lockguard.ports import (
    AcquireRequest,
    AcquireVote,
    Broken,
    Busy,
    Done,
    Extended,
    Granted,
    Inspection,
    Membership,
    NoVote,
    Quarantined,
    Waiter,
)
from lockguard.text import decoded, printable

__all__ = [
    "NAMESPACE",
    "ScriptedNode",
    "keys_of",
    "parse_acquired",
    "parse_done",
    "parse_done_again",
    "parse_membership",
    "reason_of",
]

T = TypeVar("T")

NAMESPACE = "lockguard"
"""The first part of every key."""

_WAITERS_SHOWN_MAX = 1000


class ScriptedNode(ABC):
    """A lock node whose decisions are made by the Lua scripts; a script's header is its contract.

    Args:
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
    """

    def __init__(self, *, inbox: str, namespace: str) -> None:
        self._namespace = namespace
        self._inbox = inbox
        self._wake: Callable[[GrantId | None], None] = lambda _: None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    # Implemented by each kind of node.

    @property
    @abstractmethod
    def name(self) -> str:
        """The node's name for messages; contains no credentials."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether a command would be sent now."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect, so that commands can be sent.

        Raises:
            NodeRefused: the server cannot be reached.
            ConfigurationError: the server refused the log-in, or is of another kind.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Send what is queued, then close the connections."""

    @abstractmethod
    def _run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,
    ) -> asyncio.Future[Any]:
        """Run a script; the future gets its decoded reply, or a ``NotExecuted`` or ``MaybeExecuted`` vote."""

    # Shared by all kinds of nodes.

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The node's one event loop, cached because looking it up is a system call before Python 3.12."""
        return asyncio.get_running_loop()

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Register ``callback``, called with the grant of each waiter that is woken, or ``None`` for all."""
        self._wake = callback

    def acquire(self, request: AcquireRequest) -> asyncio.Future[AcquireVote]:
        """Run acquire.lua."""
        return self._run(
            ACQUIRE,
            parse_acquired,
            keys_of(self._namespace, request.resource).acquire,
            request.grant,
            request.ttl_ms,
            request.holder,
            request.operation,
            self._inbox_of(request.resource) if request.queue else "",
            request.ticket,
            request.lock_delay_ms,
            request.history,
            lone=True,
        )

    def settle(self, resource: Resource, grant: GrantId, token: Token) -> asyncio.Future[Done | NoVote]:
        """Run settle.lua."""
        return self._run(SETTLE, parse_done, keys_of(self._namespace, resource).settle, grant, token)

    def extend(
        self, resource: Resource, grant: GrantId, ttl_ms: int, *, seal: str = ""
    ) -> asyncio.Future[Extended | NoVote]:
        """Run extend.lua."""
        # Not "lone": a guard renews all its leases in one iteration of the loop, and so in one write.
        keys = keys_of(self._namespace, resource).extend
        return self._run(EXTEND, parse_extended, keys, grant, ttl_ms, seal)

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = ""
    ) -> asyncio.Future[Done | NoVote]:
        """Run release.lua.

        The command is written in this iteration of the event loop or at the beginning of the next, before any
        task learns that the calling task has ended: the loop cannot be stopped in between.
        """
        keys = keys_of(self._namespace, resource).release
        args = (grant, self._inbox_of(resource), int(lost), seal)
        return self._run(RELEASE, parse_done, keys, *args, lone=True)

    def break_(self, resource: Resource, *, reason: str, token: Token) -> asyncio.Future[Broken | NoVote]:
        """Run break.lua to end the lease by force."""
        return self._break(parse_broken, resource, "force", reason, token)

    def request_handover(self, resource: Resource, *, reason: str) -> asyncio.Future[Done | NoVote]:
        """Run break.lua to ask the holder for a hand-over."""
        return self._break(lambda reply: Done(found=bool(reply[0])), resource, "ask", reason, 0)

    def inspect(self, resource: Resource) -> asyncio.Future[Inspection | NoVote]:
        """Run inspect.lua."""
        keys = keys_of(self._namespace, resource).inspect
        return self._run(INSPECT, lambda reply: parse_inspected(resource, reply), keys, _WAITERS_SHOWN_MAX)

    def _inbox_of(self, resource: Resource) -> str:  # noqa: ARG002 - one channel per process by default
        return self._inbox

    def _break(
        self, decode: Callable[[Any], T], resource: Resource, how: str, reason: str, token: int
    ) -> asyncio.Future[T | NoVote]:
        return self._run(BREAK, decode, keys_of(self._namespace, resource).break_, how, reason, token)


def reason_of(script: Script, keys: tuple[str, ...], fault: Exception) -> str:
    """Why a server refused a script, in one line."""
    told = str(fault)
    if "WRONGTYPE" in told:  # Redis does not say which
        told = (
            "a key of this lock holds a value of another kind, so something else writes there; look at the"
            f" TYPE of {printable(keys[0])} and {printable(keys[0])}:*, and delete what differs from"
            " docs/reference/redis-keys.md"
        )
    return f"{script.name}: {told}"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one resource, in the order that each script expects."""

    acquire: tuple[str, ...]
    settle: tuple[str, ...]
    extend: tuple[str, ...]
    release: tuple[str, ...]
    break_: tuple[str, ...]
    inspect: tuple[str, ...]
    rejoin: tuple[str, ...]


@lru_cache(maxsize=4096)
def keys_of(namespace: str, resource: Resource) -> Keys:
    """The keys of a resource; they share a hash tag, so they are in one slot of a cluster."""
    lock = f"{namespace}:{{{resource}}}"
    floor, queue, inboxes = f"{lock}:token", f"{lock}:queue", f"{lock}:inboxes"
    following, tenure, history = f"{lock}:next", f"{lock}:tenure", f"{lock}:history"
    seal = f"{lock}:seal"
    return Keys(
        acquire=(lock, floor, queue, inboxes, following, tenure, history, seal),
        settle=(lock, floor),
        extend=(lock, tenure, seal),
        release=(lock, queue, inboxes, following, tenure, history, seal),
        break_=(lock, floor, tenure, history, queue, inboxes, following),
        inspect=(lock, floor, queue, inboxes),
        rejoin=(lock, floor, history),
    )


# What each script's reply means.

_FOUND, _NOT_FOUND = Done(found=True), Done(found=False)


def parse_acquired(reply: list[Any]) -> AcquireVote:
    """Decode a reply of acquire.lua."""
    if reply[0] == 1:
        seal = reply[3].decode("ascii", "replace") if reply[3] else ""
        return Granted(Token(int(reply[1])), int(reply[2]), seal)
    if reply[0] == 3:
        return Quarantined(quarantine_ms=reply[1])
    _, holder, operation, token, age_ms, retry_after_ms, *place = reply
    ticket, requeued = (int(place[0]), bool(place[1])) if place else (0, False)
    ahead = place[2] if len(place) > 2 else None
    return Busy(
        holder=decoded(holder),
        operation=decoded(operation),
        token=Token(int(token)),
        age_ms=age_ms,
        retry_after_ms=max(0, retry_after_ms),
        ticket=ticket,
        requeued=requeued,
        queue_full=reply[0] == 2,
        ahead=ahead,
    )


def parse_done(reply: int) -> Done:
    """Decode a reply of settle.lua, release.lua or rejoin.lua."""
    return _FOUND if reply == 1 else _NOT_FOUND


def parse_done_again(reply: int) -> Done:
    """Decode a reply of release.lua that was sent a second time."""
    return Done(found=reply == 1, repeated=True)


def parse_extended(reply: int) -> Extended:
    """Decode a reply of extend.lua."""
    return Extended(held=reply != 0, wanted=reply == 2)


def parse_broken(reply: list[bytes]) -> Broken:
    """Decode a reply of break.lua."""
    return Broken(decoded(reply[0]), decoded(reply[1]), Token(int(reply[2])))


def parse_inspected(resource: Resource, reply: list[Any]) -> Inspection:
    """Decode a reply of inspect.lua."""
    grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, flat = reply
    waiters = []
    for member, ticket, silent_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        waiting, _, inbox = decoded(member).partition(" ")
        waiters.append(Waiter(waiting, inbox, int(ticket), silent_ms))
    return Inspection(
        resource=resource,
        held=bool(grant),
        grant=decoded(grant),
        token=int(token),
        holder=decoded(holder),
        operation=decoded(operation),
        age_ms=age_ms,
        remaining_ms=remaining_ms,
        ttl_ms=ttl_ms,
        renewals=renewals,
        waiters=tuple(waiters),
    )


def parse_membership(reply: list[int]) -> Membership:
    """Decode a reply of admit.lua."""
    state, quarantine_ms, ttl_max_ms, nodes = reply
    return Membership(
        known=state > 0, member=state == 2, quarantine_ms=quarantine_ms, ttl_max_ms=ttl_max_ms, nodes=nodes
    )
