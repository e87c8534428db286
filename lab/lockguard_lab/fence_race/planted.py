"""Checks that look sound and are not: a race that did not catch them would prove nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lockguard.errors import StaleToken
from lockguard_asyncpg._transaction_state import bare
from lockguard_lab.fence_race.plan import RacePlan, RaceReport, Way, WriteAttempt
from lockguard_lab.fence_race.planted_ends import WEAK_ENDS
from lockguard_lab.fence_race.running import race
from lockguard_lab.fence_race.writes import ADD, BUMP, plain_transaction
from lockguard_postgres._claims import Claim

if TYPE_CHECKING:
    from lockguard_asyncpg._transaction import Isolation

__all__ = ["PLANTED", "PLANTED_ISOLATIONS", "WEAK_CHECKS", "Verdict", "convict"]

_GAP_S = 0.002
_SEEDS_MAX = 10
_IN_FORCE = """
select true from lockguard.fence f where f.resource = $1 and f.token = $2 and f.released_at is null
"""
PLANTED_ISOLATIONS: tuple[Isolation, ...] = ("read_committed", "repeatable_read")
"""Not SERIALIZABLE: there Postgres itself refuses some of their stale writes."""


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
        await asyncio.sleep(_GAP_S)  # and the gap before its commit
        await attempt.pause()


async def _gap(attempt: WriteAttempt) -> None:
    """Wait in the gap that a weak check leaves open between itself and the write."""
    await asyncio.sleep(_GAP_S)
    await attempt.pause()


def _refused(attempt: WriteAttempt) -> StaleToken:
    lease = attempt.lease
    return StaleToken("stale", resource=lease.resource, presented=lease.token, current=None)


async def where_exists_write(attempt: WriteAttempt) -> None:
    """Check in a condition of the UPDATE, without a lock."""
    await _weak(attempt, "", f"{BUMP} and exists ({_IN_FORCE})")


async def row_predicate_write(attempt: WriteAttempt) -> None:
    """Compare only the token on the row itself."""
    await _weak(attempt, "", BUMP + " and coalesce(token, 0) <= $2")


async def key_share_write(attempt: WriteAttempt) -> None:
    """Check with a lock that a seal does not wait for."""
    await _weak(attempt, _IN_FORCE + " for key share", BUMP)


async def select_write(attempt: WriteAttempt) -> None:
    """Check without a lock, then write."""
    await _weak(attempt, _IN_FORCE, BUMP)


async def select_insert(attempt: WriteAttempt) -> None:
    """Check without a lock, then insert: no row of the earlier holder blocks it."""
    await _weak(attempt, _IN_FORCE, ADD)


_checked: WeakKeyDictionary[object, set[tuple[str, int]]] = WeakKeyDictionary()


async def once_per_connection_write(attempt: WriteAttempt) -> None:
    """Check a lease once on each connection, and trust that check after its transaction.

    A fenced transaction inside the caller's own once did this.
    """
    lease = attempt.lease
    async with plain_transaction(attempt) as conn:
        known = _checked.setdefault(bare(conn), set())
        if (lease.resource, lease.token) not in known:
            await _check(attempt, conn)
            known.add((lease.resource, lease.token))
        await _write_late(attempt, conn)


async def rolled_back_check_write(attempt: WriteAttempt) -> None:
    """Check in a savepoint that is rolled back, which releases the lock."""
    async with plain_transaction(attempt) as conn:
        savepoint = conn.transaction()
        await savepoint.start()
        await _check(attempt, conn)
        await savepoint.rollback()
        await _write_late(attempt, conn)


async def check_of_its_own_write(attempt: WriteAttempt) -> None:
    """Check and write in one round trip or two, but with a Sync in between: two transactions."""
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
"""Weak checks: they let stale writes through although the fence seals and closes correctly."""
PLANTED: tuple[Way, ...] = (*WEAK_CHECKS, *WEAK_ENDS)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of the races with one planted check.

    Attributes:
        report: the report of the last race, which has the stale commit if one was seen.
        races: how many races were run.
    """

    report: RaceReport
    races: int

    @property
    def convicted(self) -> bool:
        """Whether a stale commit was seen."""
        return self.report.stale_commits > 0


async def convict(url: str, way: Way, plan: RacePlan) -> Verdict:
    """Race with a planted check until a stale commit is seen or the seeds are used up."""
    verdict = Verdict(RaceReport(), 0)
    for seed in range(plan.seed, plan.seed + _SEEDS_MAX):
        quiet = replace(plan, kill_every=None, lose_share=0, trespass=1, seed=seed)
        verdict = Verdict(await race(url, quiet, way), verdict.races + 1)
        if verdict.convicted:
            break
    return verdict
