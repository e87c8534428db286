"""A connection that a holder keeps, as a bot does that acquires one when it starts.

What a library remembers of a connection is worth nothing once the transaction is over that it was learnt
in. Only a connection that lives through many leases, seals and breaks can show that it forgets.
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
    """One connection of ``pool``, acquired when it is first wanted and again when it broke."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._conn: PoolConnectionProxy[Any] | None = None

    async def take(self) -> PoolConnectionProxy[Any]:
        """The connection, outside of any transaction."""
        conn = self._conn
        if conn is not None:
            con: Any = bare(conn)  # None, if the pool has emptied its proxy
            if con is not None and not con.is_closed() and not con.is_in_transaction():
                return conn
            await self.leave()
        self._conn = conn = await self._pool.acquire()
        return conn

    async def leave(self) -> None:
        """Give it back; one that is still in a transaction is cut off."""
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
