"""Every error that lockguard raises.

::

    LockguardError
    ├ ConfigurationError (ValueError)      a value that cannot work; the message names it and the remedy
    ├ AcquireError                         the lock was not obtained
    │ ├ ResourceBusy           retryable   another grant holds it: holder, operation, token, age, retry_after
    │ │ └ QueueFull            retryable   and its queue is full
    │ ├ QuorumUnavailable      retryable   too few nodes answered: votes
    │ ├ FenceUnavailable       retryable   Postgres could not be asked
    │ └ SelfDeadlock                       a child task asked for the lock that its own parent holds
    ├ LeaseError                           a lease is no longer held, or never was
    │ ├ LeaseLost                          it ended under the body: reason; read the state again
    │ └ LeaseNotHeld                       the caller's bug: a lease used after release, or missing
    ├ StaleToken                           Postgres refused a write: presented, current; never retry it
    ├ ChangedHands                         a break came too late: another grant holds the lock: grant, holder
    ├ OutcomeUnknown                       a commit whose reply was lost
    └ NodeError                            one Redis node: node
      ├ NodeRefused                        it did not execute the command
      └ NodeUnknown                        it may have executed the command

Errors carry facts as attributes; the text is for display. ``retryable`` tells whether the same call may
simply be made again later.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

__all__ = [
    "AcquireError",
    "ChangedHands",
    "ConfigurationError",
    "FenceUnavailable",
    "LeaseError",
    "LeaseLost",
    "LeaseNotHeld",
    "LockguardError",
    "LossReason",
    "NodeError",
    "NodeRefused",
    "NodeUnknown",
    "OutcomeUnknown",
    "QueueFull",
    "QuorumUnavailable",
    "ResourceBusy",
    "SelfDeadlock",
    "StaleToken",
]


class LockguardError(Exception):
    """Base of every error of this library."""

    retryable: ClassVar[bool] = False
    """Whether the same call may simply be made again later."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the attributes too, so that an error arrives from another process as it was.

        ``Exception`` would make it again from its text alone, which fails where attributes are required.
        """
        return type(self).__new__, (type(self), *self.args), vars(self)


class ConfigurationError(LockguardError, ValueError):
    """A value or a set-up that cannot work; nothing was started."""


class AcquireError(LockguardError):
    """The lock was not obtained; the body did not run.

    Attributes:
        resource: what was asked for.
    """

    def __init__(self, message: str, *, resource: str) -> None:
        super().__init__(message)
        self.resource = resource


class ResourceBusy(AcquireError):
    """Another grant holds the resource, or it is reserved for a waiter, or it is closed.

    A lock delay or ``at_least`` closes it.

    Attributes:
        holder: the holder, as text for display; ``None`` when no grant holds the lock.
        operation: what the holder said it is doing.
        token: the holder's fencing token.
        age: how long it has been held.
        retry_after: when asking again may help: the rest of the holder's lease, an upper bound.
    """

    retryable = True

    def __init__(
        self,
        message: str,
        *,
        resource: str,
        holder: str | None = None,
        operation: str | None = None,
        token: int | None = None,
        age: timedelta | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(message, resource=resource)
        self.holder = holder
        self.operation = operation
        self.token = token
        self.age = age
        self.retry_after = retry_after


class QueueFull(ResourceBusy):
    """The resource is held and its queue is at its cap; this caller was not queued."""


class QuorumUnavailable(AcquireError):
    """Too few nodes could be asked, so it is not known who holds the lock.

    Attributes:
        votes: each node's name and its answer.
    """

    retryable = True

    def __init__(self, message: str, *, resource: str, votes: Mapping[str, str]) -> None:
        super().__init__(message, resource=resource)
        self.votes = dict(votes)


class FenceUnavailable(AcquireError):
    """The fence could not be asked in time, so no lease was handed out."""

    retryable = True


class SelfDeadlock(AcquireError):
    """A task asked for a lock that the task which started it holds, and that task waits for it."""


class LeaseError(LockguardError):
    """A lease is not held.

    Attributes:
        resource: the lease's resource.
        token: its fencing token, when it had one.
    """

    def __init__(self, message: str, *, resource: str, token: int | None = None) -> None:
        super().__init__(message)
        self.resource = resource
        self.token = token


class LossReason(StrEnum):
    """Why a lease ended before its body did."""

    EXPIRED = "expired"
    """The deadline passed without a successful renewal."""
    REFUSED = "refused"
    """The node said that the lock is no longer held by this grant."""
    BROKEN = "broken"
    """An operator broke it."""
    FENCED = "fenced"
    """Postgres refused a write that carried it: a successor is in force, or it was broken or closed there."""
    MAX_HOLD = "max_hold"
    """It was held for as long as the guard allows."""
    ABANDONED = "abandoned"
    """The task that entered the hold ended without leaving it."""
    UNCONFIRMED = "unconfirmed"
    """``Lease.confirm`` got no answer in time. The lease itself goes on until its deadline."""
    CLOSED = "closed"
    """The guard was closed while its body ran."""
    FORKED = "forked"
    """Used in a process forked from the holder's, where the lease's end would not be noticed."""


class LeaseLost(LeaseError):
    """The lease ended while its body ran, and the body was cancelled.

    What the body had begun may be half done. Read the state again, under a new lease, before trying again.

    Attributes:
        reason: why it was lost.
    """

    def __init__(self, message: str, *, resource: str, token: int | None, reason: LossReason) -> None:
        super().__init__(message, resource=resource, token=token)
        self.reason = reason


class LeaseNotHeld(LeaseError):
    """A lease was used after its release, or is needed where there is none."""


class StaleToken(LockguardError):
    """Postgres refused a write because its token is not the one in force. Never retry it.

    Attributes:
        resource: the resource of the write.
        presented: the token that the write carried; ``None`` when it carried none.
        current: the token in force; ``None`` when the resource was never sealed.
    """

    def __init__(self, message: str, *, resource: str, presented: int | None, current: int | None) -> None:
        super().__init__(message)
        self.resource = resource
        self.presented = presented
        self.current = current


class ChangedHands(LockguardError):
    """A lock was to be broken, and another grant than the one that was seen holds it: it was left as it is.

    Attributes:
        resource: the resource.
        grant: the id of the grant that holds it now.
        holder: the holder, as text for display.
    """

    def __init__(self, message: str, *, resource: str, grant: str, holder: str) -> None:
        super().__init__(message)
        self.resource = resource
        self.grant = grant
        self.holder = holder


class OutcomeUnknown(LockguardError):
    """A commit was sent and its reply was lost: it may or may not have happened.

    Attributes:
        resource: the resource of the write.
        token: the token that the write carried.
    """

    def __init__(self, message: str, *, resource: str, token: int | None) -> None:
        super().__init__(message)
        self.resource = resource
        self.token = token


class NodeError(LockguardError):
    """One Redis node did not do what it was asked.

    Attributes:
        node: its name, without credentials.
    """

    def __init__(self, message: str, *, node: str) -> None:
        super().__init__(message)
        self.node = node


class NodeRefused(NodeError):
    """The node certainly did not execute the command."""

    retryable = True


class NodeUnknown(NodeError):
    """The command was sent and no reply came: it may have been executed, now or later."""

    retryable = True
