"""A holder that is stopped inside a transaction (SIGSTOP) keeps its successor out for its ttl, no longer."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import asyncpg
import psutil
import pytest

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.child_process import signal_child

RESOURCE = "binance:APTUSDT"
TTL_S = 2.0
WAITS = "select wait_event_type = 'Lock' from pg_stat_activity where pid = $1"


@pytest.mark.parametrize("doing", ["idle", "waiting"])
@pytest.mark.parametrize("way", ["native", "drop-in", "manual"])
async def test_a_holder_stopped_in_a_transaction_is_taken_over_within_its_ttl_and_a_second(
    redis_url: str, database_url: str, way: str, doing: str
) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=3, max_size=5))
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute(
                "create table bot (what text); create table busy (n int); insert into busy values (1)"
            )
        guard = await stack.enter_async_context(
            LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=TTL_S))
        )
        # Somebody who has nothing to do with the lock and does not let go of a row.
        other = await stack.enter_async_context(pool.acquire())
        await stack.enter_async_context(other.transaction())
        await other.execute("update busy set n = n + 1")
        writer = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("frozen_writer.py")),
            *(redis_url, database_url, way, doing, str(TTL_S)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        stack.push_async_callback(writer.wait)
        stack.callback(signal_child, writer, signal.SIGKILL)
        assert writer.stdout is not None
        word, pid = (await writer.stdout.readline()).split()
        assert word == b"ready"
        while doing == "waiting" and not await pool.fetchval(WAITS, int(pid)):
            await asyncio.sleep(0.005)
        signal_child(writer, signal.SIGSTOP)
        while psutil.Process(writer.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with guard.hold(RESOURCE, wait=timedelta(seconds=30)):
            took_s = loop.time() - began
            async with fenced_transaction(pool) as conn:
                await conn.execute("insert into bot values ('successor')")
        assert took_s < TTL_S + 1, took_s
        assert [r["what"] for r in await pool.fetch("select what from bot")] == ["successor"]
