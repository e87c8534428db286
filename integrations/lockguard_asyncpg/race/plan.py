"""What a race is told and what it tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import asyncpg

    from lockguard.lease import Lease
    from lockguard_asyncpg.transaction import Isolation

__all__ = ["Attempt", "RacePlan", "RaceReport", "Write"]


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
        seed: of all random choices. The schedule of the server is not in it.
    """

    writes: int = 2_000
    holders: int = 12
    resources: int = 4
    isolation: Isolation | None = None
    kill_every: timedelta | None = timedelta(milliseconds=100)
    lose_share: float = 0.02
    seed: int = 1


@dataclass(slots=True)
class RaceReport:
    """What came of it. ``counts`` tells how often each thing happened, ``violations`` what must not have."""

    counts: Counter[str] = field(default_factory=Counter)
    stale_commits: int = 0
    duplicates: int = 0
    lost_writes: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def violations(self) -> int:
        """How often one of the three laws was broken."""
        return self.stale_commits + self.duplicates + self.lost_writes


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of one operation, as a :data:`Write` gets it.

    Attributes:
        pool: where to write.
        lease: what to write under.
        op: the operation's number.
        isolation: for a transaction.
        pause: to be awaited between the check and the write, and before COMMIT.
        lose_reply: whether the reply to COMMIT is to be lost.
    """

    pool: asyncpg.Pool[Any]
    lease: Lease
    op: int
    isolation: Isolation | None
    pause: Callable[[], Awaitable[None]]
    lose_reply: bool


Write: TypeAlias = Callable[[Attempt], Awaitable[None]]
"""How to write; raises as :class:`lockguard_asyncpg.FencedTransaction` does."""
