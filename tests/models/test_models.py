"""The models of spec/: clean within small bounds, and each planted mistake breaks its law."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockguard_lab.models import spin
from lockguard_lab.models.checks import CHECKS, MODELS, Check
from lockguard_lab.models.command import models

pytestmark = [
    pytest.mark.no_cover,
    pytest.mark.skipif(bool(spin.missing()), reason=f"{spin.missing() or 'nothing'} is not there"),
]

SHORT = [one for one in CHECKS if not one.long]


@pytest.mark.parametrize("check", SHORT, ids=lambda one: f"{one.model}: {one.name}")
def test_a_model_breaks_no_law_and_each_mistake_breaks_its_own(check: Check) -> None:
    told = spin.check(check, memory_mib=2000)
    assert told.as_expected, f"{told.verdict}; expected: {check.law or 'clean'}"
    assert told.complete or check.mistake, "not all states were visited"


def test_every_define_of_a_check_is_heeded() -> None:
    for check in CHECKS:
        text = (spin.SPEC / f"{check.model}.pml").read_text()
        for define in check.defines:
            name = define.partition("=")[0]
            assert re.search(rf"#\s*(ifdef|ifndef|if|elif)\b.*\b{name}\b", text), f"{check.model}: {name}"


def test_every_mistake_that_a_model_names_is_checked() -> None:
    for model in MODELS:
        text = (spin.SPEC / f"{model}.pml").read_text()
        (named,) = re.findall(r"Mistakes that must be convicted: ([^.]*)\.", text)
        checked = {one.defines[0] for one in CHECKS if one.model == model and one.mistake}
        assert set(re.findall(r"\w+", named)) == checked


def test_the_shortest_way_to_a_broken_law_is_told() -> None:
    done = CliRunner().invoke(models, ["--trail", "no fence"])
    assert done.exit_code == 0, done.output
    assert re.search(r"grant (\d): enter\n(.*\n)*grant (?!\1)\d: commit\n\n", done.output)
    assert "breaks S1, S3: no stale commit" in done.output


def test_the_command_tells_what_it_checked_and_writes_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    before = sorted(spin.SPEC.iterdir())
    done = CliRunner().invoke(models, ["lock_and_fence", "--only", "no close", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "1 of 1 as expected" in done.output
    told = json.loads(file.read_text())
    assert told["counts"]["mistakes_convicted"] == 1
    assert told["rows"][0]["verdict"].startswith("breaks S5")
    assert sorted(spin.SPEC.iterdir()) == before


def test_a_mistake_that_there_is_not_is_named() -> None:
    done = CliRunner().invoke(models, ["--trail", "no such"])
    assert done.exit_code == 2
    assert "'no such' is no mistake" in done.output
