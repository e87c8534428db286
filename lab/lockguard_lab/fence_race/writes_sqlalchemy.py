"""Writes with SQLAlchemy 2 on asyncpg: ``fenced_engine(create_async_engine(...))``.

SQLAlchemy's dialect prepares every statement and keeps the prepared ones, begins a transaction with asyncpg's
``transaction()`` at the first statement, and wraps the exceptions of asyncpg.
"""

from __future__ import annotations

import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from lockguard_asyncpg._errors import CommitUnknown, NotCommitted, translate
from lockguard_lab.fence_race.plan import RacePlan, Shape, Way, WriteAttempt
from lockguard_lab.fence_race.writes import ADD, BUMP, SEEN, WRITE_SEEN, LossyConnection
from lockguard_lab.fence_race.writes_dropin import carried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import BindParameter, TextClause
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["SQLALCHEMY"]

_NAMES = ("resource", "token", "op", "seen")


@asynccontextmanager
async def engine_of(url: str, plan: RacePlan, options: dict[str, Any]) -> AsyncIterator[AsyncEngine]:
    """An engine on the database at ``url``."""
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415 - no dependency of ours

    from lockguard_asyncpg.sqlalchemy import fenced_engine  # noqa: PLC0415 - imports SQLAlchemy

    if "statement_cache_size" in options:  # the dialect also keeps prepared statements
        options = {**options, "prepared_statement_cache_size": options["statement_cache_size"]}
    scheme, _, rest = url.partition("://")
    assert scheme in {"postgresql", "postgres"}, (
        f"an asyncpg URL begins with postgresql://, this one with {scheme}://"
    )
    engine = fenced_engine(
        create_async_engine(
            f"postgresql+asyncpg://{rest}",
            pool_size=plan.holders,
            max_overflow=plan.holders,
            connect_args={"connection_class": LossyConnection, **options},
        )
    )
    try:
        yield engine
    finally:
        await engine.dispose()


async def sqlalchemy_write(attempt: WriteAttempt) -> None:
    """Write in a transaction, sometimes after a rolled-back savepoint, or in autocommit."""
    from sqlalchemy.exc import DBAPIError  # noqa: PLC0415 - no dependency of ours

    try:
        with carried(attempt.lease):
            await (_alone(attempt) if attempt.op % 4 == 0 else _transact(attempt))
    except DBAPIError as exc:
        cause = exc.orig.__cause__ if exc.orig is not None else None
        if cause is None:
            raise
        raise translate(cause) from exc


async def _alone(attempt: WriteAttempt) -> None:
    """Write in ``isolation_level="AUTOCOMMIT"``, unknown to asyncpg: each statement is on its own."""
    async with attempt.gear.connect() as raw:
        conn = await raw.execution_options(isolation_level="AUTOCOMMIT")
        async with _lossy(attempt, conn):
            await conn.execute(*await _clause(attempt, conn))


async def _transact(attempt: WriteAttempt) -> None:
    async with attempt.gear.connect() as raw:
        level = (attempt.isolation or "read_committed").replace("_", " ").upper()
        conn = await raw.execution_options(isolation_level=level)
        async with _lossy(attempt, conn), conn.begin():
            await attempt.pause()
            if attempt.op % 4 == 1:
                await _undone(attempt, conn)
            clause, values = await _clause(attempt, conn)
            await attempt.pause()
            if attempt.op % 4 == 2:
                await conn.execute(clause, [values])
            elif attempt.op % 4 == 3:
                streamed = await conn.stream(_returning(clause), values)
                await streamed.all()
            else:
                await conn.execute(clause, values)
            await attempt.pause()


async def _undone(attempt: WriteAttempt, conn: AsyncConnection) -> None:
    class Undo(Exception):
        pass

    query = ADD if attempt.shape is Shape.INSERT else BUMP
    with contextlib.suppress(Undo):
        async with conn.begin_nested():
            await conn.execute(_text(query), _values(attempt, op=-attempt.op))
            await attempt.pause()
            raise Undo


@asynccontextmanager
async def _lossy(attempt: WriteAttempt, conn: AsyncConnection) -> AsyncIterator[None]:
    con: Any = (await conn.get_raw_connection()).driver_connection
    assert isinstance(con, LossyConnection), f"the race's engine gave out {con!r}"
    con.lose_reply = attempt.lose_reply
    try:
        yield
    finally:
        con.lose_reply = None


async def _clause(attempt: WriteAttempt, conn: AsyncConnection) -> tuple[TextClause, dict[str, Any]]:
    match attempt.shape:
        case Shape.UPDATE:
            return _text(BUMP), _values(attempt)
        case Shape.INSERT:
            return _text(ADD), _values(attempt)
        case Shape.READ:
            try:
                found = await conn.execute(_text(SEEN), {"resource": str(attempt.lease.resource)})
            except CommitUnknown as exc:
                raise NotCommitted("the reading's end is unknown, the write was not sent") from exc
            seen = found.scalar_one()
            await attempt.pause()
            return _text(WRITE_SEEN), {**_values(attempt), "seen": seen}


def _returning(clause: TextClause) -> TextClause:
    """The statement with its result as rows, for a server-side cursor."""
    from sqlalchemy import text  # noqa: PLC0415 - no dependency of ours

    return text(f"{clause.text} returning resource").bindparams(*_numbers(clause.text))


def _values(attempt: WriteAttempt, *, op: int | None = None) -> dict[str, Any]:
    lease = attempt.lease
    return {
        "resource": str(lease.resource),
        "token": int(lease.token),
        "op": attempt.op if op is None else op,
    }


def _text(query: str) -> TextClause:
    """The query with named parameters, whose numbers are 64 bits long."""
    from sqlalchemy import text  # noqa: PLC0415 - no dependency of ours

    for number, name in enumerate(_NAMES, 1):
        query = query.replace(f"${number}::bigint", f"${number}").replace(f"${number}", f":{name}")
    return text(query).bindparams(*_numbers(query))


def _numbers(query: str) -> list[BindParameter[int]]:
    from sqlalchemy import BigInteger, bindparam  # noqa: PLC0415 - no dependency of ours

    return [bindparam(name, type_=BigInteger) for name in _NAMES[1:] if f":{name}" in query]


SQLALCHEMY = Way("SQLAlchemy", sqlalchemy_write, gear=engine_of)
