"""The settings and results of a race: plain values that its processes exchange as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, TypeAlias, cast, get_args

from lockguard._times import TTL_MIN
from lockguard.errors import ConfigurationError

__all__ = [
    "PHASES",
    "SCENARIOS",
    "Phase",
    "RaceResult",
    "RaceSettings",
    "Report",
    "Role",
    "Scenario",
    "StaleWrites",
    "WorkerSpec",
]

Scenario: TypeAlias = Literal["A", "B", "C", "D", "stress"]
Role: TypeAlias = Literal["opener", "syncer", "cleaner", "both"]
Phase: TypeAlias = Literal["all", "random", "before-order", "after-order", "before-stop", "after-stop"]

SCENARIOS: dict[Scenario, str] = {
    "A": "signal and signal: every process opens every symbol at the same moment",
    "B": "signal and sync: one process syncs while the others open",
    "C": "retry after rollback: the first stop of every symbol is refused, and another process tries again",
    "D": "clean-up and signal: one process cleans up what looks incomplete while the others open",
    "stress": "every process opens every symbol at a random moment, and syncs all the time",
}

PHASES: dict[Phase, str] = {
    "all": "passes all the time, so that each phase of an open meets some",
    "random": "a pass now and then, at any moment",
    "before-order": "the row is there and the entry about to be sent: just before the window opens",
    "after-order": "the entry is executed, and the row does not say so yet",
    "before-stop": "the entry has settled, and the stop is about to be sent",
    "after-stop": "the stop is placed, and the row is not active yet",
}
"""When the passes of scenario B are made. If the phase is a point in the flow, every open of a round is held
there until a complete pass has been made; no other pass is made meanwhile."""

_PROCESSES_MAX = 32
_OPENS_MAX = 100_000
_THREADS_MAX = 100
_DURATION_S_MAX = 86_400


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """The settings of one race.

    Attributes:
        redis_url: the Redis of the locks; for tests only, as the locks have the names of real symbols.
        database_url: a database on a server where a scratch database may be made for the race.
        exchange_url: a local exchange (``lockguard exchange serve``); it is reset.
        more_redis_urls: further independent servers; with the first, a majority of them decides.
        scenario: one of :data:`SCENARIOS`.
        phase: one of :data:`PHASES`; only for scenario B.
        guard: with the guard, on the latest schema; or the unguarded flow on the schema of version 1.
        processes: how many; one races with itself: it opens and makes the passes, or opens with several
            threads.
        threads: openers in each process. In A, C and stress each of them opens every symbol; in B and D they
            share the symbols.
        opens: how many positions to open, one for each symbol and round.
        duration_s: go on with further rounds for this many seconds, whatever ``opens`` says.
        expire_leases: take leases away in mid-flow, in Redis only: their holders learn of it from the fence.
        time_scale: the factor for the flow's own fixed waits (3 s for the settlement).
        seed: the seed of all random choices.
        symbols: the most symbols in one round; by default all that the exchange has.
        latency_ms: the latency of every request to the exchange.
        stagger_ms: the average time between the opens of one process.
        ttl_ms: the ttl of the leases.
        faults: the share of symbols for which the exchange has a fault in the entry or the stop.
        keep_database: keep the scratch database after the race.
        log_folder: an existing folder to which each process writes its log, a file for each round.
        connect_s: for how many seconds to try to reach the servers.
    """

    redis_url: str
    database_url: str
    exchange_url: str
    scenario: Scenario = "B"
    guard: bool = True
    processes: int = 2
    threads: int = 1
    opens: int = 25
    time_scale: float = 0.05
    seed: int = 1
    symbols: int | None = None
    latency_ms: int = 50
    stagger_ms: int = 120
    ttl_ms: int = 5_000
    duration_s: float | None = None
    expire_leases: bool = False
    faults: float = 0.0
    keep_database: bool = False
    connect_s: float = 30.0
    phase: Phase = "all"
    log_folder: str = ""
    more_redis_urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scenario not in get_args(Scenario):
            raise ConfigurationError(f"scenario {self.scenario!r} is not one of {', '.join(SCENARIOS)}")
        self._check_sizes()
        if self.duration_s is not None and not 0 < self.duration_s <= _DURATION_S_MAX:
            raise ConfigurationError(f"duration={self.duration_s:g} s must be above 0 and at most a day")
        if not 0 <= self.faults <= 1:
            raise ConfigurationError(f"faults={self.faults:g} must be from 0 to 1")
        self._check_phase()
        if self.expire_leases and not self.guard:
            raise ConfigurationError("without the guard there are no leases to expire; leave one of them out")
        if not 0 < self.time_scale <= 10:
            raise ConfigurationError(f"time_scale={self.time_scale} must be above 0 and at most 10")

    def _check_sizes(self) -> None:
        if not 1 <= self.processes <= _PROCESSES_MAX:
            raise ConfigurationError(f"processes={self.processes} must be from 1 to {_PROCESSES_MAX}")
        if not 1 <= self.threads <= _THREADS_MAX:
            raise ConfigurationError(f"threads={self.threads} must be from 1 to {_THREADS_MAX}")
        if self.scenario in {"A", "C"} and self.processes * self.threads == 1:
            raise ConfigurationError(
                f"one process with one thread races nobody in scenario {self.scenario}; set threads to 2"
            )
        if not 1 <= self.opens <= _OPENS_MAX:
            raise ConfigurationError(f"opens={self.opens} must be from 1 to {_OPENS_MAX}")
        if self.symbols is not None and self.symbols < 1:
            raise ConfigurationError(f"symbols={self.symbols} must be at least 1")
        least = TTL_MIN // timedelta(milliseconds=1)
        if self.ttl_ms < least:
            raise ConfigurationError(f"ttl_ms={self.ttl_ms} must be at least {least}")
        for name in ("latency_ms", "stagger_ms"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name}={getattr(self, name)} must be at least 0")

    def _check_phase(self) -> None:
        if self.phase not in PHASES:
            raise ConfigurationError(f"phase {self.phase!r} is not one of {', '.join(PHASES)}")
        if self.phase != "all" and self.scenario != "B":
            raise ConfigurationError(
                f"phase={self.phase}: passes meet opens at a phase in scenario B only, not in {self.scenario}"
            )
        if self.lined_up and self.processes == 1:
            raise ConfigurationError(
                f"phase={self.phase}: one process opens and another makes the pass; set processes to 2"
            )

    @property
    def redis_urls(self) -> tuple[str, ...]:
        """The URLs of the locks' servers, for ``LockGuard.from_urls``."""
        return (self.redis_url, *self.more_redis_urls)

    @property
    def topology(self) -> str | None:
        """The topology of the locks' servers, as in ``--topology``; ``None`` if the race takes no locks."""
        if not self.guard:
            return None
        if self.more_redis_urls:
            return f"redlock:{len(self.redis_urls)}"
        return self.redis_url.partition("://")[0].partition("+")[2] or "single"

    @property
    def lined_up(self) -> bool:
        """Whether the opens of a round are held at a phase until a pass has been made."""
        return self.phase not in {"all", "random"}

    @property
    def openers_per_symbol(self) -> int:
        """How many openers try to open each symbol in a round."""
        return 1 if self.scenario in {"B", "D"} else self.processes * self.threads

    def roles(self) -> tuple[Role, ...]:
        """The role of each process."""
        if self.processes == 1:
            return ("opener" if self.scenario in {"A", "C"} else "both",)
        first: Role = "both" if self.scenario == "stress" else "opener"
        lasts: dict[Scenario, Role] = {"B": "syncer", "D": "cleaner"}
        last = self.processes - 1
        return tuple(lasts.get(self.scenario, first) if n == last else first for n in range(last + 1))


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The instructions that one process of a race gets at its start."""

    settings: RaceSettings
    role: Role
    number: int

    def encode(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, line: str) -> WorkerSpec:
        """Parse the line that :meth:`encode` made."""
        data = json.loads(line)
        settings = data["settings"]
        urls = tuple(settings.pop("more_redis_urls"))
        return cls(**{**data, "settings": RaceSettings(**settings, more_redis_urls=urls)})


@dataclass(slots=True)
class Report:
    """What one process saw in one round, or the sum of several such reports.

    Attributes:
        opened: opens that ended with a position of their own.
        refused: opens that correctly ended without a position: there was one already, or another holder had
            the lock.
        failed: opens that were rolled back, or whose outcome is unknown.
        skipped: symbols that a sync pass left to their holders.
        passes: sync or clean-up passes.
        violations: symbols where a unique index was violated.
        stale_refused: writes that Postgres refused because their token was stale, each one counted.
        errors: all other errors, as text.
        open_ms: how long each successful open took, in milliseconds.
    """

    opened: int = 0
    refused: int = 0
    failed: int = 0
    skipped: int = 0
    passes: int = 0
    violations: list[str] = field(default_factory=list)
    stale_refused: int = 0
    errors: list[str] = field(default_factory=list)
    open_ms: list[float] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)

    def add(self, other: Report) -> None:
        """Add the report of another process or round."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, slots=True)
class StaleWrites:
    """Counts of writes by holders whose lease had ended."""

    attempted: int = 0
    refused: int = 0
    committed: int = 0


@dataclass(frozen=True, slots=True)
class RaceResult:
    """The result of a race.

    Attributes:
        opens: how many positions were to be opened.
        duplicates: for how many of them two rows were open at once, the unique index was violated, or the
            exchange entered a position that was open.
        overlapping_rows: for how many of them two rows were open at once.
        unique_violations: for how many of them the unique index was violated.
        double_entries: for how many of them the exchange entered an open position, by its own record.
        reversed_positions: for how many of them the position was reversed, by the exchange's record.
        without_stop: positions without a stop at the end of a round, by the exchange's record.
        orphan_stops: stops without a position at the end of a round, by the exchange's record.
        stale_writes: writes under a token that was not in force.
        skipped: symbols that sync passes left to their holders.
        passes: sync or clean-up passes.
        rolled_back: symbols that have a row in ``rolled_back``.
        errors: all other errors, as text.
        open_ms_median: the median time of a successful open, in milliseconds.
        not_opened: opens that ended without a position, rolled back, refused or never carried out.
        leases_expired: how many leases were taken away in mid-flow.
        database: the scratch database, if it was kept.
    """

    settings: RaceSettings
    opens: int
    duplicates: int
    overlapping_rows: int
    unique_violations: int
    double_entries: int
    reversed_positions: int
    without_stop: int
    orphan_stops: int
    stale_writes: StaleWrites
    skipped: int
    passes: int
    rolled_back: int
    errors: tuple[str, ...]
    open_ms_median: float | None
    seconds: float
    not_opened: int = 0
    leases_expired: int = 0
    database: str | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing happened that the guard is meant to prevent."""
        return not (
            self.duplicates
            or self.reversed_positions
            or self.without_stop
            or self.stale_writes.committed
            or self.errors
        )

    def as_json(self) -> dict[str, Any]:
        """The result for ``--json``, without URLs, which may contain passwords."""
        values = {
            name: value
            for name, value in asdict(replace(self, settings=cast("RaceSettings", None))).items()
            if name != "settings"
        }
        median = None if self.open_ms_median is None else round(self.open_ms_median, 1)
        return {
            "scenario": self.settings.scenario,
            "phase": self.settings.phase,
            "guard": self.settings.guard,
            "topology": self.settings.topology,
            "processes": self.settings.processes,
            "threads": self.settings.threads,
            "time_scale": self.settings.time_scale,
            "seed": self.settings.seed,
            **values,
            "errors": list(self.errors),
            "open_ms_median": median,
            "seconds": round(self.seconds, 3),
        }
