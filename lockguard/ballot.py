"""Asking several nodes the same: waiting for enough of their votes, and having them give the same token.

What a slow node may cost is bounded twice: one question waits for it no longer than the node timeout, and the
next questions do not wait for it at all until it has caught up with what it owes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from lockguard.clock import Clock
from lockguard.lease import Resource
from lockguard.ports import AcquireVote, Busy, Granted, LockNode, Outsider, Refused, Unknown

if TYPE_CHECKING:
    from asyncio import Future

__all__ = ["Ballot", "Proposals", "spoken", "vote_of"]

T = TypeVar("T")

_PROBE = Resource("lockguard-probe")

_HEADSTART_US = 3_000
"""How much later than a node's clock a proposed token is: the way there takes some of it."""

_SKEW_US_MAX = 100_000


class Ballot:
    """Waits for the votes of several nodes.

    Args:
        nodes: who is asked.
        patience_s: how long one may delay a decision. A single node's patience is the wire's, because there
            is nobody else to decide without it.
    """

    def __init__(self, nodes: Sequence[LockNode], *, patience_s: float) -> None:
        self._nodes = tuple(nodes)
        self._patience_s = patience_s
        self._silent: set[int] = set()

    async def wait(self, asked: Sequence[Future[T]], decided: Callable[[Sequence[T]], bool]) -> None:
        """Until the votes decide, all are in, or the nodes' time is up."""
        if len(asked) == 1:
            await asked[0]
            return
        loop = asyncio.get_running_loop()
        decision: Future[bool] = loop.create_future()

        def answered(_: object) -> None:
            late = [index for index, future in enumerate(asked) if not future.done()]
            votes = [future.result() for future in asked if future.done() and not future.cancelled()]
            # A node that was silent the last time is listened to, but not waited for.
            if not decision.done() and (self._silent.issuperset(late) or decided(votes)):
                decision.set_result(True)

        def give_up() -> None:
            if not decision.done():
                decision.set_result(False)

        for future in asked:
            future.add_done_callback(answered)
        patience = loop.call_later(self._patience_s, give_up)
        try:
            if not await decision:
                self._note_silence([index for index, future in enumerate(asked) if not future.done()])
        finally:
            patience.cancel()
            for future in asked:
                future.remove_done_callback(answered)

    def _note_silence(self, indexes: Sequence[int]) -> None:
        for index in set(indexes) - self._silent:
            self._silent.add(index)
            # Its answer comes when all that the node owes has come, or the connection has ended.
            self._nodes[index].inspect(_PROBE).add_done_callback(self._listen_again(index))

    def _listen_again(self, index: int) -> Callable[[object], None]:
        return lambda _: self._silent.discard(index)


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

    def note(self, votes: Sequence[AcquireVote | None]) -> None:
        """Learn how far the nodes' clocks are ahead of ours."""
        now_us = int(self._clock.now() * 1e6)
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
        return int(self._clock.now() * 1e6) + lead_us + _HEADSTART_US


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
