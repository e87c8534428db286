"""Rounds of votes: ask several nodes the same question, and wait until enough of them have answered.

What a slow node may cost is bounded twice: one round waits for it no longer than the node timeout, and the
next rounds do not wait for it at all until it has answered all that it owes.

What five nodes may cost the asker is bounded too: one object counts the votes of a round as they come and
wakes the asker once, when they decide. A future, a callback and a turn of the event loop for each node took
longer than the nodes did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lockguard._asking import Asked
from lockguard._lease import Resource
from lockguard._quorum import described, majority
from lockguard.ports import LockNode

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["Round", "Rounds", "Slot"]

T = TypeVar("T")

_PROBE = Resource("lockguard-probe")

_NOT_WAITED_FOR = "not waited for: the others had decided"


class Rounds:
    """Waits for the votes of several nodes.

    Args:
        nodes: the nodes to ask.
        patience_s: how long one node may delay a decision, in seconds.
    """

    def __init__(self, nodes: Sequence[LockNode], *, patience_s: float) -> None:
        self.nodes = tuple(nodes)
        self._asked = [Asked(node) for node in self.nodes]
        self.quorum = majority(len(self.nodes))
        self.silent: set[int] = set()
        """The indexes of nodes that did not answer in time and have not caught up yet."""
        self._patience_s = patience_s
        # All rounds have the same patience, so they end in their order: one timer serves all of them.
        self._open: dict[Round[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, is_yes: Callable[[T], bool | None] | None) -> Round[T]:
        """Begin a round; the nodes vote into its slots."""
        return Round(self, is_yes)

    async def collect(
        self, asked: Sequence[Future[T]], is_yes: Callable[[T], bool] | None = None
    ) -> list[T | None]:
        """Count the votes of futures; returns those that had come when they decided, ``None`` for others."""
        round_ = self.begin(is_yes)
        for index, future in enumerate(asked):
            future.add_done_callback(round_.slot(index).take_from)
        await round_.wait()
        return round_.votes

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def expect(self, round_: Round[Any]) -> None:
        """Bound the wait for ``round_``, from now on."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self._patience_s
        self._open[round_] = due
        if self._timer is None:
            self._timer = loop.call_at(due, self._look)

    def forget(self, round_: Round[Any]) -> None:
        """Stop bounding ``round_``: it is decided, or its asker is gone."""
        self._open.pop(round_, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        for round_, due in list(self._open.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look)
                return
            self._note_silence([index for index, vote in enumerate(round_.votes) if vote is None])
            round_.give_up()

    def _note_silence(self, indexes: Sequence[int]) -> None:
        for index in set(indexes) - self.silent:
            self.silent.add(index)
            # The answer to this comes behind all that the node owes, or when the connection ends.
            self._asked[index].inspect(_PROBE).add_done_callback(partial(self._listen_again, index))

    def _listen_again(self, index: int, _: object) -> None:
        self.silent.discard(index)


class Slot(Generic[T]):
    """The place of one node's vote in a round; the node uses it like a future."""

    __slots__ = ("_index", "_round")

    def __init__(self, round_: Round[T], index: int) -> None:
        self._round = round_
        self._index = index

    def done(self) -> bool:
        """Whether the vote comes too late."""
        return self._round.closed

    def set_result(self, vote: T) -> None:
        """Take the node's vote."""
        self._round.take(self._index, vote)

    def take_from(self, future: Future[T]) -> None:
        """Take the result of ``future`` as the vote, unless it was cancelled."""
        if not future.cancelled():
            self._round.take(self._index, future.result())


class Round(Generic[T]):
    """One question to all nodes, and the votes that have come.

    Args:
        rounds: the nodes, their quorum and their patience.
        is_yes: whether a vote counts for, against, or (``None``) for neither; a majority for or against
            decides. Without it, only all votes decide.
    """

    __slots__ = ("_asker", "_is_yes", "_rounds", "_taken", "closed", "noes", "timed_out", "votes", "yeses")

    def __init__(self, rounds: Rounds, is_yes: Callable[[T], bool | None] | None) -> None:
        size = len(rounds.nodes)
        self._rounds = rounds
        self._is_yes = is_yes
        self._asker: Future[None] | None = None
        self._taken = 0
        self.votes: list[T | None] = [None] * size
        """Each node's vote; ``None``: none yet."""
        self.yeses = 0
        self.noes = 0
        self.closed = False
        """Whether it is decided, or given up: later votes do not count."""
        self.timed_out = False

    @property
    def won(self) -> bool:
        """Whether a majority was for it."""
        return self.yeses >= self._rounds.quorum

    def slot(self, index: int) -> Slot[T]:
        """The slot of one node. Not kept here: each round would be a cycle for the garbage collector."""
        return Slot(self, index)

    def take(self, index: int, vote: T) -> None:
        """Count one vote at once: only the asker's wake-up waits for the event loop."""
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
        """Wait until the votes decide, all are in, or the nodes' time is up."""
        if self.closed:
            return
        self._asker = asyncio.get_running_loop().create_future()
        self._rounds.expect(self)
        try:
            await self._asker
        finally:
            self.closed = True
            self._rounds.forget(self)

    def give_up(self) -> None:
        """End the round, because the nodes' time is up."""
        self.timed_out = True
        self._close()

    def described(self) -> dict[str, str]:
        """Each node's name and its vote as text for display."""
        told = {}
        for index, (node, vote) in enumerate(zip(self._rounds.nodes, self.votes, strict=True)):
            waited_for = vote is not None or self.timed_out or index in self._rounds.silent
            told[node.name] = described(vote) if waited_for else _NOT_WAITED_FOR
        return told

    def _close(self) -> None:
        self.closed = True
        if self._asker is not None and not self._asker.done():
            self._asker.set_result(None)

    def _decided(self) -> bool:
        size, quorum, silent = len(self.votes), self._rounds.quorum, self._rounds.silent
        if self.yeses >= quorum or self.noes > size - quorum or self._taken == size:
            return True
        # A node that was silent the last time is counted but not waited for, unless its vote is needed.
        if not silent or size - len(silent) < quorum:
            return False
        return all(vote is not None or index in silent for index, vote in enumerate(self.votes))
