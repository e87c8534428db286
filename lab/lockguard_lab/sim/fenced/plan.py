"""What a schedule of the fence consists of, drawn from its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from lockguard_lab.sim.plan import Fault

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


_SUPERSEDED = 0.3


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
    """

    seed: int
    processes: int
    tasks: int
    resources: int
    ttl_s: float
    latency_s: float
    work_s: float
    until_s: float
    first: bool
    foreign: bool = False
    faults: tuple[Fault, ...] = ()

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
        if not far and dice.random() < _SUPERSEDED:
            return _superseded(seed, dice)
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
        faults = [f"  at {one.at:.4f} s for {one.lasts:.3f} s: {one.kind} {one.where}" for one in self.faults]
        return "\n".join((first, *faults))


def _superseded(seed: int, dice: random.Random) -> FencedPlan:
    """Holders that are superseded again and again, and learn of it only by their next renewal or write."""
    kinds = (*("lose grant",) * 4, "break", "stop process", "lose answers", "kill session")
    faults = [
        Fault(
            dice.choice(kinds),
            dice.uniform(0.1, 3.0),
            dice.choice((0.1, 0.5, 1.5)),
            (dice.randrange(60), dice.randrange(60)),
        )
        for _ in range(dice.choice((4, 8, 12)))
    ]
    return FencedPlan(
        seed=seed,
        processes=dice.choice((2, 3)),
        tasks=1,
        resources=1,
        ttl_s=dice.choice((3.0, 10.0)),
        latency_s=0.0,
        work_s=dice.choice((0.5, 1.0, 2.0)),
        until_s=3.0,
        first=dice.random() < 0.2,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )
