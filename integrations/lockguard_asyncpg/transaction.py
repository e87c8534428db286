"""A transaction whose first act is to present the lease, and whose end is never in doubt without saying so.

``BEGIN``, the limits and the check leave in one message, so a fenced transaction costs no round trip more
than a plain one. The check keeps the fence's row locked until the end: a successor's seal waits for this
transaction or shuts it out, there is nothing in between.

asyncpg keeps its own books on transactions (nesting, savepoints, the state of ``async with``), so its
``Transaction`` is used as it is. It gets a :class:`_Wire` in place of the connection, which adds to what it
sends and looks at what comes back.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from lockguard_asyncpg.claims import Entry, Limits, entry_for, leases_for, next_sequence
from lockguard_asyncpg.errors import DATABASE_ERRORS, CommitUnknown, Meaning, NotCommitted, meaning_of, stale

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from lockguard.lease import Lease

__all__ = ["FencedTransaction", "Isolation", "Limits", "fenced_transaction"]

Isolation = Literal["read_committed", "repeatable_read", "serializable"]

_START_ATTEMPTS_MAX = 5
_ROLLBACK_S = 1.0
# The pool's proxy gives no public way to the connection that it stands for.
_PROXIED = "_con"
# Where a connection notes its outermost transaction.
_NOTED = "_top_xact"


class _Wire:
    """Stands between asyncpg's ``Transaction`` and its connection.

    Everything but ``execute`` goes through to the connection, writes of its bookkeeping included.
    """

    __slots__ = ("_con", "_entry")

    def __init__(self, con: asyncpg.Connection[Any], entry: Entry) -> None:
        # Past our own __setattr__, which writes on the connection.
        object.__setattr__(self, "_con", con)
        object.__setattr__(self, "_entry", entry)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._con, name, value)

    async def execute(self, query: str) -> str:
        """Send what asyncpg's ``Transaction`` wants to send, with our part."""
        match query.split(maxsplit=1)[0].rstrip(";"):
            case "BEGIN":
                return await self._open(query, undo="ROLLBACK;")
            case "SAVEPOINT":
                return await self._open(query, undo=f"ROLLBACK TO {query.split()[1]}")
            case "COMMIT":
                return await self._commit(query)
            case _:
                return await _plain(self._con, query)

    async def _open(self, query: str, *, undo: str) -> str:
        text = query + self._entry.sql()
        outermost = undo == "ROLLBACK;"
        for attempt in range(_START_ATTEMPTS_MAX):
            try:
                return await _plain(self._con, text)
            except BaseException as exc:
                await _roll_back(self._con, undo)
                # Nothing of the caller's ran yet, so a snapshot that a seal overtook is simply taken anew.
                if outermost and attempt + 1 < _START_ATTEMPTS_MAX and meaning_of(exc) is Meaning.RETRY:
                    continue
                if outermost:
                    # asyncpg has noted the transaction as open and would take the next one for a savepoint.
                    setattr(self._con, _NOTED, None)
                raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _commit(self, query: str) -> str:
        try:
            tag = await _plain(self._con, query)
        except asyncio.CancelledError as exc:
            exc.add_note(f"cancelled during COMMIT: {self._unknown()}")
            raise
        except DATABASE_ERRORS as exc:
            if meaning_of(exc) is Meaning.LOST or isinstance(exc, TimeoutError):
                raise self._unknown() from exc
            raise
        if tag == "ROLLBACK":
            # The server says so only in the command tag, and asyncpg does not look.
            raise NotCommitted(
                "Postgres rolled the transaction back: a statement in it failed and the error was swallowed;"
                " let it through, or use a savepoint (conn.transaction()) around what may fail"
            )
        return tag

    def _unknown(self) -> CommitUnknown:
        first = self._entry.claims[0]
        return CommitUnknown(resource=first.resource, token=first.token, sequence=self._entry.sequence)


async def _plain(con: asyncpg.Connection[Any], query: str) -> str:
    """A simple query past whatever a subclass of the connection adds."""
    return str(await asyncpg.Connection.execute(con, query))


async def _roll_back(con: asyncpg.Connection[Any], undo: str) -> None:
    """Leave the connection outside the transaction, or closed: it must not go on half begun."""
    if con.is_closed() or not con.is_in_transaction():
        return
    try:
        await asyncio.shield(asyncio.wait_for(_plain(con, undo), _ROLLBACK_S))
    except (*DATABASE_ERRORS, asyncio.CancelledError):
        con.terminate()


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
        self._leases: tuple[Lease, ...] = ()
        self._lent: PoolConnectionProxy[Any] | None = None
        # Kept bare: the pool empties its proxy when the server drops the connection.
        self._con: asyncpg.Connection[Any] | None = None
        self._transaction: Transaction | None = None

    async def __aenter__(self) -> asyncpg.Connection[Any] | PoolConnectionProxy[Any]:
        self._leases = leases_for(self._lease)
        for lease in self._leases:
            lease.ensure()
        conn = await self._obtain()
        try:
            self._con = _bare(conn)
            # Waiting for a connection takes time: the leases are looked at again.
            entry = entry_for(self._leases, sequence=self.sequence, limits=self._limits)
            wire: Any = _Wire(self._con, entry)
            transaction = Transaction(wire, self._isolation, readonly=False, deferrable=False)
            await transaction.start()
            self._transaction = transaction
        except BaseException as exc:
            await self._give_back()
            if (refusal := stale(exc)) is not None:
                raise refusal from exc
            raise
        return conn

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._transaction is not None
        try:
            await self._end(self._transaction, exc)
        finally:
            await self._give_back()

    async def _end(self, transaction: Transaction, exc: BaseException | None) -> None:
        if exc is not None:
            await self._abandon(transaction)
            if (refusal := stale(exc)) is not None:
                raise refusal from exc
            return
        try:
            for lease in self._leases:
                lease.ensure()
        except BaseException:
            await self._abandon(transaction)
            raise
        if self._con is None or self._con.is_closed():
            raise NotCommitted("the connection was lost before COMMIT was sent: nothing was committed")
        try:
            await transaction.commit()
        except asyncpg.PostgresError as error:
            # A deferred trigger may speak only now.
            if (refusal := stale(error)) is not None:
                raise refusal from error
            raise

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
            await self._target.release(lent)


def fenced_transaction(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    lease: Lease | Sequence[Lease] | None = None,
    *,
    isolation: Isolation | None = None,
    limits: Limits | None = None,
) -> FencedTransaction:
    """A :class:`FencedTransaction`, to be used with ``async with``."""
    return FencedTransaction(target, lease, isolation=isolation, limits=limits)


def _bare(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> asyncpg.Connection[Any]:
    """The connection itself: asyncpg notes a transaction on it, not on the pool's proxy."""
    if isinstance(conn, PoolConnectionProxy):
        bare: asyncpg.Connection[Any] = getattr(conn, _PROXIED)
        return bare
    return conn
