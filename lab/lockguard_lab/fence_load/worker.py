"""``python -m lockguard_lab.fence_load.worker``: one process of a load, instructed by its standard input.

It says that it is ready, begins at the next line, and answers with its report. A process ends when its input
ends, so none outlives its parent.
"""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import AsyncExitStack
from contextvars import Context
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Lease
from lockguard.errors import LeaseError, LockguardError, ResourceBusy, StaleToken
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import fenced
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._native import fenced_execute
from lockguard_asyncpg._transaction import fenced_transaction
from lockguard_lab.child_process import begin_as_child, open_input, say
from lockguard_lab.fence_load.plan import TASKS, LoadWorkerSpec, WorkerReport
from lockguard_lab.fence_race.writes import BUMP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["main"]

_WAIT = timedelta(seconds=30)
_LATE_SHARE = 0.02
_ERRORS_MAX = 3
# Most requests go to few resources: every tenth body wants the first of a thousand.
_SKEW = 3


class _Bodies:
    """The bodies of one process."""

    def __init__(self, told: LoadWorkerSpec, guard: LockGuard, pool: asyncpg.Pool[Any]) -> None:
        self._told = told
        self._guard = guard
        self._pool = pool
        self._rng = random.Random(told.seed)  # noqa: S311 - no secret
        self.report = WorkerReport()
        self._ways: tuple[Callable[[Lease], Awaitable[None]], ...] = (
            (self._statement, self._last_statement, self._drop_in, self._transaction, self._closing)
            if told.fenced
            else (self._drop_in, self._drop_in, self._drop_in, self._transaction, self._transaction)
        )

    async def work(self) -> None:
        """Run bodies one after the other until the time is up."""
        until = SYSTEM_CLOCK.now() + self._told.seconds
        while SYSTEM_CLOCK.now() < until:
            try:
                await self._body()
            except ResourceBusy:
                self.report.gave_up += 1
            except (LockguardError, *DATABASE_ERRORS) as exc:
                self.report.failed += 1
                if len(self.report.errors) < _ERRORS_MAX:
                    self.report.errors.append(f"{type(exc).__name__}: {exc}")

    async def _body(self) -> None:
        number = int(self._told.resources * self._rng.random() ** _SKEW)
        write = self._rng.choice(self._ways)
        began = SYSTEM_CLOCK.now()
        async with self._guard.hold(f"load:{number}", wait=_WAIT, operation="load") as lease:
            await write(lease)
        self.report.holds_ms.append(round((SYSTEM_CLOCK.now() - began) * 1_000, 3))
        self.report.writes += 1
        if self._told.fenced and self._rng.random() < _LATE_SHARE:
            await asyncio.create_task(self._late(lease), context=Context())

    async def _statement(self, lease: Lease) -> None:
        await fenced_execute(self._pool, BUMP, *_written(lease))

    async def _last_statement(self, lease: Lease) -> None:
        await fenced_execute(self._pool, BUMP, *_written(lease), closes=True)

    async def _drop_in(self, lease: Lease) -> None:
        await self._pool.execute(BUMP, *_written(lease))

    async def _transaction(self, lease: Lease) -> None:
        async with self._pool.acquire() as conn, conn.transaction():
            await conn.execute(BUMP, *_written(lease))

    async def _closing(self, lease: Lease) -> None:
        async with fenced_transaction(self._pool, closes=True) as conn:
            await conn.execute(BUMP, *_written(lease))

    async def _late(self, lease: Lease) -> None:
        """Write late, as a task does that was not awaited, with a copy of the lease that checks no clock."""
        copy = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 3_600, clock=SYSTEM_CLOCK)
        self.report.late += 1
        try:
            await fenced_execute(self._pool, BUMP, *_written(copy), lease=copy)
        except (StaleToken, LeaseError):
            return
        self.report.late_committed += 1


def _written(lease: Lease) -> tuple[str, int, int]:
    return lease.resource, lease.token, 0


async def main() -> None:
    """Read the instructions from the first line; begin at the second."""
    reader = await open_input()
    told = LoadWorkerSpec(**json.loads(await reader.readline()))
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(_pool(told))
        if told.fenced:
            fenced(pool)
        fence = None
        if told.fenced:
            fence = PostgresFence(await stack.enter_async_context(_pool(told)))
        guard = await stack.enter_async_context(LockGuard.from_url(told.redis_url, fence=fence))
        bodies = _Bodies(told, guard, pool)
        say("ready")
        if not await reader.readline():
            return
        tasks = [asyncio.create_task(bodies.work()) for _ in range(TASKS)]
        left = asyncio.create_task(_end(reader, tasks))
        await asyncio.gather(*tasks)
        left.cancel()
    say(asdict(bodies.report))


def _pool(told: LoadWorkerSpec) -> asyncpg.Pool[Any]:
    return asyncpg.create_pool(told.database_url, min_size=TASKS, max_size=TASKS + 1)


async def _end(reader: asyncio.StreamReader, bodies: list[asyncio.Task[None]]) -> None:
    """Cancel the bodies when the input ends."""
    await reader.read()
    for body in bodies:
        body.cancel()


if __name__ == "__main__":
    begin_as_child()
    asyncio.run(main())  # noqa: TID251 - its parent ends it
