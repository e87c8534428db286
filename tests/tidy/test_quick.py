"""What ``scripts/test --quick`` chooses still exists, and is of every level."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def conftest(request: pytest.FixtureRequest) -> Any:
    return next(plugin for plugin in request.config.pluginmanager.get_plugins() if hasattr(plugin, "QUICK"))


@pytest.fixture
def quick_names(request: pytest.FixtureRequest, conftest: Any) -> list[str]:
    """Those of the run itself if it has collected every file; to collect all anew takes a minute."""
    collected: list[pytest.Item] = request.config.stash[conftest.COLLECTED]
    whole_files = not any("::" in argument for argument in request.config.args)
    if whole_files and {item.path for item in collected} >= set(TESTS.rglob("test_*.py")):
        names = [item.nodeid for item in collected if item.get_closest_marker("quick")]
    else:
        names = listed()
    return [name.removeprefix("tests/") for name in names]


def listed() -> list[str]:
    ended = subprocess.run(
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
    )
    return [line for line in ended.stdout.splitlines() if "::" in line]


def test_each_choice_names_a_test_and_every_level_has_one(conftest: Any, quick_names: list[str]) -> None:
    absent = [prefix for prefix in conftest.QUICK if not any(name.startswith(prefix) for name in quick_names)]
    assert absent == []
    levels = {path.relative_to(TESTS).parts[0] for path in TESTS.rglob("test_*.py")}
    assert levels - {name.partition("/")[0] for name in quick_names} == set()
