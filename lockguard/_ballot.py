"""Asking several nodes the same: waiting for enough of their votes, and having them give the same token.

What a slow node may cost is bounded twice: one question waits for it no longer than the node timeout, and the
next questions do not wait for it at all until it has caught up with what it owes.

What five nodes may cost the asker is bounded too: one object counts the votes of a question as they come and
wakes the asker once, when they decide. A future, a callback and a turn of the event loop for each node took
longer than the nodes did.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lockguard._clock import Clock
from lockguard._lease import Resource
from lockguard._quorum import majority
from lockguard.ports import AcquireVote, Busy, Granted, LockNode, Outsider, Refused, Unknown

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["Ballot", "Bound", "Poll", "Proposals", "Seat", "spoken", "vote_of"]

T = TypeVar("T")

_PROBE = Resource("lockguard-probe")

_HEADSTART_US_MIN = 3_000
"""How much later than a node's clock a proposed token is at least: the way there takes some of it."""

_HEADSTART_US_MAX = 50_000

_SKEW_US_MAX = 100_000

_NOT_WAITED_FOR = "not waited for: the others had decided"


class Ballot:
    """Waits for the votes of several nodes.

    Args:
        nodes: who is asked.
        patience_s: how long one may delay a decision.
    """

    def __init__(self, nodes: Sequence[LockNode], *, patience_s: float) -> None:
        self.nodes = tuple(nodes)
        self.quorum = majority(len(self.nodes))
        self.silent: set[int] = set()
        """Which nodes did not answer in time and have not caught up yet."""
        self._patience_s = patience_s
        # All polls have the same patience, so the first is the first to end: one timer serves all of them.
        self._open: dict[Poll[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def poll(self, is_yes: Callable[[T], bool | None] | None) -> Poll[T]:
        """One question; the nodes get its seats."""
        return Poll(self, is_yes)

    async def wait(
        self, asked: Sequence[Future[T]], is_yes: Callable[[T], bool] | None = None
    ) -> list[T | None]:
        """Count what futures give; gives what had come when they decided."""
        poll = self.poll(is_yes)
        for index, future in enumerate(asked):
            future.add_done_callback(poll.seat(index).take_from)
        await poll.wait()
        return poll.votes

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()

    def expect(self, poll: Poll[Any]) -> None:
        """Somebody waits for it now."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._patience_s
        self._open[poll] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)

    def forget(self, poll: Poll[Any]) -> None:
        """It is decided, or nobody waits for it any more."""
        self._open.pop(poll, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for poll, due in list(self._open.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            self._note_silence([index for index, vote in enumerate(poll.votes) if vote is None])
            poll.give_up()

    def _note_silence(self, indexes: Sequence[int]) -> None:
        for index in set(indexes) - self.silent:
            self.silent.add(index)
            # Its answer comes when all that the node owes has come, or the connection has ended.
            self.nodes[index].inspect(_PROBE).add_done_callback(partial(self._listen_again, index))

    def _listen_again(self, index: int, _: object) -> None:
        self.silent.discard(index)


class Seat(Generic[T]):
    """Where one node's vote goes; to the node it is as good as a future."""

    __slots__ = ("_index", "_poll")

    def __init__(self, poll: Poll[T], index: int) -> None:
        self._poll = poll
        self._index = index

    def done(self) -> bool:
        """Whether the vote comes too late."""
        return self._poll.closed

    def set_result(self, vote: T) -> None:
        """Vote."""
        self._poll.take(self._index, vote)

    def take_from(self, future: Future[T]) -> None:
        """Vote what a future gives."""
        if not future.cancelled():
            self._poll.take(self._index, future.result())


class Poll(Generic[T]):
    """One question to all nodes, and the votes that have come.

    Args:
        ballot: who is asked.
        is_yes: which votes are counted for, which against, and which (``None``) for neither; a majority for
            or against decides. Without it: only all of them.
    """

    __slots__ = ("_asker", "_ballot", "_is_yes", "_taken", "closed", "noes", "timed_out", "votes", "yeses")

    def __init__(self, ballot: Ballot, is_yes: Callable[[T], bool | None] | None) -> None:
        size = len(ballot.nodes)
        self._ballot = ballot
        self._is_yes = is_yes
        self._asker: Future[None] | None = None
        self._taken = 0
        self.votes: list[T | None] = [None] * size
        """What each node said; ``None``: nothing yet."""
        self.yeses = 0
        self.noes = 0
        self.closed = False
        """Whether it is decided, or given up: what comes later has no vote."""
        self.timed_out = False

    @property
    def won(self) -> bool:
        """Whether a majority was for it."""
        return self.yeses >= self._ballot.quorum

    def seat(self, index: int) -> Seat[T]:
        """For one node. Not kept here: each question would be a cycle for the garbage collector."""
        return Seat(self, index)

    def take(self, index: int, vote: T) -> None:
        """Count one vote, at once: the asker's wake-up is all that waits for the event loop."""
        if self.closed:
            return
        self.votes[index] = vote
        self._taken += 1
        if self._is_yes is not None:
            yes = self._is_yes(vote)
            if yes:
                self.yeses += 1
            elif yes is not None:
                self.noes += 1
        if self._decided():
            self._close()

    async def wait(self) -> None:
        """Until the votes decide, all are in, or the nodes' time is up."""
        if self.closed:
            return
        self._asker = asyncio.get_running_loop().create_future()
        self._ballot.expect(self)
        try:
            await self._asker
        finally:
            self.closed = True
            self._ballot.forget(self)

    def give_up(self) -> None:
        """The nodes' time is up."""
        self.timed_out = True
        self._close()

    def spoken(self) -> dict[str, str]:
        """Each node's vote as text for people."""
        told = {}
        for index, (node, vote) in enumerate(zip(self._ballot.nodes, self.votes, strict=True)):
            waited_for = vote is not None or self.timed_out or index in self._ballot.silent
            told[node.name] = spoken(vote) if waited_for else _NOT_WAITED_FOR
        return told

    def _close(self) -> None:
        self.closed = True
        if self._asker is not None and not self._asker.done():
            self._asker.set_result(None)

    def _decided(self) -> bool:
        size, quorum, silent = len(self.votes), self._ballot.quorum, self._ballot.silent
        if self.yeses >= quorum or self.noes > size - quorum or self._taken == size:
            return True
        # Who was silent the last time is listened to, but not waited for, unless nothing is certain without.
        if not silent or size - len(silent) < quorum:
            return False
        return all(vote is not None or index in silent for index, vote in enumerate(self.votes))


class Bound:
    """Ends the wait for answers that do not come. One timer serves them all, and an answer does not touch it.

    Args:
        within_s: how long one may take at most.
        give_up: called with each that took longer, and with how long it had.
    """

    def __init__(self, within_s: float, give_up: Callable[[Future[Any], float], None]) -> None:
        self._within_s = within_s
        self._give_up = give_up
        self._open: deque[tuple[float, float, Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def expect(self, asked: Future[T], within_s: float = math.inf) -> Future[T]:
        """Wait for it no longer than that, or than ``within_s`` if that is less; gives it back."""
        within_s = min(within_s, self._within_s)
        loop, waited_for = asked.get_loop(), self._open
        while waited_for and waited_for[0][2].done():
            waited_for.popleft()
        due = loop.time() + within_s
        waited_for.append((due, within_s, asked))
        if due < self._timer_at:
            self.close()
            self._timer_at, self._timer = due, loop.call_at(due, self._look, loop)
        return asked

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, waited_for, self._open = loop.time(), self._open, deque()
        for due, within_s, asked in waited_for:
            if asked.done():
                continue
            if due > now:
                self._open.append((due, within_s, asked))
            else:
                self._give_up(asked, within_s)
        self._timer, self._timer_at = None, min((due for due, _, _ in self._open), default=math.inf)
        if self._open:
            self._timer = loop.call_at(self._timer_at, self._look, loop)


class Proposals:
    """Tokens a little later than the nodes' clocks will show: if a majority gives one, it is settled.

    Only a hint. A node gives a higher token when its own last one, or its clock, says so; then the highest is
    settled in a second round.

    Args:
        clock: ours.
        quorum: how many clocks must be known.
    """

    def __init__(self, clock: Clock, *, quorum: int) -> None:
        self._clock = clock
        self._quorum = quorum
        self._lead_us: dict[int, int] = {}
        self._headstart_us = _HEADSTART_US_MIN

    def note(self, votes: Sequence[AcquireVote | None], *, sent_at: float) -> None:
        """Learn how far the nodes' clocks are ahead of ours, and how long the way there may take."""
        now_us = int(self._clock.now() * 1e6)
        # What is learnt is short by the way back, and the next way there comes on top.
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
        # One clock that is far ahead must not carry the tokens of all along.
        lead_us = max(lead for lead in leads_us if lead - common_us < _SKEW_US_MAX)
        return int(self._clock.now() * 1e6) + lead_us + self._headstart_us


def vote_of(future: Future[T]) -> T | None:
    """The vote, or ``None`` while there is none."""
    return future.result() if future.done() and not future.cancelled() else None


def spoken(vote: object) -> str:
    """A vote as text for people."""
    match vote:
        case None:
            return "no answer in time"
        case Granted(token):
            return f"granted with token {token}"
        case Busy(holder):
            return f"busy: {holder or 'reserved for a waiter'}"
        case Outsider(quiet_ms) if quiet_ms:
            return f"lost what it knew, or is new: gives no vote for another {quiet_ms / 1000:.1f} s"
        case Outsider():
            return "lost what it knew, or is new: has to be admitted"
        case Refused(error) | Unknown(error):
            return str(error)
        case _:
            return type(vote).__name__.lower()
