"""The plan and the report of a load."""

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
    """The plan of a load.

    Attributes:
        processes: how many processes, each with :data:`TASKS` bodies at once.
        resources: how many resources they choose from.
        duration: how long to run with the fence; first, a fifth of that without it.
        seed: the seed of their choices.
        history: the number of earlier writes after which a hold and a break are measured too; 0 for not at
            all.
    """

    processes: int
    resources: int
    duration: timedelta
    seed: int
    history: int = 0


@dataclass(frozen=True, slots=True)
class LoadWorkerSpec:
    """The instructions for one process, sent to its standard input because they contain passwords.

    Attributes:
        redis_url: the Redis of the locks.
        database_url: the database of the fence and the tables.
        resources: how many resources there are.
        seconds: for how many seconds it works.
        seed: the seed of its choices.
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
    """The outcome of one process.

    Attributes:
        holds_ms: how long each body took from the request for the lease to its release, in milliseconds.
        writes: how many bodies committed their write.
        gave_up: how many bodies got no lease in time.
        late: how many writes were tried after the release of their lease.
        late_committed: how many of those were committed, which must be none.
        errors: the first other errors.
        failed: how many other errors there were.
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
    """The outcome of all processes, with the fence or without.

    Attributes:
        seconds: how long the phase took, in seconds.
        holds: how many bodies ended.
        writes_per_s: how many writes were committed per second.
        p50_ms: the median time of a body from the request for the lease to its release, in milliseconds.
        p99_ms: the time that 99 of 100 bodies did not exceed, in milliseconds.
        gave_up: how many bodies got no lease in time.
        failed: how many bodies failed otherwise.
        server_cpu_s: processor time of all of Postgres's processes, in seconds.
        cpu_us_per_hold: the same for each body, in microseconds.
        autovacuum_cpu_s: the part of ``server_cpu_s`` that autovacuum took, in seconds.
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
    """The size of one of the fence's tables.

    Attributes:
        table: its name.
        bytes: its size on disk with its indexes, in bytes.
        live: how many live rows it has, as the server counts them.
        dead: how many dead row versions are still to be vacuumed.
    """

    table: str
    bytes: int
    live: int
    dead: int


@dataclass(frozen=True, slots=True)
class AfterHistory:
    """The time of one piece of work in both databases.

    Attributes:
        work: the kind of work.
        none_us: the time after no earlier writes, in microseconds: the median of five rounds' medians.
        after_us: the time after all earlier writes, likewise.
    """

    work: str
    none_us: float
    after_us: float

    @property
    def ratio(self) -> float:
        """The time after all earlier writes divided by the time after none."""
        return round(self.after_us / self.none_us, 3)


@dataclass(slots=True)
class LoadReport:
    """The report of a load.

    Attributes:
        plain: the phase without the fence.
        fenced: the phase with the fence.
        calls: how often the fence was called: seals, checks and closes.
        cpu_us_per_call: the server's extra processor time with the fence, per call, in microseconds.
        before: the fence's tables before the load with the fence.
        after: the fence's tables after it.
        late: how many writes were tried after the release of their lease.
        stale_commits: how many writes were committed that must not be.
        history: the measurements after earlier writes, if they were asked for.
        told: the first failures, in words.
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
        """Whether no stale write was committed and no body failed."""
        return not self.stale_commits and not self.fenced.failed and not self.plain.failed
