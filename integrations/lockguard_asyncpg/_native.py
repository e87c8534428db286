"""Fences one write in the statement itself, with no more round trips than the write alone takes.

The write becomes a data-modifying CTE and the check the condition of the query over it::

    with lockguard_write as (update ... returning id)
    select w.* from lockguard_write w where (select lockguard.check(...)) is not null

Postgres runs a data-modifying CTE to its end whatever the outer query reads, and evaluates a condition
without columns once, also when no row was written. Whether the check comes before or after the write does
not matter: either it fails the statement or it holds the fence's row until the statement has committed.

With ``statement_cache_size=0``, as behind a pooler in transaction mode, asyncpg needs two messages for a
statement with parameters, and the pooler may give them to two servers. The write is then sent in a
transaction of its own, which takes two more round trips.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg

from lockguard.errors import ConfigurationError, StaleToken
from lockguard_asyncpg._connection import FenceLayer, end_loan, lend
from lockguard_asyncpg._errors import (
    DATABASE_ERRORS,
    Meaning,
    ended,
    leaves_in_doubt,
    meaning_of,
    set_up_error,
    stale,
)
from lockguard_asyncpg._pipelining import NotPipelined, PipelinedCheck, can_pipeline, run_pipelined
from lockguard_asyncpg._pools import require_usable
from lockguard_asyncpg._transaction import FencedTransaction
from lockguard_asyncpg._transaction_state import bare, give_back_soon, transaction_state
from lockguard_postgres._claims import FEW, Limits, first_of, leases_for, presentation_for
from lockguard_postgres._in_force import unfenced
from lockguard_postgres._numbers import NUMBERS
from lockguard_postgres._presented import CLOSED
from lockguard_postgres._statements import is_write
from lockguard_postgres._unsealed import UNSEALED, seal_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg.pool import PoolConnectionProxy

    from lockguard._lease import Lease

__all__ = ["fenced_execute", "fenced_fetch", "fenced_fetchrow", "fenced_fetchval"]

_LIMITS = Limits()
# Whether a connection keeps prepared statements, which is switched off behind a pooler.
_CACHES = "_stmt_cache_enabled"


async def fenced_fetch(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    *args: object,
    lease: Lease | Sequence[Lease] | None = None,
    timeout: float | None = None,
    closes: bool = False,
) -> list[asyncpg.Record]:
    """Run one INSERT, UPDATE, DELETE or MERGE with RETURNING under the lease; returns its rows.

    Args:
        target: a pool, or a connection.
        query: the statement. It may begin with a WITH of its own, as long as that one only reads.
        args: its parameters.
        lease: one or several; by default those of the surrounding bodies.
        timeout: the time bound of the statement, in seconds.
        closes: for the body's last write: its commit also closes the leases in the fence. It waits for other
            transactions under them, and later writes under them are refused.

    Raises:
        StaleToken: the lease is not the one in force; nothing was written.
        LeaseLost: the lease has ended; nothing was sent.
        CommitUnknown: the reply was lost.
    """
    return await _send(target, query, args, lease=lease, timeout_s=timeout, returning=True, closes=closes)


async def fenced_fetchrow(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    *args: object,
    lease: Lease | Sequence[Lease] | None = None,
    timeout: float | None = None,
    closes: bool = False,
    also: Sequence[str] = (),
) -> asyncpg.Record | None:
    """As :func:`fenced_fetch`; returns the first row, or ``None`` if nothing was written.

    Args:
        target: a pool, or a connection.
        query: the statement.
        args: the parameters of all statements.
        lease: one or several; by default those of the surrounding bodies.
        timeout: the time bound of the statement, in seconds.
        closes: see :func:`fenced_fetch`.
        also: further writes in the same statement. They see the tables as ``query`` does, and what it
            returned as ``lockguard_write``; none may write a row that another one writes.
    """
    rows = await _send(
        target, query, args, lease=lease, timeout_s=timeout, returning=True, closes=closes, also=also
    )
    return rows[0] if rows else None


async def fenced_fetchval(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    *args: object,
    lease: Lease | Sequence[Lease] | None = None,
    timeout: float | None = None,
    closes: bool = False,
) -> Any:
    """As :func:`fenced_fetch`; returns the first row's first value, or ``None`` if nothing was written."""
    rows = await _send(target, query, args, lease=lease, timeout_s=timeout, returning=True, closes=closes)
    return rows[0][0] if rows else None


async def fenced_execute(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    *args: object,
    lease: Lease | Sequence[Lease] | None = None,
    timeout: float | None = None,
    closes: bool = False,
) -> None:
    """As :func:`fenced_fetch`, for a statement without RETURNING."""
    await _send(target, query, args, lease=lease, timeout_s=timeout, returning=False, closes=closes)


async def _send(
    target: asyncpg.Pool[Any] | asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    args: tuple[object, ...],
    *,
    lease: Lease | Sequence[Lease] | None,
    timeout_s: float | None,
    returning: bool,
    closes: bool,
    also: Sequence[str] = (),
) -> list[asyncpg.Record]:
    leases = leases_for(lease)
    work = partial(
        _on, query, args, leases, timeout_s=timeout_s, returning=returning, closes=closes, also=also
    )
    try:
        if not isinstance(target, asyncpg.Pool):
            return await work(target)
        for held in leases:
            held.ensure()
        require_usable(target)
        lent: PoolConnectionProxy[Any] = await target.acquire()
        try:
            return await work(lent)
        finally:
            await give_back_soon(target, lent)
    except StaleToken as exc:
        if exc.__cause__ is not None:
            ended(exc.__cause__, leases)
        raise


async def _on(
    query: str,
    args: tuple[object, ...],
    leases: Sequence[Lease],
    target: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    *,
    timeout_s: float | None,
    returning: bool,
    closes: bool,
    also: Sequence[str],
) -> list[asyncpg.Record]:
    con: Any = bare(target)
    if con is None:  # the server dropped it, and the pool has emptied its proxy
        raise asyncpg.InterfaceError("cannot write: the connection is closed")
    if target.is_in_transaction():
        if closes:
            raise ConfigurationError(
                "closes=True is for a write by itself, and this connection is in a transaction: give it to"
                " the outermost fenced_transaction(...)"
            )
        await seal_now(leases)
        return await _one(target, query, args, leases, timeout_s=timeout_s, returning=returning, also=also)
    text = f"{_writes(query, also)} select * from lockguard_write" if also else query  # noqa: S608 - the caller's own SQL
    # A close or a seal is sent before the write, which then sees all that came before the seal.
    if (
        (closes or any(UNSEALED.waits(lease.grant.id) for lease in leases))
        and is_write(text)
        and can_pipeline(con)
    ):
        with contextlib.suppress(NotPipelined):
            return await _pipelined(con, text, args, tuple(leases), timeout_s=timeout_s, closes=closes)
    await seal_now(leases)
    if getattr(con, _CACHES) and not closes:
        return await _one(target, query, args, leases, timeout_s=timeout_s, returning=returning, also=also)
    async with FencedTransaction(target, leases, closes=closes):
        if returning:
            return list(await target.fetch(text, *args, timeout=timeout_s))
        await target.execute(query, *args, timeout=timeout_s)
        return []


async def _pipelined(
    con: Any,
    text: str,
    args: tuple[object, ...],
    leases: tuple[Lease, ...],
    *,
    timeout_s: float | None,
    closes: bool,
) -> list[asyncpg.Record]:
    loan = lend(con)  # the fence's layer can send the check right before a statement
    tx = transaction_state(con)
    if tx.user is not None:
        raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
    tx.user = asyncio.current_task()

    async def send(check: PipelinedCheck) -> list[asyncpg.Record]:
        tx.check = check
        try:
            parent: Any = super(FenceLayer, con)
            return list(await parent.fetch(text, *args, timeout=timeout_s))
        finally:
            tx.check = None

    try:
        rows = await run_pipelined(con, leases, _LIMITS, send, last=closes)
    finally:
        tx.user = None
        end_loan(con, loan)
    if closes:
        CLOSED.note(leases)
    return rows


async def _one(
    conn: asyncpg.Connection[Any] | PoolConnectionProxy[Any],
    query: str,
    args: tuple[object, ...],
    leases: Sequence[Lease],
    *,
    timeout_s: float | None,
    returning: bool,
    also: Sequence[str],
) -> list[asyncpg.Record]:
    inside = conn.is_in_transaction()
    # Inside, the outcome is that of the caller's transaction; the statement has none of its own to look up.
    sequence = None if inside else NUMBERS.take(first_of(leases))
    presentation = presentation_for(leases, sequence=sequence, limits=_LIMITS)
    # Scalars, not arrays: asyncpg would ask the server about an array's type on each new connection.
    presented: list[object] = []
    for claim in presentation.claims:
        presented += claim.resource, claim.token, UUID(claim.grant)
    presented.append(sequence)
    text = _fenced(query, tuple(also), len(args), leases=len(presentation.claims), returning=returning)
    try:
        with unfenced():
            rows = list(await conn.fetch(text, *args, *presented, timeout=timeout_s))
    except DATABASE_ERRORS as exc:
        if (refusal := stale(exc)) is not None:
            raise refusal from exc
        if meaning_of(exc) is Meaning.CONFIGURATION and "lockguard" in str(
            exc
        ):  # the check's, not the write's
            raise set_up_error(exc) from exc
        # In the caller's transaction a lost connection leaves no doubt: nothing was committed.
        if inside and (said := ended(exc, leases)) is not None:
            raise said from exc
        if sequence is not None:
            if leaves_in_doubt(exc):
                raise presentation.unknown() from exc
            if getattr(exc, "sqlstate", None) is not None:  # the server has answered: nothing was written
                NUMBERS.give_back((sequence,))
        raise
    if sequence is not None:
        NUMBERS.give_back((sequence,))
    return rows


@lru_cache(maxsize=1024)
def _fenced(query: str, also: tuple[str, ...], count: int, *, leases: int, returning: bool) -> str:
    return _wrapped(_writes(query, also), count, leases=leases, returning=returning)


def _writes(query: str, also: Sequence[str]) -> str:
    """The statements as one WITH; those after the first may read what the first returned."""
    bodies = [one.strip().removesuffix(";") for one in (query, *also)]
    names = ["lockguard_write", *(f"lockguard_also_{n}" for n in range(1, len(bodies)))]
    return "with " + ", ".join(f"{name} as (\n{body}\n)" for name, body in zip(names, bodies, strict=True))


def _wrapped(write: str, count: int, *, leases: int, returning: bool) -> str:
    last = count + 1 + 3 * leases
    claims = [(f"${n}::text", f"${n + 1}::bigint", f"${n + 2}::uuid") for n in range(count + 1, last, 3)]
    if leases > FEW:
        resources, tokens, grants = (f"array[{','.join(part)}]" for part in zip(*claims, strict=True))
        check = f"select lockguard.check_all({resources}, {tokens}, {grants}, ${last}::bigint)"
    else:
        first, *others = (", ".join(claim) for claim in claims)
        calls = (f"lockguard.check({first}, ${last}::bigint)", *(f"lockguard.check({one})" for one in others))
        check = "select " + " + ".join(calls)
    if returning:
        return f"{write} select w.* from lockguard_write w where ({check}) is not null"  # noqa: S608 - the caller's own SQL
    return f"{write} {check}"
