"""The pages name tests that exist; no guarantee and no hazard is without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def named_in(page: Path) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if named_in(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path):
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named_in(page) - defined == set()


def test_every_guarantee_has_a_test():
    guarantees = text_of("docs/explanation/guarantees.md")
    rows = re.findall(r"^\| \*\*([SL]\d+)\*\* \|.*\| (.*) \|$", guarantees, re.MULTILINE)
    assert [number for number, _ in rows] == [
        *(f"S{n}" for n in range(1, 19)),
        *(f"L{n}" for n in range(1, 12)),
    ]
    assert all("`test_" in tests for _, tests in rows)


def test_every_hazard_has_a_test_and_every_test_of_a_hazard_is_listed():
    _, _, after = text_of("docs/reference/positions.md").partition("\n## What goes wrong without it\n")
    section, _, _ = after.partition("\n## ")
    rows = re.findall(r"^\| (?!what happens)(.*) \|$", section, re.MULTILINE)
    tests = text_of("tests/race/hazards/test_hazards.py")
    listed = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert all(len(names) == 1 for names in listed)
    assert sorted(name for names in listed for name in names) == sorted(
        re.findall(r"^async def (test_\w+)", tests, re.MULTILINE)
    )
