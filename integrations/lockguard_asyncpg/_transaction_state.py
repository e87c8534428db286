"""Sends BEGIN, COMMIT and savepoints, and presents the leases with them.

asyncpg tracks transactions itself (nesting, savepoints, the state of ``async with``), so its ``Transaction``
is used as it is. It gets a :class:`TransactionProxy` in place of the connection, which adds the check to the
statement that opens a transaction and examines the reply to the one that ends it.

A :class:`TransactionState` remembers what a connection's open transaction has presented. That is valid only
while the row lock behind it is held, so it is kept only while every statement of the connection passes
through here, and forgotten whenever the lock may be gone. A transaction that other code began and will end
has no such state: there a savepoint presents its leases each time, in the message that opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.transaction import Transaction

from lockguard._lease import Lease
from lockguard.errors import LockguardError, StaleToken
from lockguard_asyncpg._errors import (
    DATABASE_ERRORS,
    Meaning,
    NotCommitted,
    ended,
    fence_error,
    leaves_in_doubt,
    meaning_of,
    note_on_check,
)
from lockguard_postgres._claims import Limits, Presentation, first_of, presentation_for
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._presented import Presented
from lockguard_postgres._unsealed import seal_now

__all__ = [
    "TransactionProxy",
    "TransactionState",
    "bare",
    "give_back",
    "give_back_soon",
    "is_within_another",
    "rolled_back",
    "sees_all",
    "send_plain",
    "transaction_state",
]

_OPEN_ATTEMPTS_MAX = 5
_ROLLBACK_S = 1.0
_RELEASE_S = 2.0
"""Bounds a release: after a lost reply asyncpg by default waits for ever for the statement's end."""
# The pool's proxy gives no public access to the connection that it stands for.
_PROXIED = "_con"
# Where a connection keeps the text of its reset, and a pool its caller's hook for each acquire.
_RESET = "_reset_query"
_SETUP = "_setup"
# Where a pool's proxy keeps its place in the pool.
_HOLDER = "_holder"
_IN_FAILED_TRANSACTION = "25P02"
# Where a connection notes its outermost transaction.
_NOTED = "_top_xact"

# Keeps the tasks alive: the event loop alone would not.
_GIVING_BACK: set[asyncio.Task[None]] = set()


class TransactionState(Presented):
    """What a connection's open transaction has presented, and what asyncpg's layer is doing with it.

    Attributes:
        user: the task in the middle of a statement that takes several messages.
        check: the check that is to be sent right before the current statement, see
            :mod:`lockguard_asyncpg._pipelining`.
        caller_text: the caller's text, if the check stands before it in the text that is sent.
        body: the leases of the fenced transaction in whose body the connection is; only the end of that body
            ends the transaction.
    """

    __slots__ = ("body", "caller_text", "check", "user")

    def __init__(self) -> None:
        self.user: asyncio.Task[Any] | None = None
        self.body: tuple[Lease, ...] | None = None
        self.check: Any = None
        self.caller_text: str | None = None
        super().__init__()


_states: WeakKeyDictionary[asyncpg.Connection[Any], TransactionState] = WeakKeyDictionary()


def transaction_state(con: asyncpg.Connection[Any]) -> TransactionState:
    """The state of a connection's transaction; blank if it is in none."""
    tx = _states.get(con)
    if tx is None:
        tx = _states[con] = TransactionState()
    elif con.is_closed() or not con.is_in_transaction():
        tx.clear()
    return tx


def bare(conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any]) -> asyncpg.Connection[Any]:
    """The connection itself: asyncpg records a transaction on it, not on the pool's proxy."""
    if isinstance(conn, PoolConnectionProxy):
        con: asyncpg.Connection[Any] = getattr(conn, _PROXIED)
        return con
    return conn


def sees_all(con: asyncpg.Connection[Any]) -> bool:
    """Whether every statement of ``con`` passes through the fence's layer, so that its state can be kept."""
    return hasattr(con, "execute_plain")


async def send_plain(con: asyncpg.Connection[Any], query: str, *, timeout_s: float | None = None) -> str:
    """Send a simple query with nothing added, also on a fenced connection; returns its command tag."""
    execute = getattr(con, "execute_plain", con.execute)
    return str(await execute(query, timeout=timeout_s))


def is_within_another(con: asyncpg.Connection[Any], transaction: Transaction) -> bool:
    """Whether ``transaction`` is a savepoint of another, which asyncpg ends after it."""
    return getattr(con, _NOTED) is not transaction


async def rolled_back(
    con: asyncpg.Connection[Any], rollback: Coroutine[Any, Any, object], *, within_another: bool = False
) -> None:
    """Roll back within a second, or drop the connection: it must not be reused inside the transaction.

    A cancellation, such as that of a body whose lease was lost, drops it too, unless the rollback is to a
    savepoint of the caller's own transaction (``within_another``). asyncpg would then raise an InterfaceError
    at the end of that one, in place of the cancellation, and the body would go on.
    """
    task = asyncio.ensure_future(asyncio.wait_for(rollback, _ROLLBACK_S))
    # If this is cancelled, no other code retrieves the task's exception.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    cancelled: asyncio.CancelledError | None = None
    while not task.done() and (cancelled is None or within_another):
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if not task.done() or task.cancelled() or task.exception() is not None:
        con.terminate()  # whatever it was, the connection cannot be reused
    if cancelled is not None:
        raise cancelled


async def give_back(
    pool: asyncpg.Pool[Any],
    conn: PoolConnectionProxy[Any],
    *,
    timeout_s: float = _RELEASE_S,
    clean: bool = False,
) -> None:
    """Release a connection, without an error if it proves broken: that says nothing about the work.

    asyncpg resets a connection on release; if it cannot, it drops it from the pool and raises. After a COMMIT
    that was answered, that error would look like a failure of the work, which would then be done twice.

    Args:
        pool: the pool that it came from.
        conn: the connection.
        timeout_s: the time bound of the reset, in seconds; a connection that takes longer is dropped.
        clean: whether its use left nothing in its session, so that it needs no round trip for a reset.
    """
    con = bare(conn)
    spared = clean and getattr(pool, _SETUP, None) is None and hasattr(con, _RESET)
    query = getattr(con, _RESET) if spared else None
    if spared:
        setattr(con, _RESET, "")
    try:
        with contextlib.suppress(*DATABASE_ERRORS):
            if spared and type(pool).release is asyncpg.Pool.release:
                await _release_at_once(conn, timeout_s)
            else:
                await pool.release(conn, timeout=timeout_s)
    finally:
        if spared:
            setattr(con, _RESET, query)


async def give_back_soon(pool: asyncpg.Pool[Any], conn: PoolConnectionProxy[Any]) -> None:
    """As :func:`give_back`, but wait for the reset only if the pool has no other connection at hand.

    Without that wait the next acquire would open a new one.
    """
    if pool.get_idle_size() == 0:
        await give_back(pool, conn)
        return
    # The pool's own close waits for it, as for every connection that is lent out.
    task = asyncio.create_task(give_back(pool, conn), name="lockguard-give-back")
    _GIVING_BACK.add(task)
    task.add_done_callback(_GIVING_BACK.discard)


async def _release_at_once(conn: Any, timeout_s: float | None) -> None:
    """As ``Pool.release``, without its task, which guards a reset from a cancel: here there is none.

    That task costs three turns of the event loop, and each hold with a fence would wait for two of them.
    """
    con: Any = bare(conn)
    con._on_release()
    await getattr(conn, _HOLDER).release(timeout_s)


class TransactionProxy:
    """Stands between asyncpg's ``Transaction`` and its connection.

    Everything but ``execute`` goes through to the connection, including the attributes that asyncpg sets.

    Args:
        con: the connection.
        leases: returns the leases of the transaction when it begins; empty for a plain one.
        limits: bounds on waiting and idling inside.
        sequence: the transaction's number, taken when it begins if it is not given.
        timeout_s: the time bound, in seconds, for each of BEGIN and COMMIT.
        defer: leave it to the caller to end a lease that is refused when the transaction opens.
        closing: SQL sent in the message of COMMIT, before it.
    """

    __slots__ = ("_closing", "_con", "_defer", "_leases", "_limits", "_sequence", "_timeout_s")

    def __init__(
        self,
        con: asyncpg.Connection[Any],
        leases: Callable[[], tuple[Lease, ...]],
        *,
        limits: Limits,
        sequence: int | None = None,
        timeout_s: float | None = None,
        defer: bool = False,
        closing: str = "",
    ) -> None:
        # Not by our own __setattr__, which sets the connection's attributes.
        object.__setattr__(self, "_con", con)
        object.__setattr__(self, "_leases", leases)
        object.__setattr__(self, "_limits", limits)
        object.__setattr__(self, "_sequence", sequence)
        object.__setattr__(self, "_timeout_s", timeout_s)
        object.__setattr__(self, "_defer", defer)
        object.__setattr__(self, "_closing", closing)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._con, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._con, name, value)

    async def execute(self, query: str) -> str:
        """Send a statement of asyncpg's ``Transaction``, with what the fence adds to it."""
        match query.split(maxsplit=1)[0].rstrip(";").upper():
            case "BEGIN":
                try:
                    return await self._open(query, undo=None)
                except BaseException as exc:
                    # asyncpg has recorded the transaction as open and would make the next one a savepoint.
                    setattr(self._con, _NOTED, None)
                    if not isinstance(exc, asyncpg.InterfaceError):  # which says that nothing was sent
                        await self._leave(exc)
                    raise
            case "SAVEPOINT":
                return await self._open(query, undo=f"ROLLBACK TO {query.split()[1]}")
            case "COMMIT" | "END":
                return await self.commit(query)
            case "RELEASE":
                return await self._send(query)
            case _ if query.startswith("ROLLBACK TO"):
                transaction_state(self._con).forget()
                return await self._send(query)
            case _:
                tx = transaction_state(self._con)
                numbers = tx.numbers_taken()
                tx.clear()
                try:
                    tag = await self._send(query)
                except BaseException:
                    self._con.terminate()  # or it would return to its pool inside the transaction
                    raise
                NUMBERS.give_back(numbers)
                return tag

    async def _open(self, query: str, *, undo: str | None) -> str:
        tx, outermost = transaction_state(self._con), undo is None
        leases = self._leases()
        for lease in leases:
            lease.ensure()
        if outermost:
            tx.read_only = " READ ONLY" in query
        if not leases or tx.read_only:
            return await self._send(query)
        await seal_now(leases)  # in a transaction of its own: this one may stay open for long
        if tx.presentation is None and self._sequence is None:
            number = NUMBERS.take(first_of(leases)) if outermost else NUMBERS.alone()
            object.__setattr__(self, "_sequence", number)
        for attempt in range(_OPEN_ATTEMPTS_MAX):
            sequence = self._sequence if tx.presentation is None else None
            presentation = presentation_for(leases, sequence=sequence, limits=self._limits)
            if tx.claims.issuperset(presentation.claims):
                return await self._send(query)
            try:
                tag = await self._send(query + presentation.sql())
            except BaseException as exc:
                tx.forget()
                await self._leave(exc, undo)
                # No statement of the caller has run yet, so a snapshot that a seal overtook is just renewed.
                if outermost and attempt + 1 < _OPEN_ATTEMPTS_MAX and meaning_of(exc) is Meaning.RETRY:
                    continue
                said = (None if self._defer else ended(exc, leases)) or fence_error(exc)
                if said is not None:
                    raise said from exc
                note_on_check(exc, leases)
                raise
            tx.note(presentation, leases, begins=outermost)
            return tag
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def commit(self, query: str) -> str:
        """Send COMMIT, unless a lease has ended; raises if it was not made or its outcome is unknown."""
        tx = transaction_state(self._con)
        leases = tuple(tx.leases.values())
        presentation, refusal, unaccepted = tx.presentation, tx.refusal, tx.unaccepted
        try:
            for lease in leases:
                lease.ensure()
        except LockguardError as exc:
            await self._leave(exc)
            raise
        query = self._closing + query
        if tx.doubt and leases:
            # The record of the outcome may have been rolled back: record it anew, in the same message.
            presentation = presentation_for(leases, sequence=NUMBERS.alone(), limits=self._limits)
            query = presentation.sql() + query
        numbers = tx.numbers_taken()
        try:
            tag = await self._send(query)
        except asyncio.CancelledError as exc:
            if presentation is not None:
                exc.add_note(f"cancelled during COMMIT: {presentation.unknown()}")
            await self._leave(exc)
            raise
        except DATABASE_ERRORS as exc:
            if (said := await self._why_no_commit(exc, presentation, leases, refusal)) is not None:
                raise said from exc
            raise
        NUMBERS.give_back(numbers)
        tx.clear()  # COMMIT AND CHAIN has opened another transaction, which has presented nothing
        if tag == "ROLLBACK" and (presentation is not None or unaccepted):
            # The server reports this only in the command tag, which asyncpg does not examine.
            raise _not_committed() from refusal
        return tag

    async def _why_no_commit(
        self,
        exc: Exception,
        presentation: Presentation | None,
        leases: tuple[Lease, ...],
        refusal: StaleToken | None,
    ) -> LockguardError | None:
        await self._leave(exc)
        if presentation is not None and leaves_in_doubt(exc):
            return presentation.unknown()
        # The check that went before COMMIT has failed, so COMMIT was not executed.
        if getattr(exc, "sqlstate", None) == _IN_FAILED_TRANSACTION:
            return refusal or _not_committed()
        return ended(exc, leases)  # a deferred trigger may refuse only now

    async def _send(self, query: str) -> str:
        return await send_plain(self._con, query, timeout_s=self._timeout_s)

    async def _leave(self, exc: BaseException, undo: str | None = None) -> None:
        """After a failure roll back the transaction, or run ``undo``; a connection that cannot is closed.

        What asyncpg knows of the transaction is reliable only if the server has answered, which it has not
        after a cancel or a timeout.
        """
        answered = isinstance(exc, asyncpg.PostgresError | LockguardError)
        if self._con.is_closed() or (answered and not self._con.is_in_transaction()):
            return
        try:
            rollback = self._send(undo or "ROLLBACK;")
            await rolled_back(self._con, rollback, within_another=undo is not None)
        except asyncio.CancelledError:
            if not isinstance(exc, asyncio.CancelledError):
                raise


def _not_committed() -> NotCommitted:
    return NotCommitted(
        "Postgres rolled the transaction back: a statement in it failed and the error was swallowed;"
        " let it through, or use a savepoint (conn.transaction()) around what may fail"
    )
