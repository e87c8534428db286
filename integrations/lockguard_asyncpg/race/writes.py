"""The ways to write that must never break a law of the race."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lockguard_asyncpg.native import fenced_execute
from lockguard_asyncpg.transaction import FencedTransaction
from lockguard_asyncpg.wire import bare, give_back

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from lockguard_asyncpg.race.plan import Attempt

__all__ = ["BUMP", "native_write", "transaction_write"]

BUMP = "update lockguard_race.state set n = n + 1, token = $2, op = $3 where resource = $1"
"""The one write of a race: resource, token, operation."""


async def transaction_write(attempt: Attempt) -> None:
    """Write in a fenced transaction, with pauses in it."""
    transaction = FencedTransaction(attempt.pool, attempt.lease, isolation=attempt.isolation)
    conn = await transaction.__aenter__()
    try:
        await attempt.pause()
        await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)
        await attempt.pause()
    except BaseException as exc:
        await transaction.__aexit__(type(exc), exc, exc.__traceback__)
        raise
    if attempt.lose_reply:
        await _cut_during(conn, transaction.__aexit__(None, None, None))
    else:
        await transaction.__aexit__(None, None, None)


async def native_write(attempt: Attempt) -> None:
    """Write with the check in the statement."""
    await attempt.pause()
    write = (attempt.lease.resource, attempt.lease.token, attempt.op)
    if not attempt.lose_reply:
        await fenced_execute(attempt.pool, BUMP, *write, lease=attempt.lease)
        return
    conn: PoolConnectionProxy[Any] = await attempt.pool.acquire()
    try:
        await _cut_during(conn, fenced_execute(conn, BUMP, *write, lease=attempt.lease))
    finally:
        await give_back(attempt.pool, conn)


async def _cut_during(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any], work: Coroutine[Any, Any, None]
) -> None:
    """Let the message of ``work`` go out and cut the connection before its reply."""
    con, task = bare(conn), asyncio.create_task(work)
    await asyncio.sleep(0)
    con.terminate()
    await task
