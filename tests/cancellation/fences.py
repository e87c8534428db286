"""The fence in Postgres, by each driver: its own calls, the ways to write, and the schema."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any, ClassVar

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from lockguard import LockGuard
from lockguard._lease import Grant, Lease, Resource, new_grant_id
from lockguard_asyncpg import (
    SCHEMA_VERSION,
    PostgresFence,
    create_pool,
    fenced,
    fenced_execute,
    fenced_fetch,
    fenced_fetchrow,
    fenced_fetchval,
    fenced_transaction,
    findings,
    install,
    protect,
    protections,
    resolve,
    schema_version,
    uninstall,
    unprotect,
    update_if_version,
    watched,
)
from lockguard_asyncpg.sqlalchemy import fenced_engine
from lockguard_lab.fence_race.running import NOISE_OF_CONNECTING, NOISE_OF_COPY
from lockguard_postgres.testing import MemoryFence
from tests.cancellation.locks import LockWorld
from tests.cancellation.worlds import Row, World, for_a_day
from tests.integration.fence_leases import SOON, grant_of, held, lease_of, under, unknown

__all__ = ["AsyncpgWorld", "MemoryWorld", "PostgresWorld", "SQLAlchemyWorld", "SchemaWorld"]

INSERT = "insert into note values (1)"
STANDING = Resource("x")
"""Under its lease rows write; it is held all the time."""
PASSING = Resource("y")
"""Its leases are what rows seal, close and break: open or not afterwards, and no hindrance to the next."""
TABLES = """
    create table note (id int);
    create table setting (id int primary key, version int not null, text text);
    create table guarded (symbol text, price int);
    create table seen (symbol text, price int);
    insert into setting values (1, 1, '');
"""
_BUSY = """
    select format('%s: %s %s', application_name, state, left(query, 60)) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'
       and backend_type = 'client backend'
    union all
    select format('advisory lock of %s', pid) from pg_locks
     where locktype = 'advisory'
       and database = (select oid from pg_database where datname = current_database())
    union all
    select format('%s is open', resource) from lockguard.fence
     where released_at is null and resource <> all($1)
"""


class PostgresWorld(LockWorld):
    """A database with the fence in it, and a connection to look with; ``driver`` makes what is used."""

    needs = frozenset({"database_url"})
    noise = (NOISE_OF_COPY, NOISE_OF_CONNECTING)
    open_for_rows: ClassVar[tuple[Resource, ...]] = (STANDING, PASSING)

    async def begin(self, stack: AsyncExitStack) -> None:
        self.look = await asyncpg.connect(
            self.servers.database_url, server_settings={"application_name": "looks"}
        )
        stack.push_async_callback(self.look.close)
        await install(self.look)
        await self.look.execute(TABLES)
        self.tokens = itertools.count(8)
        await self.driver(stack)
        await super().begin(stack)

    def new_guard(self, **options: Any) -> LockGuard:
        return super().new_guard(fence=self.fence, **options)

    async def driver(self, stack: AsyncExitStack) -> None:
        """Make the driver's pool and its fence."""
        options = {"server_settings": {"application_name": "plain"}}
        self.plain = await stack.enter_async_context(
            asyncpg.create_pool(self.servers.database_url, min_size=2, max_size=2, **options)
        )
        self.fence: Any = await stack.enter_async_context(PostgresFence(self.plain))
        self.lease = for_a_day((await held(self.plain, 7, STANDING)).grant)

    async def left(self) -> list[str]:
        busy = [row[0] for row in await self.look.fetch(_BUSY, list(self.open_for_rows))]
        return [*await super().left(), *busy, *self.lent()]

    def lent(self) -> list[str]:
        """Connections that were not given back."""
        return (
            [] if self.plain.get_idle_size() == self.plain.get_size() else ["a connection of the plain pool"]
        )

    async def works(self) -> None:
        async with self.guard.hold("works", wait=timedelta(seconds=1)):
            await self.write()
        async with asyncio.timeout(5), self.plain.acquire(), self.plain.acquire():
            pass

    async def write(self) -> None:
        await fenced_execute(self.plain, INSERT)


class AsyncpgWorld(PostgresWorld):
    """lockguard_asyncpg: a fenced pool, and a plain one."""

    async def driver(self, stack: AsyncExitStack) -> None:
        options = {"server_settings": {"application_name": "fenced"}}
        made = create_pool(self.servers.database_url, min_size=2, max_size=2, **options)
        self.pool = await stack.enter_async_context(made)
        await super().driver(stack)

    def lent(self) -> list[str]:
        idle = self.pool.get_idle_size() == self.pool.get_size()
        return [*super().lent(), *([] if idle else ["a connection of the fenced pool"])]

    async def write(self) -> None:
        await self.pool.execute(INSERT)
        async with asyncio.timeout(5), self.pool.acquire(), self.pool.acquire():
            pass


def on_fenced(way: Any) -> Any:
    """A row's call: on a connection of the fenced pool, under the standing lease."""

    async def call(world: AsyncpgWorld) -> None:
        with under(world.lease):
            async with world.pool.acquire() as conn:
                await way(conn)

    return call


async def prepared(conn: Any) -> None:
    statement = await conn.prepare("insert into note values ($1)")
    await statement.fetch(1)


async def in_a_transaction(conn: Any) -> None:
    async with conn.transaction():
        await conn.execute(INSERT)
        async with conn.transaction():
            await conn.execute(INSERT)


async def with_a_cursor(conn: Any) -> None:
    async with conn.transaction():
        async for _ in conn.cursor("insert into note values (1) returning id"):
            pass


async def copied(conn: Any) -> None:
    await conn.copy_records_to_table("note", records=[(1,), (2,)])


async def through_the_pool(world: AsyncpgWorld) -> None:
    with under(world.lease):
        await world.pool.execute(INSERT)


async def through_a_new_pool(world: AsyncpgWorld) -> None:
    async with create_pool(world.servers.database_url, min_size=1, max_size=1) as pool:
        with under(world.lease):
            await pool.execute(INSERT)


async def through_a_pool_made_fenced(world: AsyncpgWorld) -> None:
    async with asyncpg.create_pool(world.servers.database_url, min_size=1, max_size=1) as plain:
        with under(world.lease):
            await fenced(plain).execute(INSERT)


async def in_a_fenced_transaction(world: PostgresWorld) -> None:
    async with fenced_transaction(world.plain, world.lease) as conn:
        await conn.execute(INSERT)
        await conn.fetch("select 1")


async def passing_lease(world: PostgresWorld) -> None:
    """A new lease, sealed."""
    grant = grant_of(next(world.tokens), PASSING)
    await world.fence.seal(grant, within=SOON)
    world.state = lease_of(grant)


async def closing(world: PostgresWorld) -> None:
    async with fenced_transaction(world.plain, world.state, closes=True) as conn:
        await conn.execute(INSERT)


async def written_under_a_hold(world: Any) -> None:
    async with world.guard.hold("binance:APTUSDT"):
        await world.write()


# The fence's own calls


async def sealed(world: PostgresWorld) -> None:
    await world.fence.seal(grant_of(next(world.tokens), PASSING), within=SOON)


async def handed_on(world: PostgresWorld) -> None:
    """The next seal takes the close along, or it is made by itself."""
    grant = world.state.grant
    seal = f"{world.fence._attached.here()._name} {grant.token:d}"
    known = Grant(grant.resource, grant.id, grant.token, "", "", 10_000, seal)
    await world.fence.hand_on(known, new_grant_id(), within=SOON)


async def listening(world: PostgresWorld) -> None:
    async with PostgresFence(world.plain, listen=world.servers.database_url) as fence:
        await fence.seal(grant_of(next(world.tokens), PASSING), within=SOON)
        await fence.listening()


async def looked_up(world: PostgresWorld) -> None:
    lease: Lease = world.state
    assert await resolve(world.plain, unknown(lease, 99), within=SOON) is False


FENCE_CALLS = {
    "seal": (sealed, None),
    "close": (lambda w: w.fence.close(w.state.grant, within=SOON), passing_lease),
    "hand_on": (handed_on, passing_lease),
    "break_": (lambda w: w.fence.break_(PASSING, reason="test", within=SOON), passing_lease),
    "break_grant": (lambda w: w.fence.break_grant(w.state.grant, reason="test", within=SOON), passing_lease),
    "confirm": (lambda w: w.fence.confirm(w.state.grant, within=SOON), passing_lease),
}
PORTS = {
    "confirm": "lockguard.ports.AnsweringFence",
    "break_grant": "lockguard.ports.ComparingFence",
    "hand_on": "lockguard.ports.RelayFence",
}


def fence_rows(kind: str, calls: Any = tuple(FENCE_CALLS)) -> tuple[Row, ...]:
    """The calls of a fence of this class."""
    return tuple(
        Row(
            (f"{kind}.{name}", f"{PORTS.get(name, 'lockguard.ports.Fence')}.{name}"),
            FENCE_CALLS[name][0],
            FENCE_CALLS[name][1],
        )
        for name in calls
    )


CONNECTION = "lockguard_asyncpg.FencedConnection"
AsyncpgWorld.rows = (
    Row(("lockguard.LockGuard.hold",), written_under_a_hold, name="a write under a hold, by asyncpg"),
    Row(("lockguard_asyncpg.create_pool",), through_a_new_pool),
    Row(("lockguard_asyncpg.fenced",), through_a_pool_made_fenced),
    Row((CONNECTION,), through_the_pool, name="FencedConnection by the pool"),
    Row((CONNECTION,), on_fenced(lambda c: c.execute(INSERT)), name="FencedConnection.execute"),
    Row(
        (CONNECTION,),
        on_fenced(lambda c: c.fetch("insert into note values ($1) returning id", 1)),
        name="FencedConnection.fetch",
    ),
    Row(
        (CONNECTION,),
        on_fenced(lambda c: c.executemany("insert into note values ($1)", [(1,), (2,)])),
        name="FencedConnection.executemany",
    ),
    Row((CONNECTION,), on_fenced(copied), name="FencedConnection.copy_records_to_table"),
    Row((f"{CONNECTION}.execute_plain",), on_fenced(lambda c: c.execute_plain("select 1"))),
    Row((f"{CONNECTION}.prepare",), on_fenced(prepared)),
    Row((f"{CONNECTION}.reset",), on_fenced(lambda c: c.reset())),
    Row((f"{CONNECTION}.transaction",), on_fenced(in_a_transaction)),
    Row((f"{CONNECTION}.cursor",), on_fenced(with_a_cursor)),
    Row(
        (
            "lockguard_asyncpg.FencedTransaction.__aenter__",
            "lockguard_asyncpg.FencedTransaction.__aexit__",
            "lockguard_asyncpg.fenced_transaction",
        ),
        in_a_fenced_transaction,
    ),
    Row(
        ("lockguard_asyncpg.fenced_transaction",),
        closing,
        passing_lease,
        name="fenced_transaction that closes",
    ),
    Row(("lockguard_asyncpg.fenced_execute",), lambda w: fenced_execute(w.plain, INSERT, lease=w.lease)),
    Row(
        ("lockguard_asyncpg.fenced_execute",),
        lambda w: fenced_execute(w.plain, INSERT, lease=w.state, closes=True),
        passing_lease,
        name="fenced_execute that closes",
    ),
    Row(
        ("lockguard_asyncpg.fenced_fetch",),
        lambda w: fenced_fetch(w.plain, f"{INSERT} returning id", lease=w.lease),
    ),
    Row(
        ("lockguard_asyncpg.fenced_fetchrow",),
        lambda w: fenced_fetchrow(w.pool, f"{INSERT} returning id", lease=w.lease),
    ),
    Row(
        ("lockguard_asyncpg.fenced_fetchval",),
        lambda w: fenced_fetchval(w.plain, f"{INSERT} returning id", lease=w.lease),
    ),
    Row(("lockguard_asyncpg.resolve",), looked_up, passing_lease),
    *fence_rows("lockguard_asyncpg.PostgresFence"),
    Row(
        tuple(
            f"lockguard_asyncpg.PostgresFence.{name}"
            for name in ("__aenter__", "__aexit__", "aclose", "listening")
        ),
        listening,
    ),
)


class SchemaWorld(PostgresWorld):
    """What sets a database up, on a connection of its own."""

    conn: asyncpg.Connection[Any]

    async def begin(self, stack: AsyncExitStack) -> None:
        await super().begin(stack)
        await self.connected()
        stack.push_async_callback(self.end)

    async def end(self) -> None:
        await self.conn.close()

    async def connected(self) -> None:
        self.conn = await asyncpg.connect(self.servers.database_url)

    async def works(self) -> None:
        if self.conn.is_closed():
            await self.connected()
        assert not self.conn.is_in_transaction(), "the connection is in a transaction"
        await self.conn.execute("select 1")


async def with_version(world: SchemaWorld) -> None:
    row = await world.look.fetchrow("select version from setting")
    assert row is not None
    world.state = row["version"]


async def version_kept(world: SchemaWorld) -> list[str]:
    row = await world.look.fetchrow("select version, text from setting")
    assert row is not None
    made = row["version"] == world.state + 1 and row["text"] == str(world.state)
    return [] if made or row["version"] == world.state else [f"a row {row!r}"]


async def all_protected_or_not(world: SchemaWorld) -> list[str]:
    """A protection is there whole or not at all."""
    damaged = await findings(world.look)
    await world.look.execute("select lockguard.unprotect('guarded')")
    return [f"finding {finding}" for finding in damaged if finding.table == "guarded" and finding.grave]


async def protected(world: SchemaWorld) -> None:
    await protect(world.look, "guarded", resource="{symbol}")


async def seen(world: SchemaWorld) -> None:
    if not await world.look.fetchval(
        "select count(*) from lockguard.protections() where relation like '%seen'"
    ):
        await protect(world.look, "seen", resource="{symbol}", watch=True)


SchemaWorld.rows = (
    Row(("lockguard_asyncpg.install",), lambda w: install(w.conn)),
    Row(("lockguard_asyncpg.schema_version",), lambda w: schema_version(w.conn)),
    Row(
        ("lockguard_asyncpg.protect",),
        lambda w: protect(w.conn, "guarded", resource="{symbol}"),
        judge=all_protected_or_not,
    ),
    Row(
        ("lockguard_asyncpg.unprotect",),
        lambda w: unprotect(w.conn, "guarded"),
        protected,
        all_protected_or_not,
    ),
    Row(("lockguard_asyncpg.protections",), lambda w: protections(w.conn)),
    Row(("lockguard_asyncpg.findings",), lambda w: findings(w.conn)),
    Row(("lockguard_asyncpg.watched",), lambda w: watched(w.conn), seen),
    Row(
        ("lockguard_asyncpg.update_if_version",),
        lambda w: update_if_version(
            w.conn, "setting", key={"id": 1}, version=w.state, values={"text": str(w.state)}
        ),
        with_version,
        version_kept,
    ),
)


class EmptyDatabaseWorld(World):
    """A database without the fence, for what brings it and takes it away."""

    needs = frozenset({"database_url"})
    noise = (NOISE_OF_CONNECTING,)

    async def begin(self, stack: AsyncExitStack) -> None:
        self.look = await asyncpg.connect(self.servers.database_url)
        stack.push_async_callback(self.look.close)
        self.conn = await asyncpg.connect(self.servers.database_url)
        stack.push_async_callback(self.end)

    async def end(self) -> None:
        await self.conn.close()

    async def left(self) -> list[str]:
        return [
            row[0]
            for row in await self.look.fetch(
                "select format('%s %s', state, left(query, 60)) from pg_stat_activity where datname ="
                " current_database() and pid <> pg_backend_pid() and state <> 'idle'"
                " and backend_type = 'client backend'"
            )
        ]

    async def works(self) -> None:
        if self.conn.is_closed():
            self.conn = await asyncpg.connect(self.servers.database_url)
        assert not self.conn.is_in_transaction(), "the connection is in a transaction"
        found = await schema_version(self.look)
        assert found in (0, SCHEMA_VERSION), f"half a schema, of version {found}"


EmptyDatabaseWorld.rows = (
    Row(
        ("lockguard_asyncpg.install",),
        lambda w: install(w.conn),
        lambda w: uninstall(w.look),
        name="the first install",
    ),
    Row(("lockguard_asyncpg.uninstall",), lambda w: uninstall(w.conn), lambda w: install(w.look)),
)


# SQLAlchemy


class SQLAlchemyWorld(PostgresWorld):
    """A fenced engine over asyncpg."""

    engine: AsyncEngine

    async def driver(self, stack: AsyncExitStack) -> None:
        url = self.servers.database_url.replace("postgresql://", "postgresql+asyncpg://", 1)
        self.engine = fenced_engine(create_async_engine(url, pool_size=2, max_overflow=0))
        stack.push_async_callback(self.engine.dispose)
        await super().driver(stack)

    def lent(self) -> list[str]:
        pool: Any = self.engine.pool
        return [*super().lent(), *(["a connection of the engine"] if pool.checkedout() else [])]

    async def write(self) -> None:
        async with self.engine.begin() as first, self.engine.begin():
            await first.execute(text(INSERT))


async def in_a_session(world: SQLAlchemyWorld) -> None:
    with under(world.lease):
        async with AsyncSession(world.engine) as session:
            await session.execute(text(INSERT))
            await session.commit()


ENGINE = "lockguard_asyncpg.sqlalchemy.fenced_engine"
SQLAlchemyWorld.rows = (
    Row((ENGINE,), in_a_session),
    Row((ENGINE,), written_under_a_hold, name="a write under a hold, by SQLAlchemy"),
)


# In memory


class MemoryWorld(World):
    """A guard and a fence in memory."""

    async def begin(self, stack: AsyncExitStack) -> None:
        self.tokens = itertools.count(8)
        self.fence = MemoryFence()
        self.note = self.fence.table()
        self.guard = await stack.enter_async_context(LockGuard.in_memory(fence=self.fence))

    async def works(self) -> None:
        async with self.guard.hold("works", wait=timedelta(0)):
            await self.write()

    async def write(self) -> None:
        async with self.fence.transaction():
            self.note[1] = "x"
        self.note.clear()


memory = "lockguard_postgres.testing.MemoryFence"
MemoryWorld.rows = (
    Row(
        ("lockguard.LockGuard.in_memory", f"{memory}.transaction"),
        written_under_a_hold,
        name="a write under a hold, in memory",
    ),
    *fence_rows(memory, ("seal", "close", "break_", "break_grant", "confirm")),
)
