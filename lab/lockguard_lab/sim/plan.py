"""What a schedule consists of, drawn from its seed: servers, processes, faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from lockguard_lab.sim.aims import aimed
from lockguard_lab.sim.fault import Fault

__all__ = ["GENTLE", "HARSH", "LOSING", "PASSING", "TOPOLOGIES", "Fault", "Plan"]

TOPOLOGIES = ("single", "quorum-3", "quorum-5", "sentinel", "cluster")

PASSING = ("cut", "stall", "cancel", "forget scripts")
"""What a process gets over by itself within seconds: nothing may be left behind for longer."""

GENTLE = (
    *PASSING,
    "slow database",
    "slow link",
    "hold requests",
    "hold replies",
    "hold both",
    "stop server",
    "stop process",
    "lose messages",
    "refuse",
)
"""What loses no data: mutual exclusion holds throughout."""

HARSH = ("kill process", "crash same", "lose commit answers")
LOSING = (
    "wipe",
    "crash empty",
    "crash old",
    "delete key",
    "server clock back",
    "server clock ahead",
    "break",
)
"""What a single server cannot survive: then only the fence keeps the order of writes."""

_FOUND_OUT_S = 3.0
"""A process finds out about a dead connection within two seconds, and makes another within one."""

_VANISHED_S = 1.0
_AT_ONCE_S = 0.2
_GIVEN_UP_S = 4.0
"""A connection that does not answer is given up after two seconds, and another is made within one."""

_MISJUDGED = frozenset({"server clock ahead", "server clock back", "break", "delete key", "failover"})
"""What a quorum cannot survive either: a node gives its vote though it has forgotten."""

_IN_ORDER = frozenset({"cancel", "stop process", "kill process", "slow link", "lose messages"})
"""What leaves a server and its connections as they are, so that who comes first is known."""


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
        aim: the mechanism that it aims at; empty for none.
        least_work_s: the shortest body.
        wait_s: how long a caller waits.
        waits: the share of calls that wait at all.
        pollers: how many callers of one more process ask again and again without waiting.
        cancelled_by: a call is cancelled at one of so many first steps; 0 for none.
        one_after_the_other_s: how much later than the last one each process begins; 0: in any order.
        drifts: whether the clocks of the processes run up to 1 % slower or faster.
        long_ttl_s: the ttl of all but the first lease of the first process, which rests until ``long_from_s``
            before it asks for them; 0: it is one like the others.
        long_from_s: see ``long_ttl_s``.
        behind: the numbers of servers whose clocks are two seconds behind all along.
        at_least_s: how long a resource stays closed from its grant on, see ``LockGuard.hold``.
        max_hold_s: see ``LockGuard``; 0 for none.
        confirms: the share of a body's steps before which it has its lease confirmed.
        fenced: whether a fence seals each grant, and bodies write.
    """

    seed: int
    topology: str
    processes: int = 2
    tasks: int = 1
    resources: int = 1
    ttl_s: float = 1.0
    lock_delay_s: float = 0.0
    work_s: float = 0.5
    until_s: float = 2.0
    faults: tuple[Fault, ...] = field(default=())
    aim: str = ""
    least_work_s: float = 0.0
    wait_s: float = 3.0
    waits: float = 0.75
    pollers: int = 0
    cancelled_by: int = 0
    one_after_the_other_s: float = 0.0
    drifts: bool = False
    long_ttl_s: float = 0.0
    long_from_s: float = 0.0
    behind: tuple[int, ...] = ()
    at_least_s: float = 0.0
    max_hold_s: float = 0.0
    confirms: float = 0.0
    fenced: bool = True

    @classmethod
    def of(cls, seed: int, topology: str | None = None) -> Plan:
        """The plan of a seed; ``topology`` fixes the servers."""
        dice = random.Random(seed ^ 0x5EED)  # noqa: S311 - a simulation, not a secret
        chosen = topology or dice.choice(TOPOLOGIES)
        if seed % 2:
            drawn: Plan = aimed(cls(seed, chosen), chosen, dice)
            return drawn
        kinds = dice.choice((PASSING, GENTLE, GENTLE + HARSH, GENTLE + HARSH + LOSING))
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
            drifts=dice.random() < 0.3,
        )

    def with_(self, **changed: Any) -> Plan:
        """The plan with some of its attributes changed."""
        return replace(self, **changed)

    @property
    def excludes(self) -> bool:
        """Whether mutual exclusion is promised."""
        if not self.topology.startswith("quorum"):
            return not self.kinds & {*LOSING, "failover"}
        # A node of a quorum that forgets gives no vote until that is over; one whose clock jumps does.
        return not self.kinds & _MISJUDGED

    @property
    def erodes(self) -> bool:
        """Whether nodes of a quorum lose their data one after another, each when the last one is back."""
        return bool(self.faults) and {fault.kind for fault in self.faults} == {"erode"}

    @property
    def longest_s(self) -> float:
        """The longest ttl of a lease."""
        return max(self.ttl_s, self.long_ttl_s)

    @property
    def nodes(self) -> int:
        """How many servers decide."""
        return int(self.topology.rpartition("-")[2]) if self.topology.startswith("quorum") else 1

    @property
    def kinds(self) -> set[str]:
        """What goes wrong."""
        return {fault.kind for fault in self.faults}

    @property
    def loses_data(self) -> bool:
        """Whether a server may forget or misjudge a lock."""
        return bool(self.kinds & {*LOSING, "erode", "failover"})

    @property
    def restarts(self) -> bool:
        """Whether a server comes back as another, which a quorum has to admit anew."""
        return any(fault.kind.startswith(("crash", "wipe", "erode")) for fault in self.faults)

    @property
    def passes(self) -> bool:
        """Whether processes get over all that goes wrong within seconds."""
        return self.kinds <= {*PASSING, "move slot", "no owner", "failover", "slow link", "wipe"}

    @property
    def orphan_s(self) -> float:
        """How long a lock or a place may be left whose caller is gone."""
        at_once = self.kinds <= {"slow link", "wipe"}
        return (_AT_ONCE_S if at_once else _GIVEN_UP_S) + 4 * self.trip_s * ("slow link" in self.kinds)

    @property
    def calm(self) -> bool:
        """Whether nothing but connections is lost."""
        return self.kinds <= set(PASSING)

    @property
    def noticed_s(self) -> float:
        """How long a process may believe in a lock that its servers have lost."""
        if self.kinds == {"wipe"}:
            return 0.3  # the server says so
        if self.kinds == {"crash empty"}:
            return 2.0  # as soon as the connection is back
        if self.kinds == {"delete key"}:
            return _VANISHED_S
        return min(0.45 * self.longest_s, _VANISHED_S) + _FOUND_OUT_S

    @property
    def in_order(self) -> bool:
        """Whether it is known who has a free lock next, and how soon."""
        return self.topology == "single" and self.kinds <= _IN_ORDER and not self.stays_closed

    @property
    def closes(self) -> bool:
        """Whether a resource stays closed after some leases, and its server forgets nothing of that."""
        return self.topology == "single" and self.stays_closed and not self.loses_data

    @property
    def stays_closed(self) -> bool:
        """Whether a resource may be closed although nobody holds it."""
        return bool(self.lock_delay_s or self.at_least_s)

    @property
    def trip_s(self) -> float:
        """The longest that bytes take one way while nothing is held back."""
        slow = [0.02 + fault.lasts / 5 for fault in self.faults if fault.kind == "slow link"]
        return max(slow, default=0.002)

    @property
    def perils(self) -> tuple[Fault, ...]:
        """All that goes wrong."""
        return self.faults

    def without(self, *faults: Fault) -> Plan:
        """The plan without some of its faults, to shrink a failure."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault not in faults))

    def __str__(self) -> str:
        first = (
            f"seed {self.seed}: {self.topology}, {self.processes} processes of {self.tasks} tasks,"
            f" {self.resources} resources, ttl {self.ttl_s:g} s, lock delay {self.lock_delay_s:g} s,"
            f" bodies of {self.least_work_s:g} to {self.work_s:g} s, {self.until_s:g} s"
        )
        more = [f"  aims at: {self.aim}"] if self.aim else []
        if self.cancelled_by:
            more.append(f"  calls are cancelled at one of their first {self.cancelled_by} steps")
        for one in self.faults:
            since = f" after a process {_UPON[one.upon]} ({one.nth})" if one.upon else ""
            more.append(f"  at {one.at:.4f} s{since} for {one.lasts:.3f} s: {one.kind} {one.where}")
        return "\n".join((first, *more))


_UPON = {
    "held": "began a body",
    "granted": "was given the lock",
    "long": "was given the lock for the longer ttl",
    "waits": "was queued",
    "woken": "was woken",
    "left": "left a body",
    "released": "gave it back",
}
