"""The simulator: one seed is one schedule, the shipped code breaks no law, and known mistakes do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockguard_lab.sim.cli import sim
from lockguard_lab.sim.plan import TOPOLOGIES, Plan
from lockguard_lab.sim.planted import LAYERS, PLANTED, Planted, convict
from lockguard_lab.sim.run import run

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_law_is_broken(topology: str) -> None:
    broken = {}
    for seed in range(1, 11):
        outcome = run(Plan.of(seed, topology))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


def test_one_seed_is_one_schedule_in_every_process() -> None:
    code = "from lockguard_lab.sim.plan import TOPOLOGIES, Plan; from lockguard_lab.sim.run import run\n"
    code += "print([run(Plan.of(seed, one)).trace_hash for one in TOPOLOGIES for seed in range(1, 5)])"
    told = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONHASHSEED": salt},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(told) == 1


def test_seeds_differ() -> None:
    assert len({run(Plan.of(seed, "single")).trace_hash for seed in range(1, 9)}) == 8


@pytest.mark.parametrize("planted", [one for one in PLANTED if one.quick], ids=lambda one: one.name)
def test_a_known_mistake_is_convicted(planted: Planted, tmp_path: Path) -> None:
    found = convict(planted, tmp_path, seeds=range(1, 121))
    assert found is not None, "no schedule of 120 broke a law"
    assert found.law.startswith(planted.law)


def test_the_command_plants_and_tells_which_law_convicted(tmp_path: Path) -> None:
    file = tmp_path / "planted.json"
    done = CliRunner().invoke(sim, ["--planted", "a quorum of half", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "1 of 1 convicted" in done.output
    told = json.loads(file.read_text())
    assert told["command"] == "lockguard sim --planted 'a quorum of half' --seeds 1..3000"
    assert [(row["layer"], row["convicted"]) for row in told["rows"]] == [("lock", True)]
    assert told["rows"][0]["law"].startswith("S1")


def test_a_mistake_that_no_schedule_convicts_ends_the_command_with_one() -> None:
    name = "the queue is not asked when the lock is free"
    done = CliRunner().invoke(sim, ["--planted", name, "--seeds", "1"])
    assert done.exit_code == 1
    assert "0 of 1 convicted" in done.output


def test_the_name_of_no_mistake_is_told() -> None:
    done = CliRunner().invoke(sim, ["--planted", "no such thing"])
    assert done.exit_code == 2
    assert "no planted mistake is called 'no such thing'" in done.output


def test_each_mistake_has_a_name_of_its_own() -> None:
    names = [planted.name for catalogue in LAYERS.values() for planted in catalogue]
    assert len(names) == len(set(names))


def test_each_planted_mistake_still_fits_the_code() -> None:
    for planted in PLANTED:
        planted.sources()


def test_a_range_that_is_none_is_named() -> None:
    done = CliRunner().invoke(sim, ["--seeds", "9..1"])
    assert done.exit_code == 2
    assert "'9..1' is no range of seeds; write 1..1000, or 7 for one" in done.output


def test_the_command_tells_what_it_ran(tmp_path: Path) -> None:
    file = tmp_path / "sim.json"
    done = CliRunner().invoke(sim, ["--seeds", "1..3", "--topology", "single", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "schedules that broke a law" in done.output
    assert '"schedules": 3' in file.read_text()
