"""The simulator: one seed is one schedule, the shipped code breaks no law, and known mistakes do."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from lockguard_lab.sim.cli import sim
from lockguard_lab.sim.plan import TOPOLOGIES, Fault, Plan
from lockguard_lab.sim.planted import LAYERS, PLANTED, Planted, convict
from lockguard_lab.sim.run import run
from lockguard_lab.sim.scripting import Scripts
from lockguard_lab.sim.store import ReplyError
from lockguard_lab.sim.world import Process

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_no_law_is_broken(topology: str) -> None:
    broken = {}
    for seed in range(1, 11):
        outcome = run(Plan.of(seed, topology))
        if outcome.violations:
            broken[seed] = [str(violation) for violation in outcome.violations]
    assert not broken


SEEN = [344, 2222, 4527, 4954, 5630, 6289, 7986, 8185, 9027, 11039, 24245, 102413, 104723, 200044, 400078]


@pytest.mark.parametrize("seed", SEEN)
def test_no_schedule_breaks_a_law_again(seed: int) -> None:
    """Mended since: faults of the simulator, and of lockguard (344, 4527, 7986, 8185, 11039, 200044)."""
    assert not run(Plan.of(seed)).violations


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_release_is_not_lost_with_its_connection_though_its_guard_is_closed(topology: str) -> None:
    """Cut around the end of the last body, and again while another connection is made."""
    broken = []
    for ms in range(0, 60, 2):
        cuts = [Fault("cut", at_ms / 1000, 0.0, upon="held") for at_ms in (ms, ms + 20)]
        plan = Plan(ms, topology, processes=1, ttl_s=10.0, work_s=0.03, until_s=0.1, faults=tuple(cuts))
        broken += [str(violation) for violation in run(plan).violations]
    assert not broken


@pytest.mark.parametrize("seed", range(1, 31))
def test_a_release_that_a_failover_lost_is_made_again_though_the_map_was_read_just_before(seed: int) -> None:
    """A connection to another shard is cut, so the map is read; then the replaced master ends its own."""
    broken = []
    for ms in (60, 100, 140):
        faults = (
            Fault("failover", 0.0, 1.0, upon="released"),
            Fault("cut", 1.0 - ms / 1000, 0.0, upon="released"),
        )
        plan = Plan(seed, "cluster", ttl_s=10.0, work_s=0.4, least_work_s=0.35, until_s=2.5, faults=faults)
        broken += [f"{ms} ms: {violation}" for violation in run(plan).violations]
    assert not broken


@pytest.mark.parametrize(("topology", "seed"), [("cluster", 1), ("cluster", 2), ("sentinel", 7)])
def test_a_release_of_a_process_that_ended_before_a_failover_was_over_is_not_judged(
    topology: str, seed: int
) -> None:
    """The primary that was replaced has answered it: nobody is left who could hear of that."""
    failover = Fault("failover", 0.01, 1.5, upon="held")
    plan = Plan(seed, topology, processes=1, ttl_s=10.0, work_s=0.3, until_s=0.3, faults=(failover,))
    assert not run(plan.with_(least_work_s=0.1)).violations


@pytest.mark.parametrize("topology", ["single", "sentinel", "cluster"])
def test_a_lease_outlives_a_link_that_dies_and_the_next_one_wherever_that_is_in_its_log_in(
    topology: str,
) -> None:
    """All connections die, and then those that are made in place of them, between any two of their steps."""
    broken = []
    for ms in range(1040, 1080, 2):
        dead = [
            Fault("stall", at_s, 5.0, (0, server), upon="held")
            for at_s in (0.4, ms / 1000)
            for server in range(3)
        ]
        plan = Plan(ms, topology, processes=1, ttl_s=3.0, until_s=0.1, faults=tuple(dead), fenced=False)
        schedule = plan.with_(aim="a link dies silently", least_work_s=6.0, work_s=6.0)
        broken += [f"{ms} ms: {violation}" for violation in run(schedule).violations]
    assert not broken


def test_nobody_asks_for_a_lock_at_the_end_before_the_last_fault_is_over() -> None:
    """All processes may have been killed long before, and then the database is slow."""
    faults = (Fault("kill process", 0.1, 0.0), Fault("slow database", 4.0, 20.0))
    outcome = run(Plan(7, "single", processes=1, ttl_s=0.3, until_s=4.0, faults=faults))
    assert not outcome.violations
    assert outcome.virtual_s > 24.0


def test_a_script_that_fails_breaks_a_law_whatever_else_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ReplyError("ERR script:7: attempt to compare nil with number")

    monkeypatch.setattr(Scripts, "run", fails)
    assert "a script of ours failed" in run(Plan.of(1)).violations[0].told


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


def test_a_schedule_leaves_nothing_in_memory() -> None:
    frozen = gc.get_freeze_count()
    run(Plan.of(1, "cluster"))
    assert not [one for one in gc.get_objects() if type(one) is Process]
    assert gc.get_freeze_count() == frozen


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


def test_a_seed_that_convicted_before_is_tried_first_and_is_not_told_as_one_that_was_found(
    tmp_path: Path,
) -> None:
    def planted(*options: str) -> dict[str, Any]:
        file = tmp_path / "planted.json"
        given = ["--planted", "a renewal is sent once", "--seeds", "1..60", "--json", str(file), *options]
        assert CliRunner().invoke(sim, given).exit_code == 0
        (row,) = json.loads(file.read_text("utf-8"))["rows"]
        return dict(row)

    def known(seed: int) -> str:
        report = tmp_path / "report.json"
        report.write_text(json.dumps({"rows": [{"name": "a renewal is sent once", "seed": seed}]}), "utf-8")
        return str(report)

    found = planted()
    assert found["seed"] > 1
    again = planted("--again", known(found["seed"]))
    assert (again["again"], again["seed"], again["law"]) == (True, None, found["law"])
    anew = planted("--again", known(1))  # it convicts no more
    assert (anew["again"], anew["seed"]) == (False, found["seed"])


def test_a_report_without_seeds_is_named(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("[]", "utf-8")
    done = CliRunner().invoke(sim, ["--planted", "--again", str(file)])
    assert done.exit_code == 2
    assert f"{file} is no report of `lockguard sim --planted --json`" in done.output


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
