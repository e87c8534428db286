"""A lock node that is one of several independent servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from lockguard._lease import Grant, GrantId, Resource
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address
from lockguard._nodes.login import ServerFacts
from lockguard._nodes.scripted import (
    closing_of,
    keys_of,
    parse_acquired,
    parse_done,
    parse_membership,
)
from lockguard._nodes.standalone import Call, StandaloneNode
from lockguard._scripts import ACQUIRE, ADMIT, EXTEND, REJOIN, RELEASE
from lockguard.ports import AcquireRequest, AcquireVote, Answer, Done, Membership, NoVote, Quarantined

__all__ = ["MemberNode"]

_OF_A_GRANT = (ACQUIRE, EXTEND, REJOIN, RELEASE)
"""Scripts whose first argument is a grant, and after which no earlier release of it may come."""

_LOOK = -1
_ASK = -2
_RUN = 9
"""The index of ``run`` among the arguments of acquire.lua."""


class MemberNode(StandaloneNode):
    """One of several servers of which a majority decides; see ``lockguard/_membership.py``.

    Args:
        address: the server.
        inbox: this process's wake-up channel.
        nodes: how many nodes decide together, including this one.
        namespace: the first part of every key.
        connect_timeout_s: the time limit for connecting and logging in.
        reply_timeout_s: how long the server may leave a reply outstanding.
    """

    def __init__(
        self,
        address: Address,
        *,
        inbox: str,
        nodes: int,
        namespace: Namespace = NAMESPACE,
        connect_timeout_s: float = 2.0,
        reply_timeout_s: float = 2.0,
    ) -> None:
        super().__init__(
            address,
            inbox=inbox,
            namespace=namespace,
            connect_timeout_s=connect_timeout_s,
            reply_timeout_s=reply_timeout_s,
        )
        self._alone = False
        self._nodes = nodes
        self._member = f"{namespace}:member"
        self._identified: ServerFacts | None = None
        self._server_ids: frozenset[str] = frozenset()
        self._admission_needed: Callable[[], None] = lambda: None
        self._undoing: WeakValueDictionary[str | int, Call] = WeakValueDictionary()

    @property
    def server_ids(self) -> frozenset[str]:
        """Ids that no independent server shares: its run id and its replication id; empty if unknown."""
        if self._identified is not self._facts:
            self._identified = self._facts
            self._server_ids = frozenset(filter(None, [self._facts.run_id, self._facts.replication_id]))
        return self._server_ids

    def on_admission_needed(self, callback: Callable[[], None]) -> None:
        """Register ``callback()`` to be called when the node must be admitted."""
        self._admission_needed = callback

    def acquire(self, request: AcquireRequest) -> asyncio.Future[AcquireVote]:
        """Run acquire.lua, which checks whether the server may vote."""
        future: asyncio.Future[AcquireVote] = asyncio.get_running_loop().create_future()
        self.acquire_into(request, 0, future)
        return future

    def acquire_into(self, request: AcquireRequest, proposal: int, answer: Answer) -> None:
        """Run acquire.lua for ``answer``; ``proposal``: the token or ticket asked of all nodes, or 0."""
        args = (
            request.grant,
            request.ttl_ms,
            request.holder,
            request.operation,
            self._inbox if request.queue else "",
            request.ticket,
            closing_of(request),
            request.history,
            proposal,
            self._facts.run_id,
            self._nodes,
        )
        keys = (*keys_of(self._namespace, request.resource).acquire, self._member)
        self.run(ACQUIRE, self._acquired, keys, *args, lone=True, answer=answer)

    def release_into(
        self,
        resource: Resource,
        grant: GrantId,
        answer: Answer,
        *,
        lost: bool = False,
        seal: str = "",
        at_least_ms: int = 0,
    ) -> None:
        """Run release.lua for ``answer``."""
        keys = keys_of(self._namespace, resource).release
        args: tuple[str | int, ...] = (grant, self._inbox, int(lost), seal)
        if at_least_ms:
            args = (*args, at_least_ms)
        self.run(RELEASE, parse_done, keys, *args, lone=True, answer=answer)

    def rejoin(self, grant: Grant, *, age_ms: int) -> asyncio.Future[Done | NoVote]:
        """Run rejoin.lua to restore a lease that is held on other nodes."""
        keys = (*keys_of(self._namespace, grant.resource).rejoin, self._member)
        told = (grant.id, grant.token, grant.holder, grant.operation, grant.ttl_ms)
        args = (*told, self._facts.run_id, closing_of(grant), age_ms)
        return self._run(REJOIN, self._rejoined, keys, *args)

    def membership(
        self, *, admission: str = "", after: str | None = None
    ) -> asyncio.Future[Membership | NoVote]:
        """Run admit.lua without admitting the node."""
        args = (self._facts.run_id, _LOOK if after is None else _ASK, 0, admission, after or "", self.name)
        return self._run(ADMIT, parse_membership, (self._member,), *args)

    def admit(
        self, *, quarantine_ms: int, ttl_max_ms: int, admission: str, loss: str
    ) -> asyncio.Future[Membership | NoVote]:
        """Run admit.lua to admit the node, unless it is a member or has had another loss."""
        args = (self._facts.run_id, quarantine_ms, ttl_max_ms, admission, loss, self.name)
        return self._run(ADMIT, parse_membership, (self._member,), *args)

    def send_call(self, call: Call, *, lone: bool = False) -> None:
        """Send a call by its script's SHA; see :meth:`run`.

        A caller whose votes were split undoes them, and asks again with the same grant. An undo that was
        refused for a moment must not be sent again behind that question. It would take the vote away: two
        could hold the lock.
        """
        if call.script in _OF_A_GRANT and self.ready:
            undo = self._undoing.pop(call.args[0], None)
            if undo is not None and undo is not call:
                undo.withdraw()
            if call.script is RELEASE:
                self._undoing[call.args[0]] = call
        super().send_call(call, lone=lone)

    def _send_text(self, call: Call) -> None:
        if call.script is ACQUIRE:
            # A server that restarted with older data would vote if it were told its id of before.
            call.args = (*call.args[:_RUN], self._facts.run_id, *call.args[_RUN + 1 :])
        super()._send_text(call)

    def _connected(self, *, again: bool) -> None:
        super()._connected(again=again)
        if again:
            # The server may have restarted. While a lock is held there, no acquire would notice that.
            self._admission_needed()

    def _rejoined(self, reply: int) -> Done:
        if reply == 2:
            self._admission_needed()
        return Done(found=reply != 0)

    def _acquired(self, reply: list[Any]) -> AcquireVote:
        vote = parse_acquired(reply)
        if isinstance(vote, Quarantined) and not vote.quarantine_ms:
            # Reported here and not through the vote, which the caller may have decided without.
            self._admission_needed()
        return vote
