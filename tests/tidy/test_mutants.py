"""Every mutant still fits the code, and every test that judges them is there."""

from __future__ import annotations

from pathlib import Path

from lockguard_lab.mutants.mutant import load

CHECKOUT = Path(__file__).resolve().parents[2]
LEAST = 300


def test_the_text_of_each_mutant_occurs_once() -> None:
    _, mutants = load(CHECKOUT / "tests/mutants")
    misfits = []
    for mutant in mutants:
        try:
            mutant.source(CHECKOUT)
        except (ValueError, FileNotFoundError) as exc:
            misfits.append(str(exc))
    assert misfits == []
    assert len(mutants) >= LEAST


def test_each_area_has_mutants_and_tests_that_are_there() -> None:
    areas, mutants = load(CHECKOUT / "tests/mutants")
    assert {mutant.area for mutant in mutants} == set(areas)
    named = {test.partition("::")[0] for area in areas.values() for stage in area.stages for test in stage}
    assert sorted(name for name in named if not (CHECKOUT / name).is_file()) == []


def test_a_mutant_that_is_called_equivalent_says_why() -> None:
    _, mutants = load(CHECKOUT / "tests/mutants")
    assert [one.name for one in mutants if one.equivalent and len(one.equivalent.split()) < 5] == []
