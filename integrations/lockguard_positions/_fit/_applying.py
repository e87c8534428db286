"""Runs the statements of a fit: each in its own transaction, never waiting long with others behind it.

A statement that waits for a lock has every later reader and writer wait behind it. So it waits for a short
time only, and is tried again. What an interrupted run has done is seen in the catalog by the next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.text import first_line
from lockguard_asyncpg._connection import whole
from lockguard_positions._errors import MigrationRefused
from lockguard_positions._fit._steps import Phase
from lockguard_postgres._in_force import unfenced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lockguard_positions._fit._steps import Step

__all__ = ["LOCK_WAIT_MS", "apply_steps"]

LOCK_WAIT_MS = 1000
"""Milliseconds that a statement waits for a lock, with the bot's statements behind it."""

_ATTEMPTS_MAX = 20
_PAUSE_S = 0.25
_PAUSE_MAX_S = 2.0
# An index that is built beside writers waits for the transactions before it, and nobody waits behind it.
_ALONE_WAIT_MS = 60_000
# One fit at a time: the text "lgrdfit" as a number.
_KEY = 0x6C677264666974
_IN_USE = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


async def apply_steps(
    conn: asyncpg.Connection[Any], steps: Iterable[Step], *, switch: bool, told: Callable[[Step], None]
) -> int:
    """Run steps in their order, up to the first that is for the switch unless ``switch``; returns how many.

    Args:
        conn: a connection of its own, that is not in a transaction.
        steps: what :func:`look_at` found.
        switch: whether to run what the old code must not live beside.
        told: called after each.

    Raises:
        MigrationRefused: another fit runs, the table stays in use, or a statement was refused. What ran
            before that stands, and the same command goes on after it.
    """
    if not await conn.fetchval("select pg_try_advisory_lock($1)", _KEY):
        raise MigrationRefused("another fit of this database is running; let it end")
    done = 0
    try:
        with unfenced():
            for step in steps:
                if step.phase is Phase.SWITCH and not switch:
                    break
                await _patiently(conn, step)
                told(step)
                done += 1
    finally:
        if not conn.is_closed():
            await conn.execute("select pg_advisory_unlock($1)", _KEY)
    return done


async def _patiently(conn: asyncpg.Connection[Any], step: Step) -> None:
    pause = _PAUSE_S
    for attempt in range(1, _ATTEMPTS_MAX + 1):
        try:
            await (_alone if step.alone else _once)(conn, step)
        except _IN_USE as exc:
            if attempt == _ATTEMPTS_MAX:
                raise MigrationRefused(
                    f"the table stayed in use in {attempt} attempts ({first_line(exc)}) at: {step.title};"
                    " what ran before it"
                    " stands: run the same command again when the longest transaction is over"
                ) from exc
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX_S)
        except asyncpg.PostgresError as exc:
            if str(exc.sqlstate)[:2] in {"08", "57"}:
                raise
            raise MigrationRefused(
                f"refused ({exc.sqlstate}): {first_line(exc)}; at: {step.title}; what ran before it stands:"
                " correct that, and run the same command again"
            ) from exc
        else:
            return


async def _once(conn: asyncpg.Connection[Any], step: Step) -> None:
    async with whole(conn):
        await conn.execute(f"set local lock_timeout = {LOCK_WAIT_MS}")
        await conn.execute(step.sql)


async def _alone(conn: asyncpg.Connection[Any], step: Step) -> None:
    await conn.execute(f"set lock_timeout = {_ALONE_WAIT_MS}")
    try:
        await conn.execute(step.sql)
    except asyncpg.PostgresError:
        await _drop_invalid(conn, step)
        raise
    finally:
        await conn.execute("reset lock_timeout")


async def _drop_invalid(conn: asyncpg.Connection[Any], step: Step) -> None:
    """Drop what a failed build left: 'if not exists' would take it for the index."""
    left = await conn.fetchval(
        "select format('%I.%I', n.nspname, c.relname) from pg_index i join pg_class c on c.oid = i.indexrelid"
        " join pg_namespace n on n.oid = c.relnamespace where not i.indisvalid and n.nspname = 'monitoring'"
        " and position(' ' || c.relname || ' ' in $1) > 0 limit 1",
        step.sql,
    )
    if left is not None:
        await conn.execute(f"drop index concurrently if exists {left}")
