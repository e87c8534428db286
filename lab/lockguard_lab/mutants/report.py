"""The scores of areas, and the report that the evidence is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lockguard_lab.mutants.judge import Result
from lockguard_lab.mutants.mutant import Area, Mutant

__all__ = ["Score", "promises_in", "report", "scores"]


@dataclass(frozen=True, slots=True)
class Score:
    """What became of the mutants of one area.

    Attributes:
        area: its name.
        mutants: how many there are, or were chosen.
        killed: how many a test noticed.
        survived: how many none noticed.
        equivalent: how many no caller can notice.
        median_s: the median time that one took.
    """

    area: str
    mutants: int
    killed: int
    survived: int
    equivalent: int
    median_s: float

    @property
    def share(self) -> float:
        """Killed, of those that were run and are not equivalent; 1 if there are none."""
        judged = self.killed + self.survived
        return self.killed / judged if judged else 1.0

    def __str__(self) -> str:
        return (
            f"{self.area}: {self.mutants} mutants, {self.killed} killed ({self.share:.1%}), {self.survived}"
            f" survived, {self.equivalent} equivalent, median {self.median_s:g} s"
        )


def scores(areas: Mapping[str, Area], chosen: Iterable[Mutant], found: Mapping[str, Result]) -> list[Score]:
    """The score of each area that has a mutant among ``chosen``."""
    every = list(chosen)
    told = []
    for name in areas:
        of_area = [one for one in every if one.area == name]
        if not of_area:
            continue
        results = [found[one.digest] for one in of_area if one.digest in found]
        count = {
            what: sum(one.outcome == what for one in results) for what in ("killed", "survived", "equivalent")
        }
        times = [one.took_s for one in results if one.outcome != "equivalent"]
        told.append(Score(name, len(of_area), **count, median_s=round(median(times), 1) if times else 0.0))
    return told


def report(
    areas: Mapping[str, Area],
    chosen: Iterable[Mutant],
    found: Mapping[str, Result],
    promises: Mapping[str, str],
) -> dict[str, Any]:
    """What ``--json`` writes, for ``scripts/evidence``.

    Args:
        areas: the areas.
        chosen: the mutants that were to be judged.
        found: what became of them.
        promises: by the name of a test, the promises of the guarantees that it shows.
    """
    every = list(chosen)
    told = scores(areas, every, found)
    judged = [(one, found[one.digest]) for one in every if one.digest in found]
    below = [score for score in told if score.share < areas[score.area].floor]
    return {
        "counts": {
            "mutants": len(judged),
            "killed": sum(score.killed for score in told),
            "survived": sum(score.survived for score in told),
            "equivalent": sum(score.equivalent for score in told),
        },
        "violations": [
            f"{score.area}: {score.share:.1%} were killed, and its floor is {areas[score.area].floor:.0%}"
            for score in below
        ],
        "rows": [_row(mutant, result, promises) for mutant, result in judged],
        "notes": [
            "A mutant is killed when a test fails on it that passes on the code.",
            *(f"{score}; floor {areas[score.area].floor:.0%}" for score in told),
        ],
    }


def _row(mutant: Mutant, result: Result, promises: Mapping[str, str]) -> dict[str, Any]:
    test = test_of(result.test) if result.outcome == "killed" else result.test
    return {
        "area": mutant.area,
        "mistake": mutant.name,
        "outcome": result.outcome,
        "law": promises.get(test, ""),
        "by": test,
        "killed": result.outcome == "killed",
        "seconds": result.took_s,
    }


def test_of(node: str) -> str:
    """The name of a test function, of a name as pytest gives it."""
    return node.rpartition("::")[2].partition("[")[0]


_PROMISE = re.compile(r"^\| \*\*([SLP]\d+)\*\* \|.*", re.MULTILINE)


def promises_in(page: str) -> dict[str, str]:
    """By the name of a test, the promises of the page of guarantees that name it."""
    found: dict[str, list[str]] = {}
    for line in _PROMISE.finditer(page):
        for test in re.findall(r"`(test_\w+)`", line[0]):
            found.setdefault(test, []).append(line[1])
    return {test: " ".join(numbers) for test, numbers in found.items()}
