"""What ``scripts/test --quick`` chooses still exists, and is of every level."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def chosen_prefixes(request: pytest.FixtureRequest) -> tuple[str, ...]:
    plugins = request.config.pluginmanager.get_plugins()
    return next(plugin.QUICK for plugin in plugins if hasattr(plugin, "QUICK"))


def test_each_choice_names_a_test_and_every_level_has_one(chosen_prefixes: tuple[str, ...]) -> None:
    listed = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            TESTS,
            "--collect-only",
            "-q",
            "-m",
            "quick",
            "-p",
            "no:cacheprovider",
        ],
        cwd=TESTS.parent,
        # A -v in it would take -q back, and the names would not be listed.
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    names = [line.removeprefix("tests/") for line in listed.splitlines() if "::" in line]
    assert [prefix for prefix in chosen_prefixes if not any(name.startswith(prefix) for name in names)] == []
    levels = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert levels - {name.partition("/")[0] for name in names} == set()
