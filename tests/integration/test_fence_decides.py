"""What is presented, and how a fence seals, closes and confirms."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.errors import FenceUnavailable, LeaseLost, LossReason, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import (
    CommitUnknown,
    fenced_execute,
    fenced_transaction,
    resolve,
)
from lockguard_postgres._claims import Claim, Limits, presentation_for
from lockguard_postgres._fence import SealUnknown
from lockguard_postgres._unsealed import UNSEALED, Unsealed, seal_now
from tests.integration.fence_leases import SOON, grant_of, held, lease_of
from tests.integration.fence_notes import (
    INSERT,
    fence_over,
    notes_url,
    pool,
    resource,
    sealed,
)

__all__ = ["notes_url", "pool", "resource"]


# --- what is presented ---


async def test_what_a_transaction_may_keep_waiting_is_bounded_by_its_shortest_lease(
    resource: Resource,
) -> None:
    long = lease_of(replace(grant_of(7, resource), ttl_ms=60_000))
    short = lease_of(replace(grant_of(7, f"{resource}:a"), ttl_ms=2_000))
    presented = presentation_for([long, short], sequence=5, limits=Limits())
    assert (presented.lock_ms, presented.idle_ms) == (2_000, 2_000)
    alone = presentation_for([long], sequence=5, limits=Limits())
    assert (alone.lock_ms, alone.idle_ms) == (5_000, 60_000)
    given = Limits(lock_timeout=timedelta(seconds=1), idle_timeout=timedelta(0))
    bounded = presentation_for([long], sequence=5, limits=given)
    assert (bounded.lock_ms, bounded.idle_ms) == (1_000, 1)


async def test_claims_are_presented_in_one_order_whatever_the_caller_s(resource: Resource) -> None:
    leases = [lease_of(grant_of(7, f"{resource}:{name}")) for name in "cab"]
    for order in (leases, leases[::-1], sorted(leases, key=lambda one: one.resource)):
        claims = presentation_for(order, sequence=5, limits=Limits()).claims
        assert [claim.resource[-1] for claim in claims] == ["a", "b", "c"]
        sql = presentation_for(order, sequence=5, limits=Limits()).sql()
        assert sql.count("lockguard.check(") == 3


async def test_nothing_is_presented_of_a_lease_that_has_ended(resource: Resource) -> None:
    lease = lease_of(grant_of(7, resource))
    lease.end(LossReason.REFUSED)
    with pytest.raises(LeaseLost):
        presentation_for([lease], sequence=None, limits=Limits())


def test_a_claim_that_is_the_last_one_closes() -> None:
    claim = Claim(Resource("r"), Token(7), GrantId("a" * 32))
    assert "check_last(" in claim.check_sql(5, last=True)
    assert "check(" in claim.check_sql(5)


async def test_a_seal_tells_what_is_in_force(pool: asyncpg.Pool[Any], resource: Resource) -> None:
    fence = await fence_over(pool)
    _, first = await sealed(fence, 7, resource)
    assert first == Sealed(Token(7))
    assert first.seal.endswith(" 7")
    _, late = await sealed(fence, 5, resource)
    assert late == Outrun(Token(7))
    await fence.aclose()


async def test_a_database_that_lacks_the_last_seal_takes_none_and_one_of_another_fence_is_no_matter(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    _, first = await sealed(fence, 7, resource)
    name = first.seal.partition(" ")[0]
    with pytest.raises(SealUnknown):
        await sealed(fence, 8, resource, seal=f"{name} 99")
    _, other = await sealed(fence, 8, resource, seal=f"{uuid4().hex} 99")
    assert other == Sealed(Token(8))
    await fence.aclose()


async def test_only_the_open_grant_in_force_is_confirmed(pool: asyncpg.Pool[Any], resource: Resource) -> None:
    fence = await fence_over(pool)
    grant, _ = await sealed(fence, 7, resource)
    assert await fence.confirm(grant, within=SOON)
    assert not await fence.confirm(replace(grant, token=Token(6)), within=SOON)
    assert not await fence.confirm(grant_of(7, resource), within=SOON)
    await fence.close(grant, within=SOON)
    assert not await fence.confirm(grant, within=SOON)
    await fence.aclose()


async def test_a_close_that_cannot_be_made_now_is_made_later(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    grant, _ = await sealed(fence, 7, resource)
    async with pool.acquire() as conn:
        async with conn.transaction():
            await conn.execute(
                "select lockguard.check($1, 7, $2)", resource, asyncpg.pgproto.pgproto.UUID(grant.id)
            )
            with pytest.raises(FenceUnavailable):
                await fence.close(grant, within=timedelta(milliseconds=50))
        query = "select released_at is not null from lockguard.fence where resource = $1"
        async with asyncio.timeout(10):
            while not await conn.fetchval(query, resource):
                await asyncio.sleep(0.02)
    await fence.aclose()


async def test_a_grant_that_is_handed_on_is_closed_by_its_successor_s_seal_or_by_itself(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    closed = "select released_at is not null or token > $2 from lockguard.fence where resource = $1"
    grant, first = await sealed(fence, 7, resource)
    grant = replace(grant, seal=first.seal)
    successor = replace(grant_of(8, resource), seal=first.seal)
    handing = asyncio.create_task(fence.hand_on(grant, successor.id, within=SOON))
    await asyncio.sleep(0)
    taken = await fence.seal(successor, within=SOON)
    assert taken == Sealed(Token(8))
    await handing
    assert await pool.fetchval(closed, resource, 7)
    successor = replace(successor, seal=taken.seal)
    await fence.hand_on(successor, GrantId("f" * 32), within=timedelta(seconds=1))  # nobody comes
    assert await pool.fetchval(closed, resource, 8)
    await fence.aclose()


async def test_a_close_that_was_handed_to_a_seal_that_failed_is_made_by_itself(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool)
    grant, first = await sealed(fence, 7, resource)
    grant = replace(grant, seal=first.seal)
    name = first.seal.partition(" ")[0]
    successor = replace(grant_of(8, resource), seal=f"{name} 99")  # which this database does not have
    handing = asyncio.create_task(fence.hand_on(grant, successor.id, within=SOON))
    await asyncio.sleep(0)
    with pytest.raises(SealUnknown):
        await fence.seal(successor, within=SOON)
    await handing
    closed = "select token = 7 and released_at is not null from lockguard.fence where resource = $1"
    assert await pool.fetchval(closed, resource)
    await fence.aclose()


# --- a seal with the first write ---


async def test_a_first_write_seals_and_until_then_the_database_knows_nothing(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool, seal_with_first_write=True)
    count = "select count(*) from lockguard.fence where resource = $1"
    for write in ("lone", "transaction", "confirm"):
        token = {"lone": 7, "transaction": 8, "confirm": 9}[write]
        grant, answer = await sealed(fence, token, resource)
        assert answer == Sealed(Token(token))
        assert UNSEALED.waits(grant.id)
        if write == "lone":
            assert await pool.fetchval(count, resource) == 0
            await fenced_execute(pool, INSERT, resource, lease=lease_of(grant))
        elif write == "transaction":
            async with fenced_transaction(pool, lease_of(grant)) as conn:
                await conn.execute(INSERT, resource)
        else:
            assert await fence.confirm(grant, within=SOON)
        assert not UNSEALED.waits(grant.id) or write == "confirm"
        row = "select token from lockguard.fence where resource = $1"
        assert await pool.fetchval(row, resource) == token
        await fence.close(grant, within=SOON)
    await fence.aclose()


async def test_a_first_write_that_is_outrun_ends_its_lease_and_the_next_grant_is_sealed_at_once(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    fence = await fence_over(pool, seal_with_first_write=True)
    grant, _ = await sealed(fence, 7, resource)
    await held(pool, 9, resource)
    lease = lease_of(grant)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, INSERT, resource, lease=lease)
    assert lease.loss is LossReason.FENCED
    again, answer = await sealed(fence, 8, resource)
    assert answer == Outrun(Token(9))
    assert not UNSEALED.waits(again.id)
    later, _ = await sealed(fence, 11, resource)
    assert UNSEALED.waits(later.id)
    UNSEALED.drop(later.id)
    await fence.aclose()


async def test_what_an_unsealed_grant_leaves_to_be_closed() -> None:
    async def seal(grant: Grant) -> Sealed:
        sealing.append(grant)
        await asyncio.sleep(0)
        return Sealed(grant.token)

    sealing: list[Grant] = []
    pending = Unsealed()
    never, presented, broken = (grant_of(7, f"r:{name}") for name in "abc")
    for grant in (never, presented, broken):
        pending.note(grant, seal=seal, first_sql="x(", remembered="f 7")
    pending.present(presented.id)
    pending.broken(broken.resource)
    assert [pending.drop(grant.id) for grant in (never, presented, broken)] == [True, False, False]
    pending.note(never, seal=seal, first_sql="x(", remembered="f 7")
    lease = lease_of(never)

    async def once() -> Any:
        answer = await pending.seal(never)
        pending.sealed([lease])
        return answer

    answers = await asyncio.gather(once(), once())
    assert len(sealing) == 1
    assert sorted(answer is None for answer in answers) == [False, True]
    assert lease.grant.seal == "f 7"
    pending.note(never, seal=seal, first_sql="x(", remembered="f 7")
    pending.forget_all()
    assert not pending.waits(never.id)
    await seal_now([lease])


async def test_what_became_of_a_write_is_asked_of_where_it_was_made(
    pool: asyncpg.Pool[Any], resource: Resource
) -> None:
    lease = await held(pool, 7, resource)
    sequence = (1 << 62) + 5
    claim = (resource, 7, asyncpg.pgproto.pgproto.UUID(lease.grant.id), sequence)
    await pool.execute("select lockguard.check($1, $2, $3, $4)", *claim)
    known = CommitUnknown(resource=resource, token=Token(7), sequence=sequence)
    lost = CommitUnknown(resource=resource, token=Token(7), sequence=sequence + 1)
    assert await resolve(pool, known) is True
    assert await resolve(pool, lost) is False
    never = CommitUnknown(resource=resource, token=Token(9), sequence=sequence + 2_048, first=True)
    assert await resolve(pool, never) is False
