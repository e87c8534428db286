"""Closes, single-statement writes and travelling seals that look sound and are not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

from lockguard.errors import FenceUnavailable, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg._attached import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS, stale
from lockguard_lab.fence_race.plan import Way, WriteAttempt
from lockguard_lab.fence_race.writes import BUMP, filled_in, plain_transaction, transaction_write
from lockguard_postgres._claims import Claim
from lockguard_postgres._presented import CLOSED

if TYPE_CHECKING:
    from datetime import timedelta

    import asyncpg

    from lockguard._lease import Grant, Resource, Token

__all__ = ["WEAK_ENDS"]

_GAP_S = 0.01
_CLOSE_MS = 1_000


# Closes


class _Closes:
    """Seals correctly; subclasses close in their own way."""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._sound = PostgresFence(pool)
        self._tasks: set[asyncio.Task[None]] = set()

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        return await self._sound.seal(grant, within=within)

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        raise NotImplementedError

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        return await self._sound.break_(resource, reason=reason, within=within)

    async def _close(self, query: str, grant: Grant) -> None:
        try:
            await self._pool.execute(query, grant.resource, grant.token, UUID(grant.id))
        except DATABASE_ERRORS as exc:
            raise FenceUnavailable("not closed", resource=grant.resource) from exc


class _InTheBackground(_Closes):
    """Closes in the background, without waiting for the answer."""

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        task = asyncio.create_task(self._later(grant, within))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _later(self, grant: Grant, within: timedelta) -> None:
        await asyncio.sleep(_GAP_S)  # a busy machine
        try:
            await self._sound.close(grant, within=within)
        except (FenceUnavailable, *DATABASE_ERRORS):
            return


class _PastOpenTransactions(_Closes):
    """Closes only if the row is free at once, without waiting for a transaction of the same body."""

    async def close(self, grant: Grant, *, within: timedelta) -> None:  # noqa: ARG002 - it never waits
        await self._close(
            "update lockguard.fence set released_at = clock_timestamp() where resource in ("
            " select resource from lockguard.fence where resource = $1 and token = $2 and grant_id = $3"
            " for update skip locked)",
            grant,
        )


async def closed_in_a_savepoint_write(attempt: WriteAttempt) -> None:
    """Close with the write, and take the close as done although its savepoint was rolled back."""
    lease = attempt.lease
    claim = Claim(lease.resource, lease.token, lease.grant.id)
    async with plain_transaction(attempt) as conn:
        await conn.execute(claim.check_sql())
        await attempt.pause()
        await conn.execute(BUMP, lease.resource, lease.token, attempt.op)
        savepoint = conn.transaction()
        await savepoint.start()
        await conn.execute(claim.close_sql(_CLOSE_MS))
        await savepoint.rollback()
    CLOSED.note([lease])


# Single-statement writes


async def two_groups_write(attempt: WriteAttempt) -> None:
    """Send check and write in one message and one round trip, although they are two transactions."""
    lease = attempt.lease
    check = Claim(lease.resource, lease.token, lease.grant.id).check_sql()
    await _in_one_trip(attempt, f"begin; {check} commit")


async def _in_one_trip(attempt: WriteAttempt, before: str) -> None:
    """Send in one message ``before``, a moment in which the backend does not run, and the write."""
    lease = attempt.lease
    write = filled_in(BUMP, (lease.resource, lease.token, attempt.op))
    await attempt.pause()
    async with attempt.pool.acquire() as conn:
        try:
            await conn.execute(f"{before}; select pg_sleep({_GAP_S}); {write}")
        except DATABASE_ERRORS as exc:
            await conn.execute("rollback")
            if (refusal := stale(exc)) is not None:
                raise refusal from exc
            raise


# Seals that travel with the first write. The race keeps them in its own table: the fence's table has triggers
# that stop some of them.


class _Travels(_Closes):
    """Closes in the race's table of travelling seals."""

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed:  # noqa: ARG002 - it leaves later
        return Sealed(grant.token)

    async def close(self, grant: Grant, *, within: timedelta) -> None:  # noqa: ARG002 - one statement
        await self._close(
            "insert into lockguard_race.seal as s values ($1, $2, $3, false) on conflict (resource)"
            " do update set is_open = false where s.grant_id = excluded.grant_id",
            grant,
        )


_SEAL = """
insert into lockguard_race.seal as s values ($1, $2, $3, true)
on conflict (resource) do update set token = excluded.token, grant_id = excluded.grant_id, is_open = true
"""
_NOT_OLDER = " where s.token <= excluded.token"
_SOUND = " where s.token < excluded.token or s.grant_id = excluded.grant_id and s.is_open"


async def _seal(attempt: WriteAttempt, conn: Any, condition: str) -> None:
    lease = attempt.lease
    done = await conn.execute(_SEAL + condition, lease.resource, lease.token, UUID(lease.grant.id))
    if done == "INSERT 0 0":
        raise StaleToken("stale", resource=lease.resource, presented=lease.token, current=None)


async def last_one_seals_write(attempt: WriteAttempt) -> None:
    """Seal with the first write, regardless of what is sealed already."""
    await _sealed_with_the_write(attempt, "")


async def opens_what_was_closed_write(attempt: WriteAttempt) -> None:
    """Seal with each write, even a late one: a closed grant is open again."""
    await _sealed_with_the_write(attempt, _NOT_OLDER)


async def _sealed_with_the_write(attempt: WriteAttempt, condition: str) -> None:
    async with attempt.pool.acquire() as conn, conn.transaction(isolation=attempt.isolation):
        await attempt.pause()
        await _seal(attempt, conn, condition)
        await attempt.pause()
        await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)


async def sealed_and_let_go_write(attempt: WriteAttempt) -> None:
    """Seal correctly, but commit the seal before the write begins."""
    async with attempt.pool.acquire() as conn:
        await _seal(attempt, conn, _SOUND)
        await asyncio.sleep(_GAP_S)
        await attempt.pause()
        await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)
        await attempt.pause()


WEAK_ENDS: tuple[Way, ...] = (
    Way("closed in the background", transaction_write, fence=_InTheBackground),
    Way("closed past open transactions", transaction_write, fence=_PastOpenTransactions),
    Way("closed in a savepoint that rolled back", closed_in_a_savepoint_write),
    Way("check and write in one message, two transactions", two_groups_write),
    Way("sealed with the write by whoever comes last", last_one_seals_write, fence=_Travels, travels=True),
    Way(
        "sealed with each write, also when closed", opens_what_was_closed_write, fence=_Travels, travels=True
    ),
    Way("sealed before the write, not with it", sealed_and_let_go_write, fence=_Travels, travels=True),
)
