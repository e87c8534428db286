"""What the fence promises, whatever driver a bot writes with."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import LeaseLost, LeaseNotHeld, LossReason, StaleToken
from lockguard.ports import Outrun
from lockguard_asyncpg import schema_sql
from lockguard_postgres._errors import NotCommitted
from lockguard_postgres._in_force import unfenced
from tests.contract.fence_drivers import DRIVERS, INSERT, TABLES, WITH_SQL, Driver, held
from tests.integration.fence_leases import SOON, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lockguard_lab.servers import PostgresServer

numbers = itertools.count()
ways = pytest.mark.parametrize(
    ("driver", "way"),
    [pytest.param(name, way, id=f"{name}: {way}") for name, kind in DRIVERS.items() for way in kind.ways],
    indirect=["driver"],
)


@pytest.fixture(scope="module")
def fenced_database(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the fence's schema and the tables that the laws write."""
    name = f"contract_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(schema_sql().encode())
        conn.execute(TABLES)
    yield url
    postgres_server.drop_database(name)


@pytest.fixture
async def driver(request: pytest.FixtureRequest, fenced_database: str) -> AsyncIterator[Driver]:
    with psycopg.connect(fenced_database, autocommit=True) as conn:
        conn.execute("delete from note")
    async with DRIVERS[request.param](fenced_database) as begun:
        yield begun


each = pytest.mark.parametrize("driver", DRIVERS, indirect=True)
each_with_sql = pytest.mark.parametrize("driver", WITH_SQL, indirect=True)


@pytest.fixture
def resource() -> str:
    """The name of a resource that no other test uses."""
    return f"binance:C{next(numbers)}"


@contextmanager
def superseded_writes(token: int = 7, current: int = 8) -> Iterator[None]:
    with pytest.raises(StaleToken) as caught:
        yield
    assert (caught.value.presented, caught.value.current) == (token, current)


async def rows(driver: Driver, table: str = "note") -> int:
    with unfenced():
        async with driver.session() as session:
            return int(await session.value(f"select count(*) from {table}"))


@ways
async def test_each_way_to_write_is_committed_under_the_lease(
    driver: Driver, way: str, resource: str
) -> None:
    with under(await held(driver, resource)):
        async with driver.session() as session:
            await driver.ways[way](session)
    assert await rows(driver) == 1


@ways
async def test_each_way_to_write_is_refused_once_the_lease_is_superseded(
    driver: Driver, way: str, resource: str
) -> None:
    stale = await held(driver, resource, 7)
    await held(driver, resource, 8)
    with under(stale), superseded_writes():
        async with driver.session() as session:
            await driver.ways[way](session)
    assert stale.loss is LossReason.FENCED, "a caller that swallows the refusal must not go on"
    assert await rows(driver) == 0
    async with driver.session() as session:
        await driver.ways[way](session)  # outside of a body, the connection is the driver's own again
    assert await rows(driver) == 1


@ways
async def test_each_way_to_write_is_refused_after_the_lease_is_known_lost(
    driver: Driver, way: str, resource: str
) -> None:
    lease = await held(driver, resource)
    with under(lease), pytest.raises(LeaseLost):
        async with driver.session() as session:
            lease.mark_lost(LossReason.EXPIRED)
            await driver.ways[way](session)
    assert await rows(driver) == 0


@each
async def test_a_task_that_outlives_its_body_is_refused(driver: Driver, resource: str) -> None:
    lease = await held(driver, resource)
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        async with driver.session() as session:
            await session.run(INSERT)

    with under(lease):
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
    lease.mark_released()
    over.set()
    with pytest.raises(LeaseNotHeld):
        await task
    assert await rows(driver) == 0


@each
async def test_a_transaction_begun_before_the_lease_presents_it(driver: Driver, resource: str) -> None:
    stale = await held(driver, resource, 7)
    await held(driver, resource, 8)
    with superseded_writes():
        async with driver.session() as session, session.transaction():
            await session.value("select 1")
            with under(stale):
                await session.run(INSERT)
    assert await rows(driver) == 0


@each
async def test_a_lease_that_is_lost_in_a_transaction_commits_nothing(driver: Driver, resource: str) -> None:
    lease = await held(driver, resource)
    with under(lease), pytest.raises(LeaseLost):
        async with driver.session() as session, session.transaction():
            await session.run(INSERT)
            lease.mark_lost(LossReason.EXPIRED)
    assert await rows(driver) == 0


@each
async def test_a_seal_waits_for_an_open_transaction_and_then_shuts_its_holder_out(
    driver: Driver, resource: str
) -> None:
    lease = await held(driver, resource, 7)
    with under(lease):
        async with driver.session() as session:
            async with session.transaction():
                await session.run(INSERT)
                sealing = asyncio.create_task(held(driver, resource, 8))
                done, _ = await asyncio.wait([sealing], timeout=0.2)
                assert not done, "the write may still commit, and the successor would not see it"
            await sealing
            assert await rows(driver) == 1
            with superseded_writes():
                await session.run("delete from note")
    assert await rows(driver) == 1


@each
async def test_what_a_savepoint_has_presented_is_presented_again_after_its_rollback(
    driver: Driver, resource: str
) -> None:
    lease = await held(driver, resource, 7)
    with superseded_writes():
        async with driver.session() as session, session.transaction():
            with under(lease):
                with pytest.raises(ZeroDivisionError):
                    async with session.transaction():
                        await session.run(INSERT)
                        raise ZeroDivisionError
                await held(driver, resource, 8)  # the rollback has freed the fence's row
                await session.run(INSERT)
    assert await rows(driver) == 0


@each
async def test_a_savepoint_that_fails_spoils_neither_the_transaction_nor_its_check(
    driver: Driver, resource: str
) -> None:
    with under(await held(driver, resource)):
        async with driver.session() as session, session.transaction():
            await session.run(INSERT)
            with pytest.raises(Exception, match="duplicate key"):
                async with session.transaction():
                    await session.run(INSERT)
            await session.run("update note set text = 'y'")
    with unfenced():
        async with driver.session() as session:
            assert await session.value("select text from note") == "y"


@each_with_sql
async def test_a_swallowed_error_is_not_mistaken_for_a_commit(driver: Driver, resource: str) -> None:
    with under(await held(driver, resource)), pytest.raises(NotCommitted):
        async with driver.session() as session, session.transaction():
            await session.run(INSERT)
            with pytest.raises(Exception, match="division by zero"):
                await session.run("select 1 / 0")
    assert await rows(driver) == 0


@each
async def test_a_transaction_whose_refusal_is_swallowed_commits_nothing_and_says_so(
    driver: Driver, resource: str
) -> None:
    foreign = "insert into position values ('binance', 'foreign', 1)"
    with under(await held(driver, resource)), pytest.raises(NotCommitted):
        async with driver.session() as session, session.transaction():
            await session.run(INSERT)
            with pytest.raises(StaleToken):
                await session.run(foreign)
    assert await rows(driver) == 0


@each
async def test_a_transaction_whose_stale_token_is_swallowed_is_told_of_it_at_its_end(
    driver: Driver, resource: str
) -> None:
    stale = await held(driver, resource, 7)
    await held(driver, resource, 8)
    with under(stale), superseded_writes():
        async with driver.session() as session, session.transaction():
            with superseded_writes():
                await session.run(INSERT)
    assert await rows(driver) == 0


@each
async def test_a_statement_that_changes_no_row_presents_the_lease_too(driver: Driver, resource: str) -> None:
    stale = await held(driver, resource, 7)
    await held(driver, resource, 8)
    with under(stale), superseded_writes():
        async with driver.session() as session:
            await session.run("delete from note where id = 404")


@each_with_sql
@pytest.mark.parametrize("text", [f"commit; {INSERT}", f"{INSERT}; prepare transaction 'x'"])
async def test_a_text_whose_writes_would_escape_the_fence_is_refused(
    driver: Driver, text: str, resource: str
) -> None:
    with under(await held(driver, resource)), pytest.raises(driver.refusals):
        async with driver.session() as session:
            await session.run(text)
    assert await rows(driver) == 0


@each
async def test_a_protected_table_takes_writes_under_the_rows_own_lease_only(
    driver: Driver, resource: str
) -> None:
    symbol = resource.partition(":")[2]
    insert = f"insert into position values ('binance', '{symbol}', 1)"
    with pytest.raises(StaleToken) as caught:
        async with driver.session() as session:
            await session.run(insert)
    assert caught.value.presented is None
    with under(await held(driver, resource, 7)):
        async with driver.session() as session:
            await session.run(insert)
    with under(await held(driver, f"{resource}-other", 7)), pytest.raises(StaleToken):
        async with driver.session() as session:
            await session.run(f"update position set quantity = 2 where symbol = '{symbol}'")
    with unfenced():
        async with driver.session() as session:
            found = await session.value(f"select sum(quantity) from position where symbol = '{symbol}'")
    assert found == 1


@each
async def test_all_leases_of_the_surrounding_bodies_are_presented(driver: Driver, resource: str) -> None:
    outer, inner = await held(driver, resource, 7), await held(driver, f"{resource}-inner", 7)
    with under(outer, inner):
        async with driver.session() as session:
            await session.run(INSERT)
        await held(driver, resource, 8)
        with superseded_writes():
            async with driver.session() as session:
                await session.run("delete from note")
    assert await rows(driver) == 1


@each
async def test_what_is_written_unfenced_carries_no_token(driver: Driver, resource: str) -> None:
    stale = await held(driver, resource, 7)
    await held(driver, resource, 8)
    with under(stale), unfenced():
        async with driver.session() as session:
            await session.run(INSERT)
    assert await rows(driver) == 1


@each
async def test_nothing_is_accepted_of_a_closed_or_a_broken_grant(driver: Driver, resource: str) -> None:
    lease = await held(driver, resource, 7)
    await driver.fence.close(lease.grant, within=SOON)
    with under(lease), pytest.raises(StaleToken):
        async with driver.session() as session:
            await session.run(INSERT)
    later = await held(driver, resource, 8)
    await driver.fence.break_(later.resource, reason="stuck", within=SOON)
    with under(later), pytest.raises(StaleToken):
        async with driver.session() as session:
            await session.run(INSERT)
    assert await rows(driver) == 0


@each
async def test_a_seal_with_a_lower_token_is_outrun(driver: Driver, resource: str) -> None:
    await held(driver, resource, 8)
    grant = Grant(Resource(resource), new_grant_id(), Token(7), "host/2", "open", 10_000)
    assert await driver.fence.seal(grant, within=SOON) == Outrun(Token(8))
