"""What became of a write, a break, and who keeps a seal waiting."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.integration.fence_by_hand import CHECK_FIRST, WRITER, YEAR_US, Fence, fence, fenced_url

__all__ = ["fence", "fenced_url"]


# --- the last and the first write under a lease ---


async def test_the_last_write_closes_the_grant_with_its_commit_and_writes_on_until_then(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    query = "select lockguard.check_last($1, $2, $3)"
    async with fence.conn.transaction():
        await fence.conn.execute(query, fence.resource, fence.now, grant)
        hold = "select lockguard.hold($1, $2, $3)"
        await fence.conn.execute(hold, fence.resource, fence.now, grant)
    assert await fence.refused(fence.now, grant) == "closed"


async def test_the_last_write_waits_for_the_others(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    async with fence.other.transaction():
        await fence.check(fence.now, grant, by=fence.other)
        await fence.conn.execute("set lock_timeout = '50ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            query = "select lockguard.check_last($1, $2, $3)"
            await fence.conn.execute(query, fence.resource, fence.now, grant)


async def test_a_first_write_seals_and_one_that_cannot_is_sent_the_long_way(fence: Fence) -> None:
    first, second, late = uuid4(), uuid4(), uuid4()
    for token, grant in ((fence.now, first), (fence.now, first), (fence.now + 5, second)):
        await fence.conn.execute(CHECK_FIRST, fence.resource, token, grant, None)
    await fence.check(fence.now + 5, second)

    async def goes_the_long_way(token: int, grant: UUID) -> None:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await fence.conn.execute(CHECK_FIRST, fence.resource, token, grant, None)
        assert caught.value.sqlstate == "LG006"

    await goes_the_long_way(fence.now + 1, late)
    async with fence.other.transaction():
        await fence.check(fence.now + 5, second, by=fence.other)
        await goes_the_long_way(fence.now + 9, late)
    for isolation in ("repeatable_read", "serializable"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            async with fence.conn.transaction(isolation=isolation):
                await fence.conn.execute(CHECK_FIRST, fence.resource, fence.now + 9, late, None)
        assert caught.value.sqlstate == "LG006"


async def test_a_first_write_makes_its_seal_durable(fence: Fence) -> None:
    await fence.conn.execute("set synchronous_commit = off")
    async with fence.conn.transaction():
        await fence.conn.execute(CHECK_FIRST, fence.resource, fence.now, uuid4(), None)
        assert await fence.conn.fetchval("show synchronous_commit") == "on"


# --- what became of a write ---


async def test_a_write_that_nobody_has_heard_of_is_barred_by_asking(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    for sequence in (5, WRITER + 5):
        assert await fence.resolve(fence.now, sequence) is False
        assert await fence.refused(fence.now, grant, sequence) == "voided"
        assert await fence.resolve(fence.now, sequence) is False


@pytest.mark.parametrize("sequence", [5, WRITER + 5])
async def test_a_write_is_known_to_have_committed_or_never_will(fence: Fence, sequence: int) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    await fence.check(fence.now, grant, sequence)
    assert await fence.resolve(fence.now, sequence) is True
    assert await fence.resolve(fence.now, sequence) is True
    assert await fence.resolve(fence.now, sequence + 1) is False
    assert await fence.refused(fence.now, grant, sequence + 1) == "voided"
    assert await fence.resolve(fence.now, sequence + 1) is False


async def test_the_number_of_a_write_is_used_once(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    for sequence in (5, WRITER + 5):
        await fence.check(fence.now, grant, sequence)
        assert await fence.refused(fence.now, grant, sequence) == "voided"


async def test_a_write_that_its_writer_had_not_come_to_did_not_commit(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    await fence.check(fence.now, grant, WRITER + 5)
    assert await fence.resolve(fence.now, WRITER + 9) is False
    later = uuid4()
    await fence.seal(fence.now + 9, later)
    await fence.check(fence.now + 9, later, WRITER + 20)
    assert await fence.resolve(fence.now, WRITER + 30) is False  # the row carries a later token


async def test_a_write_that_was_declared_lost_before_this_schema_never_commits(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    await fence.conn.execute(
        "insert into lockguard.outcome (resource, token, sequence, voided) values ($1, $2, $3, true)",
        *(fence.resource, fence.now, WRITER + 5),
    )
    assert await fence.refused(fence.now, grant, WRITER + 5) == "voided"


async def test_a_write_whose_record_has_gone_is_not_guessed_and_never_commits(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    await fence.conn.execute(
        "insert into lockguard.forgotten (resource, token, sequence) values ($1, $2, $3)",
        *(fence.resource, fence.now, WRITER + 5),
    )
    assert await fence.refused(fence.now, grant, WRITER + 5) == "voided"
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.resolve(fence.now, WRITER + 4)
    assert caught.value.sqlstate == "LG005"
    assert await fence.resolve(fence.now, WRITER + 1_030) is False  # of another slot, and newer


async def test_a_token_of_another_database_is_not_resolved(fence: Fence) -> None:
    await fence.seal(fence.now, uuid4())
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.resolve(fence.now + 1, WRITER + 5)
    assert caught.value.sqlstate == "LG004"


async def test_asking_of_a_first_write_bars_it_and_tells_what_it_was(fence: Fence) -> None:
    grant = uuid4()
    assert await fence.resolve(fence.now, WRITER + 5, first=True) is False
    assert await fence.resolve(fence.now, WRITER + 5, first=True) is False
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.conn.execute(CHECK_FIRST, fence.resource, fence.now, grant, WRITER + 5)
    assert caught.value.sqlstate == "LG001"
    await fence.conn.execute(CHECK_FIRST, fence.resource, fence.now + 1, grant, WRITER + 1_030)
    assert await fence.resolve(fence.now + 1, WRITER + 1_030, first=True) is True


# --- break ---


@pytest.mark.parametrize("ahead", [False, True])
async def test_a_break_ends_the_grant_and_outruns_one_that_has_not_sealed(fence: Fence, ahead: bool) -> None:
    token = fence.now + (YEAR_US if ahead else 0)
    grant, unsealed = uuid4(), uuid4()
    await fence.seal(token, grant)
    broken = await fence.conn.fetchval("select lockguard.break_($1, 'why', 1000)", fence.resource)
    assert broken > token
    assert await fence.refused(token, grant) == "superseded"
    row = await fence.row()
    assert row is not None
    assert row["released_at"] is not None
    if not ahead:
        assert await fence.seal(token + 1_000, unsealed) == (False, broken)
    assert await fence.audited() == ["break"]


async def test_a_break_of_one_grant_ends_that_one_once_and_is_audited(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    broken, token = await fence.break_grant(fence.now, grant)
    assert broken
    assert token > fence.now
    assert await fence.refused(fence.now, grant) == "superseded"
    assert await fence.break_grant(fence.now, grant) == (True, token)
    assert await fence.audited() == ["break"]
    row = await fence.row()
    assert row is not None
    assert row["released_at"] is not None


async def test_a_break_of_one_grant_leaves_a_newer_one_and_waits_for_none_of_its_writers(
    fence: Fence,
) -> None:
    first, second = uuid4(), uuid4()
    await fence.seal(fence.now, first)
    await fence.seal(fence.now + 5, second)
    assert await fence.break_grant(fence.now, first) == (False, fence.now + 5)
    async with fence.other.transaction():
        await fence.check(fence.now + 5, second, by=fence.other)
        assert await fence.break_grant(fence.now, first) == (False, fence.now + 5)
        evict = "select lockguard.evict_before($1, $2, $3)"
        assert await fence.conn.fetchval(evict, fence.resource, fence.now, first) == 0
    await fence.check(fence.now + 5, second)


async def test_a_break_of_a_grant_that_has_not_sealed_ends_the_older_one_too(fence: Fence) -> None:
    older, unsealed = uuid4(), uuid4()
    await fence.seal(fence.now, older)
    ahead = fence.now + YEAR_US
    broken, token = await fence.break_grant(ahead, unsealed)
    assert broken
    assert token > ahead
    assert await fence.refused(fence.now, older) == "superseded"
    assert (await fence.seal(ahead, unsealed))[0] is False


# --- who keeps a seal waiting ---


async def test_writers_that_a_seal_waits_for_are_ended_but_not_by_a_late_one(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    transaction = fence.other.transaction()
    await transaction.start()
    await fence.check(fence.now, grant, by=fence.other)
    evict = "select lockguard.evict($1, $2)"
    assert await fence.conn.fetchval(evict, fence.resource, fence.now - 5) == 0
    assert await fence.conn.fetchval(evict, fence.resource, fence.now + 5) == 1
    async with asyncio.timeout(5):
        while not fence.other.is_closed():
            await asyncio.sleep(0.005)


async def test_who_idles_at_the_gate_is_ended(fence: Fence) -> None:
    transaction = fence.other.transaction()
    await transaction.start()
    await fence.other.execute("select pg_advisory_xact_lock(lockguard.gate($1))", fence.resource)
    await asyncio.sleep(0.15)  # after a tenth of a second it has overstayed
    assert await fence.conn.fetchval("select lockguard.evict($1, null)", fence.resource) == 1


async def test_who_is_busy_at_the_gate_is_not_ended(fence: Fence) -> None:
    busy = asyncio.create_task(
        fence.other.execute(
            "do $$ begin perform pg_advisory_xact_lock(lockguard.gate('" + fence.resource + "'));"
            " perform pg_sleep(1); end $$"
        )
    )
    query = "select count(*) from lockguard.at_the_gate($1) where alone"
    async with asyncio.timeout(10):
        while not await fence.conn.fetchval(query, fence.resource):
            await asyncio.sleep(0.01)
    assert await fence.conn.fetchval("select lockguard.evict($1, null)", fence.resource) == 0
    await busy
