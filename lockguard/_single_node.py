"""One node keeps the locks: one server, a master that Sentinels watch, a cluster, or this process's memory.

Its vote is the decision, and the token that it gave is final. No other node can decide without it, so the
wait is as long as its connection's; only what the node does with a command behind that has a bound here.

An unknown outcome is resolved by asking again with the same request, or by a release: both run behind the
first command on the same connection.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard._asking import Asked
from lockguard._awaiting import AnswerBounds
from lockguard._clock import timers_of
from lockguard._locks import ANSWER_MIN_S, Acquisition, Contended, Found, NoQuorum, Won, close_nodes
from lockguard._quorum import described, found, trusted_s
from lockguard.errors import NodeError, NodeUnknown
from lockguard.ports import AcquireRequest, Busy, Done, Extended, Granted, LockNode, MaybeExecuted, NoVote

if TYPE_CHECKING:
    from asyncio import Future

    from lockguard._clock import Clock
    from lockguard._lease import Grant, GrantId, Resource, Token
    from lockguard._locks import Releasing

__all__ = ["ANSWER_S", "SingleNode"]

T = TypeVar("T")

ANSWER_S = 2.5
"""Seconds that the node may owe an answer: longer than its connection's patience, so that the connection can
say why. It bounds what a node does behind that, such as looking for the server of a cluster's slot."""

_ASK_AGAIN_S = 0.9
"""Seconds after which a waiter that is not woken asks: a vanished key is noticed within a second (L4)."""


class SingleNode:
    """The locks that one node keeps, see :class:`~lockguard._locks.Locks`.

    Args:
        node: the node that keeps them.
        clock: for deadlines.
    """

    def __init__(self, node: LockNode, *, clock: Clock) -> None:
        self.nodes = (node,)
        self._node = node
        self._asked = Asked(node)
        self._clock = clock
        self._bounds = AnswerBounds(ANSWER_S, self._give_up, timers_of(clock))

    @property
    def ready(self) -> bool:
        """Whether the node is connected."""
        return self._node.ready

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback`` called with each waiter that the node wakes; ``None``: all."""
        self._node.on_wake(callback)

    async def connect(self) -> None:
        """Connect to the node; returns also if that is not possible now.

        Raises:
            ConfigurationError: the node refused the log-in.
        """
        with contextlib.suppress(NodeError):
            await self._node.connect()

    async def acquire(self, request: AcquireRequest, *, give_up_at: float = math.inf) -> Acquisition:
        """Ask once, see :meth:`Locks.acquire`."""
        sent_at = self._clock.now()
        vote = await self._bounds.expect(self._node.acquire(request), max(give_up_at - sent_at, ANSWER_MIN_S))
        if isinstance(vote, Granted):
            deadline = sent_at + trusted_s(request.ttl_ms)
            if self._clock.now() < deadline:
                return Won(vote.token, deadline, vote.seal)
        elif isinstance(vote, Busy):
            return Contended(vote)
        return NoQuorum({self._node.name: described(vote)})

    def ask_again_s(self) -> float:
        """After how long a waiter that was not woken asks again by itself, in seconds."""
        return _ASK_AGAIN_S

    async def settle(self, request: AcquireRequest, token: Token) -> bool:
        """Write a token higher than the node's while this grant holds the lock; returns whether it does."""
        vote = await self._bounds.expect(self._node.settle(request.resource, request.grant, token))
        return isinstance(vote, Done) and vote.found

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Send a renewal; returns the node's one future."""
        return [self._asked.extend(grant)]

    def check(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Ask whether the grant holds its lock; returns the node's one future."""
        return [self._asked.check(grant)]

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "", at_least_ms: int = 0
    ) -> Releasing:
        """Remove the grant wherever it stands, see :meth:`Locks.release`."""
        # A node of the user's own may have been written before there was an ``at_least``.
        closing = {"at_least_ms": at_least_ms} if at_least_ms else {}
        asked = self._node.release(resource, grant, lost=lost, seal=seal, **closing)
        return partial(self._found, asked)

    async def ask_all(self, ask: Callable[[LockNode], Future[T]]) -> list[T | None]:
        """Ask the node; returns its one answer."""
        answer = await self._bounds.expect(ask(self._node))
        return [answer]

    async def aclose(self) -> None:
        """Close the node, in bounded time."""
        await close_nodes(self.nodes)
        self._bounds.close()  # by now it has answered everything

    async def _found(self, asked: Future[Done | NoVote]) -> Found:
        vote = await self._bounds.expect(asked)
        held = found(vote)
        return Found.UNKNOWN if held is None else Found.YES if held else Found.NO

    def _give_up(self, asked: Future[Any], within_s: float) -> None:
        # An answer that comes later is dropped; its command stands.
        text = f"{self._node.name}: no answer within {within_s:.3g} s"
        asked.set_result(MaybeExecuted(NodeUnknown(text, node=self._node.name)))
