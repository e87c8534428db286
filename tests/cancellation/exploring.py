"""Cancels the rows of a world at their steps, and judges after each attempt."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lockguard_lab.cancellation import How, Point, cancelled_at, complaints, points_of
from tests.cancellation.worlds import Row, World, until_empty

__all__ = ["Report", "explore"]

FAULTS_MAX = 5
"""After so many of a row the rest of its points would only repeat them."""


@dataclass
class Report:
    """What became of one row."""

    row: str
    steps: int = 0
    points: int = 0
    struck: int = 0
    faults: list[str] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)


async def explore(world: World, row: Row, *, most: int | None, seed: int = 0) -> Report:
    """Run one row whole, then cancelled at each point, or at ``most`` of them that ``seed`` chooses."""
    report = Report(str(row))
    with complaints() as told:
        await _attempt(world, row, None, report)
        # Again: the first call connects, prepares and caches what later ones find.
        report.steps = await _attempt(world, row, None, report)
        for point in [] if report.faults else _points(report, most, seed):
            if len(report.faults) >= FAULTS_MAX:
                break
            await _attempt(world, row, point, report)
            report.points += 1
    report.faults += [line for line in told if not any(noise in line for noise in world.noise)]
    return report


def _points(report: Report, most: int | None, seed: int) -> Iterable[Point]:
    if most is not None:
        return points_of(report.steps, most=most, seed=seed)
    return _until_it_ends(report)


def _until_it_ends(report: Report) -> Iterator[Point]:
    """Every point, and further ones until the call is faster than each way of cancelling."""
    yield from points_of(report.steps)
    for how in How:
        step = report.steps
        while True:
            step, before = step + 1, report.struck
            yield Point(step, how)
            if report.struck == before:
                break


async def _awaited(work: Awaitable[Any]) -> None:
    await work


async def _attempt(world: World, row: Row, point: Point | None, report: Report) -> int:
    at = f"{row}, {point or 'not cancelled'}"
    if row.before is not None:
        await row.before(world)
    beside = None if row.beside is None else asyncio.create_task(_awaited(row.beside(world)))
    outcome = await cancelled_at(lambda: row.call(world), point)
    report.struck += bool(outcome.struck)
    report.ended[f"{outcome.ended}{', struck' if outcome.struck else ''}"] += 1
    if outcome.ended == "raised":
        report.faults.append(f"{at}: raised {outcome.error!r}")
    swallowed = (
        outcome.struck and outcome.ended == "returned" and point and point.how in (How.CANCEL, How.LATE)
    )
    if swallowed and not row.finishes:
        report.faults.append(f"{at}: the cancel was swallowed")

    if beside is not None:
        (met,) = await asyncio.gather(beside, return_exceptions=True)
        if isinstance(met, BaseException):
            report.faults.append(f"{at}: what went on beside it raised {met!r}")

    async def look() -> list[str]:
        return [*world.strange_tasks(), *await world.left()]

    left = await until_empty(look)
    if row.judge is not None:
        left += await row.judge(world)
    report.faults += [f"{at}: left {one}" for one in left]
    try:
        await world.works()
    except Exception as exc:
        report.faults.append(f"{at}: afterwards {exc!r}")
    return outcome.steps
