"""What was found of each way to lock; the keys of the JSON are these names."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["About", "Cut", "Found", "Freed", "Horizon", "Pooler", "Stopped", "Told", "WayFound"]

Told = list[str]
"""What a holder was told, in order, such as ``write: StaleToken LG001``; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The holder was stopped (SIGSTOP) and wrote when it went on.

    Attributes:
        waited_s: from the stop until the successor had the lock; the median.
        during_stop: whether the successor got in while the holder was stopped, in each round.
        late_write: what became of the late write in each round: ``overwrote`` or ``refused``. If the
            successor had not been in yet: ``in order`` or ``failed``.
        told: what the holder was told, in the last round.
        told_s: when it was first told anything, seconds after it went on; ``None``: never.
    """

    waited_s: float
    during_stop: list[bool]
    late_write: list[str]
    told: Told
    told_s: float | None


@dataclass(frozen=True, slots=True)
class Cut:
    """The holder's connections to the lock's server were cut off, without a FIN or a reset.

    Attributes:
        waited_s: until the successor had the lock; ``None``: not within ``bound_s``.
        bound_s: how long was waited.
        late_write: as of a stopped holder; ``no answer`` if the write itself was cut off.
        told: what the holder was told.
        told_s: when it was first told anything, seconds after the cut.
        after_death_s: if the successor was not in, how long after the holder's process had ended it was;
            ``None``: not within ``bound_s`` either.
    """

    waited_s: float | None
    bound_s: float
    late_write: str
    told: Told
    told_s: float | None
    after_death_s: float | None = None


@dataclass(frozen=True, slots=True)
class Freed:
    """Postgres ended the session of a stopped holder, and the holder wrote when it went on.

    Attributes:
        late_write: as of a stopped holder.
        told: what the holder was told.
    """

    late_write: str
    told: Told


@dataclass(frozen=True, slots=True)
class WayFound:
    """All that was found of one way.

    Attributes:
        label: its name in tables.
        server: which server keeps its lock.
        stopped: with a stopped holder.
        killed_s: from a holder's SIGKILL until the successor had the lock; the median.
        cut: with a holder that was cut off.
        freed: with a stopped holder whose session Postgres ended; ``None`` where the lock is elsewhere.
        waiting_connections: connections to the lock's server while so many tasks of a process wait.
        cycle_us: the median of taking the lock and giving it back, nobody else wanting it, in microseconds.
    """

    label: str
    server: str
    stopped: Stopped
    killed_s: float
    cut: Cut
    freed: Freed | None
    waiting_connections: int
    cycle_us: float


@dataclass(frozen=True, slots=True)
class Horizon:
    """What a lock that is held keeps VACUUM from removing.

    Attributes:
        label: the way, and what its holder had done.
        dead_kept: dead rows of another table that VACUUM could not remove, of those that ``updates`` made.
        age: transactions since the oldest one that the holder's session may see, or 0.
    """

    label: str
    dead_kept: int
    age: int


@dataclass(frozen=True, slots=True)
class Pooler:
    """Advisory locks through PgBouncer in transaction mode.

    Attributes:
        version: of PgBouncer.
        session_given_twice: two clients got the same session lock at once.
        session_leaked: it was still held after the client that had taken it had gone.
        transaction_given_twice: the same for the lock of a transaction.
        lockguard_given_twice: the same for a lease with the fence behind the pooler.
    """

    version: str
    session_given_twice: bool
    session_leaked: bool
    transaction_given_twice: bool
    lockguard_given_twice: bool


@dataclass(frozen=True, slots=True)
class About:
    """Where and how it was measured.

    Attributes:
        command: what writes these figures.
        date: the day.
        cores: of the machine.
        load_before: how many processes ran or waited for a core before, on average.
        python: its version.
        servers: product and version of each.
        versions: of the peers.
        left_out: ways that could not run here, each with the reason.
        rounds: of the stopped and of the killed holder.
        ttl_s: of each lock that has one.
        stop_s: how long the holder was stopped.
        waiters: how many waited.
        updates: how many dead rows there were to remove.
        keepalive: Postgres's ``tcp_keepalives_idle`` in seconds, which decides about a connection cut off.
    """

    command: str
    date: str
    cores: int
    load_before: float
    python: str
    servers: dict[str, str]
    versions: dict[str, str]
    left_out: dict[str, str]
    rounds: int
    ttl_s: int
    stop_s: float
    waiters: int
    updates: int
    keepalive: int


@dataclass(frozen=True, slots=True)
class Found:
    """The figures of one run."""

    about: About
    ways: dict[str, WayFound]
    horizon: list[Horizon] = field(default_factory=list)
    pooler: Pooler | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the file of ``--json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Found:
        """The same from such a file."""
        ways = {
            name: WayFound(
                **{
                    **way,
                    "stopped": Stopped(**way["stopped"]),
                    "cut": Cut(**way["cut"]),
                    "freed": Freed(**way["freed"]) if way["freed"] else None,
                }
            )
            for name, way in told["ways"].items()
        }
        pooler = told["pooler"]
        return cls(
            About(**told["about"]),
            ways,
            [Horizon(**one) for one in told["horizon"]],
            None if pooler is None else Pooler(**pooler),
        )
