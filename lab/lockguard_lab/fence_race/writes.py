"""The ways to write that must never break a law of the race."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS, CommitUnknown, Meaning, NotCommitted, meaning_of, stale
from lockguard_asyncpg._native import fenced_execute
from lockguard_asyncpg._transaction import FencedTransaction
from lockguard_asyncpg._transaction_state import bare, give_back
from lockguard_lab.fence_race.plan import Shape, Way, WriteAttempt
from lockguard_postgres._in_force import unfenced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from contextlib import AbstractAsyncContextManager

    from asyncpg.pool import PoolConnectionProxy
    from asyncpg.transaction import Transaction

    _Connection = asyncpg.Connection[Any]
else:
    _Connection = asyncpg.Connection

__all__ = [
    "ADD",
    "BUMP",
    "CLOSING",
    "CLOSING_STATEMENT",
    "FOREIGN",
    "LAZY",
    "NATIVE",
    "NOTE",
    "SAVEPOINTS",
    "SEEN",
    "TRANSACTION",
    "WRITE_SEEN",
    "LossyConnection",
    "cut_during",
    "filled_in",
    "lossy",
    "plain_transaction",
    "statement",
    "transaction_write",
    "undone",
    "undone_write",
    "write_in",
]


SEEN = "select n from lockguard_race.state where resource = $1"
BUMP = "update lockguard_race.state set n = n + 1, token = $2, op = $3 where resource = $1"
WRITE_SEEN = "update lockguard_race.state set n = $4::bigint + 1, token = $2, op = $3 where resource = $1"
ADD = "insert into lockguard_race.entry (resource, token, op) values ($1, $2, $3)"
"""The plainest writes of a race: resource, token, operation."""
NOTE = "insert into lockguard.outcome (resource, token, sequence) values ($1, $2, $3)"
# Sequence numbers as an earlier version of the library counted; resolve() still knows such records.
_numbers = itertools.count(1)
# The attribute of a connection that counts the statements that it has sent.
_PROTOCOL = "_protocol"
# The attribute that says whether the connection keeps prepared statements.
_CACHES = "_stmt_cache_enabled"


class LossyConnection(_Connection):
    """A connection that, when told to, closes between a COMMIT and its reply."""

    lose_reply: Callable[[], None] | None = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Like asyncpg's, but the reply to COMMIT may be lost."""
        sending = super().execute(query, *args, timeout=timeout)
        lose = self.lose_reply
        if lose is None or not query.endswith("COMMIT;"):
            return await sending
        task = asyncio.ensure_future(sending)
        await asyncio.sleep(0)  # the COMMIT is sent
        self.terminate()
        lose()
        return await task

    def get_reset_query(self) -> str:
        """Like asyncpg's, but keeps the name of the server connection behind a pooler.

        The backends to be killed are found by that name.
        """
        return super().get_reset_query().replace("RESET ALL;", "")


async def statement(attempt: WriteAttempt, conn: Any) -> tuple[str, tuple[object, ...]]:
    """The write and its arguments, after the read that it depends on."""
    lease = attempt.lease
    written = (lease.resource, lease.token, attempt.op)
    match attempt.shape:
        case Shape.UPDATE:
            return BUMP, written
        case Shape.INSERT:
            return ADD, written
        case Shape.READ:
            try:
                seen = await conn.fetchval(SEEN, lease.resource)
            except CommitUnknown as exc:
                raise NotCommitted("the reading's end is unknown, the write was not sent") from exc
            await attempt.pause()
            return WRITE_SEEN, (*written, seen)


def filled_in(query: str, args: tuple[object, ...]) -> str:
    """``query`` with its parameters replaced by numbers and by names that need no escaping."""
    for n, arg in enumerate(args, 1):
        query = query.replace(f"${n}", f"'{arg}'" if isinstance(arg, str) else str(arg))
    return query


@asynccontextmanager
async def lossy(attempt: WriteAttempt) -> AsyncIterator[PoolConnectionProxy[Any]]:
    """A connection that loses the reply to COMMIT if the attempt says so."""
    conn: PoolConnectionProxy[Any] = await attempt.pool.acquire()
    con = bare(conn)
    assert isinstance(con, LossyConnection), f"the race's pool gave out {con!r}"
    con.lose_reply = attempt.lose_reply
    try:
        yield conn
    finally:
        con.lose_reply = None
        await give_back(attempt.pool, conn)


async def transaction_write(attempt: WriteAttempt) -> None:
    """Write in a fenced transaction that pauses."""
    async with (
        lossy(attempt) as conn,
        FencedTransaction(conn, attempt.lease, isolation=attempt.isolation),
    ):
        await attempt.pause()
        query, args = await statement(attempt, conn)
        await conn.execute(query, *args)
        await attempt.pause()


_closed: set[str] = set()


async def closing_write(attempt: WriteAttempt) -> None:
    """Write in a fenced transaction that also closes the grant, which must write nothing afterwards."""
    grant = attempt.lease.grant.id
    done_before = grant in _closed
    async with (
        lossy(attempt) as conn,
        FencedTransaction(conn, attempt.lease, isolation=attempt.isolation, closes=True),
    ):
        await attempt.pause()
        query, args = await statement(attempt, conn)
        await conn.execute(query, *args)
        await attempt.pause()
    if done_before:
        raise AssertionError(f"operation {attempt.op} committed after its own grant had been closed")
    _closed.add(grant)


async def native_write(attempt: WriteAttempt, *, closes: bool = False) -> None:
    """Write with one statement that includes the check."""
    await attempt.pause()
    async with lossy(attempt) as conn:
        con = bare(conn)  # the pool empties its proxy when the server drops the connection
        query, args = await statement(attempt, conn)
        work = fenced_execute(conn, query, *args, lease=attempt.lease, closes=closes)
        if attempt.lose_reply is None or not getattr(con, _CACHES):
            await work  # behind a pooler it is a transaction, whose COMMIT is lost
        else:
            await cut_during(con, work, attempt.lose_reply)


async def closing_statement(attempt: WriteAttempt) -> None:
    """Write in one statement that also closes the grant, which must write nothing afterwards."""
    grant = attempt.lease.grant.id
    done_before = grant in _closed
    await native_write(attempt, closes=True)
    if done_before:
        raise AssertionError(f"operation {attempt.op} committed after its own grant had been closed")
    _closed.add(grant)


async def cut_during(con: Any, work: Coroutine[Any, Any, Any], lose: Callable[[], None]) -> None:
    """Close the connection when the statement of ``work`` is sent, before its reply."""
    protocol, task = getattr(con, _PROTOCOL), asyncio.ensure_future(work)
    before = protocol.queries_count
    while not task.done() and protocol.queries_count == before:  # noqa: ASYNC110 - asyncpg does not tell
        await asyncio.sleep(0)
    if not task.done():
        con.terminate()
        lose()
    await task


async def foreign_write(attempt: WriteAttempt) -> None:
    """Write in fenced transactions, one after the other, inside a plain one on a kept connection.

    Nothing known about the connection from the last lease, the last transaction or the previous fenced one
    may replace the check.
    """
    async with plain_transaction(attempt) as conn:
        if attempt.op % 3 == 0:
            await native_in(attempt, conn)
            return
        if attempt.op % 3 == 1:
            async with FencedTransaction(conn, attempt.lease):
                await conn.fetchval(SEEN, attempt.lease.resource)
            await attempt.pause()
        async with FencedTransaction(conn, attempt.lease):
            await write_in(attempt, conn)
        await attempt.pause()


async def native_in(attempt: WriteAttempt, conn: Any) -> None:
    """A fenced statement in the transaction that ``conn`` is in."""
    query, args = await statement(attempt, conn)
    await fenced_execute(conn, query, *args, lease=attempt.lease)
    await attempt.pause()


async def write_in(attempt: WriteAttempt, conn: Any) -> None:
    """The write, in the transaction that ``conn`` is in."""
    query, args = await statement(attempt, conn)
    await attempt.pause()
    await conn.execute(query, *args)
    await attempt.pause()


async def savepoint_write(attempt: WriteAttempt) -> None:
    """Write after rolling back a savepoint, which also released the lock of a check made inside it."""
    if attempt.op % 2:  # the check is outside of the savepoint and stays valid
        async with (
            lossy(attempt) as conn,
            FencedTransaction(conn, attempt.lease, isolation=attempt.isolation),
        ):
            await undone(attempt, conn, conn.transaction())
            await write_in(attempt, conn)
        return
    async with plain_transaction(attempt) as conn:
        await undone(attempt, conn, FencedTransaction(conn, attempt.lease))
        await attempt.pause()
        async with FencedTransaction(conn, attempt.lease):
            await write_in(attempt, conn)


class _Undo(Exception):
    """Rolls a savepoint back."""


async def undone(attempt: WriteAttempt, conn: Any, savepoint: AbstractAsyncContextManager[Any]) -> None:
    """Write in a savepoint, and roll it back."""
    with contextlib.suppress(_Undo):
        async with savepoint:
            await conn.execute(*undone_write(attempt))
            await attempt.pause()
            raise _Undo


def undone_write(attempt: WriteAttempt) -> tuple[str, str, int, int]:
    """A write that is to be rolled back; the sign of its operation marks it."""
    query = ADD if attempt.shape is Shape.INSERT else BUMP
    return query, attempt.lease.resource, attempt.lease.token, -attempt.op


@asynccontextmanager
async def plain_transaction(attempt: WriteAttempt) -> AsyncIterator[PoolConnectionProxy[Any]]:
    """A transaction on the holder's own connection, opened as by an application that knows nothing of leases.

    Its outcome is noted without the fence's functions, so that a lost reply can be resolved; such a note
    makes other transactions fail at SERIALIZABLE.
    """
    lease, sequence = attempt.lease, next(_numbers)
    conn = await attempt.kept.take()
    # Kept bare: the pool empties its proxy when the server drops the connection.
    con = bare(conn)
    assert isinstance(con, LossyConnection), f"the race's pool gave out {con!r}"
    con.lose_reply = attempt.lose_reply
    try:
        with unfenced():
            transaction = conn.transaction(isolation=attempt.isolation)
            await transaction.start()
        try:
            if attempt.notes:
                with unfenced():
                    await conn.execute(NOTE, lease.resource, lease.token, sequence)
            yield conn
        except BaseException as exc:
            await _roll_back(con, transaction)
            if (refusal := stale(exc)) is not None:
                raise refusal from exc
            raise
        try:
            await transaction.commit()
        except DATABASE_ERRORS as exc:
            if meaning_of(exc) is Meaning.LOST:
                raise CommitUnknown(resource=lease.resource, token=lease.token, sequence=sequence) from exc
            raise
    finally:
        con.lose_reply = None


async def _roll_back(con: Any, transaction: Transaction) -> None:
    """Roll back; a connection that cannot even do that has lost the transaction anyway."""
    if not con.is_closed():
        try:
            with unfenced():
                await transaction.rollback()
        except DATABASE_ERRORS:
            con.terminate()


TRANSACTION = Way("transaction", transaction_write)
CLOSING = Way("transaction that closes", closing_write)
FOREIGN = Way("fenced in a plain transaction", foreign_write)
SAVEPOINTS = Way("after a savepoint rolled back", savepoint_write)
NATIVE = Way("statement", native_write, transacts=False)
LAZY = Way(
    "statement, the close not waiting for the disk",
    native_write,
    transacts=False,
    fence=partial(PostgresFence, durable_close=False),
)
CLOSING_STATEMENT = Way("statement that closes", closing_statement, transacts=False)
