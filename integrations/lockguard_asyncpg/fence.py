"""The core's Fence port on Postgres: seal on acquire, close on release, break by an operator.

Each is one statement that decides by itself, and each may be repeated: a seal is idempotent per grant,
a close too, and a break only fences once more. So whatever failed for a passing reason (a dropped
connection, a serialization failure) is simply done again until ``within`` is over. What is left then is
:class:`FenceUnavailable`, and the caller closes the grant: a seal that arrives later finds it shut.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard.errors import FenceUnavailable
from lockguard.lease import Grant, Resource, Token
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg.errors import DATABASE_ERRORS, CommitUnknown, Meaning, meaning_of, set_up_error
from lockguard_asyncpg.literals import number, text, uuid
from lockguard_asyncpg.wire import give_back, unfenced

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

__all__ = ["PostgresFence", "resolve"]

_ATTEMPTS_MAX = 20
_PAUSE_FIRST_S = 0.01
_PAUSE_MAX_S = 0.2
# How long a connection may take to give up a cancelled statement before it is thrown away.
_RELEASE_S = 0.5
_LEFT_MIN = timedelta(milliseconds=100)


class PostgresFence:
    """Refuses the writes of every grant but the one that sealed last.

    Give it a pool of its own, or one with room to spare: an acquire that has to wait for a connection that
    another body holds is slow, and fails with :class:`FenceUnavailable` in the end.

    Args:
        pool: an asyncpg pool on the primary, direct or through a pooler in transaction mode.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        """Make ``grant`` the only one whose writes are accepted; waits for open transactions of the old one.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        call = (
            f"lockguard.seal({text(grant.resource)},{number(grant.token)},{uuid(grant.id)},"
            f"{text(grant.holder)},{text(grant.operation)},"
        )
        loop = asyncio.get_running_loop()
        began = loop.time()
        # The row count of a simple query tells yes from no in one message.
        if_sealed = _Call(f"select from {call}", f") where accepted and token = {number(grant.token)}")
        if await _call(self._pool, if_sealed, resource=grant.resource, within=within) == "SELECT 1":
            return Sealed(grant.token)
        # Rare, and asking again is harmless: it was outrun, or has sealed before with another token.
        answer = _Call(f"select accepted, token from {call}", ")", rows=True)  # noqa: S608 - hexadecimal digits
        left = max(_LEFT_MIN, within - timedelta(seconds=loop.time() - began))
        accepted, current = await _call(self._pool, answer, resource=grant.resource, within=left)
        return Sealed(Token(current)) if accepted else Outrun(Token(current))

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        """Accept no more writes of ``grant``; waits for its own open transactions.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        call = f"select lockguard.close({text(grant.resource)},{number(grant.token)},{uuid(grant.id)},"
        await _call(self._pool, _Call(call, ")"), resource=grant.resource, within=within)

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        """Accept no more writes of whoever holds ``resource``; the reason is kept in ``lockguard.audit``.

        Raises:
            FenceUnavailable: not done within ``within``, or nobody knows.
            ConfigurationError: the schema is missing or old, or the role lacks a right.
        """
        call = _Call(f"select lockguard.break_({text(resource)},{text(reason)},", ")", rows=True)
        (token,) = await _call(self._pool, call, resource=resource, within=within)
        return Token(token)


async def resolve(
    pool: asyncpg.Pool[Any], error: CommitUnknown, *, within: timedelta = timedelta(seconds=10)
) -> bool:
    """Whether the transaction whose COMMIT reply was lost has committed. If not, it never will.

    Waits for the transaction while the server still has it open.

    Raises:
        FenceUnavailable: no answer within ``within``; ask again.
    """
    assert error.token is not None
    named = f"{text(error.resource)},{number(error.token)},{number(error.sequence)}"
    call = _Call(f"select where lockguard.resolve({named},", ")")
    return bool(await _call(pool, call, resource=error.resource, within=within) == "SELECT 1")


@dataclass(frozen=True, slots=True)
class _Call:
    """A repeatable call: what stands before its last argument, its bound in ms, and what stands after.

    Attributes:
        rows: whether its row is wanted, which takes a transaction; otherwise the command tag is the answer.
    """

    before: str
    after: str
    rows: bool = False


async def _call(pool: asyncpg.Pool[Any], call: _Call, *, resource: str, within: timedelta) -> Any:
    """Make a call until it is done or ``within`` is over."""
    failure: Exception | None = None
    try:
        async with asyncio.timeout(within.total_seconds()) as scope:
            for attempt in range(_ATTEMPTS_MAX):
                if attempt:
                    await asyncio.sleep(min(_PAUSE_MAX_S, _PAUSE_FIRST_S * 2 ** (attempt - 1)))
                deadline = scope.when()
                assert deadline is not None
                # A little less than is left, so that the server's own answer, which says why, comes first.
                left_ms = max(1, int((deadline - asyncio.get_running_loop().time()) * 900))
                try:
                    return await _once(pool, f"{call.before}{left_ms:d}{call.after}", rows=call.rows)
                except DATABASE_ERRORS as exc:
                    failure = exc
                    if not _passing(exc):
                        break
    except TimeoutError as exc:
        failure = failure or exc
    raise _failed(failure, resource=resource, within=within) from failure


def _passing(exc: Exception) -> bool:
    match meaning_of(exc):
        case Meaning.CONFIGURATION:
            raise set_up_error(exc) from exc
        case Meaning.STALE | Meaning.STATEMENT:
            return False
        case Meaning.RETRY | Meaning.LOST:
            return True
        case Meaning.UNAVAILABLE:
            # A lock timeout has used the time up; a server that starts or is full may be ready soon.
            return getattr(exc, "sqlstate", None) != "55P03"


def _failed(failure: Exception | None, *, resource: str, within: timedelta) -> FenceUnavailable:
    seconds = f"{within.total_seconds():g} s"
    if getattr(failure, "sqlstate", None) == "55P03":
        why = f"an open transaction of the previous holder kept it for {seconds}"
    elif isinstance(failure, TimeoutError) or failure is None:
        why = f"Postgres did not answer within {seconds}"
    else:
        why = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
    return FenceUnavailable(f"the fence of {resource!r} could not be reached: {why}", resource=resource)


async def _once(pool: asyncpg.Pool[Any], query: str, *, rows: bool) -> Any:
    conn: PoolConnectionProxy[Any] = await pool.acquire()
    clean = False
    try:
        with unfenced():  # a seal under another lease is not that lease's write
            if rows:
                async with conn.transaction():
                    return await conn.fetchrow(query)
            # Not by COPY, though it gives rows: asyncpg (0.32) drops a future whose error nobody retrieves if
            # the server's word that it ends the session was read, and the end of the connection not yet.
            tag = await conn.execute(query)
            clean = True
            return tag
    finally:
        # A silent server must not hold the caller beyond its bound: asyncpg then drops the connection.
        await give_back(pool, conn, timeout_s=_RELEASE_S, clean=clean)
