"""What each function of the fence decides, case by case, as any client of Postgres may call it.

The guard calls them in a fixed order and keeps its connections apart, which hides some of these cases: a late
seal, a second lease in one transaction, a grant that comes back, a database that was pruned or recovered.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from lockguard_asyncpg import install
from lockguard_lab.servers import PostgresServer

YEAR_US = 365 * 86_400 * 1_000_000
WRITER = 1 << 62
"""A sequence from here on is of a writer that numbers its writes."""


@dataclass
class Fence:
    """Two sessions on one resource of the test's own."""

    conn: asyncpg.Connection[Any]
    other: asyncpg.Connection[Any]
    now: int
    resource: str = field(default_factory=lambda: f"test:{secrets.token_hex(6)}")

    async def seal(
        self, token: int, grant: UUID, *, by: Any = None, within_ms: int = 5_000
    ) -> tuple[bool, int]:
        told = await (by or self.conn).fetchrow(
            "select * from lockguard.seal($1, $2, $3, 'h', 'o', $4)", self.resource, token, grant, within_ms
        )
        return told["accepted"], told["token"]

    async def close(self, token: int, grant: UUID, *, within_ms: int = 5_000) -> None:
        await self.conn.execute(
            "select lockguard.close($1, $2, $3, $4)", self.resource, token, grant, within_ms
        )

    async def check(
        self, token: int | None, grant: UUID, sequence: int | None = None, *, by: Any = None
    ) -> None:
        await (by or self.conn).execute(
            "select lockguard.check($1, $2, $3, $4)", self.resource, token, grant, sequence
        )

    async def refused(self, token: int | None, grant: UUID, sequence: int | None = None) -> str:
        """Why a check is refused."""
        with pytest.raises(asyncpg.PostgresError) as caught:
            await self.check(token, grant, sequence)
        assert caught.value.sqlstate == "LG001", caught.value
        return str(json.loads(caught.value.detail)["reason"])

    async def resolve(self, token: int, sequence: int, *, first: bool = False) -> bool:
        name = "resolve_first" if first else "resolve"
        return bool(
            await self.conn.fetchval(
                f"select lockguard.{name}($1, $2, $3, 1000)", self.resource, token, sequence
            )
        )

    async def break_grant(self, token: int, grant: UUID) -> tuple[bool, int]:
        told = await self.conn.fetchrow(
            "select * from lockguard.break_grant($1, $2, $3, 'why', 1000)", self.resource, token, grant
        )
        return told["broken"], told["token"]

    async def row(self) -> asyncpg.Record | None:
        return await self.conn.fetchrow("select * from lockguard.fence where resource = $1", self.resource)

    async def audited(self) -> list[str]:
        found = await self.conn.fetch(
            "select action from lockguard.audit where subject = $1 order by id", self.resource
        )
        return [row["action"] for row in found]


@pytest.fixture(scope="module")
def fenced_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the fence; no test of it prunes or recovers."""
    name = f"test_{secrets.token_hex(6)}"
    url = postgres_server.create_database(name)

    async def prepare() -> None:
        conn = await asyncpg.connect(url)
        await install(conn)
        await conn.close()

    asyncio.run(prepare())
    yield url
    postgres_server.drop_database(name)


async def fence_on(url: str) -> AsyncIterator[Fence]:
    conn, other = await asyncpg.connect(url), await asyncpg.connect(url)
    now = await conn.fetchval("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
    yield Fence(conn, other, now - 1_000_000_000)
    for one in (conn, other):
        await one.close()


@pytest.fixture
async def fence(fenced_url: str) -> AsyncIterator[Fence]:
    async for made in fence_on(fenced_url):
        yield made


@pytest.fixture
async def fence_alone(database_url: str) -> AsyncIterator[Fence]:
    """In a database of its own."""
    async for made in fence_on(database_url):
        await install(made.conn)
        yield made


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


CHECK_FIRST = "select lockguard.check_first($1, $2, $3, 'h', 'o', $4)"


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
