"""The examples of layers over a driver, and of psycopg; what two layers send under a lease that has ended."""

from __future__ import annotations

import asyncio
import runpy
import signal
import sys
from datetime import timedelta
from types import SimpleNamespace

import asyncpg
import pytest
from databases import Database
from tortoise.context import TortoiseContext
from tortoise.exceptions import IntegrityError
from tortoise.transactions import in_transaction

from lockguard import LockGuard
from lockguard.errors import LeaseLost, LossReason, StaleToken
from lockguard_asyncpg import FencedConnection, PostgresFence, install
from lockguard_lab.servers import FaultProxy
from tests.integration.examples import EXAMPLES, Stage
from tests.integration.fence_leases import held, under

TABLE = "create table positions (symbol text primary key, status text)"


@pytest.fixture
async def pool(database_url):
    """Not fenced: what the fence uses, and what a test looks with."""
    async with asyncpg.create_pool(database_url, min_size=0, max_size=4) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(TABLE)
        yield pool


async def rows(pool):
    return [tuple(row) for row in await pool.fetch("select * from positions order by symbol")]


BOTS = (
    "sqlalchemy_bot.py",
    "tortoise_bot.py",
    "databases_bot.py",
    "psycopg_bot.py",
    "psycopg_sync_bot.py",
)


@pytest.mark.parametrize("name", BOTS)
async def test_a_bot_that_was_stopped_and_superseded_is_refused_as_stale(
    name, pool, database_url, redis_url, redis_server
):
    """Its own clock sees nothing wrong, and Redis is out of reach: only Postgres can tell of the break."""
    async with Stage(redis_url, database_url) as stage, FaultProxy(redis_server.port) as proxy:
        bot = await stage.example(
            name, "APTUSDT", LOCKGUARD_TTL="60s", LOCKGUARD_REDIS_URL=proxy.url_for(redis_url)
        )
        await bot.says("opening")
        await bot.stop()
        proxy.partition()
        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
            await guard.break_("binance:APTUSDT", reason="a test")
            async with guard.hold("binance:APTUSDT", wait=timedelta(seconds=5)):
                await pool.execute("update positions set status = 'recovered'")
        bot.tell(signal.SIGCONT)
        assert await bot.ended() == 0, bot.lines
        assert bot.said("refused: "), bot.lines
        assert bot.said("stale token for binance:APTUSDT: presented "), bot.lines
        assert await rows(pool) == [("APTUSDT", "recovered")]
        other = await stage.example(name, "SUIUSDT")
        assert await other.ended() == 0
        assert other.lines[-1] == "active", other.lines
    assert await rows(pool) == [("APTUSDT", "recovered"), ("SUIUSDT", "active")]


# --- Tortoise ---


@pytest.fixture
async def tortoise(database_url, pool, monkeypatch):
    """As the example sets it up, with one connection."""
    monkeypatch.setenv("LOCKGUARD_DATABASE_URL", database_url)
    module = runpy.run_path(str(EXAMPLES / "tortoise_bot.py"), run_name="tests.tortoise_bot")
    monkeypatch.setitem(sys.modules, "tests.tortoise_bot", SimpleNamespace(**module))
    config = module["config"]()
    config["connections"]["default"]["credentials"] |= {"minsize": 1, "maxsize": 1}
    async with TortoiseContext() as context:
        await context.init(config)
        yield module["Position"]


async def _create(model):
    await model.create(symbol="A", status="new")


async def _bulk_create(model):
    await model.bulk_create([model(symbol="A", status="new")])


async def _in_transaction(model):
    async with in_transaction():
        assert await model.all() == []
        with pytest.raises(IntegrityError):
            async with in_transaction():  # a savepoint
                await model.create(symbol="A", status="new")
                await model.create(symbol="A", status="twice")
        await model.create(symbol="A", status="new")


TORTOISE = {"create": _create, "bulk_create": _bulk_create, "in_transaction": _in_transaction}


@pytest.mark.parametrize("way", TORTOISE.values(), ids=TORTOISE)
async def test_tortoise_is_refused_under_a_lease_that_has_ended_and_keeps_no_connection(way, tortoise, pool):
    stale, lost = await held(pool, 7), await held(pool, 7, "other")
    await held(pool, 8)
    lost.mark_lost(LossReason.EXPIRED)
    with under(stale), pytest.raises(StaleToken):
        await way(tortoise)
    with under(lost), pytest.raises(LeaseLost):
        await way(tortoise)
    assert await rows(pool) == []
    async with asyncio.timeout(10):  # its only connection is free
        with under(await held(pool, 9)):
            await way(tortoise)
    assert await rows(pool) == [("A", "new")]
    assert await pool.fetchval("select max(token) from lockguard.writer") == 9


# --- databases ---


@pytest.fixture
async def database(database_url, pool):
    async with Database(database_url, connection_class=FencedConnection, min_size=1, max_size=1) as database:
        yield database


async def _execute(database):
    await database.execute("insert into positions values (:symbol, 'new')", {"symbol": "A"})


async def _execute_many(database):
    await database.execute_many("insert into positions values (:symbol, 'new')", [{"symbol": "A"}])


async def _raw_transaction(database):
    async with database.connection() as connection, connection.raw_connection.transaction():
        assert await database.fetch_all("select * from positions") == []
        await _execute(database)


DATABASES = {"execute": _execute, "execute_many": _execute_many, "transaction": _raw_transaction}


@pytest.mark.parametrize("way", DATABASES.values(), ids=DATABASES)
async def test_databases_is_refused_under_a_lease_that_has_ended_and_keeps_its_connection(
    way, database, pool
):
    stale, lost = await held(pool, 7), await held(pool, 7, "other")
    await held(pool, 8)
    lost.mark_lost(LossReason.EXPIRED)
    with under(stale), pytest.raises(StaleToken):
        await way(database)
    with under(lost), pytest.raises(LeaseLost):
        await way(database)
    assert await rows(pool) == []
    async with asyncio.timeout(10):
        with under(await held(pool, 9)):
            await asyncio.create_task(way(database))  # each task has a connection of its own there
    assert await rows(pool) == [("A", "new")]
    assert await pool.fetchval("select max(token) from lockguard.writer") == 9


@pytest.mark.parametrize("way", DATABASES.values(), ids=DATABASES)
async def test_a_body_of_databases_in_a_task_of_its_own_leaves_its_callers_connection_usable(
    way, database, pool, redis_url
):
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:

        async def body(broken: bool) -> None:
            async with guard.hold("binance:A"):
                if broken:  # in Postgres alone, so that only the refusal tells it
                    await pool.fetch("select lockguard.break_('binance:A', 'a test', 5000)")
                await way(database)

        assert await database.fetch_val("select 1") == 1
        with pytest.raises((StaleToken, LeaseLost)):
            await asyncio.create_task(body(True))
        assert await database.fetch_val("select 2") == 2
        await asyncio.create_task(body(False))
    assert await rows(pool) == [("A", "new")]
