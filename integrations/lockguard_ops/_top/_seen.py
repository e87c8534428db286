"""What ``top`` has seen: the last state of each server, also while it does not answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lockguard._records import Refusal
    from lockguard_ops._installation import LockView, Snapshot
    from lockguard_ops._positions import OpenPosition

__all__ = ["Seen", "matching"]

_RECENT = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Seen:
    """The last that was read of each server.

    Attributes:
        at: when the last reading ended; ``None``: nothing was read yet.
        locks: what Redis said when it last answered.
        locks_at: when that was; ``None``: never.
        since: when each grant of these was given, as it was seen first. An age is read with each lock, some
            milliseconds apart, so that locks of nearly the same age would change places with each reading.
        fence_known: whether the database was asked about these locks.
        refusals: what the database said when it last answered, newest first.
        positions: the same; ``None``: they could never be read.
        tables_at: when the database last answered in full; ``None``: never.
        redis_fault: why Redis could not be read this time; empty if it was.
        unread: which locks could not be read this time; empty if all were.
        database_fault: the same of the database.
        silent: the servers of a quorum that do not answer while a majority does.
        took_s: how long the last reading took.
    """

    at: datetime | None = None
    locks: tuple[LockView, ...] = ()
    locks_at: datetime | None = None
    since: Mapping[str, datetime] = field(default_factory=dict)
    fence_known: bool = True
    refusals: tuple[Refusal, ...] = ()
    positions: tuple[OpenPosition, ...] | None = None
    tables_at: datetime | None = None
    redis_fault: str = ""
    unread: str = ""
    database_fault: str = ""
    silent: tuple[str, ...] = ()
    took_s: float = 0.0

    def after(self, read: Snapshot) -> Seen:
        """What is known after another reading: where a server failed, what it said before."""
        seen = replace(
            self,
            at=read.at,
            redis_fault=read.redis_fault,
            unread=read.unread,
            database_fault=read.database_fault,
            took_s=read.took_s,
            refusals=read.refusals or self.refusals,
        )
        if not read.redis_fault:
            known = not read.database_fault or any(view.fence is not None for view in read.locks)
            since = {
                view.lock.grant: self.since.get(view.lock.grant) or _since(read.at, view.lock.age_ms)
                for view in read.locks
                if view.lock.held
            }
            seen = replace(seen, locks=read.locks, locks_at=read.at, since=since, fence_known=known)
        if not read.database_fault:
            seen = replace(seen, refusals=read.refusals, positions=read.positions, tables_at=read.at)
        return seen

    @property
    def waiters(self) -> int:
        """How many wait, for any lock."""
        return sum(len(view.lock.waiters) for view in self.locks)

    @property
    def held(self) -> int:
        """How many locks are held."""
        return sum(view.lock.held for view in self.locks)

    @property
    def late(self) -> int:
        """How many leases were not renewed in time."""
        return sum(view.lock.renewal_late_ms > 0 for view in self.locks)

    @property
    def refused(self) -> int:
        """How many writes were refused within the last hour, as far as the last refusals tell."""
        if self.at is None:
            return 0
        return sum(refusal.times for refusal in self.refusals if refusal.at > self.at - _RECENT)

    @property
    def without_stop(self) -> int | None:
        """How many positions the exchange may hold without a stop; ``None`` if that is not known."""
        if self.positions is None:
            return None
        return sum(position.without_stop for position in self.positions)

    @property
    def faults(self) -> int:
        """How many servers could not be read, or not in full."""
        return bool(self.redis_fault or self.unread) + len(self.silent) + bool(self.database_fault)

    def age(self, view: LockView) -> timedelta:
        """How old a lock is, by when it was seen first."""
        since = self.since.get(view.lock.grant)
        return timedelta(0) if since is None or self.locks_at is None else self.locks_at - since

    def new_refusals(self, before: Seen) -> list[Refusal]:
        """The refusals that were not there, or fewer times, in an earlier state; the oldest first."""
        if before.tables_at is None:
            return []
        known = {_identity(refusal): refusal.times for refusal in before.refusals}
        newest_first = [each for each in self.refusals if known.get(_identity(each), 0) < each.times]
        return newest_first[::-1]


def _since(at: datetime, age_ms: int) -> datetime:
    try:
        return at - timedelta(milliseconds=age_ms)
    except OverflowError:  # a foreign client wrote a time that is in no calendar
        return at


def _identity(refusal: Refusal) -> tuple[object, ...]:
    return refusal.resource, refusal.presented, refusal.sqlstate, refusal.reason, refusal.first_at


def matching(locks: Iterable[LockView], pattern: str) -> list[LockView]:
    """The locks whose resource, holder or operation match.

    Args:
        locks: any.
        pattern: with ``*``, ``?`` or ``[`` a pattern for the whole of it, else a part of it; upper and lower
            case are the same. Empty: all.
    """
    wanted = pattern.strip().lower()
    if not wanted:
        return list(locks)
    if not set(wanted) & set("*?["):
        wanted = f"*{wanted}*"
    return [
        view
        for view in locks
        if any(
            fnmatchcase(text.lower(), wanted)
            for text in (view.lock.resource, view.lock.holder, view.lock.operation)
        )
    ]
