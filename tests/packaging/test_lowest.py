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
PROJECTS = [
    tomllib.loads((ROOT / name).read_text(encoding="utf-8"))["project"]
    for name in ("pyproject.toml", "lab/pyproject.toml")
]
UNTESTED = {"bench"}
"""Extras whose packages only the benchmark measures itself against."""

LINES = [
    *(line for project in PROJECTS for line in project["dependencies"]),
    *(
        line
        for project in PROJECTS
        for name, lines in project["optional-dependencies"].items()
        if name not in UNTESTED
        for line in lines
    ),
]
BOUNDS = {
    wanted.name: wanted
    for line in LINES
    if (wanted := Requirement(line)).name not in {"lockguard", "lockguard-lab"}
}
PINNED = dict(
    re.findall(
        r"^([a-z0-9-]+)==([^ ]+)",
        (ROOT / "requirements/lowest.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
)


def test_every_package_that_is_named_has_a_lowest_version_that_is_tested():
    compiled_part = "psycopg-binary"  # refused beside a psycopg of another version
    assert set(PINNED) == {*BOUNDS, compiled_part}
    assert PINNED[compiled_part] == PINNED["psycopg"]


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
