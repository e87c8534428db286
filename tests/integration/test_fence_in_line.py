"""Who seals or breaks stands in line: nothing new gets past, and nobody stays for ever."""

from __future__ import annotations

import asyncio
import signal
import sys
import textwrap
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Token, new_grant_id
from lockguard.errors import FenceUnavailable, LockguardError, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import APT, SOON, blocked, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LATE = timedelta(seconds=30)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool


@pytest.mark.parametrize("asks", ["seal", "break_", "close"])
async def test_nothing_new_of_the_old_grant_gets_in_once_somebody_asks(
    pool: asyncpg.Pool[Any], asks: str
) -> None:
    """A holder that writes in parallel: each new transaction overlaps the one before."""
    old, fence = grant_of(7), PostgresFence(pool, grace=LATE)
    await fence.seal(old, within=SOON)
    transaction = fenced_transaction(pool, lease_of(old))
    await transaction.__aenter__()
    match asks:
        case "seal":
            asking = asyncio.ensure_future(fence.seal(grant_of(8), within=SOON))
        case "break_":
            asking = asyncio.ensure_future(fence.break_(APT, reason="test", within=SOON))
        case _:
            asking = asyncio.ensure_future(fence.close(old, within=SOON))
    await blocked(pool, f"lockguard.{asks}")

    async def write() -> None:
        async with fenced_transaction(pool, lease_of(old)) as conn:
            await conn.execute("insert into note values (2)")

    late = [asyncio.ensure_future(write()) for _ in range(3)]
    await blocked(pool, "lockguard.check", len(late))
    assert not asking.done()
    await transaction.__aexit__(None, None, None)
    await asking
    outcomes = await asyncio.gather(*late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StaleToken] * len(late)
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_late_sealer_waits_for_nobody_and_ends_nobodys_session(pool: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(pool, grace=timedelta(milliseconds=50))
    await fence.seal(grant_of(8), within=SOON)
    rightful = grant_of(9)
    await fence.seal(rightful, within=SOON)
    async with fenced_transaction(pool, lease_of(rightful)) as conn:
        await conn.execute("insert into note values (1)")
        assert await fence.seal(grant_of(7), within=SOON) == Outrun(Token(9))
        await fence.close(grant_of(7), within=SOON)
        assert await pool.fetchval("select lockguard.evict($1, 9)", APT) == 0
    assert await pool.fetchval("select count(*) from note") == 1


async def test_the_transactions_that_keep_a_seal_waiting_are_listed(pool: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(pool, grace=LATE)
    old, other = grant_of(7), grant_of(7, "other")
    await fence.seal(old, within=SOON)
    await fence.seal(other, within=SOON)
    async with fenced_transaction(pool, lease_of(old)) as conn, fenced_transaction(pool, lease_of(other)):
        pid = await conn.fetchval("select pg_backend_pid()")
        rows = await pool.fetch("select pid, state from lockguard.under_way($1)", APT)
        assert [tuple(row) for row in rows] == [(pid, "idle in transaction")]
        named = rf"kept out for 2 s by session {pid} \(postgres, no application_name, idle in transaction\)"
        with pytest.raises(FenceUnavailable, match=named):
            await fence.seal(grant_of(8), within=timedelta(seconds=2))


async def test_a_transaction_may_present_a_thousand_leases(pool: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(pool)
    grants = [grant_of(7, f"r{n}") for n in range(1000)]
    async with pool.acquire() as conn:
        await conn.execute(
            "select lockguard.seal(r, 7, g, '', '', 5000) from unnest($1::text[], $2::uuid[]) as x (r, g)",
            [g.resource for g in grants],
            [g.id for g in grants],
        )
    async with fenced_transaction(pool, [lease_of(g) for g in grants]) as conn:
        held = await conn.fetchval(
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
        )
        assert held == 1000
    assert await fence.seal(grant_of(8, "r0"), within=SOON) == Sealed(Token(8))


class _Stopping(asyncpg.Connection[Any] if TYPE_CHECKING else asyncpg.Connection):
    """Goes no further once its answer has come, as a process that is stopped there, until it is woken."""

    woken: asyncio.Event

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        row = await super().fetchrow(query, *args, **options)
        if "fence_id" not in query:  # asked once, before the first seal
            await self.woken.wait()
        return row


@pytest.mark.parametrize("what", ["break_", "seal that is outrun"])
async def test_who_stops_between_its_answer_and_commit_keeps_nobody_out(
    pool: asyncpg.Pool[Any], database_url: str, what: str
) -> None:
    await PostgresFence(pool).seal(grant_of(7), within=SOON)
    _Stopping.woken = asyncio.Event()
    async with asyncpg.create_pool(database_url, min_size=0, connection_class=_Stopping) as stopping:
        fence = PostgresFence(stopping)
        asks: Any = (
            fence.break_(APT, reason="test", within=LATE)
            if what == "break_"
            else fence.seal(grant_of(6), within=LATE)
        )
        stopped = asyncio.create_task(asks)
        in_line = (
            "select count(*) from pg_locks l join pg_stat_activity a using (pid)"
            " where l.locktype = 'advisory' and a.state = 'idle in transaction'"
            " and a.datname = current_database()"
        )
        try:
            async with asyncio.timeout(5):
                while not await pool.fetchval(in_line):
                    await asyncio.sleep(0.005)
            assert await PostgresFence(pool).seal(grant_of(8), within=SOON) == Sealed(Token(8))
        finally:
            _Stopping.woken.set()
        assert await stopped == Outrun(Token(8)) if what != "break_" else await stopped > 8


# A holder whose process was stopped

_STOPPED = """
    import asyncio, os, signal, sys
    from datetime import timedelta
    import asyncpg
    from lockguard import LockGuard
    from lockguard_asyncpg import PostgresFence, fenced_transaction

    TTL = timedelta(seconds=1)

    async def main(redis_url, postgres_url, state):
        pool = await asyncpg.create_pool(postgres_url, min_size=1, max_size=4)
        async with LockGuard.from_url(redis_url, ttl=TTL, fence=PostgresFence(pool)) as guard:
            async with guard.hold("x"), fenced_transaction(pool) as conn:
                match state:
                    case "between Parse and Bind":
                        work = conn.fetchval("select $1::int", 1)
                    case "ClientWrite":
                        work = conn.execute("select repeat('x', 1000) from generate_series(1, 100000)")
                    case "PgSleep":
                        work = conn.execute("select pg_sleep(60)")
                    case "COPY":
                        async def endless():
                            yield b"1\\n"
                            await asyncio.Event().wait()
                        work = conn.copy_to_table("note", source=endless())
                    case "cursor":
                        cursor = await conn.cursor("select generate_series(1, 1000)")
                        work = cursor.fetch(10)
                    case "COMMIT":
                        other = fenced_transaction(pool)
                        await (await other.__aenter__()).execute("insert into note values (1)")
                        work = other.__aexit__(None, None, None)
                    case _:
                        work = asyncio.sleep(0)
                task = asyncio.create_task(work)
                for _ in range(3):
                    await asyncio.sleep(0)
                print("in", flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)

    asyncio.run(main(*sys.argv[1:]))
"""


_SLOW_TO_COMMIT = """
    create table note (id int);
    create function slowly() returns trigger language plpgsql
      as 'begin perform pg_sleep(60); return null; end';
    create constraint trigger slow after insert on note deferrable initially deferred
      for each row execute function slowly();
"""
_BACKEND = """
    select count(*) from pg_stat_activity
     where datname = current_database() and state = $1 and wait_event = $2 and xact_start is not null
"""


@pytest.mark.parametrize(
    ("state", "backend"),
    [
        ("idle", ("idle in transaction", "ClientRead")),
        ("between Parse and Bind", ("active", "ClientRead")),
        ("ClientWrite", ("active", "ClientWrite")),
        ("PgSleep", ("active", "PgSleep")),
        ("COPY", ("active", "ClientRead")),
        ("cursor", ("idle in transaction", "ClientRead")),
        ("COMMIT", ("active", "PgSleep")),
    ],
)
async def test_a_stopped_holder_is_taken_over_within_its_ttl_and_a_second_whatever_its_backend_does(
    any_server: PostgresServer, redis_url: str, state: str, backend: tuple[str, str]
) -> None:
    name = f"test_{new_grant_id()[:12]}"
    url = any_server.create_database(name)
    async with asyncpg.create_pool(url, min_size=1, max_size=4) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(_SLOW_TO_COMMIT)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", textwrap.dedent(_STOPPED), redis_url, url, state),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            assert await asyncio.wait_for(process.stdout.readline(), 20) == b"in\n"
            began = SYSTEM_CLOCK.now()
            async with asyncio.timeout(0.9):
                while not await pool.fetchval(_BACKEND, *backend):
                    await asyncio.sleep(0.005)
            async with (
                LockGuard.from_url(redis_url, ttl=timedelta(seconds=1), fence=PostgresFence(pool)) as guard,
                guard.hold("x", wait=SOON),
            ):
                took = SYSTEM_CLOCK.now() - began
        finally:
            signal_child(process, signal.SIGKILL)
            await process.wait()
    any_server.drop_database(name)
    assert took < 2.0


async def test_the_session_of_another_role_is_ended_with_the_owners_rights(
    postgres_server: PostgresServer, pool: asyncpg.Pool[Any]
) -> None:
    """Two bots of two roles: neither may end the other's sessions, the schema's owner may."""
    names = [f"bot_{new_grant_id()[:8]}" for _ in range(2)]
    for name in names:
        await pool.execute(f"create role {name} login password 'secret'; grant lockguard_app to {name}")
    database = await pool.fetchval("select current_database()")
    urls = [postgres_server.url_for(database, user=name, password="secret") for name in names]
    pools = [await asyncpg.create_pool(url, min_size=0, max_size=3) for url in urls]
    try:
        old = grant_of(7)
        await PostgresFence(pools[0]).seal(old, within=SOON)
        left_open = fenced_transaction(pools[0], lease_of(old))
        await left_open.__aenter__()
        assert await PostgresFence(pools[1]).seal(grant_of(8), within=SOON) == Sealed(Token(8))
        with pytest.raises((LockguardError, *_LOST)):
            await left_open.__aexit__(None, None, None)
    finally:
        for one in pools:
            one.terminate()
        for name in names:
            await pool.execute(f"drop owned by {name}; drop role {name}")


_LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)

# A transaction left open at the end of a body


async def test_a_transaction_left_open_is_named_and_the_fence_is_closed_when_it_ends(
    pool: asyncpg.Pool[Any],
) -> None:
    old, fence = grant_of(7), PostgresFence(pool)
    await fence.seal(old, within=SOON)
    left_open = fenced_transaction(pool, lease_of(old))
    await left_open.__aenter__()
    began = SYSTEM_CLOCK.now()
    named = r"session \d+ \(.*, idle in transaction\), an open transaction under its lease begun"
    with pytest.raises(FenceUnavailable, match=named) as said:
        await fence.close(old, within=SOON)
    assert SYSTEM_CLOCK.now() - began < 2.5  # a second, and telling who it was
    assert "previous holder" not in str(said.value)
    await left_open.__aexit__(None, None, None)
    async with asyncio.timeout(8):
        while await pool.fetchval("select is_open from lockguard.status($1)", APT):
            await asyncio.sleep(0.01)


async def test_an_exhausted_pool_is_named(database_url: str, pool: asyncpg.Pool[Any]) -> None:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=1) as small, small.acquire():
        with pytest.raises(FenceUnavailable, match="all 1 connections of its pool were in use"):
            await PostgresFence(small).seal(grant_of(7), within=timedelta(milliseconds=300))
