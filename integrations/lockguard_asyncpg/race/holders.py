"""The holders of a race and the desk that they take their tokens from."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lockguard.errors import FenceUnavailable
from lockguard.lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg.errors import DATABASE_ERRORS
from lockguard_asyncpg.fence import PostgresFence
from lockguard_asyncpg.race.operate import End, operate
from lockguard_asyncpg.race.plan import Attempt, RacePlan, RaceReport, Way
from lockguard_asyncpg.race.seat import Seat

if TYPE_CHECKING:
    import asyncpg

    from lockguard.clock import Clock

__all__ = ["Holders", "Seen"]

_SEAL_WITHIN = timedelta(seconds=2)
_RESOLVE_WITHIN = timedelta(seconds=20)
_WRITES_PER_LEASE_MAX = 6
_PAUSE_S = 0.004
_READ = """
select (select n from lockguard_race.state where resource = $1),
       (select count(*) from lockguard_race.entry where resource = $1 and token < $2)
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a holder read when its seal had returned: nothing older may come after it.

    Attributes:
        n: the resource's counter.
        entries: how many rows older tokens had inserted for it; newer ones may have come since the seal.
    """

    n: int
    entries: int


class _Desk:
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
        """As Redis would: a higher token, for the latest grant only."""
        if self._latest[grant.resource] != grant.id:
            return None
        self._next[grant.resource] = token
        return Grant(grant.resource, grant.id, token, grant.holder, grant.operation, grant.ttl_ms)


class Holders:
    """All holders of one race, and what they know of what became of their operations."""

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
        self.desk = _Desk(self.rng)
        self.fence = PostgresFence(pool)
        self.resources = [Resource(f"race:{plan.seed}:{n}") for n in range(plan.resources)]
        self.ops = itertools.count(1)
        self.looks: set[asyncio.Task[Any]] = set()
        self.committed: set[int] = set()
        self.refused: set[int] = set()
        self.seen: dict[tuple[str, int], Seen] = {}

    async def _pause(self) -> None:
        """Often nothing, sometimes long enough for several takeovers."""
        if (dice := self.rng.random()) < 0.5:
            await asyncio.sleep(_PAUSE_S * dice * (20 if dice < 0.03 else 1))

    async def holder(self) -> None:
        """Take, write, give back or not, until all operations are done."""
        seat = Seat(self.pool)
        try:
            await self._work(seat)
        finally:
            await seat.leave()

    async def _work(self, seat: Seat) -> None:
        while (op := next(self.ops)) <= self.plan.writes:
            lease = await self._take(self.rng.choice(self.resources))
            while lease is None:
                lease = await self._take(self.rng.choice(self.resources))
            for _ in range(self.rng.randint(1, _WRITES_PER_LEASE_MAX)):
                if not await self._operate(lease, op, seat) or (op := next(self.ops)) > self.plan.writes:
                    break
            if self.rng.random() < 0.5 and await self._give_back(lease.grant):
                await self._write_after_close(lease, seat)

    async def _write_after_close(self, lease: Lease, seat: Seat) -> None:
        """Sometimes go on with a lease that was given back: a task that nobody awaited."""
        if self.rng.random() < 0.3 and (op := next(self.ops)) <= self.plan.writes:
            self.report.counts["written after the close"] += 1
            if await self._operate(lease, op, seat):
                self.report.stale_commits += 1
                self.report.tell(f"operation {op} committed after its holder had closed")

    async def _take(self, resource: Resource) -> Lease | None:
        grant: Grant | None = self.desk.grant(resource)
        await self._pause()
        while grant is not None:
            try:
                answer = await self.fence.seal(grant, within=_SEAL_WITHIN)
                if isinstance(answer, Sealed):
                    self.seen[resource, answer.token] = await self._read(resource, answer.token)
                    self.report.counts["seals"] += 1
                    return Lease(grant, deadline=self.clock.now() + 3600, clock=self.clock)
            except (FenceUnavailable, *DATABASE_ERRORS):
                self.report.counts["seals failed"] += 1
                await self._give_back(grant)
                return None
            grant = self._outrun(grant, answer)
        return None

    def _outrun(self, grant: Grant, answer: Outrun) -> Grant | None:
        settled = self.desk.settle(grant, Token(answer.current + 1))
        self.report.counts["seals outrun, stale" if settled is None else "seals outrun, rightful"] += 1
        return settled

    async def _give_back(self, grant: Grant) -> bool:
        try:
            await self.fence.close(grant, within=_SEAL_WITHIN)
        except FenceUnavailable:
            self.report.counts["closes failed"] += 1
            return False
        return True

    async def _read(self, resource: Resource, token: Token) -> Seen:
        async with self.pool.acquire() as conn, conn.transaction():
            row = await conn.fetchrow(_READ, resource, token)
        assert row is not None, f"{_READ!r} gave no row for {resource} and token {token}"
        return Seen(int(row[0]), int(row[1]))

    async def _operate(self, lease: Lease, op: int, seat: Seat) -> bool:
        """Try one operation until it is committed or refused; tells whether the lease is still good."""
        end = await operate(
            self.way.write,
            lambda: self._attempt(lease, op, seat),
            pool=self.pool,
            within=_RESOLVE_WITHIN,
            counts=self.report.counts,
            late=self.looks,
        )
        (self.committed if end is End.COMMITTED else self.refused).add(op)
        return end is End.COMMITTED

    def _attempt(self, lease: Lease, op: int, seat: Seat) -> Attempt:
        return Attempt(
            self.pool,
            lease,
            op,
            self.way.shapes[op % len(self.way.shapes)],
            self.plan.isolation,
            self.alone,
            self._pause,
            self._count_lost if self.rng.random() < self.plan.lose_share else None,
            seat,
            self.gear,
        )

    def _count_lost(self) -> None:
        self.report.counts["replies lost"] += 1
