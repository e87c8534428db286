"""Which leases the running code holds.

A context variable follows the body through awaits and into the tasks that the body starts, so a helper
deep in existing code finds the token to write with. A task that outlives the body still sees the lease,
but as released: it is filtered out here and refused by ``Lease.ensure``.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from lockguard.lease import Lease, LeaseState, Resource

if TYPE_CHECKING:
    from asyncio import Task

__all__ = [
    "Entry",
    "current_lease",
    "current_leases",
    "entry_for",
    "outlived_lease",
    "pop_entry",
    "push_entry",
]


class Entry:
    """A lease in force in this context and the task whose body it is."""

    __slots__ = ("guard", "lease", "owner")

    def __init__(self, lease: Lease, owner: Task[Any], guard: object) -> None:
        self.lease = lease
        self.owner = owner
        self.guard = guard


_entries: ContextVar[tuple[Entry, ...]] = ContextVar("lockguard_entries", default=())


def push_entry(entry: Entry) -> Token[tuple[Entry, ...]]:
    """Put a lease in force; give the result to :func:`pop_entry`."""
    return _entries.set((*_entries.get(), entry))


def pop_entry(token: Token[tuple[Entry, ...]]) -> None:
    """End what :func:`push_entry` began."""
    _entries.reset(token)


def entry_for(resource: Resource, guard: object) -> Entry | None:
    """The innermost unreleased lease on ``resource`` that ``guard`` gave to this context."""
    for entry in reversed(_entries.get()):
        if entry.guard is guard and entry.lease.resource == resource:
            return None if entry.lease.state is LeaseState.RELEASED else entry
    return None


def current_leases() -> tuple[Lease, ...]:
    """Every unreleased lease of the surrounding bodies, outermost first.

    A lease that was lost is among them: code that writes under it must be refused, not let through as if
    there had never been one.
    """
    return tuple(e.lease for e in _entries.get() if e.lease.state is not LeaseState.RELEASED)


def current_lease() -> Lease | None:
    """The innermost lease of the surrounding bodies, or ``None`` outside of any."""
    leases = current_leases()
    return leases[-1] if leases else None


def outlived_lease() -> Lease | None:
    """The innermost lease if it was released while this task, started in its body, runs on; else ``None``."""
    entries = _entries.get()
    return entries[-1].lease if entries and entries[-1].lease.state is LeaseState.RELEASED else None
