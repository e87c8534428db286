"""Fences plain asyncpg code without a change to it: each statement under a lease carries the lease's token.

Inside a guarded body a statement outside of any transaction is sent with the check right before it, where
that can be done (no round trip more), else as ``BEGIN`` + check, statement, ``COMMIT`` (two more);
``conn.transaction()`` presents the lease together with ``BEGIN`` (none more); a transaction that began before
the lease presents it before its next statement (one more). Outside of guarded bodies the connection does what
asyncpg's does.

What was presented is forgotten with the row lock that proves it: at the end of the transaction, and after an
error or a rollback to a savepoint, which may have released the fence's row.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import asyncpg
from asyncpg.transaction import Transaction

from lockguard.errors import ConfigurationError, LockguardError
from lockguard_asyncpg._errors import DATABASE_ERRORS, ended, fence_error, note_on_check, stale
from lockguard_asyncpg._pipelining import NotPipelined, can_pipeline
from lockguard_asyncpg._transaction_state import (
    TransactionProxy,
    TransactionState,
    rolled_back,
    send_plain,
    transaction_state,
)
from lockguard_postgres._claims import Limits, presentation_for
from lockguard_postgres._in_force import is_unfenced, leases_in_force
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._statements import (
    Kind,
    ends_in_savepoint,
    is_commit,
    kind_of,
    may_end_transaction,
    may_write_after,
    read_only_after,
)
from lockguard_postgres._unsealed import seal_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard._lease import Lease

__all__ = ["LIMITS", "Pipelined", "alone", "leases_of", "present", "run", "run_parsed"]

T = TypeVar("T")
Pipelined: TypeAlias = "Callable[[tuple[Lease, ...]], Awaitable[T]]"
LIMITS = Limits()


async def run(
    con: Any,
    text: str,
    send: Callable[[], Awaitable[T]],
    timeout_s: float | None,
    pipelined: Pipelined[T] | None = None,
) -> T:
    """Run one statement of the caller, with what has to go before and after it.

    Args:
        con: the connection.
        text: the statement.
        send: sends it as asyncpg does.
        timeout_s: the time bound, in seconds, for what goes before and after.
        pipelined: sends it with the leases' check right before it; ``None`` where that cannot be done.
    """
    tx, task = transaction_state(con), asyncio.current_task()
    if tx.user is not None:
        if tx.user is task:  # asyncpg runs a statement of its own within the caller's
            return await send()
        # Between our BEGIN and COMMIT another task's statement would join a transaction unknown to it.
        raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
    leases = leases_of(con, tx)
    if tx.body is not None:
        _keep_open(con, text)
    if tx.read_only and may_write_after(text):
        tx.read_only = False
    if not leases:
        return await _plainly(con, tx, text, send)
    kind = kind_of(text)
    # A rollback is right whatever became of the lease. A BEGIN writes nothing, and some frameworks never give
    # back a connection whose BEGIN fails.
    if kind not in {Kind.ROLLBACK, Kind.BEGIN}:
        for lease in leases:
            lease.ensure()
    tx.user = task
    try:
        if con.is_in_transaction():
            return await _inside(con, tx, leases, kind, text, send)
        if kind is Kind.ORDINARY:
            return await _by_itself(con, leases, send, timeout_s, pipelined)
        result = await send()
        tx.read_only = kind is Kind.BEGIN and read_only_after(text) is True
        return result
    finally:
        tx.user = None


async def _by_itself(
    con: Any,
    leases: tuple[Lease, ...],
    send: Callable[[], Awaitable[T]],
    timeout_s: float | None,
    pipelined: Pipelined[T] | None,
) -> T:
    if pipelined is not None and can_pipeline(con):
        # After NotPipelined nothing was done: the lease has to be sealed by itself, or a seal overtook the
        # snapshot. The transaction below takes a new one.
        with contextlib.suppress(NotPipelined):
            return await pipelined(leases)
    try:
        return await alone(con, leases, send, timeout_s)
    except asyncpg.InvalidCachedStatementError:
        # The table's columns have changed. asyncpg has dropped its cached statement, and tries again by
        # itself only outside of a transaction.
        return await alone(con, leases, send, timeout_s)


async def run_parsed(
    con: Any,
    text: str,
    send: Callable[[], Awaitable[T]],
    timeout_s: float | None,
    pipelined: Pipelined[T] | None = None,
) -> T:
    """As :func:`run`, for a statement that was prepared.

    asyncpg sends Parse without Sync, so the server keeps the statement's tables locked, and a pooler keeps
    its server connection, until the next message. A statement that is refused here would have none.
    """
    try:
        return await run(con, text, send, timeout_s, pipelined)
    except LockguardError:
        if not con.is_closed() and not con.is_in_transaction():
            await rolled_back(con, send_plain(con, "select"))
        raise


def leases_of(con: Any, tx: TransactionState) -> tuple[Lease, ...]:
    """The leases under which a statement on ``con`` writes.

    On a connection that is fenced only for the body of a fenced transaction, those of that transaction.

    Raises:
        LeaseNotHeld: see :func:`leases_in_force`.
    """
    if tx.body is None:
        return leases_in_force()
    if is_unfenced():
        return ()
    return tx.body if con.is_lent else leases_in_force() or tx.body


def _keep_open(con: Any, text: str) -> None:
    """Refuse to write outside of the fenced transaction in whose body the statement is.

    Raises:
        ConfigurationError: the text would end it, or it has ended.
    """
    if not con.is_in_transaction() and not con.is_closed():
        raise ConfigurationError("the fenced transaction around this statement has ended: leave its body")
    if may_end_transaction(text):
        raise ConfigurationError(
            f"{text[:60]!r} would end the fenced transaction around it, and what follows would escape"
            " the fence: leave the body instead"
        )


async def _plainly(con: Any, tx: TransactionState, text: str, send: Callable[[], Awaitable[T]]) -> T:
    """Run a statement without a lease, perhaps in a transaction that began under one."""
    tx.forget()  # it may be a ROLLBACK TO that frees the fence's rows
    presented = tuple(tx.leases.values())
    ends = may_end_transaction(text)
    try:
        if (presented or tx.unaccepted) and is_commit(text):
            return cast("T", await _commit(con, presented, text))
        result = await send()
    except DATABASE_ERRORS as exc:
        if (said := ended(exc, presented)) is not None:
            raise said from exc
        raise
    if ends:
        tx.clear()  # perhaps another one has begun by now
    return result


async def alone(
    con: Any, leases: tuple[Lease, ...], send: Callable[[], Awaitable[T]], timeout_s: float | None
) -> T:
    """Run a statement in a transaction of its own, which has ended afterwards whatever the statement did."""
    proxy: Any = TransactionProxy(con, lambda: leases, limits=LIMITS, timeout_s=timeout_s)
    transaction = Transaction(proxy, None, readonly=False, deferrable=False)
    await transaction.start()
    try:
        result = await send()
    except BaseException as exc:
        if not con.is_closed():
            try:
                await rolled_back(con, transaction.rollback())
            except asyncio.CancelledError:
                if not isinstance(exc, asyncio.CancelledError):
                    raise
        if (said := ended(exc, leases)) is not None:
            raise said from exc
        raise
    await transaction.commit()
    return result


async def _inside(
    con: Any,
    tx: TransactionState,
    leases: tuple[Lease, ...],
    kind: Kind,
    text: str,
    send: Callable[[], Awaitable[T]],
) -> T:
    """Run a statement in the caller's transaction."""
    match kind:
        case Kind.COMMIT:
            return cast("T", await _commit(con, leases, text))
        case Kind.ROLLBACK:
            tx.forget()
            result = await send()
            if not ends_in_savepoint(text):  # with AND CHAIN the next one is open already
                tx.clear()
            return result
        case Kind.ORDINARY:
            await present(con, tx, leases)
        case Kind.BEGIN | Kind.SAVEPOINT | Kind.SETTING:
            pass
    try:
        return await send()
    except DATABASE_ERRORS as exc:
        # From here only a rollback, perhaps to a savepoint, is possible.
        tx.forget()
        tx.refusal = stale(exc) or tx.refusal
        if (said := ended(exc, leases)) is not None:
            raise said from exc
        raise


async def _commit(con: Any, leases: tuple[Lease, ...], text: str) -> Any:
    proxy = TransactionProxy(con, lambda: leases, limits=LIMITS)
    return await proxy.commit(text)


async def present(con: Any, tx: TransactionState, leases: tuple[Lease, ...]) -> None:
    """Present ``leases``, unless this transaction has presented them already or is read-only."""
    if tx.read_only:
        return
    await seal_now(leases)
    sequence = NUMBERS.alone() if tx.presentation is None else None
    presentation = presentation_for(leases, sequence=sequence, limits=LIMITS)
    if tx.claims.issuperset(presentation.claims):
        return
    # Before anything is sent: a cancel leaves the transaction as failed as an error does.
    tx.unaccepted = True
    try:
        await send_plain(con, presentation.sql())
    except DATABASE_ERRORS as exc:
        tx.forget()
        tx.refusal = stale(exc) or tx.refusal
        said = ended(exc, leases) or fence_error(exc)
        if said is not None:
            raise said from exc
        note_on_check(exc, leases)
        raise
    tx.note(presentation, leases)
