"""A fence that is made long before its pool, and for one pool after another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import timedelta
from types import SimpleNamespace

import asyncpg
import pytest
import redis

from lockguard import ConfigurationError, LockGuard
from lockguard.events import FenceCloseFailed
from lockguard_asyncpg import (
    PostgresFence,
    create_pool,
    fenced,
    fenced_execute,
    fenced_transaction,
    install,
    protect,
)
from tests.loops import ENDINGS, close_only, run

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
TABLE = f"create table note (n bigint primary key, fence bigint, name text not null default '{NAME}')"


@pytest.fixture
def prepared_url(database_url):
    async def prepare():
        conn = await asyncpg.connect(database_url)
        await install(conn)
        await conn.execute(TABLE)
        await protect(conn, "note", resource="{name}")
        await conn.close()

    run(prepare())
    return database_url


class Bot:
    """A module: its guard is made with it, its pool by each run."""

    def __init__(self, redis_url, **options):
        self.state = SimpleNamespace()
        self.events = []
        self.fence = PostgresFence(lambda: self.state.pool, **options)
        self.guard = LockGuard.from_url(redis_url, fence=self.fence, observers=[self])

    def on(self, event):
        self.events.append(event)

    async def write(self, n):
        async with self.guard.hold(NAME) as lease:
            await self.state.pool.execute("insert into note values ($1, $2)", n, lease.token)
            async with fenced_transaction(self.state.pool) as conn:
                await conn.execute("update note set fence = $2 where n = $1", n, lease.token)
        return lease.token

    async def refused(self, match):
        with pytest.raises(ConfigurationError, match=match) as caught:
            async with self.guard.hold(NAME):
                raise AssertionError("the body ran")
        assert "\n" not in str(caught.value)
        assert not [event for event in self.events if isinstance(event, FenceCloseFailed)], "told twice"
        return str(caught.value)


@pytest.mark.parametrize("first_write", [False, True])
@pytest.mark.parametrize("closes", [False, True])
def test_one_fence_serves_the_pool_of_each_loop_in_turn(redis_url, prepared_url, first_write, closes):
    bot = Bot(redis_url, seal_with_first_write=first_write)

    async def lifespan(n):
        async with create_pool(prepared_url, min_size=1, max_size=3) as bot.state.pool:
            if not closes:
                return await bot.write(n)
            async with bot.guard:
                return await bot.write(n)

    tokens = [runs(lifespan(n)) for n, runs in enumerate((*ENDINGS, run))]
    assert tokens == sorted(set(tokens))
    assert not [event for event in bot.events if isinstance(event, FenceCloseFailed)]
    assert not [one for one, _ in bot.fence._attached._parts.items() if not one.is_closed()]


def test_a_new_pool_in_the_same_loop_is_taken_up_at_once(redis_url, prepared_url):
    bot = Bot(redis_url)

    async def use():
        async with create_pool(prepared_url, min_size=1, max_size=3) as bot.state.pool:
            await bot.write(1)
        await bot.refused("is closed; give the pool of the running event loop, or, to a fence, a function")
        async with create_pool(prepared_url, min_size=1, max_size=3) as bot.state.pool:
            await bot.write(2)

    run(use())


def test_it_listens_in_each_loop(redis_url, prepared_url):
    bot = Bot(redis_url, listen=prepared_url)

    async def use(n):
        async with create_pool(prepared_url, min_size=1, max_size=3) as bot.state.pool, bot.fence:
            async with asyncio.timeout(20):
                await bot.fence.listening()
            await bot.write(n)
            ask = "select count(*) from pg_stat_activity where query ilike 'listen%' and datname = $1"
            name = await bot.state.pool.fetchval("select current_database()")
            async with asyncio.timeout(20):  # that of the loop before is being ended by the server
                while await bot.state.pool.fetchval(ask, name) != 1:
                    await asyncio.sleep(0.01)

    run(use(1))
    run(use(2))


def test_without_a_pool_a_lease_is_refused_in_one_line_and_the_lock_is_free(redis_url, prepared_url):
    bot = Bot(redis_url)

    async def use():
        told = await bot.refused(r"the fence has no pool: its function raised AttributeError; make the pool")
        assert "lifespan" in told
        bot.state.pool = None
        await bot.refused(r"the fence has no pool: its function returned None; make the pool")
        bot.state.pool = prepared_url
        assert "postgresql://" not in await bot.refused(r"PostgresFence takes a pool.* this is a str")
        pool = bot.state.pool = asyncpg.create_pool(prepared_url, min_size=1, max_size=3)
        await bot.refused(r"is not connected; write pool = await asyncpg\.create_pool\(url\)")
        async with pool:
            with redis.Redis.from_url(redis_url) as client:
                assert not client.exists(LOCK)
            fenced(pool)
            await bot.write(1)

    run(use())


def test_a_function_that_has_to_be_awaited_is_refused(redis_url):
    async def pool():
        raise AssertionError("nobody awaits it")

    async def use():
        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
            with pytest.raises(ConfigurationError, match="is an 'async def'; make it a plain one"):
                async with guard.hold(NAME):
                    pass

    run(use())


def test_a_pool_of_another_loop_is_refused_in_one_line_wherever_it_is_given(redis_url, prepared_url):
    """Before, whatever asyncpg came to first: futures of another loop, operations in progress, or a hang."""
    bot = Bot(redis_url)
    other = "this pool of asyncpg belongs to another event loop; give the pool of the running event loop"
    guard = LockGuard.from_url(redis_url)

    async def elsewhere():
        await bot.refused(other)
        async with guard.hold(NAME, wait=timedelta(seconds=10)):
            for way in (
                fenced_execute(bot.state.pool, "insert into note values (9)"),
                fenced_transaction(bot.state.pool).__aenter__(),
                bot.state.pool.execute("insert into note values (9)"),
                bot.state.pool.fetch("select"),
            ):
                with pytest.raises(ConfigurationError, match=other):
                    await way

    async def here():
        async with create_pool(prepared_url, min_size=1, max_size=3) as bot.state.pool:
            await bot.write(1)
            await bot.guard.aclose()
            bot.guard = LockGuard.from_url(redis_url, fence=bot.fence)
            await asyncio.to_thread(run, elsewhere())
            await bot.guard.aclose()
            bot.guard = LockGuard.from_url(redis_url, fence=bot.fence)
            await bot.write(2)
            await bot.guard.aclose()

    run(here())
    # With the pool itself and not a function, too: it says what to give instead.
    bot.fence = PostgresFence(bot.state.pool)
    bot.guard = LockGuard.from_url(redis_url, fence=bot.fence)
    close_only(bot.refused(f"{other}, or, to a fence, a function that returns it"))
    run(bot.guard.aclose())


FORKED = """
import asyncio, os, sys
import asyncpg
from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, create_pool

_, redis_url, database_url = sys.argv
pool = None
guard = LockGuard.from_url(redis_url, fence=PostgresFence(lambda: pool), observers=[])

async def write(n):
    global pool
    async with create_pool(database_url, min_size=1, max_size=3) as pool, guard, guard.hold(NAME) as lease:
        await pool.execute("insert into note values ($1, $2)", n, lease.token)
        if n == 1:
            assert await asyncio.to_thread(in_child) == 0
            await pool.execute("update note set fence = $2 where n = $1", n, lease.token)

async def with_the_parents():
    try:
        async with guard.hold("other"):
            return 1
    except ConfigurationError as exc:
        return 0 if "belongs to another event loop" in str(exc) else 2

def in_child():
    if not (child := os.fork()):
        code = 3
        try:
            code = asyncio.run(with_the_parents())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

asyncio.run(write(1))
if not (child := os.fork()):
    asyncio.run(write(2))
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
asyncio.run(write(3))
""".replace("NAME", repr(NAME))


def test_after_a_fork_the_pool_of_the_parent_is_refused_and_ones_own_is_taken(redis_url, prepared_url):
    done = subprocess.run(
        [sys.executable, "-c", FORKED, redis_url, prepared_url],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    async def written():
        conn = await asyncpg.connect(prepared_url)
        try:
            return await conn.fetch("select n, fence from note order by n")
        finally:
            await conn.close()

    rows = run(written())
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert [row["fence"] for row in rows] == sorted({row["fence"] for row in rows})
