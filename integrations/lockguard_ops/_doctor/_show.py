"""Shows a report: grouped by server, readable at 80 columns, with remedies on lines of their own."""

from __future__ import annotations

import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lockguard_ops._doctor._findings import Severity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_ops._doctor._findings import Finding, Report

__all__ = ["as_json", "lines"]

_COLUMNS_MIN, _COLUMNS_MAX = 40, 80
_LABEL = 9


def as_json(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return {
        "worst": report.worst.value,
        "complete": not report.unread,
        "findings": [asdict(one) for one in report.findings],
        "unchecked": report.unchecked,
    }


def lines(report: Report) -> Iterator[str]:
    """The report for a person, line by line; a remedy is never wrapped, so that it can be pasted."""
    order, width = list(Severity), _width()
    for server in dict.fromkeys(one.server for one in report.findings):
        yield server
        here = [one for one in report.findings if one.server == server]
        for one in sorted(here, key=lambda one: -order.index(one.severity)):
            yield from _told(one, width)
        yield ""
    for what in report.unchecked:
        yield from textwrap.wrap(f"Not checked: {what}", width, subsequent_indent="  ")
    counts = {kind: sum(one.severity is kind for one in report.findings) for kind in order}
    yield ", ".join(f"{counts[kind]} {_plural(kind, counts[kind])}" for kind in reversed(order))


def _width() -> int:
    return max(_COLUMNS_MIN, min(shutil.get_terminal_size().columns, _COLUMNS_MAX))


def _plural(kind: Severity, number: int) -> str:
    return kind.value if kind is Severity.OK or number == 1 else f"{kind.value}s"


def _told(one: Finding, width: int) -> Iterator[str]:
    indent = " " * (_LABEL + 2)
    head = f"  {one.severity.value:<{_LABEL}}"
    what = f"{one.subject}: {one.found}" + ("" if one.severity is Severity.OK else f" [{one.code}]")
    yield from textwrap.wrap(
        what, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False
    )
    if one.why:
        yield from textwrap.wrap(one.why, width, initial_indent=indent, subsequent_indent=indent)
    if one.remedy:
        yield f"{indent}{one.remedy}"
