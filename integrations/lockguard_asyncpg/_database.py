"""The fence's own calls over a pool of asyncpg."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard_asyncpg._dropin import alone as run_alone
from lockguard_asyncpg._dsn import shown
from lockguard_asyncpg._errors import DATABASE_ERRORS, ERRORS
from lockguard_asyncpg._pools import require_usable
from lockguard_asyncpg._transaction_state import bare, give_back, send_plain
from lockguard_postgres._calling import SETTINGS, bounded
from lockguard_postgres._in_force import unfenced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asyncpg.pool import PoolConnectionProxy

__all__ = ["AsyncpgDatabase"]

# How long a connection may take to give up a cancelled statement before it is thrown away.
_RELEASE_S = 0.5


class AsyncpgDatabase:
    """Keeps :class:`lockguard_postgres._database.Database` over a pool of asyncpg.

    Args:
        pool: the pool.
    """

    errors = ERRORS
    failures: tuple[type[Exception], ...] = DATABASE_ERRORS

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    def require_usable(self) -> None:
        """Check that the pool can be used here and now."""
        require_usable(self._pool)

    def is_closing(self) -> bool:
        """As of the pool."""
        return self._pool.is_closing()

    def has_room(self) -> bool:
        """Whether a connection can be had that no other task waits for."""
        return self._pool.get_idle_size() > 0 or self._pool.get_size() < self._pool.get_max_size()

    def size(self) -> int:
        """As of the pool."""
        return self._pool.get_size()

    def is_pooled(self) -> bool:
        """Whether statements are not cached, as behind a pooler."""
        return getattr(self._pool, "_connect_kwargs", {}).get("statement_cache_size") == 0

    def why_not(self, exc: BaseException, /) -> str:
        """What it means that no server is as the URL asks for."""
        if not isinstance(exc, asyncpg.TargetServerAttributeNotMatched):
            return ""
        return (
            "no server of its URL is what target_session_attrs asks for: a failover is under way, the URL"
            " does not name the primary, or default_transaction_read_only is on there"
        )

    async def acquire(self) -> PoolConnectionProxy[Any]:
        """As of the pool.

        Raises:
            InvalidAuthorizationSpecificationError: the server, which the text names, refused the log-in. It
                is no ConfigurationError: what the fence does by itself may be let in a moment later.
        """
        try:
            return await self._pool.acquire()
        except asyncpg.InvalidAuthorizationSpecificationError as exc:  # it names no server
            exc.args = (f"{_server_of(self._pool)}: {exc.args[0]}",)
            raise

    def drop(self, conn: PoolConnectionProxy[Any]) -> None:
        """Close a connection at once."""
        conn.terminate()

    async def once(
        self, conn: PoolConnectionProxy[Any], query: str, *, rows: bool, alone: bool = True
    ) -> Any:
        """Make a call once and release the connection; returns its row or its command tag."""
        clean = False
        try:
            with unfenced():  # a seal made under another lease is not a write of that lease
                if rows and alone:
                    return await _row(conn, query)
                if rows:
                    return await conn.fetchrow(query)
                # Not by COPY, though it gives rows: if asyncpg (0.32) has read that the server ends the
                # session, and not yet the end of the connection, it drops a future whose error is never
                # retrieved.
                if (con := bare(conn)) is None:  # the server dropped it, and the pool has emptied its proxy
                    raise asyncpg.InterfaceError("the connection is closed")
                tag = await send_plain(con, SETTINGS + query)  # not examined as a caller's statement is
                clean = True
                return tag
        finally:
            # A silent server must not hold the caller beyond its bound: asyncpg then drops the connection.
            await give_back(self._pool, conn, timeout_s=_RELEASE_S, clean=clean)

    async def fetch(self, query: str) -> Sequence[Mapping[str, Any]]:
        """The rows of a question."""
        with unfenced():
            rows: Any = await self._pool.fetch(query)
        return list(rows)


def _server_of(pool: asyncpg.Pool[Any]) -> str:
    """Where a pool connects to, for display; in a dsn that asyncpg reads otherwise it is not looked for."""
    dsn = next(iter(getattr(pool, "_connect_args", ())), None)
    if isinstance(dsn, str):
        return shown(dsn)
    given = getattr(pool, "_connect_kwargs", {})
    host, port = given.get("host"), given.get("port") or 5432
    return f"{host}:{port}" if isinstance(host, str) else "the database"


async def _row(conn: PoolConnectionProxy[Any], query: str) -> Any:
    """Fetch the row of ``query`` in a transaction of its own."""
    con = bare(conn)

    async def ask() -> Any:
        await con.execute(bounded())
        return await con.fetchrow(query)

    return await run_alone(con, (), ask, None)
