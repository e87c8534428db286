"""Checks that look sound and are not: if the race did not see them, it would prove nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lockguard.errors import StaleToken
from lockguard_asyncpg._claims import Claim
from lockguard_asyncpg._transaction_state import bare
from lockguard_lab.fence_race.plan import RacePlan, RaceReport, Way, WriteAttempt
from lockguard_lab.fence_race.planted_ends import WEAK_ENDS
from lockguard_lab.fence_race.running import race
from lockguard_lab.fence_race.writes import ADD, BUMP, plain_transaction

if TYPE_CHECKING:
    from lockguard_asyncpg._transaction import Isolation

__all__ = ["PLANTED", "PLANTED_ISOLATIONS", "WEAK_CHECKS", "Verdict", "convict"]

_GAP_S = 0.002
_SEEDS_MAX = 10
_IN_FORCE = """
select true from lockguard.fence f where f.resource = $1 and f.token = $2 and f.released_at is null
"""
PLANTED_ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "repeatable_read")
"""At SERIALIZABLE Postgres itself refuses some of them, which is no merit of theirs."""


async def _weak(attempt: WriteAttempt, check: str, write: str) -> None:
    async with attempt.pool.acquire() as conn, conn.transaction(isolation=attempt.isolation):
        lease = attempt.lease
        if check and not await conn.fetchval(check, lease.resource, lease.token):
            raise _refused(attempt)
        if not check:
            await attempt.pause()
            await asyncio.sleep(_GAP_S)
        else:
            await _gap(attempt)
        if await conn.execute(write, lease.resource, lease.token, attempt.op) == "UPDATE 0":
            raise _refused(attempt)
        await asyncio.sleep(_GAP_S)  # and the one before its commit
        await attempt.pause()


async def _gap(attempt: WriteAttempt) -> None:
    """What a weak check leaves open between itself and the write."""
    await asyncio.sleep(_GAP_S)
    await attempt.pause()


def _refused(attempt: WriteAttempt) -> StaleToken:
    lease = attempt.lease
    return StaleToken("stale", resource=lease.resource, presented=lease.token, current=None)


async def where_exists_write(attempt: WriteAttempt) -> None:
    """The check as a condition of the UPDATE, without a lock."""
    await _weak(attempt, "", f"{BUMP} and exists ({_IN_FORCE})")


async def row_predicate_write(attempt: WriteAttempt) -> None:
    """Only the row's own token is compared."""
    await _weak(attempt, "", BUMP + " and coalesce(token, 0) <= $2")


async def key_share_write(attempt: WriteAttempt) -> None:
    """A lock that a seal does not wait for."""
    await _weak(attempt, _IN_FORCE + " for key share", BUMP)


async def select_write(attempt: WriteAttempt) -> None:
    """Look, then write."""
    await _weak(attempt, _IN_FORCE, BUMP)


async def select_insert(attempt: WriteAttempt) -> None:
    """Look, then insert: no row of the holder before is in the way."""
    await _weak(attempt, _IN_FORCE, ADD)


_checked: WeakKeyDictionary[object, set[tuple[str, int]]] = WeakKeyDictionary()


async def once_per_connection_write(attempt: WriteAttempt) -> None:
    """Check a lease once on each connection: what is known of it outlives the transaction.

    A fenced transaction inside the caller's own did this once.
    """
    lease = attempt.lease
    async with plain_transaction(attempt) as conn:
        known = _checked.setdefault(bare(conn), set())
        if (lease.resource, lease.token) not in known:
            await _check(attempt, conn)
            known.add((lease.resource, lease.token))
        await _write_late(attempt, conn)


async def rolled_back_check_write(attempt: WriteAttempt) -> None:
    """Check in a savepoint that is rolled back, and with it the lock."""
    async with plain_transaction(attempt) as conn:
        savepoint = conn.transaction()
        await savepoint.start()
        await _check(attempt, conn)
        await savepoint.rollback()
        await _write_late(attempt, conn)


async def check_of_its_own_write(attempt: WriteAttempt) -> None:
    """Check and write in one round trip or two, but with a Sync between them: two transactions."""
    async with attempt.pool.acquire() as conn:
        await _check(attempt, conn)
        await _write_late(attempt, conn)


async def _check(attempt: WriteAttempt, conn: Any) -> None:
    lease = attempt.lease
    await conn.execute(Claim(lease.resource, lease.token, lease.grant.id).check_sql())


async def _write_late(attempt: WriteAttempt, conn: Any) -> None:
    await _gap(attempt)
    await conn.execute(BUMP, attempt.lease.resource, attempt.lease.token, attempt.op)
    await attempt.pause()


WEAK_CHECKS: tuple[Way, ...] = (
    Way("where exists", where_exists_write),
    Way("token <= on the row", row_predicate_write),
    Way("for key share", key_share_write),
    Way("select, then update", select_write),
    Way("select, then insert", select_insert),
    Way("checked once per connection", once_per_connection_write),
    Way("checked in a savepoint that rolled back", rolled_back_check_write),
    Way("checked in a transaction of its own", check_of_its_own_write),
)
"""Whoever goes through one writes stale, with a fence that closes and seals as it should."""
PLANTED: tuple[Way, ...] = (*WEAK_CHECKS, *WEAK_ENDS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one planted check.

    Attributes:
        report: of the last race; that with the stale commit, if one was seen.
        races: how many it took.
    """

    report: RaceReport
    races: int

    @property
    def convicted(self) -> bool:
        """Whether a stale commit was seen."""
        return self.report.stale_commits > 0


async def convict(url: str, way: Way, plan: RacePlan) -> Verdict:
    """Race with a planted check until a stale commit is seen, or the seeds are used up."""
    verdict = Verdict(RaceReport(), 0)
    for seed in range(plan.seed, plan.seed + _SEEDS_MAX):
        quiet = replace(plan, kill_every=None, lose_share=0, trespass=1, seed=seed)
        verdict = Verdict(await race(url, quiet, way), verdict.races + 1)
        if verdict.convicted:
            break
    return verdict
