"""Two primaries, and a failover that lost commits: the next lease of a resource notices."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis.asyncio
from click.testing import CliRunner

from lockguard import LockGuard
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.errors import FenceUnavailable, LeaseLost
from lockguard.ports import Sealed
from lockguard_asyncpg import PostgresFence, SealUnknown, create_pool, install
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._maintenance import shut_out_all
from lockguard_lab.servers import PostgresServer, postgres_files
from tests.integration.fence_leases import SOON

APT = "binance:APTUSDT"
INSERT = "insert into trades values ($1)"
TTL = timedelta(seconds=10)


class Standby(PostgresServer):
    """A streaming copy of another server, asynchronous."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(password=primary.password)
        self._primary = primary

    def _prepare(self, directory: Path) -> None:
        if not (directory / "data").exists():
            self._copy(self._primary._started_directory() / "data", directory / "data")
        super()._prepare(directory)

    def _copy(self, source: Path, target: Path) -> None:
        # A copy of what lies still: pg_basebackup takes ten seconds on a busy machine.
        self._primary.kill()
        shutil.copytree(source, target)
        self._primary.restart(keep_data=True)
        (target / "postmaster.pid").unlink()
        (target / "standby.signal").touch()
        with (target / "postgresql.auto.conf").open("a") as settings:
            settings.write(f"primary_conninfo = '{self._primary.url}'\n")
        postgres_files.own(target, self._user)

    def _ready(self, directory: Path) -> bool:
        try:
            lines = (directory / "data" / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.pid) and lines[7].strip() in ("standby", "ready")

    async def has_all(self, source: asyncpg.Connection[Any]) -> None:
        """Wait until it streams, and has applied what the source has."""
        await self._until("select exists (select from pg_stat_wal_receiver where status = 'streaming')")
        now = await source.fetchval("select pg_current_wal_lsn()")
        await self._until("select pg_last_wal_replay_lsn() >= $1", now)

    async def hears_no_more(self) -> None:
        """The line to the primary is cut."""
        async with connected(self.url) as conn:
            await conn.execute("alter system set primary_conninfo = ''")
            await conn.execute("select pg_reload_conf()")
        await self._until("select not exists (select from pg_stat_wal_receiver)")

    async def promote(self) -> None:
        """It becomes a primary. The old one knows nothing of it."""
        async with connected(self.url) as conn:
            assert await conn.fetchval("select pg_promote()")
        await self._until("select not pg_is_in_recovery()")

    async def _until(self, query: str, *args: object) -> None:
        async with connected(self.url) as conn, asyncio.timeout(20):
            while not await conn.fetchval(query, *args):
                await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    conn = await asyncpg.connect(url)
    try:
        yield conn
    finally:
        await conn.close()


@pytest.fixture
async def primary() -> AsyncIterator[PostgresServer]:
    async with PostgresServer() as server:
        async with connected(server.url) as conn:
            await install(conn)
            await conn.execute("create table trades (id int)")
        yield server


@pytest.fixture
async def standby(primary: PostgresServer) -> AsyncIterator[Standby]:
    async with Standby(primary) as server:
        yield server


@asynccontextmanager
async def bot(redis_url: str, database_url: str) -> AsyncIterator[tuple[LockGuard, asyncpg.Pool[Any]]]:
    """One that has just been started: it remembers nothing."""
    async with (
        create_pool(database_url, min_size=0, max_size=4) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=TTL) as guard,
    ):
        yield guard, pool


async def trade(redis_url: str, database_url: str, number: int) -> None:
    async with bot(redis_url, database_url) as (guard, pool), guard.hold(APT):
        await pool.execute(INSERT, number)


async def recovered(database_url: str) -> None:
    async with connected(database_url) as conn:
        await shut_out_all(conn, reason="failover")


async def test_a_standby_that_is_reached_by_mistake_is_called_one(redis_url: str, standby: Standby) -> None:
    with pytest.raises(FenceUnavailable, match="this server is a standby: name the primary in the URL"):
        await trade(redis_url, standby.url, 1)
    with pytest.raises(FenceUnavailable, match="no server of its URL is what target_session_attrs asks for"):
        await trade(redis_url, f"{standby.url}?target_session_attrs=read-write", 1)


async def test_a_failover_that_lost_a_seal_is_noticed_by_the_next_lease_and_recovered_from(
    redis_url: str, primary: PostgresServer, standby: Standby
) -> None:
    await trade(redis_url, primary.url, 1)
    async with connected(primary.url) as conn:
        await standby.has_all(conn)
    await standby.hears_no_more()
    await trade(redis_url, primary.url, 2)
    await asyncio.to_thread(primary.kill)
    await standby.promote()
    for _ in range(2):  # refusing is not forgetting
        with pytest.raises(
            SealUnknown, match=rf"does not know the seal of {APT} .*timeline 2\).*fence recover"
        ):
            await trade(redis_url, standby.url, 3)
    await recovered(standby.url)
    await trade(redis_url, standby.url, 4)
    async with connected(standby.url) as conn:
        assert await conn.fetchval("select array_agg(id order by id) from trades") == [1, 4]


async def test_a_bot_that_reaches_the_old_primary_after_a_lease_on_the_new_one_is_refused(
    redis_url: str, primary: PostgresServer, standby: Standby
) -> None:
    await trade(redis_url, primary.url, 1)
    async with connected(primary.url) as conn:
        await standby.has_all(conn)
    await standby.promote()
    await trade(redis_url, standby.url, 2)  # nothing was lost: nobody is bothered
    with pytest.raises(SealUnknown, match=r"timeline 1\)"):
        await trade(redis_url, primary.url, 3)
    await trade(redis_url, standby.url, 4)
    async with connected(primary.url) as conn:
        assert await conn.fetchval("select array_agg(id) from trades") == [1]


async def test_a_holder_whose_seal_was_lost_is_told_what_its_refused_write_means_and_so_is_the_next(
    redis_url: str, primary: PostgresServer, standby: Standby
) -> None:
    await trade(redis_url, primary.url, 1)
    async with connected(primary.url) as conn:
        await standby.has_all(conn)
    await standby.hears_no_more()
    async with create_pool(standby.url, min_size=0, max_size=4) as there:

        async def goes_on_at_the_new_one() -> None:
            async with bot(redis_url, primary.url) as (guard, _), guard.hold(APT):
                await standby.promote()
                await there.execute(INSERT, 2)

        with pytest.raises(LeaseLost, match="a lower token is in force than was presented"):
            await goes_on_at_the_new_one()
        with pytest.raises(SealUnknown):  # remembered though it was released as lost
            await trade(redis_url, standby.url, 3)


async def test_a_resource_of_which_nothing_is_left_is_refused_too_and_recovered(
    redis_url: str, primary: PostgresServer, standby: Standby
) -> None:
    async with connected(primary.url) as conn:
        await standby.has_all(conn)
    await standby.hears_no_more()
    await trade(redis_url, primary.url, 1)
    await standby.promote()
    with pytest.raises(SealUnknown, match="current none"):
        await trade(redis_url, standby.url, 2)
    await recovered(standby.url)
    await trade(redis_url, standby.url, 3)


async def test_a_lost_seal_of_a_clock_that_was_ahead_is_settled_by_the_break_that_its_refusal_names(
    redis_url: str, database_url: str
) -> None:
    """By an hour: recover raises the tokens above now, and Redis remembers a higher one for a week."""
    async with connected(database_url) as conn:
        await install(conn)
        await conn.execute("create table trades (id int)")
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            await client.set(f"lockguard:{{{APT}}}:token", int((time.time() + 3600) * 1e6))
        await trade(redis_url, database_url, 1)
        await conn.execute("alter table lockguard.fence disable trigger user")
        await conn.execute("delete from lockguard.fence")
        await conn.execute("alter table lockguard.fence enable trigger user")
        await recovered(database_url)
        with pytest.raises(SealUnknown, match=f"lockguard break {APT} --reason"):
            await trade(redis_url, database_url, 2)
        async with (
            create_pool(database_url, min_size=0, max_size=2) as pool,
            LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard,
        ):
            await guard.break_(APT, reason="its token is ahead")
        await trade(redis_url, database_url, 3)


async def test_an_acquire_that_ends_before_its_seal_does_not_hide_that_a_seal_is_not_known(
    database_url: str,
) -> None:
    async with connected(database_url) as conn:
        await install(conn)
        name = (await conn.fetchval("select lockguard.fence_id()")).hex
    async with create_pool(database_url, min_size=0, max_size=2) as pool:
        lost = f"{name} 7"
        cancelled = Grant(Resource(APT), new_grant_id(), Token(8), "host/1", "open", 10_000, lost)
        for known_to in (
            PostgresFence(pool),
            PostgresFence(pool),
        ):
            await known_to.close(cancelled, within=SOON)
        with pytest.raises(SealUnknown):
            await PostgresFence(pool).seal(replace(cancelled, id=new_grant_id(), token=Token(9)), within=SOON)


async def test_a_copy_beside_its_original_is_a_fence_of_its_own_once_it_has_an_id_of_its_own(
    redis_url: str, database_url: str, postgres_server: PostgresServer
) -> None:
    async with connected(database_url) as conn:
        await install(conn)
        await conn.execute("create table trades (id int)")
    await trade(redis_url, database_url, 1)
    name = f"{database_url.rpartition('/')[2]}_copy"
    copy = postgres_server.create_database(name, template=database_url.rpartition("/")[2])
    try:
        await trade(redis_url, database_url, 2)
        with pytest.raises(SealUnknown):
            await trade(redis_url, copy, 3)
        async with connected(copy) as conn:
            await conn.execute("update lockguard.identity set id = gen_random_uuid()")
        for number in (4, 5):
            await trade(redis_url, copy, number)
            await trade(redis_url, database_url, number)
    finally:
        postgres_server.drop_database(name)


async def test_fences_of_several_databases_beside_one_lock_do_not_disturb_each_other(
    redis_url: str, postgres_server: PostgresServer
) -> None:
    names = ("first_fence", "second_fence")
    urls = [postgres_server.create_database(name) for name in names]
    try:
        for url in urls:
            async with connected(url) as conn:
                await install(conn)
                await conn.execute("create table trades (id int)")
        for number in range(3):
            for url in urls:
                await trade(redis_url, url, number)
        async with connected(urls[0]) as conn:  # emptied, and made anew: another fence
            await conn.execute("drop schema lockguard cascade")
            await install(conn)
        await trade(redis_url, urls[0], 4)
    finally:
        for name in names:
            postgres_server.drop_database(name)


async def test_what_is_remembered_of_a_seal_is_renewed_while_it_is_held_and_no_other_is_taken_for_ours(
    redis_url: str, database_url: str
) -> None:
    async with connected(database_url) as conn:
        await install(conn)
        name = (await conn.fetchval("select lockguard.fence_id()")).hex
    async with create_pool(database_url, min_size=0, max_size=2) as pool:
        grant = Grant(Resource(APT), new_grant_id(), Token(7), "host/1", "open", 10_000)
        for odd in ("", "x", f"{name} ", f"{name} -1", f"{name} 1 2", f"{name} ٣", "0" * 32 + " 99999"):
            sealed = await PostgresFence(pool).seal(replace(grant, seal=odd), within=SOON)
            assert isinstance(sealed, Sealed)
            assert sealed.seal == f"{name} 7"
        with pytest.raises(SealUnknown):
            await PostgresFence(pool).seal(replace(grant, seal=f"{name} 8"), within=SOON)


def test_status_tells_which_server_it_is(database_url: str) -> None:
    run = CliRunner()
    assert run.invoke(fence, ["install", "--url", database_url]).exit_code == 0
    assert "timeline 1" in run.invoke(fence, ["status", "--url", database_url]).output
    assert '"server": "system ' in run.invoke(fence, ["status", "--json", "--url", database_url]).output
