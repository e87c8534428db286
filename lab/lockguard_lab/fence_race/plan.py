"""What a race is told and what it tells."""

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
    """What to run.

    Attributes:
        writes: how many operations to attempt.
        holders: how many run at once.
        resources: over how many resources.
        isolation: of the writing transactions; Postgres's default if ``None``.
        kill_every: how often a backend is killed; ``None`` for never.
        lose_share: the share of COMMIT replies that are lost.
        trespass: the share of bodies of which another task writes on beside the close, and after it.
        seed: of all random choices. The schedule of the server is not in it.
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
    """What came of it. ``counts`` tells how often each thing happened, the rest what must not have.

    Attributes:
        counts: how often each thing happened.
        stale_commits: writes that came after a successor's seal or after the writer's own close.
        duplicates: operations that committed twice.
        lost_writes: operations whose reported end is not what the tables say.
        stray_errors: what the event loop was told of because nobody else had asked.
        told: the first of each, in words.
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
        """Outcomes that nobody knew, and that were not looked up to the end."""
        counts = self.counts
        return counts["unknown"] - counts["unknown, had committed"] - counts["unknown, had not"]

    @property
    def sound(self) -> bool:
        """Whether no law was broken, every outcome is known and nothing went astray."""
        return not self.violations and not self.unresolved and not self.stray_errors

    def tell(self, line: str) -> None:
        """Keep a line for people, one of the first."""
        if len(self.told) < _TOLD_MAX:
            self.told.append(line)


_TOLD_MAX = 10


class Shape(Enum):
    """What an operation does to its resource."""

    UPDATE = "update"
    """Raise the counter."""
    READ = "read"
    """Read the counter, and later write what follows from it."""
    INSERT = "insert"
    """A new row, which no lock on an old one holds back."""


@dataclass(frozen=True, slots=True)
class WriteAttempt:
    """One try of one operation, as a :data:`Write` gets it.

    Attributes:
        pool: where to write.
        lease: what to write under.
        op: the operation's number.
        shape: what it does.
        isolation: for a transaction.
        alone: whether a statement without a transaction runs at that isolation.
        pause: to be awaited between the check and the write, and before COMMIT.
        lose_reply: called when the reply to COMMIT is cut off; ``None`` if it is to arrive.
        kept: the connection that the holder keeps from one lease to the next.
        notes: whether the kit itself notes the outcome of a transaction that it has opened.
        gear: what the way's :attr:`Way.gear` gave, such as an engine.
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
"""What a way needs besides a pool, made of a URL, the plan and the options of its connections."""

Write: TypeAlias = Callable[[WriteAttempt], Awaitable[None]]
"""How to write; raises as :class:`lockguard_asyncpg.FencedTransaction` does."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to write, and what it needs.

    Attributes:
        name: for the report.
        write: how.
        fenced: whether the pool carries the leases.
        protects: whether the tables are protected.
        transacts: whether it can open a transaction of a given isolation.
        gear: opens what it needs besides the pool, once for each race.
        shapes: what its operations do.
        fence: how its leases are sealed and closed, of the holders' pool; by default a
            :class:`~lockguard_asyncpg.PostgresFence`.
        travels: the seal leaves with the lease's first write: only from then on is final what is read.
        meets: at which isolations it may fail for the sake of bodies that have nothing to do with it.
        noisy: asyncpg itself may leave a future of it behind whose error nobody retrieves.
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
