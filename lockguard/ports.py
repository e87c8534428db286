"""What the core needs from outside: nodes that keep locks, a fence that refuses stale writes, observers.

A node answers with a *vote*, never with an exception, because the quorum has to count it: granted, busy, in
quarantine, certainly not executed, or maybe executed, now or later. The last is never a yes or a no.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lockguard._lease import RENEWED_AGAIN_AFTER, RENEWED_AT, Grant, GrantId, Resource, Token
from lockguard.errors import NodeRefused, NodeUnknown
from lockguard.events import Event

__all__ = [
    "AcquireRequest",
    "AcquireVote",
    "Answer",
    "AnsweringFence",
    "Broken",
    "Busy",
    "CheckableNode",
    "ComparingFence",
    "Done",
    "Extended",
    "Fence",
    "Granted",
    "Inspection",
    "LockNode",
    "LoopBoundNode",
    "MaybeExecuted",
    "Membership",
    "NotExecuted",
    "Observer",
    "Outrun",
    "Quarantined",
    "QuorumNode",
    "ReadableNode",
    "RelayFence",
    "Sealed",
    "Waiter",
]


@dataclass(slots=True)
class AcquireRequest:
    """One caller's request for one resource. Sending the same request again is idempotent (S7).

    It is never changed. Like :class:`Granted` it is not frozen, because a frozen dataclass takes five times
    as long to make, and each hold makes one.

    Attributes:
        resource: what is wanted.
        grant: the id that the lock will carry.
        holder: who asks, for display.
        operation: what it is for, for display.
        ttl_ms: the ttl asked for, in milliseconds.
        queue: whether to be queued when it is busy.
        ticket: the place in the queue that an earlier busy answer gave, 0 for none. Sent along so that a
            waiter keeps its place through a reconnect, a lost reservation and a wiped server.
        lock_delay_ms: how long the resource stays closed if this grant ends otherwise than by release.
        history: how many grants of the resource Redis is to keep in its history; 0: none.
        at_least_ms: how long after this grant the resource opens at the earliest, however the grant ends.
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
    at_least_ms: int = 0


@dataclass(slots=True)
class Granted:
    """The node holds the lock for this grant.

    Attributes:
        token: the token that the node gave.
        server_us: the node's clock then, in microseconds since 1970; 0 if this grant held the lock already.
        seal: what the node remembers of the resource's last seal, see :class:`Sealed`; empty for nothing.
        admission: of one of several nodes, the id of the last admission that asked it; empty for none.
    """

    token: Token
    server_us: int = 0
    seal: str = ""
    admission: str = ""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another grant holds the lock, or it is reserved for a waiter or closed.

    Attributes:
        holder: who holds it; empty while it is only reserved, or closed by a lock delay or ``at_least``.
        operation: what for.
        token: the holder's token, 0 while it is not held.
        age_ms: how long it has been held.
        retry_after_ms: after how long the node's view changes at the latest if no client acts.
        ticket: this caller's place in the queue, 0 if it was not queued.
        requeued: the caller had a ticket and was not in the queue: it had been dropped, or the server's
            data are gone, so the places of its process's other waiters are gone too.
        queue_full: the queue is at its cap.
        ahead: how many waiters are ahead of it in the queue; ``None``: not queued, or several nodes decide.
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
    """The node certainly did not execute the command.

    Attributes:
        error: why not.
    """

    error: NodeRefused


@dataclass(frozen=True, slots=True)
class MaybeExecuted:
    """The node may have executed the command, or may still execute it.

    Attributes:
        error: what is known of it.
    """

    error: NodeUnknown


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The lock is free on the node, but it may have forgotten a grant: it gives no vote yet.

    Attributes:
        quarantine_ms: after how long it votes again; 0 while it is not admitted, see :class:`QuorumNode`.
    """

    quarantine_ms: int


@dataclass(frozen=True, slots=True)
class Membership:
    """What a node knows of its right to vote.

    Attributes:
        known: whether it was ever admitted, as far as it knows.
        member: whether it was admitted in the present run of its server, or in any if the asker has none.
        quarantine_ms: how long it does not vote yet.
        ttl_max_ms: the longest lease that it granted or may have forgotten, as far as it knows.
        nodes: how many nodes decided together when it was last asked for a free lock; 0 if it was not told.
        loss: while it is no member, the id of what it has lost or never had; empty before an admission asks.
        admission: of a member, the id of the last admission that asked it; empty for none.
    """

    known: bool
    member: bool
    quarantine_ms: int
    ttl_max_ms: int
    nodes: int = 0
    loss: str = ""
    admission: str = ""


@dataclass(frozen=True, slots=True)
class Extended:
    """The answer to a renewal, or to a check.

    Attributes:
        held: whether this grant holds the lock on this node.
        wanted: whether a hand-over was requested.
    """

    held: bool
    wanted: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a settle or a release.

    Attributes:
        found: whether this grant held the lock.
        repeated: whether the command was sent twice: the first may have removed what the second looked for.
    """

    found: bool
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Broken:
    """The answer to a break.

    Attributes:
        grant: the grant that was thrown out, empty if the lock was free.
        holder: the holder of that grant.
        token: the token floor after the break, which no grant has.
        kept: whether another grant than the expected one holds the lock: ``grant`` and ``holder`` are of that
            one, and nothing was changed.
    """

    grant: str
    holder: str
    token: Token
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Waiter:
    """One place in a queue.

    Attributes:
        grant: the waiter's grant.
        inbox: the channel on which its process is woken, for display.
        ticket: its place: lower is earlier.
        silent_ms: for how long its process has not been heard from.
        holder: the process and task that wait, for display; empty if unknown, as with an older client.
        operation: what it wants the resource for, for display; empty if unknown.
        waiting_ms: how long it has waited.
    """

    grant: str
    inbox: str
    ticket: int
    silent_ms: int
    holder: str = ""
    operation: str = ""
    waiting_ms: int = 0


@dataclass(frozen=True, slots=True)
class Inspection:
    """All that a node knows of a resource.

    Attributes:
        resource: the resource.
        held: whether a grant holds it.
        grant: the holder's grant.
        token: the holder's token, or the floor while it is free; 0 if neither is known.
        holder: who holds it, for display.
        operation: what it is held for, for display.
        age_ms: how long it has been held.
        remaining_ms: how long until the server drops it.
        ttl_ms: how long it lasts after each renewal.
        renewals: how often it was renewed.
        waiters: the queue, earliest first.
        closed_ms: how long it stays closed by a lock delay or ``at_least``; while it is held, what would be
            left of ``at_least`` after a release now.
        wanted: the reason of a requested hand-over; empty for none.
        server_ms: the node's clock then, in milliseconds since 1970; 0 if it is not known.
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
    closed_ms: int = 0
    wanted: str = ""
    server_ms: int = 0

    @property
    def acquired_at_ms(self) -> int:
        """When the lock was granted, by the server's clock in milliseconds since 1970; 0 if unknown."""
        return self.server_ms - self.age_ms if self.held and self.server_ms else 0

    @property
    def renewal_late_ms(self) -> int:
        """For how long the renewal has been due, in milliseconds; 0 while it is on time.

        A lease is renewed from a third of its ttl on. A renewal that is not answered is sent again after
        another tenth, so only one that has been due for longer than that is late.
        """
        if not self.held:
            return 0
        due_ms = self.ttl_ms - self.remaining_ms - self.ttl_ms * RENEWED_AT
        return int(due_ms) if due_ms > self.ttl_ms * RENEWED_AGAIN_AFTER else 0


AcquireVote: TypeAlias = Granted | Busy | Quarantined | NotExecuted | MaybeExecuted
"""What a node answers to an acquire."""
NoVote: TypeAlias = NotExecuted | MaybeExecuted


class LockNode(Protocol):
    """One independent keeper of locks.

    Every method queues its command *before it returns*, in call order, and returns a future that always gets
    a vote. Cancelling the future does not revoke the command; a command queued later runs later. So a release
    that is queued behind a cancelled acquire undoes it.
    """

    @property
    def name(self) -> str:
        """The node's name for display, without credentials."""
        ...

    @property
    def ready(self) -> bool:
        """Whether commands would be sent now."""
        ...

    async def connect(self) -> None:
        """Connect. Returns at once if the node is ready.

        Raises:
            NodeError: the node cannot be reached.
            ConfigurationError: the node refuses the log-in.
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
        self, resource: Resource, grant: GrantId, *, lost: bool = False, seal: str = "", at_least_ms: int = 0
    ) -> Future[Done | NoVote]:
        """Remove this grant wherever it stands: lock, reservation or queue. The command is sent at once.

        ``lost``: its lease ended under the body, so a lock delay begins now. ``seal``: to be remembered.
        ``at_least_ms``: the resource stays closed until so long after the grant.
        """
        ...

    def break_(
        self, resource: Resource, *, reason: str, token: Token, grant: str | None = None
    ) -> Future[Broken | NoVote]:
        """Remove the holder's grant from the lock; raise the token floor to at least ``token``.

        The floor is then above every token that the node has given. With ``grant`` only that one is removed,
        and with an empty one none: another grant's lock is left. Comparison and removal are one step.
        """
        ...

    def inspect(self, resource: Resource) -> Future[Inspection | NoVote]:
        """Read all that the node knows of the resource; change nothing."""
        ...

    def request_handover(
        self, resource: Resource, *, reason: str, grant: str | None = None
    ) -> Future[Done | NoVote]:
        """Ask the holder to end when it can, as :meth:`break_` only ``grant``; ``found``: it was asked."""
        ...

    def on_wake(self, callback: Callable[[GrantId | None], None]) -> None:
        """Have ``callback(grant)`` called when the node wakes a waiter, with ``None`` for all."""
        ...

    async def aclose(self) -> None:
        """Send what is queued, then close."""
        ...


@runtime_checkable
class ReadableNode(LockNode, Protocol):
    """A node that can also be read as a whole, as :meth:`LockGuard.list` and :meth:`LockGuard.history` do."""

    def names(self, prefix: str) -> AsyncIterator[list[Resource]]:
        """The resources in use whose name begins with ``prefix``, in steps that are short for the server.

        In use: held, waited for, or kept closed by a lock delay. Each that is so from the first step to the
        last is given; a name may come twice.

        Raises:
            NodeError: the node did not answer a step, or refused it.
        """
        ...

    def history(self, resource: Resource, limit: int) -> Future[tuple[str, ...] | NoVote]:
        """Read the newest ``limit`` lines of a resource's history, newest first."""
        ...


@runtime_checkable
class CheckableNode(LockNode, Protocol):
    """A node that a holder can ask whether it still has its lock; any other is sent a renewal instead."""

    def still_holds(self, resource: Resource, grant: GrantId) -> Future[Extended | NoVote]:
        """Whether this grant holds the lock; changes nothing."""
        ...


@runtime_checkable
class LoopBoundNode(LockNode, Protocol):
    """A node that can be left behind in an event loop that was closed before the node was."""

    def abandon(self) -> None:
        """Give up sockets and what else the process has of it. Must send nothing and schedule nothing."""
        ...


class Answer(Protocol):
    """Where a node's vote goes. A future is one."""

    def done(self) -> bool:
        """Whether the vote is no longer awaited."""
        ...

    def set_result(self, vote: Any, /) -> None:
        """Take the vote. Called at most once, and never after :meth:`done` is true."""


@runtime_checkable
class QuorumNode(LockNode, Protocol):
    """A node that decides together with others, which know nothing of it."""

    @property
    def server_ids(self) -> frozenset[str]:
        """Ids that no independent server shares: of its run and its replication; empty if unknown."""
        ...

    def acquire_into(self, request: AcquireRequest, proposal: int, answer: Answer) -> None:
        """Like :meth:`acquire`, for ``answer``; ``proposal``: a token or place to give if possible, or 0."""
        ...

    def release_into(
        self,
        resource: Resource,
        grant: GrantId,
        answer: Answer,
        *,
        lost: bool = False,
        seal: str = "",
        at_least_ms: int = 0,
    ) -> None:
        """Like :meth:`release`, with the vote to ``answer``."""

    def membership(self, *, admission: str = "", after: str | None = None) -> Future[Membership | NoVote]:
        """Ask whether the node may vote; with ``admission`` a node that is no member gives its loss an id.

        With ``after``, which it told first, a member tells ``admission`` with its grants; or one of its own.
        """
        ...

    def admit(
        self, *, quarantine_ms: int, ttl_max_ms: int, admission: str, loss: str
    ) -> Future[Membership | NoVote]:
        """Let the node vote after ``quarantine_ms``; gives what was before.

        Not if it is admitted already, nor if it has lost its data once more since it told ``loss``.
        """
        ...

    def rejoin(self, grant: Grant, *, age_ms: int) -> Future[Done | NoVote]:
        """Give the lock, and what closes the resource after it, to a grant of other nodes, if it is free."""
        ...

    def on_admission_needed(self, callback: Callable[[], None]) -> None:
        """Have ``callback()`` called when the node has to be admitted."""
        ...


@dataclass(frozen=True, slots=True)
class Sealed:
    """The fence is raised to this grant; no older grant can commit any more.

    Attributes:
        token: the token in force.
        seal: what the nodes remember of it, and give with the next grant of the resource: the fence's own
            name and the token. A fence that is asked to seal then has to know this seal, or has lost it.
            Empty: nothing is remembered.
    """

    token: Token
    seal: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Outrun:
    """The fence has a token at least as high under another grant, or this grant was closed.

    Either a successor sealed first, or Redis lost its data and handed out a low token. Only Redis knows
    which: settle a higher token there, which works only while the lock is still held, and seal again.

    Attributes:
        current: the token that the fence has.
    """

    current: Token


class Fence(Protocol):
    """What refuses stale writes, in the database.

    It knows a resource by its name, which is the same in every namespace: the name says which rows it guards.
    """

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted. Idempotent per grant.

        Raises:
            FenceUnavailable: it could not be done within ``within``, or its outcome is unknown.
        """
        ...

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``. Not an error if a newer grant is in force.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of the holder of ``resource``; returns the token in force from now on.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...


@runtime_checkable
class AnsweringFence(Fence, Protocol):
    """A fence that can also be asked, as :meth:`Lease.confirm` does."""

    async def confirm(self, grant: Grant, *, within: timedelta) -> bool:
        """Whether writes of ``grant`` are accepted now.

        Raises:
            FenceUnavailable: no answer within ``within``.
        """
        ...


@runtime_checkable
class ComparingFence(Fence, Protocol):
    """A fence that can end one grant and leave a newer one alone, as ``LockGuard.break_(grant=...)`` does."""

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Token | Outrun:
        """Accept no more writes of ``grant``, nor of an older one; safe to repeat.

        A token of 0 is an unknown one: whatever grant the fence knows instead counts as newer.

        Returns:
            The token in force from now on; :class:`Outrun` if a newer grant is in force, and stays so.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...


@runtime_checkable
class RelayFence(Fence, Protocol):
    """A fence that closes a grant together with the seal of the next one, where both are of one process."""

    async def hand_on(self, grant: Grant, successor: GrantId, *, within: timedelta) -> None:
        """Like :meth:`Fence.close`, while ``successor`` takes the lock: its seal may carry the close.

        Returns when the grant is closed, even if the successor never seals.

        Raises:
            FenceUnavailable: it could not be done within ``within``.
        """
        ...


class Observer(Protocol):
    """Is told what happens. It must not block; what it raises is logged, and it is told the next event."""

    def on(self, event: Event) -> None:
        """Take one event."""
        ...
