"""Nobody keeps a resource shut by staying at its gate: who can be ended is ended, and who cannot is named."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import FenceUnavailable
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import SCHEMA_VERSION, Limits, PostgresFence, fenced_transaction, install
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._schema import steps
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import APT, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON, SECOND = timedelta(seconds=5), timedelta(seconds=1)
OWN_LOCK = "select pg_advisory_lock(hashtextextended('lockguard:binance:APTUSDT' collate \"C\", 0))"


@dataclass
class Stage:
    """A database with two roles that take part and one that does not, and the owner's connections."""

    server: PostgresServer
    database: str
    owner: asyncpg.Pool[Any]
    bots: asyncpg.Pool[Any]
    roles: tuple[str, str, str]

    async def connect(self, role: str) -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            self.server.url_for(self.database, user=role, password="secret"),
            server_settings={"application_name": "intruder"},
        )


@pytest.fixture
async def stage(any_server: PostgresServer) -> AsyncIterator[Stage]:
    name = f"test_{secrets.token_hex(6)}"
    url = any_server.create_database(name)
    roles = tuple(f"{kind}_{secrets.token_hex(4)}" for kind in ("bot", "other", "stranger"))
    async with asyncpg.create_pool(url, min_size=0, max_size=4) as owner:
        async with owner.acquire() as conn:
            await install(conn)
            for role in roles:
                await conn.execute(f"create role {role} login password 'secret'")
            await conn.execute(f"grant lockguard_app to {roles[0]}, {roles[1]}")
        bot = any_server.url_for(name, user=roles[0], password="secret")
        async with asyncpg.create_pool(bot, min_size=0, max_size=4) as bots:
            yield Stage(any_server, name, owner, bots, roles)
            bots.terminate()
    any_server.drop_database(name)
    async with asyncpg.create_pool(any_server.url, min_size=0, max_size=1) as pool:
        await pool.execute(f"drop role {', '.join(roles)}")


async def until_gate_is_taken(pool: asyncpg.Pool[Any], state: str | None = None) -> None:
    """Until a session has the gate to itself, in ``state``."""
    query = "select count(*) from lockguard.at_the_gate($1) where alone and ($2::text is null or state = $2)"
    async with asyncio.timeout(5):
        while not await pool.fetchval(query, APT, state):
            await asyncio.sleep(0.005)


_ROLES = ("a role of the same rights", "another role", "a role that takes no part")
_HOWS = {
    "the session's lock": OWN_LOCK,
    "the session's shared lock": OWN_LOCK.replace("_lock(", "_lock_shared("),
    "a transaction's lock": "begin;" + OWN_LOCK.replace("_lock(", "_xact_lock("),
    "a break": f"begin; select lockguard.break_('{APT}', 'why', 1000);"
    " set local idle_in_transaction_session_timeout = 0",
}


@pytest.mark.parametrize("whose", _ROLES)
@pytest.mark.parametrize("how", _HOWS)
async def test_a_session_that_stays_at_the_gate_is_ended(stage: Stage, whose: str, how: str) -> None:
    if how == "a break" and whose == _ROLES[2]:
        pytest.skip("it may not call the fence's functions")
    intruder = await stage.connect(stage.roles[_ROLES.index(whose)])
    try:
        await intruder.execute(_HOWS[how])
        fence = PostgresFence(stage.bots, grace=timedelta(milliseconds=100))
        began = SYSTEM_CLOCK.now()
        assert await fence.seal(grant_of(2**50), within=SOON) == Sealed(Token(2**50))
        assert SYSTEM_CLOCK.now() - began < 2
        left = "select count(*) from pg_stat_activity where application_name = 'intruder' and datname = $1"
        assert await stage.owner.fetchval(left, stage.database) == 0
    finally:
        intruder.terminate()


async def test_a_session_that_lives_through_many_transactions_at_the_gate_is_ended(stage: Stage) -> None:
    """It is never idle for long, and each of its transactions is young."""
    intruder = await stage.connect(stage.roles[1])
    await intruder.execute(OWN_LOCK)

    async def be_busy() -> None:
        while True:
            await intruder.execute("select pg_sleep(0.01)")

    busy = asyncio.create_task(be_busy())
    try:
        fence = PostgresFence(stage.bots, grace=timedelta(milliseconds=100))
        assert await fence.seal(grant_of(7), within=SOON) == Sealed(Token(7))
        with pytest.raises(DATABASE_ERRORS):
            await busy
    finally:
        busy.cancel()
        intruder.terminate()


async def test_who_works_at_the_gate_is_left_alone(stage: Stage) -> None:
    """A break whose statement takes its time, say on a slow disk."""
    await PostgresFence(stage.bots).seal(grant_of(7), within=SOON)
    breaking = await stage.connect(stage.roles[1])
    work = asyncio.create_task(
        breaking.execute(
            f"begin; select lockguard.break_('{APT}', 'why', 1000); select pg_sleep(1.2); commit"
        )
    )
    try:
        await until_gate_is_taken(stage.owner)
        fence = PostgresFence(stage.bots, grace=timedelta(milliseconds=100))
        assert isinstance(await fence.seal(grant_of(8), within=SOON), Outrun)
        await work
    finally:
        breaking.terminate()


async def test_a_writer_who_is_kept_out_is_told_where_to_look(stage: Stage) -> None:
    one = grant_of(7)
    await PostgresFence(stage.bots).seal(one, within=SOON)
    intruder = await stage.connect(stage.roles[2])
    try:
        await intruder.execute(OWN_LOCK)
        short = Limits(lock_timeout=timedelta(milliseconds=100))
        with pytest.raises(asyncpg.LockNotAvailableError) as caught:
            async with fenced_transaction(stage.bots, lease_of(one), limits=short):
                raise AssertionError("it is in")
        assert "stood in line at the gate of 'binance:APTUSDT'" in caught.value.__notes__[0]
    finally:
        intruder.terminate()


async def test_a_late_sealer_ends_nobody_at_the_gate(stage: Stage) -> None:
    await PostgresFence(stage.bots).seal(grant_of(8), within=SOON)
    intruder = await stage.connect(stage.roles[0])
    try:
        await intruder.execute(OWN_LOCK)
        assert await stage.bots.fetchval("select lockguard.evict($1, 7)", APT) == 0
        assert await intruder.fetchval("select 1") == 1
    finally:
        intruder.terminate()


async def test_a_session_that_nobody_may_end_is_named_to_who_waits(stage: Stage) -> None:
    """The schema belongs to a role without any right over others, as with many hosted databases."""
    owner = f"owner_{secrets.token_hex(4)}"
    await stage.owner.execute(f"create role {owner} login password 'secret'")
    name = f"test_{secrets.token_hex(6)}"
    stage.server.create_database(name)
    try:
        await stage.owner.execute(f"alter database {name} owner to {owner}")
        conn = await asyncpg.connect(stage.server.url_for(name, user=owner, password="secret"))
        await install(conn, allow=[stage.roles[0]])
        await conn.close()
        superuser = await asyncpg.connect(
            stage.server.url_for(name), server_settings={"application_name": "an evening in psql"}
        )
        bot = stage.server.url_for(name, user=stage.roles[0], password="secret")
        async with asyncpg.create_pool(bot, min_size=0, max_size=3) as bots:
            await superuser.execute(OWN_LOCK)
            pid = await superuser.fetchval("select pg_backend_pid()")
            fence = PostgresFence(bots, grace=timedelta(milliseconds=100))
            named = rf"kept out for 1 s by session {pid} \(postgres, an evening in psql, in a state that .*\)"
            for asking in (
                fence.seal(grant_of(7), within=SECOND),
                fence.break_(APT, reason="x", within=SECOND),
            ):
                with pytest.raises(FenceUnavailable, match=named):
                    await asking
            assert await superuser.fetchval("select 1") == 1
            await superuser.close()
            assert await fence.seal(grant_of(7), within=SOON) == Sealed(Token(7))
    finally:
        stage.server.drop_database(name)
        await stage.owner.execute(f"drop role {owner}")


async def test_a_break_left_open_is_rolled_back_though_nobody_waits(stage: Stage) -> None:
    await PostgresFence(stage.bots).seal(grant_of(7), within=SOON)
    person = await stage.connect(stage.roles[0])
    try:
        await person.execute(f"begin; select lockguard.break_('{APT}', 'why', 1000)")
        async with asyncio.timeout(3):
            while await stage.owner.fetchval("select count(*) from lockguard.at_the_gate($1)", APT):
                await asyncio.sleep(0.02)
        assert await stage.owner.fetchval("select token from lockguard.status($1)", APT) == 7
    finally:
        person.terminate()


async def test_a_stricter_idle_limit_of_the_session_is_kept(stage: Stage) -> None:
    async with stage.bots.acquire() as conn:
        for before, after in (("250ms", "250ms"), ("0", "1s"), ("1min", "1s")):
            async with conn.transaction():
                await conn.execute(f"set idle_in_transaction_session_timeout = '{before}'")
                await conn.execute(f"select lockguard.close('{APT}', 7, gen_random_uuid(), 1000)")
                assert await conn.fetchval("show idle_in_transaction_session_timeout") == after


_OF_THE_ROLE = (
    "statement_timeout = '80ms'",
    "lock_timeout = '20ms'",
    "idle_in_transaction_session_timeout = '700ms'",
    "default_transaction_isolation = 'serializable'",
    "synchronous_commit = off",
    "track_activities = off",
)


@pytest.mark.parametrize("way", ["seal", "break_"])
async def test_settings_of_the_role_keep_nobody_from_taking_over(stage: Stage, way: str) -> None:
    """They are for its own statements; a seal waits for as long as it was told, and keeps its place."""
    for setting in _OF_THE_ROLE:
        # A superuser alone may change the last one, for a role too.
        await stage.owner.execute(f"alter role {stage.roles[0]} set {setting}")
    await stage.bots.expire_connections()
    fence = PostgresFence(stage.bots, grace=timedelta(milliseconds=400))
    await fence.seal(grant_of(7), within=SOON)
    intruder = await stage.connect(stage.roles[1])
    try:
        await intruder.execute(OWN_LOCK)
        asks = (
            fence.seal(grant_of(8), within=SOON)
            if way == "seal"
            else fence.break_(APT, reason="x", within=SOON)
        )
        asking = asyncio.create_task(asks)  # type: ignore[arg-type]
        waits = "select pid from pg_locks where locktype = 'advisory' and not granted and database = $1"
        database = await stage.owner.fetchval(
            "select oid from pg_database where datname = $1", stage.database
        )
        waiting = set()
        while not asking.done():
            waiting.add(await stage.owner.fetchval(waits, database))
            await asyncio.sleep(0.01)
        await asking
        assert len(waiting - {None}) == 1
    finally:
        intruder.terminate()


# From the schemas before, with clients at work


@pytest.mark.parametrize("version", [2, 3])
async def test_an_upgrade_in_place_disturbs_no_client_at_work(
    any_server: PostgresServer, version: int
) -> None:
    name = f"test_{secrets.token_hex(6)}"
    url = any_server.create_database(name)
    async with asyncpg.create_pool(url, min_size=0, max_size=12) as pool:
        async with pool.acquire() as conn:
            for step in steps():
                if step.version <= version:
                    await conn.execute(step.sql)
                    await conn.execute(
                        f"insert into lockguard.schema_version (version) values ({step.version})"
                    )
            await conn.execute("create table note (token bigint, resource text)")
            await conn.execute("select lockguard.protect('note', '{resource}')")
        upgraded = asyncio.Event()

        async def client(number: int) -> int:
            """Take, write and give back on one resource, and supersede the lease before, all the time."""
            resource, fence, done = Resource(f"r{number}"), PostgresFence(pool), 0
            while not (upgraded.is_set() and done >= 5):
                done += 1
                one = Grant(resource, new_grant_id(), Token(done), "host", "open", 10_000)
                assert await fence.seal(one, within=SOON) == Sealed(Token(done))
                async with fenced_transaction(pool, lease_of(one)) as conn:
                    await conn.execute("insert into note values ($1, $2)", done, resource)
                if done % 2:
                    await fence.close(one, within=SOON)
            return done

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        async with asyncio.timeout(10):
            while await pool.fetchval("select count(*) from note") < 20:
                await asyncio.sleep(0.005)
        async with pool.acquire() as conn:
            assert (await install(conn)).before == version
        upgraded.set()
        done = await asyncio.gather(*clients)
        assert await pool.fetchval("select count(*) from note") == sum(done)
    any_server.drop_database(name)


async def test_a_schema_older_than_the_library_works_and_is_told_once(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=3) as pool:
        for version in (2, SCHEMA_VERSION):
            async with pool.acquire() as conn:
                if version == SCHEMA_VERSION:
                    await install(conn)
                for step in steps()[:version] if version == 2 else ():
                    await conn.execute(step.sql)
                    await conn.execute(
                        f"insert into lockguard.schema_version (version) values ({step.version})"
                    )
            caplog.clear()
            fence = PostgresFence(pool)
            for token in (10 * version, 10 * version + 1):
                one = grant_of(token)
                assert await fence.seal(one, within=SOON) == Sealed(Token(token))
                async with fenced_transaction(pool, lease_of(one)):
                    pass
                await fence.close(one, within=SOON)
            told = [record.getMessage() for record in caplog.records if record.name == "lockguard"]
            assert len(told) == (version < SCHEMA_VERSION)
            assert all("run `lockguard fence upgrade`" in line for line in told)
