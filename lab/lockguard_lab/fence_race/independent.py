"""Independent bodies, compared with the same bodies without the fence.

Each takes a resource of its own, writes once and releases it. No body may make another fail, at any isolation
and any default of the role; the standard is how many fail without the fence, for Postgres's own reasons.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import FenceUnavailable, LockguardError
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import fenced
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._protection import protect
from lockguard_lab.fence_race.defaults import role_defaults
from lockguard_lab.fence_race.kept_connection import KeptConnection
from lockguard_lab.fence_race.plan import RacePlan, Shape, Way, WriteAttempt
from lockguard_lab.fence_race.running import PROTECTED_TABLES, SET_UP, TEAR_DOWN
from lockguard_lab.fence_race.writes import LossyConnection, statement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from lockguard.ports import Fence

__all__ = ["BODIES", "Independent", "independent"]

BODIES = 960
_ALONE = True  # a statement without a transaction is a way to write
_WITHIN = timedelta(seconds=30)  # enough on a busy machine
_RESOURCES = """
insert into lockguard_race.state (resource, n) select $1 || g, 0 from generate_series(1, $2) g
"""


@dataclass(slots=True)
class Independent:
    """The outcome of the bodies.

    Attributes:
        bodies: how many ran with the fence, and as many without it.
        fenced: how many succeeded with the fence.
        unfenced: how many succeeded without leases and fence.
        told: the first error of a fenced body.
    """

    bodies: int
    fenced: int = 0
    unfenced: int = 0
    told: str = ""

    @property
    def sound(self) -> bool:
        """Whether the fence made none of them fail."""
        return self.fenced >= self.unfenced


async def independent(
    url: str, way: Way, plan: RacePlan, *, direct: str | None = None, bodies: int = BODIES
) -> Independent:
    """Run ``bodies`` bodies without the fence, and as many with it.

    Args:
        url: a database with lockguard's schema.
        way: how to write. Without the fence, a plain statement or transaction makes the same write.
        plan: the isolation, and how many bodies run at once.
        direct: the same database, directly, if it is the race's own: isolation is the role's default there.
        bodies: how many bodies.
    """
    found = Independent(bodies)
    async with AsyncExitStack() as stack:
        options: dict[str, Any] = {}
        if plan.isolation is not None and direct is not None:
            await stack.enter_async_context(role_defaults(direct, url, plan.isolation))
        elif plan.isolation is not None:
            level = plan.isolation.replace("_", " ")
            options["server_settings"] = {"default_transaction_isolation": level}
        pool = await stack.enter_async_context(
            asyncpg.create_pool(
                url, min_size=0, max_size=3 * plan.holders, connection_class=LossyConnection, **options
            )
        )
        if way.fenced:
            fenced(pool)
        gear = way.gear and await stack.enter_async_context(way.gear(url, plan, options))
        running = _Bodies(pool, way, plan, gear, found)
        for each in (running.unfenced, running.fenced):
            await running.set_up(protects=way.protects and each == running.fenced)
            numbers = iter(range(1, bodies + 1))
            async with asyncio.TaskGroup() as tasks:
                for _ in range(plan.holders):
                    tasks.create_task(running.work(numbers, each))
        await pool.execute(TEAR_DOWN)
    return found


class _Bodies:
    def __init__(
        self, pool: asyncpg.Pool[Any], way: Way, plan: RacePlan, gear: Any, found: Independent
    ) -> None:
        self._pool = pool
        self._way = way
        self._plan = plan
        self._gear = gear
        self._found = found
        self._fence: Fence = PostgresFence(pool) if way.fence is None else way.fence(pool)
        # The fence knows the resources of an earlier run.
        self._prefix = f"race:{new_grant_id()[:8]}:"

    async def set_up(self, *, protects: bool) -> None:
        """Make and analyze tables with a row for each body: a full scan would conflict with every body."""
        async with self._pool.acquire() as conn:
            await conn.execute(SET_UP)
            await conn.execute(_RESOURCES, self._prefix, self._found.bodies)
            await conn.execute("analyze lockguard_race.state")
            for table in PROTECTED_TABLES if protects else ():
                await protect(conn, table, resource="{resource}")

    async def work(self, numbers: Iterator[int], body: Callable[[WriteAttempt], Awaitable[None]]) -> None:
        """Run bodies one after the other; a failed one is not tried again."""
        kept = KeptConnection(self._pool)
        try:
            for number in numbers:
                await body(self._attempt(number, kept))
        finally:
            await kept.leave()

    def _attempt(self, number: int, kept: KeptConnection) -> WriteAttempt:
        grant = Grant(
            Resource(f"{self._prefix}{number}"), new_grant_id(), Token(1), "race", "independent", 60_000
        )
        return WriteAttempt(
            self._pool,
            Lease(grant, deadline=SYSTEM_CLOCK.now() + 3_600, clock=SYSTEM_CLOCK),
            number,
            Shape.INSERT,  # without a read, Postgres has no reason of its own to make a body fail
            self._plan.isolation,
            _ALONE,
            _let_others,
            None,
            kept,
            self._gear,
            notes=False,
        )

    async def fenced(self, attempt: WriteAttempt) -> None:
        """Seal, write, close."""
        try:
            await self._fence.seal(attempt.lease.grant, within=_WITHIN)
            await self._way.write(attempt)
            with contextlib.suppress(FenceUnavailable):  # the close goes on in the background
                await self._fence.close(attempt.lease.grant, within=_WITHIN)
        except (LockguardError, *DATABASE_ERRORS) as exc:
            self._found.told = self._found.told or f"{type(exc).__name__}: {exc}"
            return
        self._found.fenced += 1

    async def unfenced(self, attempt: WriteAttempt) -> None:
        """Write without a lease or the fence."""
        try:
            async with self._pool.acquire() as conn:
                if self._way.transacts:
                    async with conn.transaction(isolation=attempt.isolation):
                        await attempt.pause()
                        await _write(attempt, conn)
                        await attempt.pause()
                else:
                    await _write(attempt, conn)
        except DATABASE_ERRORS:
            return
        self._found.unfenced += 1


async def _write(attempt: WriteAttempt, conn: Any) -> None:
    query, args = await statement(attempt, conn)
    await conn.execute(query, *args)


async def _let_others() -> None:
    await asyncio.sleep(0)
