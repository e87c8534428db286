"""Hundreds of leases in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import install, protect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ODD = ['a", "b', "b", 'a"', '"', "\\", "a\\", '{"b', ", ", "]", "é€", "a: [1]", '"b": [7']
NAMES = [f"binance:SYMBOL{n}" for n in range(300)] + ODD
SEAL = "select lockguard.seal(n, 7, md5(n)::uuid, 'h', 'o', 1000) from unnest($1::text[]) n"
PRESENT = """
select lockguard.check_all(array_agg(n order by n collate "C"), array_agg(7::bigint),
                           array_agg(md5(n)::uuid order by n collate "C"))
  from unnest($1::text[]) n
"""


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.execute(
        "create table plain (name text, n int);"
        "create table parts (name text, n int) partition by hash (name);"
        "create table part partition of parts for values with (modulus 1, remainder 0)"
    )
    for table in ("plain", "parts"):
        await protect(conn, table, resource="{name}")
    await conn.execute(SEAL, NAMES)
    yield conn
    await conn.close()


async def refused(conn: asyncpg.Connection[Any], table: str, name: str) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with conn.transaction():
            await conn.execute(f"insert into {table} values ($1, 1)", name)
    assert caught.value.sqlstate == "LG002"


@pytest.mark.parametrize("table", ["plain", "parts"])
async def test_each_of_300_leases_lets_in_its_own_rows_and_no_others_whatever_it_is_called(
    conn: asyncpg.Connection[Any], table: str
) -> None:
    async with conn.transaction():
        await conn.execute(PRESENT, NAMES)
        await conn.execute(f"insert into {table} select n, 1 from unnest($1::text[]) n", NAMES)
        for name in NAMES[-20:]:
            await conn.execute(f"insert into {table} values ($1, 1)", name)
    for missing in ODD:
        async with conn.transaction():
            await conn.execute(PRESENT, [name for name in NAMES if name != missing])
            await refused(conn, table, missing)


async def test_looking_for_one_of_300_leases_does_not_read_them_all(conn: asyncpg.Connection[Any]) -> None:
    async def seconds(what: str) -> float:
        began = SYSTEM_CLOCK.now()
        await conn.fetchval(f"select count({what}) from unnest($1::text[]) n", NAMES[:300])
        return SYSTEM_CLOCK.now() - began

    async with conn.transaction():
        await conn.execute(PRESENT, NAMES)
        whole = "current_setting('lockguard.leases')::jsonb -> n"
        assert await conn.fetchval(
            f"select bool_and(lockguard.claim_of(n) = ({whole})) from unnest($1::text[]) n", NAMES
        )
        ratios = sorted([await seconds("lockguard.claim_of(n)") / await seconds(whole) for _ in range(5)])
    assert ratios[2] < 0.5, ratios


class Older(asyncpg.Connection):  # type: ignore[type-arg] # it is no generic at run time
    """Says that its server is PostgreSQL 12."""

    def get_server_version(self) -> Any:
        return super().get_server_version()._replace(major=12)


async def test_a_server_that_is_too_old_is_told_so_before_anything_is_made(database_url: str) -> None:
    conn = await asyncpg.connect(database_url, connection_class=Older)
    with pytest.raises(ConfigurationError, match="PostgreSQL 12, and the fence needs 13 or newer"):
        await install(conn)
    assert await conn.fetchval("select to_regnamespace('lockguard')") is None
    await conn.close()
