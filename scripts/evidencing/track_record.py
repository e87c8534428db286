"""The rows of docs/evidence/track-record.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from evidencing import sources

__all__ = ["PAGE", "ROW", "Row", "not_in_the_history", "rows"]

PAGE = "docs/evidence/track-record.md"
ROW = re.compile(r"^\| (\d{4}-\d\d-\d\d) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


class Row(NamedTuple):
    """A fault; the columns of the page."""

    when: str
    found_by: str
    broke: str
    told: str
    fix: str
    tests: str


def rows(root: Path) -> list[Row]:
    """Every row, the newest first."""
    return [Row(*found.groups()) for found in ROW.finditer((root / PAGE).read_text("utf-8"))]


def not_in_the_history(root: Path) -> list[str]:
    """The commits of fixes that the history here lacks, as one that was rewritten does."""
    if sources.is_shallow(root):
        return []
    named = [row.fix for row in rows(root) if re.fullmatch("[0-9a-f]{7,40}", row.fix)]
    return [commit for commit in dict.fromkeys(named) if not sources.exists(root, commit)]
