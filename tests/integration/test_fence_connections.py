"""A protected table under connections and transactions of every kind, fenced or not."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from lockguard._guard import LockGuard
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, FenceUnavailable, LeaseNotHeld, StaleToken
from lockguard_asyncpg import PostgresFence, unfenced
from tests.integration.fence_leases import under
from tests.integration.test_fence_breakage import APT, BTC, INSERT, held, pool, rows

__all__ = ["pool"]


# Connections and transactions


async def test_a_statement_prepared_before_the_lease_carries_it(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        statement = await conn.prepare("insert into position (symbol, leg) values ('APTUSDT', $1)")
        with pytest.raises(StaleToken, match="no token"):
            await statement.fetch(1)
        first = await held(pool, 7)
        with under(first):
            await statement.fetch(1)
        second = await held(pool, 8)
        with under(first), pytest.raises(StaleToken):
            await statement.fetch(2)
        with under(second):
            await statement.executemany([(2,), (3,)])
    assert len(await rows(pool)) == 3


async def test_a_connection_held_over_two_leases_carries_the_one_in_force(pool: asyncpg.Pool[Any]) -> None:
    apt, btc = await held(pool), await held(pool, 7, BTC)
    async with pool.acquire() as conn:
        with under(apt):
            await conn.execute(INSERT)
        with under(btc):
            await conn.execute("insert into position (symbol) values ('BTCUSDT')")
            with pytest.raises(StaleToken):
                await conn.execute("update position set status = 'x' where symbol = 'APTUSDT'")
        with pytest.raises(StaleToken, match="no token"):
            await conn.execute("delete from position")


async def test_one_transaction_over_two_leases_carries_both(pool: asyncpg.Pool[Any]) -> None:
    apt, btc = await held(pool), await held(pool, 7, BTC)
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        with under(apt):
            await conn.execute(INSERT)
        with under(btc):
            await conn.execute("insert into position (symbol) values ('BTCUSDT')")
        # Neither can be taken over while it is open.
        for resource in (APT, BTC):
            grant = Grant(Resource(resource), new_grant_id(), Token(8), "host/2", "", 10_000)
            with pytest.raises(FenceUnavailable):
                await PostgresFence(pool).seal(grant, within=timedelta(milliseconds=100))
        await transaction.commit()
    assert len(await rows(pool)) == 2


async def test_tasks_with_different_leases_share_a_pool(pool: asyncpg.Pool[Any]) -> None:
    async def bot(symbol: str, other: str) -> None:
        with under(await held(pool, 7, symbol)):
            for leg in range(20):
                await pool.execute("insert into position (symbol, leg) values ($1, $2)", symbol, leg)
                with pytest.raises(StaleToken) as caught:
                    await pool.execute("insert into position (symbol, leg) values ($1, $2)", other, 100 + leg)
                assert (caught.value.resource, caught.value.presented) == (other, None)

    names = [f"S{n}" for n in range(6)]
    await asyncio.gather(*(bot(a, b) for a, b in zip(names, [*names[1:], names[0]], strict=True)))
    assert len(await rows(pool)) == 120


async def test_a_transaction_that_outlives_its_lease_is_not_committed(
    pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    async with (
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=1)) as locks,
        pool.acquire() as conn,
    ):
        async with locks.hold(APT):
            transaction = conn.transaction()
            await transaction.start()
            await conn.execute(INSERT)
        with pytest.raises((LeaseNotHeld, asyncpg.PostgresError, asyncpg.InterfaceError)):
            await transaction.commit()
    assert await rows(pool) == []


@pytest.mark.parametrize("chain", ["commit and chain", "rollback and chain"])
async def test_a_chained_transaction_presents_the_lease_anew(pool: asyncpg.Pool[Any], chain: str) -> None:
    lease = await held(pool)
    async with pool.acquire() as conn:
        with under(lease):
            await conn.execute("begin")
            await conn.execute("insert into note values ('first')")
            await conn.execute(chain)
            await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute("insert into note values ('second')")
            await conn.execute("rollback")
    assert len(await pool.fetch("select * from note")) == (1 if chain.startswith("commit") else 0)


async def test_an_unfenced_rollback_to_a_savepoint_is_noticed(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        transaction = conn.transaction()
        await transaction.start()
        await conn.execute("savepoint s")
        with under(await held(pool)):
            await conn.execute("insert into note values ('first')")
            with unfenced():
                await conn.execute("rollback to s")
            await held(pool, 8)
            with pytest.raises(StaleToken):
                await conn.execute("insert into note values ('second')")
        await transaction.rollback()


async def test_nested_transactions_keep_what_was_not_rolled_back(pool: asyncpg.Pool[Any]) -> None:
    with under(await held(pool)):
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute(INSERT)
            with pytest.raises(ZeroDivisionError):
                async with conn.transaction():
                    await conn.execute("delete from position")
                    raise ZeroDivisionError
            async with conn.transaction():
                async with conn.transaction():
                    await conn.execute("update position set leg = 2")
    assert [r[1] for r in await rows(pool)] == [2]


@pytest.mark.parametrize(
    "begin", ["begin read only", "start transaction read only, isolation level serializable"]
)
async def test_a_read_only_transaction_begun_as_text_may_read(pool: asyncpg.Pool[Any], begin: str) -> None:
    with under(await held(pool)):
        async with pool.acquire() as conn:
            await conn.execute(begin)
            assert await conn.fetchval("select count(*) from position") == 0
            await conn.execute("commit")


async def test_a_read_only_transaction_that_turns_to_writing_presents_the_lease(
    pool: asyncpg.Pool[Any],
) -> None:
    stale = await held(pool)
    await held(pool, 8)
    async with pool.acquire() as conn:
        with under(stale):
            transaction = conn.transaction(readonly=True)
            await transaction.start()
            await conn.execute("set transaction read write")
            with pytest.raises(StaleToken):
                await conn.execute("insert into note values ('x')")
            await transaction.rollback()


async def test_a_cursor_over_a_change_is_refused_before_its_first_row(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool)
    async with pool.acquire() as conn:
        with under(stale):
            async with conn.transaction():
                cursor = await conn.cursor(INSERT + " returning symbol")
                assert (
                    await cursor.fetchval() == APT if hasattr(cursor, "fetchval") else await cursor.fetchrow()
                )
        await held(pool, 8)
        with under(stale), pytest.raises(StaleToken):
            async with conn.transaction():
                await conn.cursor("delete from position returning symbol")
    assert len(await rows(pool)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "do $$ begin insert into note values ('a'); commit; insert into note values ('b'); end $$",
        "call writes()",
    ],
)
async def test_a_routine_that_commits_by_itself_is_refused_under_a_lease(
    pool: asyncpg.Pool[Any], statement: str
) -> None:
    await pool.execute(
        "create procedure writes() language plpgsql as "
        "$$ begin insert into note values ('a'); commit; insert into note values ('b'); end $$"
    )
    with under(await held(pool)), pytest.raises(asyncpg.InvalidTransactionTerminationError):
        await pool.execute(statement)
    assert await pool.fetch("select * from note") == []


@pytest.mark.parametrize("text", ["prepare transaction 'x'", "begin; prepare transaction 'x'"])
async def test_a_prepared_transaction_is_refused_under_a_lease(pool: asyncpg.Pool[Any], text: str) -> None:
    with under(await held(pool)), pytest.raises(ConfigurationError, match="COMMIT"):
        await pool.execute(text)


async def test_listen_as_text_works_under_a_lease(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        with under(await held(pool)):
            await conn.execute("listen news")
            await conn.execute("notify news, 'x'")
            assert await conn.fetchval("select pg_listening_channels()") == "news"
