"""What pyproject.toml calls enough is what is tested: its bounds are the versions of scripts/lowest."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
UNTESTED = {"bench"}
"""Extras whose packages only the benchmark measures itself against."""

EXTRAS = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in UNTESTED}
BOUNDS = {
    wanted.name: wanted
    for line in [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    if (wanted := Requirement(line)).name != "lockguard"
}
PINNED = dict(
    re.findall(
        r"^([a-z0-9-]+)==([^ ]+)",
        (ROOT / "requirements/lowest.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)


def test_every_package_that_is_named_has_a_lowest_version_that_is_tested():
    assert set(PINNED) == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_the_lowest_version_that_is_tested_is_the_one_that_is_promised(name):
    (bound,) = BOUNDS[name].specifier
    assert bound.operator == ">="
    assert Version(PINNED[name]) == Version(bound.version)


@pytest.mark.parametrize("name", PINNED)
def test_the_lowest_version_is_the_one_that_runs(name):
    if Path(sys.prefix).name != "lowest":
        pytest.skip("this is the environment of the newest versions; scripts/lowest makes the other one")
    assert Version(version(name)) == Version(PINNED[name])


def test_ci_runs_the_lowest_versions():
    assert re.search(r"^scripts/lowest\b", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)
    assert os.access(ROOT / "scripts/lowest", os.X_OK)
