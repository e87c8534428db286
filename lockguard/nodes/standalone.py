"""A lock node that is one Redis or Valkey server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import hiredis

from lockguard.errors import NodeRefused, NodeUnknown
from lockguard.lease import GrantId, Resource, Token
from lockguard.lua import ACQUIRE, BREAK, EXTEND, INSPECT, RELEASE, SETTLE, Script
from lockguard.nodes.address import Address
from lockguard.nodes.connection import Connection
from lockguard.nodes.wire import Cut, NotSent, Reply
from lockguard.ports import (
    AcquireRequest,
    AcquireVote,
    Broken,
    Busy,
    Done,
    Extended,
    Granted,
    Inspection,
    NoVote,
    Refused,
    Unknown,
    Waiter,
)

__all__ = ["StandaloneNode"]

T = TypeVar("T")
_WAITERS_SHOWN_MAX = 1000


class StandaloneNode:
    """Keeps locks in one server.

    Args:
        address: the server.
        inbox: this process's wake-up channel.
        namespace: the first part of every key.
        connect_timeout_s: for connecting and logging in.
        reply_timeout_s: how long the server may owe a reply.
    """

    def __init__(
        self,
        address: Address,
        *,
        inbox: str,
        namespace: str = "lockguard",
        connect_timeout_s: float = 2.0,
        reply_timeout_s: float = 2.0,
    ) -> None:
        self._namespace = namespace
        self._inbox = inbox
        self._wake: Callable[[GrantId | None], None] = lambda _: None
        self._connection = Connection(
            address,
            inbox=inbox,
            on_message=lambda payload: self._wake(GrantId(payload.decode())),
            on_reconnect=lambda: self._wake(None),
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
        )

    def __repr__(self) -> str:
        return f"<StandaloneNode {self.name}>"

    @property
    def name(self) -> str:
        """Host, port and database; no credentials."""
        return self._connection.address.name

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback`` called with the grant of each waiter that the server wakes; ``None``: all."""
        self._wake = callback

    @property
    def ready(self) -> bool:
        """Whether commands go out now."""
        return self._connection.ready

    async def connect(self) -> None:
        """Be ready to send.

        Raises:
            NodeRefused: the server cannot be reached.
            ConfigurationError: it refuses the log-in.
        """
        if not self._connection.ready:
            await self._connection.connect()

    async def aclose(self) -> None:
        """Send what is queued, then close."""
        await self._connection.aclose()

    def acquire(self, request: AcquireRequest) -> asyncio.Future[AcquireVote]:
        """Run acquire.lua."""
        return self._run(
            ACQUIRE,
            _acquired,
            _keys(self._namespace, request.resource).acquire,
            request.grant,
            request.ttl_ms,
            request.holder,
            request.operation,
            self._inbox if request.queue else "",
            request.ticket,
            request.lock_delay_ms,
            lone=True,
        )

    def settle(self, resource: Resource, grant: GrantId, token: Token) -> asyncio.Future[Done | NoVote]:
        """Run settle.lua."""
        return self._run(SETTLE, _done, _keys(self._namespace, resource).settle, grant, token)

    def extend(self, resource: Resource, grant: GrantId, ttl_ms: int) -> asyncio.Future[Extended | NoVote]:
        """Run extend.lua."""
        # Not "lone": a guard renews all its leases in one turn of the loop, and they leave in one write.
        return self._run(EXTEND, _extended, _keys(self._namespace, resource).extend, grant, ttl_ms)

    def release(self, resource: Resource, grant: GrantId) -> asyncio.Future[Done | NoVote]:
        """Run release.lua.

        It is written in this turn of the loop or at the beginning of the next one, which comes before
        anybody is told that the calling task has ended: no loop can be stopped in between.
        """
        keys = _keys(self._namespace, resource).release
        return self._run(RELEASE, _done, keys, grant, self._inbox, lone=True)

    def break_(self, resource: Resource, *, reason: str, token: Token) -> asyncio.Future[Broken | NoVote]:
        """Run break.lua, by force."""
        return self._break(_broken, resource, "force", reason, token)

    def request_handover(self, resource: Resource, *, reason: str) -> asyncio.Future[Done | NoVote]:
        """Run break.lua, asking."""
        return self._break(lambda reply: Done(found=bool(reply[0])), resource, "ask", reason, 0)

    def inspect(self, resource: Resource) -> asyncio.Future[Inspection | NoVote]:
        """Run inspect.lua."""
        keys = _keys(self._namespace, resource).inspect
        return self._run(INSPECT, lambda reply: _inspected(resource, reply), keys, _WAITERS_SHOWN_MAX)

    def _break(
        self, decode: Callable[[Any], T], resource: Resource, how: str, reason: str, token: int
    ) -> asyncio.Future[T | NoVote]:
        return self._run(BREAK, decode, _keys(self._namespace, resource).break_, how, reason, token)

    def _run(
        self,
        script: Script,
        decode: Callable[[Any], T],
        keys: tuple[str, ...],
        *args: str | int,
        lone: bool = False,
    ) -> asyncio.Future[Any]:
        """Send a script by its SHA, and by its text if the server does not know it (L5)."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        send = self._connection.send

        def answered(reply: Reply) -> None:
            if future.done():
                return
            if not isinstance(reply, Exception):
                future.set_result(self._read(script, decode, reply))
            elif isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                # Not executed, so it may be sent again. Not for a cancelled caller, though (above): its
                # undo is already on its way and would be overtaken.
                send(answered, "EVAL", script.source, len(keys), *keys, *args)
            else:
                future.set_result(self._no_vote(script, reply))

        send(answered, "EVALSHA", script.sha, len(keys), *keys, *args, lone=lone)
        return future

    def _read(self, script: Script, decode: Callable[[Any], T], reply: Reply) -> T | Unknown:
        try:
            return decode(reply)
        except (ValueError, TypeError, IndexError) as exc:  # somebody else wrote to our keys
            text = f"{self.name}: {script.name}: unreadable reply {reply!r:.200}: {exc}"
            return Unknown(NodeUnknown(text, node=self.name))

    def _no_vote(self, script: Script, fault: Exception) -> NoVote:
        """An error is never a yes (S12)."""
        text = f"{self.name}: {script.name}: {fault}"
        if isinstance(fault, Cut):
            return Unknown(NodeUnknown(text, node=self.name))
        if isinstance(fault, NotSent):
            text = f"Redis at {self.name} is not connected ({fault}); check the URL and that the server runs"
        return Refused(NodeRefused(text, node=self.name))


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of one resource, in the order in which each script wants them."""

    acquire: tuple[str, ...]
    settle: tuple[str, ...]
    extend: tuple[str, ...]
    release: tuple[str, ...]
    break_: tuple[str, ...]
    inspect: tuple[str, ...]


@lru_cache(maxsize=4096)
def _keys(namespace: str, resource: Resource) -> _Keys:
    lock = f"{namespace}:{{{resource}}}"
    floor, queue, inboxes = f"{lock}:token", f"{lock}:queue", f"{lock}:inboxes"
    following, tenure, history = f"{lock}:next", f"{lock}:tenure", f"{lock}:history"
    return _Keys(
        acquire=(lock, floor, queue, inboxes, following, tenure, history),
        settle=(lock, floor),
        extend=(lock, tenure),
        release=(lock, queue, inboxes, following, tenure, history),
        break_=(lock, floor, tenure, history),
        inspect=(lock, floor, queue, inboxes),
    )


def _acquired(reply: list[Any]) -> AcquireVote:
    if reply[0] == 1:
        return Granted(Token(int(reply[1])))
    _, holder, operation, token, age_ms, retry_after_ms, *place = reply
    ticket, requeued = (int(place[0]), bool(place[1])) if place else (0, False)
    return Busy(
        holder=holder.decode(),
        operation=operation.decode(),
        token=Token(int(token)),
        age_ms=age_ms,
        retry_after_ms=max(0, retry_after_ms),
        ticket=ticket,
        requeued=requeued,
        queue_full=reply[0] == 2,
    )


def _done(reply: int) -> Done:
    return Done(found=reply == 1)


def _extended(reply: int) -> Extended:
    return Extended(held=reply != 0, wanted=reply == 2)


def _broken(reply: list[bytes]) -> Broken:
    return Broken(reply[0].decode(), reply[1].decode(), Token(int(reply[2])))


def _inspected(resource: Resource, reply: list[Any]) -> Inspection:
    grant, token, holder, operation, age_ms, remaining_ms, ttl_ms, renewals, flat = reply
    waiters = []
    for member, ticket, silent_ms in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        waiting, _, inbox = member.decode().partition(" ")
        waiters.append(Waiter(waiting, inbox, int(ticket), silent_ms))
    return Inspection(
        resource=resource,
        held=bool(grant),
        grant=grant.decode(),
        token=int(token),
        holder=holder.decode(),
        operation=operation.decode(),
        age_ms=age_ms,
        remaining_ms=remaining_ms,
        ttl_ms=ttl_ms,
        renewals=renewals,
        waiters=tuple(waiters),
    )
