"""The suite beside this file runs over every kind of node that there is, and every server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lockguard._nodes.cluster import ClusterNode
from lockguard._nodes.member import MemberNode
from lockguard._nodes.memory import MemoryNode
from lockguard._nodes.scripted import ScriptedNode
from lockguard._nodes.sentinel import SentinelNode
from lockguard._nodes.standalone import StandaloneNode
from lockguard_lab.servers import find_redis, find_system_redis

LAWS = (Path(__file__).parent / "test_lock.py").read_text()

KINDS = {
    "one-node": StandaloneNode,
    "five-nodes": MemberNode,
    "replicated": StandaloneNode,
    "sentinel": SentinelNode,
    "cluster": ClusterNode,
}


def kinds_of_nodes(base: type = ScriptedNode) -> set[type]:
    return {kind for child in base.__subclasses__() for kind in {child} | kinds_of_nodes(child)}


def test_every_kind_of_node_is_held_to_the_laws():
    ours = {kind for kind in kinds_of_nodes() if kind.__module__.startswith("lockguard.")}  # not a test's own
    assert {*KINDS.values(), MemoryNode} == ours


def test_every_kind_of_node_runs_over_every_server(combinations):
    servers = ["valkey"]
    if sys.version_info < (3, 14):  # for these there is a wheel with a genuine Redis
        assert find_redis() is not None, "install the servers for tests"
        servers.append("redis")
    wanted = {f"{kind}-{server}" for kind in KINDS for server in servers} | {"memory-fakeredis"}
    assert wanted <= set(combinations)


def test_every_kind_of_node_runs_over_the_redis_of_the_system(combinations):
    if (system := find_system_redis()) is None:
        pytest.skip("no redis-server 7 or newer on PATH, so this version is not held to the laws here")
    assert {f"{kind}-redis{system.version}" for kind in KINDS} <= set(combinations)


def test_every_combination_runs_on_a_loop_and_every_kind_of_node_and_every_server_on_each(
    combinations, on_loop
):
    assert set(on_loop) == {"asyncio", "uvloop"}
    assert {one for ran in on_loop.values() for one in ran} == set(combinations)
    for ran in on_loop.values():
        for part in (0, -1):
            assert parts(ran, part) == parts(combinations, part)


@pytest.mark.parametrize("servers", [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"]])
def test_the_choice_has_every_pair_of_kind_server_and_loop_on_any_machine(choose, servers):
    chosen = choose(KINDS, servers)
    assert {one for ran in chosen.values() for one in ran} >= {f"{k}-{s}" for k in KINDS for s in servers}
    for ran in chosen.values():
        assert (parts(ran, 0), parts(ran, -1)) == ({*KINDS, "memory"}, {*servers, "fakeredis"})
    assert "one-node-a" in chosen["asyncio"], "scripts/lowest names it"


def parts(combinations: list[str], part: int) -> set[str]:
    return {one.rsplit("-", 1)[part] for one in combinations}


def test_no_law_is_left_out_anywhere():
    assert "skip" not in LAWS
    assert "xfail" not in LAWS
    laws = [line for line in LAWS.splitlines() if line.startswith(("async def test_", "def test_"))]
    assert laws
    assert [law for law in laws if "new_guard" not in law] == []
