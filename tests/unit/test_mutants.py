"""The tool that plants mutants: its data, its copy, its scores and its page."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from lockguard_lab.mutants.copied import Copied
from lockguard_lab.mutants.judge import Result, read_results, write_results
from lockguard_lab.mutants.mutant import Area, Mutant, load
from lockguard_lab.mutants.report import promises_in, report, scores

AREA = Area("a", 0.5, (("one.py",), ("two.py",)), also=(("*.lua", ("two.py", "three.py")),))


def mutant(name: str = "wrong", **more: str) -> Mutant:
    return Mutant("a", name, "code.py", **{"old": "x < 1", "new": "x > 1", **more})


def result(one: Mutant, outcome: str, test: str = "tests/t.py::test_law[a]") -> Result:
    return Result("a", one.name, one.digest, outcome, test, 2.0)  # type: ignore[arg-type]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    top = tmp_path / "checkout"
    top.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=top, check=True)
    (top / "code.py").write_text("if x < 1:\n    pass\n")
    return top


def test_a_mutant_is_in_the_copy_for_the_length_of_the_body_and_never_in_the_checkout(
    checkout: Path, tmp_path: Path
) -> None:
    copied = Copied(checkout, tmp_path / "copy")
    planted = tmp_path / "copy/code.py"
    times = []
    for new in ("x > 1", "x = 1"):  # of one size, within one second: Python must not take one for the other
        with copied.planted(mutant(new=new)):
            assert new in planted.read_text()
            times.append(int(planted.stat().st_mtime))
    assert len(set(times)) == 2
    assert planted.read_text() == (checkout / "code.py").read_text() == "if x < 1:\n    pass\n"


def test_a_copy_is_brought_up_to_date(checkout: Path, tmp_path: Path) -> None:
    Copied(checkout, tmp_path / "copy")
    (checkout / "code.py").rename(checkout / "new.py")
    Copied(checkout, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["new.py"]


@pytest.mark.parametrize(
    ("old", "new", "told"), [("x", "x", "changes nothing"), ("y", "x", "has its text 0 times")]
)
def test_a_mutant_that_does_not_fit_says_so(checkout: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        mutant(old=old, new=new).source(checkout)


def test_the_tests_of_a_file_come_before_those_of_its_area() -> None:
    assert AREA.stages_for("a.py") == (("one.py",), ("two.py",))
    assert AREA.stages_for("a.lua") == (("two.py", "three.py"), ("one.py",))


def test_two_mutants_with_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "areas.toml").write_text("[a]\nfloor = 0.5\nstages = [['one.py']]\n")
    text = '[[mutant]]\nname = "n"\nfile = "f"\nold = "a"\nnew = "b"\n'
    (tmp_path / "a.toml").write_text(text)
    _, mutants = load(tmp_path)
    assert [one.name for one in mutants] == ["n"]
    (tmp_path / "a.toml").write_text(2 * text)
    with pytest.raises(ValueError, match="two mutants"):
        load(tmp_path)


def test_the_score_leaves_out_what_is_equivalent_and_what_survived_is_below_the_floor(tmp_path: Path) -> None:
    killed, survived = mutant("killed", new="1"), mutant("survived", new="2")
    same, not_run = mutant("same", new="3", equivalent="nobody can see that"), mutant("not run", new="4")
    results = [result(killed, "killed"), result(survived, "survived", ""), result(same, "equivalent", "")]
    write_results(tmp_path / "state.json", results)
    found = read_results(tmp_path / "state.json")
    every = [killed, survived, same, not_run]
    (score,) = scores({"a": AREA}, every, found)
    assert (score.mutants, score.killed, score.share) == (4, 1, 0.5)
    promises = promises_in("| **S1** | law | `test_law`, `test_more` |\n| **L2** | law | `test_law` |\n")
    told = report({"a": AREA}, every, found, promises)
    assert told["counts"] == {"mutants": 3, "killed": 1, "survived": 1, "equivalent": 1}
    assert told["violations"] == []
    assert told["rows"][0] == {
        "area": "a",
        "mistake": "killed",
        "outcome": "killed",
        "law": "S1 L2",
        "by": "test_law",
        "killed": True,
        "seconds": 2.0,
    }
    strict = replace(AREA, floor=0.6)
    assert report({"a": strict}, every, found, {})["violations"] == [
        "a: 50.0% were killed, and its floor is 60%"
    ]
