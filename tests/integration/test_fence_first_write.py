"""A seal that travels with the first write: what it asks the database, and that it lets in nothing stale."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import LeaseLost, StaleToken
from lockguard.ports import Sealed
from lockguard_asyncpg import (
    PostgresFence,
    SealUnknown,
    create_pool,
    fenced_execute,
    fenced_fetchval,
    fenced_transaction,
    install,
    unfenced,
)
from lockguard_asyncpg._schema import steps
from lockguard_lab.child_process import signal_child
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.servers import FaultProxy
from lockguard_postgres._unsealed import UNSEALED
from tests.integration.fence_leases import APT, SOON, blocked, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from lockguard_lab.servers import PostgresServer

INSERT = "insert into note values ($1)"
ROW = "select token, is_open from lockguard.status('binance:APTUSDT')"
# Those that made the rows as they are now.
TRANSACTIONS = """
    select count(distinct x) from (
      select xmin::text as x from note union all select xmin::text from lockguard.writer
      union all select xmin::text from lockguard.fence) rows_
"""
COUNT = "select count(*) from note"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=12) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key)")
        yield pool


@pytest.fixture
def fence(pool: asyncpg.Pool[Any]) -> PostgresFence:
    return PostgresFence(pool, seal_with_first_write=True)


@pytest.fixture
async def guard(fence: PostgresFence, redis_url: str) -> AsyncIterator[LockGuard]:
    async with LockGuard.from_url(redis_url, fence=fence) as guard:
        yield guard


def grant_of(token: int, resource: Resource = APT) -> Grant:
    return Grant(resource, new_grant_id(), Token(token), "host/1 'x' \\", "open", 10_000)


async def unsealed(fence: PostgresFence, token: int = 7) -> Lease:
    grant = grant_of(token)
    assert await fence.seal(grant, within=SOON) == Sealed(grant.token)
    return lease_of(grant)


async def sealed(pool: asyncpg.Pool[Any], token: int) -> Lease:
    lease = lease_of(grant_of(token))
    assert await PostgresFence(pool).seal(lease.grant, within=SOON) == Sealed(lease.token)
    return lease


async def row(pool: asyncpg.Pool[Any]) -> tuple[int, bool] | None:
    with unfenced():  # or looking at it would seal it
        found = await pool.fetchrow(ROW)
    return None if found is None else (found["token"], found["is_open"])


async def in_one_message(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    await fenced_execute(pool, INSERT, 1, lease=lease)


async def in_a_transaction(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute(INSERT, 1)
        async with conn.transaction():
            await conn.execute(INSERT, 2)
        async with fenced_transaction(conn, lease):
            await fenced_execute(conn, INSERT, 3, lease=lease)


async def and_closing(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    await fenced_execute(pool, INSERT, 1, lease=lease, closes=True)


async def in_a_closing_transaction(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    async with fenced_transaction(pool, lease, closes=True) as conn:
        await conn.execute(INSERT, 1)


WAYS = [in_one_message, in_a_transaction, and_closing, in_a_closing_transaction]
each_way = pytest.mark.parametrize("write", WAYS)


# What it asks


async def test_a_body_that_presents_its_lease_nowhere_asks_the_database_nothing(
    pool: asyncpg.Pool[Any], redis_url: str, database_url: str, postgres_server: PostgresServer
) -> None:
    async with (
        FaultProxy(postgres_server.port) as proxy,
        asyncpg.create_pool(proxy.url_for(database_url), min_size=1, max_size=1) as through,
        LockGuard.from_url(redis_url, fence=PostgresFence(through, seal_with_first_write=True)) as guard,
    ):
        async with guard.hold(APT):  # once, it asks which fence this is
            pass
        before = proxy.to_server.received_bytes
        for _ in range(3):
            async with guard.hold(APT) as lease:
                assert UNSEALED.waits(lease.grant.id)
            assert not UNSEALED.waits(lease.grant.id)
        assert proxy.to_server.received_bytes == before
    assert await row(pool) is None


async def test_the_lock_remembers_a_seal_only_once_its_write_has_committed(
    pool: asyncpg.Pool[Any], guard: LockGuard
) -> None:
    """Or the next one would be refused, for a seal that this database has never confirmed."""
    async with guard.hold(APT) as lease:
        assert lease.grant.seal == ""
    async with guard.hold(APT) as lease:
        await fenced_execute(pool, INSERT, 1)
        assert lease.grant.seal.endswith(f" {lease.token}")
        remembered = lease.grant.seal
    async with guard.hold(APT) as lease:
        assert lease.grant.seal == remembered
    async with guard.hold(APT) as lease:
        async with fenced_transaction(pool, closes=True) as conn:
            await conn.execute(INSERT, 2)
        remembered = lease.grant.seal
        assert remembered.endswith(f" {lease.token}")
    async with guard.hold(APT) as lease:
        assert lease.grant.seal == remembered


@pytest.mark.parametrize("way", ["a write by itself", "a transaction"])
async def test_a_database_that_does_not_know_the_last_seal_takes_no_first_write(
    pool: asyncpg.Pool[Any], guard: LockGuard, way: str
) -> None:
    """An old primary, or one that lost commits."""
    async with guard.hold(APT):
        await fenced_execute(pool, INSERT, 1)
    await pool.execute("alter table lockguard.fence disable trigger keep_monotone")
    await pool.execute("update lockguard.fence set token = token - 1000")
    await pool.execute("alter table lockguard.fence enable always trigger keep_monotone")
    async with guard.hold(APT):
        with pytest.raises(SealUnknown):
            if way == "a transaction":
                async with fenced_transaction(pool):
                    raise AssertionError("unreachable")
            await fenced_execute(pool, INSERT, 2)
    assert await pool.fetchval(COUNT) == 1


@pytest.mark.parametrize("closes", [False, True])
async def test_a_first_write_to_another_fenced_database_is_refused_and_stops_nobody(
    pool: asyncpg.Pool[Any],
    guard: LockGuard,
    redis_url: str,
    database_url: str,
    postgres_server: PostgresServer,
    closes: bool,
) -> None:
    """Sealed there it would stay open, and its own database would not know what the lock remembers."""
    name = f"{database_url.rpartition('/')[2]}_other"
    url = postgres_server.create_database(name)
    try:
        async with create_pool(url, min_size=0, max_size=2) as other:
            async with other.acquire() as conn:
                await install(conn)
                await conn.execute("create table note (id int primary key)")
            with pytest.raises(LeaseLost):
                async with guard.hold(APT):
                    with pytest.raises(StaleToken):
                        await fenced_execute(other, INSERT, 1, closes=closes)
                    await asyncio.Event().wait()  # cut: the lease has ended
            assert await row(other) is None
            assert await other.fetchval(COUNT) == 0
        async with guard.hold(APT):
            await fenced_execute(pool, INSERT, 2)
    finally:
        postgres_server.drop_database(name)


async def test_beside_a_schema_that_takes_no_first_write_each_lease_is_sealed_at_once(
    database_url: str, redis_url: str
) -> None:
    async with create_pool(database_url, min_size=0, max_size=4) as pool:
        async with pool.acquire() as conn:
            for step in steps()[:8]:
                await conn.execute(step.sql)
                await conn.execute("insert into lockguard.schema_version (version) values ($1)", step.version)
            await conn.execute("create table note (id int primary key)")
        fence = PostgresFence(pool, seal_with_first_write=True)
        async with LockGuard.from_url(redis_url, fence=fence) as guard, guard.hold(APT) as lease:
            assert await row(pool) == (lease.token, True)
            await fenced_execute(pool, INSERT, 1)


@pytest.mark.parametrize("how", ["native", "drop-in", "drop-in text"])
async def test_a_first_write_by_itself_is_one_transaction_with_its_seal(
    pool: asyncpg.Pool[Any], guard: LockGuard, how: str
) -> None:
    async with guard.hold(APT) as lease:
        assert await row(pool) is None
        match how:
            case "native":
                assert await fenced_fetchval(pool, "insert into note values ($1) returning id", 1) == 1
            case "drop-in":
                assert await pool.execute(INSERT, 1) == "INSERT 0 1"
            case _:
                assert await pool.execute("insert into note values (1)") == "INSERT 0 1"
        assert await row(pool) == (lease.token, True)
        with unfenced():
            assert await pool.fetchval(TRANSACTIONS) == 1
        await pool.execute(INSERT, 2)  # the next one needs no seal
    assert await row(pool) == (lease.token, False)
    with pytest.raises(StaleToken, match="closed"):
        await fenced_execute(pool, INSERT, 3, lease=lease_of(lease.grant))


@each_way
async def test_every_way_to_write_first_seals_and_nothing_older_is_accepted_after_it(
    pool: asyncpg.Pool[Any], fence: PostgresFence, write: Callable[..., Awaitable[None]]
) -> None:
    before = await sealed(pool, 6)
    lease = await unsealed(fence)
    await write(pool, lease)
    assert await pool.fetchval(COUNT) >= 1
    assert not UNSEALED.waits(lease.grant.id)
    assert (await row(pool)) == (7, write in (in_one_message, in_a_transaction))
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, 9, lease=lease_of(before.grant))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@each_way
async def test_at_the_other_levels_of_isolation_it_is_sealed_by_itself(
    pool: asyncpg.Pool[Any], fence: PostgresFence, level: str, write: Callable[..., Awaitable[None]]
) -> None:
    name = await pool.fetchval("select current_database()")
    await pool.execute(f"alter database {name} set default_transaction_isolation = '{level}'")
    await pool.expire_connections()
    lease = await unsealed(fence)
    await write(pool, lease)
    assert (await row(pool)) == (7, write in (in_one_message, in_a_transaction))


@each_way
async def test_it_works_through_a_pooler_in_transaction_mode(
    pool: asyncpg.Pool[Any],
    postgres_server: PostgresServer,
    database_url: str,
    write: Callable[..., Awaitable[None]],
) -> None:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with PgBouncer(postgres_server) as pooler:
        options: dict[str, Any] = {"min_size": 0, "max_size": 4, "statement_cache_size": 0}
        async with create_pool(pooler.url_for(database_url), **options) as through:
            fence = PostgresFence(through, seal_with_first_write=True)
            await write(through, await unsealed(fence))
    assert (await row(pool)) == (7, write in (in_one_message, in_a_transaction))


# Who is in the way


@each_way
async def test_a_first_write_waits_for_what_its_predecessor_has_under_way(
    pool: asyncpg.Pool[Any], fence: PostgresFence, write: Callable[..., Awaitable[None]]
) -> None:
    before = await sealed(pool, 6)
    async with fenced_transaction(pool, before) as conn:
        await conn.execute("insert into note values (100)")
        writing = asyncio.ensure_future(
            write(pool, await unsealed(PostgresFence(pool, grace=SOON, seal_with_first_write=True)))
        )
        await blocked(pool)
        assert not writing.done()
    await writing
    assert await pool.fetchval(COUNT) >= 2


_STOPPED = """
    import asyncio, os, signal, sys
    from datetime import timedelta
    import asyncpg
    from lockguard import detached, LockGuard
    from lockguard_asyncpg import PostgresFence, fenced_execute, fenced_transaction

    async def main(redis_url, postgres_url, state):
        pool = await asyncpg.create_pool(postgres_url, min_size=1, max_size=4)
        fence = PostgresFence(pool, seal_with_first_write=True)
        async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=1), fence=fence) as guard:
            async with guard.hold("binance:APTUSDT"):
                if state == "open":
                    async with fenced_transaction(pool) as conn:
                        await conn.execute("insert into note values (1)")
                        print("in", flush=True)
                        os.kill(os.getpid(), signal.SIGSTOP)
                elif state == "in flight":
                    task = asyncio.create_task(
                        fenced_execute(pool, "insert into note select 1 from pg_sleep($1)", 60))
                    asleep = "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"
                    while not await pool.fetchval(asleep):
                        await asyncio.sleep(0.005)
                    print("in", flush=True)
                    os.kill(os.getpid(), signal.SIGSTOP)
                else:
                    print("in", flush=True)
                    os.kill(os.getpid(), signal.SIGSTOP)
                    await fenced_execute(pool, "insert into note values (1)")

    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("state", ["unsealed", "open", "in flight"])
async def test_a_stopped_holder_is_taken_over_by_a_first_write_within_its_ttl_and_a_second(
    pool: asyncpg.Pool[Any], fence: PostgresFence, database_url: str, redis_url: str, state: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", textwrap.dedent(_STOPPED), redis_url, database_url, state),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 20) == b"in\n"
        began = SYSTEM_CLOCK.now()
        async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=1), fence=fence) as guard:
            async with guard.hold(APT, wait=SOON):
                await fenced_execute(pool, INSERT, 2)
                took = SYSTEM_CLOCK.now() - began
            signal_child(process, signal.SIGCONT)  # what it does now is stale
            _, said = await asyncio.wait_for(process.communicate(), 20)
    finally:
        signal_child(process, signal.SIGKILL)
        await process.wait()
    assert process.returncode != 0, said
    assert await pool.fetchval("select array_agg(id) from note") == [2]
    assert took < 3.0


async def test_first_writes_of_one_body_at_once_all_succeed_and_none_is_ended(
    pool: asyncpg.Pool[Any], fence: PostgresFence
) -> None:
    """The others wait for the first one, as long as it takes; nobody has it ended as one that stays."""
    lease = await unsealed(fence)
    async with pool.acquire() as other:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("insert into note values (0), (1), (2)")
        writing = [asyncio.create_task(fenced_execute(pool, INSERT, n, lease=lease)) for n in range(3)]
        await blocked(pool)
        done, _ = await asyncio.wait(writing, timeout=1.2)  # more than the grace
        assert not done
        await transaction.rollback()
    await asyncio.gather(*writing)
    assert await pool.fetchval(COUNT) == 3
