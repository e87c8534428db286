"""What a round is told, and what it tells."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["ChaosPlan", "ChaosWorkerSpec", "RoundReport", "Tally"]

_TOLD_MAX = 10


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """One round.

    Attributes:
        ways: the names of the ways to write.
        length: how long it is disturbed.
        processes: how many hold and write at once.
        resources: over how many resources.
        ttl: of the leases.
        seed: of all random choices; the schedule of the machine is not in it.
        protects: whether the tables are protected.
        blind: the share of writes that do not look at the lease.
        stalls: the share of pauses, some four to a write, that last for about a ttl.
        crashes: whether Postgres is killed too, with all of its processes, and started again.
    """

    ways: tuple[str, ...]
    length: timedelta = timedelta(seconds=20)
    processes: int = 4
    resources: int = 4
    ttl: timedelta = timedelta(seconds=1)
    seed: int = 1
    protects: bool = False
    blind: float = 0.4
    stalls: float = 0.02
    crashes: bool = False


@dataclass(frozen=True, slots=True)
class ChaosWorkerSpec:
    """What one process is told; it travels by a file that only its user can read.

    Attributes:
        redis_url: where locks are.
        database_url: where the fence and the tables are, direct or through a pooler.
        pooler: whether that is a pooler in transaction mode.
        application: what its connections are called.
        journal: its file.
        number: of the process; its operations are numbered from it.
        seed: of its choices.
        resources: what it locks.
        ways: the names of the ways to write.
        ttl_ms: of its leases.
        blind: the share of writes that do not look at the lease.
        stalls: the share of pauses that last for about a ttl.
    """

    redis_url: str
    database_url: str
    pooler: bool
    application: str
    journal: str
    number: int
    seed: int
    resources: tuple[str, ...]
    ways: tuple[str, ...]
    ttl_ms: int
    blind: float
    stalls: float


@dataclass(slots=True)
class Tally:
    """What came of one way to write.

    Attributes:
        attempted: operations begun.
        committed: those reported as committed.
        refused: those reported as refused, or given up.
        open_ended: those whose process was killed or cut before it knew.
        stale_commits: writes that came after a successor's seal, after a break, or after their own close.
        duplicates: operations that committed twice.
        lost_writes: operations whose reported end is not what the tables say.
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
        """Add another round's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class RoundReport:
    """What came of a round.

    Attributes:
        ways: by way of writing; ``"?"`` for what no operation could be found for.
        faults: how often each disturbance was made.
        counts: how often each thing happened to the holders.
        told: the first of what was wrong, in words.
    """

    ways: dict[str, Tally] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    told: list[str] = field(default_factory=list)

    def of(self, way: str) -> Tally:
        """The tally of a way."""
        return self.ways.setdefault(way, Tally())

    @property
    def stale_commits(self) -> int:
        """Of all ways."""
        return sum(tally.stale_commits for tally in self.ways.values())

    @property
    def violations(self) -> int:
        """Of all ways."""
        return sum(tally.violations for tally in self.ways.values())

    @property
    def unresolved(self) -> int:
        """Outcomes that nobody knew, and that were not looked up to the end."""
        counts = self.counts
        return counts["unknown"] - counts["unknown, had committed"] - counts["unknown, had not"]

    def tell(self, line: str) -> None:
        """Keep a line for people, one of the first."""
        if len(self.told) < _TOLD_MAX:
            self.told.append(line)

    def add(self, other: RoundReport) -> None:
        """Add another round's."""
        for way, tally in other.ways.items():
            self.of(way).add(tally)
        self.faults.update(other.faults)
        self.counts.update(other.counts)
        for line in other.told:
            self.tell(line)
