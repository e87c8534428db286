"""Bodies that have nothing to do with each other never disturb each other, whatever the role's default is."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, install
from lockguard_asyncpg._database import AsyncpgDatabase
from lockguard_asyncpg._errors import Meaning, meaning_of
from lockguard_lab.fence_race import WAYS, RacePlan, Way
from lockguard_lab.fence_race.independent import independent

# Five hundred and more took a second where neighbours were in each other's way from the first ten on.
BODIES = 60


@pytest.fixture
async def url(database_url: str) -> str:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    return database_url


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The fence's own calls that a neighbour had fail: they are made again, and nobody is told."""
    found: list[BaseException] = []
    once = AsyncpgDatabase.once

    async def noting(*args: Any, **options: Any) -> Any:
        try:
            return await once(*args, **options)
        except asyncpg.PostgresError as exc:
            if meaning_of(exc) is Meaning.RETRY:
                found.append(exc)
            raise

    monkeypatch.setattr(AsyncpgDatabase, "once", noting)
    return found


@pytest.mark.parametrize(
    ("way", "isolation"),
    [
        pytest.param(way, isolation, id=f"{way.name}-{isolation}")
        for number, way in enumerate(WAYS)
        for isolation in ("serializable", *(["repeatable_read"] if number % 4 == 0 else []))
        if isolation not in way.meets
    ],
)
async def test_independent_bodies_all_succeed_as_they_do_without_the_fence(
    url: str, way: Way, isolation: Any, disturbed: list[BaseException]
) -> None:
    found = await independent(url, way, RacePlan(isolation=isolation), direct=url, bodies=BODIES)
    assert (found.unfenced, found.fenced) == (BODIES, BODIES), found
    assert disturbed == []


async def test_a_role_that_only_reads_by_default_gets_no_lease_and_is_told_why(url: str) -> None:
    """A seal writes. What is written without the fence in such a session is refused as well."""
    settings = {"default_transaction_read_only": "on"}
    async with asyncpg.create_pool(url, min_size=0, max_size=3, server_settings=settings) as pool:
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await pool.execute("create table note (id int)")
        grant = Grant(Resource("binance:APTUSDT"), new_grant_id(), Token(1), "host/1", "open", 10_000)
        with pytest.raises(ConfigurationError, match="default_transaction_read_only is on"):
            await PostgresFence(pool).seal(grant, within=timedelta(milliseconds=300))
