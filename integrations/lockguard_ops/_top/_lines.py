"""Lines of the screen that are not of the table: counts, faults, keys."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from lockguard_ops._top._writing import span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard._records import Refusal
    from lockguard_ops._top._seen import Seen
    from lockguard_ops._top._writing import Writing

__all__ = ["counts", "faults", "keys", "refusal_line"]

_WARNS = "bold red"


def counts(seen: Seen, *, servers: int, tables: bool, now: datetime, width: int) -> Text:
    """The first line: as many counts as fit, and the time. A count that needs a look has a ``!``.

    Args:
        seen: what was read.
        servers: how many servers are named.
        tables: whether a database is named, which knows refusals and positions.
        now: the time.
        width: of the line.
    """
    read = seen.locks_at is not None
    known = seen.tables_at is not None or bool(seen.refusals)
    refused, without = seen.refused, seen.without_stop
    told = [  # in the order in which they stand: how long it stays where there is no room, name, count, warns
        (1, "servers", str(servers), False),
        (7, "locks", f"{seen.held:,}" if read else "?", False),
        (6, "waiters", f"{seen.waiters:,}" if read else "?", False),
        (3, "late", f"{seen.late:,}" if read else "?", seen.late > 0),
        (4, "refused/h", f"{refused:,}" if known else "?", refused > 0),
        (5, "no stop", "?" if without is None else f"{without:,}", bool(without)),
        (2, "faults", str(seen.faults), seen.faults > 0),
    ]
    told = [each for each in told if tables or each[1] not in ("refused/h", "no stop")]
    clock = f"{now.astimezone(UTC):%H:%M:%S} UTC"
    while told and sum(len(name) + len(count) + warns + 3 for _, name, count, warns in told) > width - 12:
        told.remove(min(told))
    line = Text(no_wrap=True)
    for _, name, count, warns in told:
        line.append(f"{name} ")
        line.append(f"{count}{'!' if warns else ''}", _WARNS if warns else "bold")
        line.append("  ")
    line.append(" " * (width - cell_len(line.plain) - len(clock)))
    line.append(clock)
    return line


def faults(seen: Seen, writing: Writing, *, now: datetime) -> Text:
    """A line for each server that does not answer: why, and how old what is shown of it is."""
    lines = []
    if seen.redis_fault:
        lines.append(_fault("Redis", seen.redis_fault, "the locks", seen.locks_at, now))
    elif seen.unread:
        lines.append(f"! Redis: not listed is {seen.unread}")
    if seen.silent:
        lines.append(f"! Redis: no answer from {', '.join(seen.silent)}; the other servers are a majority")
    if seen.database_fault:
        what = "refusals and positions"
        lines.append(_fault("Postgres", seen.database_fault, what, seen.tables_at, now))
    return Text("\n".join(writing.text(line) for line in lines), _WARNS)


def _fault(server: str, why: str, what: str, at: datetime | None, now: datetime) -> str:
    old = "not known yet" if at is None else f"{span((now - at).total_seconds() * 1000)} old"
    return f"! {server}: {why}; trying again, and {what} are {old}"


def keys(told: Sequence[tuple[str, str]], width: int) -> Text:
    """The last line: what keys do, as many as fit."""
    line = Text(no_wrap=True)
    for key, what in told:
        if cell_len(line.plain) + len(key) + len(what) + 1 > width:
            break
        line.append(key, "bold").append(f" {what}  ")
    return line


def refusal_line(refusal: Refusal) -> str:
    """A refused write in one line."""
    presented = "no token" if refusal.presented is None else f"token {refusal.presented}"
    current = "none" if refusal.current is None else refusal.current
    times = f", {refusal.times} times" if refusal.times > 1 else ""
    who = f" of {refusal.holder}" if refusal.holder else ""
    what = f" ({refusal.operation})" if refusal.operation else ""
    return (
        f"a write{who}{what} was refused: {refusal.reason}, {presented}, in force {current}"
        f" ({refusal.sqlstate}{times})"
    )
