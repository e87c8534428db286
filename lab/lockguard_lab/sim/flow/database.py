"""The connections of the flow's store to the model of its tables, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import asyncpg

from lockguard import Lease
from lockguard.errors import StaleToken
from lockguard_asyncpg import CommitUnknown
from lockguard_lab.sim.flow.records import Row, name_of
from lockguard_lab.sim.flow.tables import Tables
from lockguard_lab.sim.postgres import Postgres
from lockguard_lab.sim.world import EPOCH_S, Process

__all__ = ["Database", "Pool", "SimTransaction", "fenced_fetchrow", "give_back", "resolve"]

Moved = list[tuple[dict[str, Any] | None, dict[str, Any]]]


class Database:
    """The tables, beside the fence in one simulated Postgres.

    Args:
        postgres: keeps the fence's rows.

    Attributes:
        tables: what is committed.
        up: whether it takes connections and answers.
        answers_lost: how likely the answer to a commit is lost.
        on_commit: called with the rows of positions before and after each commit, the token of the write, and
            its process.
    """

    def __init__(self, postgres: Postgres) -> None:
        self.postgres, self.world = postgres, postgres.world
        self.tables = Tables(lambda: round((EPOCH_S + self.world.now) * 1_000_000))
        self.up = True
        self.answers_lost = 0.0
        self.statements = 0
        self.on_commit: Callable[[Moved, int, Process], None] = lambda *_: None
        self.committed: set[int] = set()
        self._numbers = 0

    def pool(self, process: Process) -> Pool:
        """What a process has in place of an asyncpg pool."""
        return Pool(self, process)

    def commit(self, changed: Tables, token: int, process: Process) -> None:
        """Take over the changes of a transaction."""
        self.on_commit(self.tables.commit(changed), token, process)

    def next_number(self) -> int:
        """The number of a write."""
        self._numbers += 1
        return self._numbers

    async def trip(self, process: Process, work: Callable[[Callable[[Any], None]], None]) -> Any:
        """A round trip to the database.

        Raises:
            asyncpg.ConnectionDoesNotExistError: it went down meanwhile.
        """
        self.statements += 1

        def at_the_server(answer: Callable[[Any], None]) -> None:
            if self.up:
                work(answer)
            else:
                answer(_gone())

        return await self.postgres.trip(process, at_the_server)


def _gone() -> Exception:
    return asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


class Pool:
    """As ``asyncpg.Pool``, as far as the store uses it."""

    def __init__(self, database: Database, process: Process) -> None:
        self.database, self.process = database, process

    async def acquire(self) -> Connection:
        """Lend a connection.

        Raises:
            OSError: the database is down.
        """
        if not self.database.up:
            raise ConnectionRefusedError(111, "Connect call failed")
        return Connection(self)

    async def fetchval(self, text: str, *args: Any) -> Any:
        """The first column of the first row; of ``tick`` only, which changes nothing that the model keeps."""
        raise NotImplementedError(text, args)


class Connection:
    """One connection; inside of a transaction its statements are executed in that."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transaction: _Session | None = None

    async def fetchrow(self, text: str, *args: Any, timeout: float | None = None) -> Row | None:
        """The first row of a statement."""
        rows = await self.fetch(text, *args, timeout=timeout)
        return rows[0] if rows else None

    async def fetchval(self, text: str, *args: Any, timeout: float | None = None) -> Any:
        """The first column of the first row of a statement."""
        row = await self.fetchrow(text, *args, timeout=timeout)
        return None if row is None else row[0]

    async def fetch(self, text: str, *args: Any, timeout: float | None = None) -> list[Row]:
        """The rows of a statement."""
        database, session = self.pool.database, self.transaction

        def work(answer: Callable[[Any], None]) -> None:
            if session is not None and session.over:
                answer(_gone())
            else:
                tables = database.tables if session is None else session.tables
                answer(_tried(lambda: tables.run(name_of(text), args)))

        async with asyncio.timeout(timeout):
            rows: list[Row] = await database.trip(self.pool.process, work)
        return rows


def _tried(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except asyncpg.PostgresError as refused:
        return refused


class _Session:
    """A transaction at the server: it has the fence's row from its check to its end."""

    def __init__(self, database: Database, process: Process, lease: Lease) -> None:
        self.resource, self.token, self.grant = str(lease.resource), int(lease.token), str(lease.grant.id)
        self.tables = Tables(lambda: 0)
        self.over, self.committed = "", False
        self._database, self._process = database, process

    def die(self) -> None:
        """Its process was killed: the server sees the connection's end a moment later."""
        world = self._database.world
        world.after(world.dice.uniform(0, 0.01), lambda: self.abort("the process is gone"))

    def begin(self, then: Callable[[StaleToken | Exception | None], None]) -> None:
        """Lock the fence's row and check the lease."""
        postgres = self._database.postgres

        def locked() -> None:
            row = postgres.row(self.resource)
            if self.over:
                postgres.unlock(self.resource, self)
                then(_gone())
            elif (row.token, row.grant) != (self.token, self.grant) or row.closed:
                self.abort("stale")
                said = f"stale token for {self.resource}: presented {self.token}, current {row.token}"
                stale = StaleToken(said, resource=self.resource, presented=self.token, current=row.token)
                then(stale)
            else:
                postgres.opened(self)
                self.tables = self._database.tables.begin()
                self._process.transports.append(self)
                then(None)

        postgres.lock(self.resource, self, locked)

    def commit(self, number: int) -> None:
        """Make its changes everybody's."""
        self._database.commit(self.tables, self.token, self._process)
        self._database.committed.add(number)
        self.committed = True
        self.abort("committed")

    def abort(self, why: str) -> None:
        """End it; nothing more of it is executed."""
        if not self.over:
            self.over = why
            self._database.postgres.ended(self)
            self._database.postgres.unlock(self.resource, self)
            if self in self._process.transports:
                self._process.transports.remove(self)


class SimTransaction:
    """As ``FencedTransaction``."""

    def __init__(self, conn: Connection, lease: Lease, *, timeout_s: float) -> None:
        self._conn, self._lease, self._timeout_s = conn, lease, timeout_s
        self._session = _Session(conn.pool.database, conn.pool.process, lease)

    async def __aenter__(self) -> Connection:
        self._lease.ensure()
        session = self._session
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._conn.pool.database.trip(self._conn.pool.process, session.begin)
        except BaseException as exc:
            self._leave(exc)
            raise
        self._conn.transaction = session
        return self._conn

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._conn.transaction = None
        session, database = self._session, self._conn.pool.database
        if exc is not None:
            self._leave(exc)
            return
        try:
            self._lease.ensure()
            number = database.next_number()
            lost = database.world.dice.random() < database.answers_lost

            def work(answer: Callable[[Any], None]) -> None:
                if session.over:
                    answer(_gone())
                    return
                session.commit(number)
                answer(_gone() if lost else None)

            async with asyncio.timeout(self._timeout_s):
                await _committed(database.trip(self._conn.pool.process, work), self._lease, number)
        except BaseException as left:
            self._leave(left)
            raise

    def _leave(self, exc: BaseException) -> None:
        world = self._conn.pool.database.world
        world.after(world.dice.uniform(0.0005, 0.005), lambda: self._session.abort("rolled back"))
        if isinstance(exc, StaleToken):
            self._lease.lost_to_fence(exc)


async def _committed(trip: Any, lease: Lease, number: int) -> Any:
    """The answer to what commits.

    Raises:
        CommitUnknown: there was none.
    """
    try:
        return await trip
    except (asyncpg.ConnectionDoesNotExistError, TimeoutError) as exc:
        resource, token = str(lease.resource), int(lease.token)
        raise CommitUnknown(resource=resource, token=token, sequence=number) from exc


async def fenced_fetchrow(
    conn: Connection,
    text: str,
    *args: Any,
    lease: Lease,
    also: Sequence[str] = (),
    timeout: float | None = None,
) -> Row | None:
    """As that of ``lockguard_asyncpg``: the check, the write and the commit are one message."""
    lease.ensure()
    database, process = conn.pool.database, conn.pool.process
    session, number = _Session(database, process, lease), database.next_number()
    lost = database.world.dice.random() < database.answers_lost

    def work(answer: Callable[[Any], None]) -> None:
        def begun(refused: Exception | None) -> None:
            if refused is not None:
                answer(refused)
                return
            rows = _tried(lambda: session.tables.run(name_of(text), args))
            if isinstance(rows, Exception):
                session.abort("refused")
                answer(rows)
                return
            for further in also if rows else ():
                session.tables.also(name_of(further), rows[0], args)
            session.commit(number)
            answer(_gone() if lost else rows[0] if rows else None)

        session.begin(begun)

    try:
        async with asyncio.timeout(timeout):
            row: Row | None = await _committed(database.trip(process, work), lease, number)
    except StaleToken as stale:
        lease.lost_to_fence(stale)
        raise
    return row


async def resolve(pool: Pool, error: CommitUnknown) -> bool:
    """Whether a write whose answer was lost has committed."""
    database = pool.database

    def work(answer: Callable[[Any], None]) -> None:
        def have() -> None:
            database.postgres.unlock(error.resource, owner)
            answer(error.sequence in database.committed)

        owner = object()
        database.postgres.lock(error.resource, owner, have)  # it waits for a write that is still open

    while True:
        try:
            return bool(await database.trip(pool.process, work))
        except asyncpg.ConnectionDoesNotExistError:
            await asyncio.sleep(0.1)


async def give_back(pool: Pool, conn: Connection, *, clean: bool = False) -> None:
    """Nothing is kept."""
