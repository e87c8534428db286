"""Under which leases the running code writes, and the code that writes under none."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lockguard._context import current_leases, lost_sight, outlived_lease
from lockguard.errors import LeaseNotHeld

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard._lease import Lease

__all__ = ["is_unfenced", "leases_in_force", "leases_of_bodies", "unfenced"]

_unfenced: ContextVar[bool] = ContextVar("lockguard_unfenced", default=False)


@contextlib.contextmanager
def unfenced() -> Iterator[None]:
    """Statements in this block carry no token, even under a lease: for what needs no fence, such as prices.

    Protected tables still refuse them, except for changes of exempt columns.
    """
    mark = _unfenced.set(True)
    try:
        yield
    finally:
        _unfenced.reset(mark)


def is_unfenced() -> bool:
    """Whether the running code is inside :func:`unfenced`."""
    return _unfenced.get()


def leases_in_force() -> tuple[Lease, ...]:
    """The leases under which the running code writes.

    Raises:
        LeaseNotHeld: the task has outlived its guarded body, or the task that entered the hold has ended; it
            must not pass for code that never had a lease.
    """
    return () if is_unfenced() else leases_of_bodies()


def leases_of_bodies() -> tuple[Lease, ...]:
    """The leases of all surrounding bodies.

    Raises:
        LeaseNotHeld: see :func:`leases_in_force`; a write under what is left of several leases would pass for
            one under all of them.
    """
    if (ended := outlived_lease()) is not None:
        raise LeaseNotHeld(
            f"this task began in the body of the lease on {ended.resource!r}, which was released:"
            " await it inside the body, or write inside `with unfenced():` what needs no fence",
            resource=ended.resource,
            token=ended.token,
        )
    if (left := lost_sight()) is not None:
        raise LeaseNotHeld(
            f"the hold on {left.resource!r} is open, and the task that entered it has ended, so its lease is"
            " not in force here: enter it in the task whose body it is, with hold(..., wait=...) or inside"
            " `async with asyncio.timeout(...)` instead of asyncio.wait_for(...); write inside"
            " `with unfenced():` what needs no fence",
            resource=left.resource,
            token=left.token,
        )
    return current_leases()
