"""The public API is written down, so that a change of it is seen in review."""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = "docs/reference/api.txt"
PACKAGES = (CHECKOUT / "lockguard", *sorted((CHECKOUT / "integrations").glob("lockguard_*")))


@pytest.fixture
def public_modules(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    import api

    return api.MODULES


def modules_without_underscore() -> list[str]:
    """The modules that a user would take for public, by their dotted names."""
    return [
        ".".join(parts)
        for package in PACKAGES
        for path in sorted(package.rglob("*.py"))
        for parts in [path.relative_to(package.parent).with_suffix("").parts]
        for parts in [parts[:-1] if parts[-1] == "__init__" else parts]
        if not any(part.startswith("_") for part in parts)
    ]


def test_the_public_api_is_the_recorded_one() -> None:
    printed = subprocess.run(
        [sys.executable, CHECKOUT / "scripts/api.py"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    recorded = (CHECKOUT / PAGE).read_text(encoding="utf-8")
    changes = "\n".join(
        difflib.unified_diff(recorded.splitlines(), printed.splitlines(), "recorded", "now", n=0)
    )
    if changes:
        pytest.fail(
            f"the public API has changed:\n{changes}\n"
            f"If that is meant, tell CHANGELOG.md of it and run: .venv/bin/python scripts/api.py > {PAGE}"
        )


def test_what_is_not_public_begins_with_an_underscore(public_modules: tuple[str, ...]) -> None:
    shipped = {name for name in public_modules if not name.startswith("lockguard_lab")}
    assert set(modules_without_underscore()) ^ shipped == set()
