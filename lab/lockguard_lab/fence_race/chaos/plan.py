"""The plan and the report of a round."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

__all__ = ["ChaosPlan", "ChaosWorkerSpec", "RoundReport", "Tally"]

_TOLD_MAX = 10


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """The plan of one round.

    Attributes:
        ways: the names of the ways to write.
        length: how long the processes are disturbed.
        processes: how many processes hold and write at once.
        resources: how many resources they share.
        ttl: the ttl of the leases.
        seed: the seed of all random choices; the machine's scheduling does not depend on it.
        protects: whether the tables are protected.
        blind: the share of writes that do not check the lease.
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
    """The instructions for one process, passed in a file that only its user can read.

    Attributes:
        redis_url: the Redis of the locks.
        database_url: the database of the fence and the tables, direct or through a pooler.
        pooler: whether that is a pooler in transaction mode.
        application: the application name of its connections.
        journal: the path of its journal.
        number: the number of the process, from which its operations are numbered.
        seed: the seed of its choices.
        resources: the resources that it locks.
        ways: the names of the ways to write.
        ttl_ms: the ttl of its leases, in milliseconds.
        blind: the share of writes that do not check the lease.
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
        told: the first violations, in words.
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
        """The stale commits of all ways."""
        return sum(tally.stale_commits for tally in self.ways.values())

    @property
    def violations(self) -> int:
        """The violations of all ways."""
        return sum(tally.violations for tally in self.ways.values())

    @property
    def unresolved(self) -> int:
        """How many unknown outcomes the look-up did not resolve."""
        counts = self.counts
        return counts["unknown"] - counts["unknown, had committed"] - counts["unknown, had not"]

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
        for line in other.told:
            self.tell(line)
