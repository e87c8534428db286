"""The drivers of the fence, each behind one small class, so that the same laws can be asked of all of them.

A driver has a pool whose connections are fenced, a fence that seals on it, and its own ways to write one row.
"""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import asyncpg
import psycopg
import sqlalchemy
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError
from lockguard.ports import Sealed
from lockguard_asyncpg import PostgresFence, fenced
from lockguard_asyncpg.sqlalchemy import fenced_engine
from lockguard_postgres.testing import MemoryFence, unfenced
from lockguard_psycopg import AsyncFencedConnection, FencedConnection, PsycopgFence
from tests.integration.fence_leases import SOON

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from lockguard.ports import Fence

__all__ = ["DRIVERS", "INSERT", "TABLES", "WITH_SQL", "Driver", "Session", "held"]

Ways: TypeAlias = "dict[str, Callable[[Any], Awaitable[None]]]"
INSERT = "insert into note (id, text) values (1, 'x')"
"""What every way to write does, however it is sent."""


TABLES = """
    create table note (id int primary key, text text);
    create function note_written() returns int language sql
      as $$ insert into note (id, text) values (1, 'x') returning id $$;
    create table position (exchange text, symbol text, quantity int);
    select lockguard.protect('position', '{exchange}:{symbol}');
"""
"""What the laws are asked of; the fence's schema has to be there."""


class Session(ABC):
    """One connection of a driver."""

    @abstractmethod
    async def run(self, statement: str) -> None:
        """Run a statement; outside of a transaction it is committed."""

    @abstractmethod
    async def value(self, query: str) -> Any:
        """The only value that a query gives."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A transaction of the driver's own; inside another one, a savepoint."""


class Driver(ABC):
    """A driver on one database.

    Attributes:
        ways: each way to write, by its name: runs :data:`INSERT` and commits.
        fence: what seals the leases.
        refusals: what it may raise for a text whose writes would escape the fence.
    """

    ways: ClassVar[Ways]
    refusals: ClassVar[tuple[type[Exception], ...]] = (ConfigurationError,)
    fence: Fence

    def __init__(self, url: str) -> None:
        self.url = url
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._begin(self._stack)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def _begin(self, stack: AsyncExitStack) -> None:
        """Make the pool and the fence, to be ended with ``stack``."""

    @abstractmethod
    def session(self) -> AbstractAsyncContextManager[Any]:
        """A connection of the fenced pool, as a :class:`Session`."""


# asyncpg


class _AsyncpgSession(Session):
    def __init__(self, conn: Any) -> None:
        self.conn = conn

    async def run(self, statement: str) -> None:
        await self.conn.execute(statement)

    async def value(self, query: str) -> Any:
        return await self.conn.fetchval(query)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self.conn.transaction():
            yield


async def _asyncpg_many(session: _AsyncpgSession) -> None:
    await session.conn.executemany("insert into note (id, text) values ($1, $2)", [(1, "x")])


async def _asyncpg_copy(session: _AsyncpgSession) -> None:
    await session.conn.copy_records_to_table("note", records=[(1, "x")], columns=["id", "text"])


class Asyncpg(Driver):
    """lockguard_asyncpg on a fenced pool."""

    ways: ClassVar[Ways] = {
        "a statement": lambda s: s.run(INSERT),
        "executemany": _asyncpg_many,
        "COPY": _asyncpg_copy,
    }

    async def _begin(self, stack: AsyncExitStack) -> None:
        made = fenced(asyncpg.create_pool(self.url, min_size=0, max_size=5))
        self._pool = await stack.enter_async_context(made)
        self.fence = await stack.enter_async_context(PostgresFence(self._pool))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_AsyncpgSession]:
        async with self._pool.acquire() as conn:
            yield _AsyncpgSession(conn)


# psycopg, asynchronous


class _PsycopgSession(Session):
    def __init__(self, conn: psycopg.AsyncConnection[Any]) -> None:
        self.conn = conn

    async def run(self, statement: str) -> None:
        await self.conn.execute(statement.encode())
        if not self.conn.autocommit and not self.conn._num_transactions:
            await self.conn.commit()

    async def value(self, query: str) -> Any:
        row = await (await self.conn.execute(query.encode())).fetchone()
        assert row is not None
        if not self.conn.autocommit and not self.conn._num_transactions:
            await self.conn.commit()
        return row[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self.conn.transaction():
            yield


def _committed(way: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    @functools.wraps(way)
    async def written(session: _PsycopgSession) -> None:
        await way(session.conn)
        if not session.conn.autocommit:  # or it would commit what the fence's layer has left open
            await session.conn.commit()

    return written


async def _psycopg_statement(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("insert into note (id, text) values (%s, 'x')", [1])


async def _psycopg_prepared(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("insert into note (id, text) values (%s, 'x')", [1], prepare=True)


async def _psycopg_many(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.cursor().executemany("insert into note (id, text) values (%s, %s)", [(1, "x")])


async def _psycopg_copy(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.cursor().copy("copy note (id, text) from stdin") as copy:
        await copy.write_row((1, "x"))


async def _psycopg_stream(conn: psycopg.AsyncConnection[Any]) -> None:
    async for _ in conn.cursor().stream(f"{INSERT} returning id"):
        pass


async def _psycopg_pipeline(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.pipeline():
        await conn.execute(INSERT)
        await conn.execute("select 1")


async def _psycopg_pipelined_transaction(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.pipeline(), conn.transaction():
        await conn.execute(INSERT)
        await conn.execute("select 1")


async def _psycopg_server_cursor(conn: psycopg.AsyncConnection[Any]) -> None:
    async with conn.transaction(), conn.cursor("named") as cursor:
        await cursor.execute("select note_written()")
        await cursor.fetchone()


async def _psycopg_text(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("BEGIN")
    try:
        await conn.execute(INSERT)
        await conn.execute("COMMIT")
    except BaseException:
        await conn.execute("ROLLBACK")
        raise


class Psycopg(Driver):
    """lockguard_psycopg, asynchronous."""

    ways: ClassVar[Ways] = {
        "a statement": _committed(_psycopg_statement),
        "a prepared statement": _committed(_psycopg_prepared),
        "executemany": _committed(_psycopg_many),
        "COPY": _committed(_psycopg_copy),
        "stream": _committed(_psycopg_stream),
        "pipeline": _committed(_psycopg_pipeline),
        "a transaction in a pipeline": _committed(_psycopg_pipelined_transaction),
        "a server-side cursor": _committed(_psycopg_server_cursor),
        "BEGIN and COMMIT as text": _committed(_psycopg_text),
    }
    autocommit = False

    async def _begin(self, stack: AsyncExitStack) -> None:
        made = AsyncConnectionPool(
            self.url,
            connection_class=AsyncFencedConnection,
            min_size=1,
            max_size=5,
            open=False,
            kwargs={"autocommit": self.autocommit},
        )
        self._pool = await stack.enter_async_context(made)
        sealing = AsyncConnectionPool(self.url, min_size=1, max_size=3, open=False)
        await stack.enter_async_context(sealing)
        self.fence = await stack.enter_async_context(PsycopgFence(sealing))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_PsycopgSession]:
        async with self._pool.connection() as conn:
            yield _PsycopgSession(conn)


class PsycopgAutocommit(Psycopg):
    """The same in autocommit mode."""

    autocommit = True


# psycopg, synchronous: each call in a thread, in a copy of the context that shows the leases


class _SyncSession(Session):
    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.conn = conn

    async def run(self, statement: str) -> None:
        await asyncio.to_thread(self._run, statement)

    def _run(self, statement: str) -> None:
        self.conn.execute(statement.encode())
        if not self.conn.autocommit and not self.conn._num_transactions:
            self.conn.commit()

    async def value(self, query: str) -> Any:
        return await asyncio.to_thread(self._value, query)

    def _value(self, query: str) -> Any:
        row = self.conn.execute(query.encode()).fetchone()
        assert row is not None
        if not self.conn.autocommit and not self.conn._num_transactions:
            self.conn.commit()
        return row[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        block = self.conn.transaction()
        await asyncio.to_thread(block.__enter__)
        try:
            yield
        except BaseException as exc:
            if not await asyncio.to_thread(block.__exit__, type(exc), exc, exc.__traceback__):
                raise
        else:
            await asyncio.to_thread(block.__exit__, None, None, None)


def _in_thread(way: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    def written(conn: psycopg.Connection[Any]) -> None:
        way(conn)
        if not conn.autocommit:
            conn.commit()

    async def run(session: _SyncSession) -> None:
        await asyncio.to_thread(written, session.conn)

    return run


def _sync_many(conn: psycopg.Connection[Any]) -> None:
    conn.cursor().executemany("insert into note (id, text) values (%s, %s)", [(1, "x")])


def _sync_copy(conn: psycopg.Connection[Any]) -> None:
    with conn.cursor().copy("copy note (id, text) from stdin") as copy:
        copy.write_row((1, "x"))


def _sync_stream(conn: psycopg.Connection[Any]) -> None:
    for _ in conn.cursor().stream(f"{INSERT} returning id"):
        pass


def _sync_pipeline(conn: psycopg.Connection[Any]) -> None:
    with conn.pipeline():
        conn.execute(INSERT)
        conn.execute("select 1")


def _sync_server_cursor(conn: psycopg.Connection[Any]) -> None:
    with conn.transaction(), conn.cursor("named") as cursor:
        cursor.execute("select note_written()")
        cursor.fetchone()


class PsycopgSync(Driver):
    """lockguard_psycopg, synchronous."""

    ways: ClassVar[Ways] = {
        "a statement": _in_thread(lambda conn: conn.execute(INSERT)),
        "executemany": _in_thread(_sync_many),
        "COPY": _in_thread(_sync_copy),
        "stream": _in_thread(_sync_stream),
        "pipeline": _in_thread(_sync_pipeline),
        "a server-side cursor": _in_thread(_sync_server_cursor),
    }
    autocommit = False

    async def _begin(self, stack: AsyncExitStack) -> None:
        made = ConnectionPool(
            self.url,
            connection_class=FencedConnection,
            min_size=1,
            max_size=5,
            open=False,
            kwargs={"autocommit": self.autocommit},
        )
        await asyncio.to_thread(made.open, wait=True)
        stack.push_async_callback(asyncio.to_thread, made.close)
        self._pool = made
        sealing = AsyncConnectionPool(self.url, min_size=1, max_size=3, open=False)
        await stack.enter_async_context(sealing)
        self.fence = await stack.enter_async_context(PsycopgFence(sealing))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_SyncSession]:
        conn = await asyncio.to_thread(self._pool.getconn)
        try:
            yield _SyncSession(conn)
        finally:
            await asyncio.to_thread(self._pool.putconn, conn)


class PsycopgSyncAutocommit(PsycopgSync):
    """The same in autocommit mode."""

    autocommit = True


# SQLAlchemy


_NOTES = sqlalchemy.table("note", sqlalchemy.column("id"), sqlalchemy.column("text"))


class _SQLAlchemySession(Session):
    def __init__(self, conn: AsyncConnection) -> None:
        self.conn = conn

    @asynccontextmanager
    async def _begun(self) -> AsyncIterator[None]:
        if self.conn.in_transaction():
            yield
        else:
            async with self.conn.begin():
                yield

    async def run(self, statement: str) -> None:
        async with self._begun():
            await self.conn.exec_driver_sql(statement)

    async def value(self, query: str) -> Any:
        async with self._begun():
            return (await self.conn.exec_driver_sql(query)).scalar_one()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        if self.conn.in_transaction():
            async with self.conn.begin_nested():
                yield
        else:
            async with self.conn.begin():
                await self.conn.exec_driver_sql("select 1")  # SQLAlchemy sends BEGIN with the first statement
                yield


async def _sqlalchemy_many(session: _SQLAlchemySession) -> None:
    async with session.conn.begin():
        await session.conn.execute(_NOTES.insert(), [{"id": 1, "text": "x"}])


async def _sqlalchemy_session(session: _SQLAlchemySession) -> None:
    async with AsyncSession(session.conn) as orm, orm.begin():
        await orm.run_sync(lambda sync: sync.execute(_NOTES.insert(), {"id": 1, "text": "x"}))


async def _sqlalchemy_stream(session: _SQLAlchemySession) -> None:
    async with session.conn.begin():
        made = await session.conn.stream(sqlalchemy.text(f"{INSERT} returning id"))
        await made.all()


async def _sqlalchemy_autocommit(session: _SQLAlchemySession) -> None:
    conn = await session.conn.execution_options(isolation_level="AUTOCOMMIT")
    await conn.execute(_NOTES.insert(), {"id": 1, "text": "x"})
    await conn.rollback()  # of what SQLAlchemy takes for a transaction


class SQLAlchemy(Driver):
    """An engine of SQLAlchemy over its asyncpg dialect."""

    ways: ClassVar[Ways] = {
        "a statement": lambda s: s.run(INSERT),
        "executemany": _sqlalchemy_many,
        "a session, synchronous code in it": _sqlalchemy_session,
        "stream": _sqlalchemy_stream,
        "AUTOCOMMIT": _sqlalchemy_autocommit,
    }
    refusals = (ConfigurationError, ProgrammingError)  # of prepared statements, which are single ones

    def _make(self) -> AsyncEngine:
        return fenced_engine(create_async_engine(self.url.replace("postgresql:", "postgresql+asyncpg:")))

    async def _begin(self, stack: AsyncExitStack) -> None:
        self._engine = self._make()
        stack.push_async_callback(self._engine.dispose)
        sealing = await stack.enter_async_context(asyncpg.create_pool(self.url, min_size=0, max_size=3))
        self.fence = await stack.enter_async_context(PostgresFence(sealing))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_SQLAlchemySession]:
        async with self._engine.connect() as conn:
            yield _SQLAlchemySession(conn)


class SQLAlchemyPsycopg(SQLAlchemy):
    """The same over its psycopg dialect, whose server-side cursors take no INSERT."""

    ways: ClassVar[Ways] = {name: way for name, way in SQLAlchemy.ways.items() if name != "stream"}

    def _make(self) -> AsyncEngine:
        return create_async_engine(
            "postgresql+psycopg://",
            async_creator=functools.partial(AsyncFencedConnection.connect, self.url),
        )


# The fence in memory, for users' unit tests: the laws that need no SQL


class _MemorySession(Session):
    def __init__(self, driver: Memory) -> None:
        self.driver = driver

    async def run(self, statement: str) -> None:
        """Do what the laws' statements do."""
        note, position, words = self.driver.note, self.driver.position, statement.split()
        match words[:3]:
            case ["insert", "into", "note"]:
                if 1 in note:
                    raise ValueError("duplicate key")
                note[1] = "x"
            case ["delete", "from", "note"] if words[3:] == ["where", "id", "=", "404"]:
                note.pop(404, None)
            case ["delete", "from", "note"]:
                note.clear()
            case ["update", "note", "set"]:
                note.update(dict.fromkeys(note, "y"))
            case ["insert", "into", "position"]:
                symbol = statement.split("'")[3]
                position[symbol] = {"exchange": "binance", "symbol": symbol, "quantity": 1}
            case ["update", "position", "set"]:
                symbol = statement.split("'")[1]
                position[symbol] = {**position[symbol], "quantity": 2}
            case _:
                raise NotImplementedError(statement)

    async def value(self, query: str) -> Any:
        match query.split()[:2]:
            case ["select", "1"]:
                return 1
            case ["select", "count(*)"]:
                return len(self.driver.note)
            case ["select", "text"]:
                return self.driver.note[1]
            case ["select", "sum(quantity)"]:
                return self.driver.position[query.split("'")[1]]["quantity"]
            case _:
                raise NotImplementedError(query)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        async with self.driver.fence.transaction():
            yield


async def _memory_checked(session: _MemorySession) -> None:
    session.driver.fence.check()
    with unfenced():
        session.driver.note[1] = "x"


async def _memory_transaction(session: _MemorySession) -> None:
    with session.driver.fence.transaction():
        session.driver.note.update({1: "x"})


class Memory(Driver):
    """lockguard.testing.MemoryFence and its tables."""

    ways: ClassVar[Ways] = {
        "a row of a table": lambda s: s.run(INSERT),
        "check() before a write of one's own": _memory_checked,
        "a transaction": _memory_transaction,
    }
    fence: MemoryFence

    async def _begin(self, stack: AsyncExitStack) -> None:
        self.fence = MemoryFence()
        self.note = self.fence.table()
        self.position = self.fence.table(protect="{exchange}:{symbol}")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_MemorySession]:
        yield _MemorySession(self)


DRIVERS: dict[str, type[Driver]] = {
    "asyncpg": Asyncpg,
    "psycopg": Psycopg,
    "psycopg-autocommit": PsycopgAutocommit,
    "psycopg-sync": PsycopgSync,
    "psycopg-sync-autocommit": PsycopgSyncAutocommit,
    "sqlalchemy-asyncpg": SQLAlchemy,
    "sqlalchemy-psycopg": SQLAlchemyPsycopg,
    "memory": Memory,
}
"""Every driver, by the name that its tests carry."""

WITH_SQL = [name for name in DRIVERS if name != "memory"]
"""The drivers that send statements, for the laws about what a statement's text or its error does."""


async def held(driver: Driver, resource: str, token: int = 7) -> Lease:
    """A lease of a minute that is sealed."""
    grant = Grant(Resource(resource), new_grant_id(), Token(token), "host/1", "open", 10_000)
    assert isinstance(await driver.fence.seal(grant, within=SOON), Sealed)
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
