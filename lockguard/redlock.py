"""The algorithm: one lock kept by N independent nodes, N = 1 being the ordinary case.

A grant is won when a majority of the nodes granted it and enough of its ttl is left. Any two majorities
have a node in common, so two grants cannot both be won while both are alive.

What each rule prevents:

* All nodes are asked at once and the validity counts from before the first send. Counting from a reply
  would trust the lease for longer than the first node keeps it.
* The caller is answered as soon as a majority for or against is certain; a slow node delays nobody.
* What is not won is undone on every node that granted or may have, also on those that have not answered:
  the undo is queued behind the acquire on the same connection, so it finds what the acquire left.
* A node that did not answer, or answered with an error, is never counted as a yes.
* With several nodes the token is settled: a maximum over counters alone does not increase (10, 5, 5: nodes
  A and B give 11, later B and C give 7). The highest token is written to a majority while the lock is held
  there, and the lease exists only then. With one node its token is final as it is.

A lease lives on a majority of clocks that may be wrong, and on servers that may lose their data. What makes
it safe all the same is the fence (see ``ports.Fence``); the lock gives order and efficiency.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from lockguard.clock import Clock
from lockguard.errors import NodeError
from lockguard.lease import Grant, GrantId, Resource, Token
from lockguard.ports import (
    AcquireRequest,
    AcquireVote,
    Busy,
    Done,
    Extended,
    Granted,
    LockNode,
    NoVote,
    Refused,
    Unknown,
)
from lockguard.quorum import majority, trusted_s

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["Attempt", "Contended", "Extension", "NoQuorum", "Redlock", "Renewal", "Won"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Won:
    """The lock is held.

    Attributes:
        token: the settled token.
        deadline: the instant on the clock, in seconds, until which it may be trusted.
    """

    token: Token
    deadline: float


@dataclass(frozen=True, slots=True)
class Contended:
    """Somebody else is in the way: what the most informed node said."""

    busy: Busy


@dataclass(frozen=True, slots=True)
class NoQuorum:
    """Nobody can say who holds the lock.

    Attributes:
        votes: node name to its answer.
    """

    votes: dict[str, str]


Attempt: TypeAlias = Won | Contended | NoQuorum


class Renewal(Enum):
    """What an extend came to."""

    RENEWED = "renewed"
    REFUSED = "refused"
    """Too many nodes say that this grant does not hold the lock: it cannot be saved."""
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Extension:
    """The tally of an extend."""

    renewal: Renewal
    deadline: float = 0.0
    wanted: bool = False
    cause: str = ""


class Redlock:
    """The lock over its nodes.

    Args:
        nodes: one, or an odd number of independent ones.
        clock: for deadlines.
        node_timeout_s: with several nodes, how long one may delay the decision. A single node's patience is
            the wire's, because there is nobody else to decide without it.
    """

    def __init__(self, nodes: Sequence[LockNode], *, clock: Clock, node_timeout_s: float = 0.2) -> None:
        self.nodes = tuple(nodes)
        self._clock = clock
        self._quorum = majority(len(self.nodes))
        self._node_timeout_s = node_timeout_s if len(self.nodes) > 1 else None

    @property
    def ready(self) -> bool:
        """Whether every node is connected."""
        return all(node.ready for node in self.nodes)

    async def connect(self) -> None:
        """Try to connect to every node. One that cannot be reached will vote so.

        Raises:
            ConfigurationError: a node refused the log-in.
        """
        if len(self.nodes) == 1:
            await _connect(self.nodes[0])
        else:
            await asyncio.gather(*map(_connect, self.nodes))

    async def acquire(self, request: AcquireRequest) -> Attempt:
        """Ask once. Asking again with the same request is the same wish: no token is burned (S7).

        A caller that gives up after anything but :class:`Won`, or is cancelled here, calls :meth:`undo`.
        """
        sent_at = self._clock.now()
        asked = [node.acquire(request) for node in self.nodes]
        try:
            await self._wait(asked, self._acquire_is_decided)
            votes = [_vote(future) for future in asked]
        finally:
            # What comes later has no vote, and must not be sent again, behind its own undo (NOSCRIPT).
            for future in asked:
                future.cancel()
        tokens = [vote.token for vote in votes if isinstance(vote, Granted)]
        if len(tokens) >= self._quorum:
            token = max(tokens)
            settled = len(self.nodes) == 1 or await self.settle(request, token)
            deadline = sent_at + trusted_s(request.ttl_ms)
            if settled and self._clock.now() < deadline:
                return Won(token, deadline)
        self._undo_split(request, votes)
        held = [vote for vote in votes if isinstance(vote, Busy)]
        if held and len(self.nodes) - len(held) < self._quorum:
            # A node that missed the settling shows another token: believe the many.
            tokens = [busy.token for busy in held]
            return Contended(max(held, key=lambda busy: (tokens.count(busy.token), busy.retry_after_ms)))
        return NoQuorum({node.name: _spoken(vote) for node, vote in zip(self.nodes, votes, strict=True)})

    async def settle(self, request: AcquireRequest, token: Token) -> bool:
        """Write the final token on a majority, while this grant holds the lock there."""
        asked = [node.settle(request.resource, request.grant, token) for node in self.nodes]
        await self._wait(asked, self._settle_is_decided)
        return self._settled(asked) >= self._quorum

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Send a renewal to every node; give the futures to :meth:`tally` once they are done, or too late."""
        return [node.extend(grant.resource, grant.id, grant.ttl_ms) for node in self.nodes]

    def tally(self, asked: Sequence[Future[Extended | NoVote]], *, sent_at: float, ttl_ms: int) -> Extension:
        """Count the answers to a renewal that was sent at ``sent_at``."""
        votes = [_vote(future) for future in asked]
        extended = [vote for vote in votes if isinstance(vote, Extended)]
        held = [vote for vote in extended if vote.held]
        if len(held) >= self._quorum:
            return Extension(
                Renewal.RENEWED, sent_at + trusted_s(ttl_ms), wanted=any(vote.wanted for vote in held)
            )
        if len(self.nodes) - (len(extended) - len(held)) < self._quorum:
            return Extension(Renewal.REFUSED)
        return Extension(
            Renewal.UNANSWERED, cause="; ".join(_spoken(v) for v in votes if not isinstance(v, Extended))
        )

    async def confirm(self, asked: Sequence[Future[Done | NoVote]]) -> bool:
        """Wait for what :meth:`undo` sent; tells whether a majority still had the lock."""
        await self._wait(asked, self._settle_is_decided)
        return self._settled(asked) >= self._quorum

    def undo(self, resource: Resource, grant: GrantId) -> list[Future[Done | NoVote]]:
        """Remove the grant from every node: lock, reservation, queue. It has left when this returns.

        Needs no await, so that a cancelled task leaves nothing behind (S8).
        """
        return [node.release(resource, grant) for node in self.nodes]

    async def aclose(self) -> None:
        """Close every node."""
        await asyncio.gather(*(node.aclose() for node in self.nodes))

    def _undo_split(self, request: AcquireRequest, votes: Sequence[AcquireVote | None]) -> None:
        # A minority that we keep would block the others until its ttl. One node alone cannot split: its
        # unknown answer is resolved by asking again, and its queue must keep our place.
        if len(self.nodes) == 1:
            return
        for node, vote in zip(self.nodes, votes, strict=True):
            if not isinstance(vote, Busy | Refused):
                node.release(request.resource, request.grant)

    async def _wait(self, asked: Sequence[Future[T]], decided: Callable[[Sequence[T]], bool]) -> None:
        """Until the votes decide, all are in, or the nodes' time is up."""
        if len(asked) == 1:
            await asked[0]
            return
        give_up_at = self._clock.now() + (self._node_timeout_s or 0.0)
        pending = set(asked)
        while pending and not decided([f.result() for f in asked if f.done()]):
            left_s = give_up_at - self._clock.now()
            if left_s <= 0:
                return
            _, pending = await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    def _acquire_is_decided(self, votes: Sequence[AcquireVote]) -> bool:
        granted = sum(isinstance(vote, Granted) for vote in votes)
        against = len(votes) - granted
        return granted >= self._quorum or len(self.nodes) - against < self._quorum

    def _settle_is_decided(self, votes: Sequence[Done | NoVote]) -> bool:
        done = sum(isinstance(vote, Done) and vote.found for vote in votes)
        return done >= self._quorum or len(self.nodes) - (len(votes) - done) < self._quorum

    def _settled(self, asked: Sequence[Future[Done | NoVote]]) -> int:
        return sum(isinstance(vote := _vote(f), Done) and vote.found for f in asked)


async def _connect(node: LockNode) -> None:
    with contextlib.suppress(NodeError):
        await node.connect()


def _vote(future: Future[T]) -> T | None:
    """The vote, or ``None`` while there is none."""
    return future.result() if future.done() and not future.cancelled() else None


def _spoken(vote: object) -> str:
    """A vote as text for people."""
    match vote:
        case None:
            return "no answer in time"
        case Granted(token):
            return f"granted with token {token}"
        case Busy(holder):
            return f"busy: {holder or 'reserved for a waiter'}"
        case Refused(error) | Unknown(error):
            return str(error)
        case _:
            return type(vote).__name__.lower()
