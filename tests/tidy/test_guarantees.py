"""The public list of guarantees names tests that exist, and misses no number."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/explanation/guarantees.md").read_text(encoding="utf-8")


def test_every_test_that_a_guarantee_names_exists():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named - defined == set()


def test_every_guarantee_has_a_test():
    rows = re.findall(r"^\| \*\*([SL]\d+)\*\* \|.*\| (.*) \|$", TEXT, re.MULTILINE)
    assert [number for number, _ in rows] == [
        *(f"S{n}" for n in range(1, 14)),
        *(f"L{n}" for n in range(1, 8)),
    ]
    assert all("`test_" in tests for _, tests in rows)
