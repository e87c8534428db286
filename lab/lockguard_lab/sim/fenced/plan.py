"""What a schedule of the fence consists of, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

from lockguard_lab.sim.fault import Fault
from lockguard_lab.sim.fenced.aims import aimed

__all__ = ["FencedPlan"]

_GENTLE = (
    "cancel",
    "cut database",
    "cut redis",
    "slow database",
    "hold database",
    "kill session",
    "freeze session",
    "lose answers",
    "stop process",
)
_HARSH = ("kill process", "crash database", "hold redis")
_LOSING = ("wipe", "break", "lose grant", "lose grant")
"""What makes two believe in one lock: then only the fence keeps the order of writes."""


@dataclass(frozen=True)
class FencedPlan:
    """One schedule before it begins.

    Attributes:
        seed: its number.
        processes: how many compete.
        tasks: how many tasks of each process do.
        resources: how many locks there are.
        ttl_s: the ttl of every lease.
        latency_s: what bytes take, each way, between all processes and the lock's server, once connected.
        work_s: the longest body.
        until_s: when no more holds are begun.
        first: whether leases are sealed with their first write.
        foreign: whether the event loop is another than asyncio's, whose transports are none of its classes.
        faults: what goes wrong.
        aim: the mechanism that it aims at; empty for none.
        shape: the shape of most holds, by the name of its method; empty for any.
        way: how most writes are made, by the name of its function; empty for any.
    """

    seed: int
    processes: int = 2
    tasks: int = 1
    resources: int = 1
    ttl_s: float = 1.0
    latency_s: float = 0.0
    work_s: float = 0.5
    until_s: float = 2.0
    first: bool = False
    foreign: bool = False
    faults: tuple[Fault, ...] = ()
    aim: str = ""
    shape: str = ""
    way: str = ""

    @classmethod
    def of(cls, seed: int) -> FencedPlan:
        """The plan of a seed."""
        dice = random.Random(seed ^ 0xFE9CE)  # noqa: S311 - a simulation, not a secret
        until_s = dice.choice((1.0, 2.0, 2.0, 4.0))
        kinds = dice.choice(
            (_GENTLE, _GENTLE + _HARSH, _LOSING, _GENTLE + 3 * _LOSING, _GENTLE + _HARSH + _LOSING)
        )
        ttl_s = dice.choice((1.0, 1.0, 3.0, 10.0))
        # A steady link, near or far; a far one has no other faults, so that a lost lease is the link's.
        far = dice.random() < 0.15
        faults = [
            Fault(
                dice.choice(kinds),
                dice.uniform(0, until_s),
                dice.choice((0.02, 0.15, 0.6, 1.5, 3.0)) * dice.uniform(0.5, 1.5),
                (dice.randrange(60), dice.randrange(60)),
            )
            for _ in range(0 if far else dice.choice((0, 1, 1, 2, 3, 5, 8)))
        ]
        if seed % 2 == 0:
            drawn: FencedPlan = aimed(cls(seed), dice)
            return drawn
        return cls(
            seed=seed,
            processes=dice.choice((1, 2, 2, 3)),
            tasks=dice.choice((1, 1, 2, 3)),
            resources=dice.choice((1, 1, 2)),
            ttl_s=ttl_s,
            latency_s=min(0.9, dice.uniform(0.02, 0.11) * ttl_s) if far else 0.0,
            work_s=2.0 * ttl_s if far else dice.choice((0.02, 0.1, 0.5, 0.5, 2.0)),
            until_s=until_s,
            first=not far and dice.random() < 0.15,
            foreign=dice.random() < 0.2,
            faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        )

    def with_(self, **changed: Any) -> FencedPlan:
        """The plan with some of its attributes changed."""
        return replace(self, **changed)

    @property
    def kinds(self) -> set[str]:
        """What goes wrong."""
        return {fault.kind for fault in self.faults}

    @property
    def excludes(self) -> bool:
        """Whether mutual exclusion is promised."""
        return not self.kinds & {*_LOSING}

    @property
    def perils(self) -> tuple[Fault, ...]:
        """What goes wrong, to shrink a failure."""
        return self.faults

    def without(self, *perils: Fault) -> FencedPlan:
        """The same with less that goes wrong."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault not in perils))

    def __str__(self) -> str:
        first = (
            f"seed {self.seed}: {self.processes} processes of {self.tasks} tasks, {self.resources} resources,"
            f" ttl {self.ttl_s:g} s, latency {self.latency_s:.3f} s, bodies up to {self.work_s:g} s,"
            f" {self.until_s:g} s{', sealed with the first write' if self.first else ''}"
            f"{', on a foreign loop' if self.foreign else ''}"
        )
        more = [f"  aims at: {self.aim}"] if self.aim else []
        for one in self.faults:
            since = f" after a process {_UPON[one.upon]} ({one.nth})" if one.upon else ""
            more.append(f"  at {one.at:.4f} s{since} for {one.lasts:.3f} s: {one.kind} {one.where}")
        return "\n".join((first, *more))


_UPON = {
    "entered": "entered a body",
    "left": "left a body",
    "parsed": "had a statement parsed in a transaction under its lease",
    "undone": "rolled back to a savepoint",
    "writes": "began a write",
}
