"""Asks the servers what happened to one resource, each bounded, and one without the other if need be."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard._story import Line, story
from lockguard.errors import ConfigurationError, FenceUnavailable, QuorumUnavailable

if TYPE_CHECKING:
    from lockguard._guard import LockGuard
    from lockguard._history import HistoryEntry
    from lockguard._records import AuditLine, FenceState, Records, Refusal
    from lockguard.errors import LockguardError
    from lockguard.ports import Inspection

__all__ = ["Told", "read"]


@dataclass(slots=True)
class Told:
    """What the servers know.

    Attributes:
        lock: the lock now, if Redis answers.
        entries: Redis's history, newest first.
        state: the fence now, if it knows the resource.
        audit: the fence's audit.
        refusals: the refused writes.
        redis_ahead: Redis's clock against ours; ``None`` if it is not known.
        fence_ahead: the database's clock against ours; ``None`` if it is not known.
        silent: which server did not answer, and why.
    """

    lock: Inspection | None = None
    entries: tuple[HistoryEntry, ...] = ()
    state: FenceState | None = None
    audit: tuple[AuditLine, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    redis_ahead: timedelta | None = None
    fence_ahead: timedelta | None = None
    silent: dict[str, LockguardError] = field(default_factory=dict)

    @property
    def offset(self) -> timedelta | None:
        """How far the database's clock is ahead of Redis's."""
        if self.redis_ahead is None or self.fence_ahead is None:
            return None
        return self.fence_ahead - self.redis_ahead

    @property
    def lines(self) -> list[Line]:
        """It put together, oldest first."""
        return story(
            self.entries, self.lock, self.state, self.audit, self.refusals, ahead=self.offset or timedelta(0)
        )


async def read(resource: str, guard: LockGuard, records: Records | None, *, limit: int) -> Told:
    """Ask the servers; one that does not answer is told in ``silent``.

    Args:
        resource: the resource.
        guard: Redis.
        records: the fence; ``None`` if no database is named.
        limit: how many lines of each kind at most.

    Raises:
        ConfigurationError: Redis refused the log-in or lacks a right.
    """
    told = Told()
    try:
        before = SYSTEM_CLOCK.wall()
        told.lock = await guard.inspect(resource)
        between = (before + SYSTEM_CLOCK.wall()) / 2
        if told.lock.server_ms:
            told.redis_ahead = timedelta(seconds=told.lock.server_ms / 1000 - between)
        told.entries = await guard.history(resource, limit=limit)
    except QuorumUnavailable as exc:
        told.lock, told.silent["Redis"] = None, exc
    if records is None:
        return told
    try:
        await records.now()  # connects: the offset is measured by the second
        before, now = SYSTEM_CLOCK.wall(), await records.now()
        told.fence_ahead = now - datetime.fromtimestamp((before + SYSTEM_CLOCK.wall()) / 2, UTC)
        states = await records.states([resource])
        told.state = states[0] if states else None
        told.audit = await records.audit(resource, limit=limit)
        told.refusals = await records.refusals(resource, limit=limit)
    except (ConfigurationError, FenceUnavailable) as exc:  # such as a schema that is old or not there
        told.silent["Postgres"] = exc
    return told
