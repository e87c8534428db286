"""A transaction whose first act is to present the lease, and whose end is never in doubt without saying so.

``BEGIN``, the limits and the check leave in one message, so a fenced transaction costs no round trip more
than a plain one. The check keeps the fence's row locked until the end: a successor's seal waits for this
transaction or shuts it out, there is nothing in between.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from lockguard_asyncpg.claims import Limits, leases_for, next_sequence
from lockguard_asyncpg.errors import DATABASE_ERRORS, NotCommitted, stale
from lockguard_asyncpg.wire import Wire, bare, give_back

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from lockguard.lease import Lease

__all__ = ["FencedTransaction", "Isolation", "Limits", "fenced_transaction"]

Isolation = Literal["read_committed", "repeatable_read", "serializable"]

_ROLLBACK_S = 1.0


class FencedTransaction:
    """``async with FencedTransaction(pool) as conn:`` runs the body in a transaction that carries the lease.

    On a connection that is in a transaction already it becomes a savepoint, fenced until the outer end.

    Args:
        target: a pool, or a connection of yours.
        lease: one lease or several; by default all those of the surrounding bodies.
        isolation: Postgres's default if not given.
        limits: bounds on waiting and idling inside.

    Attributes:
        sequence: the number that, with resource and token, names this transaction.

    Raises:
        StaleToken: on entry or in the body: the lease's token is not the one in force.
        LeaseLost: on entry or before COMMIT: the lease has ended; nothing was committed.
        CommitUnknown: the reply to COMMIT was lost.
        NotCommitted: a swallowed error had Postgres roll it back.
    """

    def __init__(
        self,
        target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
        lease: Lease | Sequence[Lease] | None = None,
        *,
        isolation: Isolation | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.sequence = next_sequence()
        self._target = target
        self._lease = lease
        self._isolation: Isolation | None = isolation
        self._limits = limits or Limits()
        self._lent: PoolConnectionProxy[Any] | None = None
        # Kept bare: the pool empties its proxy when the server drops the connection.
        self._con: asyncpg.Connection[Any] | None = None
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> asyncpg.Connection[Any] | PoolConnectionProxy[Any]:
        leases = leases_for(self._lease)
        # Looked at here, so that a lost lease takes no connection, and again when BEGIN leaves.
        for lease in leases:
            lease.ensure()
        conn = await self._obtain()
        try:
            self._con = bare(conn)
            if self._con is None:  # the server dropped it, and the pool has emptied its proxy
                raise asyncpg.InterfaceError("cannot begin a fenced transaction: the connection is closed")
            wire: Any = Wire(self._con, lambda: leases, limits=self._limits, sequence=self.sequence)
            transaction = Transaction(wire, self._isolation, readonly=False, deferrable=False)
            await transaction.start()
            self._transaction = transaction
        except BaseException:
            await self._give_back()
            raise
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transaction is not None
        try:
            if exc is None:
                await self._commit(self._transaction)
            else:
                await self._abandon(self._transaction)
        finally:
            await self._give_back()
        if exc is not None and (refusal := stale(exc)) is not None:
            raise refusal from exc

    async def _commit(self, transaction: Transaction) -> None:
        if self._con is None or self._con.is_closed():
            raise NotCommitted("the connection was lost before COMMIT was sent: nothing was committed")
        await transaction.commit()

    async def _abandon(self, transaction: Transaction) -> None:
        """Roll back; a connection that cannot do even that has lost the transaction anyway."""
        con = self._con
        if con is None or con.is_closed():
            return
        try:
            await asyncio.shield(asyncio.wait_for(transaction.rollback(), _ROLLBACK_S))
        except DATABASE_ERRORS:
            con.terminate()
        except asyncio.CancelledError:
            con.terminate()
            raise

    async def _obtain(self) -> asyncpg.Connection[Any] | PoolConnectionProxy[Any]:
        if not isinstance(self._target, asyncpg.Pool):
            return self._target
        self._lent = await self._target.acquire()
        return self._lent

    async def _give_back(self) -> None:
        lent, self._lent, self._con = self._lent, None, None
        if lent is not None and isinstance(self._target, asyncpg.Pool):
            await give_back(self._target, lent)


def fenced_transaction(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    lease: Lease | Sequence[Lease] | None = None,
    *,
    isolation: Isolation | None = None,
    limits: Limits | None = None,
) -> FencedTransaction:
    """A :class:`FencedTransaction`, to be used with ``async with``."""
    return FencedTransaction(target, lease, isolation=isolation, limits=limits)
