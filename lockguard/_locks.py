"""What a guard asks of its locks, and their answers: the same whether one node keeps them or several.

:class:`~lockguard._single_node.SingleNode` asks one node, whose vote is the decision;
:class:`~lockguard.redlock.Redlock` asks several independent ones, of which a majority decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from lockguard.ports import (
    AcquireRequest,
    Busy,
    Extended,
    LockNode,
    NoVote,
)

if TYPE_CHECKING:
    from asyncio import Future

    from lockguard._lease import Grant, GrantId, Resource, Token

__all__ = [
    "ANSWER_MIN_S",
    "Acquisition",
    "Contended",
    "Found",
    "Locks",
    "NoQuorum",
    "Releasing",
    "Won",
    "close_nodes",
]

T = TypeVar("T")

ANSWER_MIN_S = 0.5
"""Seconds that nodes may take to answer, however short a caller's patience is."""

_CLOSE_S = 5.0
"""Seconds that all nodes may take to send what is queued and close."""


@dataclass(slots=True)
class Won:
    """The caller holds the lock.

    Attributes:
        token: the final token.
        deadline: the instant on the clock, in seconds, until which it may be trusted.
        seal: what the nodes remember of the resource's last seal, see :class:`~lockguard.ports.Sealed`.
    """

    token: Token
    deadline: float
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Contended:
    """The resource is busy: held, reserved or closed.

    Attributes:
        busy: what the most informed node answered.
        one_place: whether all nodes gave the caller the same place in their queues.
    """

    busy: Busy
    one_place: bool = True


@dataclass(frozen=True, slots=True)
class NoQuorum:
    """Too few nodes answered to say who holds the lock.

    Attributes:
        votes: each node's name and its answer.
    """

    votes: dict[str, str]


Acquisition: TypeAlias = Won | Contended | NoQuorum
"""The outcome of asking once for a lock."""


class Found(Enum):
    """Whether a release found the lock held by its grant."""

    YES = "yes"
    """It held it."""
    NO = "no"
    """Certainly not. A release that was sent again cannot tell: it may find its own work done."""
    UNKNOWN = "unknown"
    """No server has said."""


Releasing: TypeAlias = Callable[[], Awaitable[Found]]
"""A release in flight. Call and await it to learn what the release found."""


class Locks(Protocol):
    """The locks of all resources, over one node or several."""

    @property
    def nodes(self) -> tuple[LockNode, ...]:
        """The nodes that keep them."""
        ...

    @property
    def ready(self) -> bool:
        """Whether enough nodes are connected to decide."""
        ...

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback`` called with each waiter that enough nodes have woken; ``None``: all."""
        ...

    async def connect(self) -> None:
        """Connect to enough nodes to decide; returns also if that is not possible now.

        Raises:
            ConfigurationError: a node refused the log-in, or nodes are not independent.
        """
        ...

    async def acquire(self, request: AcquireRequest, *, give_up_at: float = ...) -> Acquisition:
        """Ask once. Asking again with the same request is idempotent: no token is used up (S7).

        A caller that gives up after anything but :class:`Won`, or is cancelled here, calls :meth:`release`.

        Args:
            request: what is wanted.
            give_up_at: the instant on the clock, in seconds, until which to wait for the nodes at most, but
                for at least ``ANSWER_MIN_S``; the nodes have bounds of their own.

        Raises:
            ConfigurationError: nodes are not independent.
        """
        ...

    def ask_again_s(self) -> float:
        """After how long a waiter that was not woken asks again by itself, in seconds."""
        ...

    async def settle(self, request: AcquireRequest, token: Token) -> bool:
        """Write the final token while this grant holds the lock; returns whether it still does."""
        ...

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Send a renewal to every node.

        Pass the futures to :func:`~lockguard._quorum.tally` once they are done or it is too late.
        """
        ...

    def check(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        """Ask every node whether the grant holds its lock there; changes nothing.

        The answers are counted as those to :meth:`extend`.
        """
        ...

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "", at_least_ms: int = 0
    ) -> Releasing:
        """Remove the grant from every node: lock, reservation, queue. The command is sent when this returns.

        Needs no await, so that a cancelled task leaves nothing behind (S8).

        Args:
            resource: the grant's resource.
            grant: the grant to remove.
            lost: whether its lease ended under the body, so that a lock delay begins now.
            seal: the seal for the nodes to remember.
            at_least_ms: how long after its grant the resource opens at the earliest, in milliseconds.
        """
        ...

    async def ask_all(self, ask: Callable[[LockNode], Future[T]]) -> list[T | None]:
        """Ask every node the same; ``None`` for one that does not answer in time."""
        ...

    async def aclose(self) -> None:
        """Close every node, in bounded time."""
        ...


async def close_nodes(nodes: Sequence[LockNode]) -> None:
    """Send what is queued and close all nodes, in bounded time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_S):
            await asyncio.gather(*(node.aclose() for node in nodes))
