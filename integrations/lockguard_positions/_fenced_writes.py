"""Writes under a lease: fenced, and repeated while they certainly were not done."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from lockguard.errors import StaleToken
from lockguard_asyncpg import CommitUnknown, FencedTransaction, fenced_fetchrow, resolve
from lockguard_asyncpg._errors import DATABASE_ERRORS, Meaning, meaning_of
from lockguard_asyncpg._transaction_state import give_back
from lockguard_positions import _rows as rows
from lockguard_positions._errors import DuplicatePosition
from lockguard_positions._events import CommitResolved

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    from lockguard._lease import Lease

__all__ = ["FencedWrites"]

T = TypeVar("T")

_ATTEMPTS_MAX = 5
_PAUSE_FIRST_S = 0.05
_WORTH_REPEATING = frozenset({Meaning.RETRY, Meaning.LOST, Meaning.UNAVAILABLE})


class FencedWrites(ABC):
    """Writes to one database.

    Args:
        pool: an asyncpg pool on the primary.
        on_stale: called for each write that Postgres refused, before its error is raised.
        on_resolved: called with what became of a commit whose reply was lost.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        *,
        on_stale: Callable[[StaleToken], None] | None,
        on_resolved: Callable[[CommitResolved], None] | None,
    ) -> None:
        self._pool = pool
        self._on_stale = on_stale
        self._on_resolved = on_resolved

    @abstractmethod
    async def _duplicate(self, lease: Lease, exc: asyncpg.UniqueViolationError) -> DuplicatePosition:
        """The error for a write that a unique index refused."""

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[PoolConnectionProxy[Any]]:
        """Lend a connection; these statements leave nothing in its session, so it needs no reset."""
        conn: PoolConnectionProxy[Any] = await self._pool.acquire()
        clean = False
        try:
            yield conn
            clean = True
        finally:
            await give_back(self._pool, conn, clean=clean)

    async def _write(self, lease: Lease, work: Callable[[rows.Connection], Awaitable[T]]) -> T:
        """Run ``work`` in a fenced transaction."""
        done: list[T] = []

        async def attempt() -> T:
            done.clear()
            async with (
                self._lent() as lent,
                FencedTransaction(lent, lease, timeout_s=rows.STATEMENT_S) as conn,
            ):
                done.append(await work(conn))
            return done[0]

        async def written() -> T:
            return done[0]

        return await self._until_done(lease, attempt, written)

    async def _write_one(
        self,
        lease: Lease,
        text: str,
        *args: object,
        also: Sequence[str] = (),
        written: Callable[[], Awaitable[asyncpg.Record | None]],
        then: Callable[[asyncpg.Record], Awaitable[None]] | None = None,
    ) -> asyncpg.Record | None:
        """Make a write of one fenced statement, in a single round trip.

        Args:
            lease: presented in the statement.
            text: the statement.
            args: the arguments of all its parts.
            also: further statements that are executed with it.
            written: reads the row back, if the answer was lost and the write has committed.
            then: awaited with the row before the connection goes back to the pool.
        """

        async def attempt() -> asyncpg.Record | None:
            # As in _lent, but without the cost of a context manager: a filled entry is waiting for its stop.
            conn: PoolConnectionProxy[Any] = await self._pool.acquire()
            clean = False
            try:
                row = await fenced_fetchrow(
                    conn, text, *args, lease=lease, also=also, timeout=rows.STATEMENT_S
                )
                clean = True
                if row is not None and then is not None:
                    await then(row)
            finally:
                await give_back(self._pool, conn, clean=clean)
            return row

        return await self._until_done(lease, attempt, written)

    async def _until_done(
        self, lease: Lease, attempt: Callable[[], Awaitable[T]], written: Callable[[], Awaitable[T]]
    ) -> T:
        """Repeat a write while it certainly was not done and another attempt may succeed.

        The pauses end long before the lease does, or the lease's end cancels them; either way the next
        holder finds the intent.
        """
        for number in range(1, _ATTEMPTS_MAX + 1):
            lease.ensure()  # a lost lease takes no connection
            try:
                return await attempt()
            except StaleToken as stale:
                if self._on_stale is not None:
                    self._on_stale(stale)
                raise
            except CommitUnknown as unknown:
                if await self._resolve(unknown):
                    return await written()
                if number == _ATTEMPTS_MAX:
                    raise
            except asyncpg.UniqueViolationError as exc:
                raise await self._duplicate(lease, exc) from exc
            except DATABASE_ERRORS as exc:
                if number == _ATTEMPTS_MAX or meaning_of(exc) not in _WORTH_REPEATING:
                    raise
            await asyncio.sleep(_PAUSE_FIRST_S * 2 ** (number - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _resolve(self, unknown: CommitUnknown) -> bool:
        found: bool | None = None
        try:
            found = committed = await resolve(self._pool, unknown)
            return committed
        finally:
            if self._on_resolved is not None:
                self._on_resolved(CommitResolved(unknown.resource, unknown.token, found))
