"""The Redlock algorithm: one lock kept by several independent nodes, of which a majority decides.

A grant is won when a majority of the nodes granted it and enough of its ttl is left. Any two majorities
have a node in common, so two grants cannot both be won while both are alive.

What each rule prevents:

* All nodes are asked at once and the validity counts from before the first send. Counting from a reply
  would trust the lease for longer than the first node keeps it.
* The caller is answered as soon as a majority for or against is certain; a slow node delays no caller.
* An acquire that is not won is undone on every node that granted it or may have, also on those that have not
  answered: the release is queued behind it on the same connection, so it finds what the acquire left.
* A node that did not answer, or answered with an error, is never counted as a yes.
* The token is settled: a maximum over counters alone does not increase (10, 5, 5: nodes A and B give 11,
  later B and C give 7). The lease's token stands on a majority while the lock is held there: mostly because
  these nodes gave the token that was proposed, otherwise because the highest one was written there in a
  second round. Each node gives only tokens higher than all before, and any later majority has a node in
  common with this one, so the next token is higher.
* A node that may have forgotten a lock gives no vote until that lock has ended (``_membership.py``); a holder
  that has just renewed on a majority puts its lease back on the others.
* Votes from before and after an admission do not count together: the nodes are asked again. The admission did
  not know of a lease that a node had still to grant.
* A node that did not answer in time is not waited for again until it has caught up.

A lease relies on a majority of clocks that may be wrong, and on servers that may lose their data. What makes
it safe all the same is the fence (see ``ports.Fence``); the lock gives order and efficiency.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from lockguard._asking import AskedOfSeveral
from lockguard._locks import (
    ANSWER_MIN_S,
    Acquisition,
    Contended,
    Found,
    NoQuorum,
    Releasing,
    Won,
    close_nodes,
)
from lockguard._membership import Members, together
from lockguard._quorum import found, majority, trusted_s, vote_of
from lockguard._rounds import Round, Rounds
from lockguard.ports import (
    AcquireRequest,
    AcquireVote,
    Busy,
    Done,
    Extended,
    Granted,
    LockNode,
    NotExecuted,
    NoVote,
    Quarantined,
)

if TYPE_CHECKING:
    from asyncio import Future

    from lockguard._clock import Clock
    from lockguard._lease import Grant, GrantId, Resource, Token

__all__ = ["Acquisition", "Contended", "Found", "NoQuorum", "Redlock", "Releasing", "Won"]

T = TypeVar("T")

_WOKEN_MAX = 1_000

_HEADSTART_US_MIN = 3_000
"""The least lead of a proposed token over a node's clock: the trip there uses up some of it."""

_HEADSTART_US_MAX = 50_000

_SKEW_US_MAX = 100_000


class Redlock:
    """The locks that several independent nodes keep, see :class:`~lockguard._locks.Locks`.

    Args:
        nodes: an odd number of :class:`~lockguard.ports.QuorumNode`.
        clock: for deadlines.
        node_timeout_s: how long one node may delay a decision, in seconds.

    Raises:
        ConfigurationError: a node cannot decide together with others.
    """

    def __init__(self, nodes: Sequence[LockNode], *, clock: Clock, node_timeout_s: float = 0.2) -> None:
        self._members = Members(nodes)
        self.nodes = self._members.nodes
        """The nodes, in the order in which they were given."""
        self._asked = [AskedOfSeveral(node) for node in self.nodes]
        self._clock = clock
        self._quorum = majority(len(self.nodes))
        self._node_timeout_s = node_timeout_s
        self._rounds = Rounds(self.nodes, patience_s=node_timeout_s)
        self._proposals = Proposals(clock, quorum=self._quorum)
        self._renewing: dict[GrantId, list[Future[Extended | NoVote]]] = {}
        self._rejoining: dict[GrantId, set[Future[Done | NoVote]]] = {}
        self._admissions: dict[int, str] = {}

    @property
    def ready(self) -> bool:
        """Whether enough nodes are connected to decide."""
        return sum(node.ready for node in self.nodes) >= self._quorum

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback`` called with each waiter that a majority has woken; ``None``: all."""
        woken_by: dict[GrantId, set[LockNode]] = {}

        def count(node: LockNode, grant: GrantId | None) -> None:
            if grant is None:
                callback(None)
                return
            # Asking at the first wake-up would find other nodes still held, and undo what this one gave.
            woken_by.setdefault(grant, set()).add(node)
            if len(woken_by[grant]) >= self._quorum:
                del woken_by[grant]
                callback(grant)
            elif len(woken_by) > _WOKEN_MAX:
                del woken_by[next(iter(woken_by))]

        for node in self.nodes:
            node.on_wake(partial(count, node))

    async def connect(self) -> None:
        """Connect to enough nodes to decide; returns also if that is not possible now.

        A node that cannot be reached costs nothing once the others are connected; attempts go on until
        :meth:`aclose`.

        Raises:
            ConfigurationError: too many nodes refused the log-in, or nodes are not independent.
        """
        await self._members.connect(enough=self._quorum, grace_s=self._node_timeout_s)

    async def acquire(self, request: AcquireRequest, *, give_up_at: float = math.inf) -> Acquisition:
        """Ask once, see :meth:`Locks.acquire`.

        Raises:
            ConfigurationError: nodes are not independent.
        """
        members = self._members
        within_s = max(give_up_at - self._clock.now(), ANSWER_MIN_S)
        admissions = members.admissions
        members.check_independence()
        members.note_ttl(request.ttl_ms)
        outcome = await self._ask(request)
        if isinstance(outcome, NoQuorum) and members.admissions != admissions:
            # New nodes are admitted when they are first asked: then ask again.
            await members.admitted(within_s=within_s)
            outcome = await self._ask(request)
        if isinstance(outcome, Contended) and not outcome.one_place:
            # Places that differ from node to node would have the nodes wake different waiters.
            return await self._ask(replace(request, ticket=outcome.busy.ticket))
        return outcome

    async def _ask(self, request: AcquireRequest) -> Acquisition:
        left = len(self.nodes)  # each time the admission of one more node is known at least
        while True:
            left -= 1
            sent_at, known = self._clock.now(), self._admissions.copy()
            proposal = self._proposals.next()
            round_ = self._rounds.begin(_is_granted)
            for index, node in enumerate(self.nodes):
                node.acquire_into(request, proposal, round_.slot(index))
            # A vote after this does not count, nor is its command sent again (NOSCRIPT), behind its own undo.
            await round_.wait()
            votes = round_.votes
            last = {index: vote.admission for index, vote in enumerate(votes) if isinstance(vote, Granted)}
            self._admissions.update(last)
            won = round_.won and together(last, known)
            if won or not round_.won or not left:
                break
        if won:
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
            # A node that was late or missed the settling shows another token: take the most frequent one.
            shown = Counter(busy.token for busy in held)
            told = max(held, key=lambda busy: (shown[busy.token], busy.retry_after_ms))
            places = {busy.ticket for busy in held if busy.ticket}
            # What one node says of its queue (a lost place, waiters ahead) says nothing of the others'.
            told = replace(told, ticket=max(places, default=0), requeued=False, ahead=None)
            return Contended(told, one_place=len(places) < 2)
        return NoQuorum(round_.described())

    def ask_again_s(self) -> float:
        """After how long a waiter that was not woken asks again by itself, in seconds."""
        # Nodes may have woken different waiters: then only asking helps, and not all at the same time.
        return random.uniform(0.05, 0.15)  # noqa: S311 - not a secret

    async def settle(self, request: AcquireRequest, token: Token) -> bool:
        """Write the final token on a majority, while this grant holds the lock there."""
        asked = [node.settle(request.resource, request.grant, token) for node in self.nodes]
        votes = await self._rounds.collect(asked, _was_found)
        return sum(vote is not None and _was_found(vote) for vote in votes) >= self._quorum

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Send a renewal to every node.

        Nodes that lost the lease get it back as soon as a majority has renewed it, unless it was released
        meanwhile: then nothing would remove it again.
        """
        asked = [node.extend(grant) for node in self._asked]
        self._renewing[grant.id] = asked
        proven_until = self._clock.now() + trusted_s(grant.ttl_ms)
        wanting = dict(zip(asked, self._asked, strict=True))

        def answered(_: object) -> None:
            held = sum(isinstance(vote := vote_of(future), Extended) and vote.held for future in asked)
            current = self._renewing.get(grant.id) is asked and self._clock.now() < proven_until
            if held < self._quorum or not current:
                return
            for future in [future for future in wanting if future.done()]:
                node = wanting.pop(future)
                if isinstance(vote := vote_of(future), Extended) and not vote.held:
                    rejoins = self._rejoining.setdefault(grant.id, set())
                    age_ms = max(0, int((self._clock.now() - grant.acquired_at) * 1000))
                    rejoins.add(asked_again := node.rejoin(grant, age_ms=age_ms))
                    asked_again.add_done_callback(rejoins.discard)

        for future in asked:
            future.add_done_callback(answered)
        return asked

    def check(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Ask every node whether the grant holds its lock there. A renewal mends what a minority lost."""
        return [node.check(grant) for node in self._asked]

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "", at_least_ms: int = 0
    ) -> Releasing:
        """Remove the grant from every node, see :meth:`Locks.release`."""
        self._renewing.pop(grant, None)
        for rejoin in tuple(self._rejoining.pop(grant, ())):
            rejoin.cancel()  # or it might be sent again (NOSCRIPT, another connection) behind the release
        round_: Round[Done | NoVote] = self._rounds.begin(found)
        # A node of the user's own may have been written before there was an ``at_least``.
        closing = {"at_least_ms": at_least_ms} if at_least_ms else {}
        for index, node in enumerate(self.nodes):
            node.release_into(resource, grant, round_.slot(index), lost=lost, seal=seal, **closing)
        return partial(self._found, round_)

    async def ask_all(self, ask: Callable[[LockNode], Future[T]]) -> list[T | None]:
        """Ask every node the same; ``None`` for one that does not answer in time."""
        return await self._rounds.collect([ask(node) for node in self.nodes])

    async def aclose(self) -> None:
        """Close every node, in bounded time."""
        self._rounds.close()
        await self._members.aclose()
        await close_nodes(self.nodes)

    async def _found(self, round_: Round[Done | NoVote]) -> Found:
        """Whether a majority still had the lock; that it is gone must be said by a majority too."""
        await round_.wait()
        if round_.won:
            return Found.YES
        gone = sum(found(vote) is False for vote in round_.votes)
        return Found.NO if gone >= self._quorum else Found.UNKNOWN

    def _undo_split(self, request: AcquireRequest, votes: Sequence[AcquireVote | None]) -> None:
        # A minority that we keep would block other callers until its ttl.
        for node, vote in zip(self.nodes, votes, strict=True):
            if not isinstance(vote, Busy | NotExecuted | Quarantined):
                node.release(request.resource, request.grant)


def _newest(seals: Iterable[str]) -> str:
    """The seal with the highest token: a node may have missed the last one."""
    return max(seals, key=lambda seal: int("0" + seal.rpartition(" ")[2]), default="")


def _is_granted(vote: AcquireVote) -> bool:
    return isinstance(vote, Granted)


def _was_found(vote: Done | NoVote) -> bool:
    return found(vote) is True


class Proposals:
    """Proposes tokens a little ahead of the nodes' clocks: if a majority gives one, it is settled.

    A proposal is only a hint. A node gives a higher token if its own last one, or its clock, is higher; then
    the highest is settled in a second round.

    Args:
        clock: the local clock.
        quorum: how many nodes' clocks must be known.
    """

    def __init__(self, clock: Clock, *, quorum: int) -> None:
        self._clock = clock
        self._quorum = quorum
        self._lead_us: dict[int, int] = {}
        self._headstart_us = _HEADSTART_US_MIN

    def note(self, votes: Sequence[AcquireVote | None], *, sent_at: float) -> None:
        """Learn how far the nodes' clocks are ahead of ours, and how long the trip there may take."""
        now_us = int(self._clock.now() * 1e6)
        # The lead that is learnt is short by the trip back, and the next trip there comes on top.
        trip_us = now_us - int(sent_at * 1e6)
        self._headstart_us = max(_HEADSTART_US_MIN, min(2 * trip_us, _HEADSTART_US_MAX))
        for index, vote in enumerate(votes):
            if isinstance(vote, Granted) and vote.server_us:
                self._lead_us[index] = vote.server_us - now_us

    def next(self) -> int:
        """The token to propose now; 0 while too little is known."""
        if len(self._lead_us) < self._quorum:
            return 0
        leads_us = sorted(self._lead_us.values())
        common_us = leads_us[len(leads_us) // 2]
        # One clock that is far ahead must not pull all tokens along.
        lead_us = max(lead for lead in leads_us if lead - common_us < _SKEW_US_MAX)
        return int(self._clock.now() * 1e6) + lead_us + self._headstart_us
