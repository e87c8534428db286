"""The plan and the report of a round."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = [
    "TOPOLOGIES",
    "ChaosPlan",
    "ChaosWorkerSpec",
    "PlannedFault",
    "RoundReport",
    "Tally",
    "digest",
    "planned",
]

TOPOLOGIES = ("single", "quorum-3", "quorum-5", "sentinel", "cluster")
_TOLD_MAX = 10
_GAP_S = (0.3, 1.8)
_CALM_S = (2.5, 4.0)
_CALM_SHARE = 0.15

_OF_PROCESSES = {
    "process stopped": 8,
    "process killed": 3,
    "lock broken": 3,
    "backend ended": 4,
    "link cut": 2,
    "answers lost": 2,
    "link delayed": 2,
    "link reset": 2,
    "link to Postgres cut": 1,
    "answers of Postgres lost": 2,
}
_OF_ONE_SERVER = {
    "server flushed": 2,
    "server stopped": 2,
    "server restarted with its data": 2,
    "server restarted empty": 2,
    "server restarted with old data": 2,
}
_OF_SERVERS = {
    "single": _OF_ONE_SERVER,
    "quorum-3": _OF_ONE_SERVER,
    "quorum-5": _OF_ONE_SERVER,
    "sentinel": {"server flushed": 1, "server stopped": 2, "failover ordered": 2, "master killed": 1},
    "cluster": {"server flushed": 1, "server stopped": 2, "failover ordered": 2, "master killed": 1},
}
_LENGTHS_TTL = {
    "process stopped": (0.2, 2.5),
    "link cut": (0.3, 2.0),
    "answers lost": (0.3, 2.0),
    "link delayed": (0.5, 2.0),
    "link to Postgres cut": (0.3, 1.5),
    "answers of Postgres lost": (0.1, 0.5),
    "server stopped": (0.2, 0.8),
}
"""How long a fault lasts, in ttls; the others last as long as they take."""


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """The plan of one round.

    Attributes:
        ways: the names of the ways to write.
        length: how long the processes are disturbed.
        processes: how many processes hold and write at once.
        tasks: how many tasks of each do.
        resources: how many resources they share.
        ttl: the ttl of the leases.
        seed: the seed of all random choices; the machine's scheduling does not depend on it.
        topology: how the Redis servers work together, one of :data:`TOPOLOGIES`.
        protects: whether the tables are protected.
        blind: the share of writes that do not check the lease.
        stalls: the share of pauses, some four to a write, that last for about a ttl.
        crashes: whether Postgres is killed too, with all of its processes, and started again.
        bypasses: the share of leases after whose end their process writes to a table of its own, past the
            fence: the judge must see it.
    """

    ways: tuple[str, ...]
    length: timedelta = timedelta(seconds=20)
    processes: int = 4
    tasks: int = 2
    resources: int = 4
    ttl: timedelta = timedelta(seconds=1)
    seed: int = 1
    topology: str = "single"
    protects: bool = False
    blind: float = 0.4
    stalls: float = 0.02
    crashes: bool = False
    bypasses: float = 0.1


@dataclass(frozen=True, slots=True)
class ChaosWorkerSpec:
    """The instructions for one process, passed in a file that only its user can read.

    Attributes:
        redis_urls: the servers of the locks, by this process's own links.
        address_map: where this process reaches the servers that Sentinels and a cluster announce, as triples
            of host, announced port and port.
        database_url: the database of the fence and the tables, direct or through a pooler.
        pooler: whether that is a pooler in transaction mode.
        application: the application name of its connections.
        journal: the path of its journal.
        number: the number of the process, from which its operations are numbered.
        seed: the seed of its choices.
        tasks: how many tasks take leases at once.
        resources: the resources that it locks.
        ways: the names of the ways to write.
        ttl_ms: the ttl of its leases, in milliseconds.
        blind: the share of writes that do not check the lease.
        stalls: the share of pauses that last for about a ttl.
        bypasses: the share of leases that are followed by a write past the fence, to a table of its own.
    """

    redis_urls: tuple[str, ...]
    address_map: tuple[tuple[str, int, int], ...]
    database_url: str
    pooler: bool
    application: str
    journal: str
    number: int
    seed: int
    tasks: int
    resources: tuple[str, ...]
    ways: tuple[str, ...]
    ttl_ms: int
    blind: float
    stalls: float
    bypasses: float


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of a round.

    Attributes:
        at_s: when, in seconds from the beginning of the round.
        kind: which.
        target: which process, resource or server, as a number to be taken modulo how many there are.
        length_s: how long it lasts; 0 if that is not chosen.
    """

    at_s: float
    kind: str
    target: int
    length_s: float = 0.0


def planned(plan: ChaosPlan) -> tuple[PlannedFault, ...]:
    """The faults of a round: the same for the same plan, on every machine."""
    rng = random.Random(f"{plan.seed}:{plan.topology}")  # noqa: S311 - no secret
    weights = {**_OF_PROCESSES, **_OF_SERVERS[plan.topology]}
    if plan.crashes:
        weights["Postgres crashed"] = 2
    ttl_s, faults, at_s = plan.ttl.total_seconds(), list[PlannedFault](), 0.0
    while True:
        calm = rng.random() < _CALM_SHARE
        at_s += rng.uniform(*(_CALM_S if calm else _GAP_S))
        if at_s >= plan.length.total_seconds():
            return tuple(faults)
        (kind,) = rng.choices(list(weights), list(weights.values()))
        length_s = ttl_s * rng.uniform(*_LENGTHS_TTL[kind]) if kind in _LENGTHS_TTL else 0.0
        faults.append(PlannedFault(at_s, kind, rng.randrange(1_000_000), length_s))


def digest(plan: ChaosPlan) -> str:
    """What stands for the faults of a plan: equal if they are."""
    return hashlib.sha256(repr(planned(plan)).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Tally:
    """The outcomes of one way to write.

    Attributes:
        attempted: operations begun.
        committed: operations reported as committed.
        refused: operations reported as refused, or given up.
        open_ended: operations whose process was killed or cancelled before it knew the outcome.
        stale_commits: writes that came after a successor's seal, after a break, or after their own close.
        duplicates: operations that committed twice.
        lost_writes: operations whose reported outcome contradicts the tables.
    """

    attempted: int = 0
    committed: int = 0
    refused: int = 0
    open_ended: int = 0
    stale_commits: int = 0
    duplicates: int = 0
    lost_writes: int = 0

    @property
    def violations(self) -> int:
        """How often a law was broken."""
        return self.stale_commits + self.duplicates + self.lost_writes

    def add(self, other: Tally) -> None:
        """Add the counts of another round."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class RoundReport:
    """The outcome of a round.

    Attributes:
        ways: the tally of each way to write; ``"?"`` counts what belongs to no known operation.
        faults: how often each disturbance was made.
        counts: how often each thing happened to the holders.
        calls: how often each call was made, by its outcome: ``acquire ok``.
        broken: how often each law of the history was broken.
        recovery_s: for each kind of recovery, how long each took, in seconds.
        told: the first violations, in words.
    """

    ways: dict[str, Tally] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def of(self, way: str) -> Tally:
        """The tally of a way."""
        return self.ways.setdefault(way, Tally())

    @property
    def stale_commits(self) -> int:
        """The stale commits of all ways."""
        return sum(tally.stale_commits for tally in self.ways.values())

    @property
    def violations(self) -> int:
        """How often a law was broken, of the tables or of the history."""
        return sum(tally.violations for tally in self.ways.values()) + self.broken.total()

    @property
    def operations(self) -> int:
        """How many calls were made."""
        return self.calls.total()

    @property
    def unresolved(self) -> int:
        """How many unknown outcomes the look-up did not resolve."""
        counts = self.counts
        return counts["unknown"] - counts["unknown, had committed"] - counts["unknown, had not"]

    def breach(self, law: str, line: str) -> None:
        """Note that a law of the history was broken."""
        self.broken[law] += 1
        self.tell(f"{law}: {line}")

    def tell(self, line: str) -> None:
        """Keep a line for the reader, if it is one of the first."""
        if len(self.told) < _TOLD_MAX:
            self.told.append(line)

    def add(self, other: RoundReport) -> None:
        """Add the report of another round."""
        for way, tally in other.ways.items():
            self.of(way).add(tally)
        self.faults.update(other.faults)
        self.counts.update(other.counts)
        self.calls.update(other.calls)
        self.broken.update(other.broken)
        for kind, took in other.recovery_s.items():
            self.recovery_s.setdefault(kind, []).extend(took)
        for line in other.told:
            self.tell(line)
