"""The optimistic version column: a lost update is stopped, and what it does not stop is shown too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import VersionConflict, update_if_version
from tests.integration.fence_leases import blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SET_UP = """
create schema trading;
create table trading.settings (id int primary key, name text, value int, version bigint not null default 1);
insert into trading.settings values (1, 'leverage', 0), (2, 'leverage', 0);
"""
TABLE = "trading.settings"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=10) as pool:
        await pool.execute(SET_UP)
        yield pool


async def row(pool: asyncpg.Pool[Any]) -> tuple[Any, ...]:
    return tuple(await pool.fetchrow("select value, version from trading.settings where id = 1") or ())


async def test_a_change_raises_the_version(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        assert await update_if_version(conn, TABLE, key={"id": 1}, version=1, values={"value": 5}) == 2
        assert await update_if_version(conn, TABLE, key={"id": 1}, version=2, values={"value": 6}) == 3
    assert await row(pool) == (6, 3)


async def test_a_change_founded_on_an_old_version_is_not_made(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        await update_if_version(conn, TABLE, key={"id": 1}, version=1, values={"value": 5})
        with pytest.raises(VersionConflict, match="has version 2") as caught:
            await update_if_version(conn, TABLE, key={"id": 1}, version=1, values={"value": 6})
        assert (caught.value.expected, caught.value.found) == (1, 2)
        await conn.execute("delete from trading.settings where id = 1")
        with pytest.raises(VersionConflict, match="is gone") as caught:
            await update_if_version(conn, TABLE, key={"id": 1}, version=2, values={"value": 6})
        assert caught.value.found is None


async def test_the_second_of_two_writers_waits_and_is_told(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as one, pool.acquire() as two:
        transaction = one.transaction()
        await transaction.start()
        await update_if_version(one, TABLE, key={"id": 1}, version=1, values={"value": 1})
        late = asyncio.create_task(
            update_if_version(two, TABLE, key={"id": 1}, version=1, values={"value": 2})
        )
        await blocked(pool)
        await transaction.commit()
        with pytest.raises(VersionConflict) as caught:
            await late
        assert caught.value.found == 2
    assert await row(pool) == (1, 2)


async def test_no_update_of_many_concurrent_writers_is_lost(pool: asyncpg.Pool[Any]) -> None:
    async def add_one() -> None:
        while True:
            async with pool.acquire() as conn:
                value, version = await row(pool)
                try:
                    await update_if_version(
                        conn, TABLE, key={"id": 1}, version=version, values={"value": value + 1}
                    )
                except VersionConflict:
                    continue
                return

    limit = asyncio.Semaphore(5)  # each holds a connection and asks for another

    async def bounded() -> None:
        async with limit:
            await add_one()

    await asyncio.gather(*(bounded() for _ in range(40)))
    assert await row(pool) == (40, 41)


async def test_it_is_no_fence(pool: asyncpg.Pool[Any]) -> None:
    """A paused writer passes if nobody changed the row meanwhile: that is what tokens are for."""
    async with pool.acquire() as paused:
        _, seen = await row(pool)
        # Its lease ends here, and a successor reads the row and acts on it without changing it.
        assert await row(pool) == (0, 1)
        await update_if_version(paused, TABLE, key={"id": 1}, version=seen, values={"value": 9})
    assert await row(pool) == (9, 2)


async def test_a_key_that_names_several_rows_changes_none(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        with pytest.raises(ConfigurationError, match="names 2 rows"):
            await update_if_version(conn, TABLE, key={"name": "leverage"}, version=1, values={"value": 5})
    assert await row(pool) == (0, 1)


async def test_a_conflict_leaves_the_callers_transaction_usable(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn, conn.transaction():
        with pytest.raises(VersionConflict):
            await update_if_version(conn, TABLE, key={"id": 1}, version=9, values={"value": 5})
        await update_if_version(conn, TABLE, key={"id": 1}, version=1, values={"value": 5})
    assert await row(pool) == (5, 2)


async def test_names_are_only_names(pool: asyncpg.Pool[Any]) -> None:
    await pool.execute(
        """create table "Odd ""Table; drop table x" ("The Key" int, "set" text, "Count" int);
        insert into "Odd ""Table; drop table x" values (1, 'a', 7)"""
    )
    async with pool.acquire() as conn:
        new = await update_if_version(
            conn,
            'Odd "Table; drop table x',
            key={"The Key": 1},
            version=7,
            values={"set": "b"},
            column="Count",
        )
    assert new == 8


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"table": "trading.nothing"}, "does not exist"),
        ({"table": "nowhere.settings"}, "does not exist"),
        ({"table": ""}, "no name"),
        ({"table": "trading.settings; drop table trading.settings"}, "does not exist"),
        ({"values": {"valeu": 1}}, "does not exist"),
        ({"key": {"id = 1 or true; --": 1}}, "does not exist"),
        ({"column": "revision"}, "does not exist"),
        ({"values": {}}, "needs columns"),
        ({"key": {}}, "needs columns"),
        ({"values": {"version": 3}}, "sets 'version' itself"),
        ({"values": {"a\x00b": 3}}, "no name"),
    ],
)
async def test_bad_input_is_one_line(pool: asyncpg.Pool[Any], changed: dict[str, Any], says: str) -> None:
    call: dict[str, Any] = {"table": TABLE, "key": {"id": 1}, "version": 1, "values": {"value": 5}, **changed}
    async with pool.acquire() as conn:
        with pytest.raises(ConfigurationError, match=says) as caught:
            await update_if_version(conn, call.pop("table"), **call)
    assert "\n" not in str(caught.value)
    assert await row(pool) == (0, 1)
