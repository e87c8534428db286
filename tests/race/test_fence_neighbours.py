"""Bodies that have nothing to do with each other never disturb each other, whatever the role's default is."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from lockguard_asyncpg import install
from lockguard_asyncpg.race import WAYS, RacePlan, Way
from lockguard_asyncpg.race.independent import independent

# Five hundred and more took a second where neighbours were in each other's way from the first ten on.
BODIES = 60


@pytest.fixture
async def url(database_url: str) -> str:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    return database_url


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
    url: str, way: Way, isolation: Any
) -> None:
    found = await independent(url, way, RacePlan(isolation=isolation), direct=url, bodies=BODIES)
    assert (found.unfenced, found.fenced) == (BODIES, BODIES), found
