"""CHANGELOG.md: what is not released yet becomes the section of a version."""

from __future__ import annotations

import re
from pathlib import Path

from releasing.tools import Refused

NAME = "CHANGELOG.md"
UNRELEASED = "## [Unreleased]"


def _sections(checkout: Path) -> dict[str, str]:
    """Each section's text by its heading, in order."""
    parts = re.split(r"^(## .*)$", (checkout / NAME).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _says_something(text: str) -> bool:
    return any(line.strip() and not line.startswith("#") for line in text.splitlines())


def _heading(checkout: Path, version: str) -> str | None:
    pattern = re.compile(rf"## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}")
    return next((one for one in _sections(checkout) if pattern.fullmatch(one.rstrip())), None)


def has_section(checkout: Path, version: str) -> bool:
    """Whether a version has its section; raises `Refused` where nothing can be made one."""
    if UNRELEASED not in _sections(checkout):
        raise Refused(f"{NAME} has no heading {UNRELEASED!r}: put it above the newest section")
    heading = _heading(checkout, version)
    if heading is not None and _says_something(_sections(checkout)[heading]):
        return True
    if heading is not None:
        raise Refused(f"{NAME}: the section of {version} is empty: write what has changed")
    if not _says_something(_sections(checkout)[UNRELEASED]):
        raise Refused(
            f"{NAME} has no section '## [{version}] - YYYY-MM-DD' and nothing under Unreleased:"
            " write what has changed"
        )
    return False


def make_section(checkout: Path, version: str, date: str) -> None:
    """Make what is unreleased the section of a version."""
    path = checkout / NAME
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(UNRELEASED, f"{UNRELEASED}\n\n## [{version}] - {date}", 1), encoding="utf-8")


def section(checkout: Path, version: str) -> str:
    """The section of a version, with its heading."""
    heading = _heading(checkout, version)
    assert heading is not None
    return f"{heading}\n\n{_sections(checkout)[heading].strip()}\n"
