"""All races of ``lockguard fence race``, one after the other, and the lines that report them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import click

from lockguard_lab.fence_race import (
    ISOLATIONS,
    PLANTED,
    PLANTED_ISOLATIONS,
    WAYS,
    RacePlan,
    RaceReport,
    Way,
    convict,
    race,
)
from lockguard_lab.fence_race.independent import BODIES, independent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_asyncpg._transaction import Isolation

__all__ = ["Route", "run_series"]

_PLANTED_WRITES = 400


@dataclass(frozen=True, slots=True)
class Route:
    """A way to the database.

    Attributes:
        name: its name in the report.
        url: the URL of the database.
        pooler: whether the URL is that of a pooler in transaction mode.
        direct: the database, directly, if it is the race's own: there isolation is the role's default.
    """

    name: str
    url: str
    pooler: bool
    direct: str | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    """One race of the series."""

    route: Route
    isolation: Isolation
    way: Way


async def run_series(
    routes: Sequence[Route], ways: Sequence[Way], plan: RacePlan, *, total: int | None, planted: bool
) -> bool:
    """Race in every way, at every isolation and on every route; print a line for each race, and the sums.

    Returns:
        Whether all races were sound and all planted checks were convicted.
    """
    runs = [
        _Run(route, isolation, way)
        for route in routes
        for isolation in ISOLATIONS
        for way in ways
        # A pooler gives a lone statement the role's default.
        if way.transacts or not route.pooler or route.direct is not None or isolation == ISOLATIONS[0]
    ]
    if total is not None:
        plan = replace(plan, writes=-(-total // len(runs)))
    sound, sums = True, Counter[str]()
    of_ways = {way.name: Counter[str]() for way in (*WAYS, *ways)}
    for run in runs:
        tried = replace(plan, isolation=run.isolation)
        report = await race(run.route.url, tried, run.way, pooler=run.route.pooler, direct=run.route.direct)
        facts = _facts(report)
        _tell({"route": run.route.name, "isolation": run.isolation, "write": run.way.name, **facts})
        counted = {name: count for name, count in facts.items() if isinstance(count, int)}
        sums.update(counted)
        of_ways[run.way.name].update(runs=1, **counted)
        sound = sound and report.sound
    for name, counts in of_ways.items():
        _tell({"write": name, **{what: counts[what] for what in _OF_A_WAY}})
    _tell({"all": len(runs), "seed": plan.seed, **sums})
    sound = await _independent(routes[0], ways, plan) and sound
    if planted:
        sound = await _planted(routes[0].url, plan) and sound
    return sound


_OF_A_WAY = ("runs", "attempts", "committed", "refused", "closes", "stale_commits", "unresolved")
"""The lines of the report by way, including ways that were not raced, so that an absent one is seen."""


def _facts(report: RaceReport) -> dict[str, object]:
    return {
        "stale_commits": report.stale_commits,
        "duplicates": report.duplicates,
        "lost_writes": report.lost_writes,
        "unresolved": report.unresolved,
        "stray_errors": report.stray_errors,
        "told": report.told,
        **dict(sorted(report.counts.items())),
    }


async def _independent(route: Route, ways: Sequence[Way], plan: RacePlan) -> bool:
    sound = True
    for isolation in ISOLATIONS:
        for way in ways:
            tried = replace(plan, isolation=isolation)
            found = await independent(
                route.url, way, tried, direct=route.direct, bodies=min(BODIES, plan.writes)
            )
            _tell({"independent": way.name, "isolation": isolation, **asdict(found)})
            sound = sound and (found.sound or isolation in way.meets)
    return sound


async def _planted(url: str, plan: RacePlan) -> bool:
    sound = True
    for isolation in PLANTED_ISOLATIONS:
        for way in PLANTED:
            verdict = await convict(url, way, replace(plan, writes=_PLANTED_WRITES, isolation=isolation))
            facts = {
                "planted": way.name,
                "isolation": isolation,
                "convicted": verdict.convicted,
                "races": verdict.races,
                "stale_commits": verdict.report.stale_commits,
            }
            _tell(facts)
            sound = sound and verdict.convicted
    return sound


def _tell(facts: dict[str, object]) -> None:
    click.echo(json.dumps(facts))
