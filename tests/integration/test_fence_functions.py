"""Seal, close and check: which grant is in force, and who waits for whom."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.integration.fence_by_hand import YEAR_US, Fence, fence, fence_alone, fenced_url

__all__ = ["fence", "fence_alone", "fenced_url"]


async def blocked(conn: asyncpg.Connection[Any], other: asyncpg.Connection[Any]) -> None:
    """Return once ``conn`` waits for a lock."""
    query = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"
    async with asyncio.timeout(10):
        while not await other.fetchval(query, conn.get_server_pid()):
            await asyncio.sleep(0.01)


# --- the rows of the fence, whoever writes them ---


@pytest.mark.parametrize(
    ("closed", "change"),
    [
        (False, "set token = token - 1"),
        (False, "set grant_id = gen_random_uuid()"),
        (False, "set resource = resource || 'x'"),
        (True, "set released_at = null"),
    ],
)
async def test_no_statement_takes_a_fence_back(fence: Fence, closed: bool, change: str) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    if closed:
        await fence.close(fence.now, grant)
    with pytest.raises(asyncpg.PostgresError, match="cannot go from token") as caught:
        await fence.conn.execute(f"update lockguard.fence {change} where resource = $1", fence.resource)
    assert caught.value.sqlstate == "LG003"


async def test_no_row_of_a_fence_is_removed_that_is_open_or_above_the_floor(fence_alone: Fence) -> None:
    fence, grant = fence_alone, uuid4()
    await fence.seal(fence.now, grant)
    await fence.conn.execute("update lockguard.floor set token = $1", fence.now + 5)
    with pytest.raises(asyncpg.PostgresError, match="cannot be removed"):  # it is open
        await fence.conn.execute("delete from lockguard.fence")
    await fence.seal(fence.now + 9, uuid4())
    await fence.conn.execute("update lockguard.fence set released_at = now()")
    with pytest.raises(asyncpg.PostgresError, match="cannot be removed"):  # it is above the floor
        await fence.conn.execute("delete from lockguard.fence")
    await fence.conn.execute("update lockguard.floor set token = $1", fence.now + 9)
    await fence.conn.execute("delete from lockguard.fence")
    assert await fence.row() is None


async def test_the_floor_goes_neither_back_nor_away(fence_alone: Fence) -> None:
    await fence_alone.conn.execute("update lockguard.floor set token = 7")
    for statement in ("update lockguard.floor set token = 6", "delete from lockguard.floor"):
        with pytest.raises(asyncpg.PostgresError, match="cannot go back"):
            await fence_alone.conn.execute(statement)


# --- seal ---


async def test_a_seal_that_is_repeated_is_accepted_and_one_with_another_grant_is_not(fence: Fence) -> None:
    first, second = uuid4(), uuid4()
    assert await fence.seal(fence.now, first) == (True, fence.now)
    assert await fence.seal(fence.now, first) == (True, fence.now)
    assert await fence.seal(fence.now, second) == (False, fence.now)
    assert await fence.seal(fence.now - 1, second) == (False, fence.now)
    assert await fence.seal(fence.now + 1, second) == (True, fence.now + 1)
    assert await fence.seal(fence.now, first) == (False, fence.now + 1)


async def test_a_grant_that_was_closed_is_never_sealed_again(fence: Fence) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    await fence.close(fence.now, grant)
    assert (await fence.seal(fence.now, grant))[0] is False
    assert (await fence.seal(fence.now + 5, grant))[0] is False


async def test_a_grant_that_is_closed_before_its_seal_is_never_sealed(fence: Fence) -> None:
    grant = uuid4()
    await fence.close(fence.now, grant)
    assert (await fence.seal(fence.now, grant))[0] is False
    later = uuid4()
    await fence.close(fence.now + 5, later)  # over a row that is closed
    assert (await fence.seal(fence.now + 5, later))[0] is False


@pytest.mark.parametrize("call", ["seal", "close", "check_first", "break_grant"])
async def test_a_token_more_than_ten_years_ahead_is_refused(fence: Fence, call: str) -> None:
    token, grant = fence.now + 11 * YEAR_US, uuid4()
    with pytest.raises(asyncpg.PostgresError, match="more than ten years ahead") as caught:
        match call:
            case "seal":
                await fence.seal(token, grant)
            case "close":
                await fence.close(token, grant)
            case "break_grant":
                await fence.break_grant(token, grant)
            case _:
                query = "select lockguard.check_first($1, $2, $3, 'h', 'o')"
                await fence.conn.execute(query, fence.resource, token, grant)
    assert caught.value.sqlstate == "LG004"


async def test_a_seal_waits_for_the_writers_that_are_in_and_a_late_one_does_not(fence: Fence) -> None:
    held, late, next_ = uuid4(), uuid4(), uuid4()
    await fence.seal(fence.now, held)
    async with fence.other.transaction():
        await fence.check(fence.now, held, by=fence.other)
        assert await fence.seal(fence.now - 5, late, within_ms=2_000) == (False, fence.now)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await fence.seal(fence.now + 5, next_, within_ms=50)
    assert await fence.seal(fence.now + 5, next_) == (True, fence.now + 5)


async def test_who_is_superseded_while_it_is_open_is_told_and_nobody_else(fence: Fence) -> None:
    told: list[dict[str, Any]] = []
    await fence.other.add_listener("lockguard_superseded", lambda *words: told.append(json.loads(words[-1])))
    first, second, third = uuid4(), uuid4(), uuid4()
    await fence.seal(fence.now, first)
    await fence.seal(fence.now + 1, second)
    await fence.close(fence.now + 1, second)
    await fence.seal(fence.now + 2, third)
    await fence.other.fetchval("select 1")  # what was sent before has arrived by now
    mine = [one for one in told if one["resource"] == fence.resource]
    assert [(one["token"], one["current"]) for one in mine] == [(fence.now, fence.now + 1)]


async def test_a_seal_is_durable_bounded_and_changes_nothing_of_the_session(fence: Fence) -> None:
    names = ("synchronous_commit", "lock_timeout", "idle_in_transaction_session_timeout")
    await fence.conn.execute("set synchronous_commit = off")
    await fence.conn.execute("set idle_in_transaction_session_timeout = 0")
    async with fence.conn.transaction():
        await fence.seal(fence.now, uuid4(), within_ms=1_234)
        inside = [await fence.conn.fetchval(f"show {name}") for name in names]
    assert inside == ["on", "1234ms", "1s"]
    assert [await fence.conn.fetchval(f"show {name}") for name in names] == ["off", "0", "0"]
    await fence.conn.execute("set idle_in_transaction_session_timeout = '500ms'")
    async with fence.conn.transaction():
        await fence.seal(fence.now + 1, uuid4())
        assert await fence.conn.fetchval("show idle_in_transaction_session_timeout") == "500ms"
    await fence.conn.execute("set idle_in_transaction_session_timeout = '1h'")
    async with fence.conn.transaction():
        await fence.seal(fence.now + 2, uuid4())
        assert await fence.conn.fetchval("show idle_in_transaction_session_timeout") == "1s"


@pytest.mark.parametrize(("held", "then"), [("0", "2s"), ("500ms", "500ms"), ("1min", "2s"), ("2s", "2s")])
async def test_a_bound_is_set_unless_a_stricter_one_holds(fence: Fence, held: str, then: str) -> None:
    names = ("lock_timeout", "idle_in_transaction_session_timeout")
    for name in names:
        await fence.conn.execute(f"set {name} = '{held}'")
    async with fence.conn.transaction():
        await fence.conn.execute("select lockguard.bound(2000, 2000)")
        assert [await fence.conn.fetchval(f"show {name}") for name in names] == [then, then]
    assert [await fence.conn.fetchval(f"show {name}") for name in names] == [held, held]


# --- close ---


async def test_a_late_close_leaves_the_successor_open(fence: Fence) -> None:
    first, second = uuid4(), uuid4()
    await fence.seal(fence.now, first)
    await fence.seal(fence.now + 5, second)
    await fence.close(fence.now, first)
    await fence.check(fence.now + 5, second)
    await fence.close(fence.now + 9, uuid4())  # of one that was never sealed here
    await fence.check(fence.now + 5, second)


async def test_a_close_waits_for_its_own_writers_and_for_no_others(fence: Fence) -> None:
    first, second = uuid4(), uuid4()
    await fence.seal(fence.now, first)
    await fence.seal(fence.now + 5, second)
    async with fence.other.transaction():
        await fence.check(fence.now + 5, second, by=fence.other)
        await fence.close(fence.now, first, within_ms=2_000)
        with pytest.raises(asyncpg.LockNotAvailableError):
            await fence.close(fence.now + 5, second, within_ms=50)


# --- check ---


async def test_only_the_grant_in_force_is_accepted_and_told_why_otherwise(fence: Fence) -> None:
    grant, other = uuid4(), uuid4()
    assert await fence.refused(fence.now, grant) == "unsealed"
    await fence.seal(fence.now, grant)
    await fence.check(fence.now, grant)
    assert await fence.refused(fence.now, other) == "superseded"
    assert await fence.refused(fence.now + 1, grant) == "superseded"
    assert await fence.refused(fence.now - 1, grant) == "superseded"
    assert await fence.refused(None, grant) == "superseded"
    await fence.close(fence.now, grant)
    assert await fence.refused(fence.now, grant) == "closed"


async def test_a_transaction_presents_all_its_leases_and_only_until_its_end(fence: Fence) -> None:
    grant, second = uuid4(), Fence(fence.conn, fence.other, fence.now)
    await fence.seal(fence.now, grant)
    await second.seal(fence.now, grant)
    claim = "select lockguard.claim_of($1)::text"
    async with fence.conn.transaction():
        await fence.check(fence.now, grant)
        await second.check(fence.now, grant)
        for one in (fence, second):
            assert json.loads(await fence.conn.fetchval(claim, one.resource)) == [fence.now, str(grant)]
        assert await fence.conn.fetchval(claim, "test:another") is None
    assert await fence.conn.fetchval(claim, fence.resource) is None
    assert await fence.conn.fetchval("select current_setting('lockguard.leases', true)") in (None, "")


async def test_each_of_many_leases_is_checked(fence: Fence) -> None:
    grant, second = uuid4(), Fence(fence.conn, fence.other, fence.now)
    await fence.seal(fence.now, grant)
    await second.seal(fence.now, uuid4())
    query = "select lockguard.check_all($1, $2, $3)"
    with pytest.raises(asyncpg.PostgresError) as caught:
        await fence.conn.execute(query, [fence.resource, second.resource], [fence.now] * 2, [grant] * 2)
    assert caught.value.sqlstate == "LG001"


async def test_an_older_snapshot_than_the_lease_is_told_so(fence: Fence) -> None:
    grant = uuid4()
    async with fence.conn.transaction(isolation="repeatable_read"):
        await fence.conn.fetchval("select count(*) from lockguard.fence")
        await fence.seal(fence.now, grant, by=fence.other)
        with pytest.raises(asyncpg.SerializationError, match="older than the lease"):
            async with fence.conn.transaction():
                await fence.check(fence.now, grant)
        with pytest.raises(asyncpg.SerializationError, match="older than the lease"):
            query = "select lockguard.hold($1, $2, $3)"
            await fence.conn.execute(query, fence.resource, fence.now, grant)


@pytest.mark.parametrize("function", ["check", "hold"])
async def test_whoever_has_presented_a_lease_keeps_a_seal_waiting(fence: Fence, function: str) -> None:
    grant = uuid4()
    await fence.seal(fence.now, grant)
    async with fence.other.transaction():
        query = f"select lockguard.{function}($1, $2, $3)"
        await fence.other.execute(query, fence.resource, fence.now, grant)
        gates = await fence.conn.fetch("select * from lockguard.under_way($1)", fence.resource)
        assert [row["pid"] for row in gates] == [fence.other.get_server_pid()]


async def test_a_second_writer_waits_behind_a_sealer_that_waits(fence: Fence, fenced_url: str) -> None:
    """Locks of rows are no queue: from the moment a seal asks, nothing new of the old grant gets in."""
    held, next_ = uuid4(), uuid4()
    await fence.seal(fence.now, held)
    third = await asyncpg.connect(fenced_url)
    async with fence.other.transaction():
        await fence.check(fence.now, held, by=fence.other)
        sealing = asyncio.create_task(fence.seal(fence.now + 5, next_))
        await blocked(fence.conn, third)
        await third.execute("set lock_timeout = '100ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await fence.check(fence.now, held, by=third)
    assert (await sealing)[0]
    await third.close()
