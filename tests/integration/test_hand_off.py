"""A lock that goes from task to task of one process: in one trip to Redis, and with one commit less."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Grant, Lease
from lockguard.errors import FenceUnavailable, StaleToken
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard.ports import Outrun, Sealed

APT = "binance:APTUSDT"
WAIT = timedelta(seconds=10)
INSERT = "insert into note values ($1)"
# The first waiter of a process asks again by itself after 0.9 s.
AT_ONCE_S = 0.8


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.005)


async def _queued(guard: LockGuard, number: int) -> None:
    async def there() -> bool:
        return len((await guard.inspect(APT)).waiters) == number

    await _until(there)


def _deaf(guard: LockGuard) -> None:
    """No message of the server's reaches who waits."""
    guard._core.queue.wake = lambda grant: None  # type: ignore[method-assign]


async def test_a_waiter_of_the_same_process_asks_with_the_release_and_waits_for_no_message(redis_url: str):
    async with LockGuard.from_url(redis_url) as guard:
        order: list[int] = []

        async def hold(number: int) -> float:
            async with guard.hold(APT, wait=WAIT):
                order.append(number)
            return SYSTEM_CLOCK.now()

        async with asyncio.TaskGroup() as tasks:
            async with guard.hold(APT):
                for number in range(5):
                    tasks.create_task(hold(number))
                    await _queued(guard, number + 1)
                _deaf(guard)
                began = SYSTEM_CLOCK.now()
        assert SYSTEM_CLOCK.now() - began < AT_ONCE_S
        assert order == [0, 1, 2, 3, 4]


async def test_who_waits_in_another_process_is_served_first_and_nobody_asks_in_vain(redis_url: str):
    async with LockGuard.from_url(redis_url) as ours, LockGuard.from_url(redis_url) as theirs:
        order: list[str] = []
        asked: list[Any] = []
        acquire = ours._core.locks.acquire

        async def counted(request: Any, **options: Any) -> Any:
            asked.append(request.grant)
            return await acquire(request, **options)

        async def hold(guard: LockGuard, name: str) -> None:
            async with guard.hold(APT, wait=WAIT):
                order.append(name)

        async with asyncio.TaskGroup() as tasks:
            async with ours.hold(APT):
                tasks.create_task(hold(theirs, "theirs"))
                await _queued(ours, 1)
                for number in range(2):
                    tasks.create_task(hold(ours, f"ours {number}"))
                    await _queued(ours, number + 2)
                ours._core.locks.acquire = counted  # type: ignore[method-assign]
        assert order == ["theirs", "ours 0", "ours 1"]
        assert len(asked) == len(set(asked)) == 2


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=2, max_size=8) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool


async def _write_in_turns(guard: LockGuard, pool: asyncpg.Pool[Any], *, tasks: int, holds: int) -> None:
    async def work() -> None:
        for number in range(holds):
            async with guard.hold(APT, wait=WAIT):
                await fenced_execute(pool, INSERT, number)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())


async def test_a_close_before_a_successor_of_the_same_process_takes_no_commit_of_its_own(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
):
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        await _write_in_turns(guard, pool, tasks=4, holds=1)
        conn = await asyncpg.connect(database_url)
        # How many transactions have written, this one included.
        ask = "select pg_current_xact_id()::text::bigint"
        before = await conn.fetchval(ask)
        await _write_in_turns(guard, pool, tasks=4, holds=10)
        commits = await conn.fetchval(ask) - before
        await conn.close()
    # A seal and a write for each of forty, and a close where nobody waited, as after the last one.
    assert 80 < commits <= 90


class _Watched(PostgresFence):
    """A fence whose seals can be kept from beginning, or from succeeding."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        super().__init__(pool)
        self.go = asyncio.Event()
        self.go.set()
        self.fails = False
        over_pool: Any = self._attached.here()
        self._named = over_pool._where_known
        over_pool._where_known = self._where_known

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        await self.go.wait()
        return await super().seal(grant, within=within)

    def _where_known(self, grant: Grant) -> str:
        where: str = self._named(grant)
        return "(1/0)::text" if self.fails else where


async def _refused(pool: asyncpg.Pool[Any], grant: Grant) -> None:
    """What a process that knows nothing of the release writes under it."""
    blind = Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, 1, lease=blind)


@pytest.mark.parametrize("successor", ["seals", "is cancelled", "does not seal in time", "fails to seal"])
async def test_what_was_released_is_shut_out_once_its_hold_was_left_whatever_becomes_of_the_successor(
    redis_url: str, pool: asyncpg.Pool[Any], successor: str
):
    fence = _Watched(pool)
    async with LockGuard.from_url(redis_url, fence=fence) as guard:

        async def follow() -> None:
            async with guard.hold(APT, wait=WAIT):
                await asyncio.Event().wait()

        async with guard.hold(APT) as lease:
            await fenced_execute(pool, INSERT, 0)
            following = asyncio.create_task(follow())
            await _queued(guard, 1)
            fence.fails = successor == "fails to seal"
            if successor in {"is cancelled", "does not seal in time"}:
                fence.go.clear()
            if successor == "is cancelled":
                asyncio.get_running_loop().call_later(0.01, following.cancel)
            began = SYSTEM_CLOCK.now()
        assert SYSTEM_CLOCK.now() - began < AT_ONCE_S
        await _refused(pool, lease.grant)
        fence.go.set()
        if successor == "fails to seal":
            with pytest.raises(FenceUnavailable):
                await following
        following.cancel()
        await asyncio.wait([following])
    assert await pool.fetchval("select is_open from lockguard.status($1)", APT) is False


async def test_who_listens_hears_of_no_successor_of_a_lease_that_was_given_back(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any]
):
    conn, heard = await asyncpg.connect(database_url), []
    await conn.add_listener("lockguard_superseded", lambda *told: heard.append(told))
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        await _write_in_turns(guard, pool, tasks=3, holds=3)
    await conn.execute("select 1")
    assert heard == []
    await conn.close()


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_write_waits_for_the_reset_of_its_connection_only_where_the_pool_has_no_other(
    redis_url: str, database_url: str, pool: asyncpg.Pool[Any], connections: int
):
    go = asyncio.Event()

    async def reset(_: Any) -> None:
        await go.wait()

    async with (
        LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
        create_pool(database_url, min_size=connections, max_size=4, reset=reset) as slow,
        guard.hold(APT),
    ):
        writing = asyncio.create_task(fenced_execute(slow, INSERT, 1))

        async def committed() -> bool:
            return bool(await pool.fetchval("select count(*) from note") == 1)

        await _until(committed)
        if connections == 1:
            # What is ready by now would be done.
            assert not (await asyncio.wait([writing], timeout=0.05))[0]
        else:
            await asyncio.wait_for(asyncio.shield(writing), AT_ONCE_S)
        go.set()
        await writing
        assert slow.get_size() == connections
