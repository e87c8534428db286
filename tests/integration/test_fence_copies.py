"""A COPY whose connection is lost while its rows are still to come, told as that on each event loop."""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard.errors import LeaseLost, LossReason
from lockguard_asyncpg import create_pool, fenced_transaction, install, unfenced
from lockguard_asyncpg._errors import Meaning, meaning_of
from lockguard_asyncpg._transaction_state import bare
from tests.integration.fence_leases import held, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Between = Callable[[], Awaitable[None]]
    Copy = Callable[[Any, Between], Awaitable[Any]]
    Loss = Callable[[asyncpg.Pool[Any], Any], Awaitable[None]]


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=3) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool


# What is copied, with something that happens between two rows


async def records(conn: Any, between: Between) -> Any:
    async def rows() -> AsyncIterator[tuple[int]]:
        yield (1,)
        await between()
        yield (2,)

    return await conn.copy_records_to_table("note", records=rows())


async def a_source(conn: Any, between: Between) -> Any:
    async def lines() -> AsyncIterator[bytes]:
        yield b"1\n"
        await between()
        yield b"2\n"

    return await conn.copy_to_table("note", source=lines())


async def a_source_that_ends_there(conn: Any, between: Between) -> Any:
    async def lines() -> AsyncIterator[bytes]:
        yield b"1\n"
        await between()

    return await conn.copy_to_table("note", source=lines())


async def to_an_output(conn: Any, between: Between) -> Any:
    happened = False

    async def take(_: bytes) -> None:
        nonlocal happened
        if not happened:
            happened = True
            await between()

    many = "select repeat('x', 1000) from generate_series(1, 20000)"
    return await conn.copy_from_query(many, output=take)


COPIES = (records, a_source, a_source_that_ends_there, to_an_output)


# How the connection is lost


async def ended_by_the_server(pool: asyncpg.Pool[Any], con: Any) -> None:
    with unfenced():
        assert await pool.fetchval("select pg_terminate_backend($1, 5000)", con.get_server_pid())
    protocol = con._protocol
    if protocol.is_connected() and con._transport.is_reading():
        async with asyncio.timeout(5):
            while not con.is_closed():
                await asyncio.sleep(0)


async def terminated_here(_pool: asyncpg.Pool[Any], con: Any) -> None:
    con.terminate()


LOSSES = (ended_by_the_server, terminated_here)


def _name(one: Callable[..., Any]) -> str:
    return one.__name__.replace("_", " ")


each_loss = pytest.mark.parametrize("loss", LOSSES, ids=_name)


async def written(pool: asyncpg.Pool[Any]) -> int:
    with unfenced():
        return int(await pool.fetchval("select count(*) from note"))


@each_loss
async def test_a_copy_whose_connection_is_lost_is_told_as_that_and_wrote_nothing(
    pool: asyncpg.Pool[Any], loss: Loss
) -> None:
    lease = await held(pool)

    async def without_a_lease(copy: Copy, conn: Any, between: Between) -> None:
        await copy(conn, between)

    async def under_a_lease(copy: Copy, conn: Any, between: Between) -> None:
        with under(lease):
            await copy(conn, between)

    async def in_a_fenced_transaction(copy: Copy, conn: Any, between: Between) -> None:
        async with fenced_transaction(conn, lease) as con:
            await copy(con, between)

    async def while_an_error_is_handled(copy: Copy, conn: Any, between: Between) -> None:
        try:
            raise KeyError("of before")
        except KeyError:
            await copy(conn, between)

    ways = (without_a_lease, under_a_lease, in_a_fenced_transaction, while_an_error_is_handled)
    for way, copy in itertools.product(ways, COPIES):
        async with pool.acquire() as conn:
            con = bare(conn)
            with pytest.raises(asyncpg.ConnectionDoesNotExistError) as caught:
                await way(copy, conn, functools.partial(loss, pool, con))
        assert meaning_of(caught.value) is Meaning.LOST, (way.__name__, copy.__name__)
    assert await written(pool) == 0


@each_loss
async def test_a_lease_that_is_lost_with_the_connection_of_its_copy_is_told_as_lost(
    pool: asyncpg.Pool[Any], loss: Loss
) -> None:
    for token, (is_fenced, copy) in enumerate(itertools.product((False, True), COPIES), 7):
        lease = await held(pool, token)
        async with pool.acquire() as conn:
            con = bare(conn)

            async def between(lease: Any = lease, con: Any = con) -> None:
                lease.mark_lost(LossReason.EXPIRED)
                await loss(pool, con)

            with pytest.raises(LeaseLost) as caught:
                if is_fenced:
                    async with fenced_transaction(conn, lease) as inside:
                        await copy(inside, between)
                else:
                    with under(lease):
                        await copy(conn, between)
        assert caught.value.reason is LossReason.EXPIRED
    assert await written(pool) == 0


@each_loss
async def test_an_error_of_the_callers_own_rows_is_not_hidden_by_the_loss_of_their_connection(
    pool: asyncpg.Pool[Any], loss: Loss
) -> None:
    own = RuntimeError("of the rows")
    lease = await held(pool)
    for copy in COPIES:
        async with pool.acquire() as conn:
            con = bare(conn)

            async def between(con: Any = con) -> None:
                await loss(pool, con)
                raise own

            with under(lease), pytest.raises(RuntimeError) as caught:
                await copy(conn, between)
        assert caught.value is own, copy.__name__


@each_loss
async def test_a_cancel_is_not_swallowed_by_the_loss_of_the_connection_of_a_copy(
    pool: asyncpg.Pool[Any], loss: Loss
) -> None:
    lease = await held(pool)

    async def work(copy: Copy) -> None:
        with under(lease):
            async with pool.acquire() as conn:
                con = bare(conn)

                async def between() -> None:
                    await loss(pool, con)
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                    await asyncio.Event().wait()

                await copy(conn, between)

    for copy in COPIES:
        task = asyncio.create_task(work(copy))
        await asyncio.wait([task])
        assert task.cancelled(), (copy.__name__, task.exception())


async def test_an_error_of_the_rows_that_looks_like_a_loss_is_the_rows_where_nothing_was_lost(
    pool: asyncpg.Pool[Any],
) -> None:
    async def between() -> None:
        None.write()  # type: ignore[attr-defined]

    async with pool.acquire() as conn:
        with under(await held(pool)), pytest.raises(AttributeError):
            await records(conn, between)
        assert await conn.fetchval("select 1") == 1
