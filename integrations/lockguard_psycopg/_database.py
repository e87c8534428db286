"""The fence's own calls over an asynchronous pool of psycopg.

Each is one simple query, which is one transaction whatever the autocommit mode of the connection is, and one
message whatever pooler is in between. It is sent below psycopg's cursors, which would begin a transaction of
their own, and below the layer of a fenced connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators, waiting
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from lockguard.errors import ConfigurationError
from lockguard.text import kind_of
from lockguard_postgres._calling import SETTINGS
from lockguard_psycopg._errors import DATABASE_ERRORS, ERRORS

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
__all__ = ["PsycopgDatabase", "require_pool", "require_usable"]

# How often a wait looks at the connection though nothing has arrived.
_INTERVAL_S = 0.1


def require_pool(pool: object) -> None:
    """Check that it is a pool, before the first lease needs it.

    Raises:
        ConfigurationError: it is none.
    """
    if not isinstance(pool, AsyncConnectionPool):
        raise ConfigurationError(
            f"PsycopgFence takes an AsyncConnectionPool, or a function that returns one, and this is"
            f" {kind_of(pool)}; it is asynchronous, also where the bot's own connections are not"
        )


def require_usable(pool: AsyncConnectionPool[Any]) -> None:
    """Check that the pool can be used in the running event loop.

    Raises:
        ConfigurationError: it is closed, not open yet, or of another event loop.
    """
    # Private, but there is no other way to know; where the name is gone, the pool passes.
    of: Any = getattr(pool, "_sched_runner", None)
    if of is not None and of.get_loop() is not asyncio.get_running_loop():
        raise ConfigurationError(
            "this pool of psycopg belongs to another event loop; give the pool of the running one, or, to a"
            " fence, a function that returns it"
        )
    if pool.closed:
        raise ConfigurationError(
            "this pool of psycopg is not open; write"
            " `async with AsyncConnectionPool(url, open=False) as pool`"
        )


class PsycopgDatabase:
    """Keeps :class:`lockguard_postgres._database.Database` over an asynchronous pool of psycopg.

    Args:
        pool: the pool.
    """

    errors = ERRORS
    failures: tuple[type[Exception], ...] = DATABASE_ERRORS

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    def require_usable(self) -> None:
        """Check that the pool can be used here and now."""
        require_usable(self._pool)

    def is_closing(self) -> bool:
        """As of the pool."""
        return self._pool.closed

    def has_room(self) -> bool:
        """Whether a connection can be had that no other task waits for."""
        state = self._pool.get_stats()
        return state.get("pool_available", 0) > 0 or self.size() < state["pool_max"]

    def size(self) -> int:
        """As of the pool."""
        return int(self._pool.get_stats()["pool_size"])

    def is_pooled(self) -> bool:
        """Of no matter: every call is one message."""
        return True

    def why_not(self, _exc: BaseException, /) -> str:
        """Nothing: libpq's own texts will do."""
        return ""

    async def acquire(self) -> psycopg.AsyncConnection[Any]:
        """As of the pool.

        Raises:
            TimeoutError: every connection is in use.
        """
        try:
            conn: psycopg.AsyncConnection[Any] = await self._pool.getconn()
        except PoolTimeout as exc:
            raise TimeoutError(str(exc)) from exc
        return conn

    def drop(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Close a connection at once."""
        conn.pgconn.finish()

    async def once(
        self, conn: psycopg.AsyncConnection[Any], query: str, *, rows: bool, alone: bool = True
    ) -> Any:
        """Make a call once and give the connection back; returns its row or its command tag."""
        del alone  # each call is one message, and so one transaction
        pool = self._pool
        try:
            result = await _ask(conn, SETTINGS + query)
        finally:
            await pool.putconn(conn)
        if not rows:
            return (result.command_status or b"").decode()
        return next(iter(_loaded(conn, result)), None)

    async def fetch(self, query: str) -> Sequence[Mapping[str, Any]]:
        """The rows of a question."""
        pool, conn = self._pool, await self.acquire()
        try:
            result = await _ask(conn, query)
        finally:
            await pool.putconn(conn)
        names = [(result.fname(at) or b"").decode() for at in range(result.nfields)]
        return [dict(zip(names, row, strict=True)) for row in _loaded(conn, result)]


async def _ask(conn: psycopg.AsyncConnection[Any], query: str) -> Any:
    """Send a simple query, with nothing added; returns the result of its last statement.

    If this is cancelled, the connection is dropped: a silent server must not hold the caller beyond its
    bound, as waiting for the end of a cancelled statement would.
    """
    if conn.closed:
        raise psycopg.OperationalError("the connection is closed")
    conn.pgconn.send_query(query.encode())
    try:
        results = await waiting.wait_async(_answers(conn), conn.pgconn.socket, interval=_INTERVAL_S)
    except BaseException:
        if conn.pgconn.transaction_status == TransactionStatus.ACTIVE:
            conn.pgconn.finish()
        raise
    for result in results:
        if result.status == ExecStatus.FATAL_ERROR:
            raise psycopg.errors.error_from_result(result)
    return results[-1]


def _answers(conn: psycopg.AsyncConnection[Any]) -> Generator[Any, Any, Any]:
    return (yield from generators.execute(conn.pgconn))


def _loaded(conn: psycopg.AsyncConnection[Any], result: Any) -> list[tuple[Any, ...]]:
    loads = Transformer(conn)
    loads.set_pgresult(result)
    return loads.load_rows(0, result.ntuples, tuple)
