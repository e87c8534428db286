"""A connection that a holder keeps, like a bot that acquires one at its start.

What a library learns about a connection in a transaction must not be used after that transaction. Only a
connection that outlasts many leases, seals and breaks can show whether the library forgets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_asyncpg._transaction_state import bare, give_back

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

__all__ = ["KeptConnection"]


class KeptConnection:
    """One connection of ``pool``, acquired at its first use and again after it breaks."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._conn: PoolConnectionProxy[Any] | None = None

    async def take(self) -> PoolConnectionProxy[Any]:
        """Return the connection, outside of any transaction."""
        conn = self._conn
        if conn is not None:
            con: Any = bare(conn)  # None, if the pool has emptied its proxy
            if con is not None and not con.is_closed() and not con.is_in_transaction():
                return conn
            await self.leave()
        self._conn = conn = await self._pool.acquire()
        return conn

    async def leave(self) -> None:
        """Return the connection to the pool; terminate it if it is still in a transaction."""
        conn, self._conn = self._conn, None
        if conn is None:
            return
        con: Any = bare(conn)
        if con is not None and con.is_in_transaction():
            con.terminate()
        try:
            await give_back(self._pool, conn)
        except DATABASE_ERRORS:  # the pool has dropped it already
            return
