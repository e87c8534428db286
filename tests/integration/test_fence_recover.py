"""After a failover that lost commits, or a restore; and a synchronous standby that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant
from lockguard.errors import ConfigurationError, FenceUnavailable, StaleToken
from lockguard.ports import Outrun, Sealed
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._maintenance import Recovered, shut_out_all
from lockguard_lab.servers import PostgresServer
from tests.integration.fence_leases import SOON, grant_of, lease_of


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table trades (id int)")
        yield pool


def granted(token: int, resource: str = "binance:A") -> Grant:
    return grant_of(token, resource)


async def recovered(pool: asyncpg.Pool[Any]) -> Recovered:
    async with pool.acquire() as conn:
        return await shut_out_all(conn, reason="failover of 12:00")


async def test_nobody_of_before_writes_or_seals_after_a_recovery_and_everybody_new_does(
    pool: asyncpg.Pool[Any],
) -> None:
    # What this copy knows last: the seal of a holder that has given its lease back since, elsewhere.
    lost_since = granted(7)
    await PostgresFence(pool).seal(lost_since, within=SOON)
    await fenced_execute(pool, "insert into trades values (1)", lease=lease_of(lost_since))  # as it would
    assert await recovered(pool) == Recovered(raised=1, were_open=1)
    with pytest.raises(StaleToken):
        await fenced_execute(pool, "insert into trades values (2)", lease=lease_of(lost_since))
    late = granted(int(SYSTEM_CLOCK.wall() * 1_000_000) - 60_000_000)  # handed out a minute ago
    answer = await PostgresFence(pool).seal(late, within=SOON)
    assert isinstance(answer, Outrun)
    new = granted(answer.current + 1)
    assert isinstance(await PostgresFence(pool).seal(new, within=SOON), Sealed)
    await fenced_execute(pool, "insert into trades values (3)", lease=lease_of(new))
    assert await pool.fetchval("select array_agg(id order by id) from trades") == [1, 3]


async def test_a_recovery_reaches_every_resource_and_ends_who_is_in_the_way(
    pool: asyncpg.Pool[Any],
) -> None:
    seal = (
        "select lockguard.seal('r' || n, 7, gen_random_uuid(), 'a', 'b', 1000) from generate_series(1, 600) n"
    )
    for part in (seal.replace("1, 600", "1, 300"), seal.replace("1, 600", "301, 600")):
        await pool.execute(part)
    stuck = granted(8, "r17")
    await PostgresFence(pool).seal(stuck, within=SOON)
    async with pool.acquire() as conn:
        await conn.execute("begin")
        await conn.execute("select lockguard.check('r17', 8, $1)".replace("$1", f"'{stuck.id}'"))
        assert await recovered(pool) == Recovered(raised=600, were_open=600)
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await conn.execute("commit")
    still_open = "select count(*) from lockguard.status() s where s.is_open or s.token < 1000000"
    assert await pool.fetchval(still_open) == 0
    assert await recovered(pool) == Recovered(raised=600, were_open=0)


async def test_the_bots_own_role_may_not_recover(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        await conn.execute("set role lockguard_app")
        with pytest.raises(ConfigurationError, match="recover as the role that owns"):
            await shut_out_all(conn, reason="x")


def test_the_command_asks_first_and_says_what_it_did(database_url: str) -> None:
    run = CliRunner()
    assert run.invoke(fence, ["install", "--url", database_url]).exit_code == 0
    asked = run.invoke(fence, ["recover", "--reason", "x", "--url", database_url])
    assert asked.exit_code == 2
    assert "0 holders would be refused" in asked.output
    done = run.invoke(fence, ["recover", "--reason", "x", "--confirm", "--url", database_url])
    assert done.output == "0 resources were raised, 0 of them were open\n"


async def until_commits_wait(pool: asyncpg.Pool[Any]) -> None:
    """Commit until one waits for its standby: commits heed the setting later than sessions read it."""

    async def commit_until_one_waits() -> None:
        while True:
            await pool.execute("insert into probes values (1)")

    committing = asyncio.create_task(commit_until_one_waits())
    waits = "select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'"
    while not await pool.fetch(waits):
        assert not committing.done()
    with pytest.raises(asyncpg.PostgresError):  # the backend ends without its commit's answer
        await committing


async def test_a_seal_that_waits_for_a_synchronous_standby_ends_in_time_and_says_so() -> None:
    with PostgresServer() as server:
        async with create_pool(server.url, min_size=0, max_size=5) as pool:
            async with pool.acquire() as conn:
                await install(conn)
                await conn.execute("create table probes (id int)")
                await conn.execute("alter system set synchronous_standby_names = 'gone'")
                await conn.execute("select pg_reload_conf()")
            await until_commits_wait(pool)
            began = SYSTEM_CLOCK.now()
            with pytest.raises(
                FenceUnavailable, match=r"none is there \(synchronous_standby_names is gone\)"
            ):
                await PostgresFence(pool).seal(granted(7), within=timedelta(seconds=1))
            assert SYSTEM_CLOCK.now() - began < 5
