"""Protected tables, what is long gone, a recovery, and the record of refusals."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest

from tests.integration.fence_by_hand import (
    CHECK_FIRST,
    WRITER,
    YEAR_US,
    Fence,
    fence,
    fence_alone,
    fenced_url,
)

__all__ = ["fence", "fence_alone", "fenced_url"]


# --- protected tables ---


async def protected(fence: Fence) -> None:
    await fence.conn.execute("create table if not exists protected_row (resource text, note text)")
    await fence.conn.execute("select lockguard.protect('protected_row', '{resource}')")


async def test_a_protected_row_is_written_under_its_own_lease_only(fence_alone: Fence) -> None:
    fence, grant = fence_alone, uuid4()
    await protected(fence)
    await fence.seal(fence.now, grant)
    insert = "insert into protected_row values ($1, 'x')"
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.conn.execute(insert, fence.resource)
    assert caught.value.sqlstate == "LG002"
    async with fence.conn.transaction():
        await fence.check(fence.now, grant)
        await fence.conn.execute(insert, fence.resource)
    with pytest.raises(asyncpg.PostgresError) as caught:
        async with fence.conn.transaction():
            await fence.check(fence.now, grant)
            await fence.conn.execute(insert, "test:another")
    assert caught.value.sqlstate == "LG002"


@pytest.mark.parametrize("setting", ["lockguard.maintenance = '1'", "session_replication_role = replica"])
async def test_no_setting_by_itself_lets_a_protected_row_be_written(fence_alone: Fence, setting: str) -> None:
    fence = fence_alone
    await protected(fence)
    await fence.conn.execute(f"set {setting}")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.conn.execute("insert into protected_row values ($1, 'x')", fence.resource)
    assert caught.value.sqlstate == "LG002"


# --- what is long gone, a recovery, and a database that lacks a seal ---

FLOOR = "select token from lockguard.floor"
PRUNE = "select * from lockguard.prune_resources($1::text::interval, '', 1000)"


async def age(fence: Fence, *, closed: bool = True) -> None:
    """Make the fence's row look as one of three days ago."""
    await fence.conn.execute(
        "update lockguard.fence set sealed_at = now() - interval '3 days',"
        " released_at = case when $1 then now() - interval '3 days' end",
        closed,
    )


async def test_what_was_closed_long_ago_leaves_its_token_in_the_floor(fence_alone: Fence) -> None:
    fence, grant = fence_alone, uuid4()
    token = fence.now - 4 * 86_400 * 1_000_000
    await fence.seal(token, grant)
    await age(fence)
    assert (await fence.conn.fetchrow(PRUNE, "2 days"))["pruned"] == 1
    assert await fence.row() is None
    assert await fence.conn.fetchval(FLOOR) == token
    assert await fence.seal(token, uuid4()) == (False, token)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.conn.execute(CHECK_FIRST, fence.resource, token, uuid4(), None)
    assert caught.value.sqlstate == "LG006"
    assert await fence.seal(token + 1, uuid4()) == (True, token + 1)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.resolve(token, WRITER + 5)  # it may have been written before
    assert caught.value.sqlstate == "LG005"


async def test_a_new_row_lies_above_the_floor_whoever_writes_it(fence_alone: Fence) -> None:
    fence = fence_alone
    await fence.conn.execute("update lockguard.floor set token = $1", fence.now)
    insert = (
        "insert into lockguard.fence (resource, token, grant_id, holder, operation)"
        " values ($1, $2, $3, '', '')"
    )
    with pytest.raises(asyncpg.SerializationError, match="is not above"):
        await fence.conn.execute(insert, fence.resource, fence.now, uuid4())
    await fence.conn.execute(insert, fence.resource, fence.now + 1, uuid4())


@pytest.mark.parametrize("why", ["open", "token of the future", "a write of it is known", "too young"])
async def test_what_may_still_be_asked_for_is_not_pruned(fence_alone: Fence, why: str) -> None:
    fence, grant = fence_alone, uuid4()
    token = fence.now + YEAR_US if why == "token of the future" else fence.now - 4 * 86_400 * 1_000_000
    await fence.seal(token, grant)
    if why == "a write of it is known":
        await fence.check(token, grant, WRITER + 5)
    await age(fence, closed=why != "open")
    if why == "too young":
        with pytest.raises(asyncpg.PostgresError, match="less than two days"):
            await fence.conn.fetchrow(PRUNE, "1 day")
    else:
        assert (await fence.conn.fetchrow(PRUNE, "2 days"))["pruned"] == 0
    assert await fence.row() is not None


RECOVER = "select * from lockguard.recover('why', $1, '', 1000)"


async def test_a_recovery_ends_what_was_sealed_before_it_and_raises_the_floor(fence_alone: Fence) -> None:
    fence, grant, ahead = fence_alone, uuid4(), Fence(fence_alone.conn, fence_alone.other, fence_alone.now)
    await fence.seal(fence.now, grant)
    await ahead.seal(fence.now + YEAR_US, grant)
    began = await fence.conn.fetchval("select clock_timestamp()")
    younger = Fence(fence.conn, fence.other, fence.now)
    await younger.seal(fence.now, grant)
    told = await fence.conn.fetchrow(RECOVER, began)
    assert (told["raised"], told["were_open"]) == (2, 2)
    assert await fence.conn.fetchval(FLOOR) > fence.now
    for one, token in ((fence, fence.now), (ahead, fence.now + YEAR_US)):
        assert await one.refused(token, grant) == "superseded"
        row = await one.row()
        assert row is not None
        assert row["token"] > token
        assert row["released_at"] is not None
    await younger.check(fence.now, grant)


async def test_a_database_that_lacks_the_last_seal_says_so_and_no_other_does(fence_alone: Fence) -> None:
    fence = fence_alone
    mine = await fence.conn.fetchval("select lockguard.fence_id()")
    known = "select lockguard.known($1, $2, $3)"
    await fence.seal(fence.now, uuid4())
    assert await fence.conn.fetchval(known, fence.resource, mine, fence.now) == fence.resource
    assert await fence.conn.fetchval(known, fence.resource, uuid4(), fence.now + 1) == fence.resource
    for resource in (fence.resource, "test:another"):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await fence.conn.fetchval(known, resource, mine, fence.now + 1)
        assert caught.value.sqlstate == "LG007"
    await fence.conn.execute("update lockguard.floor set token = $1", fence.now + 1)
    assert await fence.conn.fetchval(known, "test:another", mine, fence.now + 1) == "test:another"


# --- the record of refusals ---

NOTE = "select lockguard.note_refusal($1, $2, 9, 'LG001', 'superseded', 'h', 'o', 1, 0, $3)"


async def test_refusals_of_one_resource_are_bounded_and_a_repeated_one_is_one_line(fence: Fence) -> None:
    count = "select count(*), max(times) from lockguard.refusal where resource = $1"
    for _ in range(3):
        await fence.conn.execute(NOTE, fence.resource, 5, 0)
    assert tuple(await fence.conn.fetchrow(count, fence.resource)) == (1, 3)
    for presented in range(100, 150):
        await fence.conn.execute(NOTE, fence.resource, presented, 0)
    assert (await fence.conn.fetchrow(count, fence.resource))[0] == 40


async def test_no_line_of_a_refusal_is_of_the_future(fence: Fence) -> None:
    await fence.conn.execute(NOTE, fence.resource, 5, -3_600_000)
    query = "select at <= clock_timestamp() from lockguard.refusal where resource = $1"
    assert await fence.conn.fetchval(query, fence.resource)
