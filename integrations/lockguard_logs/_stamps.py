"""Finds and parses timestamps in logs.

Common formats are recognised by their shape and parsed by the standard library, which takes a tenth of the
time; a log has millions of lines. Named months, and times that a user types, are left to dateutil. A format
with an ambiguous day and month (``11/10/2026``) is not guessed at.

A timestamp without a zone is compared as UTC and shown as it was written.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

try:
    from dateutil import parser as dateutil_parser
except ImportError as missing:
    raise ImportError("reading logs needs python-dateutil; pip install 'lockguard[cli]'") from missing

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_stamp", "read_number", "read_stamp", "read_typed"]

_WITHIN = 64
"""How far into a line its timestamp may begin: after a level, a container's or a logger's name."""

_ISO = re.compile(
    r"(?<![\d.])(?P<date>\d{4}[-/]\d\d[-/]\d\d)[T ](?P<time>\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
    r"(?: ?(?P<zone>Z|UTC|GMT|[+-]\d\d:?\d\d)\b)?"
)
_NAMED_MONTH = re.compile(
    r"(?<!\w)(?:(?P<clf>\d\d/[A-Z][a-z]{2}/\d{4}):(?P<clf_time>\d\d:\d\d:\d\d(?: [+-]\d{4})?)"
    r"|(?P<plain>(?:\d{4} )?[A-Z][a-z]{2} [ \d]?\d(?:,? \d{4})? \d\d:\d\d:\d\d(?:[.,]\d{1,6})?))"
)
_EPOCH = re.compile(r"^\W?(?P<number>1\d{9}(?:\.\d{1,9}|\d{3}|\d{6}|\d{9})?)(?![\d.:-])")
_FRACTION = re.compile(r"[.,](\d{1,9})")

_MICROSECOND_DIGITS = 6
_TOLD_APART_S = 1e11
"""Seconds since 1970 stay below this until the year 5138; a larger number is in a smaller unit."""


def find_stamp(line: str) -> tuple[datetime, int, int] | None:
    """Find the timestamp at the beginning of a log line.

    Returns:
        The time, and the start and end of the timestamp in the line; ``None`` for a line that has none.
    """
    if not line or line[0] in " \t":  # an indented traceback line may quote a timestamp but begins no record
        return None
    for pattern, read in _SHAPES:
        match = pattern.search(line, 0, _WITHIN + len("2026-11-21 05:09:54.123456789 +00:00"))
        if match and match.start() <= _WITHIN and (instant := read(match)) is not None:
            return instant, match.start(), match.end()
    return None


def read_stamp(text: str) -> datetime | None:
    """Parse a text that is a timestamp, such as a field of a JSON line; ``None`` if it is not one."""
    found = find_stamp(text.strip())
    return None if found is None else found[0]


def read_number(number: float) -> datetime | None:
    """Parse seconds, milli-, micro- or nanoseconds since 1970, distinguished by their size.

    Returns:
        The time; ``None`` for a number that is too small or too large.
    """
    for unit in (1, 1e3, 1e6, 1e9):
        if number / unit < _TOLD_APART_S:
            return datetime.fromtimestamp(number / unit, UTC) if number >= 1e9 else None
    return None


def read_typed(text: str, default: datetime) -> datetime:
    """Parse a time that a user typed: ``05:09`` is on the day of ``default`` and in its zone.

    Raises:
        ValueError: the text is not a time.
        OverflowError: the time is out of range.
    """
    text = text.strip()
    if re.fullmatch(r"1\d{9,18}(\.\d+)?", text) and (instant := read_number(float(text))) is not None:
        return instant
    try:
        iso = datetime.fromisoformat(text)
    except ValueError:
        start_of_day = default.replace(hour=0, minute=0, second=0, microsecond=0)
        read: datetime = dateutil_parser.parse(text, default=start_of_day)
        iso = read
    return iso if iso.tzinfo is not None else iso.replace(tzinfo=default.tzinfo or UTC)


# --- the shapes ---


def _of_iso(match: re.Match[str]) -> datetime | None:
    time = _FRACTION.sub(
        lambda m: "." + m[1][:_MICROSECOND_DIGITS].ljust(_MICROSECOND_DIGITS, "0"), match["time"]
    )
    zone = match["zone"] or ""
    zone = "+00:00" if zone in {"Z", "UTC", "GMT"} else zone
    try:
        instant = datetime.fromisoformat(f"{match['date'].replace('/', '-')}T{time}{zone}")
    except ValueError:
        return None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def _of_named_month(match: re.Match[str]) -> datetime | None:
    text = match["plain"] or f"{match['clf'].replace('/', ' ')} {match['clf_time']}"
    try:
        instant: datetime = dateutil_parser.parse(text)
    except (ValueError, OverflowError):
        return None
    return instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)


def _of_epoch(match: re.Match[str]) -> datetime | None:
    return read_number(float(match["number"]))


_SHAPES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], datetime | None]], ...] = (
    (_ISO, _of_iso),
    (_EPOCH, _of_epoch),
    (_NAMED_MONTH, _of_named_month),
)
