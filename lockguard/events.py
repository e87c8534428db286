"""What happens to leases, as immutable events for observers: logs, metrics, traces, timelines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.errors import LossReason

__all__ = [
    "Acquired",
    "Event",
    "FenceCloseFailed",
    "Lost",
    "NotAcquired",
    "NotAcquiredReason",
    "ObserverFailed",
    "Released",
    "RenewalUnanswered",
    "Renewed",
    "StaleWrite",
    "Unwound",
    "Waited",
]


@dataclass(frozen=True, slots=True)
class Acquired:
    """A lease was handed out.

    It is told in the task that holds it, right before the body.

    Attributes:
        grant: the grant of the lease.
        waited_ms: how long the caller waited, from the call until the body, in milliseconds.
        sealed_ms: how much of that the seal in the fence took; 0 without a fence.
    """

    grant: Grant
    waited_ms: float
    sealed_ms: float = 0.0


class NotAcquiredReason(StrEnum):
    """Why a caller got no lease."""

    GAVE_UP = "gave_up"
    """It waited for as long as it was willing to, and the resource was still busy."""
    SKIPPED = "skipped"
    """The resource was busy, and the caller does not wait: ``on_busy="raise"`` or ``"skip"``."""
    QUEUE_FULL = "queue_full"
    """The resource was busy, and its queue was at its cap."""
    NO_QUORUM = "no_quorum"
    """Too few servers answered."""
    NO_FENCE = "no_fence"
    """The fence could not be asked in time."""
    DEADLOCK = "deadlock"
    """The task that started this one holds the lock, and waits for it."""
    LOST = "lost"
    """The lease ended before it was sealed."""
    CANCELLED = "cancelled"
    """The caller was cancelled while it waited."""
    ERROR = "error"
    """Anything else, such as a fence that is set up wrongly."""


@dataclass(frozen=True, slots=True)
class NotAcquired:
    """A caller got no lease, and the body did not run.

    Attributes:
        resource: what was asked for.
        grant: the id that the lease would have had, as in :class:`Waited`.
        reason: why there is no lease.
        waited_ms: how long it took, from the call, in milliseconds.
    """

    resource: Resource
    grant: GrantId
    reason: NotAcquiredReason
    waited_ms: float


@dataclass(frozen=True, slots=True)
class Waited:
    """A caller found the resource busy, or reached too few servers, and waits, or gave up.

    One that waits is told once more when the servers can no longer be reached.

    Attributes:
        resource: what was asked for.
        holder: who holds it; empty while it is only reserved, or if too few servers answered.
        operation: what it is held for.
        gave_up: whether the caller gave up; it waits otherwise.
        grant: the id that the caller's lease will have.
        ahead: how many callers of all processes are ahead of it; ``None`` if that is not known.
        cause: what each server that cannot be reached says, for display; empty if enough can be.
    """

    resource: Resource
    holder: str
    operation: str
    gave_up: bool
    grant: GrantId | None = None
    ahead: int | None = None
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease was renewed.

    Attributes:
        grant: the grant of the lease.
    """

    grant: Grant


@dataclass(frozen=True, slots=True)
class RenewalUnanswered:
    """A renewal got no majority; the lease stands until its deadline, ``remaining_ms`` from now.

    Attributes:
        grant: the grant of the lease.
        remaining_ms: how long it is until the deadline, in milliseconds.
        cause: what each server that did not answer says, for display.
    """

    grant: Grant
    remaining_ms: float
    cause: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A lease ended under its body, which is being cancelled; :class:`Unwound` tells when that has ended.

    Attributes:
        grant: the grant of the lease.
        reason: why it ended.
    """

    grant: Grant
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Unwound:
    """The body of a lost lease has ended, after ``held_ms`` in all. It is told in the task that held it.

    There is none after ``LossReason.ABANDONED``: the task of that body has ended.

    Attributes:
        grant: the grant of the lease.
        reason: why the lease ended.
        held_ms: how long the body ran, in milliseconds.
    """

    grant: Grant
    reason: LossReason
    held_ms: float


@dataclass(frozen=True, slots=True)
class Released:
    """A lease was released after ``held_ms``. It is told in the task that held it.

    Attributes:
        grant: the grant of the lease.
        held_ms: how long it was held, the release included, in milliseconds.
        found: false if the lock had expired on the server before the release arrived; ``None`` if the server
            has not said.
        margin_ms: how much of the lease was left when its body ended, in milliseconds.
        released_ms: how much of ``held_ms`` the release took, after the body.
        cancelled: the task was cancelled while it waited for the server's answer. The release was sent, and
            ``found`` is ``None``. A cancel scope of anyio, as Starlette and Litestar have for a client that
            hangs up, cancels at every await.
    """

    grant: Grant
    held_ms: float
    found: bool | None
    margin_ms: float = 0.0
    released_ms: float = 0.0
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class StaleWrite:
    """Postgres refused a write under this lease, because its token is not in force.

    Attributes:
        grant: the grant of the lease that the write carried.
        current: the token in force; ``None`` if the resource was never sealed.
    """

    grant: Grant
    current: Token | None


@dataclass(frozen=True, slots=True)
class FenceCloseFailed:
    """The fence could not be closed when a body ended; it is still open for a grant that has ended.

    Writes of that grant are accepted until it is closed: in the background, as soon as the transaction that
    blocks the close has ended (a ``PostgresFence`` tries again every few seconds while its process lives), or
    by the next seal of the resource. ``cause`` names the blocking sessions, if known.

    Attributes:
        grant: the grant of the lease.
        cause: why, with the sessions that block the close if they are known, for display.
    """

    grant: Grant
    cause: str


@dataclass(frozen=True, slots=True)
class ObserverFailed:
    """An observer raised, for the ``failures``-th time; the other observers are told.

    Attributes:
        observer: the name of its class.
        cause: what it raised, for display.
        failures: how often it has failed so far.
    """

    observer: str
    cause: str
    failures: int


Event: TypeAlias = (
    Acquired
    | NotAcquired
    | Waited
    | Renewed
    | RenewalUnanswered
    | Lost
    | Unwound
    | Released
    | StaleWrite
    | FenceCloseFailed
    | ObserverFailed
)
"""What an observer is told: one of these."""
