"""The migrations of ``monitoring``: there and back, and in front of rows that are in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from lockguard.errors import ConfigurationError
from lockguard_asyncpg import install, protections
from lockguard_positions import (
    LATEST,
    TRANSITIONS,
    Migrated,
    MigrationRefused,
    migrate,
    protect_positions,
    version,
)
from lockguard_positions._status import INITIAL

OPEN_STATUSES = ["pending_entry", "entry_placed", "pending_sl", "active"]
INSERT = """
insert into monitoring.positions (exchange, symbol, side, quantity, status)
values ('binance', $1, 'long', 1, $2) returning id
"""


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def indexes(conn: asyncpg.Connection[Any]) -> set[str]:
    rows = await conn.fetch("select indexname from pg_indexes where tablename = 'positions'")
    return {row[0] for row in rows if "unique" in row[0]}


async def test_up_and_down_and_up_again_ends_where_it_was(conn: asyncpg.Connection[Any]) -> None:
    assert await migrate(conn) == Migrated(0, LATEST)
    assert await indexes(conn) == {"idx_unique_open_position"}
    assert await migrate(conn, to=1) == Migrated(LATEST, 1)
    assert await indexes(conn) == {"idx_unique_active_position"}
    assert await migrate(conn, to=0) == Migrated(1, 0)
    assert await conn.fetchval("select to_regclass('monitoring.positions')") is None
    assert await migrate(conn) == Migrated(0, LATEST)


async def test_migrating_twice_changes_nothing(conn: asyncpg.Connection[Any]) -> None:
    await migrate(conn)
    assert await migrate(conn) == Migrated(LATEST, LATEST)
    assert await version(conn) == LATEST


async def test_two_migrations_at_once_both_succeed(database_url: str) -> None:
    connections = [await asyncpg.connect(database_url) for _ in range(3)]
    try:
        done = await asyncio.gather(*(migrate(connection) for connection in connections))
    finally:
        for connection in connections:
            await connection.close()
    assert {migrated.after for migrated in done} == {LATEST}


async def test_duplicates_are_listed_and_nothing_is_changed(conn: asyncpg.Connection[Any]) -> None:
    await migrate(conn, to=3)
    first = await conn.fetchval(INSERT, "APTUSDT", "entry_placed")
    second = await conn.fetchval(INSERT, "APTUSDT", "pending_entry")
    await conn.fetchval(INSERT, "BTCUSDT", "pending_entry")
    with pytest.raises(MigrationRefused) as caught:
        await migrate(conn)
    message = str(caught.value)
    assert f"binance APTUSDT: rows {first} (entry_placed), {second} (pending_entry)" in message
    assert "rolled_back or closed" in message
    assert "BTCUSDT" not in message
    assert await version(conn) == 3
    assert await indexes(conn) == {"idx_unique_active_position"}
    await conn.execute("update monitoring.positions set status = 'failed' where id = $1", second)
    assert await migrate(conn) == Migrated(3, LATEST)


@pytest.mark.parametrize("second", ["pending_entry", "entry_placed"])
async def test_one_open_row_a_symbol_in_every_open_status(conn: asyncpg.Connection[Any], second: str) -> None:
    await migrate(conn)
    await conn.fetchval(INSERT, "APTUSDT", "entry_placed")
    with pytest.raises(asyncpg.UniqueViolationError, match="idx_unique_open_position"):
        await conn.fetchval(INSERT, "APTUSDT", second)


async def test_the_database_knows_the_same_machine_as_the_code(conn: asyncpg.Connection[Any]) -> None:
    await migrate(conn)
    rows = await conn.fetch("select old_status, new_status from monitoring.status_transitions")
    expected = {("", new.value) for new in INITIAL}
    expected |= {(old.value, new.value) for old, news in TRANSITIONS.items() for new in news}
    assert {tuple(row) for row in rows} == expected


async def test_the_database_refuses_an_illegal_change_by_hand(conn: asyncpg.Connection[Any]) -> None:
    await migrate(conn)
    with pytest.raises(asyncpg.PostgresError, match="from nothing to active") as caught:
        await conn.fetchval(INSERT, "APTUSDT", "active")
    assert caught.value.sqlstate == "LG102"
    row = await conn.fetchval(INSERT, "APTUSDT", "entry_placed")
    await conn.execute("update monitoring.positions set status = 'closed' where id = $1", row)
    with pytest.raises(asyncpg.PostgresError, match="from closed to entry_placed"):
        await conn.execute("update monitoring.positions set status = 'entry_placed' where id = $1", row)


async def test_a_table_of_somebody_else_is_left_alone(conn: asyncpg.Connection[Any]) -> None:
    await conn.execute("create schema monitoring; create table monitoring.positions (id integer)")
    with pytest.raises(MigrationRefused, match="not made by these migrations"):
        await migrate(conn)
    assert await version(conn) == 0


async def test_an_unknown_version_is_refused_by_name(conn: asyncpg.Connection[Any]) -> None:
    with pytest.raises(ConfigurationError, match="no version 7"):
        await migrate(conn, to=7)


async def test_rows_of_before_get_their_unified_symbol_in_place_and_nothing_else_of_them_changes(
    conn: asyncpg.Connection[Any],
) -> None:
    await install(conn)
    await migrate(conn, to=9)
    symbols = ["APTUSDT", "BTCUSDC", "BTC/USD:BTC", "BTC/USDT:USDT-250926", "ETHEUR", "1000PEPEUSDT"]
    for symbol in symbols:
        await conn.fetchval(INSERT, symbol, "entry_placed")
    await protect_positions(conn)
    before = await conn.fetch("select * from monitoring.positions order by id")
    assert await migrate(conn) == Migrated(9, LATEST)
    after = await conn.fetch("select * from monitoring.positions order by id")
    assert [row["market"] for row in after] == [
        *("APT/USDT:USDT", "BTC/USDC:USDC", "BTC/USD:BTC", "BTC/USDT:USDT-250926"),
        *(None, "1000PEPE/USDT:USDT"),
    ]
    assert [{**row, "market": None} for row in map(dict, after)] == [
        {**row, "market": None} for row in before
    ]
    assert all(protection.enabled for protection in await protections(conn))
    assert await migrate(conn, to=9) == Migrated(LATEST, 9)
    assert [dict(row) for row in await conn.fetch("select * from monitoring.positions order by id")] == [
        dict(row) for row in before
    ]
