"""Resources that are long gone are pruned, and no token of theirs is ever accepted again."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
import redis
from click.testing import CliRunner

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, OutcomeUnknown, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import (
    CommitUnknown,
    PostgresFence,
    create_pool,
    fenced_execute,
    fenced_transaction,
    install,
    resolve,
)
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._maintenance import Prunable, count_prunable, prune_resources, shut_out_all
from lockguard_postgres._numbers import NUMBERS
from tests.integration.fence_leases import SOON, grant_of, lease_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from lockguard_lab.servers import PostgresServer

MONTH = timedelta(days=30)
US = 1_000_000
LONG_AGO = timedelta(days=40)
FORGOTTEN = "select count(*) from lockguard.forgotten where resource = $1"
PRUNE = "select pruned from lockguard.prune_resources('30 days', '', 1000)"
AGE = """
update lockguard.fence
   set sealed_at = sealed_at - interval '40 days', released_at = released_at - interval '40 days'
 where released_at is not null and released_at > clock_timestamp() - interval '1 day'
"""


@pytest.fixture(scope="module")
def template(postgres_server: PostgresServer) -> Iterator[str]:
    """A database with the schema, which is copied for each test."""
    name = f"template_{new_grant_id()[:12]}"
    asyncio.run(prepared(postgres_server.create_database(name)))
    yield name
    postgres_server.drop_database(name)


async def prepared(url: str) -> None:
    conn = await asyncpg.connect(url)
    await install(conn)
    await conn.execute("create table note (id int)")
    await conn.close()


@pytest.fixture
async def pool(postgres_server: PostgresServer, template: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    name = f"test_{new_grant_id()[:12]}"
    url = postgres_server.create_database(name, template=template)
    async with create_pool(url, min_size=0, max_size=10) as pool:
        yield pool
    postgres_server.drop_database(name)


def ago(time: timedelta) -> int:
    """The token that a lock handed out then."""
    return int((SYSTEM_CLOCK.wall() - time.total_seconds()) * US)


def granted(token: int, resource: str = "binance:GONE") -> Grant:
    return grant_of(token, resource)


async def sealed(pool: asyncpg.Pool[Any], grant: Grant) -> Grant:
    assert await PostgresFence(pool).seal(grant, within=SOON) == Sealed(grant.token)
    return grant


async def closed(pool: asyncpg.Pool[Any], token: int, resource: str = "binance:GONE") -> Grant:
    grant = await sealed(pool, granted(token, resource))
    await PostgresFence(pool).close(grant, within=SOON)
    return grant


async def pruned(pool: asyncpg.Pool[Any], older_than: timedelta = MONTH) -> int:
    async with pool.acquire() as conn:
        return await prune_resources(conn, older_than=older_than)


async def gone(pool: asyncpg.Pool[Any], token: int) -> Grant:
    grant = await closed(pool, token)
    await pool.execute(AGE)
    assert await pruned(pool) == 1
    assert await pool.fetch("select from lockguard.status('binance:GONE')") == []
    return grant


async def test_no_token_of_a_pruned_resource_is_accepted_again_and_the_next_one_is(
    pool: asyncpg.Pool[Any],
) -> None:
    last = ago(LONG_AGO)
    before = await gone(pool, last)
    fence = PostgresFence(pool)
    for grant in (before, granted(last), granted(last - 1), granted(1)):
        assert await fence.seal(grant, within=SOON) == Outrun(Token(last))
        with pytest.raises(StaleToken, match="was pruned since") as caught:
            await fenced_execute(pool, "insert into note values (1)", lease=lease_of(grant))
        hint = getattr(caught.value.__cause__, "hint", "")
        assert "take a new lease" in hint
        assert "unfenced" not in hint  # the lease was a good one: nobody is to write past the fence
    new = await sealed(pool, granted(last + 1))
    await fenced_execute(pool, "insert into note values (2)", lease=lease_of(new))
    for grant in (before, granted(last), granted(1)):
        assert await fence.seal(grant, within=SOON) == Outrun(Token(last + 1))
    assert await pool.fetchval("select array_agg(id) from note") == [2]


async def test_a_holder_whose_first_seal_a_failover_lost_is_told_so_and_not_sent_past_the_fence(
    pool: asyncpg.Pool[Any],
) -> None:
    async with pool.acquire() as conn:
        await shut_out_all(conn, reason="failover")  # which raises the floor: it has no row
    with pytest.raises(StaleToken, match="its seal was lost before a recovery") as caught:
        await fenced_execute(pool, "insert into note values (1)", lease=lease_of(granted(ago(SOON))))
    assert "unfenced" not in getattr(caught.value.__cause__, "hint", "")


async def test_a_redis_that_hands_out_lower_tokens_is_raised_above_those_of_what_was_pruned(
    pool: asyncpg.Pool[Any], redis_url: str
) -> None:
    """As where its clock was set back: whoever holds the lock settles above the floor, as above a row."""
    await gone(pool, ago(LONG_AGO))
    floor = ago(-timedelta(hours=1))  # an hour before what Redis will say
    await pool.execute("update lockguard.floor set token = $1", floor)
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        async with guard.hold("binance:GONE") as lease:
            assert lease.token == floor + 1
            await fenced_execute(pool, "insert into note values (1)")
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        async with guard.hold("binance:GONE") as lease:
            assert lease.token == floor + 2
    assert await pool.fetchval("select count(*) from note") == 1


async def test_what_is_held_or_young_or_ahead_of_its_time_or_can_be_asked_for_stays(
    pool: asyncpg.Pool[Any],
) -> None:
    await sealed(pool, granted(ago(LONG_AGO), "held"))
    await pool.execute("update lockguard.fence set sealed_at = sealed_at - interval '40 days'")
    written = await sealed(pool, granted(ago(LONG_AGO), "written"))
    await fenced_execute(pool, "insert into note values (1)", lease=lease_of(written))
    await PostgresFence(pool).close(written, within=SOON)
    await closed(pool, ago(-timedelta(days=300)), "ahead")
    await closed(pool, ago(timedelta(days=29)), "token of a day before")
    await closed(pool, ago(LONG_AGO), "gone")
    await pool.execute(AGE)
    await closed(pool, ago(LONG_AGO), "young")
    async with pool.acquire() as conn:
        # Whether somebody may still ask for a write is looked at when it goes.
        assert await count_prunable(conn, older_than=MONTH) == Prunable(gone=2, resources=6)
    assert await pruned(pool) == 1
    left = "select array_agg(resource order by resource) from lockguard.status()"
    assert await pool.fetchval(left) == ["ahead", "held", "token of a day before", "written", "young"]
    assert await pool.fetchval("select token from lockguard.floor") < ago(MONTH)
    await pool.execute("update lockguard.writer set begun_at = begun_at - interval '40 days'")
    assert await pruned(pool) == 1
    assert await pool.fetchval(left) == ["ahead", "held", "token of a day before", "young"]
    tables = "select (select count(*) from lockguard.writer), (select count(*) from lockguard.forgotten)"
    assert await pool.fetchrow(tables) == (0, 0)


async def test_pruning_waits_for_nobody_who_has_use_for_a_resource(pool: asyncpg.Pool[Any]) -> None:
    for name in ("a", "b", "c", "d"):
        await closed(pool, ago(LONG_AGO), name)
    await pool.execute(AGE)
    async with pool.acquire() as sealing, pool.acquire() as locking, pool.acquire() as conn:
        await conn.execute("set lock_timeout = '1s'")
        one, two = sealing.transaction(), locking.transaction()
        await one.start()
        await two.start()
        await sealing.execute("select lockguard.seal('b', $1, gen_random_uuid(), '', '', 1000)", ago(-SOON))
        await locking.execute("select from lockguard.fence where resource = 'c' for key share")
        await locking.execute("select pg_advisory_xact_lock_shared(lockguard.gate('d'))")
        assert await conn.fetchval(PRUNE) == 1
        await one.commit()
        await two.rollback()
        assert await conn.fetchval(PRUNE) == 2
        assert await conn.fetch("select resource, is_open from lockguard.status()") == [("b", True)]


async def test_a_snapshot_of_before_the_pruning_seals_nothing_that_was_forgotten(
    pool: asyncpg.Pool[Any],
) -> None:
    """By hand: the library's own calls are made at READ COMMITTED."""
    last = ago(LONG_AGO)
    await closed(pool, last)
    await pool.execute(AGE)
    seal = "select accepted from lockguard.seal('binance:GONE', $1, gen_random_uuid(), '', '', 1000)"
    for isolation in ("repeatable_read", "serializable"):
        async with pool.acquire() as conn:
            transaction = conn.transaction(isolation=isolation)  # type: ignore[arg-type]
            await transaction.start()
            await conn.fetchval("select 1")
            if isolation == "repeatable_read":
                assert await pruned(pool) == 1
            else:
                await pool.execute("update lockguard.floor set token = token + 5")
            token = last - 1 if isolation == "repeatable_read" else last + 3
            with pytest.raises(asyncpg.SerializationError):
                await conn.fetchval(seal, token)
            await transaction.rollback()
            assert await conn.fetchval(seal, token) is False


@pytest.mark.parametrize("isolation", ["repeatable_read", "serializable"])
async def test_a_resource_that_was_never_sealed_is_called_so_whatever_was_pruned(
    pool: asyncpg.Pool[Any], isolation: Any
) -> None:
    await gone(pool, ago(LONG_AGO))
    async with pool.acquire() as conn:
        with pytest.raises(StaleToken, match="never sealed in this database"):
            async with conn.transaction(isolation=isolation):
                await conn.execute("select lockguard.check('never', $1, gen_random_uuid())", ago(SOON))


async def test_what_ends_late_below_the_floor_leaves_no_way_back(pool: asyncpg.Pool[Any]) -> None:
    last = ago(LONG_AGO)
    await gone(pool, last)
    late = granted(last - 5)
    fence = PostgresFence(pool)
    await fence.close(late, within=SOON)  # its seal is still on its way, say
    assert await fence.seal(late, within=SOON) == Outrun(Token(last))
    assert await pool.fetchrow("select token, is_open from lockguard.status()") == (last, False)
    ahead = ago(-timedelta(days=1))
    await pool.execute("update lockguard.floor set token = $1", ahead)
    await fence.break_(Resource("binance:OTHER"), reason="x", within=SOON)
    assert await pool.fetchval("select token from lockguard.status('binance:OTHER')") == ahead


async def test_what_became_of_a_write_of_a_pruned_resource_is_never_guessed(pool: asyncpg.Pool[Any]) -> None:
    grant = await sealed(pool, granted(ago(LONG_AGO)))
    committed = fenced_transaction(pool, lease_of(grant))
    async with committed as conn:
        await conn.execute("insert into note values (1)")
    await PostgresFence(pool).close(grant, within=SOON)
    await pool.execute(AGE)
    await pool.execute("update lockguard.writer set begun_at = begun_at - interval '40 days'")
    assert await pruned(pool) == 1
    for sequence in (committed.sequence, NUMBERS.take()):
        unknown = CommitUnknown(resource=grant.resource, token=grant.token, sequence=sequence)
        with pytest.raises(OutcomeUnknown, match="nobody knows any more"):
            await resolve(pool, unknown)
    elsewhere = CommitUnknown(resource="other", token=Token(ago(SOON)), sequence=NUMBERS.take())
    with pytest.raises(ConfigurationError, match="never accepted"):
        await resolve(pool, elsewhere)
    new = await sealed(pool, granted(ago(SOON)))
    for sequence in (committed.sequence, NUMBERS.take()):
        unknown = CommitUnknown(resource=grant.resource, token=grant.token, sequence=sequence)
        with pytest.raises(OutcomeUnknown, match="nobody knows any more"):
            await resolve(pool, unknown)
    lost = CommitUnknown(resource=new.resource, token=new.token, sequence=NUMBERS.take())
    assert await resolve(pool, lost) is False
    async with fenced_transaction(pool, lease_of(new)) as conn:
        await conn.execute("insert into note values (2)")


async def test_a_write_of_a_lease_held_since_before_the_floor_is_accepted_and_resolved(
    pool: asyncpg.Pool[Any],
) -> None:
    held = await sealed(pool, granted(ago(timedelta(days=50)), "held"))
    await gone(pool, ago(LONG_AGO))
    await fenced_execute(pool, "insert into note values (1)", lease=lease_of(held))
    lost = CommitUnknown(resource=held.resource, token=held.token, sequence=NUMBERS.take())
    assert await resolve(pool, lost) is False
    assert await PostgresFence(pool).seal(held, within=SOON) == Sealed(held.token)  # a reply that was lost
    await PostgresFence(pool).close(held, within=SOON)
    await sealed(pool, granted(ago(SOON), "held"))


@pytest.mark.parametrize(
    "statement",
    [
        "delete from lockguard.fence where resource = 'open'",
        "delete from lockguard.fence where resource = 'above'",
        "update lockguard.floor set token = token - 1",
        "delete from lockguard.floor",
        "truncate lockguard.floor",
        "set session_replication_role = replica; update lockguard.floor set token = 0",
        "insert into lockguard.fence values ('new', 7, gen_random_uuid(), '', '')",
    ],
)
async def test_what_would_let_a_token_return_is_refused_to_a_superuser_too(
    pool: asyncpg.Pool[Any], statement: str
) -> None:
    await gone(pool, ago(LONG_AGO))
    await sealed(pool, granted(ago(SOON), "open"))
    await closed(pool, ago(SOON), "above")
    with pytest.raises(asyncpg.PostgresError) as caught:
        await pool.execute(statement)
    assert caught.value.sqlstate == ("40001" if statement.startswith("insert") else "LG003")


async def test_tokens_only_grow_while_resources_are_sealed_closed_and_pruned_at_the_same_time(
    pool: asyncpg.Pool[Any],
) -> None:
    """Each token is one that was long ago; the rows are aged as soon as they are closed."""
    done = asyncio.Event()
    fence, base = PostgresFence(pool), ago(timedelta(days=50))
    rounds: dict[str, int] = {}
    new_rows = 0

    async def holds(resource: str, seed: int) -> None:
        nonlocal new_rows
        chance, last = random.Random(seed), 0
        for n in range(60):
            grant = granted(max(last + 1, base + n), resource)
            answer = await fence.seal(grant, within=SOON)
            while isinstance(answer, Outrun):
                assert answer.current >= last
                grant = granted(answer.current + 1, resource)
                answer = await fence.seal(grant, within=SOON)
            assert grant.token > last
            last = grant.token
            new_rows += await pool.fetchval(FORGOTTEN, resource)
            await fenced_execute(pool, "insert into note values (1)", lease=lease_of(grant))
            await fence.close(grant, within=SOON)
            await pool.execute("delete from lockguard.writer where resource = $1", resource)
            for stale in (last, chance.randint(1, last)):
                replayed = await fence.seal(granted(stale, resource), within=SOON)
                assert isinstance(replayed, Outrun)
        rounds[resource] = last

    async def prunes() -> None:
        async with pool.acquire() as conn:
            while not done.is_set():
                await conn.execute(AGE)
                await conn.fetchval(PRUNE)

    pruning = asyncio.create_task(prunes())
    try:
        await asyncio.gather(*(holds(f"r{n}", n) for n in range(4)))
    finally:
        done.set()
        await pruning
    assert len(rounds) == 4
    assert new_rows > 0  # some were sealed anew after they had been pruned


async def test_after_a_recovery_a_seal_of_before_is_outrun_also_where_the_database_has_no_row(
    pool: asyncpg.Pool[Any],
) -> None:
    """The first seal of a resource may be among the commits that were lost."""
    of_before = granted(ago(timedelta(seconds=1)), "lost with the failover")
    async with pool.acquire() as conn:
        await shut_out_all(conn, reason="failover of 12:00")
    answer = await PostgresFence(pool).seal(of_before, within=SOON)
    assert isinstance(answer, Outrun)
    await sealed(pool, granted(answer.current + 1, "lost with the failover"))


async def test_the_bots_own_role_may_not_prune(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        await conn.execute("set role lockguard_app")
        with pytest.raises(ConfigurationError, match="prune as the role that owns"):
            await prune_resources(conn, older_than=MONTH)


def test_the_command_changes_nothing_unless_it_is_told_to(database_url: str) -> None:
    run = CliRunner()

    def command(*words: str) -> tuple[int, str]:
        done = run.invoke(fence, [*words, "--url", database_url])
        return done.exit_code, done.output

    async def prepare() -> None:
        async with create_pool(database_url, min_size=0, max_size=2) as pool:
            await gone_twice(pool)

    assert command("install")[0] == 0
    asyncio.run(prepare())
    for _ in range(2):
        assert command("prune", "--older-than", "30d") == (
            0,
            "2 of 3 resources have been closed for more than 30 days; repeat with --confirm to remove them\n",
        )
    assert command("prune", "--older-than", "4w", "--confirm") == (0, "2 of 3 resources were removed\n")
    assert command("prune", "--older-than", "30d", "--confirm") == (0, "0 of 1 resources were removed\n")
    code, said = command("prune", "--older-than", "1d", "--confirm")
    assert code == 2
    assert said.startswith("Error: older_than=1 days cannot work: what became of a write can be asked for")
    assert said.count("\n") == 1
    for age in ("30", "30m", "-1d", "nan", "1e3d", "", "99999999d", "٣d"):
        code, said = command("prune", "--older-than", age)
        assert code == 2
        assert "is no age; give days or weeks" in said


async def gone_twice(pool: asyncpg.Pool[Any]) -> None:
    for name in ("a", "b"):
        await closed(pool, ago(LONG_AGO), name)
    await pool.execute(AGE)
    await closed(pool, ago(LONG_AGO), "c")


async def test_writes_by_hand_are_checked_as_ever_beside_the_floor(pool: asyncpg.Pool[Any]) -> None:
    await gone(pool, ago(LONG_AGO))
    grant = await sealed(pool, granted(ago(SOON), "new"))
    check = "select lockguard.check('new', $1, $2, $3)"
    await pool.execute(check, grant.token, UUID(grant.id), NUMBERS.alone())
    await pool.execute(check, grant.token, UUID(grant.id), 17)  # a library of before
