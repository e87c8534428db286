"""Measures the cost of the fence against other ways to exclude a second writer: in one run, in turns.

Each contender repeats the same small piece of work, alone; the turns are interleaved, so that a noisy moment
affects all alike. A figure is the median of the turns' medians, in microseconds. Trust the ratios within one
run more than the figures.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import current_leases
from lockguard._guard import LockGuard
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._connection import create_pool
from lockguard_asyncpg._native import fenced_execute
from lockguard_asyncpg._protection import protect
from lockguard_asyncpg._schema import install
from lockguard_asyncpg._transaction import fenced_transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Ratio", "Speed", "measure_history", "measure_speed"]

_RESOURCE = "bench:APTUSDT"
_WRITE = "update bench set n = n + 1 where id = $1"
_SET_UP = """
create table bench (id int primary key, n bigint not null default 0) with (fillfactor = 60);
create table guarded (id int primary key, resource text not null, n bigint not null default 0)
  with (fillfactor = 60);
create table lease (name text primary key, holder text, until timestamptz) with (fillfactor = 60);
insert into bench select generate_series(1, 100);
insert into guarded select g, 'bench:APTUSDT' from generate_series(1, 100) g;
insert into lease values ('bench:APTUSDT', null, null);
"""
_TAKE = """
update lease set holder = 'me', until = now() + interval '30 s'
 where name = $1 and (holder is null or until < now())
"""
_GIVE = "update lease set holder = null where name = $1 and holder = 'me'"
_HOT_TASKS = 4
_OTHER = "bench:SUIUSDT"
# As many rows as that many transactions of unknown outcome leave: the most there can be.
_HISTORY = """
insert into lockguard.writer (resource, slot, token, sequence, first)
select $1, g, 1, (g << 10) + 1, (g << 10) + 1 from generate_series(1, $2::bigint) g
"""


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of one figure of a run to others.

    Attributes:
        value: the ratio.
        aim: the most that it should be; ``None`` if there is no aim.
    """

    value: float
    aim: float | None = None

    @property
    def verdict(self) -> str:
        """Whether the aim was met, as text; empty without an aim."""
        return "" if self.aim is None else "met" if self.value <= self.aim else "missed"


@dataclass(frozen=True, slots=True)
class Speed:
    """The figures of one server.

    Attributes:
        where: fsync off or on, directly or through a pooler.
        us: the median for each contender, in microseconds.
        hot_per_s: holds with a write, per second, of one lock that four tasks want, for each contender.
        ratios: the ratios for which the reference states an aim, by name.
    """

    where: str
    us: dict[str, float]
    hot_per_s: dict[str, float]
    ratios: dict[str, Ratio]


async def measure_speed(
    url: str,
    redis_url: str,
    *,
    where: str,
    rounds: int,
    calls: int,
    pooled: str | None = None,
    durable: bool = False,
) -> Speed:
    """Measure the fence on a database of the run's own.

    Args:
        url: the database, directly.
        redis_url: the Redis of the leases.
        where: a name for this measurement.
        rounds: turns of each contender, after one more for warm-up.
        calls: pieces of work in each turn.
        pooled: the same database through a pooler, to be measured instead.
        durable: whether the server waits for the disk.
    """
    async with AsyncExitStack() as stack:
        conn = await asyncpg.connect(url)
        try:
            await install(conn)
            await conn.execute(_SET_UP)
            await protect(conn, "guarded", resource="{resource}")
        finally:
            await conn.close()
        options: dict[str, Any] = {"statement_cache_size": 0} if pooled else {}
        pool = await stack.enter_async_context(
            create_pool(pooled or url, min_size=2, max_size=_HOT_TASKS + 4, **options)
        )
        # A peer to measure; the fence itself does not need it.
        redis = await stack.enter_async_context(import_module("redis.asyncio").Redis.from_url(redis_url))
        plain = await stack.enter_async_context(LockGuard.from_url(redis_url))
        fence = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        lazy, late = [
            await stack.enter_async_context(LockGuard.from_url(redis_url, fence=other))
            for other in (
                PostgresFence(pool, durable_close=False),
                PostgresFence(pool, seal_with_first_write=True),
            )
        ]
        works = _contenders(pool, redis, plain, fence, lazy, late)
        us = await _in_turns(works, rounds=rounds, calls=calls)
        async with fence.hold(_RESOURCE):
            us |= await _in_turns(_writes(pool), rounds=rounds, calls=calls)
        hot = {
            name: await _hot(works[name], calls)
            for name in (
                "lease row + write",
                "lease + fence + write",
                "lease + fence + closing write",
                "lease + fence + write, all in one message",
            )
        }
    return Speed(where, us, hot, _ratios(us, durable=durable, directly=pooled is None))


async def measure_history(
    urls: dict[int, str], redis_url: str, *, where: str, rounds: int, calls: int
) -> Speed:
    """Measure a hold with a write after earlier writes of the same resource and of another.

    Args:
        urls: a database of the run's own for each number of earlier writes, including 0.
        redis_url: the Redis of the leases.
        where: a name for this measurement.
        rounds: turns of each, after one more for warm-up.
        calls: holds in each turn.
    """
    async with AsyncExitStack() as stack:
        works: dict[str, Callable[[], Awaitable[Any]]] = {}
        for count, url in urls.items():
            pool = await stack.enter_async_context(create_pool(url, min_size=2, max_size=4))
            async with pool.acquire() as conn:
                await install(conn)
                await conn.execute(_SET_UP)
                await conn.execute(_HISTORY, _RESOURCE, count)
                # Otherwise it would run in the middle of a turn.
                await conn.execute("vacuum (analyze) lockguard.writer")
                await conn.execute("checkpoint")
            guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
            works[f"hold with a write after {count:,}"] = partial(_held, guard, pool, _RESOURCE)
            if count:
                works[f"hold with a write after {count:,} elsewhere"] = partial(_held, guard, pool, _OTHER)
        us = await _in_turns(works, rounds=rounds, calls=calls)
    none = us["hold with a write after 0"]
    ratios = {f"{name} / after 0": Ratio(round(taken / none, 2), 1.1) for name, taken in us.items()}
    del ratios["hold with a write after 0 / after 0"]
    return Speed(where, us, {}, ratios)


async def _held(guard: LockGuard, pool: asyncpg.Pool[Any], resource: str) -> None:
    async with guard.hold(resource):
        await fenced_execute(pool, _WRITE, 1)


def _contenders(
    pool: asyncpg.Pool[Any],
    redis: Any,
    plain: LockGuard,
    fence: LockGuard,
    lazy: LockGuard,
    late: LockGuard,
) -> dict[str, Callable[[], Awaitable[Any]]]:
    async def redis_lock() -> None:
        async with redis.lock("bench_lock", timeout=30):
            await pool.execute(_WRITE, 1)

    async def advisory() -> None:
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute("select pg_advisory_xact_lock(4711)")
            await conn.execute(_WRITE, 1)

    async def for_update() -> None:
        async with pool.acquire() as conn, conn.transaction():
            await conn.fetchval("select n from bench where id = $1 for update", 1)
            await conn.execute(_WRITE, 1)

    async def lease_row() -> None:
        while await pool.execute(_TAKE, _RESOURCE) != "UPDATE 1":  # noqa: ASYNC110 - as people do
            await asyncio.sleep(0.001)
        await pool.execute(_WRITE, 1)
        await pool.execute(_GIVE, _RESOURCE)

    async def lease() -> None:
        async with plain.hold("bench:plain"):
            pass

    async def nothing() -> None:
        async with fence.hold(_RESOURCE):
            pass

    async def closing_transaction() -> None:
        async with fence.hold(_RESOURCE), fenced_transaction(pool, closes=True) as conn:
            await conn.execute(_WRITE, 1)

    async def closing(guard: LockGuard) -> None:
        async with guard.hold(_RESOURCE):
            await fenced_execute(pool, _WRITE, 1, closes=True)

    return {
        "bare write": lambda: pool.execute(_WRITE, 1),
        "redis-py Lock + write": redis_lock,
        "advisory lock + write": advisory,
        "for update + write": for_update,
        "lease row + write": lease_row,
        "lease": lease,
        "lease + fence": nothing,
        "lease + fence + write": lambda: _held(fence, pool, _RESOURCE),
        "lease + fence + write, close not durable": lambda: _held(lazy, pool, _RESOURCE),
        "lease + fence + closing transaction": closing_transaction,
        "lease + fence + closing write": lambda: closing(fence),
        "lease + fence + write, sealed with it": lambda: _held(late, pool, _RESOURCE),
        "lease + fence + write, all in one message": lambda: closing(late),
    }


def _writes(pool: asyncpg.Pool[Any]) -> dict[str, Callable[[], Awaitable[Any]]]:
    guarded = "update guarded set n = n + 1 where id = $1"
    assert current_leases()
    return {
        "native write": lambda: fenced_execute(pool, _WRITE, 1),
        "drop-in write": lambda: pool.execute(_WRITE, 1),
        "protected table, drop-in write": lambda: pool.execute(guarded, 1),
    }


async def _in_turns(
    works: dict[str, Callable[[], Awaitable[Any]]], *, rounds: int, calls: int
) -> dict[str, float]:
    turns: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            taken = await _timed(work, calls)
            if turn:  # the first turn is warm-up
                turns[name].append(median(taken))
    return {name: round(median(taken), 1) for name, taken in turns.items()}


async def _timed(work: Callable[[], Awaitable[Any]], calls: int) -> list[float]:
    taken = []
    for _ in range(calls):
        began = SYSTEM_CLOCK.now()
        await work()
        taken.append((SYSTEM_CLOCK.now() - began) * 1e6)
    return taken


async def _hot(work: Callable[[], Awaitable[Any]], calls: int) -> float:
    began = SYSTEM_CLOCK.now()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(_HOT_TASKS):
            tasks.create_task(_repeat(work, calls))
    return round(_HOT_TASKS * calls / (SYSTEM_CLOCK.now() - began), 1)


async def _repeat(work: Callable[[], Awaitable[Any]], calls: int) -> None:
    for _ in range(calls):
        await work()


def _ratios(us: dict[str, float], *, durable: bool, directly: bool) -> dict[str, Ratio]:
    bare, row = us["bare write"], us["lease row + write"]

    def of(value: float, aim: float | None = None, *, held: bool = directly) -> Ratio:
        return Ratio(round(value, 2), aim if held else None)

    return {
        "lease + fence / (lease + 2 bare writes)": of(us["lease + fence"] / (us["lease"] + 2 * bare), 1.4),
        "native / bare": of(us["native write"] / bare, 1.4),
        "drop-in / bare": of(us["drop-in write"] / bare, 1.8),
        "hold with a write / lease row": of(
            us["lease + fence + write"] / row, 1.2, held=durable and directly
        ),
        "hold with a write, close not durable / lease row": of(
            us["lease + fence + write, close not durable"] / row
        ),
        "hold with a closing write / lease row": of(us["lease + fence + closing write"] / row),
        "hold with a write, sealed with it / lease row": of(
            us["lease + fence + write, sealed with it"] / row
        ),
        "hold with a write, all in one message / lease row": of(
            us["lease + fence + write, all in one message"] / row, 0.7, held=durable and directly
        ),
    }
