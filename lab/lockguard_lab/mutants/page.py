"""The scores, and the page that shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from lockguard_lab.mutants.judge import Result
from lockguard_lab.mutants.mutant import Area, Mutant

__all__ = ["Score", "page", "scores"]


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

    def facts(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "mutants": self.mutants,
            "killed": self.killed,
            "survived": self.survived,
            "equivalent": self.equivalent,
            "share": round(self.share, 4),
            "median_s": self.median_s,
        }

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


_HEAD = """\
# Mutants

What an engineer could get wrong, planted one at a time in a copy of the code; a mutant is killed when a test
that passes on the code fails. `scripts/mutants` runs them; their texts are in `tests/mutants`, and this page
is written by `scripts/mutants --page` from `docs/evidence/mutants.json`.

| area | mutants | killed | of those not equivalent | survived | equivalent | floor | seconds, median |
|---|---:|---:|---:|---:|---:|---:|---:|
"""


def page(areas: Mapping[str, Area], every: Iterable[Mutant], found: Mapping[str, Result]) -> str:
    """The page, in Markdown."""
    listed = list(every)
    text = _HEAD
    for score in scores(areas, listed, found):
        text += (
            f"| {score.area} | {score.mutants} | {score.killed} | {score.share:.1%} | {score.survived} |"
            f" {score.equivalent} | {areas[score.area].floor:.0%} | {score.median_s:g} |\n"
        )
    not_run = sum(one.digest not in found for one in listed)
    if not_run:
        text += f"\n{not_run} have not been run since they were written or changed.\n"
    survived = [one for one in listed if one.digest in found and found[one.digest].outcome == "survived"]
    if survived:
        text += "\n## Survivors\n\nNo test notices these yet.\n\n"
        text += "".join(f"* {one.area}, `{one.file}`: {one.name}\n" for one in survived)
    equivalent = [one for one in listed if one.equivalent]
    if equivalent:
        text += "\n## Equivalent\n\nNo caller can notice these.\n\n"
        text += "".join(f"* {one.area}, `{one.file}`: {one.name}: {one.equivalent}\n" for one in equivalent)
    text += "\n## Which test killed each\n\n| area | mistake | killed by |\n|---|---|---|\n"
    for one in listed:
        result = found.get(one.digest)
        if result is not None and result.outcome == "killed":
            test = result.test.rpartition("::")[2].partition("[")[0]
            text += f"| {one.area} | {one.name} | `{test}` |\n"
    return text
