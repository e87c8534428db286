"""The ways to lock whose lock is in Postgres: advisory locks, and a row that stays locked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from lockguard_lab.bench.holders.ways import Server, Way, Write, plain_write

__all__ = [
    "AdvisorySession",
    "AdvisorySessionPool",
    "AdvisoryTransaction",
    "ForUpdate",
    "ForUpdateBounded",
]

_KEY = "hashtextextended($1, 0)"


class _InPostgres(Way):
    server: ClassVar[Server] = "Postgres"


class AdvisorySession(_InPostgres):
    """An advisory lock of a session, and writes on that same session."""

    name = "advisory-session"
    label = "advisory lock of a session"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``pg_advisory_lock``, ``pg_advisory_unlock``."""
        async with self.pool.acquire() as conn:
            await conn.execute(f"select pg_advisory_lock({_KEY})", self.resource)
            try:
                yield self.write(conn)
            finally:
                await conn.execute(f"select pg_advisory_unlock({_KEY})", self.resource)

    def write(self, conn: object) -> Write:
        """How it writes."""
        return plain_write(conn)  # type: ignore[arg-type]


class AdvisorySessionPool(AdvisorySession):
    """An advisory lock of a session, and writes by the functions that a bot has, which use the pool."""

    name = "advisory-session-pool"
    label = "the same, writes through the pool"

    def write(self, conn: object) -> Write:  # noqa: ARG002 - that is the point
        """How it writes."""
        return plain_write(self.pool)


class AdvisoryTransaction(_InPostgres):
    """An advisory lock of a transaction that stays open for the whole flow."""

    name = "advisory-transaction"
    label = "advisory lock of a transaction"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``pg_advisory_xact_lock``."""
        async with self.pool.acquire() as conn, conn.transaction():
            await conn.execute(f"select pg_advisory_xact_lock({_KEY})", self.resource)
            yield plain_write(conn)  # type: ignore[arg-type]


class ForUpdate(_InPostgres):
    """The bot's row, locked for the whole flow."""

    name = "for-update"
    label = "`SELECT ... FOR UPDATE`"

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Write]:
        """``FOR UPDATE`` in a transaction."""
        async with self.pool.acquire() as conn, conn.transaction():
            await self.bound(conn)
            await conn.execute("select status from bot where id = 1 for update")
            yield plain_write(conn)  # type: ignore[arg-type]

    async def bound(self, conn: object) -> None:
        """Bound the transaction; not everybody does."""


class ForUpdateBounded(ForUpdate):
    """The same, where Postgres ends a transaction whose client says nothing for the ttl."""

    name = "for-update-bounded"
    label = "the same, idle for at most the ttl"

    async def bound(self, conn: object) -> None:
        """``idle_in_transaction_session_timeout``."""
        await conn.execute(  # type: ignore[attr-defined]
            f"set local idle_in_transaction_session_timeout = {self.ttl_s * 1000}"
        )
