"""A write that is cut anywhere leaves the pool a connection that is in no transaction, or none."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import LockguardError
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, fenced_transaction, install
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._transaction_state import bare
from lockguard_lab.fence_race.running import NOISE_OF_CONNECTING, NOISE_OF_COPY
from tests.integration.fence_leases import SOON, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator

    Way = Callable[[Any], Awaitable[None]]
    Strike = Callable[[asyncio.Task[Any], Any], None]

TURNS_MAX = 200
NOISE = (NOISE_OF_COPY, NOISE_OF_CONNECTING)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=1, max_size=1) as pool:
        await pool.execute("create table note (id int)")
        async with pool.acquire() as conn:
            await install(conn)
        yield pool


@pytest.fixture
async def lease(pool: asyncpg.Pool[Any]) -> Lease:
    grant = Grant(Resource("x"), new_grant_id(), Token(7), "host", "open", 60_000)
    await PostgresFence(pool).seal(grant, within=SOON)
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)


# Ways to write


async def alone(conn: Any) -> None:
    await conn.execute("insert into note values (1)")


async def with_arguments(conn: Any) -> None:
    await conn.fetch("insert into note values ($1) returning id", 1)


async def many(conn: Any) -> None:
    await conn.executemany("insert into note values ($1)", [(1,), (2,)])


async def copied(conn: Any) -> None:
    await conn.copy_records_to_table("note", records=[(1,), (2,)])


async def copied_from_a_source(conn: Any) -> None:
    async def source() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"1\n"
            await asyncio.sleep(0)

    await conn.copy_to_table("note", source=source())


async def copied_in_a_transaction(conn: Any) -> None:
    async with conn.transaction():
        await conn.copy_records_to_table("note", records=[(1,), (2,)])


async def in_a_savepoint(conn: Any) -> None:
    async with conn.transaction():
        async with conn.transaction():
            await conn.execute("insert into note values (1)")
        await conn.execute("insert into note values (1)")


async def with_a_cursor(conn: Any) -> None:
    async with conn.transaction():
        async for _ in conn.cursor("insert into note values (1) returning id"):
            pass


async def in_a_fenced_transaction(conn: Any) -> None:
    async with fenced_transaction(conn) as con:
        await con.execute("insert into note values (1)")


async def in_a_fenced_statement(conn: Any) -> None:
    await fenced_execute(conn, "insert into note values ($1)", 1)


WAYS = (
    alone,
    with_arguments,
    many,
    copied,
    copied_from_a_source,
    copied_in_a_transaction,
    in_a_savepoint,
    with_a_cursor,
    in_a_fenced_transaction,
    in_a_fenced_statement,
)


class Cut:
    """Awaits ``work``, and has ``blow`` struck at its ``turn``-th wait: at once, or with its end."""

    def __init__(self, work: Awaitable[None], turn: int, blow: Callable[[], object], *, late: bool) -> None:
        self._work, self._turn, self._blow, self._late = work, turn, blow, late
        self.struck = False

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._work.__await__()
        waits = 0
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = inner.send(value) if error is None else inner.throw(error)
            except StopIteration:
                return
            if waits == self._turn:
                self.struck = True
                if self._late and waited is not None:
                    waited.add_done_callback(lambda _: self._blow())
                else:
                    asyncio.get_running_loop().call_soon(self._blow)
            waits += 1
            value, error = None, None
            try:
                value = yield waited
            except BaseException as exc:
                error = exc


def told_by_the_loop(told: list[str], turn: int) -> None:
    """Have what the event loop says of errors that nobody asked for go to ``told``."""
    asyncio.get_running_loop().set_exception_handler(
        lambda _, said: told.append(f"turn {turn}: {said['message']} {said.get('exception')}")
    )


async def cut_at_every_turn(
    pool: asyncpg.Pool[Any], lease: Lease | None, way: Way, strike: Strike, *, late: bool
) -> list[str]:
    """The lines that the event loop was told, turn by turn, until the write is faster than the blow."""
    told: list[str] = []
    for turn in range(TURNS_MAX):
        told_by_the_loop(told, turn)
        conn = await pool.acquire()
        con = bare(conn)
        cut: Cut | None = None

        async def write(conn: Any = conn, con: Any = con, turn: int = turn) -> Cut:
            nonlocal cut
            task = asyncio.current_task()
            assert task is not None
            with contextlib.nullcontext() if lease is None else under(lease):
                cut = Cut(way(conn), turn, lambda: strike(task, con), late=late)
                await cut
                return cut

        outcome = (await asyncio.gather(asyncio.create_task(write()), return_exceptions=True))[0]
        assert not isinstance(outcome, Exception) or isinstance(outcome, (LockguardError, *DATABASE_ERRORS))
        await answered(con)
        if not con.is_closed() and con.is_in_transaction():
            told.append(f"turn {turn}: given back in a transaction after {outcome!r}")
        with contextlib.suppress(*DATABASE_ERRORS):
            await pool.release(conn)
        if cut is None or not cut.struck:
            del con, conn, outcome
            gc.collect()  # a future whose error nobody retrieved speaks when it goes
            return told
    raise AssertionError("the write never ended")


async def answered(con: asyncpg.Connection[Any]) -> None:
    """Until the server has answered to a cancel, as the pool waits when it takes a connection back."""
    protocol: Any = getattr(con, "_protocol")  # noqa: B009
    if not con.is_closed():
        await protocol._wait_for_cancellation(5)


def cancel(task: asyncio.Task[Any], _con: Any) -> None:
    task.cancel()


def cancel_twice(task: asyncio.Task[Any], _con: Any) -> None:
    """While the first is being tidied up after, the second."""
    task.cancel()
    loop = asyncio.get_running_loop()

    def again(turns: int) -> None:
        if turns:
            loop.call_soon(again, turns - 1)
        else:
            task.cancel()

    loop.call_soon(again, 3)


def end_session(_task: asyncio.Task[Any], con: Any) -> None:
    """Have the server's word read that it ends the session, and the end of the connection not yet."""
    transport, fields = con._transport, b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
    if con.is_closed() or transport.is_closing():
        return
    con._protocol.data_received(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)
    transport.pause_reading()
    asyncio.get_running_loop().call_later(0.02, transport.abort)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "with the answer"])
@pytest.mark.parametrize("strike", [cancel, cancel_twice, end_session], ids=lambda strike: strike.__name__)
async def test_a_write_cut_at_any_turn_gives_back_a_connection_outside_of_a_transaction_or_closed(
    pool: asyncpg.Pool[Any], lease: Lease, strike: Strike, *, late: bool
) -> None:
    for way in WAYS:
        told = await cut_at_every_turn(pool, lease, way, strike, late=late)
        left = [line for line in told if not any(noise in line for noise in NOISE)]
        assert left == [], f"{way.__name__}: {left}"


class OfOne:
    """A pool that lends the one connection, and leaves it to the test to take it back."""

    def __init__(self, pool: asyncpg.Pool[Any], conn: Any) -> None:
        self._pool, self._conn = pool, conn

    async def acquire(self) -> Any:
        if bare(self._conn) is None or self._conn.is_closed():
            raise asyncio.CancelledError
        return self._conn

    async def release(self, _conn: object, timeout: float | None = None) -> None:
        del timeout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


@pytest.mark.parametrize("strike", [cancel, cancel_twice, end_session], ids=lambda strike: strike.__name__)
async def test_a_call_of_the_fence_cut_at_any_turn_leaves_a_connection_outside_of_a_transaction_or_closed(
    database_url: str, pool: asyncpg.Pool[Any], lease: Lease, strike: Strike
) -> None:
    early = Grant(lease.resource, new_grant_id(), Token(1), "host", "open", 60_000)
    calls: list[Callable[[Any], Awaitable[Any]]] = [
        lambda fence: fence.seal(lease.grant, within=SOON),
        lambda fence: fence.seal(early, within=SOON),  # outrun, which takes a transaction
        lambda fence: fence.confirm(lease.grant, within=SOON),
        lambda fence: fence.break_(Resource("y"), reason="test", within=SOON),
        lambda fence: fence._attached.here()._close(lease.grant, within=SOON),
    ]
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as plain:
        for call in calls:

            async def way(conn: Any, call: Any = call) -> None:
                await call(PostgresFence(OfOne(plain, conn)))  # type: ignore[arg-type]

            for late in (False, True):
                told = await cut_at_every_turn(plain, None, way, strike, late=late)
                assert [line for line in told if not any(noise in line for noise in NOISE)] == []


@contextlib.contextmanager
def impatient(con: asyncpg.Connection[Any]) -> Iterator[None]:
    """Give each command of a connection little time.

    It ends with the write: as an option of the pool it would also bound its making, resetting and closing of
    connections, which are slower than that on a busy machine.
    """
    held: Any = con
    patient = held._config
    held._config = patient._replace(command_timeout=0.05)
    try:
        yield
    finally:
        held._config = patient


async def test_a_begin_that_times_out_gives_back_a_connection_outside_of_a_transaction_or_closed(
    database_url: str, pool: asyncpg.Pool[Any], lease: Lease
) -> None:
    """The answer to its check is awaited behind a seal, and asyncpg asks the server to cancel it."""
    told: list[str] = []
    told_by_the_loop(told, 0)
    gate = "begin; select pg_advisory_xact_lock(lockguard.gate('x'))"
    ours = create_pool(database_url, min_size=1, max_size=1)
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as other, ours:
        async with other.acquire() as sealing:
            await sealing.execute(gate)
            for way in (alone, in_a_savepoint, in_a_fenced_transaction):
                async with ours.acquire() as conn:
                    with under(lease), impatient(bare(conn)), pytest.raises(TimeoutError):
                        await way(conn)
                    if (
                        con := bare(conn)
                    ) is not None:  # None: closed, as the cancel was not answered in time
                        await answered(con)
                        assert con.is_closed() or not con.is_in_transaction(), way.__name__
            await sealing.execute("rollback")
            with under(lease):
                async with ours.acquire() as conn:
                    await alone(conn)
    assert told == []


# What is asyncpg's own: the same lines come without anything of ours.


async def test_a_copy_whose_session_is_ended_leaves_a_future_behind_without_a_fence_too(
    database_url: str,
) -> None:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as plain:
        await plain.execute("create table note (id int)")
        told = await cut_at_every_turn(plain, None, copied, end_session, late=True)
        assert any(NOISE_OF_COPY in line for line in told)
        # And here it leaves its transaction to the pool's reset, which a fenced pool never does.
        told = await cut_at_every_turn(plain, None, copied_in_a_transaction, end_session, late=True)
        assert any("Resetting connection with an active transaction" in line for line in told)


async def test_a_connect_that_is_cancelled_leaves_a_future_behind_without_a_fence_too(
    database_url: str,
) -> None:
    if not isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop):
        pytest.skip("uvloop closes such a connection without a word")
    told: list[str] = []
    for turn in range(TURNS_MAX):
        told_by_the_loop(told, turn)
        task = asyncio.create_task(asyncpg.connect(database_url))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, asyncpg.Connection):
            await outcome.close()
        await asyncio.sleep(0)
        gc.collect()
        if any(NOISE_OF_CONNECTING in line for line in told):
            return
    raise AssertionError(f"asyncpg no longer does: take it out of race/running.py; told {told}")
