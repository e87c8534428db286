"""What became of a write: native statements, lost replies, and every error's meaning."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Lease
from lockguard.errors import ConfigurationError, FenceUnavailable, StaleToken
from lockguard_asyncpg import (
    CommitUnknown,
    create_pool,
    fenced_execute,
    fenced_fetch,
    fenced_fetchrow,
    fenced_fetchval,
    fenced_transaction,
    install,
    resolve,
)
from lockguard_asyncpg._errors import DATABASE_ERRORS, Meaning, meaning_of
from lockguard_asyncpg._transaction_state import bare
from lockguard_lab.servers.fault_proxy import DROP, PASS, FaultProxy
from tests.integration.fence_leases import blocked, held, under, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard_lab.servers import PostgresServer

INSERT = "insert into note values ($1, 'x')"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key, text text)")
        yield pool


def unaware(lease: Lease) -> Lease:
    """The same lease, as code has it that was not told of a refusal."""
    return Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)


# Native statements


async def test_a_native_write_is_one_message(pool: asyncpg.Pool[Any]) -> None:
    lease, sent = await held(pool), list[str]()
    async with pool.acquire() as conn:
        conn.add_query_logger(lambda record: sent.append(record.query))
        await fenced_execute(conn, INSERT, 1, lease=lease)
        assert await fenced_fetchval(conn, INSERT + " returning id", 2, lease=lease) == 2
    assert all("insert into note" in query for query in sent[:2])


async def test_a_stale_native_write_is_refused_and_leaves_nothing(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool, 7)
    await held(pool, 8)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, 1, lease=unaware(stale))
    with pytest.raises(StaleToken):
        await fenced_fetch(pool, INSERT + " returning id", 1, lease=unaware(stale))
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_stale_native_write_that_matches_no_row_is_refused_too(pool: asyncpg.Pool[Any]) -> None:
    stale = await held(pool, 7)
    assert await fenced_fetchrow(pool, "delete from note where id = $1 returning *", 1, lease=stale) is None
    await held(pool, 8)
    with pytest.raises(StaleToken):
        await fenced_fetchrow(pool, "delete from note where id = $1 returning *", 1, lease=unaware(stale))
    with pytest.raises(StaleToken):
        await fenced_execute(pool, "delete from note where id = $1", 1, lease=unaware(stale))


async def test_a_native_write_presents_all_leases(pool: asyncpg.Pool[Any]) -> None:
    leases = [await held(pool, 7, "b"), await held(pool, 7, "a")]
    rows = await fenced_fetch(pool, INSERT + " returning id, text", 1, lease=leases)
    assert [tuple(r) for r in rows] == [(1, "x")]
    await held(pool, 8, "a")
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, 2, lease=leases)


async def test_a_native_write_presents_the_lease_to_a_protected_table(pool: asyncpg.Pool[Any]) -> None:
    """The trigger runs while the statement's own check may still be to come; it finds the lease anyway."""
    await pool.execute(
        "create table row (exchange text, symbol text);select lockguard.protect('row', '{exchange}:{symbol}')"
    )
    lease = await held(pool)
    insert = "insert into row values ('binance', $1)"
    async with fenced_transaction(pool, lease) as conn:
        await fenced_execute(conn, insert, "APTUSDT", lease=lease)
    await fenced_execute(pool, insert, "APTUSDT", lease=lease)
    assert await fenced_fetchval(pool, insert + " returning symbol", "APTUSDT", lease=lease) == "APTUSDT"


# A lost reply


async def through_proxy(proxy: FaultProxy, url: str) -> asyncpg.Connection[Any]:
    return await asyncpg.connect(proxy.url_for(url), timeout=5)


async def _lose_reply(
    proxy: FaultProxy, work: Callable[[], Awaitable[Any]], instead: Callable[[], None] = lambda: None
) -> None:
    """Let the request through and the reply not; then cut the connection."""
    before = proxy.to_client.received_bytes
    proxy.to_client.set(DROP)
    task = asyncio.ensure_future(work())
    await asyncio.wait_for(proxy.to_client.wait_received(before + 1), 5)
    instead()
    proxy.reset()
    await task


async def test_a_lost_commit_reply_is_unknown_and_found_to_have_committed(
    pool: asyncpg.Pool[Any], database_url: str, postgres_server: PostgresServer
) -> None:
    lease = await held(pool)
    async with FaultProxy(postgres_server.port) as proxy:
        conn = await through_proxy(proxy, database_url)
        transaction = fenced_transaction(conn, lease)
        await transaction.__aenter__()
        await conn.execute(INSERT, 1)
        with pytest.raises(CommitUnknown) as caught:
            await _lose_reply(proxy, lambda: transaction.__aexit__(None, None, None))
        conn.terminate()
    assert caught.value.sequence == transaction.sequence
    assert await resolve(pool, caught.value) is True
    assert await pool.fetchval("select count(*) from note") == 1


async def test_a_commit_that_never_arrived_is_found_not_to_have_committed(
    pool: asyncpg.Pool[Any], database_url: str, postgres_server: PostgresServer
) -> None:
    lease = await held(pool)
    async with FaultProxy(postgres_server.port) as proxy:
        conn = await through_proxy(proxy, database_url)
        transaction = fenced_transaction(conn, lease)
        await transaction.__aenter__()
        await conn.execute(INSERT, 1)
        proxy.to_server.set(DROP)
        said = proxy.to_server.received_bytes
        with pytest.raises(CommitUnknown) as caught:
            leaving = asyncio.ensure_future(transaction.__aexit__(None, None, None))
            await proxy.to_server.wait_received(said + 1)  # the COMMIT, on its way to nowhere
            # Nobody has told the server yet: asking waits for the open transaction.
            asking = asyncio.ensure_future(resolve(pool, unknown(lease, transaction.sequence)))
            await blocked(pool)
            proxy.to_server.set(PASS)
            proxy.reset()
            await leaving
        conn.terminate()
        assert await asking is False
    assert await resolve(pool, caught.value) is False
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_write_declared_lost_never_commits(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    transaction = fenced_transaction(pool, lease)
    assert await resolve(pool, unknown(lease, transaction.sequence)) is False
    with pytest.raises(StaleToken, match="already declared lost"):
        async with transaction:
            pass


async def test_a_token_that_was_never_accepted_here_is_not_resolved(pool: asyncpg.Pool[Any]) -> None:
    """Asked of another database than the write was made in, it did not commit there; nobody asked that."""
    lease = await held(pool, 7)
    for resource, token in (("another", 7), (lease.resource, 8), (lease.resource, 2**63 - 1)):
        lost = CommitUnknown(resource=resource, token=token, sequence=2**62 + 1)
        with pytest.raises(ConfigurationError, match="never accepted in this database; ask in the database"):
            await resolve(pool, lost)
    # Or this would be remembered as gone, and bar every later write.
    await pool.execute("update lockguard.writer set begun_at = now() - interval '40 hours'")
    await pool.execute("update lockguard.outcome set written_at = now() - interval '40 hours'")
    await pool.fetchval("select lockguard.prune()")
    await fenced_execute(pool, INSERT, 1, lease=await held(pool, 2**50))


async def test_no_answer_in_time_is_no_answer(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    transaction = fenced_transaction(pool, lease)
    async with transaction:
        with pytest.raises(FenceUnavailable):
            await resolve(pool, unknown(lease, transaction.sequence), within=timedelta(milliseconds=100))
    assert await resolve(pool, unknown(lease, transaction.sequence)) is True


@pytest.mark.parametrize("kind", ["native", "drop-in"])
async def test_a_lost_reply_to_one_statement_is_unknown(
    pool: asyncpg.Pool[Any], database_url: str, postgres_server: PostgresServer, kind: str
) -> None:
    lease = await held(pool)
    async with (
        FaultProxy(postgres_server.port) as proxy,
        create_pool(proxy.url_for(database_url), min_size=1, max_size=1) as far,
    ):
        async with far.acquire() as conn:
            # Prepared beforehand, so that the reply that is lost is the reply to the write.
            await fenced_execute(conn, INSERT, 1, lease=lease)
        with under(lease):
            async with far.acquire() as conn:
                if kind == "native":
                    with pytest.raises(CommitUnknown) as caught:
                        await _lose_reply(proxy, lambda: fenced_execute(conn, INSERT, 2))
                else:
                    async with conn.transaction():
                        pass
                    proxy_replies = proxy.to_client
                    await conn.execute("BEGIN")
                    await conn.execute(INSERT, 2)
                    with pytest.raises(CommitUnknown) as caught:
                        await _lose_reply(proxy, lambda: conn.execute("COMMIT"))
                    proxy_replies.set(PASS)
            proxy.heal()
    assert await resolve(pool, caught.value) is True
    assert await pool.fetchval("select count(*) from note") == 2


async def test_a_connection_killed_before_commit_has_committed_nothing(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    transaction = fenced_transaction(pool, lease)
    with pytest.raises(DATABASE_ERRORS):
        async with transaction as conn:
            await conn.execute(INSERT, 1)
            pid = await conn.fetchval("select pg_backend_pid()")
            await pool.execute("select pg_terminate_backend($1)", pid)
            await conn.execute("select pg_sleep(5)")
    assert await resolve(pool, unknown(lease, transaction.sequence)) is False


@pytest.mark.parametrize("kind", ["transaction", "drop-in", "native"])
@pytest.mark.parametrize("said", ["FATAL 58000", "FATAL XX000", "PANIC 53100"])
async def test_an_error_that_ends_the_session_at_commit_is_no_answer(
    pool: asyncpg.Pool[Any], database_url: str, postgres_server: PostgresServer, kind: str, said: str
) -> None:
    """A server may die with the commit made, and a pooler says in its own words that it lost its server."""
    severity, state = said.split()
    fields = f"S{severity}\0V{severity}\0C{state}\0Mthe end\0\0".encode()
    words = b"E" + (len(fields) + 4).to_bytes(4, "big") + fields + b"Z\0\0\0\x05I"  # as PgBouncer ends them
    lease = await held(pool)
    async with (
        FaultProxy(postgres_server.port) as proxy,
        create_pool(proxy.url_for(database_url), min_size=1, max_size=1) as far,
        far.acquire() as conn,
    ):
        await fenced_execute(conn, INSERT, 1, lease=lease)  # prepared from here on
        with under(lease):
            transaction = fenced_transaction(conn) if kind == "transaction" else conn.transaction()
            if kind != "native":
                await transaction.__aenter__()
                await conn.execute(INSERT, 2)

            async def end() -> None:
                if kind == "native":
                    await fenced_execute(conn, INSERT, 2)
                else:
                    await transaction.__aexit__(None, None, None)

            with pytest.raises(CommitUnknown) as caught:
                protocol: Any = getattr(bare(conn), "_protocol")  # noqa: B009 - asyncpg's own
                await _lose_reply(proxy, end, instead=lambda: protocol.data_received(words))
            conn.terminate()
    assert await resolve(pool, caught.value) is True
    assert await pool.fetchval("select count(*) from note") == 2


# Every error has a meaning


def _error_classes() -> list[type[BaseException]]:
    found = [c for _, c in inspect.getmembers(asyncpg.exceptions, inspect.isclass)]
    return [c for c in found if issubclass(c, BaseException) and c.__module__.startswith("asyncpg")]


@pytest.mark.parametrize("kind", _error_classes(), ids=lambda c: c.__name__)
def test_every_asyncpg_error_has_a_meaning(kind: type[BaseException]) -> None:
    assert isinstance(meaning_of(kind("x")), Meaning)


@pytest.mark.parametrize(
    ("kind", "meaning"),
    [
        (asyncpg.SerializationError, Meaning.RETRY),
        (asyncpg.DeadlockDetectedError, Meaning.RETRY),
        (asyncpg.LockNotAvailableError, Meaning.UNAVAILABLE),
        (asyncpg.QueryCanceledError, Meaning.UNAVAILABLE),
        (asyncpg.ReadOnlySQLTransactionError, Meaning.UNAVAILABLE),
        (asyncpg.TooManyConnectionsError, Meaning.UNAVAILABLE),
        (asyncpg.DiskFullError, Meaning.UNAVAILABLE),
        (asyncpg.CannotConnectNowError, Meaning.UNAVAILABLE),
        (asyncpg.AdminShutdownError, Meaning.LOST),
        (asyncpg.CrashShutdownError, Meaning.LOST),
        (asyncpg.IdleInTransactionSessionTimeoutError, Meaning.LOST),
        (asyncpg.ConnectionDoesNotExistError, Meaning.LOST),
        (asyncpg.PostgresConnectionError, Meaning.LOST),
        (asyncpg.InvalidPasswordError, Meaning.CONFIGURATION),
        (asyncpg.InvalidCatalogNameError, Meaning.CONFIGURATION),
        (asyncpg.InvalidSchemaNameError, Meaning.CONFIGURATION),
        (asyncpg.InsufficientPrivilegeError, Meaning.CONFIGURATION),
        (asyncpg.UniqueViolationError, Meaning.STATEMENT),
        (asyncpg.CheckViolationError, Meaning.STATEMENT),
        (asyncpg.DataError, Meaning.STATEMENT),
        (ConnectionResetError, Meaning.LOST),
        (TimeoutError, Meaning.UNAVAILABLE),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_the_errors_that_matter_mean_what_they_should(kind: type[BaseException], meaning: Meaning) -> None:
    assert meaning_of(kind("x")) is meaning
