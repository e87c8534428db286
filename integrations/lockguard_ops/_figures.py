"""The figures of the exporter, from readings of an installation.

What a source shows is left out where it could not be read: no held locks and no answer are not the same.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeAlias

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import LockguardError
from lockguard.text import first_line, printable
from lockguard_metrics._groups import Groups, exchange_of
from lockguard_ops import _exporter_catalog as the
from lockguard_ops._installation import OpenFences, Snapshot
from lockguard_ops._refused import RefusedWrites

if TYPE_CHECKING:
    from lockguard_metrics._catalog import Metric
    from lockguard_ops._installation import Installation, LockView

__all__ = ["Figures", "Reading", "Values"]

Values: TypeAlias = "Mapping[Metric, Mapping[tuple[str, ...], float]]"

_LONG = timedelta(minutes=1)
_GROUPS_MAX = 50
_REFUSALS_MAX = 5_000
_REASONS = ("superseded", "closed", "unsealed", "voided", "outrun", "unguarded")
_ENTERED = frozenset({"entry_placed", "pending_sl"})
_ENTERING = "pending_entry"


@dataclass(frozen=True, slots=True)
class Reading:
    """The figures of one reading.

    Attributes:
        at: when it was complete, on the system's clock, in seconds.
        values: each metric's values by labels.
        troubles: what could not be read, by source, each in one line.
    """

    at: float
    values: Values
    troubles: Mapping[str, str]


class Figures:
    """Reads an installation again and again.

    Args:
        installation: what is read.
    """

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._groups = Groups(exchange_of, _GROUPS_MAX)
        self._refused = RefusedWrites()
        self._refusals: dict[tuple[str, ...], float] = {}
        self._known: set[str] = set()
        """The groups that have been seen: what there is none of any more is zero, and not absent."""

    async def read(self) -> Reading:
        """Read everything once; what does not answer is among the troubles."""
        began = SYSTEM_CLOCK.now()
        (snapshot, unread), answering = await asyncio.gather(self._snapshot(), self._installation.answering())
        fences = OpenFences(fault=snapshot.database_fault)
        if not snapshot.database_fault:  # one that does not answer is not waited for twice
            fences = await self._installation.open_fences()
        faults = {"redis": snapshot.redis_fault}
        if self._installation.has_database:
            faults["database"] = snapshot.database_fault or fences.fault
        book = _Book(self._known, self._groups)
        if not snapshot.redis_fault:
            _note_locks(snapshot.locks, book, fenced=not faults.get("database", "no database"))
        if fences.at is not None:
            held: set[str] | None = None
            if not snapshot.redis_fault and not snapshot.unread:
                held = {view.lock.resource for view in snapshot.locks if view.lock.held}
            _note_fences(fences, fences.at, held, book)
            _note_positions(snapshot, fences.at, book)
        # None that were read is the beginning of the count: later all old ones would be new.
        if not unread and not faults.get("database", "no database"):
            self._count_refusals(snapshot, book)
        for name, answers in answering.items():
            book.values[the.SERVER_UP][name,] = float(answers)
        for source, fault in faults.items():
            book.values[the.SOURCE_UP][source,] = float(not fault)
        book.values[the.UP][()] = float(not any(faults.values()))
        now = SYSTEM_CLOCK.now()
        book.values[the.READING][()] = now - began
        told = {**faults, "locks": snapshot.unread}
        return Reading(now, book.values, {source: fault for source, fault in told.items() if fault})

    async def _snapshot(self) -> tuple[Snapshot, bool]:
        """What is there, and whether nothing of it could be read, not even the tables."""
        try:
            return await self._installation.snapshot(refusals=_REFUSALS_MAX), False
        except LockguardError as exc:  # such as a user without the right to list
            return Snapshot(datetime.now(UTC), redis_fault=printable(first_line(exc))), True

    def _count_refusals(self, snapshot: Snapshot, book: _Book) -> None:
        for one in snapshot.refusals:
            book.group(one.resource)
        for group in self._known:
            for reason in _REASONS:
                self._refusals.setdefault((group, reason), 0.0)
        for one, more in self._refused.grown(snapshot.refusals):
            key = (book.group(one.resource), one.reason if one.reason in _REASONS else "other")
            self._refusals[key] = self._refusals.get(key, 0.0) + more
        book.values[the.REFUSED] = dict(self._refusals)


class _Book:
    """Values that are being put together."""

    def __init__(self, known: set[str], groups: Groups) -> None:
        self.values: defaultdict[Metric, dict[tuple[str, ...], float]] = defaultdict(dict)
        self._known = known
        self._groups = groups

    def group(self, resource: str) -> str:
        """The group of a resource, which is known from now on."""
        group = self._groups.of(resource)
        self._known.add(group)
        return group

    def add(self, metric: Metric, *labels: str, number: float = 1) -> None:
        """Add to a value."""
        found = self.values[metric]
        found[labels] = found.get(labels, 0.0) + number

    def raise_to(self, metric: Metric, *labels: str, value: float) -> None:
        """Keep the highest value."""
        found = self.values[metric]
        found[labels] = max(found.get(labels, 0.0), value)

    def complete(self, *metrics: Metric) -> None:
        """Have these metrics be zero for the known groups without a value."""
        for metric in metrics:
            for group in self._known:
                self.add(metric, group, number=0)


def _note_locks(views: Sequence[LockView], book: _Book, *, fenced: bool) -> None:
    for view in views:
        lock = view.lock
        group = book.group(lock.resource)
        book.add(the.LOCKS_HELD, group, number=lock.held)
        book.raise_to(the.OLDEST_LOCK, group, value=lock.age_ms / 1000 if lock.held else 0)
        book.add(the.LOCKS_LATE, group, number=lock.renewal_late_ms > 0)
        book.add(the.LOCKS_CLOSED, group, number=not lock.held and lock.closed_ms > 0)
        book.add(the.LOCKS_WANTED, group, number=lock.held and bool(lock.wanted))
        book.add(the.QUEUED, group, number=len(lock.waiters))
        waited_ms = max((waiter.waiting_ms for waiter in lock.waiters), default=0)
        book.raise_to(the.LONGEST_QUEUED, group, value=waited_ms / 1000)
        if fenced and lock.held:
            book.add(the.HELD_BY_FENCE, group, "unsealed" if view.fence is None else view.fence.value)
    book.complete(
        *(the.LOCKS_HELD, the.OLDEST_LOCK, the.LOCKS_LATE, the.LOCKS_CLOSED, the.LOCKS_WANTED),
        *(the.QUEUED, the.LONGEST_QUEUED),
    )


def _note_fences(fences: OpenFences, now: datetime, held: set[str] | None, book: _Book) -> None:
    for state in fences.states:
        group = book.group(state.resource)
        book.add(the.FENCES_OPEN, group)
        if held is not None and state.resource not in held and state.sealed_at < now - _LONG:
            book.add(the.FENCES_LEFT_OPEN, group)
    book.complete(the.FENCES_OPEN, *(() if held is None else (the.FENCES_LEFT_OPEN,)))


def _note_positions(snapshot: Snapshot, now: datetime, book: _Book) -> None:
    if snapshot.positions is None:
        return
    for row in snapshot.positions:
        group = book.group(row.resource)
        lasts = max(timedelta(), now - row.since)
        book.add(the.POSITIONS, group)
        book.add(the.ENTRIES_IN_DOUBT, group, number=row.status == _ENTERING and lasts > _LONG)
        if row.status in _ENTERED:
            book.add(the.WITHOUT_STOP, group)
            book.raise_to(the.LONGEST_WITHOUT_STOP, group, value=lasts.total_seconds())
    book.complete(the.POSITIONS, the.ENTRIES_IN_DOUBT, the.WITHOUT_STOP, the.LONGEST_WITHOUT_STOP)
