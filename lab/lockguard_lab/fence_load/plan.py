"""What a load is told, and what it tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

__all__ = [
    "TASKS",
    "AfterHistory",
    "LoadPlan",
    "LoadReport",
    "LoadWorkerSpec",
    "Phase",
    "TableSize",
    "WorkerReport",
]

TASKS = 4
"""How many bodies of each process run at once."""


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to run.

    Attributes:
        processes: how many, each with :data:`TASKS` bodies at once.
        resources: how many they choose from.
        duration: how long with the fence; before it, for a fifth of that, without.
        seed: of their choices.
        history: after how many earlier writes a hold and a break are measured too; 0 for not at all.
    """

    processes: int
    resources: int
    duration: timedelta
    seed: int
    history: int = 0


@dataclass(frozen=True, slots=True)
class LoadWorkerSpec:
    """What one process is told, by its standard input, for there are passwords in it.

    Attributes:
        redis_url: where locks are.
        database_url: where the fence and the tables are.
        resources: how many resources there are.
        seconds: how long it works.
        seed: of its choices.
        fenced: whether there is a fence.
    """

    redis_url: str
    database_url: str
    resources: int
    seconds: float
    seed: int
    fenced: bool


@dataclass(slots=True)
class WorkerReport:
    """What came of one process.

    Attributes:
        holds_ms: how long each body took from asking for the lease until it was given back, in milliseconds.
        writes: how many bodies committed their write.
        gave_up: how many got no lease in time.
        late: how many writes were tried after their lease was given back.
        late_committed: how many of those were let in: none must be.
        errors: what else happened, the first of it.
        failed: how often something else happened.
    """

    holds_ms: list[float] = field(default_factory=list)
    writes: int = 0
    gave_up: int = 0
    late: int = 0
    late_committed: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Phase:
    """What came of all processes, with the fence or without.

    Attributes:
        seconds: how long it took.
        holds: how many bodies ended.
        writes_per_s: how many writes were committed in a second.
        p50_ms: half of the bodies took no longer, from asking for the lease until it was given back.
        p99_ms: 99 of 100 took no longer.
        gave_up: how many got no lease in time.
        failed: how many bodies failed otherwise.
        server_cpu_s: processor time of all of Postgres's processes, in seconds.
        cpu_us_per_hold: the same for each body, in microseconds.
        autovacuum_cpu_s: the part of it that autovacuum took, in seconds.
    """

    seconds: float
    holds: int
    writes_per_s: float
    p50_ms: float
    p99_ms: float
    gave_up: int
    failed: int
    server_cpu_s: float
    cpu_us_per_hold: float
    autovacuum_cpu_s: float


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table of the fence's.

    Attributes:
        table: its name.
        bytes: what it takes on the disk with its indexes.
        live: rows, as the server counts them.
        dead: versions of rows that are still to be cleared away.
    """

    table: str
    bytes: int
    live: int
    dead: int


@dataclass(frozen=True, slots=True)
class AfterHistory:
    """One piece of work, in both databases.

    Attributes:
        work: what was done.
        none_us: after no earlier writes, in microseconds: the median of five rounds' medians.
        after_us: after all of them.
    """

    work: str
    none_us: float
    after_us: float

    @property
    def ratio(self) -> float:
        """How many times as long it takes."""
        return round(self.after_us / self.none_us, 3)


@dataclass(slots=True)
class LoadReport:
    """All of it.

    Attributes:
        plain: without the fence.
        fenced: with it.
        calls: how often the fence was called: seals, checks and closes.
        cpu_us_per_call: what the server takes longer for a body with the fence, for each of its calls.
        before: the fence's tables before the load with the fence.
        after: the same after it.
        late: how many writes were tried after their lease was given back.
        stale_commits: how many writes were let in that must not be.
        history: what was measured after earlier writes, if it was asked for.
        told: the first of what went wrong, in words.
    """

    plain: Phase
    fenced: Phase
    calls: int
    cpu_us_per_call: float
    before: list[TableSize]
    after: list[TableSize]
    late: int = 0
    stale_commits: int = 0
    history: list[AfterHistory] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing stale got in and no body failed."""
        return not self.stale_commits and not self.fenced.failed and not self.plain.failed
