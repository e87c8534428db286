"""The flow of positions in virtual time: the shipped code breaks no law, and known mistakes do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lockguard_lab.sim.cli import sim
from lockguard_lab.sim.flow import plan
from lockguard_lab.sim.flow.plan import FlowPlan
from lockguard_lab.sim.flow.run import run, violations
from lockguard_lab.sim.flow.troubles import Troubles
from lockguard_lab.sim.planted import PLANTED, convict

pytestmark = pytest.mark.no_cover


def test_no_law_of_positions_is_broken() -> None:
    broken = {}
    for seed in range(1, 26):
        outcome = run(FlowPlan.of(seed))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


@pytest.mark.parametrize(
    ("theme", "seed"),
    [
        ("lose stop disconnect late+person closes", 20),  # a move that was never placed
        ("lose stop disconnect late+person closes on send stop", 1),  # two first stops that may arrive
    ],
)
def test_what_a_person_closes_beside_a_late_stop_is_settled_by_passes(theme: str, seed: int) -> None:
    assert run(FlowPlan.of(seed, theme)).violations == ()


def test_an_entry_whose_answer_came_late_has_its_alert_no_later() -> None:
    assert run(FlowPlan.of(21, "lose stop")).violations == ()


@pytest.mark.parametrize(
    ("theme", "seed"),
    [
        ("partial", 28),
        ("partial entry rests+refuse passing cancel", 13),
        ("partial entry rests+refuse passing cancel", 22),
        ("partial entry rests+refuse passing cancel", 24),
        ("partial entry rests+refuse passing cancel", 49),
        ("partial entry+deny", 24),
    ],
)
def test_what_is_left_of_an_entry_that_no_cancel_reaches_breaks_no_law(theme: str, seed: int) -> None:
    outcome = run(FlowPlan.of(seed, theme))
    assert any("its entry was filled further" in line for line in outcome.lines)
    assert outcome.violations == ()


@pytest.mark.parametrize(
    ("theme", "shows"),
    [
        ("short stop", "its stop has filled"),
        ("resting stop", "resting stop rests"),
        ("liquidation", "exchange autoclose-"),
        ("deleveraging", "exchange adl_autoclose"),
        ("hedge mode", " 400 -4061"),
        ("rest ends", "rest ends entry expires hits lge-"),
    ],
)
def test_no_law_is_broken_by_what_the_exchange_and_a_person_do_to_the_account(theme: str, shows: str) -> None:
    broken, happened = {}, 0
    for seed in range(1, 7):
        outcome = run(FlowPlan.of(seed, theme))
        happened += any(shows in line for line in outcome.lines)
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken
    assert happened


@pytest.mark.parametrize(
    ("theme", "seed"),
    [
        ("hedge mode+partial close", 35),  # the person's own order has closed a part
        ("hedge mode+rest ends close", 37),
    ],
)
def test_a_change_of_mode_that_the_exchange_refuses_a_person_is_no_error(theme: str, seed: int) -> None:
    outcome = run(FlowPlan.of(seed, theme))
    assert any("the person: the exchange refuses: -4068" in line for line in outcome.lines)
    assert outcome.violations == ()


@pytest.mark.parametrize("theme", ["refuse passing stop", "refuse passing stop+lag positions"])
def test_stops_that_are_refused_for_want_of_a_position_right_after_its_fill_end_no_row(
    theme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "PASSING_CODES", (-2022,))
    broken, happened = {}, 0
    for seed in range(50, 54):
        outcome = run(FlowPlan.of(seed, theme))
        happened += any("refuse passing stop -2022 hits" in line for line in outcome.lines)
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken
    assert happened


def test_an_error_in_one_schedule_is_told_as_that_seed_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heal = Troubles.heal

    def fails_in_the_second(self: Troubles) -> None:
        if self._scene.plan.seed == 2:
            raise ArithmeticError("of the simulation")
        heal(self)

    monkeypatch.setattr(Troubles, "heal", fails_in_the_second)
    file = tmp_path / "flow.json"
    done = CliRunner().invoke(sim, ["--layer", "flow", "--seeds", "1..3", "--json", str(file)])
    assert done.exit_code == 1, done.output
    assert "seeds that broke a law: 2\n" in done.output
    facts = json.loads(file.read_text())
    assert facts["counts"]["schedules"] == 3
    assert list(facts["violations"]) == ["2"]
    assert "ArithmeticError('of the simulation') at test_sim_flow.py" in facts["violations"]["2"][0]
    with pytest.raises(RuntimeError, match="seed 2"):  # or it would convict a planted mistake
        violations(2)


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
