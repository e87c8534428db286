"""The simulator: one seed is one schedule, the shipped code breaks no law, and known mistakes do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
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


@pytest.mark.parametrize("seed", [344, 2222, 6289, 7986])
def test_no_schedule_breaks_a_law_again(seed: int) -> None:
    """A release that woke itself (344, 7986); a wipe with the clock set back; two slow databases."""
    assert not run(Plan.of(seed)).violations


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


def test_an_interrupted_run_ends_at_once_with_its_processes_and_tells_what_it_found() -> None:
    seeds = ["--seeds", "1..999999999999", "--topology", "single", "--processes", "2"]
    command = [sys.executable, "-m", "lockguard", "sim", *seeds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        children = _when(lambda: psutil.Process(running.pid).children(recursive=True), at_least=2)
        # So that each has some of its schedules behind it.
        _when(lambda: [one for one in children if sum(one.cpu_times()[:2]) > 2.5], at_least=2)
        running.terminate()
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "schedules that broke a law" in out
    assert err.split("\n")[-2:] == ["lockguard: interrupted", ""]
    assert not [one for one in children if one.is_running()]


def test_an_interrupted_search_for_mistakes_ends_at_once_with_its_processes() -> None:
    command = [sys.executable, "-m", "lockguard", "sim", "--planted", "lock", "--processes", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        children = _when(lambda: psutil.Process(running.pid).children(recursive=True), at_least=2)
        running.terminate()
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.split("\n")[-2:] == ["lockguard: interrupted", ""]
    assert not [one for one in children if one.is_running()]


def test_no_process_outlives_a_killed_run() -> None:
    command = [sys.executable, "-m", "lockguard", "sim", "--seeds", "1..100000", "--processes", "2"]
    with subprocess.Popen(command) as running:
        children = _when(lambda: psutil.Process(running.pid).children(recursive=True), at_least=2)
        _when(lambda: [one for one in children if one.num_threads() > 1], at_least=2)
        running.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def _when(look: Callable[[], list[psutil.Process]], *, at_least: int) -> list[psutil.Process]:
    latest = time.monotonic() + 60
    while len(found := look()) < at_least:
        assert time.monotonic() < latest, f"{found} is fewer than {at_least}"
        time.sleep(0.05)
    return found


def test_a_mistake_without_a_name_is_none() -> None:
    done = CliRunner().invoke(sim, ["--planted", ""])
    assert done.exit_code == 2
    assert "write a part of its name" in done.output


def test_a_name_that_is_almost_one_is_answered_with_it() -> None:
    done = CliRunner().invoke(sim, ["--planted", "a qorum of hlf"])
    assert done.exit_code == 2
    assert "did you mean 'a quorum of half'" in done.output


@pytest.mark.parametrize(("layer", "extra"), [("fence", "postgres"), ("flow", "positions")])
def test_a_package_that_a_layer_lacks_is_one_line(layer: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "asyncpg.py").write_text("raise ModuleNotFoundError('gone', name='asyncpg')")
    done = subprocess.run(
        [sys.executable, "-m", "lockguard", "sim", "--layer", layer, "--seeds", "1"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = (
        f"--layer {layer} needs packages that are not installed (asyncpg); pip install 'lockguard[{extra}]'"
    )
    assert (done.returncode, done.stderr) == (2, f"lockguard: {told}\n")


def test_the_extra_that_brings_the_simulator_is_one_of_lockguard(tmp_path: Path) -> None:
    (tmp_path / "lupa.py").write_text("raise ModuleNotFoundError('gone', name='lupa')")
    done = subprocess.run(
        [sys.executable, "-m", "lockguard", "sim", "--seeds", "1"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    told = "'lockguard sim' needs packages that are not installed (lupa); pip install 'lockguard[testing]'"
    assert (done.returncode, done.stderr) == (2, f"lockguard: {told}\n")
