"""A writer that was stopped (SIGSTOP) and superseded writes too late, whatever its driver."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import psycopg
import pytest

from lockguard_psycopg import install
from tests.contract.fence_drivers import DRIVERS, TABLES, Driver, held
from tests.integration.fence_leases import APT, under

HOLDER = """
import asyncio, os, signal, sys
from lockguard.errors import LockguardError, StaleToken
from tests.contract.fence_drivers import DRIVERS, INSERT, held
from tests.integration.fence_leases import under

async def main(name, url, resource, where):
    async with DRIVERS[name](url) as driver:
        with under(await held(driver, resource, 7)):
            async with driver.session() as session:
                if where == "before a write":
                    os.kill(os.getpid(), signal.SIGSTOP)
                    await session.run(INSERT)
                else:
                    async with session.transaction():
                        await session.run(INSERT)
                        os.kill(os.getpid(), signal.SIGSTOP)

try:
    asyncio.run(main(*sys.argv[1:]))
except StaleToken as refused:
    print("StaleToken", refused.presented, refused.current)
except LockguardError as refused:
    print(type(refused).__name__)
"""


@pytest.mark.parametrize("where", ["before a write", "before COMMIT"])
@pytest.mark.parametrize("name", ["asyncpg", "psycopg-autocommit", "psycopg-sync"])
async def test_a_holder_that_was_stopped_and_superseded_changes_nothing_when_it_wakes(
    name: str, where: str, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        install(conn)
        conn.execute(TABLES)
    words = (sys.executable, "-c", HOLDER, name, database_url, APT, where)
    async with DRIVERS[name](database_url) as driver:
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as holder:  # noqa: ASYNC220 - see waitpid
            said = await _stopped_and_superseded(driver, holder)
        # After a lost session it cannot know that its COMMIT never arrived; before COMMIT was sent it can.
        expected = {"StaleToken 7 8"} if where == "before a write" else {"CommitUnknown", "NotCommitted"}
        assert said.strip() in expected
        async with driver.session() as session:
            assert await session.value("select array_agg(id) from note") == [2]


async def _stopped_and_superseded(driver: Driver, holder: subprocess.Popen[str]) -> str:
    try:
        _, status = await asyncio.to_thread(os.waitpid, holder.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "it ended before it was stopped"
        with under(await held(driver, APT, 8)):  # ends the session that keeps it waiting
            async with driver.session() as session:
                await session.run("insert into note (id, text) values (2, 'the successor')")
        holder.send_signal(signal.SIGCONT)
        said, _ = await asyncio.to_thread(holder.communicate)
        return said
    finally:
        holder.kill()
