"""How the pages say to install lockguard: from a checkout, until it is published.

``python scripts/installs.py --published`` is for the day of the first release: it writes
``pip install 'lockguard[...]'`` into every page, and takes the note that says otherwise out of the README.
"""

from __future__ import annotations

import re
import sys

from page_blocks import ROOT, every_page

__all__ = ["NOTE", "as_published", "texts", "untrue"]

NOTE = re.compile(r"<!-- not published yet -->\n.*?<!-- end -->\n\n", re.DOTALL)
"""The note of the README. While it is there, every page installs from a checkout."""

_CHECKOUT = re.compile(r"'\.\[([a-z,]+)\]'( \./lab)?(?!\w)")
_INDEX = re.compile(r"'?\blockguard(?:-lab)?\[[a-z,]+\]'?|pip install lockguard\b")
_OF_THE_LAB = {"testing", "demo", "bench"}


def texts() -> list[str]:
    """The pages, and the programs that they show."""
    programs = (ROOT / "docs/examples").rglob("*.py")
    return [*every_page(), *sorted(path.relative_to(ROOT).as_posix() for path in programs)]


def untrue(page: str, *, published: bool) -> list[str]:
    """The install texts of a page that are not of the form that is true now."""
    text = NOTE.sub("", page)
    if published:
        return [found[0] for found in _CHECKOUT.finditer(text)]
    wrong = [found[0] for found in _INDEX.finditer(text)]
    without = [found for found in _CHECKOUT.finditer(text) if not found[2]]
    wrong += [f"{each[0]} without ./lab" for each in without if _OF_THE_LAB & set(each[1].split(","))]
    return wrong


def as_published(page: str) -> str:
    """The page with what is true from the first release on."""

    def name(found: re.Match[str]) -> str:
        extras = found[1].split(",")
        if found[2] and not _OF_THE_LAB & set(extras):
            extras.append("testing")
        return f"'lockguard[{','.join(extras)}]'"

    return _CHECKOUT.sub(name, NOTE.sub("", page))


if __name__ == "__main__":
    if sys.argv[1:] != ["--published"]:
        sys.exit("usage: python scripts/installs.py --published")
    for path in (ROOT / name for name in texts()):
        path.write_text(as_published(path.read_text("utf-8")), "utf-8")
