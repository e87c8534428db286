"""A transaction that first presents the lease, and that raises an error of its own if its outcome is unknown.

``BEGIN``, the limits and the check are sent in one message, so a fenced transaction takes no more round trips
than a plain one. The check keeps the fence's row locked until the end: a successor's seal either waits for
this transaction or shuts it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from lockguard.errors import ConfigurationError
from lockguard_asyncpg._connection import end_loan, lend
from lockguard_asyncpg._errors import NotCommitted, ended
from lockguard_asyncpg._pools import require_usable
from lockguard_asyncpg._transaction_state import (
    TransactionProxy,
    bare,
    give_back,
    is_within_another,
    rolled_back,
    transaction_state,
)
from lockguard_postgres._claims import Limits, leases_for, presentation_for
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._presented import CLOSED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from lockguard._lease import Lease

__all__ = ["FencedTransaction", "Isolation", "Limits", "fenced_transaction"]

Isolation = Literal["read_committed", "repeatable_read", "serializable"]


class FencedTransaction:
    """``async with FencedTransaction(pool) as conn:`` runs the body in a transaction that carries the lease.

    On a connection that is in a transaction already it becomes a savepoint, which presents the leases anew
    unless the transaction around it is a fenced one that still holds them. In the body every statement of the
    connection passes through the fence's layer, so only the end of the body can end the transaction.

    Args:
        target: a pool, or a connection.
        lease: one lease or several; by default all those of the surrounding bodies.
        isolation: Postgres's default if not given.
        limits: bounds on waiting and idling inside.
        closes: for the body's last write: its COMMIT also closes the leases in the fence, which saves one
            commit and one round trip. It waits for other transactions under the leases, and later writes
            under them are refused.
        timeout_s: the time bound, in seconds, for each of BEGIN and COMMIT; by default the connection's own.

    Raises:
        StaleToken: on entry or in the body: the lease's token is not the one in force.
        LeaseLost: on entry or before COMMIT: the lease has ended; nothing was committed.
        CommitUnknown: the reply to COMMIT was lost.
        ConfigurationError: on entry: it was entered before, or ``closes`` is set inside another transaction.
        NotCommitted: Postgres rolled it back because an error was swallowed, or the connection was lost
            before COMMIT.
    """

    def __init__(
        self,
        target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
        lease: Lease | Sequence[Lease] | None = None,
        *,
        isolation: Isolation | None = None,
        limits: Limits | None = None,
        closes: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        self._closes = closes
        self._timeout_s = timeout_s
        self._sequence: int | None = None
        self._target = target
        self._lease = lease
        self._isolation: Isolation | None = isolation
        self._limits = limits or Limits()
        self._lent: PoolConnectionProxy[Any] | None = None
        # Not the pool's proxy, which the pool empties when the server drops the connection.
        self._con: asyncpg.Connection[Any] | None = None
        self._transaction: Transaction | None = None
        self._leases: tuple[Lease, ...] = ()
        self._loan: type[Any] | None = None
        self._outer: tuple[Lease, ...] | None = None
        self._entered = False

    @property
    def sequence(self) -> int:
        """The number that, together with resource and token, identifies this transaction.

        For a savepoint in a fenced transaction, it is the number of the transaction around it.
        """
        if self._sequence is None:
            self._sequence = NUMBERS.alone()
        return self._sequence

    async def __aenter__(self) -> asyncpg.Connection[Any] | PoolConnectionProxy[Any]:
        if self._entered:  # once it has ended, another transaction gets its number's slot
            raise ConfigurationError(
                "this fenced transaction was entered before, and each is entered once: write"
                " `async with fenced_transaction(...)` anew, inside the loop where it is tried again"
            )
        self._entered = True
        leases = leases_for(self._lease)
        # Checked here, so that a lost lease takes no connection, and again when BEGIN is sent.
        for lease in leases:
            lease.ensure()
        self._leases = leases
        conn = await self._obtain()
        try:
            self._con = con = bare(conn)
            if con is None:  # the server dropped it, and the pool has emptied its proxy
                raise asyncpg.InterfaceError("cannot begin a fenced transaction: the connection is closed")
            if self._closes and con.is_in_transaction():
                raise ConfigurationError(
                    "closes=True is for the transaction that commits, and this connection is in one already:"
                    " give it to the outermost fenced transaction, on a connection outside of any other"
                )
            self._loan = lend(con)
            proxy: Any = TransactionProxy(
                con,
                lambda: leases,
                limits=self._limits,
                sequence=self._sequence,
                timeout_s=self._timeout_s,
                defer=True,
                closing=self._closing_sql(leases) if self._closes else "",
            )
            transaction = Transaction(proxy, self._isolation, readonly=False, deferrable=False)
            await transaction.start()
            self._transaction = transaction
            tx = transaction_state(con)
            if self._sequence is None and tx.presentation is not None:
                self._sequence = tx.presentation.sequence
            self._outer, tx.body = tx.body, tx.body or leases
        except BaseException as exc:
            await self._give_back()
            if exc.__cause__ is not None:
                ended(exc.__cause__, leases)
            raise
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transaction is not None, "left without having been entered"
        if self._con is not None:
            transaction_state(self._con).body = self._outer
        try:
            if exc is None:
                await self._commit(self._transaction)
            else:
                await self._abandon(self._transaction)
        finally:
            await self._give_back()
        if exc is not None and (said := ended(exc, self._leases)) is not None:
            raise said from exc

    async def _commit(self, transaction: Transaction) -> None:
        if self._con is None or self._con.is_closed():
            raise NotCommitted("the connection was lost before COMMIT was sent: nothing was committed")
        await transaction.commit()
        if self._closes:
            CLOSED.note(self._leases)

    def _closing_sql(self, leases: Sequence[Lease]) -> str:
        presentation = presentation_for(leases, sequence=None, limits=self._limits)
        return "".join(claim.close_sql(presentation.lock_ms) for claim in presentation.claims)

    async def _abandon(self, transaction: Transaction) -> None:
        """Roll back; a connection that cannot has lost the transaction anyway."""
        con = self._con
        if con is None or con.is_closed():
            return
        await rolled_back(con, transaction.rollback(), within_another=is_within_another(con, transaction))

    async def _obtain(self) -> asyncpg.Connection[Any] | PoolConnectionProxy[Any]:
        if not isinstance(self._target, asyncpg.Pool):
            return self._target
        require_usable(self._target)
        self._lent = await self._target.acquire()
        return self._lent

    async def _give_back(self) -> None:
        lent, con, self._lent, self._con = self._lent, self._con, None, None
        if con is not None:
            end_loan(con, self._loan)
        if lent is not None and isinstance(self._target, asyncpg.Pool):
            await give_back(self._target, lent)


def fenced_transaction(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    lease: Lease | Sequence[Lease] | None = None,
    *,
    isolation: Isolation | None = None,
    limits: Limits | None = None,
    closes: bool = False,
) -> FencedTransaction:
    """A :class:`FencedTransaction` for ``async with``; see there for arguments and errors."""
    return FencedTransaction(target, lease, isolation=isolation, limits=limits, closes=closes)
