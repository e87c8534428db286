"""What the fence refused is on record, by whatever way it was written, and the record stays small."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from lockguard._records import Refusal
from lockguard.errors import ConfigurationError, FenceUnavailable, LeaseLost, StaleToken
from lockguard_asyncpg import (
    PostgresFence,
    create_pool,
    fenced_execute,
    fenced_transaction,
    install,
    protect,
)
from lockguard_asyncpg._records import FenceRecords, open_records
from lockguard_asyncpg._schema import steps
from tests.integration.fence_leases import APT, SOON, grant_of, lease_of, under
from tests.integration.test_fence_refusals import INSERT, WAYS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

STORM = 2_000


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int, text text)")
        yield pool


@pytest.fixture
async def fence(pool: asyncpg.Pool[Any]) -> AsyncIterator[PostgresFence]:
    async with PostgresFence(pool) as fence:
        yield fence


@pytest.fixture
async def records(database_url: str) -> AsyncIterator[FenceRecords]:
    async with open_records(database_url) as records:
        yield records


async def recorded(
    records: FenceRecords, *, times: int = 1, resource: str | None = None
) -> tuple[Refusal, ...]:
    """The refusals, once so many are on record."""
    async with asyncio.timeout(20):
        while True:
            found = await records.refusals(resource, limit=10_000)
            if sum(one.times for one in found) >= times:
                return found
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_every_way_of_writing_leaves_one_record_of_its_refusal(
    pool: asyncpg.Pool[Any],
    fence: PostgresFence,
    records: FenceRecords,
    way: Callable[[Any], Awaitable[Any]],
) -> None:
    old = grant_of(7, holder="vm:12/stopped")
    await fence.seal(old, within=SOON)
    await fence.seal(grant_of(8, holder="vm:13/successor"), within=SOON)
    with under(lease_of(old)), contextlib.suppress(StaleToken, LeaseLost):
        await way(pool)
    (one,) = await recorded(records)
    assert (one.resource, one.presented, one.current, one.sqlstate) == (APT, 7, 8, "LG001")
    assert (one.reason, one.holder, one.operation, one.times) == ("superseded", "vm:12/stopped", "open", 1)
    assert one.first_at == one.at
    assert abs(await records.now() - one.at) < timedelta(minutes=1)


async def test_a_write_without_a_lease_to_a_protected_table_is_on_record(
    pool: asyncpg.Pool[Any], fence: PostgresFence, records: FenceRecords
) -> None:
    await fence.seal(grant_of(8, "7"), within=SOON)
    async with pool.acquire() as conn:
        await protect(conn, "note", resource="{id}")
    with pytest.raises(StaleToken):
        await pool.execute("insert into note values (7, 'x')")
    (one,) = await recorded(records)
    assert (one.resource, one.presented, one.current) == ("7", None, 8)
    assert (one.sqlstate, one.reason, one.holder) == ("LG002", "unguarded", "")


async def test_a_lease_that_is_outrun_at_its_first_write_is_on_record(
    pool: asyncpg.Pool[Any], records: FenceRecords
) -> None:
    async with PostgresFence(pool, seal_with_first_write=True) as fence:
        old = grant_of(7)
        await fence.seal(old, within=SOON)
        await PostgresFence(pool).seal(grant_of(8), within=SOON)
        with under(lease_of(old)), pytest.raises(StaleToken):
            await fenced_execute(pool, INSERT)
        (one,) = await recorded(records)
    assert (one.presented, one.current, one.reason, one.holder) == (7, 8, "outrun", "host/1")


@pytest.mark.slow
async def test_a_storm_of_refusals_of_one_writer_is_one_line_that_counts_them_and_keeps_nothing_waiting(
    pool: asyncpg.Pool[Any], fence: PostgresFence, records: FenceRecords
) -> None:
    old = grant_of(7)
    await fence.seal(old, within=SOON)
    await fence.seal(grant_of(8), within=SOON)

    async def refused(count: int) -> None:
        for _ in range(count):
            with pytest.raises(StaleToken):
                await fenced_execute(pool, INSERT, lease=lease_of(old))

    # One connection is left for the record, and the storm goes on whether it is sent or not.
    await asyncio.gather(*(refused(STORM // 4) for _ in range(4)))
    (one,) = await recorded(records, times=STORM)
    assert one.times == STORM
    assert one.first_at < one.at
    # As many messages as seconds have passed, and not one for each refusal.
    calls = await pool.fetchval(
        "select n_tup_upd + n_tup_ins from pg_stat_user_tables where relname = 'refusal'"
    )
    assert calls < STORM / 20


async def test_the_lines_are_bounded_in_all_and_for_each_resource_and_the_newest_stay(
    conn: asyncpg.Connection[Any], records: FenceRecords
) -> None:
    await install(conn)
    await conn.execute(
        """
        select lockguard.note_refusal('r' || n % 5000, n, n + 1, 'LG001', 'superseded', 'h', 'o', 1, 0, 0)
          from generate_series(1, 10000) n
        """
    )
    await conn.execute(
        """
        select lockguard.note_refusal('one', n, n + 1, 'LG001', 'superseded', 'h', 'o', 1, 0, 0)
          from generate_series(1, 1000) n
        """
    )
    kept = await records.refusals(limit=10_000)
    assert len(kept) == 4000
    assert [one.presented for one in await records.refusals("one", limit=100)] == list(range(1000, 960, -1))
    assert {one.presented for one in kept if one.resource != "one"} == set(range(10_000, 6040, -1))


async def test_what_a_role_sends_is_cut_and_never_lies_in_the_future(
    conn: asyncpg.Connection[Any], records: FenceRecords
) -> None:
    await install(conn)
    await conn.execute(
        "select lockguard.note_refusal(repeat('r', 9000), null, null, 'LG00100', repeat('x', 99),"
        " repeat('h', 9000), repeat('o', 9000), -5, -99999999999, 99999999999)"
    )
    (one,) = await records.refusals()
    assert [len(x) for x in (one.resource, one.sqlstate, one.reason, one.holder, one.operation)] == [
        200,
        5,
        20,
        500,
        500,
    ]
    assert one.times == 1
    assert timedelta(minutes=59) < await records.now() - one.at < timedelta(minutes=61)


async def test_a_role_with_the_rights_of_before_loses_only_the_record(
    pool: asyncpg.Pool[Any], fence: PostgresFence, records: FenceRecords
) -> None:
    await pool.execute(
        "revoke execute on function lockguard.note_refusal(text, bigint, bigint, text, text, text, text,"
        " bigint, bigint, bigint) from lockguard_app"
    )
    async with asyncpg.create_pool(
        pool._connect_args[0], max_size=3, min_size=0, server_settings={"role": "lockguard_app"}
    ) as theirs:
        async with PostgresFence(theirs) as poor:
            old = grant_of(7)
            await poor.seal(old, within=SOON)
            await poor.seal(grant_of(8), within=SOON)
            for _ in range(3):
                with pytest.raises(StaleToken, match="current 8"):
                    async with fenced_transaction(theirs, lease_of(old)):
                        pass
                await asyncio.sleep(0)
    assert await records.refusals() == ()


async def test_no_connection_is_taken_that_others_wait_for(database_url: str, records: FenceRecords) -> None:
    async with create_pool(database_url, min_size=0, max_size=1) as narrow:
        async with narrow.acquire() as conn:
            await install(conn)
        async with PostgresFence(narrow) as fence:
            old = grant_of(7)
            await fence.seal(old, within=SOON)
            await fence.seal(grant_of(8), within=SOON)
            async with narrow.acquire() as conn:
                with pytest.raises(StaleToken):
                    await fenced_execute(conn, "select 1", lease=lease_of(old))
                for _ in range(10):
                    await asyncio.sleep(0)
                assert await records.refusals() == ()
            # It is free now; closing the fence sends what is noted.
        (one,) = await records.refusals()
        assert one.presented == 7


async def test_no_refused_write_waits_for_its_record(
    pool: asyncpg.Pool[Any], fence: PostgresFence, records: FenceRecords, conn: asyncpg.Connection[Any]
) -> None:
    old = grant_of(7)
    await fence.seal(old, within=SOON)
    await fence.seal(grant_of(8), within=SOON)
    async with conn.transaction():
        await conn.execute("lock table lockguard.refusal")
        for _ in range(200):
            with pytest.raises(StaleToken):
                await fenced_execute(pool, INSERT, lease=lease_of(old))
        with pytest.raises(FenceUnavailable):
            await records.refusals()  # the lock is there
    await recorded(records)


async def test_a_viewer_reads_all_of_it_and_changes_nothing(
    conn: asyncpg.Connection[Any], database_url: str
) -> None:
    await install(conn)
    await conn.execute("select lockguard.seal('r', 7, gen_random_uuid(), 'holder', 'op', 1000)")
    await conn.execute("select lockguard.seal('other', 7, gen_random_uuid(), 'holder', 'op', 1000)")
    await conn.execute("select lockguard.break_('r', 'stuck', 1000)")
    await conn.execute("select lockguard.recover('restored', clock_timestamp(), '', 1)")
    await conn.execute(
        "select lockguard.note_refusal('r', 7, 8, 'LG001', 'superseded', 'h', 'o', 3, 2000, 1000)"
    )
    options = {"server_settings": {"role": "lockguard_viewer"}, "statement_cache_size": 0}
    async with asyncpg.create_pool(database_url, min_size=0, max_size=1, **options) as theirs:
        records = FenceRecords(theirs)
        both = await records.states()
        assert [(s.resource, s.is_open) for s in both] == [("other", False), ("r", False)]
        assert [s.resource for s in await records.states(["r", "none"])] == ["r"]
        assert await records.states(only_open=True) == ()
        # The recovery went no further than "other".
        assert [(a.action, a.reason) for a in await records.audit("r")] == [("break", "stuck")]
        assert [a.action for a in await records.audit("other")] == ["recover"]
        assert [a.action for a in await records.audit()] == ["recover", "break"]
        (one,) = await records.refusals("r")
        assert (one.times, one.at - one.first_at) == (3, timedelta(seconds=1))
        assert await records.refusals("r", since=one.at + timedelta(seconds=1)) == ()
        for write in (
            "select lockguard.break_('r', 'x', 1000)",
            "select lockguard.note_refusal('r', 7, 8, 'LG001', '', '', '', 1, 0, 0)",
            "select lockguard.check('r', 7, gen_random_uuid())",
            "select * from lockguard.refusal",
            "select * from lockguard.audit",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await theirs.execute(write)


async def test_an_operator_breaks_and_takes_no_part(conn: asyncpg.Connection[Any], database_url: str) -> None:
    await install(conn)
    options = {"server_settings": {"role": "lockguard_operator"}}
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2, **options) as theirs:
        await PostgresFence(theirs).break_(APT, reason="stuck", within=SOON)
        assert [a.reason for a in await FenceRecords(theirs).audit(APT)] == ["stuck"]
        with pytest.raises(ConfigurationError, match="permission denied"):
            await PostgresFence(theirs).seal(grant_of(8), within=SOON)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://u:se%2Fcret@127.0.0.1:1/x", FenceUnavailable),
        ("postgresql://u:se/cret@host/x", ConfigurationError),
    ],
)
async def test_what_cannot_be_read_is_told_in_a_line_without_the_password(
    url: str, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        async with open_records(url) as records:
            await records.states()
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_database_without_the_schema_is_told_the_remedy(records: FenceRecords) -> None:
    with pytest.raises(ConfigurationError, match="lockguard fence install"):
        await records.states()


async def test_a_schema_of_before_refuses_as_it_did_and_names_the_upgrade_for_what_it_lacks(
    database_url: str, records: FenceRecords
) -> None:
    async with create_pool(database_url, min_size=0, max_size=3) as pool:
        for step in steps()[:16]:
            await pool.execute(step.sql)
            await pool.execute("insert into lockguard.schema_version (version) values ($1)", step.version)
        async with PostgresFence(pool) as fence:
            old = grant_of(7)
            await fence.seal(old, within=SOON)
            await fence.seal(grant_of(8), within=SOON)
            with pytest.raises(StaleToken, match="current 8"):
                await fenced_execute(pool, "select 1", lease=lease_of(old))
            with pytest.raises(ConfigurationError, match="lockguard fence upgrade"):
                await fence.break_grant(old, reason="x", within=SOON)
            assert await fence.break_(APT, reason="x", within=SOON) > 8
        with pytest.raises(ConfigurationError, match="lockguard fence upgrade"):
            await records.refusals()
