"""Writes into the pages the examples that they show, word for word: ``python scripts/listings.py``.

A page shows a file between ``<!-- file docs/examples/NAME.py -->`` and ``<!-- end -->``, and what changes
from one file to another after ``<!-- diff OLD NEW -->``; a test compares.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

__all__ = ["DIFF", "LISTING", "ROOT", "pages", "write", "written"]

ROOT = Path(__file__).resolve().parent.parent
LISTING = re.compile(r"<!-- file (\S+) -->\n(?:```\w+\n.*?```\n)?<!-- end -->", re.DOTALL)
DIFF = re.compile(r"<!-- diff (docs/\S+) (\S+) -->\n(?:```diff\n.*?```\n)?<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """Every page that shows a file, or what changes in one."""
    texts = {page: page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")}
    return sorted(page for page, text in texts.items() if LISTING.search(text) or DIFF.search(text))


def written(page: str) -> str:
    """The page with each listing as its file is."""

    def listing(found: re.Match[str]) -> str:
        language = "sql" if found[1].endswith(".sql") else "python"
        text = (ROOT / found[1]).read_text("utf-8")
        return f"<!-- file {found[1]} -->\n```{language}\n{text}```\n<!-- end -->"

    def diff(found: re.Match[str]) -> str:
        old, new = ((ROOT / name).read_text("utf-8").splitlines(keepends=True) for name in found.groups())
        names = (Path(name).name for name in found.groups())
        text = "".join(difflib.unified_diff(old, new, *names, n=1))
        return f"<!-- diff {found[1]} {found[2]} -->\n```diff\n{text}```\n<!-- end -->"

    return DIFF.sub(diff, LISTING.sub(listing, page))


def write() -> None:
    """Bring every listing up to date."""
    for path in pages():
        path.write_text(written(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    write()
