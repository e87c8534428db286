"""What a schedule consists of, drawn from its seed: servers, processes, faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["TOPOLOGIES", "Fault", "Plan"]

TOPOLOGIES = ("single", "quorum-3", "quorum-5")

_PASSING = ("cut", "stall", "cancel")
"""What a process gets over by itself within seconds: nothing may be left behind for longer."""

_GENTLE = (
    *_PASSING,
    "slow database",
    "slow link",
    "hold requests",
    "hold replies",
    "hold both",
    "stop server",
    "stop process",
)
"""What loses no data: mutual exclusion holds throughout."""

_HARSH = ("kill process", "crash same", "lose commit answers")
_LOSING = ("wipe", "crash empty", "crash old", "server clock back", "server clock ahead", "break")
"""What a single server cannot survive: then only the fence keeps the order of writes."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what.
        at: when, in seconds.
        lasts: for how long, in seconds.
        where: numbers that choose a process and a server.
    """

    kind: str
    at: float
    lasts: float
    where: tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """One schedule before it begins.

    Attributes:
        seed: its number.
        topology: which servers.
        processes: how many compete.
        tasks: how many tasks of each process do.
        resources: how many locks there are.
        ttl_s: the ttl of every lease.
        lock_delay_s: see ``LockGuard``.
        work_s: the longest body.
        until_s: when no more holds are begun.
        faults: what goes wrong.
    """

    seed: int
    topology: str
    processes: int
    tasks: int
    resources: int
    ttl_s: float
    lock_delay_s: float
    work_s: float
    until_s: float
    faults: tuple[Fault, ...] = field(default=())

    @classmethod
    def of(cls, seed: int, topology: str | None = None) -> Plan:
        """The plan of a seed; ``topology`` fixes the servers."""
        dice = random.Random(seed ^ 0x5EED)  # noqa: S311 - a simulation, not a secret
        chosen = topology or dice.choice(TOPOLOGIES)
        if chosen != "single" and dice.random() < 0.25:
            return _of_a_quorum(seed, chosen, dice)
        kinds = dice.choice((_PASSING, _GENTLE, _GENTLE + _HARSH, _GENTLE + _HARSH + _LOSING))
        until_s = dice.choice((1.0, 2.0, 2.0, 4.0))
        faults = [
            Fault(
                dice.choice(kinds),
                dice.uniform(0, until_s),
                dice.choice((0.02, 0.15, 0.6, 1.5, 3.0)) * dice.uniform(0.5, 1.5),
                (dice.randrange(60), dice.randrange(60)),
            )
            for _ in range(dice.choice((0, 1, 1, 2, 3, 5, 8)))
        ]
        return cls(
            seed=seed,
            topology=chosen,
            processes=dice.choice((1, 2, 2, 3)),
            tasks=dice.choice((1, 1, 2, 4)),
            resources=dice.choice((1, 1, 1, 2)),
            ttl_s=dice.choice((0.3, 1.0, 1.0, 3.0, 10.0)),
            lock_delay_s=dice.choice((0.0, 0.0, 0.0, 0.2)),
            work_s=dice.choice((0.01, 0.1, 0.5, 2.0)),
            until_s=until_s,
            faults=tuple(sorted(faults, key=lambda fault: fault.at)),
        )

    @property
    def excludes(self) -> bool:
        """Whether mutual exclusion is promised."""
        if self.topology == "single":
            return not self.kinds & set(_LOSING)
        # A node of a quorum that forgets gives no vote until that is over; one whose clock jumps does.
        return not self.kinds & {"server clock ahead", "server clock back", "break"}

    @property
    def erodes(self) -> bool:
        """Whether nodes of a quorum lose their data one after another, each when the last one is back."""
        return bool(self.faults) and {fault.kind for fault in self.faults} == {"erode"}

    @property
    def nodes(self) -> int:
        """How many servers there are."""
        return 1 if self.topology == "single" else int(self.topology.rpartition("-")[2])

    @property
    def kinds(self) -> set[str]:
        """What goes wrong."""
        return {fault.kind for fault in self.faults}

    @property
    def loses_data(self) -> bool:
        """Whether a server may forget or misjudge a lock."""
        return bool(self.kinds & {*_LOSING, "erode"})

    @property
    def restarts(self) -> bool:
        """Whether a server comes back as another, which a quorum has to admit anew."""
        return any(fault.kind.startswith(("crash", "wipe", "erode")) for fault in self.faults)

    @property
    def passes(self) -> bool:
        """Whether every process gets over what goes wrong within seconds."""
        return all(fault.kind in _PASSING for fault in self.faults)

    @property
    def breaks(self) -> bool:
        """Whether an operator breaks a lock."""
        return any(fault.kind == "break" for fault in self.faults)

    @property
    def perils(self) -> tuple[Fault, ...]:
        """All that goes wrong."""
        return self.faults

    def without(self, *faults: Fault) -> Plan:
        """The plan without some of its faults, to shrink a failure."""
        kept = tuple(fault for fault in self.faults if fault not in faults)
        return Plan(**{**self.__dict__, "faults": kept})

    def __str__(self) -> str:
        first = (
            f"seed {self.seed}: {self.topology}, {self.processes} processes of {self.tasks} tasks,"
            f" {self.resources} resources, ttl {self.ttl_s:g} s, lock delay {self.lock_delay_s:g} s,"
            f" bodies up to {self.work_s:g} s, {self.until_s:g} s"
        )
        faults = [f"  at {one.at:.4f} s for {one.lasts:.3f} s: {one.kind} {one.where}" for one in self.faults]
        return "\n".join((first, *faults))


def _of_a_quorum(seed: int, topology: str, dice: random.Random) -> Plan:
    """What only a quorum meets: nodes that miss a grant and one that forgets it; or each forgets in turn."""
    ttl_s = dice.choice((1.0, 3.0))
    nodes = int(topology.rpartition("-")[2])
    first = dice.randrange(nodes)
    if dice.random() < 0.5:
        until_s = nodes * 1.5 * ttl_s
        faults = [
            Fault("erode", (0.5 + step * 1.2) * ttl_s, 0.0, (0, (first + step) % nodes))
            for step in range(nodes)
        ]
    else:
        until_s, cut_s = 3.0, dice.uniform(0.0, 0.5)
        missed = [(first + step) % nodes for step in range(1, (nodes + 1) // 2)]
        faults = [Fault("hold both", cut_s, dice.uniform(0.5, 1.0), (0, node)) for node in missed]
        faults.append(Fault("wipe", cut_s + dice.uniform(0.3, 0.8), 0.0, (0, first)))
    return Plan(
        seed=seed,
        topology=topology,
        processes=2,
        tasks=1,
        resources=1,
        ttl_s=ttl_s,
        lock_delay_s=0.0,
        work_s=dice.choice((1.0, 6.0)),
        until_s=until_s,
        faults=tuple(sorted(faults, key=lambda fault: fault.at)),
    )
