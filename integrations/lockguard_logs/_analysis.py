"""Derives duplicates, races and the timeline of a symbol from the events in single records.

A position is *created twice* when its symbol gets a second row while the first, created within the window
before, has not ended. That is a duplicate whichever process created them; two messages about one row number
are not. Likewise, a position is *entered twice* when a second entry order with another number follows the
first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockguard_logs._sightings import Sighting, SightingKind, sightings
from lockguard_logs._symbols import Named, Spelling

if TYPE_CHECKING:
    from lockguard_logs._records import Record

__all__ = ["Analysis", "Finding", "FindingKind", "Told", "analyze"]

WINDOW = timedelta(seconds=60)
_SAME_ERROR = timedelta(seconds=1)
"""An error logged again within this time, as it propagates, counts as one error."""
_SIGHTINGS_MAX = 200_000
_TIMELINE_MAX = 20_000
_NEW = frozenset({SightingKind.CREATED, SightingKind.OPENED, SightingKind.ENTERED})
_TOKEN = re.compile(r"token[= ](\d+)|presented (?:token=)?(\S+?),")


class FindingKind(StrEnum):
    """The kind of a finding: a duplicate, or a race that was stopped."""

    CREATED_TWICE = "created twice"
    """A second row was made for a symbol whose first had not ended."""
    ENTERED_TWICE = "entered twice"
    """A second entry was ordered for a symbol whose first had not ended."""
    UNIQUE_VIOLATION = "unique violation"
    """Postgres refused a second row by a unique index."""
    STALE_WRITE = "stale write refused"
    """Postgres refused a write whose lease had ended."""
    UNGUARDED_WRITE = "unguarded write refused"
    """Postgres refused a write that presented no lease."""
    LEASE_LOST = "lease lost"
    """A lease ended under its body."""

    @property
    def duplicate(self) -> bool:
        """Whether two rows or entries existed or were attempted; otherwise it is a race that was stopped."""
        return self in {FindingKind.CREATED_TWICE, FindingKind.ENTERED_TWICE, FindingKind.UNIQUE_VIOLATION}


@dataclass(frozen=True, slots=True)
class Finding:
    """A duplicate, or a race that was stopped.

    Attributes:
        kind: what it is.
        symbol: ``None`` if the log does not name it.
        exchange: ``None`` if the log does not name it.
        details: the decisive part of the message.
        sightings: the events it is derived from, in order of time.
    """

    kind: FindingKind
    symbol: str | None
    exchange: str | None
    details: str
    sightings: tuple[Sighting, ...]

    @property
    def at(self) -> datetime:
        """The time of its first event."""
        return self.sightings[0].at

    @property
    def until(self) -> datetime:
        """The time of its last event."""
        return self.sightings[-1].at

    @property
    def resource(self) -> str:
        """The symbol with its exchange as far as known; ``-`` without a symbol."""
        return "-" if self.symbol is None else str(Named(self.symbol, self.exchange))


@dataclass(frozen=True, slots=True)
class Told:
    """A line of a symbol's timeline.

    Attributes:
        what: the kinds of event in it; empty for a line that only mentions the symbol.
    """

    at: datetime
    what: tuple[SightingKind, ...]
    level: str
    text: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of analyzing one or more logs.

    Attributes:
        records: the number of records in the interval.
        first: the time of the earliest record; ``None`` if there was none.
        last: the time of the latest record; ``None`` if there was none.
        counts: the number of events of each kind.
        busy: how often each symbol was found busy: races that were avoided.
        findings: the duplicates and the races that were stopped, in order of time.
        seen: the events, in order of time; used to draw the picture.
        timeline: the story of the requested symbol.
        complete: whether everything was kept and judged; otherwise only what was read first.
        not_understood: the files in which no message about a new position was recognised, for any symbol at
            any time. The absence of duplicates in them has not been shown.
        understood: whether such a message was recognised in at least one file.
    """

    records: int
    first: datetime | None
    last: datetime | None
    counts: dict[SightingKind, int]
    busy: dict[str, int]
    findings: tuple[Finding, ...]
    seen: tuple[Sighting, ...]
    timeline: tuple[Told, ...] = ()
    complete: bool = True
    not_understood: tuple[str, ...] = ()
    understood: bool = True

    def of(self, kind: FindingKind) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(finding for finding in self.findings if finding.kind is kind)

    @property
    def cut_off(self) -> str | None:
        """A description of what was kept of a log too long for the memory bound; ``None`` if all was kept."""
        if self.complete:
            return None
        events = f"the first {len(self.seen)} events that were read, to {self.seen[-1].at:%Y-%m-%d %H:%M:%S}"
        lines = f", and {len(self.timeline)} lines of the story" if self.timeline else ""
        return (
            f"judged are {events}{lines}" if self.seen else f"kept are the first {len(self.timeline)} lines"
        )

    def as_json(self) -> dict[str, Any]:
        """The analysis as JSON-compatible values, as ``--export`` writes it."""
        return {
            "records": self.records,
            "first": None if self.first is None else self.first.isoformat(),
            "last": None if self.last is None else self.last.isoformat(),
            "counts": {kind.value: count for kind, count in self.counts.items()},
            "busy": self.busy,
            "complete": self.complete,
            "understood": self.understood,
            "not_understood": list(self.not_understood),
            "findings": [
                {
                    "kind": finding.kind.value,
                    "duplicate": finding.kind.duplicate,
                    "symbol": finding.symbol,
                    "exchange": finding.exchange,
                    "at": finding.at.isoformat(),
                    "until": finding.until.isoformat(),
                    "details": finding.details,
                    "told": [_place(sighting) for sighting in finding.sightings],
                }
                for finding in self.findings
            ],
            "timeline": [
                {
                    "at": told.at.isoformat(),
                    "what": [kind.value for kind in told.what],
                    "level": told.level,
                    "text": told.text,
                    "file": told.file,
                    "line": told.line,
                }
                for told in self.timeline
            ],
        }


def _place(sighting: Sighting) -> dict[str, Any]:
    return {
        "kind": sighting.kind.value,
        "at": sighting.at.isoformat(),
        "position_id": sighting.position_id,
        "order": sighting.order,
        "details": sighting.details,
        "file": sighting.file,
        "line": sighting.line,
    }


def analyze(
    records: Iterable[Record],
    *,
    symbol: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    window: timedelta = WINDOW,
    created: re.Pattern[str] | None = None,
) -> Analysis:
    """Analyze the records of one or several logs.

    Args:
        records: in any order; the logs of several processes may follow one another.
        symbol: restricts the analysis to this symbol, in any spelling, and adds its timeline.
        start: ignores earlier records.
        end: ignores later records; a record at this instant counts.
        window: how long after a row a second row of the same symbol is a duplicate.
        created: matches the bot's own message about a new position.
    """
    gathered = _Gathered(None if symbol is None else Spelling(symbol))
    for record in records:
        if (start is None or record.at >= start) and (end is None or record.at <= end):
            gathered.take(record, created)
        elif record.file not in gathered.understood:
            gathered.understand(record, sightings(record, created))
    seen = sorted(gathered.seen, key=lambda sighting: sighting.at)
    return Analysis(
        gathered.records,
        gathered.first,
        gathered.last,
        {kind: gathered.counts[kind] for kind in SightingKind if gathered.counts[kind]},
        dict(gathered.busy.most_common()),
        tuple(sorted([*_told_once(seen), *_twice(seen, window)], key=lambda finding: finding.at)),
        tuple(seen),
        tuple(sorted(gathered.timeline, key=lambda told: told.at)),
        gathered.complete,
        tuple(sorted(gathered.files - gathered.understood)),
        bool(gathered.understood),
    )


@dataclass(slots=True)
class _Gathered:
    spelling: Spelling | None
    records: int = 0
    first: datetime | None = None
    last: datetime | None = None
    complete: bool = True
    files: set[str] = field(default_factory=set)
    understood: set[str] = field(default_factory=set)
    counts: Counter[SightingKind] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    seen: list[Sighting] = field(default_factory=list)
    timeline: list[Told] = field(default_factory=list)

    def take(self, record: Record, created: re.Pattern[str] | None) -> None:
        self.records += 1
        self.first = record.at if self.first is None else min(self.first, record.at)
        self.last = record.at if self.last is None else max(self.last, record.at)
        found = list(sightings(record, created))
        self.understand(record, found)
        if self.spelling is not None:
            found = [sighting for sighting in found if self._concerns(sighting, record, self.spelling)]
            if found or self.spelling.in_text(record.text):
                self._tell(record, found)
        for sighting in found:
            self._keep(sighting)

    def understand(self, record: Record, found: Iterable[Sighting]) -> None:
        """Note whether a record's events include a new position."""
        self.files.add(record.file)
        if record.file not in self.understood and any(sighting.kind in _NEW for sighting in found):
            self.understood.add(record.file)

    def _concerns(self, sighting: Sighting, record: Record, spelling: Spelling) -> bool:
        if sighting.named is None:
            return spelling.in_text(record.text)
        return sighting.named.symbol == spelling.symbol

    def _tell(self, record: Record, found: Sequence[Sighting]) -> None:
        if len(self.timeline) < _TIMELINE_MAX:
            kinds = tuple(dict.fromkeys(sighting.kind for sighting in found))
            self.timeline.append(
                Told(record.at, kinds, record.level, record.first_line, record.file, record.line)
            )
        else:
            self.complete = False

    def _keep(self, sighting: Sighting) -> None:
        self.counts[sighting.kind] += 1
        if sighting.kind is SightingKind.BUSY:
            self.busy[str(sighting.named)] += 1
        if len(self.seen) < _SIGHTINGS_MAX:
            self.seen.append(sighting)
        else:
            self.complete = False


# --- errors: one finding each, however often they are logged ---

_ERRORS = {
    SightingKind.UNIQUE_VIOLATION: FindingKind.UNIQUE_VIOLATION,
    SightingKind.STALE_WRITE: FindingKind.STALE_WRITE,
    SightingKind.UNGUARDED_WRITE: FindingKind.UNGUARDED_WRITE,
    SightingKind.LEASE_LOST: FindingKind.LEASE_LOST,
}


def _told_once(seen: Sequence[Sighting]) -> list[Finding]:
    groups: list[list[Sighting]] = []
    latest: dict[tuple[object, ...], list[Sighting]] = {}
    for sighting in seen:
        if sighting.kind not in _ERRORS:
            continue
        key = _identity(sighting)
        of_row = (*key, sighting.position_id)
        group = latest.get(of_row) or latest.get(key)
        by_token = isinstance(key[-1], int)
        if (
            group is None
            or not (by_token or sighting.at - group[-1].at <= _SAME_ERROR)
            or _of_other_row(group, sighting)
        ):
            group = latest[key] = []
            groups.append(group)
        group.append(sighting)
        if sighting.position_id is not None:
            latest[of_row] = group
    return [_finding(_ERRORS[group[0].kind], group, group[0].details) for group in groups]


def _identity(sighting: Sighting) -> tuple[object, ...]:
    """The key that makes two sightings one error: the token, which is given once, else file and message."""
    symbol = None if sighting.named is None else sighting.named.symbol
    token = _TOKEN.search(sighting.details)
    if token is not None and (number := token[1] or token[2]).isdigit():
        return (sighting.kind, symbol, int(number))
    return (sighting.kind, symbol, sighting.file, sighting.details)


def _of_other_row(group: Sequence[Sighting], sighting: Sighting) -> bool:
    """Whether a sighting belongs to another row, and so is another error despite the same message."""
    rows = {told.position_id for told in group} - {None}
    return sighting.position_id is not None and bool(rows) and sighting.position_id not in rows


def _finding(kind: FindingKind, told: Sequence[Sighting], details: str) -> Finding:
    named = next(
        (sighting.named for sighting in told if sighting.named and sighting.named.exchange), told[0].named
    )
    symbol, exchange = (None, None) if named is None else (named.symbol, named.exchange)
    return Finding(kind, symbol, exchange, details, tuple(told))


# --- duplicates: rows created twice, positions entered twice ---


def _twice(seen: Sequence[Sighting], window: timedelta) -> list[Finding]:
    by_symbol: dict[str, list[Sighting]] = {}
    for sighting in seen:
        if sighting.named is not None:
            by_symbol.setdefault(sighting.named.symbol, []).append(sighting)
    found: list[Finding] = []
    for told in by_symbol.values():
        found += _pairs(told, SightingKind.ENTERED, window)
        twice = _pairs(told, SightingKind.CREATED, window)
        # For a log that mentions rows only once they are active, that message is the next best.
        found += twice or _pairs(told, SightingKind.OPENED, window)
    return found


def _pairs(told: Sequence[Sighting], kind: SightingKind, window: timedelta) -> list[Finding]:
    of = FindingKind.ENTERED_TWICE if kind is SightingKind.ENTERED else FindingKind.CREATED_TWICE
    live: list[Sighting] = []
    found = []
    for sighting in told:
        if sighting.kind is SightingKind.ENDED:
            live = [] if sighting.position_id is None else _without(live, sighting.position_id)
        elif sighting.kind is kind:
            if any(_same(other, sighting) for other in live):
                continue
            live = [other for other in live if sighting.at - other.at <= window]
            others = [other for other in live if _same_exchange(other, sighting)]
            if others:
                found.append(_finding(of, [others[-1], sighting], _apart(others[-1], sighting)))
            live.append(sighting)
    return found


def _same(one: Sighting, other: Sighting) -> bool:
    """Whether two messages are about the same row or the same entry."""
    if one.kind is SightingKind.ENTERED:
        return one.order == other.order
    return one.position_id is not None and one.position_id == other.position_id


def _without(live: Sequence[Sighting], position_id: int) -> list[Sighting]:
    """The rows left when a row has ended; if none has its number, the oldest unnumbered one is assumed."""
    if any(sighting.position_id == position_id for sighting in live):
        return [sighting for sighting in live if sighting.position_id != position_id]
    unnumbered = next((sighting for sighting in live if sighting.position_id is None), None)
    return [sighting for sighting in live if sighting is not unnumbered]


def _same_exchange(one: Sighting, other: Sighting) -> bool:
    assert one.named is not None
    assert other.named is not None
    return None in {one.named.exchange, other.named.exchange} or one.named.exchange == other.named.exchange


def _apart(one: Sighting, other: Sighting) -> str:
    rows = [str(s.position_id) for s in (one, other) if s.position_id is not None]
    seconds = (other.at - one.at).total_seconds()
    orders = f", orders {one.order} and {other.order}" if one.order else ""
    return f"{seconds:.3f} s apart{orders}" + (f", rows {' and '.join(rows)}" if len(rows) == 2 else "")
