"""The membership of several independent nodes: reaching them, and which of them may vote.

A majority means nothing when a node forgets its votes. Of five nodes A, B, C granted a lock; C restarts
empty; now C, D, E can grant it again, and two majorities are alive at once. So a node that may have forgotten
something votes only when every lease that it may have granted has ended.

How it is known. Each node keeps a small hash (``admit.lua``) with the id of the server process in which it
was admitted. A node without the hash has lost its data, by a restart or by FLUSHALL. One whose hash names
another process was restarted with old data, which may lack the last second before its end. Neither clocks nor
uptimes decide this. A connection does not outlive the server process, so the id that was read at log-in is
true for every command on it. A caller whose user may not run INFO has no id to compare: it goes by
the hash alone, and so takes a node that was restarted with old data for a member. It neither reports a
restart nor changes the id that is recorded. A node that it admitted has no id, and is no member for callers
that have one until one of them has admitted it.

How long its quarantine lasts. Each node also keeps the longest ttl that it ever granted. A lease that the
node may have forgotten was granted by a majority; a majority of members has a node in common with it, so the
longest ttl that they report bounds it. A node that is admitted takes that figure over, since it may be asked
next.

What is granted while an admission is under way. The node in common may grant the lease after it has reported,
with a vote from before the loss to go with it. So nodes are asked twice: first who has lost its data, then
what the others know, since an answer from before a loss does not bound it. The second question has an id,
made once the losses are known, which it leaves on the nodes and which they tell with each grant: see
:func:`together`.

Who notices. A caller that finds the lock free on such a node; a guard whose connection comes back; and a
holder that puts its lease back there. Without the last two, a lease that is held for long would hide that one
node after another has to be admitted, until too few members could report the longest ttl.

The beginning. New nodes cannot be told from nodes that lost everything. When all nodes answer, and none
is a member or knows of any lease, they are admitted at once. So a simultaneous loss of all nodes' data is
taken for a new set-up: only the fence protects against that. A node beside members is never taken for
new, though none of them has granted anything yet: it may have forgotten its vote for a lease that they
are about to be asked for, and nothing is known of that lease's ttl.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockguard._quorum import majority, vote_of
from lockguard.errors import ConfigurationError, NodeError
from lockguard.ports import LockNode, Membership, NoVote, QuorumNode

__all__ = ["QUARANTINE_UNKNOWN_MS", "Members", "Quarantine", "quarantine_for", "together"]

_LOG = logging.getLogger("lockguard")

QUARANTINE_UNKNOWN_MS = 30_000
"""The least length of a quarantine when too few members can tell how long leases may be."""

_ANSWER_S = 1.0
"""Seconds a node may take to tell its membership; one that does not makes the others' quarantine longer."""

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0


class Members:
    """The nodes that decide together.

    Args:
        nodes: all of them.

    Raises:
        ConfigurationError: a node cannot decide together with others.
    """

    def __init__(self, nodes: Sequence[LockNode]) -> None:
        self.nodes = tuple(node for node in nodes if isinstance(node, QuorumNode))
        for node in nodes:
            if node not in self.nodes:
                raise ConfigurationError(
                    f"{node.name} cannot be one of several nodes; give independent standalone servers"
                )
        self._bringing_up: dict[QuorumNode, asyncio.Task[None]] = {}
        self._tried: Counter[QuorumNode] = Counter()
        """How many attempts to connect to each node have ended."""
        self._hurry = asyncio.Event()
        self._refusals: dict[QuorumNode, ConfigurationError] = {}
        self._news = asyncio.Event()
        self._admission: asyncio.Task[None] | None = None
        self._admit_due = False
        self._ttl_max_ms = 0
        self._independent: list[frozenset[str]] = []
        self.admissions = 0
        """How many admissions have begun."""
        for node in self.nodes:
            node.on_admission_needed(self._admit_soon)

    async def connect(self, *, enough: int, grace_s: float) -> None:
        """Wait until ``enough`` nodes are connected, or each of the others was tried once.

        Connecting to the rest goes on in the background. A node that refuses the log-in ends the wait only
        where it has just done so, and where the nodes that did not refuse could not decide even if all of
        them were connected: one that is silent, or was repaired since, may still make the majority.

        Args:
            enough: how many are needed.
            grace_s: how long to wait for the others the first time, in seconds: with just enough of them, one
                that is slow for a moment would decide.

        Raises:
            ConfigurationError: so many refused the log-in that the others are too few, or two are not
                independent.
        """
        self._bring_all_up()
        before, hurried = self._tried.copy(), False
        while sum(node.ready for node in self.nodes) < enough:
            self._bring_all_up()  # one that was ready may have gone meanwhile
            refused = [node for node in self.nodes if node in self._refusals and not node.ready]
            just_now = [node for node in refused if self._tried[node] > before[node]]
            if len(self.nodes) - len(just_now) < enough:
                raise self._refusals[just_now[0]]
            if len(self.nodes) - len(refused) < enough:
                if not hurried:  # again with each answer, a near node would be asked without a pause
                    self._hurry.set()
                    self._hurry.clear()
                    hurried = True
            elif len(self._tried) == len(self.nodes):
                break
            await self._next_news()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._all_tried()
        self.check_independence()

    def _bring_all_up(self) -> None:
        for node in self.nodes:
            task = self._bringing_up.get(node)
            if not node.ready and (task is None or task.done()):
                self._bringing_up[node] = asyncio.create_task(
                    self._bring_up(node), name=f"lockguard-connect-{node.name}"
                )

    def check_independence(self) -> None:
        """Check that no server counts as two nodes: that would make a majority out of a minority.

        Raises:
            ConfigurationError: two nodes are one server, or one is a copy of the other.
        """
        now = [node.server_ids for node in self.nodes]
        if now == self._independent:
            return
        seen: dict[str, QuorumNode] = {}
        for node in self.nodes:
            for server_id in node.server_ids:
                other = seen.setdefault(server_id, node)
                if other is not node:
                    raise ConfigurationError(
                        f"{other.name} and {node.name} are the same server, or one replicates the other;"
                        " a majority needs independent ones"
                    )
        self._independent = now

    async def _all_tried(self) -> None:
        while len(self._tried) < len(self.nodes):
            await self._next_news()

    async def _next_news(self) -> None:
        self._news.clear()
        with contextlib.suppress(TimeoutError):  # no news comes of a node that has reconnected by itself
            async with asyncio.timeout(_BACKOFF_MAX_S):
                await self._news.wait()

    async def _bring_up(self, node: QuorumNode) -> None:
        backoff_s = _BACKOFF_FIRST_S
        while not node.ready:
            try:
                await node.connect()
            except ConfigurationError as exc:
                if node not in self._refusals:
                    _LOG.warning("%s does not take part: %s", node.name, exc)
                self._refusals[node] = exc
            except NodeError:
                self._refusals.pop(node, None)  # what it would say now is not known
            finally:
                self._tried[node] += 1
                self._news.set()
            if not node.ready:
                rest_s = backoff_s * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest_s):
                        await self._hurry.wait()  # it may be right by now, and a caller waits to hear that
                backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)
        self._refusals.pop(node, None)  # also if it has reconnected by itself

    def note_ttl(self, ttl_ms: int) -> None:
        """Note that a lease of this ttl is asked for."""
        self._ttl_max_ms = max(self._ttl_max_ms, ttl_ms)

    async def admitted(self, *, within_s: float) -> None:
        """Wait for the admission in progress, if any, for ``within_s`` seconds at most."""
        if self._admission is not None and not self._admission.done():
            await asyncio.wait([self._admission], timeout=None if within_s == math.inf else within_s)

    async def aclose(self) -> None:
        """Cancel the tasks in the background, and wait for their end."""
        tasks = [*self._bringing_up.values(), *filter(None, [self._admission])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admit_soon(self) -> None:
        self._admit_due = True
        if self._admission is None or self._admission.done():
            self.admissions += 1
            self._admission = asyncio.create_task(self._admit_all(), name="lockguard-connect-admit")

    async def _admit_all(self) -> None:
        # A node that asks for admission while the others are being asked must not be forgotten.
        while self._admit_due:
            self._admit_due = False
            await self._admit()

    async def _admit(self) -> None:
        # A node that is still connecting would count as one that does not answer.
        await self._all_tried()
        answers = await self._answers(dict.fromkeys(self.nodes), os.urandom(8).hex())
        lost = {node: one.loss for node, one in answers.items() if not one.member}
        if not lost:
            return
        # Asked again: what a node said before another one's loss was known may be older than that loss.
        # With an id from after all these losses: no vote from before them, and no caller, can have it.
        admission = os.urandom(8).hex()
        told = await self._answers({node: one.admission for node, one in answers.items()}, admission)
        newcomers = [
            node
            for node, membership in told.items()
            if not membership.member and membership.loss == lost.get(node)
        ]
        quarantine = quarantine_for([told.get(node) for node in self.nodes], ttl_max_ms=self._ttl_max_ms)
        for node in newcomers:
            if quarantine.lasts_ms:
                _LOG.warning(
                    "%s came back without what it knew, or is new: it gives no vote for %.1f s",
                    node.name,
                    quarantine.lasts_ms / 1000,
                )
        await _all_within(
            [
                node.admit(
                    quarantine_ms=quarantine.lasts_ms,
                    ttl_max_ms=quarantine.ttl_max_ms,
                    admission=admission,
                    loss=lost[node],
                )
                for node in newcomers
            ]
        )

    async def _answers(
        self, after: Mapping[QuorumNode, str | None], admission: str
    ) -> dict[QuorumNode, Membership]:
        """What those of the nodes that answer in time know; ``after``: the admission that each told first."""
        votes = await _all_within(
            [node.membership(admission=admission, after=last) for node, last in after.items()]
        )
        return {node: vote for node, vote in zip(after, votes, strict=True) if isinstance(vote, Membership)}


async def _all_within(
    asked: Sequence[asyncio.Future[Membership | NoVote]],
) -> list[Membership | NoVote | None]:
    if asked:
        await asyncio.wait(asked, timeout=_ANSWER_S)
    return [vote_of(future) for future in asked]


def together(told: Mapping[int, str], known: Mapping[int, str]) -> bool:
    """Whether the grants of one round count together: whether no admission came between them.

    An admission leaves an id on a node that no node had before. A grant that comes after it has this id, and
    one from before the loss that it admits has not. So either all have the same id, or each has the one that
    its node was known to have before it was asked.

    Args:
        told: by node, the id that it told with its grant.
        known: by node, the id that it had told before the round began.
    """
    return len(set(told.values())) == 1 or all(known.get(node) == one for node, one in told.items())


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The time in which a node that may have forgotten something gives no vote.

    Attributes:
        lasts_ms: how long it must not vote, in milliseconds.
        ttl_max_ms: the longest lease that it may have forgotten, in milliseconds.
    """

    lasts_ms: int
    ttl_max_ms: int


def quarantine_for(found: Sequence[Membership | None], *, ttl_max_ms: int) -> Quarantine:
    """How long nodes that may have forgotten something must not vote.

    Args:
        found: what each node answered; ``None`` for one that did not.
        ttl_max_ms: the longest lease that the asker itself uses, in milliseconds.
    """
    told = [membership for membership in found if membership is not None]
    granted_max_ms = max((membership.ttl_max_ms for membership in told), default=0)
    members = sum(membership.member for membership in told)
    if len(told) == len(found) and members == 0 and granted_max_ms == 0:
        return Quarantine(lasts_ms=0, ttl_max_ms=0)
    longest_ms = max(granted_max_ms, ttl_max_ms)
    if members < majority(len(found)) or granted_max_ms == 0:
        longest_ms = max(longest_ms, QUARANTINE_UNKNOWN_MS)
    return Quarantine(longest_ms, longest_ms)
