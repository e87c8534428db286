"""A sample of mutants is noticed, each by the test that states its law (all: ``scripts/mutants``)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lockguard_lab.mutants.judge import Judge
from lockguard_lab.mutants.mutant import Mutant, load

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLE = {
    ("lua", "release deletes whatever lock is there"): "integration/test_scripts_release.py::"
    "test_only_the_grant_that_holds_the_lock_frees_it",
    ("core", "half of the nodes are a majority"): "unit/test_nodes_asking.py::"
    "test_any_two_majorities_have_a_node_in_common",
    ("nodes", "replies go to who asked last"): "unit/test_connection_by_hand.py::"
    "test_replies_come_in_the_order_of_their_commands",
    ("ccxt", "the lease is not checked when the request leaves"): "unit/test_orders_guarded.py::"
    "test_each_lease_is_checked_for_the_time_that_a_request_may_take_when_it_leaves",
    ("positions", "an exit of before closes what is held by now"): "unit/test_positions_exits.py::"
    "test_an_exit_of_before_closes_only_what_a_person_asked_for_and_is_as_it_was",
}
"""Quick ones: the part of the mutant's name, and the test that kills it."""

pytestmark = pytest.mark.no_cover


def test_a_sample_of_mutants_is_noticed_and_a_change_without_meaning_is_not(tmp_path: Path) -> None:
    areas, mutants = load(CHECKOUT / "tests/mutants")
    chosen = []
    for (area, part), test in SAMPLE.items():
        (found,) = (one for one in mutants if one.area == area and part in one.name)
        chosen.append(replace(found, killer=f"tests/{test}"))
    nothing = Mutant("core", "a comment", "lockguard/_quorum.py", "# noqa: TC", "# noqa: TC")
    text = (CHECKOUT / "lockguard/_quorum.py").read_text("utf-8")
    old = text.partition("\n")[0]
    nothing = replace(nothing, old=old + "\n", new=old + "\n# planted\n")
    unit = ("tests/unit/test_nodes_asking.py",)
    quick = {name: replace(area, stages=(unit,)) for name, area in areas.items()}
    with Judge(CHECKOUT, tmp_path, areas=quick, mutants=chosen, known={}) as judge:
        killed = {one.name: judge.judge(one).test for one in chosen}
        survived = judge.judge(nothing)
    expected = {one.name: one.killer for one in chosen}
    assert {name: test.partition("[")[0] for name, test in killed.items()} == expected
    assert survived.outcome == "survived"
