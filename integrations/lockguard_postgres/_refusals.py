"""Where a refused write is noted, so that a fence can record it once its transaction has been rolled back.

Noting never waits, fails or sends anything: the caller's error is on its way. Which fence refused is told by
the refusal itself; a process that has no :class:`~lockguard_asyncpg.PostgresFence` on that database records
nothing, and what psql was refused is in the server's log only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from lockguard._lease import Lease

__all__ = ["REFUSALS", "Refused", "TakesRefusals"]


@dataclass(frozen=True, slots=True)
class Refused:
    """One refused write; those that are equal become one line with a count.

    Attributes:
        resource: under which resource; empty if the row had none.
        presented: the token that it presented, if any.
        current: the token that was in force, if any.
        sqlstate: ``LG001`` or ``LG002``.
        reason: one word of the fence's, such as ``superseded``.
        holder: whose write it was, for display; empty if that is not known.
        operation: what its lease was for, for display.
    """

    resource: str
    presented: int | None
    current: int | None
    sqlstate: str
    reason: str
    holder: str = ""
    operation: str = ""


class TakesRefusals(Protocol):
    """Records what its fence refused."""

    def take(self, fence: str, refused: Refused) -> bool:
        """Note ``refused`` if ``fence`` is the name of this one; returns whether it is."""
        ...


class Refusals:
    """The fences of this process, and what to tell them."""

    def __init__(self) -> None:
        self._fences: WeakSet[TakesRefusals] = WeakSet()
        self._told: WeakSet[BaseException] = WeakSet()

    def join(self, fence: TakesRefusals) -> None:
        """Tell ``fence`` of refusals for as long as it exists."""
        self._fences.add(fence)

    def note(self, exc: BaseException, facts: Mapping[str, Any], leases: Collection[Lease]) -> None:
        """Note what the database said with ``exc``; again for the same error, nothing happens.

        A refused token is noted where its lease is known, which may be one caller further up.

        Args:
            exc: the error.
            facts: its DETAIL.
            leases: under which the write was sent.
        """
        fence, presented = facts.get("fence"), facts.get("presented")
        if not isinstance(fence, str) or exc in self._told or (presented is not None and not leases):
            return
        self._told.add(exc)
        resource = str(facts.get("resource") or "")
        of = next((x.grant for x in leases if x.resource == resource and x.token == presented), None)
        refused = Refused(
            resource,
            presented,
            facts.get("current"),
            str(getattr(exc, "sqlstate", "")),
            str(facts.get("reason") or ""),
            "" if of is None else of.holder,
            "" if of is None else of.operation,
        )
        with contextlib.suppress(RuntimeError):  # another thread's loop has just added its fence
            for one in tuple(self._fences):
                if one.take(fence.replace("-", ""), refused):
                    return


REFUSALS = Refusals()
"""The refusals of this process."""
