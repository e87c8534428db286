"""What psycopg tells where a connection is lost: before COMMIT, in its reply, and behind it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from lockguard.errors import LossReason, StaleToken
from lockguard_lab.servers.fault_proxy import DROP, FaultProxy
from lockguard_psycopg import (
    AsyncFencedConnection,
    CommitUnknown,
    FencedConnection,
    NotCommitted,
    PsycopgFence,
    resolve,
)
from tests.integration.fence_leases import under
from tests.integration.psycopg_fence import INSERT, connected, count, fence, held, installed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard_lab.servers import PostgresServer

__all__ = ["fence", "installed"]


async def _lost_reply(proxy: FaultProxy, work: Callable[[], Awaitable[Any]]) -> None:
    """Let the request through and the reply not; then cut the connection."""
    before = proxy.to_client.received_bytes
    proxy.to_client.set(DROP)
    task = asyncio.ensure_future(work())
    await asyncio.wait_for(proxy.to_client.wait_received(before + 1), 5)
    proxy.reset()
    await task


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
async def test_a_lost_commit_reply_is_unknown_and_found_to_have_committed(
    fence: PsycopgFence, installed: str, postgres_server: PostgresServer, kind: str
) -> None:
    async with FaultProxy(postgres_server.port) as proxy:
        url = proxy.url_for(installed)
        with under(await held(fence)), pytest.raises(CommitUnknown) as caught:
            if kind == "asynchronous":
                conn: Any = await AsyncFencedConnection.connect(url)
                await conn.execute(INSERT, [1])
                await _lost_reply(proxy, conn.commit)
            else:
                conn = await asyncio.to_thread(FencedConnection.connect, url)
                await asyncio.to_thread(conn.execute, INSERT, [1])
                await _lost_reply(proxy, lambda: asyncio.to_thread(conn.commit))
    async with AsyncConnectionPool(installed, min_size=1, open=False) as pool:
        assert await resolve(pool, caught.value) is True
        async with pool.connection() as other:
            assert await count(other) == 1


async def test_a_connection_that_is_lost_before_commit_is_not_taken_for_a_commit(
    fence: PsycopgFence, installed: str
) -> None:
    async with connected(installed) as conn, connected(installed, autocommit=True) as killer:
        with under(await held(fence)), pytest.raises(NotCommitted):
            async with conn.transaction():
                await conn.execute(INSERT, [1])
                await killer.execute("select pg_terminate_backend(%s)", [conn.info.backend_pid])
                with pytest.raises(psycopg.OperationalError):
                    await conn.execute("select 1")
        assert await count(killer) == 0


@pytest.mark.parametrize("autocommit", [False, True])
@pytest.mark.parametrize("depth", [1, 2], ids=["a transaction", "a savepoint in one"])
async def test_a_refusal_after_an_answered_commit_is_told_as_such_in_a_pipeline(
    fence: PsycopgFence, installed: str, depth: int, autocommit: bool
) -> None:
    lease = await held(fence, 7)
    async with connected(installed, autocommit=autocommit) as conn:
        with under(lease):
            with pytest.raises(StaleToken, match="presented 7, current 8"):
                async with conn.pipeline(), AsyncExitStack() as stack:
                    async with conn.transaction():
                        await conn.execute(INSERT, [1])
                    await held(fence, 8)
                    for _ in range(depth):
                        await stack.enter_async_context(conn.transaction())
                    await conn.execute(INSERT, [2])
            assert lease.loss is LossReason.FENCED
        assert conn.info.transaction_status == TransactionStatus.IDLE
        assert await count(conn) == 1


async def test_an_engine_of_sqlalchemy_goes_on_after_a_lost_commit_reply(
    fence: PsycopgFence, installed: str, postgres_server: PostgresServer
) -> None:
    async with FaultProxy(postgres_server.port) as proxy:
        creator = partial(AsyncFencedConnection.connect, proxy.url_for(installed))
        engine = create_async_engine(
            "postgresql+psycopg://", async_creator=creator, pool_pre_ping=True, pool_size=1, max_overflow=0
        )
        with under(await held(fence)), pytest.raises(CommitUnknown):
            async with engine.connect() as conn:
                await conn.exec_driver_sql(INSERT, (1,))
                await _lost_reply(proxy, conn.commit)
        proxy.heal()
        async with engine.connect() as conn:
            assert (await conn.exec_driver_sql("select count(*) from note")).scalar() == 1
        await engine.dispose()


async def test_a_body_that_is_cancelled_as_a_pipeline_syncs_leaves_its_connection_out_of_pipeline_mode(
    fence: PsycopgFence, installed: str
) -> None:
    """psycopg forgets to leave it where the operation ends well though it was cancelled."""
    sleeps = "do $$ begin perform pg_sleep(30); exception when query_canceled then null; end $$"
    async with connected(installed) as conn, connected(installed, autocommit=True) as other:

        async def body() -> None:
            async with conn.pipeline():
                await conn.execute(sleeps)
                async with conn.transaction():
                    pass

        with under(await held(fence)):
            task = asyncio.create_task(body())
        asleep = "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s"
        while await (await other.execute(asleep, [conn.info.backend_pid])).fetchone() != (True,):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await conn.rollback()
        assert conn.pgconn.pipeline_status == PipelineStatus.OFF
        async with conn.cursor().copy("copy note from stdin") as copy:  # which no pipeline takes
            await copy.write_row((1, "x"))
        assert await count(conn) == 1


async def test_a_connection_that_is_lost_after_commit_does_not_make_the_end_of_a_pipeline_a_failure(
    fence: PsycopgFence, installed: str
) -> None:
    """Who is told that it failed does the work twice."""
    async with connected(installed) as conn, connected(installed, autocommit=True) as killer:
        with under(await held(fence)):
            async with conn.pipeline():
                async with conn.transaction():
                    await conn.execute(INSERT, [1])
                await killer.execute("select pg_terminate_backend(%s, 5000)", [conn.info.backend_pid])
        assert await count(killer) == 1
        await conn.close()


class _LostAtCommit:
    """The connection is lost right behind the answer to COMMIT."""

    def _committed(self) -> None:
        super()._committed()  # type: ignore[misc]
        self.pgconn.finish()  # type: ignore[attr-defined]


async def test_an_explicit_commit_in_a_pipeline_is_no_failure_when_its_connection_is_lost_behind_the_answer(
    fence: PsycopgFence, installed: str
) -> None:
    """psycopg ends it with one more synchronization, which is no part of the work."""

    class Lost(_LostAtCommit, AsyncFencedConnection[Any]):
        pass

    class SyncLost(_LostAtCommit, FencedConnection[Any]):
        pass

    with under(await held(fence)):
        conn = await Lost.connect(installed)
        async with conn.pipeline():
            await conn.execute(INSERT, [1])
            await conn.commit()
        sync = SyncLost.connect(installed)
        with sync.pipeline():
            sync.execute(INSERT, [2])
            sync.commit()
    async with connected(installed) as other:
        assert await count(other) == 2


@pytest.mark.parametrize("pipelined", [False, True])
async def test_a_commit_that_was_answered_is_not_told_as_none_when_its_connection_is_lost_behind_the_answer(
    fence: PsycopgFence, installed: str, pipelined: bool
) -> None:
    """Who is told that nothing was committed does the work twice."""

    class Lost(_LostAtCommit, AsyncFencedConnection[Any]):
        pass

    class SyncLost(_LostAtCommit, FencedConnection[Any]):
        pass

    with under(await held(fence)):
        conn = await Lost.connect(installed)
        async with AsyncExitStack() as stack:
            if pipelined:
                await stack.enter_async_context(conn.pipeline())
            async with conn.transaction():
                await conn.execute(INSERT, [1])
        with SyncLost.connect(installed) as sync, ExitStack() as sync_stack:
            if pipelined:
                sync_stack.enter_context(sync.pipeline())
            with sync.transaction():
                sync.execute(INSERT, [2])
    async with connected(installed) as other:
        assert await count(other) == 2


async def test_a_pipeline_that_cannot_be_left_behind_an_answered_commit_is_no_failure_of_the_work(
    fence: PsycopgFence, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler said that its server was gone, and had not closed the connection yet: libpq is busy still."""

    def _exit_gen(self: Any) -> Any:
        self.pgconn.pipeline_sync()  # whose answer is yet to come
        raise psycopg.OperationalError("the connection to the server is gone")
        yield

    with under(await held(fence)):
        async with connected(installed) as conn:
            with monkeypatch.context() as patch:
                async with conn.pipeline():
                    async with conn.transaction():
                        await conn.execute(INSERT, [1])
                    patch.setattr(psycopg.AsyncPipeline, "_exit_gen", _exit_gen)
            assert conn.closed
        with FencedConnection.connect(installed) as sync, monkeypatch.context() as patch:
            with sync.pipeline():
                with sync.transaction():
                    sync.execute(INSERT, [2])
                patch.setattr(psycopg.Pipeline, "_exit_gen", _exit_gen)
            assert sync.closed
    async with connected(installed) as other:
        assert await count(other) == 2
