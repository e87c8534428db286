"""The holders of a race and the issuer of their tokens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import FenceUnavailable
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_lab.fence_race.kept_connection import KeptConnection
from lockguard_lab.fence_race.operate import End, operate
from lockguard_lab.fence_race.plan import RacePlan, RaceReport, Way, WriteAttempt

if TYPE_CHECKING:
    import asyncpg

    from lockguard._clock import Clock

__all__ = ["Holders", "Seen"]

_SEAL_WITHIN = timedelta(seconds=2)
_RESOLVE_WITHIN = timedelta(seconds=20)
_WRITES_PER_LEASE_MAX = 6
_PAUSE_S = 0.004
_READ_BELOW = """
select (select count(*) from lockguard_race.ledger where resource = $1 and token < $2) as updates,
       (select count(*) from lockguard_race.entry where resource = $1 and token < $2) as entries
"""
_READ_OWN = _READ_BELOW.replace("token < $2", "token = $2")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a holder read as final: for all older tokens after its seal, for its own token after its close.

    Attributes:
        updates: how often those tokens had raised the counter.
        entries: how many rows they had inserted.
    """

    updates: int
    entries: int


class _TokenIssuer:
    """Hands out tokens without asking whether the last holder has finished."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next: Counter[str] = Counter()
        self._latest: dict[str, str] = {}

    def grant(self, resource: Resource) -> Grant:
        if self._rng.random() < 0.01:  # the data are lost
            self._next[resource] = max(0, self._next[resource] - 5)
        self._next[resource] += 1
        given = Grant(resource, new_grant_id(), Token(self._next[resource]), "race", "race", 60_000)
        self._latest[resource] = given.id
        return given

    def settle(self, grant: Grant, token: Token) -> Grant | None:
        """Raise the token, as Redis does, for the latest grant only; otherwise return ``None``."""
        if self._latest[grant.resource] != grant.id:
            return None
        self._next[grant.resource] = token
        return Grant(grant.resource, grant.id, token, grant.holder, grant.operation, grant.ttl_ms)


class Holders:
    """All holders of one race, and what they know of the outcomes of their operations."""

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        plan: RacePlan,
        way: Way,
        clock: Clock,
        *,
        alone: bool,
        gear: Any = None,
    ) -> None:
        self.pool = pool
        self.plan = plan
        self.way = way
        self.alone = alone
        self.gear = gear
        self.clock = clock
        self.report = RaceReport()
        self.rng = random.Random(plan.seed)  # noqa: S311 - no secret
        self.issuer = _TokenIssuer(self.rng)
        self.fence = PostgresFence(pool) if way.fence is None else way.fence(pool)
        self.resources = [Resource(f"race:{plan.seed}:{n}") for n in range(plan.resources)]
        self.ops = itertools.count(1)
        self.looks: set[asyncio.Task[Any]] = set()
        self.committed: set[int] = set()
        self.refused: set[int] = set()
        self.seen: dict[tuple[str, int], Seen] = {}
        self.closed: dict[tuple[str, int], Seen] = {}

    async def _pause(self) -> None:
        """Often do not pause, sometimes long enough for several takeovers."""
        if (dice := self.rng.random()) < 0.5:
            await asyncio.sleep(_PAUSE_S * dice * (20 if dice < 0.03 else 1))

    async def holder(self) -> None:
        """Take leases, write, and release them or not, until all operations are done."""
        kept = KeptConnection(self.pool)
        try:
            await self._work(kept)
        finally:
            await kept.leave()

    async def _work(self, kept: KeptConnection) -> None:
        while (op := next(self.ops)) <= self.plan.writes:
            lease = await self._take(self.rng.choice(self.resources))
            while lease is None:
                lease = await self._take(self.rng.choice(self.resources))
            for _ in range(self.rng.randint(1, _WRITES_PER_LEASE_MAX)):
                if not await self._operate(lease, op, kept) or (op := next(self.ops)) > self.plan.writes:
                    break
            if self.rng.random() < 0.5:
                await self._leave(lease, kept)

    async def _leave(self, lease: Lease, kept: KeptConnection) -> None:
        """Release the lease, sometimes in the middle of a write by another task of the same body."""
        beside = asyncio.create_task(self._write_beside(lease))
        try:
            await self._pause()
            if not await self._give_back(lease.grant):
                return
            try:
                self.closed[lease.resource, lease.token] = await self._read(_READ_OWN, lease)
            except DATABASE_ERRORS:
                self.report.counts["readings failed"] += 1
            await self._write_after_close(lease, kept)
        finally:
            await beside

    async def _write_beside(self, lease: Lease) -> None:
        """Sometimes write during the close: it commits before that or never, as the read afterwards shows."""
        if self.rng.random() < self.plan.trespass and (op := next(self.ops)) <= self.plan.writes:
            self.report.counts["written beside the close"] += 1
            kept = KeptConnection(self.pool)
            try:
                await self._operate(lease, op, kept)
            finally:
                await kept.leave()

    async def _write_after_close(self, lease: Lease, kept: KeptConnection) -> None:
        """Sometimes go on with a released lease, as a task does that was not awaited."""
        if self.rng.random() < self.plan.trespass and (op := next(self.ops)) <= self.plan.writes:
            self.report.counts["written after the close"] += 1
            if await self._operate(lease, op, kept):
                self.report.stale_commits += 1
                self.report.tell(f"operation {op} committed after its holder had closed")

    async def _take(self, resource: Resource) -> Lease | None:
        grant: Grant | None = self.issuer.grant(resource)
        await self._pause()
        while grant is not None:
            try:
                answer = await self.fence.seal(grant, within=_SEAL_WITHIN)
                if isinstance(answer, Sealed):
                    lease = Lease(grant, deadline=self.clock.now() + 3600, clock=self.clock)
                    if not self.way.travels:
                        self.report.counts["seals"] += 1
                        self.seen[resource, answer.token] = await self._read(_READ_BELOW, lease)
                    return lease
            except (FenceUnavailable, *DATABASE_ERRORS):
                self.report.counts["seals failed"] += 1
                await self._give_back(grant)
                return None
            grant = self._outrun(grant, answer)
        return None

    def _outrun(self, grant: Grant, answer: Outrun) -> Grant | None:
        settled = self.issuer.settle(grant, Token(answer.current + 1))
        self.report.counts["seals outrun, stale" if settled is None else "seals outrun, rightful"] += 1
        return settled

    async def _give_back(self, grant: Grant) -> bool:
        try:
            await self.fence.close(grant, within=_SEAL_WITHIN)
        except FenceUnavailable:
            self.report.counts["closes failed"] += 1
            return False
        self.report.counts["closes"] += 1
        return True

    async def _read(self, query: str, lease: Lease) -> Seen:
        async with self.pool.acquire() as conn, conn.transaction(isolation="read_committed"):
            row = await conn.fetchrow(query, lease.resource, lease.token)
        assert row is not None, f"{query!r} gave no row for {lease}"
        return Seen(row["updates"], row["entries"])

    async def _operate(self, lease: Lease, op: int, kept: KeptConnection) -> bool:
        """Try one operation until it is committed or refused; returns whether the lease is still good."""
        end = await operate(
            self.way.write,
            lambda: self._attempt(lease, op, kept),
            pool=self.pool,
            within=_RESOLVE_WITHIN,
            counts=self.report.counts,
            late=self.looks,
        )
        (self.committed if end is End.COMMITTED else self.refused).add(op)
        own = lease.resource, lease.token
        if self.way.travels and end is End.COMMITTED and own not in self.seen:
            self.report.counts["seals that travelled"] += 1
            with contextlib.suppress(*DATABASE_ERRORS):
                self.seen[own] = await self._read(_READ_BELOW, lease)
        return end is End.COMMITTED

    def _attempt(self, lease: Lease, op: int, kept: KeptConnection) -> WriteAttempt:
        return WriteAttempt(
            self.pool,
            lease,
            op,
            self.way.shapes[op % len(self.way.shapes)],
            self.plan.isolation,
            self.alone,
            self._pause,
            self._count_lost if self.rng.random() < self.plan.lose_share else None,
            kept,
            self.gear,
        )

    def _count_lost(self) -> None:
        self.report.counts["replies lost"] += 1
