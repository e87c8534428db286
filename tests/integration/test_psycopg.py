"""What is psycopg's own: its modes, poolers, synchronous bots, and life without asyncpg."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool, ConnectionPool

import lockguard.sync
from lockguard import LockGuard
from lockguard.errors import ConfigurationError, LeaseLost, LossReason, StaleToken
from lockguard_asyncpg import PostgresFence
from lockguard_lab.fence_race.pooler import PgBouncer, find_pgbouncer
from lockguard_psycopg import (
    AsyncFencedConnection,
    FencedConnection,
    NotCommitted,
    PsycopgFence,
    install,
    protect,
    schema_version,
    unfenced,
    unprotect,
)
from tests.integration.fence_leases import APT, lease_of, under
from tests.integration.psycopg_fence import INSERT, connected, count, fence, held, installed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from lockguard_lab.servers import PostgresServer

__all__ = ["fence", "installed"]


# Installing, and a process without asyncpg


async def test_what_cannot_install_is_told_in_one_line(database_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(database_url) as asynchronous:
        for wrong in (asynchronous, None, database_url):
            given: Any = wrong
            for call in (install, schema_version, lambda conn: protect(conn, "row", resource="{symbol}")):
                with pytest.raises(ConfigurationError, match="a synchronous connection") as told:
                    call(given)
                assert database_url not in str(told.value)
    with psycopg.connect(database_url) as conn:
        with pytest.raises(ConfigurationError, match=r"write a list: allow=\['bot'\]"):
            install(conn, allow="bot")
        with pytest.raises(ConfigurationError, match=r"write a list: exempt=\['price'\]"):
            protect(conn, "row", resource="{symbol}", exempt="price")


def test_what_is_installed_once_is_installed_again_and_tables_are_protected_and_released(
    database_url: str,
) -> None:
    with psycopg.connect(database_url) as conn:
        assert schema_version(conn) == 0
        first = install(conn)
        again = install(conn, allow=["postgres"])
        assert (first.before, again.before) == (0, first.after)
        conn.execute("create table row (symbol text, price int)")
        protect(conn, "row", resource="binance:{symbol}", exempt=["price"])
        conn.commit()
        with pytest.raises(psycopg.Error, match="no token for binance:APTUSDT") as refused:
            conn.execute("insert into row values ('APTUSDT', 1)")
        assert refused.value.sqlstate == "LG002"
        conn.rollback()
        assert (unprotect(conn, "row"), unprotect(conn, "row")) == (True, False)
        with pytest.raises(ConfigurationError, match="no table 'nowhere'"):
            protect(conn, "nowhere", resource="{symbol}")
        with pytest.raises(ConfigurationError, match="create the role first"):
            install(conn, allow=["nobody_of_this_name"])


ALONE = """
    import sys
    sys.modules["asyncpg"] = None  # as where it is not installed
    import asyncio
    import psycopg
    from psycopg_pool import AsyncConnectionPool
    from lockguard import LockGuard
    from lockguard_psycopg import AsyncFencedConnection, PsycopgFence, install, protect

    async def main(database, redis):
        with psycopg.connect(database) as conn:
            install(conn)
            conn.execute("create table row (symbol text, price int)")
            conn.commit()
            protect(conn, "row", resource="binance:{symbol}")
        async with AsyncConnectionPool(
            database, connection_class=AsyncFencedConnection, min_size=1, max_size=4, open=False
        ) as pool:
            async with PsycopgFence(pool) as fence, LockGuard.from_url(redis, fence=fence) as guard:
                async with guard.hold("binance:APTUSDT"):
                    async with pool.connection() as conn:
                        await conn.execute("insert into row values ('APTUSDT', 1)")
                async with pool.connection() as conn:
                    print(await (await conn.execute("select price from row")).fetchall())

    asyncio.run(main(*sys.argv[1:]))
"""


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", textwrap.dedent(script), *words)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bot_without_asyncpg_installs_protects_and_runs(database_url: str, redis_url: str) -> None:
    ran = run(ALONE, database_url, redis_url)
    assert (ran.stdout.strip(), ran.returncode) == ("[(1,)]", 0), ran.stderr


@pytest.mark.parametrize("missing", ["psycopg", "psycopg_pool"])
def test_a_missing_driver_names_the_extra_that_brings_it(missing: str) -> None:
    ran = run(f"import sys; sys.modules[{missing!r}] = None; import lockguard_psycopg")
    assert ran.stderr.strip().endswith(
        f"lockguard_psycopg needs {missing}, which is not installed: pip install 'lockguard[psycopg]'"
    )


# psycopg's modes


async def test_a_two_phase_commit_under_a_lease_is_refused_before_it_is_prepared(
    fence: PsycopgFence, installed: str
) -> None:
    async with connected(installed) as conn:
        with under(await held(fence)):
            await conn.tpc_begin("a")
            await conn.execute(INSERT, [1])
            with pytest.raises(ConfigurationError, match="PREPARE TRANSACTION"):
                await conn.tpc_prepare()
        await conn.close()
    async with connected(installed, autocommit=True) as conn:
        assert await count(conn) == 0
        row = await (await conn.execute("select count(*) from pg_prepared_xacts")).fetchone()
        assert row == (0,)


@pytest.mark.parametrize("kind", [psycopg.AsyncCursor, psycopg.AsyncClientCursor, psycopg.AsyncRawCursor])
async def test_a_cursor_is_fenced_however_it_was_made(
    fence: PsycopgFence, installed: str, kind: type[psycopg.AsyncCursor[Any]]
) -> None:
    stale = await held(fence, 7)
    async with connected(installed, autocommit=True) as conn:
        own, seen = kind(conn), sql.SQL("insert into {} values (1, 'x')").format(sql.Identifier("note"))
        conn.cursor_factory = kind
        with under(stale):
            with pytest.raises(ConfigurationError, match="mixes transaction control"):
                await own.execute("commit; delete from note")
            await own.execute(seen)
            assert isinstance(await conn.execute(seen), kind)
        await held(fence, 8)
        for cursor in (own, conn.cursor()):
            with under(lease_of(stale.grant)), pytest.raises(StaleToken):
                await cursor.execute(seen)
        assert await count(conn) == 2


async def test_a_type_is_looked_up_under_a_lease(fence: PsycopgFence, installed: str) -> None:
    async with connected(installed) as conn:
        with under(await held(fence)):
            assert await psycopg.types.TypeInfo.fetch(conn, "text") is not None


async def test_in_autocommit_mode_each_pipelined_statement_is_a_transaction_of_its_own(
    fence: PsycopgFence, installed: str
) -> None:
    async with connected(installed, autocommit=True) as conn:
        with under(await held(fence)), pytest.raises(psycopg.errors.DivisionByZero):
            async with conn.pipeline():
                await conn.execute(INSERT, [1])
                await conn.execute("select 1 / 0")
        assert await count(conn) == 1


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel))
async def test_every_isolation_level_presents_the_lease(
    fence: PsycopgFence, installed: str, isolation: psycopg.IsolationLevel
) -> None:
    lease = await held(fence, 7)
    async with connected(installed) as conn:
        await conn.set_isolation_level(isolation)
        with under(lease):
            await conn.execute(INSERT, [1])
            await conn.commit()
        await held(fence, 8)
        with under(lease_of(lease.grant)), pytest.raises(StaleToken):
            await conn.execute(INSERT, [2])
        await conn.rollback()
        assert await count(conn) == 1


@pytest.mark.parametrize("begun", ["before the lease", "under the lease"])
@pytest.mark.parametrize(
    "change",
    ["set transaction read write", "begin read write", "set local transaction_read_only = off; select 1"],
)
async def test_a_read_only_transaction_that_becomes_read_write_presents_the_lease(
    fence: PsycopgFence, installed: str, change: str, begun: str
) -> None:
    lease = await held(fence, 7)
    await held(fence, 8)
    async with connected(installed) as conn:
        await conn.set_read_only(True)
        if begun == "before the lease":
            await conn.execute(change.encode())
        with under(lease), pytest.raises((StaleToken, psycopg.errors.ReadOnlySqlTransaction)):
            if begun == "under the lease":
                await conn.execute(change.encode())
            await conn.execute(INSERT, [1])
            await conn.commit()
        await conn.rollback()
        assert await count(conn) == 0


async def test_what_was_prepared_before_the_lease_is_not_committed_under_it(
    fence: PsycopgFence, installed: str
) -> None:
    """It would commit whatever became of the lease."""
    async with connected(installed, autocommit=True) as conn:
        with under(await held(fence)):
            with pytest.raises(ConfigurationError, match="can present no lease"):
                await conn.tpc_commit("x")
            with pytest.raises(ConfigurationError, match="can present no lease"):
                await conn.execute("commit prepared 'x'")
            with unfenced(), pytest.raises(psycopg.errors.UndefinedObject):  # it is sent
                await conn.tpc_commit("x")


async def test_a_cursor_declared_before_the_lease_presents_it_as_it_is_fetched(
    fence: PsycopgFence, installed: str
) -> None:
    stale = await held(fence, 7)
    await held(fence, 8)
    async with connected(installed) as conn:
        await conn.execute(
            "create function written() returns int language sql"
            " as $$ insert into note values (1, 'x') returning id $$"
        )
        await conn.commit()
        async with conn.cursor("named") as cursor:
            await cursor.execute("select written()")
            with under(stale), pytest.raises(StaleToken):
                await cursor.fetchone()
            await conn.rollback()
        assert await count(conn) == 0


async def test_a_read_only_transaction_presents_nothing(fence: PsycopgFence, installed: str) -> None:
    async with connected(installed) as conn:
        await conn.set_read_only(True)
        with under(await held(fence)):
            assert await count(conn) == 0
            await conn.execute("select 1")
            await conn.commit()


async def test_a_read_only_transaction_that_was_begun_as_text_presents_nothing(
    fence: PsycopgFence, installed: str
) -> None:
    async with connected(installed, autocommit=True) as conn:
        with under(await held(fence)):
            await conn.execute("BEGIN READ ONLY")
            assert await (await conn.execute("select count(*) from note")).fetchone() == (0,)
            await conn.execute("COMMIT")
            await conn.execute(INSERT, [1])
        assert await count(conn) == 1


class Interrupted(psycopg.Cursor[Any]):
    """Ctrl-C comes when its statement has been answered."""

    def _execute_gen(self, *args: Any, **options: Any) -> Generator[Any, Any, None]:
        yield from super()._execute_gen(*args, **options)
        raise KeyboardInterrupt


def test_what_an_interrupted_statement_has_left_is_not_committed_by_the_next(
    installed: str, redis_url: str
) -> None:
    @asynccontextmanager
    async def fence() -> AsyncIterator[PsycopgFence]:
        async with AsyncConnectionPool(installed, min_size=1, max_size=4, open=False) as sealing:
            yield PsycopgFence(sealing)

    with (
        lockguard.sync.LockGuard.from_url(redis_url, fence=fence) as guard,
        FencedConnection.connect(installed, autocommit=True) as conn,
    ):
        with guard.hold(APT):
            with pytest.raises(KeyboardInterrupt):
                Interrupted(conn).execute("insert into note values (1, 'x')")
            assert conn.info.transaction_status is TransactionStatus.INTRANS
            conn.execute(INSERT, [2])
        assert conn.execute("select array_agg(id) from note").fetchone() == ([2],)


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
async def test_a_lease_that_is_sealed_with_its_first_write_is_sealed_before_one_of_psycopg(
    installed: str, redis_url: str, kind: str
) -> None:
    async with (
        asyncpg.create_pool(installed, min_size=0, max_size=3) as sealing,
        PostgresFence(sealing, seal_with_first_write=True) as fence,
        LockGuard.from_url(redis_url, fence=fence) as guard,
        connected(installed, autocommit=True) as conn,
    ):
        async with guard.hold(APT):
            if kind == "asynchronous":
                await conn.execute(INSERT, [1])
            else:
                with FencedConnection.connect(installed, autocommit=True) as blocking:
                    await asyncio.to_thread(blocking.execute, INSERT, [1])
        assert await count(conn) == 1
        async with guard.hold(APT):
            with FencedConnection.connect(installed, autocommit=True) as blocking:
                with pytest.raises(ConfigurationError, match="event loop that it blocks"):
                    blocking.execute(INSERT, [2])


async def test_a_cancelled_statement_leaves_the_connection_in_order_and_writes_nothing(
    fence: PsycopgFence, installed: str
) -> None:
    async with connected(installed, autocommit=True) as conn:
        with under(await held(fence)):
            slow = asyncio.create_task(_sleep_in_a_write(conn))
            async with connected(installed, autocommit=True) as other:
                await _sleeping(other)
            slow.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow
            await conn.execute(INSERT, [2])
        assert await count(conn) == 1


async def _sleep_in_a_write(conn: psycopg.AsyncConnection[Any]) -> None:
    await conn.execute("insert into note select 1, pg_sleep(60)::text")


async def _sleeping(conn: psycopg.AsyncConnection[Any]) -> None:
    """Until another session is in pg_sleep."""
    async with asyncio.timeout(10):
        while True:
            asked = await conn.execute(
                "select count(*) from pg_stat_activity"
                " where wait_event = 'PgSleep' and datname = current_database()"
            )
            if await asked.fetchone() != (0,):
                return
            await asyncio.sleep(0.005)


# Poolers


async def test_behind_pgbouncer_in_transaction_mode_leases_are_presented_and_stale_ones_refused(
    installed: str, postgres_server: PostgresServer, redis_url: str
) -> None:
    if find_pgbouncer() is None:
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with PgBouncer(postgres_server, pool_size=3) as pooler:
        made = AsyncConnectionPool(
            pooler.url_for(installed),
            connection_class=AsyncFencedConnection,
            min_size=4,
            max_size=8,
            open=False,
            kwargs={"prepare_threshold": None},
        )
        async with made as pool, LockGuard.from_url(redis_url, fence=PsycopgFence(pool)) as guard:

            async def bot(number: int) -> None:
                async with guard.hold(f"binance:C{number}"), pool.connection() as conn:
                    for _ in range(7):  # more often than psycopg waits before it prepares
                        await conn.execute(INSERT, [number])

            await asyncio.gather(*(bot(number) for number in range(6)))
            async with PsycopgFence(pool) as fence:
                stale = await held(fence, 7)
                await held(fence, 8)
                with under(stale), pytest.raises(StaleToken):
                    async with pool.connection() as conn:
                        await conn.execute(INSERT, [99])
            async with pool.connection() as conn:
                assert await count(conn) == 42


# A synchronous bot


def test_a_synchronous_bot_writes_under_its_lease_and_a_broken_one_is_refused_and_recorded(
    installed: str, redis_url: str
) -> None:
    @asynccontextmanager
    async def fence() -> AsyncIterator[PsycopgFence]:
        async with AsyncConnectionPool(installed, min_size=1, max_size=4, open=False) as sealing:
            async with PsycopgFence(sealing) as made:
                yield made

    with (
        ConnectionPool(installed, connection_class=FencedConnection, min_size=1, open=True) as pool,
        lockguard.sync.LockGuard.from_url(redis_url, fence=fence) as guard,
        psycopg.connect(installed, autocommit=True) as operator,
    ):
        with guard.hold(APT), pool.connection() as conn:
            conn.execute(INSERT, [1])
        with pytest.raises((StaleToken, LeaseLost)) as caught, guard.hold(APT):
            operator.execute("select lockguard.break_(%s, 'stuck', 1000)", [APT])
            with pool.connection() as conn:
                conn.execute(INSERT, [2])
        assert isinstance(caught.value, StaleToken) or caught.value.reason is LossReason.FENCED
        assert operator.execute("select array_agg(id) from note").fetchone() == ([1],)
    with psycopg.connect(installed, autocommit=True) as operator:  # the guard has sent what it had noted
        found = operator.execute("select resource, reason from lockguard.refusals(null, null, 10)").fetchall()
    assert found == [(APT, "superseded")]


@pytest.mark.parametrize("why", ["refused", "kept out"])
@pytest.mark.parametrize("by_text", [False, True])
async def test_what_was_never_accepted_is_told_at_commit_in_a_transaction_from_before_its_lease(
    fence: PsycopgFence, installed: str, why: str, by_text: bool
) -> None:
    lease = await held(fence)
    async with connected(installed) as conn, await psycopg.AsyncConnection.connect(installed) as other:
        await conn.execute("set local lock_timeout = '20ms'")
        if why == "refused":
            await held(fence, 8)
        else:
            await other.execute("select pg_advisory_xact_lock(lockguard.gate(%s))", (str(APT),))
        with under(lease):
            with pytest.raises((StaleToken, psycopg.errors.LockNotAvailable)):
                await conn.execute(INSERT, (1,))
            with pytest.raises((NotCommitted, LeaseLost)):
                await (conn.execute("commit") if by_text else conn.commit())
        await conn.rollback()
        assert await count(conn) == 0
