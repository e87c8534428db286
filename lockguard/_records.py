"""What a fence keeps for operators to read: its state, its audit and what it refused.

The fence is in a database, of which the core knows nothing: an integration reads it (``open_records`` beside
the ``lockguard fence`` command), and whatever shows it needs only what is here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from lockguard.ports import Inspection

__all__ = ["AuditLine", "FenceStanding", "FenceState", "Records", "Refusal", "standing"]


@dataclass(frozen=True, slots=True)
class FenceState:
    """The fence of one resource.

    Attributes:
        resource: the resource.
        token: the token of the grant that was sealed last, or of the break.
        grant: that grant's id.
        holder: who held it, or who broke it, for display.
        operation: what for, for display.
        is_open: whether writes of that grant are accepted.
        sealed_at: since when the token is in force, on the database's clock.
        released_at: since when no write is accepted; ``None`` while it is open.
    """

    resource: str
    token: int
    grant: str
    holder: str
    operation: str
    is_open: bool
    sealed_at: datetime
    released_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """What a person did past the fence.

    Attributes:
        at: when, on the database's clock.
        actor: the role that was logged in.
        action: such as ``break``, ``recover`` or ``prune``.
        subject: the resource or table, or a description of many.
        reason: why, in their words.
    """

    at: datetime
    actor: str
    action: str
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A write that the fence refused, perhaps several times.

    Attributes:
        resource: under which resource it was to be written; empty if the row had none.
        presented: the token that it presented; ``None`` for none.
        current: the token that was in force; ``None`` for none.
        sqlstate: ``LG001``: a stale token; ``LG002``: no token for a row of a protected table.
        reason: ``superseded``, ``closed``, ``unsealed``, ``voided``, ``outrun`` or ``unguarded``.
        holder: whose write it was, for display; empty if that is not known.
        operation: what its lease was for, for display.
        role: the role that was logged in where it was recorded.
        application: the application name there.
        times: how often it was refused.
        first_at: when it was refused for the first time, on the database's clock.
        at: when it was refused for the last time.
    """

    resource: str
    presented: int | None
    current: int | None
    sqlstate: str
    reason: str
    holder: str
    operation: str
    role: str
    application: str
    times: int
    first_at: datetime
    at: datetime


class Records(Protocol):
    """Reads what a fence keeps; changes nothing.

    Every method raises ``FenceUnavailable`` if the database does not answer, and ``ConfigurationError`` if
    its schema is missing or old, or the role lacks a right.
    """

    async def states(
        self, resources: Collection[str] | None = None, *, only_open: bool = False
    ) -> tuple[FenceState, ...]:
        """The fence of each of ``resources`` that has one, in the order of their names; ``None``: of all."""
        ...

    async def audit(self, resource: str | None = None, *, limit: int = 100) -> tuple[AuditLine, ...]:
        """The last lines of the audit, newest first.

        Of one resource, with the recoveries and prunes that may have reached it; ``None``: all lines.
        """
        ...

    async def refusals(
        self, resource: str | None = None, *, since: datetime | None = None, limit: int = 100
    ) -> tuple[Refusal, ...]:
        """The last refused writes, newest first: of one resource or of all, since a time if one is given."""
        ...

    async def now(self) -> datetime:
        """The database's clock."""
        ...


class FenceStanding(StrEnum):
    """How the fence of a resource stands to its lock in Redis."""

    OPEN = "open"
    """The writes of the grant that was sealed last are accepted."""
    CLOSED = "closed"
    """No write is accepted."""
    AHEAD = "ahead"
    """The fence's token is higher than Redis's: it was broken there, or Redis has lost what it knew. The
    holder that Redis shows cannot write, and the next grant settles a higher token."""


def standing(found: Inspection, state: FenceState | None) -> FenceStanding | None:
    """How the fence stands to the lock; ``None`` if the resource was never sealed.

    Where the lock is free and Redis does not know the last token any more, it cannot be told whether the
    fence is ahead.
    """
    if state is None:
        return None
    if state.token > found.token and (found.held or found.token):
        return FenceStanding.AHEAD
    return FenceStanding.OPEN if state.is_open else FenceStanding.CLOSED
