"""The ways to write that must never break a law of the race."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.context import Entry, pop_entry, push_entry
from lockguard_asyncpg.claims import next_sequence
from lockguard_asyncpg.errors import DATABASE_ERRORS, CommitUnknown, Meaning, NotCommitted, meaning_of, stale
from lockguard_asyncpg.literals import number, text, uuid
from lockguard_asyncpg.native import fenced_execute
from lockguard_asyncpg.race.plan import Attempt, Shape, Way
from lockguard_asyncpg.transaction import FencedTransaction
from lockguard_asyncpg.wire import bare, give_back

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from asyncpg.pool import PoolConnectionProxy

    _Connection = asyncpg.Connection[Any]
else:
    _Connection = asyncpg.Connection

__all__ = ["ADD", "BUMP", "DROP_IN", "NATIVE", "PROTECTED", "SEEN", "TRANSACTION", "WAYS", "LossyConnection"]

SEEN = "select n from lockguard_race.state where resource = $1"
BUMP = "update lockguard_race.state set n = n + 1, token = $2, op = $3 where resource = $1"
_WRITE_SEEN = "update lockguard_race.state set n = $4::bigint + 1, token = $2, op = $3 where resource = $1"
ADD = "insert into lockguard_race.entry (resource, token, op) values ($1, $2, $3)"
"""The plainest writes of a race: resource, token, operation."""
_NOTE = "insert into lockguard.outcome (resource, token, sequence) values ($1, $2, $3)"
# Where a connection keeps what counts the statements that it has sent.
_PROTOCOL = "_protocol"
# Whether it keeps prepared statements.
_CACHES = "_stmt_cache_enabled"


class LossyConnection(_Connection):
    """Cuts itself off between a COMMIT and its reply when it is told to."""

    lose_reply: Callable[[], None] | None = None

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's; the reply to COMMIT may be lost."""
        sending = super().execute(query, *args, timeout=timeout)
        lose = self.lose_reply
        if lose is None or not query.startswith("COMMIT"):
            return await sending
        task = asyncio.ensure_future(sending)
        await asyncio.sleep(0)  # it leaves
        self.terminate()
        lose()
        return await task

    def get_reset_query(self) -> str:
        """As asyncpg's, but for what takes away a server connection's name behind a pooler.

        By that name the backends to be killed are found.
        """
        return super().get_reset_query().replace("RESET ALL;", "")


async def _statement(attempt: Attempt, conn: Any) -> tuple[str, tuple[object, ...]]:
    """The write and its arguments, after the reading that it is founded on."""
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
            return _WRITE_SEEN, (*written, seen)


@asynccontextmanager
async def _lossy(attempt: Attempt) -> AsyncIterator[PoolConnectionProxy[Any]]:
    """A connection that loses the reply to COMMIT if the attempt is to."""
    conn: PoolConnectionProxy[Any] = await attempt.pool.acquire()
    con = bare(conn)
    assert isinstance(con, LossyConnection)
    con.lose_reply = attempt.lose_reply
    try:
        yield conn
    finally:
        con.lose_reply = None
        await give_back(attempt.pool, conn)


async def transaction_write(attempt: Attempt) -> None:
    """Write in a fenced transaction, with pauses in it."""
    async with (
        _lossy(attempt) as conn,
        FencedTransaction(conn, attempt.lease, isolation=attempt.isolation),
    ):
        await attempt.pause()
        query, args = await _statement(attempt, conn)
        await conn.execute(query, *args)
        await attempt.pause()


async def native_write(attempt: Attempt) -> None:
    """Write with the check in the statement."""
    await attempt.pause()
    async with _lossy(attempt) as conn:
        query, args = await _statement(attempt, conn)
        work = fenced_execute(conn, query, *args, lease=attempt.lease)
        if attempt.lose_reply is None or not getattr(bare(conn), _CACHES):
            await work  # behind a pooler it is a transaction, whose COMMIT is lost
        else:
            await _cut_during(bare(conn), work, attempt.lose_reply)


async def _cut_during(con: Any, work: Coroutine[Any, Any, None], lose: Callable[[], None]) -> None:
    """Cut the connection when the statement of ``work`` is sent, before its reply."""
    protocol, task = getattr(con, _PROTOCOL), asyncio.ensure_future(work)
    before = protocol.queries_count
    while not task.done() and protocol.queries_count == before:  # noqa: ASYNC110 - asyncpg tells nobody
        await asyncio.sleep(0)
    if not task.done():
        con.terminate()
        lose()
    await task


async def drop_in_write(attempt: Attempt) -> None:
    """Write as a bot's code does that knows nothing of leases: a statement alone, or a transaction."""
    task = asyncio.current_task()
    assert task is not None
    mark = push_entry(Entry(attempt.lease, task, object()))
    try:
        async with _lossy(attempt) as conn:
            if attempt.alone and attempt.op % 2:
                query, args = await _statement(attempt, conn)
                await conn.execute(query, *args)
                return
            async with conn.transaction(isolation=attempt.isolation):
                query, args = await _statement(attempt, conn)
                await attempt.pause()
                await conn.execute(query, *args)
                await attempt.pause()
    finally:
        pop_entry(mark)


async def protected_write(attempt: Attempt) -> None:
    """Write to protected tables, with the lease carried or with nothing but the table's own check."""
    await (drop_in_write(attempt) if attempt.op % 4 < 2 else _by_hand(attempt))


async def _by_hand(attempt: Attempt) -> None:
    """Claim the lease without a check, as no code of ours does: the trigger alone is in the way."""
    lease, sequence = attempt.lease, next_sequence()
    async with _lossy(attempt) as conn:
        # Kept bare: the pool empties its proxy when the server drops the connection.
        con, transaction = bare(conn), conn.transaction(isolation=attempt.isolation)
        await transaction.start()
        try:
            # The outcome is noted past the functions too, so that a lost reply can be resolved.
            resource, token, grant = text(lease.resource), number(lease.token), uuid(lease.grant.id)
            claim = f"jsonb_build_object({resource}, jsonb_build_array({token}, {grant}))::text"
            await conn.execute(f"select set_config('lockguard.leases', {claim}, true)")
            await conn.execute(_NOTE, lease.resource, lease.token, sequence)
            query, args = await _statement(attempt, conn)
            await attempt.pause()
            await conn.execute(query, *args)
            await attempt.pause()
        except BaseException as exc:
            if not con.is_closed():
                await transaction.rollback()
            if (refusal := stale(exc)) is not None:
                raise refusal from exc
            raise
        try:
            await transaction.commit()
        except DATABASE_ERRORS as exc:
            if meaning_of(exc) is Meaning.LOST:
                raise CommitUnknown(resource=lease.resource, token=lease.token, sequence=sequence) from exc
            raise


TRANSACTION = Way("transaction", transaction_write)
NATIVE = Way("statement", native_write, transacts=False)
DROP_IN = Way("drop-in", drop_in_write, fenced=True)
PROTECTED = Way("protected table", protected_write, fenced=True, protects=True)
WAYS: tuple[Way, ...] = (TRANSACTION, NATIVE, DROP_IN, PROTECTED)
"""The ways to write that must never break a law."""
