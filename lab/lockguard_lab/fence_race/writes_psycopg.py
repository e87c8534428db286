"""Writes with psycopg 3: ``AsyncConnectionPool(url, connection_class=AsyncFencedConnection)``."""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from lockguard_asyncpg._errors import CommitUnknown, NotCommitted
from lockguard_lab.fence_race.plan import RacePlan, Shape, Way, WriteAttempt
from lockguard_lab.fence_race.writes import ADD, BUMP, SEEN, WRITE_SEEN
from lockguard_lab.fence_race.writes_dropin import carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

__all__ = ["PSYCOPG"]


@asynccontextmanager
async def pool_of(url: str, plan: RacePlan, options: dict[str, Any]) -> AsyncIterator[Any]:
    """A pool on the database at ``url`` whose connections lose the reply to COMMIT when told to."""
    import psycopg  # noqa: PLC0415 - no dependency of ours
    from psycopg import generators  # noqa: PLC0415
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    from lockguard_psycopg import AsyncFencedConnection  # noqa: PLC0415

    class Lossy(psycopg.AsyncConnection[Any]):
        lose_reply: Any = None

        def _exec_command(self, command: Any, *args: Any, **options: Any) -> Generator[Any, Any, Any]:
            if self.lose_reply is None or command != b"COMMIT" or self._pipeline:
                return (yield from super()._exec_command(command, *args, **options))
            self.pgconn.send_query(command)
            yield from generators.send(self.pgconn)
            self.pgconn.finish()
            self.lose_reply()
            raise psycopg.OperationalError("the reply was lost")

    class LossyFencedConnection(AsyncFencedConnection[Any], Lossy):
        pass

    settings = options.get("server_settings", {})
    given = " ".join(f"-c {name}={value}" for name, value in settings.items() if name != "application_name")
    made = AsyncConnectionPool(
        url,
        connection_class=LossyFencedConnection,
        min_size=1,
        max_size=2 * plan.holders,
        open=False,
        kwargs={
            "cursor_factory": psycopg.AsyncRawCursor,
            "prepare_threshold": None if "statement_cache_size" in options else 2,
            **({"application_name": name} if (name := settings.get("application_name")) else {}),
            **({"options": given.replace(" =", "=")} if given else {}),
        },
    )
    async with made as pool:
        yield pool


async def psycopg_write(attempt: WriteAttempt) -> None:
    """Write in a transaction, sometimes after a rolled-back savepoint or in a pipeline, or in autocommit."""
    import psycopg  # noqa: PLC0415 - no dependency of ours

    try:
        async with attempt.gear.connection() as conn:
            conn.lose_reply = attempt.lose_reply
            try:
                with carried(attempt.lease):
                    await (_alone(attempt, conn) if attempt.op % 4 == 0 else _transact(attempt, conn))
            finally:
                conn.lose_reply = None
    except (psycopg.Error, psycopg.Rollback) as exc:  # a lost connection lets the second one through
        raise ConnectionError(str(exc)) from exc


async def _alone(attempt: WriteAttempt, conn: Any) -> None:
    await conn.set_autocommit(True)
    try:
        query, args = await _statement(attempt, conn)
        if attempt.op % 8 == 0:
            await conn.cursor().executemany(query, [args])
        else:
            await conn.execute(query, args)
    finally:
        if not conn.closed:
            await conn.set_autocommit(False)


async def _transact(attempt: WriteAttempt, conn: Any) -> None:
    import psycopg  # noqa: PLC0415 - no dependency of ours

    level = (attempt.isolation or "read_committed").upper()
    await conn.set_isolation_level(psycopg.IsolationLevel[level])
    pipelined = conn.pipeline() if attempt.op % 4 == 3 else contextlib.nullcontext()
    async with pipelined, conn.transaction():
        await attempt.pause()
        if attempt.op % 4 == 1:
            await _undone(attempt, conn)
        query, args = await _statement(attempt, conn)
        await attempt.pause()
        await conn.execute(query, args)
        await attempt.pause()


async def _undone(attempt: WriteAttempt, conn: Any) -> None:
    import psycopg  # noqa: PLC0415 - no dependency of ours

    lease = attempt.lease
    async with conn.transaction() as savepoint:
        query = ADD if attempt.shape is Shape.INSERT else BUMP
        await conn.execute(query, (str(lease.resource), int(lease.token), -attempt.op))
        await attempt.pause()
        raise psycopg.Rollback(savepoint)


async def _statement(attempt: WriteAttempt, conn: Any) -> tuple[str, tuple[object, ...]]:
    lease = attempt.lease
    written = (str(lease.resource), int(lease.token), attempt.op)
    match attempt.shape:
        case Shape.UPDATE:
            return BUMP, written
        case Shape.INSERT:
            return ADD, written
        case Shape.READ:
            try:
                (seen,) = await (await conn.execute(SEEN, (str(lease.resource),))).fetchone()
            except CommitUnknown as exc:
                raise NotCommitted("the reading's end is unknown, the write was not sent") from exc
            await attempt.pause()
            return WRITE_SEEN, (*written, seen)


PSYCOPG = Way("psycopg", psycopg_write, gear=pool_of)
