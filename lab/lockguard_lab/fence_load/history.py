"""Measures a hold, a write and a break after many earlier writes, and the same after none.

Two databases of one server take turns, so that a noisy moment affects both alike. One has records of earlier
writes of one resource: half are the records that this library leaves for commits of unknown outcome, half are
those that an earlier version left for each write.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import new_grant_id
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._native import fenced_execute
from lockguard_asyncpg._schema import install
from lockguard_lab.fence_load.plan import AfterHistory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["measure_history"]

_WRITTEN, _ANOTHER = "load:written", "load:another"
_CALLS = 60
_ROUNDS = 5
_PART = 500_000
_WRITER = """
insert into lockguard.writer (resource, slot, token, sequence, first)
select $1, g, 1, (g << 10) + 1, (g << 10) + 1 from generate_series($2::bigint, $3::bigint) g
"""
_OUTCOME = """
insert into lockguard.outcome (resource, token, sequence)
select $1, 1, g from generate_series($2::bigint, $3::bigint) g
"""
_SETTLE = "vacuum analyze lockguard.writer", "vacuum analyze lockguard.outcome", "checkpoint"


async def measure_history(
    redis: RedisServer,
    postgres: PostgresServer,
    rows: int,
    *,
    progress: Callable[[str], None],
    calls: int = _CALLS,
) -> list[AfterHistory]:
    """Create two databases, put ``rows`` records into one of them, and measure both in turns."""
    run = new_grant_id()[:8]
    urls = [postgres.create_database(f"load_{run}_{name}") for name in ("none", "written")]
    for url, count in zip(urls, (0, rows), strict=True):
        await _prepare(url, count, progress)
    progress(f"holds and breaks after {rows:,} earlier writes and after none, in turns")
    async with AsyncExitStack() as stack:
        none, after = [await stack.enter_async_context(_works(redis.url, url)) for url in urls]
        figures: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in none}
        for turn in range(_ROUNDS + 1):
            for name, (of_none, of_after) in figures.items():
                taken = await _timed(none[name], calls), await _timed(after[name], calls)
                if turn:  # the first turn is warm-up
                    of_none.append(taken[0])
                    of_after.append(taken[1])
    return [
        AfterHistory(name, round(median(of_none), 1), round(median(of_after), 1))
        for name, (of_none, of_after) in figures.items()
    ]


async def _prepare(url: str, rows: int, progress: Callable[[str], None]) -> None:
    conn = await asyncpg.connect(url)
    try:
        await install(conn)
        await conn.execute("create table note (id int primary key, n bigint not null)")
        await conn.execute("insert into note values (1, 0)")
        for fill, count in zip((_WRITER, _OUTCOME), (rows - rows // 2, rows // 2), strict=True):
            for first in range(1, count + 1, _PART):
                await conn.execute(fill, _WRITTEN, first, min(count, first + _PART - 1))
                progress(f"{first:,} of {count:,} records")
        for query in _SETTLE:
            await conn.execute(query)
    finally:
        await conn.close()


@asynccontextmanager
async def _works(redis_url: str, url: str) -> AsyncIterator[dict[str, Callable[[], Awaitable[Any]]]]:
    async with (
        asyncpg.create_pool(url, min_size=2, max_size=4) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
    ):

        async def hold(resource: str) -> None:
            async with guard.hold(resource):
                await fenced_execute(pool, "update note set n = n + 1 where id = 1")

        yield {
            "hold with a write of that resource": lambda: hold(_WRITTEN),
            "hold with a write of another one": lambda: hold(_ANOTHER),
            "break of that resource": lambda: guard.break_(_WRITTEN, reason="load"),
        }


async def _timed(work: Callable[[], Awaitable[Any]], calls: int) -> float:
    taken = []
    for _ in range(calls):
        began = SYSTEM_CLOCK.now()
        await work()
        taken.append((SYSTEM_CLOCK.now() - began) * 1e6)
    return median(taken)
