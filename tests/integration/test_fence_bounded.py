"""What a write leaves behind is bounded, and what has gone is never taken for what never was."""

from __future__ import annotations

import asyncio
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Lease, Resource, new_grant_id
from lockguard.errors import OutcomeUnknown, StaleToken
from lockguard_asyncpg import (
    SCHEMA_VERSION,
    PostgresFence,
    create_pool,
    fenced_execute,
    fenced_transaction,
    install,
    resolve,
)
from lockguard_asyncpg._schema import steps
from lockguard_lab.servers import PostgresServer
from lockguard_postgres._claims import Limits, presentation_for
from lockguard_postgres._numbers import NUMBERS
from tests.integration.fence_leases import APT, SOON, grant_of, held, lease_of, under, unknown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

INSERT = "insert into note values ($1)"
ROWS = "select count(*) from lockguard.writer"
AGE = "update lockguard.writer set begun_at = begun_at - interval '36 hours'"
OLD_HISTORY = """
insert into lockguard.outcome (resource, token, sequence, written_at)
select $1, 5, g, clock_timestamp() - $2::interval from generate_series(1, $3) g
"""


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool


# What is left behind


async def by_statement(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    await fenced_execute(pool, INSERT, 1, lease=lease)


async def by_transaction(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute(INSERT, 1)


async def by_old_code(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    with under(lease):
        await pool.execute(INSERT, 1)


async def by_a_statement_that_fails(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await fenced_execute(pool, "insert into note values (1 / $1::int)", 0, lease=lease)
    await by_statement(pool, lease)


async def by_a_transaction_that_is_rolled_back(pool: asyncpg.Pool[Any], lease: Lease) -> None:
    with pytest.raises(ZeroDivisionError):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute(INSERT, 1)
            raise ZeroDivisionError
    await by_transaction(pool, lease)


WAYS = (
    by_statement,
    by_transaction,
    by_old_code,
    by_a_statement_that_fails,
    by_a_transaction_that_is_rolled_back,
)


@pytest.mark.parametrize("way", WAYS)
async def test_many_writes_one_after_the_other_leave_one_row(
    pool: asyncpg.Pool[Any], way: Callable[[asyncpg.Pool[Any], Lease], Awaitable[None]]
) -> None:
    lease = await held(pool)
    for _ in range(100):
        await way(pool, lease)
    # Two where the slot that this process happened to be in came to its thousand.
    assert await pool.fetchval(ROWS) <= 2
    assert await pool.fetchval("select count(*) from lockguard.outcome") == 0


async def test_many_holds_with_a_write_each_leave_one_row(pool: asyncpg.Pool[Any]) -> None:
    fence = PostgresFence(pool)
    for token in range(1, 101):
        lease = await held(pool, token)
        await by_transaction(pool, lease)
        await fence.close(lease.grant, within=SOON)
    assert await pool.fetchval(ROWS) <= 2


async def test_writes_at_the_same_time_leave_a_row_for_each_of_them_at_most(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    for _ in range(10):
        await asyncio.gather(*(by_transaction(pool, lease) for _ in range(10)))
    assert await pool.fetchval("select count(*) from note") == 100
    assert await pool.fetchval(ROWS) <= 20


# What a call reads does not depend on it

READ = """
select sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::int as read, sum(n_tup_del)::int as deleted
  from pg_stat_xact_all_tables where schemaname = 'lockguard'
"""
CALLS = f"""
select lockguard.seal('{APT}', $1, $2, 'h', 'o', 5000);
select lockguard.check('{APT}', $1, $2, {(1 << 62) + 1025});
select lockguard.check('{APT}', $1, $2, 17);
select lockguard.close('{APT}', $1, $2, 5000);
select lockguard.resolve('{APT}', $1, {(1 << 62) + 1025}, 5000);
select lockguard.resolve('{APT}', $1, {(1 << 62) + 1026}, 5000);
select lockguard.resolve('{APT}', $1, 18, 5000);
select lockguard.break_('{APT}', 'why', 5000)
"""


async def _read_by_all_calls(conn: asyncpg.Connection[Any], token: int) -> tuple[int, int]:
    grant = UUID(new_grant_id())
    transaction = conn.transaction()
    await transaction.start()
    try:
        # What earlier transactions of the session did is in these figures too, for up to a second.
        earlier = await conn.fetchrow(READ)
        for call in CALLS.split(";"):
            used = [value for n, value in ((1, token), (2, grant)) if f"${n}" in call]
            await conn.execute(call, *used)
        row = await conn.fetchrow(READ)
        assert earlier is not None
        assert row is not None
        return (row["read"] or 0) - (earlier["read"] or 0), (row["deleted"] or 0) - (earlier["deleted"] or 0)
    finally:
        await transaction.rollback()


@pytest.mark.parametrize("age", [timedelta(hours=1), timedelta(days=3)], ids=str)
async def test_no_call_reads_or_deletes_more_after_a_hundred_thousand_writes(
    pool: asyncpg.Pool[Any], age: timedelta
) -> None:
    async with pool.acquire() as conn:
        await held(pool, 6)
        before = await _read_by_all_calls(conn, 7)
        for resource in (APT, "binance:OTHER"):
            await conn.execute(OLD_HISTORY, resource, age, 50_000)
            await conn.execute(
                "insert into lockguard.writer (resource, slot, token, sequence, first, begun_at)"
                " select $1, g, 5, g, g, clock_timestamp() - $2::interval from generate_series(1, 50000) g",
                resource,
                age,
            )
        await conn.execute("analyze lockguard.outcome; analyze lockguard.writer")
        assert await _read_by_all_calls(conn, 7) == before
        assert before[0] > 0
        assert before[1] == 0


# Many leases at once


def test_many_leases_are_presented_by_one_call() -> None:
    """Each call of a check reads and writes all that was presented before it."""
    entry = presentation_for(
        [lease_of(grant_of(7, f"r{n}")) for n in range(1000)], sequence=1, limits=Limits()
    )
    assert len(entry.claims) == 1000
    assert entry.sql().count("select") == 2


def _unaware(leases: list[Lease]) -> list[Lease]:
    """The same, as code has them that was not told of a refusal."""
    return [Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK) for lease in leases]


@pytest.mark.parametrize("count", [3, 40])
async def test_each_of_many_leases_is_checked_and_presented(pool: asyncpg.Pool[Any], count: int) -> None:
    await pool.execute("create table own (resource text); select lockguard.protect('own', '{resource}')")
    leases = [await held(pool, 7, f"r{n}") for n in range(count)]
    for lease in leases:
        async with fenced_transaction(pool, leases) as conn:
            await conn.execute("insert into own values ($1)", lease.resource)
        await fenced_execute(pool, "insert into own values ($1)", lease.resource, lease=leases)
    async with fenced_transaction(pool, leases) as conn:
        await conn.execute("insert into own select resource from own")
    resolvable = fenced_transaction(pool, leases)
    async with resolvable:
        pass
    first = min(leases, key=lambda lease: lease.resource)
    assert await resolve(pool, unknown(first, resolvable.sequence)) is True
    for stale in (leases[-1], leases[0]):
        await held(pool, 8, stale.resource)
        with pytest.raises(StaleToken):
            async with fenced_transaction(pool, _unaware(leases)):
                pass
        with pytest.raises(StaleToken):
            await fenced_execute(pool, "insert into own values ($1)", APT, lease=_unaware(leases))
    assert await pool.fetchval("select count(*) from own") == 4 * count


async def test_a_resource_has_a_row_for_each_process_however_many_others_that_writes_at_the_same_time(
    pool: asyncpg.Pool[Any],
) -> None:
    leases = [await held(pool, resource=f"binance:{number}") for number in range(8)]
    ways = (by_statement, by_transaction)
    together = asyncio.Barrier(len(leases))

    async def write(lease: Lease, turn: int) -> None:
        await together.wait()
        await ways[turn % 2](pool, lease)

    for turn in range(10):
        # All under way at once, and ended in another order each time.
        await asyncio.gather(*(write(lease, turn) for lease in leases[turn % 8 :] + leases[: turn % 8]))
    assert await pool.fetchval("select count(*) from lockguard.writer") == len(leases)


# What has gone is told as such


async def test_a_write_whose_record_has_gone_is_unknown_and_not_lost(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    transaction = fenced_transaction(pool, lease)
    async with transaction as conn:
        await conn.execute(INSERT, 1)
    assert await resolve(pool, unknown(lease, transaction.sequence)) is True
    await pool.execute(AGE)
    assert await pool.fetchval("select lockguard.prune()") == 1
    for _ in range(2):  # asking leaves nothing that would answer the next time
        with pytest.raises(OutcomeUnknown, match="nobody knows any more"):
            await resolve(pool, unknown(lease, transaction.sequence))
    # What comes after it is known for certain, whichever way it went.
    later = fenced_transaction(pool, lease)
    assert await resolve(pool, unknown(lease, later.sequence)) is False
    with pytest.raises(StaleToken, match="already declared lost"):
        async with later:
            pass
    last = fenced_transaction(pool, lease)
    async with last:
        pass
    assert await resolve(pool, unknown(lease, last.sequence)) is True


async def test_a_write_that_its_writer_has_written_after_is_unknown(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    first, second = NUMBERS.take(), None
    NUMBERS.give_back([first])
    transaction = fenced_transaction(pool, lease)
    async with transaction:
        pass
    second = transaction.sequence
    await by_transaction(pool, lease)
    with pytest.raises(OutcomeUnknown, match="nobody knows any more"):
        await resolve(pool, unknown(lease, second))


async def test_a_write_that_nobody_heard_of_stays_known_whatever_is_written_after_it(
    pool: asyncpg.Pool[Any],
) -> None:
    """Its slot is not given back, by this lease or by the successors'."""
    lease = await held(pool)
    committed, lost = NUMBERS.take(), NUMBERS.take()
    await pool.execute("select lockguard.check($1, 7, $2, $3)", APT, UUID(lease.grant.id), committed)
    for token in range(8, 12):
        successor = await held(pool, token)
        for _ in range(20):
            await by_transaction(pool, successor)
            await by_statement(pool, successor)
    assert await resolve(pool, unknown(lease, committed)) is True
    assert await resolve(pool, unknown(lease, lost)) is False


async def test_two_processes_that_count_alike_never_answer_for_each_other(pool: asyncpg.Pool[Any]) -> None:
    """As of a fork that nobody noticed, or by an unlikely chance: the tokens tell the writes apart."""
    number, check = NUMBERS.alone(), "select lockguard.check($1, $2, $3, $4)"
    first = await held(pool, 7)
    assert await resolve(pool, unknown(first, number - 1)) is False
    successor = await held(pool, 8)
    await pool.execute(check, APT, 8, UUID(successor.grant.id), number - 1)  # not barred by the other's
    await pool.execute(check, APT, 8, UUID(successor.grant.id), number)
    with pytest.raises(OutcomeUnknown):
        await resolve(pool, unknown(first, number))
    assert await resolve(pool, unknown(successor, number)) is True


async def test_a_declared_loss_stays_one_when_its_record_has_gone(pool: asyncpg.Pool[Any]) -> None:
    lease = await held(pool)
    late = fenced_transaction(pool, lease)
    assert await resolve(pool, unknown(lease, late.sequence)) is False
    await pool.execute(AGE)
    assert await pool.fetchval("select lockguard.prune()") >= 1
    with pytest.raises(StaleToken, match="already declared lost"):
        async with late:
            pass


# Clearing away


async def test_only_what_is_old_enough_goes_a_bounded_number_at_a_time_over_all_resources(
    pool: asyncpg.Pool[Any],
) -> None:
    old, young = timedelta(hours=37), timedelta(hours=35)
    for resource in ("a", "b", "c"):
        await pool.execute(OLD_HISTORY, resource, old, 1_000)
    await pool.execute(OLD_HISTORY, "d", young, 1_000)
    gone = [await pool.fetchval("select lockguard.prune(400)") for _ in range(12)]
    assert max(gone) == 400
    assert sum(gone) == 3_000
    assert await pool.fetch("select resource, count(*) from lockguard.outcome group by 1") == [("d", 1_000)]
    assert await pool.fetch("select resource, sequence from lockguard.forgotten order by 1") == [
        ("a", 1_000),
        ("b", 1_000),
        ("c", 1_000),
    ]


async def test_clearing_away_waits_for_nobody_and_nobody_for_it(pool: asyncpg.Pool[Any]) -> None:
    lease, other = await held(pool), await held(pool, 7, "binance:OTHER")
    await by_transaction(pool, lease)
    await by_transaction(pool, other)
    await pool.execute(AGE)
    async with pool.acquire() as writing, pool.acquire() as pruning, pool.acquire() as too:
        await too.execute("set lock_timeout = '1s'")
        async with fenced_transaction(writing, lease):  # in the very row that is old enough to go
            async with pruning.transaction():
                assert await pruning.fetchval("select lockguard.prune()") == 1
                assert await too.fetchval("select lockguard.prune()") == 0
                await held(pool, 8, "binance:OTHER")
    assert await pool.fetch("select resource from lockguard.writer") == [(APT,)]


async def test_who_holds_leases_clears_away_now_and_then(
    pool: asyncpg.Pool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockguard_postgres._fence._PRUNE_S", 0.0)
    await pool.execute(OLD_HISTORY, "long gone", timedelta(days=30), 3_500)
    async with PostgresFence(pool) as fence:
        await fence.seal(grant_of(7), within=SOON)
        lease = lease_of(grant_of(8))
        await fence.seal(lease.grant, within=SOON)
        async with asyncio.timeout(5):
            while await pool.fetchval("select exists (select from lockguard.outcome)"):
                await asyncio.sleep(0.01)


# Upgrades


async def _at_version(conn: asyncpg.Connection[Any], version: int) -> None:
    for step in steps():
        if step.version <= version:
            await conn.execute(step.sql)
            await conn.execute("insert into lockguard.schema_version (version) values ($1)", step.version)


@pytest.mark.parametrize("version", [2, 3, 4])
@pytest.mark.parametrize("number", [17, (1 << 62) + 1025], ids=["old library", "new library"])
async def test_an_upgrade_stops_nobody_and_forgets_nothing(
    database_url: str, version: int, number: int
) -> None:
    committed, open_, late, after = (number + 1024 * n for n in range(4))
    async with asyncpg.create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await _at_version(conn, version)
        lease = await held(pool)
        check = f"select lockguard.check('{APT}', 7, '{UUID(lease.grant.id)}', $1)"
        await pool.execute(check, committed)
        assert await pool.fetchval(f"select lockguard.resolve('{APT}', 7, {late}, 1000)") is False
        async with pool.acquire() as old, pool.acquire() as owner:
            transaction = old.transaction()
            await transaction.start()
            await old.execute(check, open_)
            await owner.execute("set lock_timeout = '1s'")
            await install(owner)
            await old.execute("select")
            asking = asyncio.create_task(resolve(pool, unknown(lease, open_)))
            done, _ = await asyncio.wait([asking], timeout=0.1)
            assert not done  # it is under way yet
            await transaction.commit()
            assert await asking is True
            assert await resolve(pool, unknown(lease, open_)) is True  # and once more
            with pytest.raises(asyncpg.PostgresError, match="already declared lost"):
                await old.execute(check, late)
            await old.execute(check, after)
        for sequence, answer in ((committed, True), (late, False), (after, True)):
            assert await resolve(pool, unknown(lease, sequence)) is answer


@pytest.mark.parametrize("version", [2, 3, 4])
async def test_this_library_on_a_schema_of_before_writes_and_resolves_as_before(
    database_url: str, version: int
) -> None:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await _at_version(conn, version)
            await conn.execute("create table note (id int)")
        lease = await held(pool)
        for way in WAYS:
            await way(pool, lease)
        transaction = fenced_transaction(pool, lease)
        async with transaction:
            pass
        assert await resolve(pool, unknown(lease, transaction.sequence)) is True
        assert await resolve(pool, unknown(lease, fenced_transaction(pool, lease).sequence)) is False


# The role's or the database's own isolation

NOTED = """
create table noted (what text, isolation text);
create function note() returns trigger language plpgsql security definer as $$
begin
  insert into public.noted values (tg_table_name, current_setting('transaction_isolation'));
  return null;
end $$;
create trigger note after insert or update on lockguard.fence for each row execute function note();
create trigger note after insert or update on lockguard.writer for each row execute function note();
"""


@pytest.fixture(params=["repeatable read", "serializable"])
async def strict_pool(
    any_server: PostgresServer, request: pytest.FixtureRequest
) -> AsyncIterator[asyncpg.Pool[Any]]:
    """Of a database whose default that is."""
    name = f"test_{secrets.token_hex(6)}"
    async with create_pool(any_server.create_database(name), min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await conn.execute(f"alter database {name} set default_transaction_isolation = '{request.param}'")
        await pool.expire_connections()
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int)")
        yield pool
    any_server.drop_database(name)


async def test_the_fences_own_calls_are_read_committed_whatever_the_default_is(
    strict_pool: asyncpg.Pool[Any],
) -> None:
    await strict_pool.execute(NOTED)
    fence, lease = PostgresFence(strict_pool), await held(strict_pool)
    await resolve(strict_pool, unknown(lease, NUMBERS.alone()))
    await fence.close(lease.grant, within=SOON)
    await fence.break_(Resource(APT), reason="why", within=SOON)
    levels = await strict_pool.fetch("select what, isolation, count(*) from noted group by 1, 2 order by 1")
    assert levels == [("fence", "read committed", 3), ("writer", "read committed", 1)]


async def test_bodies_that_have_nothing_to_do_with_each_other_all_succeed_whatever_the_default_is(
    strict_pool: asyncpg.Pool[Any],
) -> None:
    fence = PostgresFence(strict_pool)

    async def bodies(worker: int) -> None:
        for n in range(12):
            lease = await held(strict_pool, 1, f"binance:{n}:{worker}")
            async with fenced_transaction(strict_pool, lease) as conn:
                await conn.execute(INSERT, n)
                await asyncio.sleep(0)  # the others seal and close meanwhile
                await conn.execute(INSERT, n)
            await fenced_execute(strict_pool, INSERT, n, lease=lease)
            await fence.close(lease.grant, within=SOON)

    await asyncio.gather(*(bodies(worker) for worker in range(20)))
    assert await strict_pool.fetchval("select count(*) from note") == 3 * 240


async def test_two_installers_do_not_disturb_each_other_whatever_the_default_is(database_url: str) -> None:
    conns = [
        await asyncpg.connect(database_url, server_settings={"default_transaction_isolation": "serializable"})
        for _ in range(3)
    ]
    try:
        before = [done.before for done in await asyncio.gather(*(install(conn) for conn in conns))]
    finally:
        await asyncio.gather(*(conn.close() for conn in conns))
    assert sorted(before) == [0, SCHEMA_VERSION, SCHEMA_VERSION]


# Room beside a row


async def test_the_rows_of_the_fence_change_in_place_and_no_index_grows_with_the_holds(
    pool: asyncpg.Pool[Any],
) -> None:
    """HOT: the next version of a row fits on its page, and no column that changes is in an index."""
    names = [f"binance:{n}" for n in range(60)]
    fence = PostgresFence(pool)
    for resource in names:
        await fence.close((await held(pool, 7, resource)).grant, within=SOON)
    sizes = "select pg_relation_size('lockguard.fence_pkey') + pg_relation_size('lockguard.writer_pkey')"
    roomy = "select oid::regclass::text from pg_class where reloptions @> '{fillfactor=60}' order by 1"
    assert await pool.fetch(roomy) == [("lockguard.fence",), ("lockguard.writer",)]
    grown: list[int] = []
    before = await _updates(pool, fence=60, writer=0)
    for token in (8, 9, 10):
        for resource in names:
            lease = await held(pool, token, resource)
            await fenced_execute(pool, INSERT, 1, lease=lease)
            await fence.close(lease.grant, within=SOON)
        grown.append(await pool.fetchval(sizes))
    after = await _updates(pool, fence=60 + 2 * 3 * 60, writer=2 * 60)
    for table in ("fence", "writer"):
        made, in_place = (new - old for new, old in zip(after[table], before[table], strict=True))
        assert in_place / made > 0.9, (table, made, in_place)
    assert grown[0] == grown[-1]


async def _updates(pool: asyncpg.Pool[Any], **least: int) -> dict[str, tuple[int, int]]:
    """The updated rows of each table, and how many of them in place, once all sessions have told."""
    counts = (
        "select relname, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables where schemaname = 'lockguard'"
    )
    await pool.expire_connections()  # a session tells at its end, at the latest
    async with asyncio.timeout(10):
        while True:
            told = {name: (made, in_place) for name, made, in_place in await pool.fetch(counts)}
            if all(told[table][0] >= count for table, count in least.items()):
                return told
            await asyncio.sleep(0.05)
