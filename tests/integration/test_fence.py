"""The fence on a real Postgres: seal, check, close, break, and the transaction that carries them."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Token
from lockguard.errors import (
    ConfigurationError,
    FenceUnavailable,
    LeaseLost,
    LeaseNotHeld,
    LossReason,
    StaleToken,
)
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import (
    CommitUnknown,
    FencedTransaction,
    Limits,
    NotCommitted,
    PostgresFence,
    fenced_transaction,
    install,
)
from tests.integration.fence_leases import APT, SOON, blocked, grant_of, lease_of, under

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=10) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int primary key, text text, token bigint)")
        yield pool


@pytest.fixture
def fence(pool: asyncpg.Pool[Any]) -> PostgresFence:
    return PostgresFence(pool)


async def sealed(fence: PostgresFence, g: Grant) -> Lease:
    assert await fence.seal(g, within=SOON) == Sealed(g.token)
    return lease_of(g)


# seal


async def test_seal_takes_the_presented_token_of_a_free_resource(fence: PostgresFence) -> None:
    assert await fence.seal(grant_of(7), within=SOON) == Sealed(Token(7))


async def test_seal_is_idempotent_per_grant(fence: PostgresFence) -> None:
    g = grant_of(7)
    await sealed(fence, g)
    assert await fence.seal(g, within=SOON) == Sealed(Token(7))


async def test_a_higher_token_takes_over_and_shuts_out_the_old_holder(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    old = await sealed(fence, grant_of(7))
    await sealed(fence, grant_of(8))
    with pytest.raises(StaleToken):
        async with fenced_transaction(pool, old):
            pytest.fail("the body of a stale holder must not run")


@pytest.mark.parametrize("token", [6, 7])
async def test_a_late_seal_does_not_steal_the_fence_from_the_successor(
    fence: PostgresFence, pool: asyncpg.Pool[Any], token: int
) -> None:
    successor = await sealed(fence, grant_of(7))
    assert await fence.seal(grant_of(token), within=SOON) == Outrun(Token(7))
    async with fenced_transaction(pool, successor):
        pass


async def test_the_rightful_holder_seals_after_the_token_source_went_back(fence: PostgresFence) -> None:
    await sealed(fence, grant_of(1_000))
    late = grant_of(3)
    answer = await fence.seal(late, within=SOON)
    assert answer == Outrun(Token(1_000))
    again = Grant(late.resource, late.id, Token(answer.current + 1), late.holder, late.operation, late.ttl_ms)
    assert await fence.seal(again, within=SOON) == Sealed(Token(1_001))


async def test_a_closed_grant_is_never_opened_again(fence: PostgresFence) -> None:
    g = grant_of(7)
    await sealed(fence, g)
    await fence.close(g, within=SOON)
    assert await fence.seal(g, within=SOON) == Outrun(Token(7))
    higher = Grant(g.resource, g.id, Token(9), g.holder, g.operation, g.ttl_ms)
    assert await fence.seal(higher, within=SOON) == Outrun(Token(7))


async def test_seal_waits_for_an_open_transaction_of_the_old_holder(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    old = await sealed(fence, grant_of(7))
    async with fenced_transaction(pool, old) as conn:
        await conn.execute("insert into note values (1, 'old', 7)")
        sealing = asyncio.create_task(fence.seal(grant_of(8), within=SOON))
        await blocked(pool, "lockguard.seal")
    assert await sealing == Sealed(Token(8))
    assert await pool.fetchval("select text from note") == "old"


async def test_seal_gives_up_within_its_bound(fence: PostgresFence, pool: asyncpg.Pool[Any]) -> None:
    old, patient = await sealed(fence, grant_of(7)), PostgresFence(pool, grace=SOON)
    async with fenced_transaction(pool, old):
        with pytest.raises(FenceUnavailable, match="open transaction under its lease") as caught:
            await patient.seal(grant_of(8), within=timedelta(seconds=1))
    assert caught.value.resource == APT
    async with fenced_transaction(pool, old):
        pass


async def test_a_holder_frozen_in_a_transaction_is_taken_over(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    old = await sealed(fence, grant_of(7))
    frozen = FencedTransaction(pool, old, limits=Limits(idle_timeout=timedelta(milliseconds=200)))
    conn = await frozen.__aenter__()
    await conn.execute("insert into note values (1, 'old', 7)")
    assert await fence.seal(grant_of(8), within=SOON) == Sealed(Token(8))
    # Unknown if COMMIT left before the news of the dropped connection came.
    with pytest.raises((NotCommitted, CommitUnknown)):
        await frozen.__aexit__(None, None, None)
    assert await pool.fetchval("select count(*) from note") == 0


@pytest.mark.parametrize("level", ["read committed", "repeatable read", "serializable"])
async def test_concurrent_seals_settle_on_the_highest_token_at_any_default_isolation(
    database_url: str, pool: asyncpg.Pool[Any], level: str
) -> None:
    settings = {"default_transaction_isolation": level}
    async with asyncpg.create_pool(database_url, min_size=0, max_size=10, server_settings=settings) as strict:
        fence = PostgresFence(strict)
        grants = [grant_of(n) for n in range(1, 30)]
        answers = await asyncio.gather(*(fence.seal(g, within=SOON) for g in grants))
    for g, answer in zip(grants, answers, strict=True):
        assert answer == Sealed(g.token) or (isinstance(answer, Outrun) and answer.current > g.token)
    row = await pool.fetchrow("select * from lockguard.status($1)", APT)
    assert row is not None
    assert (row["token"], row["is_open"]) == (29, True)


# close


async def test_no_write_is_accepted_after_close_though_nobody_took_over(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    g = grant_of(7)
    lease = await sealed(fence, g)
    await fence.close(g, within=SOON)
    with pytest.raises(StaleToken) as caught:
        async with fenced_transaction(pool, lease):
            pass
    assert (caught.value.resource, caught.value.presented, caught.value.current) == (APT, 7, 7)
    assert "closed" in str(caught.value)


async def test_close_waits_for_the_holders_own_transaction(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    g = grant_of(7)
    lease = await sealed(fence, g)
    async with fenced_transaction(pool, lease):
        closing = asyncio.create_task(fence.close(g, within=SOON))
        await blocked(pool, "lockguard.close")
    await closing


async def test_close_of_an_old_grant_leaves_the_new_one_open(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    old = grant_of(7)
    await sealed(fence, old)
    successor = await sealed(fence, grant_of(8))
    await fence.close(old, within=SOON)
    await fence.close(old, within=SOON)
    async with fenced_transaction(pool, successor):
        pass


@pytest.mark.parametrize("before", ["nothing", "a closed grant"])
async def test_a_seal_that_arrives_after_its_close_finds_the_grant_shut(
    fence: PostgresFence, before: str
) -> None:
    if before == "a closed grant":
        earlier = grant_of(5)
        await sealed(fence, earlier)
        await fence.close(earlier, within=SOON)
    g = grant_of(7)
    await fence.close(g, within=SOON)
    assert await fence.seal(g, within=SOON) == Outrun(Token(7))


async def test_close_of_a_grant_that_never_sealed_leaves_an_open_one_alone(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    holder = await sealed(fence, grant_of(5))
    await fence.close(grant_of(7), within=SOON)
    async with fenced_transaction(pool, holder):
        pass


# break: by an operator


async def test_break_fences_the_holder_and_is_audited(fence: PostgresFence, pool: asyncpg.Pool[Any]) -> None:
    lease = await sealed(fence, grant_of(7))
    token = await fence.break_(APT, reason="hung since 3 a.m.", within=SOON)
    assert token > 7
    with pytest.raises(StaleToken) as caught:
        async with fenced_transaction(pool, lease):
            pass
    assert caught.value.current == token
    assert "hung since 3 a.m." in str(caught.value)
    row = await pool.fetchrow("select action, subject, reason from lockguard.audit")
    assert row is not None
    assert tuple(row) == ("break", APT, "hung since 3 a.m.")


async def test_break_also_outruns_a_grant_that_is_not_sealed_yet(fence: PostgresFence) -> None:
    granted = grant_of(int((SYSTEM_CLOCK.wall() - 1) * 1_000_000))
    token = await fence.break_(APT, reason="stuck", within=SOON)
    assert await fence.seal(granted, within=SOON) == Outrun(token)


# the transaction


async def test_a_transaction_commits_under_the_lease_of_the_surrounding_body(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    with under(await sealed(fence, grant_of(7))):
        async with fenced_transaction(pool) as conn:
            await conn.execute("insert into note values (1, 'mine', 7)")
    assert await pool.fetchval("select text from note") == "mine"


async def test_a_transaction_without_a_lease_is_refused(pool: asyncpg.Pool[Any]) -> None:
    with pytest.raises(LeaseNotHeld, match=r"guard\.hold"):
        async with fenced_transaction(pool):
            pass


async def test_a_lost_lease_is_refused_without_asking_postgres(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    lease.mark_lost(LossReason.EXPIRED)
    with pytest.raises(LeaseLost):
        async with fenced_transaction(pool, lease):
            pass


async def test_a_lease_lost_inside_the_transaction_is_not_committed(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    with pytest.raises(LeaseLost):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute("insert into note values (1, 'late', 7)")
            lease.mark_lost(LossReason.REFUSED)
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_resource_never_sealed_is_refused(pool: asyncpg.Pool[Any]) -> None:
    with pytest.raises(StaleToken, match="never sealed") as caught:
        async with fenced_transaction(pool, lease_of(grant_of(7))):
            pass
    assert caught.value.current is None


async def test_the_number_alone_is_no_authority(fence: PostgresFence, pool: asyncpg.Pool[Any]) -> None:
    await sealed(fence, grant_of(7))
    with pytest.raises(StaleToken):
        async with fenced_transaction(pool, lease_of(grant_of(7))):
            pass


async def test_a_swallowed_error_does_not_pass_for_a_commit(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    with pytest.raises(NotCommitted):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute("insert into note values (1, 'x', 7)")
            with pytest.raises(asyncpg.UniqueViolationError):
                await conn.execute("insert into note values (1, 'x', 7)")


async def test_a_savepoint_inside_keeps_the_transaction_usable(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute("insert into note values (1, 'x', 7)")
        with pytest.raises(asyncpg.UniqueViolationError):
            async with conn.transaction():
                await conn.execute("insert into note values (1, 'y', 7)")
    assert await pool.fetchval("select text from note") == "x"


async def test_a_body_that_raises_is_rolled_back_and_its_error_kept(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    with pytest.raises(ZeroDivisionError):
        async with fenced_transaction(pool, lease) as conn:
            await conn.execute("insert into note values (1, 'x', 7)")
            raise ZeroDivisionError
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_refused_transaction_leaves_the_callers_connection_usable(
    fence: PostgresFence, database_url: str
) -> None:
    await sealed(fence, grant_of(8))
    conn = await asyncpg.connect(database_url)
    try:
        with pytest.raises(StaleToken):
            async with fenced_transaction(conn, lease_of(grant_of(7))):
                pass
        async with conn.transaction():
            assert await conn.fetchval("select 1") == 1
        assert not conn.is_in_transaction()
    finally:
        await conn.close()


async def test_a_savepoint_in_a_transaction_of_the_callers_is_fenced_until_its_end(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    async with pool.acquire() as conn, conn.transaction():
        async with fenced_transaction(conn, lease):
            await conn.execute("insert into note values (1, 'x', 7)")
        with pytest.raises(FenceUnavailable):
            await fence.seal(grant_of(8), within=timedelta(milliseconds=100))
    await sealed(fence, grant_of(9))


async def test_several_leases_are_all_checked(fence: PostgresFence, pool: asyncpg.Pool[Any]) -> None:
    one, two = await sealed(fence, grant_of(7, "a")), await sealed(fence, grant_of(7, "b"))
    async with fenced_transaction(pool, [two, one]):
        pass
    await sealed(fence, grant_of(8, "a"))
    with pytest.raises(StaleToken) as caught:
        async with fenced_transaction(pool, [two, one]):
            pass
    assert caught.value.resource == "a"


async def test_a_fenced_transaction_costs_no_more_messages_than_a_plain_one(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    sent: list[str] = []
    async with pool.acquire() as conn:
        conn.add_query_logger(lambda record: sent.append(record.query))
        async with fenced_transaction(conn, lease):
            await conn.execute("insert into note values (1, 'x', 7)")
    assert [q[:6].split(";")[0].lower() for q in sent[:3]] == ["begin", "insert", "commit"]


@pytest.mark.parametrize(
    "name", ["binance:'; drop table note; --", "bybit:\\'x", "ökx:比特币", "$$", "E'\\\\", "x" * 200]
)
async def test_any_name_is_only_a_name(fence: PostgresFence, pool: asyncpg.Pool[Any], name: str) -> None:
    lease = await sealed(fence, grant_of(7, name))
    async with fenced_transaction(pool, lease) as conn:
        await conn.execute("insert into note values (1, 'x', 7)")
    assert await pool.fetchval("select resource from lockguard.status()") == name


async def test_settings_of_a_transaction_do_not_outlive_it(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    async with pool.acquire() as conn:
        query = (
            "select current_setting('lock_timeout'), current_setting('idle_in_transaction_session_timeout'),"
            " coalesce(current_setting('lockguard.leases', true), '')"
        )
        async with fenced_transaction(conn, lease):
            row = await conn.fetchrow(query)
            assert row is not None
            assert (row[0], row[1], json.loads(row[2])) == (
                "5s",
                "10s",
                {APT: [7, str(UUID(lease.grant.id))]},
            )
        row = await conn.fetchrow(query)
        assert row is not None
        assert tuple(row) == ("0", "0", "")


async def test_a_stricter_setting_of_the_session_is_kept(
    fence: PostgresFence, pool: asyncpg.Pool[Any]
) -> None:
    lease = await sealed(fence, grant_of(7))
    async with pool.acquire() as conn:
        await conn.execute("set lock_timeout = '250ms'")
        async with fenced_transaction(conn, lease):
            assert await conn.fetchval("show lock_timeout") == "250ms"


# bad input


async def test_a_missing_schema_names_the_command(database_url: str) -> None:
    async with asyncpg.create_pool(database_url, min_size=0, max_size=2) as bare:
        with pytest.raises(ConfigurationError, match="lockguard fence install"):
            await PostgresFence(bare).seal(grant_of(7), within=SOON)


async def test_a_server_that_is_gone_is_unavailable_within_the_bound(unused_port: int) -> None:
    url = f"postgresql://bot:secret@127.0.0.1:{unused_port}/x"
    pool = asyncpg.create_pool(url, min_size=0, max_size=1)
    async with pool:
        with pytest.raises(FenceUnavailable) as caught:
            await PostgresFence(pool).seal(grant_of(7), within=timedelta(milliseconds=200))
    assert "secret" not in str(caught.value)


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    server.close()
    await server.wait_closed()
    return port


async def test_texts_that_postgres_cannot_keep_do_not_fail_the_seal(fence: PostgresFence) -> None:
    await sealed(fence, grant_of(7, holder="a\x00b\ud800"))
