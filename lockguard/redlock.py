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
  A and B give 11, later B and C give 7). The lease's token stands on a majority while the lock is held there:
  mostly because they gave the token that was proposed, otherwise because the highest one was written there in
  a second round. Each node gives only what is higher than all before, and any later majority shares one with
  this one, so the next token is higher. With one node its token is final as it is.
* A node that may have forgotten a lock gives no vote until that lock has ended (``company.py``); a holder
  that has just renewed on a majority puts its lease back on the others.
* A node that did not answer in time is not waited for again until it has caught up.

A lease lives on a majority of clocks that may be wrong, and on servers that may lose their data. What makes
it safe all the same is the fence (see ``ports.Fence``); the lock gives order and efficiency.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lockguard._ballot import Ballot, Bound, Poll, Proposals, spoken, vote_of
from lockguard._clock import Clock
from lockguard._company import Company
from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard._quorum import majority, may_be_most, trusted_s
from lockguard.errors import NodeError, NodeUnknown
from lockguard.ports import (
    AcquireRequest,
    AcquireVote,
    Broken,
    Busy,
    Done,
    Extended,
    Granted,
    Inspection,
    LockNode,
    NoVote,
    Outsider,
    Refused,
    Unknown,
)

if TYPE_CHECKING:
    from asyncio import Future

__all__ = [
    "Attempt",
    "Contended",
    "Extension",
    "Found",
    "NoQuorum",
    "Redlock",
    "Renewal",
    "Undoing",
    "Won",
    "prevailing",
    "thrown_out",
]

T = TypeVar("T")

_WOKEN_MAX = 1_000

ANSWER_S = 2.5
"""How long one node that decides alone may owe an answer: longer than its wire's patience, so that the wire
can say why. It bounds what a node makes of a command behind the wire, such as looking for a slot's owner."""

_ANSWER_MIN_S = 0.5
"""How long a node may take to answer however short a caller's patience is."""

_CLOSE_S = 5.0
"""How long all nodes may take to send what is queued and close."""


@dataclass(slots=True)
class Won:
    """The lock is held.

    Attributes:
        token: the settled token.
        deadline: the instant on the clock, in seconds, until which it may be trusted.
        seal: what the nodes remember of the resource's last seal, see :class:`~lockguard.ports.Sealed`.
    """

    token: Token
    deadline: float
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Contended:
    """Somebody else is in the way.

    Attributes:
        busy: what the most informed node said.
        one_place: whether all nodes gave the caller the same place in their queues.
    """

    busy: Busy
    one_place: bool = True


@dataclass(frozen=True, slots=True)
class NoQuorum:
    """Nobody can say who holds the lock.

    Attributes:
        votes: node name to its answer.
    """

    votes: dict[str, str]


Attempt: TypeAlias = Won | Contended | NoQuorum

Undoing: TypeAlias = "Poll[Done | NoVote] | Future[Done | NoVote]"
"""An undo on its way, for :meth:`Redlock.confirm`."""


class Renewal(Enum):
    """What an extend came to."""

    RENEWED = "renewed"
    REFUSED = "refused"
    """Too many nodes say that this grant does not hold the lock: it cannot be saved."""
    UNANSWERED = "unanswered"


class Found(Enum):
    """Whether a release found the lock held by its grant."""

    YES = "yes"
    NO = "no"
    """Certainly not. What a release that was sent again finds is no answer: it may find its own work done."""
    UNKNOWN = "unknown"


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
        nodes: one, or several independent ones (an odd number of :class:`~lockguard.ports.QuorumNode`).
        clock: for deadlines.
        node_timeout_s: with several nodes, how long one may delay the decision. A single node's patience is
            the wire's, because there is nobody else to decide without it.
    """

    def __init__(self, nodes: Sequence[LockNode], *, clock: Clock, node_timeout_s: float = 0.2) -> None:
        self.nodes = tuple(nodes)
        self._clock = clock
        self._quorum = majority(len(self.nodes))
        self._node_timeout_s = node_timeout_s
        self._company = Company(self.nodes) if len(self.nodes) > 1 else None
        self._ballot = Ballot(self.nodes, patience_s=node_timeout_s)
        self._bound = Bound(ANSWER_S, self._give_up)
        self._proposals = Proposals(clock, quorum=self._quorum)
        self._renewing: dict[GrantId, list[Future[Extended | NoVote]]] = {}

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback`` called with each waiter that enough nodes have woken; ``None``: all."""
        if self._company is None:
            self.nodes[0].on_wake(callback)
            return
        woken_by: dict[GrantId, set[LockNode]] = {}

        def count(node: LockNode, grant: GrantId | None) -> None:
            if grant is None:
                callback(None)
                return
            # Asking at the first wake-up would find the other nodes still held, and undo what this one gave.
            woken_by.setdefault(grant, set()).add(node)
            if len(woken_by[grant]) >= self._quorum:
                del woken_by[grant]
                callback(grant)
            elif len(woken_by) > _WOKEN_MAX:
                del woken_by[next(iter(woken_by))]

        for node in self.nodes:
            node.on_wake(partial(count, node))

    @property
    def ready(self) -> bool:
        """Whether enough nodes are connected to decide."""
        if self._company is None:
            return self.nodes[0].ready
        return sum(node.ready for node in self.nodes) >= self._quorum

    async def connect(self) -> None:
        """Connect to enough nodes to decide, or find out that it cannot be done now.

        With several nodes, one that cannot be reached costs nothing once the others are there; it goes on
        being tried until :meth:`aclose`.

        Raises:
            ConfigurationError: a node refused the log-in, or nodes are not independent.
        """
        if self._company is not None:
            await self._company.connect(enough=self._quorum, grace_s=self._node_timeout_s)
            return
        with contextlib.suppress(NodeError):
            await self.nodes[0].connect()

    async def acquire(self, request: AcquireRequest, *, give_up_at: float = math.inf) -> Attempt:
        """Ask once. Asking again with the same request is the same wish: no token is burned (S7).

        A caller that gives up after anything but :class:`Won`, or is cancelled here, calls :meth:`undo`.

        Args:
            request: what is wanted.
            give_up_at: the instant on the clock, in seconds, until which the nodes are waited for at most, if
                they were given a moment to answer; they have bounds of their own.

        Raises:
            ConfigurationError: nodes are not independent.
        """
        sent_at = self._clock.now()
        within_s = max(give_up_at - sent_at, _ANSWER_MIN_S)
        if self._company is not None:
            return await self._ask_company(self._company, request, within_s)
        # One node's vote is the decision, and the token that it gave is final.
        vote = await self._bound.expect(self.nodes[0].acquire(request), within_s)
        if isinstance(vote, Granted):
            deadline = sent_at + trusted_s(request.ttl_ms)
            if self._clock.now() < deadline:
                return Won(vote.token, deadline, vote.seal)
        elif isinstance(vote, Busy):
            return Contended(vote)
        return NoQuorum({self.nodes[0].name: spoken(vote)})

    async def _ask_company(self, company: Company, request: AcquireRequest, within_s: float) -> Attempt:
        rounds = company.rounds
        company.check_independence()
        company.note_ttl(request.ttl_ms)
        attempt = await self._ask(company, request)
        if isinstance(attempt, NoQuorum) and company.rounds != rounds:
            # New nodes are admitted when they are first asked: then ask again.
            await company.admitted(within_s=within_s)
            attempt = await self._ask(company, request)
        if isinstance(attempt, Contended) and not attempt.one_place:
            # Places that differ from node to node would have the nodes wake different waiters.
            return await self._ask(company, replace(request, ticket=attempt.busy.ticket))
        return attempt

    async def _ask(self, company: Company, request: AcquireRequest) -> Attempt:
        sent_at = self._clock.now()
        proposal = self._proposals.next()
        poll = self._ballot.poll(_is_granted)
        for index, node in enumerate(company.nodes):
            node.vote(request, proposal, poll.seat(index))
        # What comes after this has no vote, and is not sent again, behind its own undo (NOSCRIPT).
        await poll.wait()
        votes = poll.votes
        if poll.won:
            tokens = [vote.token for vote in votes if isinstance(vote, Granted)]
            self._proposals.note(votes, sent_at=sent_at)
            token = max(tokens, key=tokens.count)
            settled = tokens.count(token) >= self._quorum
            if not settled:
                token = max(tokens)
                settled = await self.settle(request, token)
            deadline = sent_at + trusted_s(request.ttl_ms)
            if settled and self._clock.now() < deadline:
                return Won(token, deadline, _newest(vote.seal for vote in votes if isinstance(vote, Granted)))
        self._undo_split(request, votes)
        held = [vote for vote in votes if isinstance(vote, Busy)]
        if held and len(self.nodes) - len(held) < self._quorum:
            # A node that was late or missed the settling shows another token: believe the many.
            shown = Counter(busy.token for busy in held)
            told = max(held, key=lambda busy: (shown[busy.token], busy.retry_after_ms))
            places = {busy.ticket for busy in held if busy.ticket}
            return Contended(replace(told, ticket=max(places, default=0)), one_place=len(places) < 2)
        return NoQuorum(poll.spoken())

    async def settle(self, request: AcquireRequest, token: Token) -> bool:
        """Write the final token on a majority, while this grant holds the lock there."""
        asked = [node.settle(request.resource, request.grant, token) for node in self.nodes]
        if self._company is None:
            return _is_found(await self._bound.expect(asked[0]))
        votes = await self._ballot.wait(asked, _is_found)
        return sum(vote is not None and _is_found(vote) for vote in votes) >= self._quorum

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Send a renewal to every node; give the futures to :meth:`tally` once they are done, or too late.

        Nodes that lost the lease get it back as soon as a majority has renewed it, unless it was undone
        meanwhile: then nobody would be left to remove it.
        """
        asked = [node.extend(grant.resource, grant.id, grant.ttl_ms, seal=grant.seal) for node in self.nodes]
        if self._company is None:
            return asked
        self._renewing[grant.id] = asked
        proven_until = self._clock.now() + trusted_s(grant.ttl_ms)
        wanting = dict(zip(asked, self._company.nodes, strict=True))

        def answered(_: object) -> None:
            held = sum(isinstance(vote := vote_of(future), Extended) and vote.held for future in asked)
            current = self._renewing.get(grant.id) is asked and self._clock.now() < proven_until
            if held < self._quorum or not current:
                return
            for future in [future for future in wanting if future.done()]:
                node = wanting.pop(future)
                if isinstance(vote := future.result(), Extended) and not vote.held:
                    node.rejoin(grant)

        for future in asked:
            future.add_done_callback(answered)
        return asked

    def tally(self, asked: Sequence[Future[Extended | NoVote]], *, sent_at: float, ttl_ms: int) -> Extension:
        """Count the answers to a renewal that was sent at ``sent_at``."""
        votes = [vote_of(future) for future in asked]
        extended = [vote for vote in votes if isinstance(vote, Extended)]
        held = [vote for vote in extended if vote.held]
        if len(held) >= self._quorum:
            return Extension(
                Renewal.RENEWED, sent_at + trusted_s(ttl_ms), wanted=any(vote.wanted for vote in held)
            )
        if len(self.nodes) - (len(extended) - len(held)) < self._quorum:
            return Extension(Renewal.REFUSED)
        return Extension(
            Renewal.UNANSWERED, cause="; ".join(spoken(v) for v in votes if not isinstance(v, Extended))
        )

    async def confirm(self, asked: Undoing) -> Found:
        """Wait for what :meth:`undo` sent; tells whether a majority still had the lock."""
        if isinstance(asked, Poll):
            await asked.wait()
            if asked.won:
                return Found.YES
            gone = sum(vote is not None and _found(vote) is False for vote in asked.votes)
            return Found.NO if gone >= self._quorum else Found.UNKNOWN
        vote = await self._bound.expect(asked)
        if isinstance(vote, Done) and vote.found:
            return Found.YES
        return Found.NO if _found(vote) is False else Found.UNKNOWN

    def undo(self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "") -> Undoing:
        """Remove the grant from every node: lock, reservation, queue. It has left when this returns.

        Needs no await, so that a cancelled task leaves nothing behind (S8).

        Args:
            resource: what it is for.
            grant: whose.
            lost: its lease ended under the body, so a lock delay begins now.
            seal: to be remembered.
        """
        if self._company is None:
            return self.nodes[0].release(resource, grant, lost=lost, seal=seal)
        self._renewing.pop(grant, None)
        poll: Poll[Done | NoVote] = self._ballot.poll(_found)
        for index, node in enumerate(self._company.nodes):
            node.leave(resource, grant, poll.seat(index), lost=lost, seal=seal)
        return poll

    async def ask_all(self, ask: Callable[[LockNode], Future[T]]) -> list[T | None]:
        """Ask every node the same; ``None`` for one that does not answer in time."""
        if self._company is None:
            answer = await self._bound.expect(ask(self.nodes[0]))
            return [answer]
        return await self._ballot.wait([ask(node) for node in self.nodes])

    async def aclose(self) -> None:
        """Close every node, in bounded time."""
        self._ballot.close()
        if self._company is not None:
            await self._company.aclose()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await asyncio.gather(*(node.aclose() for node in self.nodes))
        self._bound.close()  # by now they have answered everything

    def _give_up(self, asked: Future[Any], within_s: float) -> None:
        # An answer that comes later is dropped; its command stands.
        name = self.nodes[0].name
        text = f"{name}: no answer within {within_s:.3g} s"
        asked.set_result(Unknown(NodeUnknown(text, node=name)))

    def _undo_split(self, request: AcquireRequest, votes: Sequence[AcquireVote | None]) -> None:
        # A minority that we keep would block the others until its ttl. One node alone cannot split: its
        # unknown answer is resolved by asking again, and its queue must keep our place.
        if self._company is None:
            return
        for node, vote in zip(self.nodes, votes, strict=True):
            if not isinstance(vote, Busy | Refused | Outsider):
                node.release(request.resource, request.grant)


def _newest(seals: Iterable[str]) -> str:
    """The one with the highest token: a node may have missed the last."""
    return max(seals, key=lambda seal: int("0" + seal.rpartition(" ")[2]), default="")


def _is_granted(vote: AcquireVote) -> bool:
    return isinstance(vote, Granted)


def _is_found(vote: Done | NoVote) -> bool:
    return isinstance(vote, Done) and vote.found


def _found(vote: Done | NoVote) -> bool | None:
    # Who does not know is waited past: that the lock is gone must be said by a majority.
    if not isinstance(vote, Done) or (vote.repeated and not vote.found):
        return None
    return vote.found


def prevailing(seen: Sequence[Inspection], *, nodes: int) -> Inspection:
    """What answers of ``nodes`` nodes come to: a grant that a majority shows, or may show, holds it.

    What only a minority shows holds nothing: a release returns before it has reached every node.
    """
    holding = Counter(inspection.grant for inspection in seen if inspection.held)
    for grant, count in holding.most_common(1):
        if may_be_most(count, answers=len(seen), nodes=nodes):
            shown = [inspection for inspection in seen if inspection.grant == grant]
            tokens = Counter(inspection.token for inspection in shown)
            return max(shown, key=lambda inspection: (tokens[inspection.token], inspection.token))
    last = max(seen, key=lambda inspection: (not inspection.held, inspection.token))
    return replace(
        last, held=False, grant="", holder="", operation="", age_ms=0, remaining_ms=0, ttl_ms=0, renewals=0
    )


def thrown_out(broken: Sequence[Broken]) -> Broken:
    """What a break on several nodes came to: the holder that most of them had, and the highest floor."""
    shown = Counter(each.grant for each in broken)
    told = max(broken, key=lambda each: (bool(each.grant), shown[each.grant]))
    return replace(told, token=max(each.token for each in broken))
