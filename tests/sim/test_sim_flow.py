"""The flow of positions in virtual time: the shipped code breaks no law, and known mistakes do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockguard_lab.sim.cli import sim
from lockguard_lab.sim.flow.plan import FlowPlan
from lockguard_lab.sim.flow.run import run
from lockguard_lab.sim.planted import PLANTED, convict

pytestmark = pytest.mark.no_cover


def test_no_law_of_positions_is_broken() -> None:
    broken = {}
    for seed in range(1, 26):
        outcome = run(FlowPlan.of(seed))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


def test_one_seed_is_one_schedule_of_the_flow_in_every_process() -> None:
    code = "from lockguard_lab.sim.flow.run import FlowPlan, run\n"
    code += "print([run(FlowPlan.of(seed)).trace_hash for seed in (3, 5, 7)])"
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
    here = [run(FlowPlan.of(seed)).trace_hash for seed in (3, 5, 7)]
    assert told == {f"{here}\n"}


def test_the_command_runs_the_flow(tmp_path: Path) -> None:
    file = tmp_path / "flow.json"
    done = CliRunner().invoke(sim, ["--layer", "flow", "--seeds", "1..2", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "calls of the manager" in done.output
    assert '"requests"' in file.read_text()


def test_the_servers_of_the_flow_cannot_be_chosen() -> None:
    done = CliRunner().invoke(sim, ["--layer", "flow", "--topology", "single"])
    assert done.exit_code != 0


def test_a_first_stop_that_never_comes_is_an_alert_of_its_own_position(tmp_path: Path) -> None:
    """Neither an alert on an earlier position counts, nor is the first stop left unwatched."""
    name = "nobody is told of a position without a stop"
    planted = next(one for one in PLANTED if one.name == name)
    found = convict(planted, tmp_path, seeds=range(15, 21))
    assert found is not None, "no schedule of six broke a law"
    assert found.law.startswith("P5")
