"""Holders race for the same rows on a real Postgres; nothing stale may get in, and weak checks are seen."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg import (
    FencedTransaction,
    PostgresFence,
    create_pool,
    fenced_execute,
    fenced_fetchrow,
    install,
    translate,
)
from lockguard_lab.fence_race import (
    ISOLATIONS,
    NATIVE,
    PLANTED,
    PLANTED_ISOLATIONS,
    PROTECTED,
    WAYS,
    RacePlan,
    RaceReport,
    Way,
    convict,
    race,
)
from lockguard_lab.fence_race.defaults import role_defaults
from lockguard_lab.fence_race.planted import WEAK_CHECKS
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_lab.fence_race.writes import CLOSING, CLOSING_STATEMENT, LAZY
from lockguard_lab.fence_race.writes_first import FIRST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.servers import PostgresServer

# The long runs are made with `lockguard fence race --embedded --total 210000 --planted`.
WRITES_A_RUN = int(os.environ.get("LOCKGUARD_RACE_WRITES", "200"))


@pytest.fixture
async def url(database_url: str) -> str:
    conn = await asyncpg.connect(database_url)
    await install(conn)
    await conn.close()
    return database_url


@pytest.fixture
def bouncer(postgres_server: PostgresServer, url: str) -> Iterator[str]:
    """The URL of the same database through PgBouncer in transaction mode, over few server connections."""
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt install pgbouncer")
    with PgBouncer(postgres_server) as pooler:
        yield pooler.url_for(url)


def went_on(report: RaceReport) -> None:
    """The race was sound, and it was one: writes got in and writes were refused."""
    assert report.sound, report
    assert report.counts["committed"] > 0
    assert report.counts["refused"] > 0
    resolved = report.counts["unknown, had committed"] + report.counts["unknown, had not"]
    assert report.counts["unknown"] == resolved


levels = pytest.mark.parametrize("isolation", ISOLATIONS)

WHOLE_PRODUCT = os.environ.get("LOCKGUARD_CONTRACT") == "all"
"""Each way at each isolation both directly and through a pooler. By default each way goes through the pooler
at one isolation and directly at the others: any two of way, isolation and route meet in a race."""


def through_the_pooler(way: Way) -> list[Any]:
    """The isolations at which a way is raced there; without a transaction it has the role's own."""
    return [*ISOLATIONS] if WHOLE_PRODUCT else [ISOLATIONS[WAYS.index(way) % len(ISOLATIONS)]]


def cells(way: Way, *, pooled: bool) -> list[Any]:
    through = through_the_pooler(way)
    if pooled:
        return through
    return [one for one in ISOLATIONS if WHOLE_PRODUCT or one not in through]


def raced(*, pooled: bool) -> Any:
    """What one of the two routes is raced with."""
    return pytest.mark.parametrize(
        ("way", "isolation"),
        [
            pytest.param(way, isolation, id=f"{way.name}-{isolation}")
            for way in WAYS
            for isolation in cells(way, pooled=pooled)
        ],
    )


@raced(pooled=False)
async def test_no_stale_write_commits(url: str, way: Way, isolation: Any) -> None:
    went_on(await race(url, RacePlan(writes=WRITES_A_RUN, isolation=isolation), way, direct=url))


@raced(pooled=True)
async def test_no_stale_write_commits_through_a_transaction_pooler(
    bouncer: str, url: str, way: Way, isolation: Any
) -> None:
    plan = RacePlan(writes=WRITES_A_RUN, isolation=isolation)
    went_on(await race(bouncer, plan, way, pooler=True, direct=url))


def test_any_two_of_way_isolation_and_route_meet_in_a_race() -> None:
    met = {
        (way.name, isolation, pooled)
        for way in WAYS
        for pooled in (False, True)
        for isolation in cells(way, pooled=pooled)
    }
    assert {(way, isolation) for way, isolation, _ in met} == {(w.name, i) for w in WAYS for i in ISOLATIONS}
    assert {(way, pooled) for way, _, pooled in met} == {(w.name, p) for w in WAYS for p in (False, True)}
    assert {met_there[1:] for met_there in met} == {(i, p) for i in ISOLATIONS for p in (False, True)}


# Options that change how a lease is sealed and closed, and how a write is sent, and who races with them.
RACERS = {
    (PostgresFence, "durable_close"): LAZY,
    (PostgresFence, "seal_with_first_write"): FIRST,
    (FencedTransaction, "closes"): CLOSING,
    (fenced_execute, "closes"): CLOSING_STATEMENT,
    (fenced_fetchrow, "closes"): CLOSING_STATEMENT,
}
# They change how long somebody waits, who is told, and what it is done to.
WITHOUT = {"pool", "target", "lease", "isolation", "query", "args", "also", "timeout"}
WITHOUT |= {"grace", "listen", "limits", "timeout_s"}


@pytest.mark.parametrize("offers", [PostgresFence, FencedTransaction, fenced_execute, fenced_fetchrow])
def test_each_option_that_changes_how_is_sealed_written_or_closed_has_a_racer(offers: Any) -> None:
    options = set(inspect.signature(offers).parameters) - WITHOUT
    raced_with = {option: RACERS.get((offers, option)) for option in options}
    assert all(way in WAYS for way in raced_with.values()), raced_with


async def test_what_is_raced_at_an_isolation_has_it_as_the_roles_default_by_every_way_in(
    bouncer: str, url: str
) -> None:
    asked = "select current_setting('transaction_isolation') || current_setting('transaction_deferrable')"

    async def found() -> list[Any]:
        return [await _asked(way_in, asked) for way_in in (url, bouncer)]

    assert await found() == 2 * ["read committedoff"]
    async with role_defaults(url, bouncer, "serializable"):
        assert await found() == 2 * ["serializableon"]
    assert await _asked(url, asked) == "read committedoff"


async def _asked(url: str, query: str) -> Any:
    conn = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return await conn.fetchval(query)
    finally:
        await conn.close()


async def test_a_lone_statement_has_no_isolation_of_its_own_through_a_pooler(bouncer: str) -> None:
    with pytest.raises(ConfigurationError, match="through a pooler"):
        await race(bouncer, RacePlan(writes=1, isolation="serializable"), NATIVE, pooler=True)


# What looks sound and is not. If the race did not see them, it would prove nothing of ours.


@pytest.mark.parametrize(
    ("way", "isolation"),
    [
        pytest.param(way, isolation, id=f"{way.name}-{isolation}")
        for number, way in enumerate(PLANTED)
        for isolation in (
            PLANTED_ISOLATIONS if WHOLE_PRODUCT or way in WEAK_CHECKS else [PLANTED_ISOLATIONS[number % 2]]
        )
    ],
)
async def test_a_weak_check_write_close_or_seal_is_seen(url: str, way: Way, isolation: Any) -> None:
    verdict = await convict(url, way, RacePlan(writes=400, isolation=isolation))
    assert verdict.convicted, f"not one stale commit was seen: {verdict.report}"


async def test_a_table_whose_guard_takes_no_lock_is_seen(url: str) -> None:
    """The guard's own lock is what holds: without it the claim alone lets stale writes in."""
    conn = await asyncpg.connect(url)
    try:
        writes_the_guard = "lockguard.statement_guard(regclass,text,text[],bigint)"
        source = await conn.fetchval("select pg_get_functiondef($1::regprocedure::oid)", writes_the_guard)
        assert "for share" in source
        # On a busy machine it may be over before the next holder seals: it stays a while behind its look.
        await conn.execute(source.replace("for share", "and pg_sleep(0.02)::text is not null"))
    finally:
        await conn.close()
    verdict = await convict(url, PROTECTED, RacePlan(writes=800))
    assert verdict.convicted, f"not one stale commit was seen: {verdict.report}"


# The classic interleavings, one by one.


async def by_transaction(conn: Any, lease: Lease, isolation: Any) -> None:
    async with FencedTransaction(conn, lease, isolation=isolation):
        await conn.execute(INSERT)


async def by_statement(conn: Any, lease: Lease, isolation: Any) -> None:
    await fenced_execute(conn, INSERT, lease=lease)


async def by_old_code(conn: Any, lease: Lease, isolation: Any) -> None:
    task = asyncio.current_task()
    assert task is not None
    mark = enter_scope(LeaseScope(lease, task, object()))
    try:
        async with conn.transaction(isolation=isolation):
            await conn.execute(INSERT)
    finally:
        exit_scope(mark)


async def by_hand(conn: Any, lease: Lease, isolation: Any) -> None:
    claim = json.dumps({lease.resource: [lease.token, lease.grant.id]})
    async with conn.transaction(isolation=isolation):
        await conn.execute(f"set local lockguard.leases = '{claim}'")
        await conn.execute(INSERT)


INSERT = "insert into entry values ('r')"


@levels
@pytest.mark.parametrize("write", [by_transaction, by_statement, by_old_code, by_hand])
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooler"])
async def test_an_insert_after_the_successor_has_closed_is_refused(
    url: str, isolation: Any, write: Any, pooled: bool, request: pytest.FixtureRequest
) -> None:
    target, options = url, {}
    if pooled:
        target, options = request.getfixturevalue("bouncer"), {"statement_cache_size": 0}
    within = timedelta(seconds=5)
    async with create_pool(target, min_size=0, max_size=4, **options) as pool:
        await pool.execute("create table entry (resource text)")
        if write is by_hand:  # nothing but the table's own check
            await pool.execute("select lockguard.protect('entry', '{resource}')")
        fence = PostgresFence(pool)
        old, new = (Grant(Resource("r"), new_grant_id(), Token(n), "host", "open", 10_000) for n in (1, 2))
        lease = Lease(old, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        await fence.seal(old, within=within)
        async with pool.acquire() as conn:
            await write(conn, lease, isolation)
            await fence.seal(new, within=within)
            await fence.close(new, within=within)
            with pytest.raises((StaleToken, asyncpg.PostgresError)) as caught:
                await write(conn, lease, isolation)
        refusal = translate(caught.value)
        assert isinstance(refusal, StaleToken)
        assert (refusal.presented, refusal.current) == (1, 2)
        assert await pool.fetchval("select count(*) from entry") == 1


@levels
@pytest.mark.parametrize("write", [by_transaction, by_old_code, by_hand])
async def test_the_seal_waits_for_an_open_transaction_of_the_old_holder(
    url: str, isolation: Any, write: Any
) -> None:
    """And what that transaction wrote is there when the seal returns."""
    async with create_pool(url, min_size=0, max_size=4) as pool:
        await pool.execute("create table entry (resource text)")
        await pool.execute("select lockguard.protect('entry', '{resource}')")
        fence, within = PostgresFence(pool), timedelta(seconds=5)
        old, new = (Grant(Resource("r"), new_grant_id(), Token(n), "host", "open", 10_000) for n in (1, 2))
        await fence.seal(old, within=within)
        lease = Lease(old, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        written, go_on = asyncio.Event(), asyncio.Event()

        class Paused:
            """The connection, with a stop between the write and the COMMIT."""

            def __init__(self, conn: Any) -> None:
                self.conn = conn

            def __getattr__(self, name: str) -> Any:
                return getattr(self.conn, name)

            async def execute(self, query: str) -> None:
                await self.conn.execute(query)
                if query == INSERT:
                    written.set()
                    await go_on.wait()

        async with pool.acquire() as conn:
            writing = asyncio.create_task(write(Paused(conn._con), lease, isolation))
            await written.wait()
            sealing = asyncio.create_task(fence.seal(new, within=within))
            waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
            async with asyncio.timeout(5):
                while not await pool.fetchval(waits):
                    await asyncio.sleep(0.005)
            assert not sealing.done()
            go_on.set()
            await writing
            await sealing
            assert await pool.fetchval("select count(*) from entry") == 1
