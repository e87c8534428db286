"""The plan and the report of a race, and the description of a way to write."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import asyncpg

    from lockguard._lease import Lease
    from lockguard.ports import Fence
    from lockguard_asyncpg._transaction import Isolation
    from lockguard_lab.fence_race.kept_connection import KeptConnection

__all__ = ["Gear", "RacePlan", "RaceReport", "Shape", "Way", "Write", "WriteAttempt"]


@dataclass(frozen=True, slots=True)
class RacePlan:
    """The plan of a race.

    Attributes:
        writes: how many operations to attempt.
        holders: how many holders run at once.
        resources: how many resources they share.
        isolation: the isolation of the writing transactions; Postgres's default if ``None``.
        kill_every: the time between kills of a backend; ``None`` for never.
        lose_share: the share of COMMIT replies that are lost.
        trespass: the share of bodies in which another task goes on writing during the close and after it.
        seed: the seed of all random choices; the server's scheduling does not depend on it.
    """

    writes: int = 2_000
    holders: int = 12
    resources: int = 4
    isolation: Isolation | None = None
    kill_every: timedelta | None = timedelta(milliseconds=100)
    lose_share: float = 0.02
    trespass: float = 0.3
    seed: int = 1


@dataclass(slots=True)
class RaceReport:
    """The outcome of a race. ``counts`` says how often each thing happened, the rest what must not happen.

    Attributes:
        counts: how often each thing happened.
        stale_commits: writes that came after a successor's seal or after the writer's own close.
        duplicates: operations that committed twice.
        lost_writes: operations whose reported outcome contradicts the tables.
        stray_errors: errors that reached the event loop's handler because no code retrieved them.
        told: the first violations, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    stale_commits: int = 0
    duplicates: int = 0
    lost_writes: int = 0
    stray_errors: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How often one of the three laws was broken."""
        return self.stale_commits + self.duplicates + self.lost_writes

    @property
    def unresolved(self) -> int:
        """How many unknown outcomes the look-up did not resolve."""
        counts = self.counts
        return counts["unknown"] - counts["unknown, had committed"] - counts["unknown, had not"]

    @property
    def sound(self) -> bool:
        """Whether no law was broken, every outcome is known and there were no stray errors."""
        return not self.violations and not self.unresolved and not self.stray_errors

    def tell(self, line: str) -> None:
        """Keep a line for the reader, if it is one of the first."""
        if len(self.told) < _TOLD_MAX:
            self.told.append(line)


_TOLD_MAX = 10


class Shape(Enum):
    """The kind of write that an operation makes."""

    UPDATE = "update"
    """Raise the counter."""
    READ = "read"
    """Read the counter, and later write the value that follows from it."""
    INSERT = "insert"
    """Insert a row, which no lock on an existing row holds back."""


@dataclass(frozen=True, slots=True)
class WriteAttempt:
    """One attempt at one operation, as passed to a :data:`Write`.

    Attributes:
        pool: the pool to write on.
        lease: the lease to write under.
        op: the operation's number.
        shape: the kind of write.
        isolation: the isolation of a transaction.
        alone: whether a statement without a transaction runs at that isolation.
        pause: to be awaited between the check and the write, and before COMMIT.
        lose_reply: called when the reply to COMMIT is cut off; ``None`` if it is to arrive.
        kept: the connection that the holder keeps from one lease to the next.
        notes: whether the race itself notes the outcome of a transaction that it has opened.
        gear: what :attr:`Way.gear` returned, such as an engine.
    """

    pool: asyncpg.Pool[Any]
    lease: Lease
    op: int
    shape: Shape
    isolation: Isolation | None
    alone: bool
    pause: Callable[[], Awaitable[None]]
    lose_reply: Callable[[], None] | None
    kept: KeptConnection
    gear: Any = None
    notes: bool = True


Gear: TypeAlias = Callable[[str, RacePlan, dict[str, Any]], AbstractAsyncContextManager[Any]]
"""Opens what a way needs besides a pool, from a URL, the plan and the connection options."""

Write: TypeAlias = Callable[[WriteAttempt], Awaitable[None]]
"""Makes one write; raises as :class:`lockguard_asyncpg.FencedTransaction` does."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to write, and what it needs.

    Attributes:
        name: its name in the report.
        write: the function that writes.
        fenced: whether the pool is a fenced pool.
        protects: whether the tables are protected.
        transacts: whether it can open a transaction of a given isolation.
        gear: opens what it needs besides the pool, once for each race.
        shapes: the kinds of write that its operations make.
        fence: makes, from the holders' pool, the fence that seals and closes its leases; by default a
            :class:`~lockguard_asyncpg.PostgresFence`.
        travels: the seal is sent with the lease's first write: what is read is final only from then on.
        meets: the isolations at which it may fail because of independent bodies.
        noisy: asyncpg itself may leave behind a future of it whose error is never retrieved.
    """

    name: str
    write: Write
    fenced: bool = False
    protects: bool = False
    transacts: bool = True
    gear: Gear | None = None
    shapes: tuple[Shape, ...] = tuple(Shape)
    fence: Callable[[asyncpg.Pool[Any]], Fence] | None = None
    travels: bool = False
    meets: tuple[Isolation, ...] = ()
    noisy: bool = False
