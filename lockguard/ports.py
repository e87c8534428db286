"""What the core needs from the world: nodes that keep locks, a fence that refuses, somebody who watches.

A node answers with a *vote*. None is an exception, because the quorum has to count them: granted, busy,
in quarantine, certainly not executed, or maybe executed, now or later. The last is never a yes or a no.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.errors import NodeRefused, NodeUnknown
from lockguard.events import Event

__all__ = [
    "AcquireRequest",
    "AcquireVote",
    "Answer",
    "AnsweringFence",
    "Broken",
    "Busy",
    "Done",
    "Extended",
    "Fence",
    "Granted",
    "Inspection",
    "LockNode",
    "MaybeExecuted",
    "Membership",
    "NotExecuted",
    "Observer",
    "Outrun",
    "Quarantined",
    "QuorumNode",
    "RelayFence",
    "Sealed",
    "Waiter",
]


@dataclass(slots=True)
class AcquireRequest:
    """One caller's wish for one resource. The same request sent again is the same wish (S7).

    Nobody changes it. It is not frozen, as :class:`Granted` is not, because a frozen dataclass takes five
    times as long to make, and each hold makes one.

    Attributes:
        resource: what is wanted.
        grant: the id that the lock will carry.
        holder: who asks, for people.
        operation: what for, for people.
        ttl_ms: the life asked for, in milliseconds.
        queue: whether to be queued when it is busy.
        ticket: the place in the queue that an earlier busy answer gave, 0 for none. Sent along so that a
            waiter keeps its place through a reconnect, a lost reservation and a wiped server.
        lock_delay_ms: how long the resource stays closed if this grant ends otherwise than by release.
        history: of how many grants of the resource Redis shall tell afterwards; 0: of none.
    """

    resource: Resource
    grant: GrantId
    holder: str
    operation: str
    ttl_ms: int
    queue: bool = False
    ticket: int = 0
    lock_delay_ms: int = 0
    history: int = 100


@dataclass(slots=True)
class Granted:
    """The node holds the lock for this grant.

    Attributes:
        token: what it gave.
        server_us: its clock when it did, in microseconds since 1970; 0 if it held the lock already.
        seal: what it remembers of the resource's last seal, see :class:`Sealed`; empty for nothing.
    """

    token: Token
    server_us: int = 0
    seal: str = ""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another grant holds the lock, or a waiter has it reserved.

    Attributes:
        holder: who holds it; empty while it is only reserved or closed by a lock delay.
        operation: what for.
        token: the holder's token, 0 while nobody holds it.
        age_ms: how long it has been held.
        retry_after_ms: when the node's view changes at the latest without anybody acting.
        ticket: this caller's place in the queue, 0 if it was not queued.
        requeued: the caller had a ticket and was not in the queue: it had been dropped, or the server's
            data are gone, so its companions' places are gone too.
        queue_full: the queue is at its cap.
        ahead: how many stand in the queue before this caller; ``None``: it was not queued, or
            several nodes decide.
    """

    holder: str
    operation: str
    token: Token
    age_ms: int
    retry_after_ms: int
    ticket: int = 0
    requeued: bool = False
    queue_full: bool = False
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class NotExecuted:
    """The node certainly did not do it."""

    error: NodeRefused


@dataclass(frozen=True, slots=True)
class MaybeExecuted:
    """The node may have done it, or may still do it."""

    error: NodeUnknown


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The lock is free there, but the node may have forgotten one that it granted: it gives no vote yet.

    Attributes:
        quarantine_ms: when it votes again; 0 while nobody has admitted it, see :class:`QuorumNode`.
    """

    quarantine_ms: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What a node knows of its right to vote.

    Attributes:
        known: whether it was ever admitted, as far as it knows.
        member: whether it was admitted in the present run of its server.
        quarantine_ms: how long it does not vote yet.
        ttl_max_ms: the longest lease that it granted or may have forgotten, as far as it knows.
        nodes: how many decided together when it was last asked for a free lock; 0 if it was not told.
    """

    known: bool
    member: bool
    quarantine_ms: int
    ttl_max_ms: int
    nodes: int = 0


@dataclass(frozen=True, slots=True)
class Extended:
    """The answer to an extend.

    Attributes:
        held: whether this grant holds the lock on this node.
        wanted: whether somebody asked for a hand-over.
    """

    held: bool
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a settle or a release.

    Attributes:
        found: whether this grant held the lock.
        repeated: whether it was sent a second time: the first may have removed what it looked for.
    """

    found: bool
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The answer to a break.

    Attributes:
        grant: the grant that was thrown out, empty if the lock was free.
        holder: its holder.
        token: the token floor after the break.
    """

    grant: str
    holder: str
    token: Token


@dataclass(frozen=True, slots=True)
class Waiter:
    """One place in a queue.

    Attributes:
        grant: whose place.
        inbox: the process that waits, for people.
        ticket: its place: lower is earlier.
        silent_ms: since when its process has not been heard of.
    """

    grant: str
    inbox: str
    ticket: int
    silent_ms: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that a node knows of a resource.

    Attributes:
        resource: the resource.
        held: whether anybody holds it.
        grant: the holder's grant.
        token: the holder's token, or the floor while it is free; 0 if neither is known.
        holder: who.
        operation: what for.
        age_ms: how long it has been held.
        remaining_ms: until the server drops it.
        ttl_ms: its life after each renewal.
        renewals: how often it was renewed.
        waiters: the queue, first first.
    """

    resource: Resource
    held: bool
    grant: str
    token: int
    holder: str
    operation: str
    age_ms: int
    remaining_ms: int
    ttl_ms: int
    renewals: int
    waiters: tuple[Waiter, ...]


AcquireVote: TypeAlias = Granted | Busy | Quarantined | NotExecuted | MaybeExecuted
NoVote: TypeAlias = NotExecuted | MaybeExecuted


class LockNode(Protocol):
    """One independent keeper of locks.

    Every method queues its command *before it returns*, in call order, and gives a future that always gets
    a vote. Cancelling the future does not take the command back; a command queued later runs later. So an
    undo that is queued behind a cancelled acquire undoes it.
    """

    @property
    def name(self) -> str:
        """The node, for people; without credentials."""
        ...

    @property
    def ready(self) -> bool:
        """Whether commands would go out now."""
        ...

    async def connect(self) -> None:
        """Be ready to send. Returns at once when it is.

        Raises:
            NodeError: it cannot be reached.
            ConfigurationError: it refuses the log-in.
        """
        ...

    def acquire(self, request: AcquireRequest) -> Future[AcquireVote]:
        """Take the lock, or a place in its queue."""
        ...

    def settle(self, resource: Resource, grant: GrantId, token: Token) -> Future[Done | NoVote]:
        """Write the lease's final token while this grant holds the lock."""
        ...

    def extend(
        self, resource: Resource, grant: GrantId, ttl_ms: int, *, seal: str = ""
    ) -> Future[Extended | NoVote]:
        """Renew, if this grant holds the lock, and remember its seal."""
        ...

    def release(
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = ""
    ) -> Future[Done | NoVote]:
        """Remove this grant wherever it stands: lock, reservation or queue. It leaves at once.

        ``lost``: its lease ended under the body, so a lock delay begins now. ``seal``: to be remembered.
        """
        ...

    def break_(self, resource: Resource, *, reason: str, token: Token) -> Future[Broken | NoVote]:
        """Throw out whoever holds the lock; raise the token floor to at least ``token``."""
        ...

    def inspect(self, resource: Resource) -> Future[Inspection | NoVote]:
        """Read everything, change nothing."""
        ...

    def request_handover(self, resource: Resource, *, reason: str) -> Future[Done | NoVote]:
        """Ask the holder to end when it can."""
        ...

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback(grant)`` called when the node wakes a waiter, with ``None`` for all."""
        ...

    async def aclose(self) -> None:
        """Send what is queued, then close."""
        ...


class Answer(Protocol):
    """Where a node's vote goes. A future is one."""

    def done(self) -> bool:
        """Whether nobody waits for it any more."""
        ...

    def set_result(self, vote: Any, /) -> None:
        """The vote; called once, and not when it is done."""


@runtime_checkable
class QuorumNode(LockNode, Protocol):
    """A node that decides together with others that know nothing of it."""

    @property
    def server_ids(self) -> frozenset[str]:
        """What this server shares with no independent one: its run and its replication; empty if unknown."""
        ...

    def acquire_into(self, request: AcquireRequest, proposal: int, answer: Answer) -> None:
        """As :meth:`acquire`, for ``answer``; ``proposal``: a token or place to give if it can be, or 0."""
        ...

    def release_into(
        self, resource: Resource, grant: GrantId, answer: Answer, *, lost: bool = False, seal: str = ""
    ) -> None:
        """As :meth:`release`, for ``answer``."""

    def membership(self) -> Future[Membership | NoVote]:
        """Look whether it may vote."""
        ...

    def admit(self, *, quarantine_ms: int, ttl_max_ms: int) -> Future[Membership | NoVote]:
        """Let it vote after ``quarantine_ms``, if nobody has admitted it yet; tells what was there before."""
        ...

    def rejoin(self, grant: Grant) -> Future[Done | NoVote]:
        """Hold the lock for a grant that is held elsewhere, if it is free here."""
        ...

    def on_admission_needed(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called when the node has to be admitted."""
        ...


@dataclass(frozen=True, slots=True)
class Sealed:
    """The fence is raised to this grant; nothing older can commit any more.

    Attributes:
        token: the token in force.
        seal: what the nodes remember of it, and give with the next grant of the resource: the fence's own
            name and the token. Whoever is asked to seal then has to know this seal, or has lost it. Empty:
            nothing is remembered.
    """

    token: Token
    seal: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Outrun:
    """The fence has a token at least as high under another grant, or this grant was closed.

    Either a successor sealed first, or Redis lost its data and handed out a low token. Only Redis knows
    which: settle a higher token there, which works only while the lock is still held, and seal again.
    """

    current: Token


class Fence(Protocol):
    """The database's side: what refuses a stale holder's writes."""

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted. Idempotent per grant.

        Raises:
            FenceUnavailable: it could not be done, or nobody knows whether it was, within ``within``.
        """
        ...

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``. Not an error if a newer grant is in force.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of whoever holds ``resource``; returns the token in force from now on.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...


@runtime_checkable
class AnsweringFence(Fence, Protocol):
    """A fence that can also be asked; :meth:`Lease.confirm` does, if it can."""

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:
        """Whether writes of ``grant`` are accepted now.

        Raises:
            FenceUnavailable: no answer within ``within``.
        """
        ...


@runtime_checkable
class RelayFence(Fence, Protocol):
    """A fence that closes a grant together with the seal of the next one, where both are of one process."""

    async def hand_on(self, grant: Grant, successor: GrantId, *, within: timedelta) -> None:
        """As :meth:`Fence.close`, while ``successor`` takes the lock: its seal may bring the close along.

        It returns when the grant is closed, also where the successor does not come.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...


class Observer(Protocol):
    """Somebody who watches. It must not block; what it raises is logged, and it is told the next event."""

    def on(self, event: Event) -> None:
        """Something happened."""
        ...
