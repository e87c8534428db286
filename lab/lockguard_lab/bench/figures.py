"""The figures of a run, and their form as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "About",
    "Figures",
    "HandOff",
    "Memory",
    "Renewal",
    "Sizes",
    "Throughput",
    "Uncontended",
    "Waiters",
    "percentile",
]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the measurements.

    Attributes:
        rounds: how many turns each contender has; the medians are over these.
        cycles: locks and unlocks in one turn of one task.
        tasks: concurrent tasks in the measurement of throughput, each with a lock of its own.
        cycles_per_task: locks and unlocks of each of these tasks in one turn.
        hand_offs: hand-offs in one turn.
        processes: how many processes the waiters run in.
        waiters: how many wait, over all processes.
        watch_s: for how many seconds the waiters are watched.
        leases: how many leases are held at once.
        renewal_ttl_ms: the ttl of these leases, in milliseconds.
        ticks: for how many renewals they are held.
    """

    rounds: int = 5
    cycles: int = 400
    tasks: int = 100
    cycles_per_task: int = 40
    hand_offs: int = 20
    processes: int = 4
    waiters: int = 1000
    watch_s: float = 5.0
    leases: int = 1000
    renewal_ttl_ms: int = 3000
    ticks: int = 3


@dataclass(frozen=True, slots=True)
class Uncontended:
    """Lock and unlock by one task: the median, in microseconds."""

    lockguard_p50_us: float
    limit_p50_us: float
    peers: dict[str, float]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Locks and unlocks per second by many tasks, each on its own lock."""

    lockguard: float
    limit: float
    peers: dict[str, float]


@dataclass(frozen=True, slots=True)
class HandOff:
    """From the holder's call of release to the waiter's return from acquire, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Waiters:
    """Many waiters on one lock.

    Attributes:
        commands_per_release: commands sent because of one release, without the release itself.
        commands_per_waiter_s: commands per waiter and second while nothing happens.
        connections: per process.
        fifo_inversions: how many waiters were served before one that had queued earlier.
    """

    commands_per_release: float
    commands_per_waiter_s: float
    connections: float
    fifo_inversions: int


@dataclass(frozen=True, slots=True)
class Renewal:
    """Many leases held at once.

    Attributes:
        writes_per_tick: writes to the connections for one renewal of all, when they are due at one time.
        cpu_share: the share of one core, at a ttl of 30 seconds, with the checks between two renewals.
    """

    writes_per_tick: int
    cpu_share: float


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory in Redis, in bytes, by ``MEMORY USAGE`` over all keys of a lock.

    Attributes:
        bytes_per_held_lock: a lock that is held for the first time and has no waiters.
        bytes_per_free_lock: what remains of that lock: the token floor and the history, for seven days.
        bytes_per_free_lock_max: the same when the history is full.
        bytes_per_waiter: each place in the queue.
    """

    bytes_per_held_lock: float
    bytes_per_free_lock: float
    bytes_per_free_lock_max: float
    bytes_per_waiter: float


@dataclass(frozen=True, slots=True)
class About:
    """The environment of a run.

    Attributes:
        topology: the topology, as in ``--topology``.
        loop: the event loop, as in ``--loop``.
        left_out: the peers that were left out, each with the reason.
    """

    topology: str
    loop: str
    server: str
    python: str
    machine: str
    cores: int
    load_before: float
    versions: dict[str, str]
    left_out: dict[str, str]
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one run."""

    uncontended: Uncontended
    throughput: Throughput
    hand_off: HandOff
    hand_off_peers: dict[str, HandOff]
    waiters: Waiters
    renewal: Renewal
    decorator_us: float
    memory: Memory
    commands_per_call: float
    about: About = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values under the documented keys; ``..._100`` and ``..._1000`` name the usual sizes."""
        return {
            "uncontended": asdict(self.uncontended),
            "throughput_100": asdict(self.throughput),
            "handoff_ms": {
                "lockguard": asdict(self.hand_off),
                "peers": {name: asdict(peer) for name, peer in self.hand_off_peers.items()},
            },
            "waiters_1000": asdict(self.waiters),
            "renewal_1000": asdict(self.renewal),
            "decorator_us": self.decorator_us,
            "memory": asdict(self.memory),
            "commands_per_call": self.commands_per_call,
            "about": asdict(self.about),
        }


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the values lie; the largest if there are few."""
    if share == 0.5:
        return statistics.median(values)
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
