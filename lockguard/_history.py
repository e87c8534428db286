"""The lines of a resource's history, read back; docs/reference/redis-keys.md is their contract."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from statistics import median_low

from lockguard.text import TEXT_CHARACTERS_MAX

__all__ = ["UNREADABLE", "HistoryEntry", "merged", "read_line", "read_lines"]

UNREADABLE = "unreadable"
"""The event of a line that is none of ours."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_LINE = re.compile(
    r"(?P<at_us>[0-9]{1,18}) (?P<event>[a-z_]{1,40})(?: token=(?P<token>[0-9]{1,19}))?"
    r"(?: grant=(?P<grant>\S*))?(?: holder=(?P<holder>\S*))?(?: (?P<what>operation|reason)=(?P<text>.*))?"
)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One event in the life of a resource's lock.

    Attributes:
        at: when, by the server's clock, in UTC. Of a line that cannot be read: that of the line written
            before it, or 1970 where there is none.
        event: ``granted``, ``released``, ``broken``, ``asked``, ``opened`` or ``rejoined``, another word of a
            newer version, or ``unreadable``.
        token: the grant's fencing token, where the line tells it.
        grant: the grant; empty if the line does not tell it.
        holder: who was granted the lock, for display.
        operation: what for, for display.
        reason: why it was broken, asked for or opened, for display; of an unreadable line its text.
    """

    at: datetime
    event: str
    token: int | None = None
    grant: str = ""
    holder: str = ""
    operation: str = ""
    reason: str = ""


def read_line(line: str, *, otherwise: datetime = _EPOCH) -> HistoryEntry:
    """Read one line, made printable before; ``otherwise``: the time of one that cannot be read."""
    found = _LINE.fullmatch(line)
    if found is None:
        return HistoryEntry(otherwise, UNREADABLE, reason=line[:TEXT_CHARACTERS_MAX])
    try:
        at = _EPOCH + timedelta(microseconds=int(found["at_us"]))
    except OverflowError:
        return HistoryEntry(otherwise, UNREADABLE, reason=line[:TEXT_CHARACTERS_MAX])
    text = found["text"] or ""
    return HistoryEntry(
        at=at,
        event=found["event"],
        token=int(found["token"]) if found["token"] else None,
        grant=found["grant"] or "",
        holder=found["holder"] or "",
        operation=text if found["what"] == "operation" else "",
        reason=text if found["what"] == "reason" else "",
    )


def read_lines(lines: Sequence[str]) -> list[HistoryEntry]:
    """Read the lines of one node, newest first."""
    entries: list[HistoryEntry] = []
    at = _EPOCH
    for line in reversed(lines):
        entries.append(read_line(line, otherwise=at))
        at = entries[-1].at
    return entries[::-1]


def merged(told: Sequence[Sequence[HistoryEntry]]) -> list[HistoryEntry]:
    """Combine what several nodes tell, newest first: what happened on several of them is told once.

    The nodes' clocks differ, and so may their tokens: told is the middle time, and the token of most nodes.
    """
    same: dict[tuple[str, str, str, int], list[HistoryEntry]] = defaultdict(list)
    for entries in told:
        times: Counter[tuple[str, str, str]] = Counter()
        for entry in entries:
            what = (entry.event, entry.grant, entry.reason)
            same[(*what, times[what])].append(entry)
            times[what] += 1
    entries = [
        replace(
            each[0],
            at=median_low(entry.at for entry in each),
            token=_token([entry.token for entry in each if entry.token is not None]),
        )
        for each in same.values()
    ]
    return sorted(entries, key=lambda entry: entry.at, reverse=True)


def _token(told: Sequence[int]) -> int | None:
    given = Counter(told)
    return max(given, key=lambda token: (given[token], token), default=None)
