"""The fence in virtual time: the shipped code breaks no law, known mistakes do, and the model is Postgres."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lockguard_lab.sim.fenced.plan import FencedPlan
from lockguard_lab.sim.fenced.run import run_fenced
from lockguard_lab.sim.fenced.sequences import run_sequences
from lockguard_lab.sim.planted import PLANTED, convict

pytestmark = pytest.mark.no_cover

# Each is convicted by one of the first schedules.
SOON = (
    "a lost COMMIT is called lost",
    "the body begins before its seal",
    "past: equal arguments lock two names",
    "past: a hold is used twice",
)


def test_no_law_is_broken_by_the_fence() -> None:
    broken = {}
    for seed in range(1, 13):
        outcome = run_fenced(FencedPlan.of(seed))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


def test_one_seed_is_one_schedule_of_the_fence_in_every_process() -> None:
    code = "from lockguard_lab.sim.fenced.plan import FencedPlan\n"
    code += "from lockguard_lab.sim.fenced.run import run_fenced\n"
    code += "print([run_fenced(FencedPlan.of(seed)).trace_hash for seed in range(1, 7)])"
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


def test_a_schedule_is_the_same_behind_another() -> None:
    first = run_fenced(FencedPlan.of(3)).trace_hash
    run_fenced(FencedPlan.of(4))
    assert run_fenced(FencedPlan.of(3)).trace_hash == first


def test_the_model_of_the_fence_answers_as_postgres_does() -> None:
    assert not {seed: str(found) for seed, found in run_sequences(range(1, 6)).items()}


@pytest.mark.parametrize("name", SOON)
def test_a_known_mistake_in_the_fence_is_convicted(name: str, tmp_path: Path) -> None:
    planted = next(one for one in PLANTED if one.name == name)
    found = convict(planted, tmp_path, seeds=range(1, 61))
    assert found is not None, "no schedule of 60 broke a law"
    assert found.law.startswith(planted.law)
