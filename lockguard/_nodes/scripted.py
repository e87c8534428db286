"""The common part of all nodes: the script, keys and arguments of each operation, and what a reply means."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, TypeVar

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard._namespace import Namespace
from lockguard._nodes.remedies import or_check, with_rights
from lockguard._scripts import ACQUIRE, BREAK, CHECK, EXTEND, HISTORY, INSPECT, RELEASE, SETTLE, Script
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
    "UNREADABLE",
    "ScriptedNode",
    "closing_of",
    "keys_of",
    "not_connected",
    "parse_acquired",
    "parse_done",
    "parse_done_again",
    "parse_membership",
    "reason_of",
]

T = TypeVar("T")

_WAITERS_SHOWN_MAX = 1000
_NO_GRANT = "none"
_ASK = "ask"


class ScriptedNode(ABC):
    """A lock node whose decisions are made by the Lua scripts; a script's header is its contract.

    Args:
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
    """

    def __init__(self, *, inbox: str, namespace: Namespace) -> None:
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
    def abandon(self) -> None:
        """Close the sockets after the event loop was closed around them; send nothing."""

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
            closing_of(request),
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

    def still_holds(self, resource: Resource, grant: GrantId) -> asyncio.Future[Extended | NoVote]:
        """Run check.lua."""
        # Not "lone", as above.
        return self._run(CHECK, parse_extended, keys_of(self._namespace, resource).check, grant)

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "", at_least_ms: int = 0
    ) -> asyncio.Future[Done | NoVote]:
        """Run release.lua.

        The command is written in this iteration of the event loop or at the beginning of the next, before any
        task learns that the calling task has ended: the loop cannot be stopped in between.
        """
        keys = keys_of(self._namespace, resource).release
        inbox = self._inbox_of(resource)
        if at_least_ms:
            args = (grant, inbox, int(lost), seal, at_least_ms)
            return self._run(RELEASE, parse_done, keys, *args, lone=True)
        return self._run(RELEASE, parse_done, keys, grant, inbox, int(lost), seal, lone=True)

    def break_(
        self, resource: Resource, *, reason: str, token: Token, grant: str | None = None
    ) -> asyncio.Future[Broken | NoVote]:
        """Run break.lua to end the lease by force."""
        return self._break(parse_broken, resource, "force", reason, token, _expected(grant))

    def request_handover(
        self, resource: Resource, *, reason: str, grant: str | None = None
    ) -> asyncio.Future[Done | NoVote]:
        """Run break.lua to ask the holder for a hand-over."""
        return self._break(parse_asked, resource, _ASK, reason, 0, _expected(grant))

    def inspect(self, resource: Resource) -> asyncio.Future[Inspection | NoVote]:
        """Run inspect.lua."""
        keys = keys_of(self._namespace, resource).inspect
        return self._run(INSPECT, lambda reply: parse_inspected(resource, reply), keys, _WAITERS_SHOWN_MAX)

    def history(self, resource: Resource, limit: int) -> asyncio.Future[tuple[str, ...] | NoVote]:
        """Run history.lua."""
        return self._run(HISTORY, parse_lines, keys_of(self._namespace, resource).history, limit)

    def _inbox_of(self, resource: Resource) -> str:  # noqa: ARG002 - one channel per process by default
        return self._inbox

    def _break(
        self, decode: Callable[[Any], T], resource: Resource, how: str, reason: str, token: int, grant: str
    ) -> asyncio.Future[T | NoVote]:
        return self._run(BREAK, decode, keys_of(self._namespace, resource).break_, how, reason, token, grant)


def _expected(grant: str | None) -> str:
    return "" if grant is None else grant or _NO_GRANT


def not_connected(name: str, fault: Exception) -> str:
    """That a server is not connected, and what to do, in one line."""
    cause = str(fault)
    remedy = or_check(cause).removeprefix(cause)  # a refusal has its own
    return f"Redis at {name} is not connected ({cause}){remedy}"


_BY_OTHERS = {BREAK: "an operator", INSPECT: "a viewer", HISTORY: "a viewer"}
"""Who runs a script that is for others than bots too."""


def reason_of(script: Script, keys: tuple[str, ...], args: tuple[str | int, ...], fault: Exception) -> str:
    """Why a server refused a script that was sent with these keys and arguments, in one line."""
    told = str(fault)
    if "WRONGTYPE" in told:  # Redis does not say which
        told = (
            "a key of this lock holds a value of another kind, so something else writes there; look at the"
            f" TYPE of {printable(keys[0])} and {printable(keys[0])}:*, and delete what differs from"
            " docs/reference/redis-keys.md"
        )
    asked = _ASK if script is BREAK and args[:1] == (_ASK,) else script.name
    return with_rights(asked, told, _BY_OTHERS.get(script, "a bot"))


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one resource, in the order that each script expects."""

    acquire: tuple[str, ...]
    settle: tuple[str, ...]
    extend: tuple[str, ...]
    check: tuple[str, ...]
    release: tuple[str, ...]
    break_: tuple[str, ...]
    inspect: tuple[str, ...]
    rejoin: tuple[str, ...]
    history: tuple[str, ...]


@lru_cache(maxsize=4096)
def keys_of(namespace: Namespace, resource: Resource) -> Keys:
    """The keys of a resource; they share a hash tag, so they are in one slot of a cluster."""
    lock = f"{namespace}:{{{resource}}}"
    floor, queue, inboxes = f"{lock}:token", f"{lock}:queue", f"{lock}:inboxes"
    following, tenure, history = f"{lock}:next", f"{lock}:tenure", f"{lock}:history"
    seal, waiting = f"{lock}:seal", f"{lock}:waiting"
    return Keys(
        acquire=(lock, floor, queue, inboxes, following, tenure, history, seal, waiting),
        settle=(lock, floor),
        extend=(lock, tenure, seal),
        check=(lock,),
        release=(lock, queue, inboxes, following, tenure, history, seal, waiting),
        break_=(lock, floor, tenure, history, queue, inboxes, following, waiting),
        inspect=(lock, floor, queue, inboxes, tenure, waiting),
        rejoin=(lock, floor, history, tenure),
        history=(lock, history),
    )


def closing_of(wanted: AcquireRequest | Grant) -> str | int:
    """ARGV[7] of acquire.lua and of rejoin.lua: how long the resource is to stay closed."""
    if wanted.at_least_ms:
        return f"{wanted.lock_delay_ms} {wanted.at_least_ms}"
    return wanted.lock_delay_ms


# What each script's reply means.

_FOUND, _NOT_FOUND = Done(found=True), Done(found=False)
_TOKEN_END = 2**63
"""As Postgres has numbers."""
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What decoding a reply raises that no script of ours has given."""


def parse_acquired(reply: list[Any]) -> AcquireVote:
    """Decode a reply of acquire.lua."""
    # Compared by type: a text that begins with the right byte, or RESP3's true, is no answer of the script's.
    kind = reply[0] if type(reply) is list else None
    if type(kind) is not int or not 0 <= kind <= 3:
        raise _not_of_the_script(reply)
    if kind == 1:
        token, seal = int(reply[1]), reply[3].decode("ascii", "replace") if reply[3] else ""
        if not 0 < token < _TOKEN_END:
            raise _not_of_the_script(reply)
        admission = reply[4].decode("ascii", "replace") if reply[4] else ""
        return Granted(Token(token), int(reply[2]), seal, admission)
    if kind == 3:
        return Quarantined(quarantine_ms=int(reply[1]))
    _, holder, operation, token, age_ms, retry_after_ms, *place = reply
    ticket, requeued = (int(place[0]), bool(place[1])) if place else (0, False)
    ahead = place[2] if len(place) > 2 else None
    return Busy(
        holder=decoded(holder),
        operation=decoded(operation),
        token=Token(int(token)),
        age_ms=int(age_ms),
        retry_after_ms=max(0, int(retry_after_ms)),
        ticket=ticket,
        requeued=requeued,
        queue_full=kind == 2,
        ahead=None if ahead is None else int(ahead),
    )


def _not_of_the_script(reply: object) -> ValueError:
    return ValueError(f"no reply of this script: {type(reply).__name__}")


def _one_of(reply: object, last: int) -> int:
    """A reply that is a whole number from 0 to ``last``: nothing else says that a lock is held."""
    if type(reply) is not int or not 0 <= reply <= last:
        raise _not_of_the_script(reply)
    return reply


def parse_done(reply: int) -> Done:
    """Decode a reply of settle.lua, release.lua or rejoin.lua."""
    if type(reply) is int and 0 <= reply <= 2:  # 2: rejoin.lua has a node that may not vote yet
        return _FOUND if reply == 1 else _NOT_FOUND
    raise _not_of_the_script(reply)


def parse_done_again(reply: int) -> Done:
    """Decode a reply of release.lua that was sent a second time."""
    return Done(found=_one_of(reply, 1) == 1, repeated=True)


def parse_extended(reply: int) -> Extended:
    """Decode a reply of extend.lua or check.lua."""
    told = _one_of(reply, 2)
    return Extended(held=told != 0, wanted=told == 2)


def parse_asked(reply: list[Any]) -> Done:
    """Decode a reply of break.lua to a request for a hand-over."""
    return Done(found=bool(reply[0]) and not reply[3])


def parse_broken(reply: list[Any]) -> Broken:
    """Decode a reply of break.lua."""
    return Broken(decoded(reply[0]), decoded(reply[1]), Token(int(reply[2])), kept=bool(reply[3]))


def parse_inspected(resource: Resource, reply: list[Any]) -> Inspection:
    """Decode a reply of inspect.lua."""
    grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, flat, *others = reply
    closed_ms, wanted, now_ms = others
    waiters = []
    for member, ticket, silent_ms, who, waiting_ms in zip(*(flat[at::5] for at in range(5)), strict=True):
        waiting, _, inbox = decoded(member).partition(" ")
        waiter, _, purpose = decoded(who).partition(" ")
        waiters.append(Waiter(waiting, inbox, int(ticket), silent_ms, waiter, purpose, waiting_ms))
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
        closed_ms=closed_ms,
        wanted=decoded(wanted),
        server_ms=now_ms,
    )


def parse_lines(reply: list[bytes]) -> tuple[str, ...]:
    """Decode a reply of history.lua."""
    return tuple(decoded(line) for line in reply)


def parse_membership(reply: list[Any]) -> Membership:
    """Decode a reply of admit.lua."""
    state, quarantine_ms, ttl_max_ms, nodes, loss, admission = reply
    return Membership(
        known=state > 0,
        member=state == 2,
        quarantine_ms=quarantine_ms,
        ttl_max_ms=ttl_max_ms,
        nodes=nodes,
        loss=decoded(loss),
        admission=decoded(admission),
    )
