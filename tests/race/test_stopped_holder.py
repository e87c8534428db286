"""The one claim, end to end: a holder stopped beyond its ttl wakes up, writes, and Postgres refuses it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import asyncpg
import psutil

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.child_process import signal_child

RESOURCE = "binance:APTUSDT"


async def test_a_stopped_holder_that_wakes_up_is_refused_by_postgres(redis_url, database_url):
    async with asyncpg.create_pool(database_url) as pool:
        async with pool.acquire() as connection:
            await install(connection)
            await connection.execute("create table bot (status text, token bigint)")
            await connection.execute("insert into bot values ('new', 0)")
        first = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("stopped_holder.py")),
            redis_url,
            database_url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        word, token = (await first.stdout.readline()).split()
        assert word == b"holding"
        signal_child(first, signal.SIGSTOP)
        while psutil.Process(first.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0)

        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
            async with guard.hold(RESOURCE) as lease:
                assert lease.token > int(token)
                async with fenced_transaction(pool) as connection:
                    await connection.execute("update bot set status = 'taken over', token = $1", lease.token)

        signal_child(first, signal.SIGCONT)
        out, err = await first.communicate(b"go\n")
        assert await pool.fetchrow("select * from bot") == ("taken over", lease.token)
    assert (
        f"refused LG001 stale token for {RESOURCE}: presented {int(token)}, current {lease.token}"
        in out.decode()
    )
    assert first.returncode != 0
    assert err.decode().splitlines()[-1].startswith("lockguard.errors.LeaseLost")
