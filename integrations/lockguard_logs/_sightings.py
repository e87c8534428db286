"""Recognises events in a single record, by the messages of Postgres, asyncpg, lockguard and the bot.

Errors are searched for in the whole record, including its traceback. The wording of Postgres and lockguard is
fixed. Bots announce a new position in different ways, so the usual ones are known here and the user can give
a pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from lockguard_logs._symbols import Named, find_symbol, plain_symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_logs._records import Record

__all__ = ["Sighting", "SightingKind", "sightings"]


class SightingKind(StrEnum):
    """The kind of an event in a log."""

    UNIQUE_VIOLATION = "unique violation"
    """Postgres refused a row by a unique index."""
    STALE_WRITE = "stale write refused"
    """Postgres refused a write whose lease had ended."""
    UNGUARDED_WRITE = "unguarded write refused"
    """Postgres refused a write that presented no lease."""
    LEASE_LOST = "lease lost"
    """A lease ended under its body."""
    BUSY = "busy"
    """A resource was found held."""
    CREATED = "created"
    """A row of a position was made."""
    OPENED = "opened"
    """A position was opened."""
    ENTERED = "entered"
    """An entry was ordered."""
    ENDED = "ended"
    """A position ended."""
    MOVED = "moved"
    """A position changed its status."""
    RENEWAL = "renewal not answered"
    """A renewal got no answer."""
    RELEASED_LATE = "released late"
    """A lock had expired before it was released."""
    ALERT = "alert"
    """A person is to look at something."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """One event found in a record.

    Attributes:
        kind: what happened.
        at: when, by the record.
        named: the symbol; ``None`` if the record names none.
        position_id: the row; ``None`` if the record names none.
        details: the decisive part of the message.
        file: the log's name.
        line: the record's first line in it, from 1.
        order: the exchange's number of an entry order.
    """

    kind: SightingKind
    at: datetime
    named: Named | None
    position_id: int | None
    details: str
    file: str
    line: int
    order: str | None = None


_RESOURCE = r"(?P<venue>[a-z][a-z0-9_]*):(?P<symbol>[A-Z0-9][^\s,;'\"]*[A-Z0-9])"

_VIOLATION = re.compile(
    r"duplicate key value violates unique constraint \"(?P<constraint>[^\"]+)\"|\bUniqueViolation(?:Error)?\b"
)
_KEY = re.compile(r"Key \((?P<columns>[^)]*)\)=\((?P<values>[^)]*)\) already exists")

_OURS: tuple[tuple[SightingKind, re.Pattern[str]], ...] = (
    (
        SightingKind.STALE_WRITE,
        re.compile(
            rf"stale token for {_RESOURCE}: (?P<details>presented \S+?, [^\n]*)"
            rf"|{_RESOURCE.replace('<venue>', '<venue2>').replace('<symbol>', '<symbol2>')}:"
            r" a write was refused, (?P<details2>presented token=\S+, current token=\S+)"
        ),
    ),
    (SightingKind.UNGUARDED_WRITE, re.compile(rf"no token for {_RESOURCE}: (?P<details>[^\n]*)")),
    (
        SightingKind.LEASE_LOST,
        re.compile(
            rf"lease lost: {_RESOURCE} (?P<details>token=[^\n]*)"
            rf"|the lease on '{_RESOURCE.replace('<venue>', '<venue2>').replace('<symbol>', '<symbol2>')}'"
            r" (?P<details2>\(token \d+\) was lost: \w+|has -?[\d.]+ s left[^\n]*)"
        ),
    ),
    (
        SightingKind.BUSY,
        re.compile(rf"{_RESOURCE}'? is (?P<details>(?:held by|not free yet)[^\n]*)"),
    ),
    (SightingKind.RENEWAL, re.compile(rf"renewal not answered: {_RESOURCE} (?P<details>token=[^\n]*)")),
    (SightingKind.RELEASED_LATE, re.compile(rf"released late: {_RESOURCE} (?P<details>token=[^\n]*)")),
)

_WORDS = {
    SightingKind.STALE_WRITE: ("stale token", "write was refused"),
    SightingKind.UNGUARDED_WRITE: ("no token for",),
    SightingKind.LEASE_LOST: ("lease",),
    SightingKind.BUSY: ("held by", "not free yet"),
    SightingKind.RENEWAL: ("renewal not answered",),
    SightingKind.RELEASED_LATE: ("released late",),
}
"""Words one of which a text must contain before its pattern is tried: a word search is 100 times as fast."""

_MOVED = re.compile(
    rf"{_RESOURCE} position (?P<id>\d+): (?P<before>\w+) -> (?P<after>\w+)"
    r" (?P<details>token=\S+ during [^\n]*)"
)
_ENDED = frozenset({"closed", "failed", "rolled_back", "canceled"})
_ALERT = re.compile(rf"{_RESOURCE} position (?P<id>\d+|None): (?P<details>(?!\w+ -> )[^\n]*)")

# A bot's own messages. "Opened" is separate: one position may be logged as created and, later, as opened.
_NOT_DONE = re.compile(
    r"\b(?:not|no|never|fail\w*|cannot|could|can't|couldn't|without|already|skip\w*|unable|would|will|"
    r"error|creating|opening|closing|to (?:create|open|close))\b",
    re.IGNORECASE,
)
_WORD_ENDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Za-z])[_.](?=[A-Za-z])")
"""Word boundaries in ``position_created``, ``position.created`` and ``PositionCreated``."""

# How widely used bots report an entry and an end. The group "order" is the order's number. Where two
# processes may use the same number, the group "since" distinguishes them.
_BOTS: tuple[tuple[str, SightingKind, re.Pattern[str]], ...] = (
    (  # freqtrade
        " was created for ",
        SightingKind.ENTERED,
        re.compile(r"\bOrder (?P<order>\S+) was created for (?P<symbol>\S+) and status is\b"),
    ),
    (
        "Marking Trade(",
        SightingKind.ENDED,
        re.compile(r"\bMarking Trade\(id=(?P<id>\d+), pair=(?P<symbol>[^,\s]+),[^\n]* as closed\b"),
    ),
    (  # hummingbot: perpetuals, then the spot market
        "Created ",
        SightingKind.ENTERED,
        re.compile(
            r"\bCreated \w+ (?:BUY|SELL) order (?P<order>\S+) for \S+ to OPEN an? (?P<symbol>\S+) position\b"
        ),
    ),
    (
        "Created ",
        SightingKind.ENDED,
        re.compile(r"\bCreated \w+ (?:BUY|SELL) order \S+ for \S+ to CLOSE an? (?P<symbol>\S+) position\b"),
    ),
    (
        "Created MARKET BUY",
        SightingKind.ENTERED,
        re.compile(
            r"\bCreated MARKET BUY order (?P<order>\S+) for [\d.E+-]+ (?P<symbol>[A-Z0-9]+-[A-Z0-9]+)\b"
        ),
    ),
    (
        "Created MARKET SELL",
        SightingKind.ENDED,
        re.compile(r"\bCreated MARKET SELL order \S+ for [\d.E+-]+ (?P<symbol>[A-Z0-9]+-[A-Z0-9]+)\b"),
    ),
    (  # nautilus_trader
        "PositionOpened(",
        SightingKind.ENTERED,
        re.compile(
            r"\bPositionOpened\([^\n]*?\binstrument_id=(?P<symbol>[^,\s]+),"
            r"[^\n]*?\bopening_order_id=(?P<order>[^,\s]+),(?:[^\n]*?\bts_opened=(?P<since>\d+))?"
        ),
    ),
    (
        "PositionClosed(",
        SightingKind.ENDED,
        re.compile(r"\bPositionClosed\([^\n]*?\binstrument_id=(?P<symbol>[^,\s]+),"),
    ),
)

_KNOWN_BOT_CHARACTERS_MAX = 1_500
_OF_KNOWN_BOT = re.compile(r"\bOrder\s|\bMarking\s|\bCreated [A-Z]|\bPosition(?:Opened|Closed)\(")
"""A prefilter: words without which none of those patterns can match; most lines contain none of them."""

_POSITION = r"(?:position|trade|row)s?\b"
_ABOUT = re.compile(r"position|trade|row|entry", re.IGNORECASE)
_SAID: tuple[tuple[SightingKind, re.Pattern[str]], ...] = tuple(
    (
        kind,
        re.compile(
            rf"\b{_POSITION}[^\n]{{0,40}}?\b(?:{verbs})\b|\b(?:{verbs})\b[^\n]{{0,40}}?\b{_POSITION}",
            re.IGNORECASE,
        ),
    )
    for kind, verbs in (
        (SightingKind.CREATED, "created|inserted|adopted|added|recorded"),
        (SightingKind.ENDED, r"closed|rolled[ _]back|cancell?ed|removed|deleted"),
        (SightingKind.OPENED, "opened|activated"),
    )
)
_ENTERED = re.compile(r"\bentry\b[^\n]{0,60}?\b(?:placed|filled|executed)\b", re.IGNORECASE)
_ORDER = re.compile(r"\border(?:[ _]?id)?\s*[=:#]?\s*['\"]?(?P<number>(?=[\w-]*\d)[\w-]+)", re.IGNORECASE)
_ID = re.compile(
    r"(?:\b(?:position|trade|row|position_id|trade_id|row_id|id)\s*[=:#]?\s*|#)(?P<id>\d{1,18})\b",
    re.IGNORECASE,
)


def sightings(record: Record, created: re.Pattern[str] | None = None) -> Iterator[Sighting]:
    """The events in a record; most records have none.

    Args:
        record: the record with all its lines.
        created: matches the bot's message about a new position; may have the groups ``symbol``, ``exchange``
            and ``id``.
    """
    text = record.text

    def seen(
        kind: SightingKind, named: Named | None, details: str, position_id: int | None = None
    ) -> Sighting:
        return Sighting(kind, record.at, named, position_id, details.strip(), record.file, record.line)

    known = False
    ours = " position " in text
    if violated := _VIOLATION.search(text):
        known = True
        named, details = _of_violation(text)
        row = _id_in(record.first_line)
        yield seen(SightingKind.UNIQUE_VIOLATION, named, details or violated[0], row)
    for kind, pattern in _OURS:
        if any(word in text for word in _WORDS[kind]) and (match := pattern.search(text)):
            known = True
            groups = match.groupdict()
            symbol, venue = (groups.get(f"{n}") or groups.get(f"{n}2") for n in ("symbol", "venue"))
            details = groups.get("details") or groups.get("details2") or ""
            yield seen(kind, Named(plain_symbol(symbol or ""), venue), details)
    if ours and (match := _MOVED.search(record.first_line)):
        kind = SightingKind.MOVED
        if match["before"] == "new":
            kind = SightingKind.CREATED
        elif match["after"] in _ENDED:
            kind = SightingKind.ENDED
        told = f"{match['before']} -> {match['after']} {match['details']}"
        yield seen(kind, Named(plain_symbol(match["symbol"]), match["venue"]), told, int(match["id"]))
    elif (
        not known
        and ours
        and record.level in {"ERROR", "CRITICAL"}
        and (match := _ALERT.search(record.first_line))
    ):
        row = None if match["id"] == "None" else int(match["id"])
        yield seen(
            SightingKind.ALERT, Named(plain_symbol(match["symbol"]), match["venue"]), match["details"], row
        )
    elif not known and (said := _of_own_words(record, created)) is not None:
        yield said


def _of_violation(text: str) -> tuple[Named | None, str]:
    """The symbol and the violated constraint; the duplicate key names a symbol that the message may omit."""
    violated = next((m for m in _VIOLATION.finditer(text) if m["constraint"]), None)
    details = "" if violated is None else f"{violated['constraint']}"
    key = _KEY.search(text)
    if key is None:
        return find_symbol(text.partition("\n")[0]) or find_symbol(text), details
    columns = [column.strip().strip('"') for column in key["columns"].split(",")]
    values = [value.strip() for value in key["values"].split(",")]
    fields = dict(zip(columns, values, strict=False))
    symbol = next((value for column, value in fields.items() if "symbol" in column), None)
    venue = next((value for column, value in fields.items() if "exchange" in column), None)
    named = find_symbol(text.partition("\n")[0]) if symbol is None else Named(plain_symbol(symbol), venue)
    return named, f"{details} ({key['columns']})=({key['values']})"


def _of_own_words(record: Record, created: re.Pattern[str] | None) -> Sighting | None:
    line = record.first_line
    if created is not None and (match := created.search(line)):
        groups = match.groupdict()
        symbol = groups.get("symbol")
        named = find_symbol(line) if symbol is None else Named(plain_symbol(symbol), groups.get("exchange"))
        row = groups.get("id")
        told = int(row) if row is not None and row.isdigit() else _id_in(line)
        return Sighting(SightingKind.CREATED, record.at, named, told, line, record.file, record.line)
    if (told_by_bot := _of_known_bot(record)) is not None:
        return told_by_bot
    if not _ABOUT.search(line):
        return None
    spoken = _WORD_ENDS.sub(" ", line)
    for kind, pattern in _SAID:
        if kind is SightingKind.CREATED and created is not None:
            continue
        if (match := pattern.search(spoken)) and not _NOT_DONE.search(spoken[: match.end()]):
            named = find_symbol(line)
            if named is not None:
                return Sighting(kind, record.at, named, _id_in(line), line, record.file, record.line)
    return _of_entry(record)


def _of_known_bot(record: Record) -> Sighting | None:
    if not _OF_KNOWN_BOT.search(record.text, 0, _KNOWN_BOT_CHARACTERS_MAX):
        return None
    # freqtrade wraps its lines at 80 characters if its output is not a terminal, as in a container.
    line = record.text[:_KNOWN_BOT_CHARACTERS_MAX].replace("\n", " ")
    for word, kind, pattern in _BOTS:
        if word in line and (match := pattern.search(line)):
            groups = match.groupdict()
            named = find_symbol(match["symbol"].rstrip(".,"))
            if named is None:
                continue
            parts = [part for part in (groups.get("order"), groups.get("since")) if part]
            order = " of ".join(parts) or None
            row = int(groups["id"]) if groups.get("id") else None
            return Sighting(kind, record.at, named, row, line, record.file, record.line, order)
    return None


def _of_entry(record: Record) -> Sighting | None:
    """An entry with its order's number; without one, an order logged twice would look like two orders."""
    line = record.first_line
    spoken = _WORD_ENDS.sub(" ", line)
    entered, order, named = _ENTERED.search(spoken), _ORDER.search(line), find_symbol(line)
    if entered is None or order is None or named is None or _NOT_DONE.search(spoken[: entered.end()]):
        return None
    row = _id_in(line[: order.start()] + line[order.end() :])
    kind = SightingKind.ENTERED
    return Sighting(kind, record.at, named, row, line, record.file, record.line, order["number"])


def _id_in(line: str) -> int | None:
    match = _ID.search(line)
    return None if match is None else int(match["id"])
