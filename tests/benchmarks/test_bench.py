"""Every benchmark runs, small; what is counted and not timed must hold at any size."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import warnings
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner
from rich.console import Console

from lockguard.errors import ConfigurationError
from lockguard_lab.bench import cli as command
from lockguard_lab.bench.cli import bench
from lockguard_lab.bench.contenders import PEERS, missing
from lockguard_lab.bench.figures import Figures, Sizes, percentile
from lockguard_lab.bench.loops import run_on
from lockguard_lab.bench.observers import NONE, measure_observers
from lockguard_lab.bench.plot import svg
from lockguard_lab.bench.run import measure
from lockguard_lab.bench.synchronous import ASYNCHRONOUS, REDIS_PY, SYNCHRONOUS, measure_synchronous
from lockguard_lab.bench.table import show
from lockguard_lab.bench.waiting import inversions
from lockguard_lab.servers import TopologyName

SMALL = Sizes(
    rounds=1,
    cycles=10,
    tasks=10,
    cycles_per_task=2,
    hand_offs=1,
    processes=2,
    waiters=1000,
    watch_s=1.0,
    leases=1000,
    renewal_ttl_ms=6000,
    ticks=1,
)
INSTALLED = [peer for peer in PEERS if not missing(peer)]


TINY = replace(SMALL, waiters=20, leases=20, renewal_ttl_ms=1500)


@pytest.fixture(scope="module")
def figures() -> Figures:
    return asyncio.run(measure(PEERS, SMALL, progress=lambda _: None))


def test_an_uncontended_call_is_two_commands(figures):
    assert figures.commands_per_call == 2


def test_a_thousand_waiters_cost_what_one_does(figures):
    crowd = figures.waiters
    assert crowd.commands_per_release <= 2
    assert crowd.commands_per_waiter_s <= 0.2
    assert crowd.connections == 1


def test_a_thousand_waiters_are_served_in_order(figures):
    assert figures.waiters.fifo_inversions == 0


def test_a_thousand_leases_are_renewed_in_one_write(figures):
    assert figures.renewal.writes_per_tick == 1


def test_the_json_has_the_documented_keys(figures):
    told = figures.to_json()
    assert set(told["uncontended"]) == {"lockguard_p50_us", "limit_p50_us", "peers"}
    assert set(told["throughput_100"]) == {"lockguard", "limit", "peers"}
    assert set(told["handoff_ms"]) == {"lockguard", "peers"}
    assert set(told["handoff_ms"]["lockguard"]) == {"p50", "p99"}
    assert set(told["waiters_1000"]) == {
        "commands_per_release",
        "commands_per_waiter_s",
        "connections",
        "fifo_inversions",
    }
    assert set(told["renewal_1000"]) == {"writes_per_tick", "cpu_share"}
    assert isinstance(told["decorator_us"], float)
    assert {"bytes_per_held_lock", "bytes_per_waiter"} <= set(told["memory"])
    assert json.loads(json.dumps(told)) == told


def test_every_installed_peer_is_measured_and_every_other_one_named(figures):
    told = figures.to_json()
    for group in ("uncontended", "throughput_100", "handoff_ms"):
        assert list(told[group]["peers"]) == INSTALLED
    assert set(figures.about.left_out) == set(PEERS) - set(INSTALLED)


def test_the_times_are_times(figures):
    assert figures.uncontended.lockguard_p50_us > 0
    assert figures.throughput.limit > 0
    assert 0 < figures.hand_off.p50 <= figures.hand_off.p99
    assert 0 < figures.renewal.cpu_share < 1
    assert figures.memory.bytes_per_held_lock > figures.memory.bytes_per_free_lock > 0
    assert figures.memory.bytes_per_waiter > 0


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_everybody_is_measured_on_the_loop_that_was_asked_for(figures, monkeypatch):
    workers = []
    started = asyncio.create_subprocess_exec
    monkeypatch.setattr(
        asyncio,
        "create_subprocess_exec",
        lambda *words, **options: workers.append(words) or started(*words, **options),
    )
    on_uvloop = run_on("uvloop", measure([], TINY, progress=lambda _: None))
    assert (figures.about.loop, on_uvloop.about.loop) == ("asyncio", "uvloop")
    assert on_uvloop.renewal.writes_per_tick == 1
    assert on_uvloop.commands_per_call == 2
    assert {words[3] for words in workers} == {"uvloop"}


def test_the_command_writes_what_it_shows(figures, monkeypatch, tmp_path):
    async def measured(peers, sizes, *, progress, topology):
        progress("quickly")
        assert str(topology) == "sentinel"
        assert peers == ["redis-py"]
        assert sizes == replace(Sizes(), rounds=7)
        return figures

    monkeypatch.setattr(command, "measure", measured)
    told, picture = tmp_path / "told.json", tmp_path / "picture.svg"
    arguments = ["--peers", "redis-py", "--rounds", "7", "--json", str(told), "--plot", str(picture)]
    arguments += ["--topology", "sentinel"]
    ran = CliRunner().invoke(bench, arguments)
    assert ran.exit_code == 0, ran.output
    assert "commands per uncontended call" in ran.output
    assert json.loads(told.read_text()) == figures.to_json()
    shown = "".join(ET.fromstring(picture.read_text()).itertext())
    for name in ("lockguard", "limit", *INSTALLED):
        assert name in shown


def test_a_peer_that_is_not_installed_is_named_in_the_table(figures):
    why = {"pottery": "not installed: pip install 'lockguard[bench]'"}
    console = Console(record=True, width=120)
    show(replace(figures, about=replace(figures.about, left_out=why)), console)
    assert "left out: pottery (not installed: pip install 'lockguard[bench]')" in console.export_text()


def test_the_picture_says_only_what_was_measured(figures):
    alone = replace(
        figures,
        hand_off_peers={},
        uncontended=replace(figures.uncontended, peers={}),
        throughput=replace(figures.throughput, peers={}),
    )
    shown = "".join(ET.fromstring(svg(alone)).itertext())
    assert "lockguard" in shown
    assert "pottery" not in shown


def test_an_unknown_peer_is_refused_with_those_that_are_known():
    ran = CliRunner().invoke(bench, ["--peers", "redis-py,redlock-ng"])
    assert isinstance(ran.exception, ConfigurationError)
    assert "'redlock-ng'" in str(ran.exception)
    assert "python-redis-lock" in str(ran.exception)


TINY = Sizes(
    rounds=1,
    cycles=5,
    tasks=6,
    cycles_per_task=2,
    hand_offs=1,
    processes=2,
    waiters=40,
    watch_s=1.0,
    leases=40,
    renewal_ttl_ms=3000,
    ticks=1,
)
NODES = {"redlock:3": 3, "sentinel": 1, "cluster": 3}
"""How many servers a process is connected to."""
COMMANDS = {"redlock:3": 6, "sentinel": 2, "cluster": 2}
CAN = {
    "redlock:3": ["pottery"],
    "sentinel": ["redis-py", "coredis", "pottery", "python-redis-lock"],
    "cluster": ["redis-py", "coredis"],
}


@pytest.mark.timeout(360)  # a peer that splits its votes on a busy machine waits out its own leases
@pytest.mark.filterwarnings(
    "ignore:.*MemoryObject:pytest.PytestUnraisableExceptionWarning"
)  # coredis's Sentinel
@pytest.mark.parametrize("name", list(NODES))
def test_every_topology_is_measured_with_the_peers_that_can_lock_there(name):
    topology = TopologyName.parse(name)
    with warnings.catch_warnings():
        # The Sentinel and cluster clients of coredis leave streams unclosed: they are collected here.
        warnings.simplefilter("ignore", ResourceWarning)
        figures = asyncio.run(measure(PEERS, TINY, progress=lambda _: None, topology=topology))
        gc.unfreeze()
        gc.collect()
    told = figures.to_json()
    assert told["about"]["topology"] == name
    assert figures.commands_per_call == COMMANDS[name]
    assert figures.waiters.connections == NODES[name]
    # A renewal of many leases is one write to each server that keeps some of them.
    assert figures.renewal.writes_per_tick == NODES[name]
    assert list(figures.uncontended.peers) == [peer for peer in CAN[name] if peer in INSTALLED]
    assert set(figures.about.left_out) == set(PEERS) - set(figures.uncontended.peers)
    for peer in set(INSTALLED) - set(CAN[name]):
        assert figures.about.left_out[peer].startswith(f"not on {topology.kind}: ")
    if name != "redlock:3":  # places in several queues are best effort
        assert figures.waiters.fifo_inversions == 0


def test_an_unknown_topology_is_refused_with_those_that_are_known():
    ran = CliRunner().invoke(bench, ["--topology", "redlock:0"])
    assert isinstance(ran.exception, ConfigurationError)
    assert "redlock:N" in str(ran.exception)


@pytest.mark.parametrize(
    ("places", "expected"),
    [([0, 1, 2, 3], 0), ([1, 0, 2, 3], 1), ([3, 0, 1, 2], 1), ([3, 2, 1, 0], 3), ([], 0)],
)
def test_whoever_is_served_before_an_earlier_one_is_counted(places, expected):
    assert inversions(places) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.5, 50.5), (0.99, 100.0), (0.9, 91.0)],
)
def test_a_percentile_is_never_better_than_it_was(share, expected):
    assert percentile([float(value) for value in range(1, 101)], share) == expected


async def test_what_each_observer_costs_is_measured_beside_a_guard_without_any() -> None:
    costs = await measure_observers(1)
    assert [cost.observer for cost in costs] == [NONE, "log", "prometheus", "opentelemetry (no SDK)"]
    none, _, prometheus, _ = costs
    assert (none.own_us, none.ratio) == (0, 1)
    assert 0 < prometheus.own_us < prometheus.hold_us


def test_what_the_synchronous_guard_costs_is_measured_beside_the_asynchronous_one() -> None:
    beside, speed, redis_py = measure_synchronous(1, "asyncio")
    assert [beside.contender, speed.contender, redis_py.contender] == [ASYNCHRONOUS, SYNCHRONOUS, REDIS_PY]
    assert beside.ratio == 1
    assert speed.fast_us <= speed.median_us
    assert speed.ratio == pytest.approx(speed.median_us / beside.median_us)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--stopped-holder", "--plot", "x.svg"), "--plot has no use with --stopped-holder; leave it out"),
        (("--stopped-holder", "--topology", "cluster"), "--topology has no use with --stopped-holder"),
        (("--stopped-holder", "--loop", "uvloop"), "--loop has no use with --stopped-holder"),
        (("--sync", "--peers", "coredis"), "--peers has no use with --sync"),
        (("--observers", "--plot", "x.svg"), "--plot has no use with --observers"),
        (("--fence", "--peers", "coredis"), "--peers has no use with --fence"),
        (("--history", "5"), "--history has no use without --fence"),
        (("--fence", "--stopped-holder"), "--fence and --stopped-holder measure different things"),
    ],
)
def test_what_a_measurement_does_not_take_is_refused_and_not_ignored(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(bench, [*words, "--rounds", "1"])
    assert isinstance(ended.exception, ConfigurationError)
    assert told in str(ended.exception)
