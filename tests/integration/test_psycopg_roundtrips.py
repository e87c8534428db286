"""What presenting a lease costs on the wire with psycopg."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psycopg
import pytest

from lockguard_psycopg import PsycopgFence
from tests.integration.fence_leases import under
from tests.integration.psycopg_fence import INSERT, connected, fence, held, installed
from tests.integration.test_fence_roundtrips import Counter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


__all__ = ["fence", "installed"]


@asynccontextmanager
async def counted(url: str) -> AsyncIterator[tuple[Counter, str]]:
    async with Counter(urlsplit(url).port or 0).listening() as counter:
        yield counter, url.replace(f":{urlsplit(url).port}/", f":{counter.port}/")


async def _transaction(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.transaction():
        await conn.execute(INSERT, [1])
        await conn.execute(INSERT, [2])


async def _committed(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute(INSERT, [1])
    await conn.commit()


async def _pipelined(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.pipeline(), conn.transaction():
        await conn.execute(INSERT, [1])
        await conn.execute(INSERT, [2])


@pytest.mark.parametrize(
    ("work", "autocommit", "more"),
    [
        pytest.param(lambda c: c.execute(INSERT, [1]), True, 2, id="a statement in autocommit mode"),
        pytest.param(_committed, False, 0, id="a statement and its commit"),
        pytest.param(_transaction, True, 0, id="a transaction"),
        pytest.param(_transaction, False, 0, id="a transaction without autocommit"),
        pytest.param(_pipelined, True, 2, id="a pipelined transaction"),
    ],
)
async def test_what_presenting_the_lease_adds_in_round_trips(
    fence: PsycopgFence, installed: str, work: Callable[[Any], Awaitable[Any]], autocommit: bool, more: int
) -> None:
    async with counted(installed) as (counter, url):
        async with connected(f"{url}?sslmode=disable&gssencmode=disable", autocommit=autocommit) as conn:
            taken = []
            for lease in ([], [await held(fence)]):
                before = counter.trips
                with under(*lease):
                    await work(conn)
                taken.append(counter.trips - before)
            assert taken[1] - taken[0] == more


async def test_a_transaction_begun_before_the_lease_presents_it_in_one_round_trip_once(
    fence: PsycopgFence, installed: str
) -> None:
    async with counted(installed) as (counter, url):
        async with connected(f"{url}?sslmode=disable&gssencmode=disable") as conn:
            await conn.execute("select 1")
            with under(await held(fence)):
                before = counter.trips
                await conn.execute(INSERT, [1])
                await conn.execute(INSERT, [2])
                assert counter.trips - before == 3
                await conn.commit()
