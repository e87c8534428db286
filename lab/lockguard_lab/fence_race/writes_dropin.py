"""Writes of existing code on a fenced pool, with each asyncpg call that can write, and by hand."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard_asyncpg._transaction_state import bare
from lockguard_lab.fence_race.plan import Shape, Way, WriteAttempt
from lockguard_lab.fence_race.writes import (
    SEEN,
    cut_during,
    filled_in,
    lossy,
    plain_transaction,
    statement,
    undone,
    undone_write,
    write_in,
)
from lockguard_postgres._literals import number, text, uuid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator

    from lockguard._lease import Lease

__all__ = [
    "BEGUN_BEFORE",
    "COPY",
    "CURSOR",
    "DROP_IN",
    "DROP_IN_SAVEPOINTS",
    "EXECUTEMANY",
    "LONE",
    "PREPARED",
    "PROTECTED",
    "carried",
]


@contextmanager
def carried(lease: Lease) -> Iterator[None]:
    """Run the body under ``lease``, for code that knows nothing of leases."""
    task = asyncio.current_task()
    assert task is not None, "a body runs in a task, and this is none"
    mark = enter_scope(LeaseScope(lease, task, object()))
    try:
        yield
    finally:
        exit_scope(mark)


@asynccontextmanager
async def _under(attempt: WriteAttempt) -> AsyncIterator[Any]:
    """A connection under the lease, in a transaction or, where possible, in none."""
    with carried(attempt.lease):
        async with lossy(attempt) as conn:
            if attempt.alone and attempt.op % 2:
                yield conn
                return
            async with conn.transaction(isolation=attempt.isolation):
                yield conn
                await attempt.pause()


async def drop_in_write(attempt: WriteAttempt) -> None:
    """Write in a transaction, or in a single statement without one."""
    async with _under(attempt) as conn:
        query, args = await statement(attempt, conn)
        if conn.is_in_transaction():
            await attempt.pause()
        await conn.execute(query, *args)


async def lone_write(attempt: WriteAttempt) -> None:
    """Write in one statement outside a transaction, sent with its check, with or without parameters."""
    await attempt.pause()
    with carried(attempt.lease):
        async with lossy(attempt) as conn:
            con = bare(conn)  # the pool empties its proxy when the server drops the connection
            query, args = await statement(attempt, conn)
            work: Coroutine[Any, Any, Any]
            if attempt.op % 3 == 0:
                work = conn.execute(filled_in(query, args))
            elif attempt.op % 3 == 1:
                work = conn.execute(query, *args)
            else:
                work = conn.fetchrow(f"{query} returning resource", *args)
            if attempt.lose_reply is None:
                await work
            else:
                await cut_during(con, work, attempt.lose_reply)


async def prepared_write(attempt: WriteAttempt) -> None:
    """Write with a prepared statement, run at once or kept for a moment, by ``fetch`` or by a cursor."""
    async with _under(attempt) as conn:
        query, args = await statement(attempt, conn)
        prepared = await conn.prepare(f"{query} returning resource")
        await attempt.pause()
        if conn.is_in_transaction() and attempt.op % 4 == 0:
            cursor = await prepared.cursor(*args)
            await cursor.fetch(1)
        else:
            await prepared.fetch(*args)


async def executemany_write(attempt: WriteAttempt) -> None:
    """Write with ``executemany`` of the connection and of a prepared statement."""
    async with _under(attempt) as conn:
        query, args = await statement(attempt, conn)
        if attempt.op % 4 < 2:
            await conn.executemany(query, [args])
        else:
            await (await conn.prepare(query)).executemany([args])


async def cursor_write(attempt: WriteAttempt) -> None:
    """Write with cursors in a transaction begun before the lease, so that they must present it themselves."""
    async with plain_transaction(attempt) as conn:
        with carried(attempt.lease):
            query, args = await statement(attempt, conn)
            await attempt.pause()
            returning = f"{query} returning resource"
            if attempt.op % 2:
                cursor = await conn.cursor(returning, *args)
                await cursor.fetch(1)
            elif attempt.op % 4:
                async for _ in conn.cursor(returning, *args):
                    pass
            else:
                cursor = await (await conn.prepare(returning)).cursor(*args)
                await cursor.fetch(1)
            await attempt.pause()


async def copy_write(attempt: WriteAttempt) -> None:
    """Write with a COPY of records."""
    lease = attempt.lease
    async with _under(attempt) as conn:
        await conn.copy_records_to_table(
            "entry",
            schema_name="lockguard_race",
            columns=("resource", "token", "op"),
            records=[(str(lease.resource), lease.token, attempt.op)],
        )


async def begun_before_write(attempt: WriteAttempt) -> None:
    """Write in a transaction that began before the lease, on a kept connection."""
    async with plain_transaction(attempt) as conn:
        with carried(attempt.lease):
            await conn.fetchval(SEEN, attempt.lease.resource)
            await attempt.pause()
            await write_in(attempt, conn)


async def drop_in_savepoint_write(attempt: WriteAttempt) -> None:
    """Write after rolling back a savepoint, asyncpg's own or one in SQL, in which the lease was presented."""
    async with plain_transaction(attempt) as conn:
        with carried(attempt.lease):
            if attempt.op % 2:
                await undone(attempt, conn, conn.transaction())
            else:
                await conn.execute("savepoint ours")
                await conn.execute(*undone_write(attempt))
                await attempt.pause()
                await conn.execute("rollback to savepoint ours")
            await attempt.pause()
            await write_in(attempt, conn)


async def protected_write(attempt: WriteAttempt) -> None:
    """Write to protected tables, with the lease carried or with only the table's own check."""
    await (drop_in_write(attempt) if attempt.op % 4 < 2 else _by_hand(attempt))


async def _by_hand(attempt: WriteAttempt) -> None:
    """Claim the lease without a check, as no code of ours does: only the trigger can refuse the write."""
    lease = attempt.lease
    resource, token, grant = text(lease.resource), number(lease.token), uuid(lease.grant.id)
    claim = f"jsonb_build_object({resource}, jsonb_build_array({token}, {grant}))::text"
    async with plain_transaction(attempt) as conn:
        await conn.execute(f"select set_config('lockguard.leases', {claim}, true)")
        await write_in(attempt, conn)


DROP_IN = Way("drop-in", drop_in_write, fenced=True)
BEGUN_BEFORE = Way("drop-in, begun before the lease", begun_before_write, fenced=True)
DROP_IN_SAVEPOINTS = Way("drop-in, after a savepoint rolled back", drop_in_savepoint_write, fenced=True)
LONE = Way("drop-in, one statement", lone_write, fenced=True, transacts=False)
PREPARED = Way("drop-in, prepared", prepared_write, fenced=True)
EXECUTEMANY = Way("drop-in, executemany", executemany_write, fenced=True)
CURSOR = Way("drop-in, cursor", cursor_write, fenced=True)
COPY = Way("drop-in, COPY", copy_write, fenced=True, shapes=(Shape.INSERT,), noisy=True)
PROTECTED = Way("protected table", protected_write, fenced=True, protects=True)
