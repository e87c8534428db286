"""What happens to leases, as immutable events for observers: logs, metrics, traces, timelines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from lockguard._lease import Grant, Resource
from lockguard.errors import LossReason

__all__ = [
    "Acquired",
    "Event",
    "FenceCloseFailed",
    "Lost",
    "ObserverFailed",
    "Released",
    "RenewalUnanswered",
    "Renewed",
    "Waited",
]


@dataclass(frozen=True, slots=True)
class Acquired:
    """A lease was handed out. ``waited_ms`` counts from the call."""

    grant: Grant
    waited_ms: float


@dataclass(frozen=True, slots=True)
class Waited:
    """A caller found the resource busy and waits, or gave up."""

    resource: Resource
    holder: str
    operation: str
    gave_up: bool


@dataclass(frozen=True, slots=True)
class Renewed:
    """A lease was renewed."""

    grant: Grant


@dataclass(frozen=True, slots=True)
class RenewalUnanswered:
    """A renewal got no majority; the lease stands until its deadline, ``remaining_ms`` from now."""

    grant: Grant
    remaining_ms: float
    cause: str


@dataclass(frozen=True, slots=True)
class Lost:
    """A lease ended under its body."""

    grant: Grant
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Released:
    """A lease was released after ``held_ms``.

    ``found`` is false if the lock had expired on the server before the release arrived; ``None`` if the
    server has not said.
    """

    grant: Grant
    held_ms: float
    found: bool | None


@dataclass(frozen=True, slots=True)
class FenceCloseFailed:
    """The fence could not be closed when a body ended; it is still open for a grant that has ended.

    Writes of that grant are accepted until it is closed: in the background, as soon as the transaction that
    blocks the close has ended (a ``PostgresFence`` tries again every few seconds while its process lives), or
    by the next seal of the resource. ``cause`` names the blocking sessions, if known.
    """

    grant: Grant
    cause: str


@dataclass(frozen=True, slots=True)
class ObserverFailed:
    """An observer raised, for the ``failures``-th time; the other observers are told."""

    observer: str
    cause: str
    failures: int


Event: TypeAlias = (
    Acquired | Waited | Renewed | RenewalUnanswered | Lost | Released | FenceCloseFailed | ObserverFailed
)
