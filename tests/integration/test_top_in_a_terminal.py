"""``lockguard top`` in a real terminal, on real servers: a bot is stuck, found, asked and broken."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import psutil
import pytest

from lockguard import LockGuard, StaleToken
from lockguard.errors import LeaseLost
from lockguard_asyncpg import PostgresFence, create_pool, fenced_transaction, install
from lockguard_lab.servers import IndependentRedis, PostgresServer, RedisServer
from tests.integration.pseudo_terminal import PseudoTerminal

APT, ETH = "binance:APTUSDT", "binance:ETHUSDT"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    async with create_pool(database_url, min_size=0, max_size=5) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await conn.execute("create table note (id int, text text)")
        yield pool


@pytest.fixture
async def bots(redis_url: str, pool: asyncpg.Pool[Any]) -> AsyncIterator[LockGuard]:
    fence = PostgresFence(pool)
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=30), fence=fence) as guard:
        yield guard


class Stuck:
    """A bot that holds a lock and does nothing until it is told to write."""

    def __init__(self, guard: LockGuard, pool: asyncpg.Pool[Any]) -> None:
        self._guard, self._pool = guard, pool
        self.write = asyncio.Event()
        self.held = asyncio.Event()
        self.refused: BaseException | None = None

    async def run(self) -> None:
        try:
            async with self._guard.hold(APT, operation="open long"):
                self.held.set()
                await self.write.wait()
                async with fenced_transaction(self._pool) as conn:
                    await conn.execute("insert into note values (1, 'late')")
        except (StaleToken, LeaseLost) as refused:
            self.refused = refused


async def decide(top: PseudoTerminal, reason: str, sure: str) -> None:
    """Answer a dialog. Keys that come before the field has moved on would go into the first one."""
    top.type(f"{reason}\r")
    await top.see("Enter: do it")
    top.type(f"{sure}\r")


async def press_and_leave(top: PseudoTerminal, *keys: str) -> None:
    """Press keys, each when the page of keys has been shown in between, then leave."""
    for key in keys:
        top.type(key)
        top.type("?")
        await top.see("select a lock")
        top.type("\x1b")
        await top.see("RESOURCE")
    top.type("q")
    await top.end()


@pytest.mark.usefixtures("unchecked")  # a check would end its body before it writes
async def test_a_stuck_bot_is_found_opened_asked_and_broken_and_its_next_write_is_refused(
    bots: LockGuard, pool: asyncpg.Pool[Any], redis_url: str, database_url: str
) -> None:
    stuck = Stuck(bots, pool)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stuck.run(), name="stuck-bot")
        await stuck.held.wait()

        async def wait() -> None:
            async with bots.hold(APT, operation="sync", wait=timedelta(seconds=60)):
                pass

        waiting = tasks.create_task(wait(), name="patient-bot")
        with PseudoTerminal("top", "--redis", redis_url, "--database", database_url, width=100) as top:
            await top.see(APT, "stuck-bot", "open long", "1-1 of 1", "locks 1  waiters 1")
            top.type("\r")
            await top.see("operation  open long", "Waiters: 1, the next first", "patient-bot  sync", "token")
            top.type("a")
            await top.see(f"Ask for a hand-over of {APT}")
            await decide(top, "are you there?", "y")
            await top.see("a hand-over was requested of its holder", ": are you there?")
            top.type("b")
            await top.see(f"Break {APT}", "stuck-bot")
            await decide(top, "it hangs", APT)
            await top.see(f"{APT} was broken", "Postgres accepts nothing below token")
            await asyncio.wait_for(waiting, 30)  # the next in the queue got it
            stuck.write.set()
            await top.see("refused: ", "refused/h 1!")
            await top.see("it hangs")
            top.type("q")
            assert await top.end() == 0
            assert top.as_before()
    assert isinstance(stuck.refused, StaleToken | LeaseLost)
    assert await pool.fetchval("select count(*) from note") == 0


async def test_a_lock_that_changed_hands_while_the_dialog_stood_is_not_broken(
    bots: LockGuard, redis_url: str, database_url: str
) -> None:
    with PseudoTerminal("top", "--redis", redis_url, "--database", database_url) as top:
        async with bots.hold(APT, operation="the first"):
            await top.see("the first")
            top.type("b")
            await top.see(f"Break {APT}", "the first")
        async with bots.hold(APT, operation="the second"):
            await decide(top, "it hangs", "y")
            await top.see("! ", "hands")
            assert (await bots.inspect(APT)).operation == "the second"


async def test_redis_is_killed_and_comes_back_while_top_runs() -> None:
    with RedisServer() as server:
        async with LockGuard.from_url(server.url, ttl=timedelta(seconds=30)) as guard:
            with PseudoTerminal("top", "--redis", server.url, "--no-fence") as top:
                async with guard.hold(APT, operation="before"):
                    await top.see("before", "faults 0")
                    server.kill()
                    await top.see("! Redis: ", "trying again, and the locks are", APT, "faults 1!")
                    top.type("?")
                    await top.see("select a lock")  # keys are answered meanwhile
                    top.type("\x1b")
                    await top.see("RESOURCE")
                    server.restart(keep_data=False)
                async with guard.hold(ETH, operation="after"):
                    shown = await top.see(ETH, "after", "faults 0")
                    assert "! Redis" not in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_the_terminal_as_it_was(redis_url: str, number: signal.Signals) -> None:
    with PseudoTerminal("top", "--redis", redis_url) as top:
        await top.see("no lock is held")
        assert not top.as_before()
        os.kill(top.process.pid, number)
        assert await top.end() == 130
        assert top.as_before()
        assert top.written.endswith(b"lockguard: interrupted\r\n")


async def test_ctrl_c_leaves_the_terminal_as_it_was(redis_url: str) -> None:
    with PseudoTerminal("top", "--redis", redis_url) as top:
        await top.see("no lock is held")
        top.type("\x03")
        assert await top.end() == 130
        assert top.as_before()


async def test_it_is_suspended_and_goes_on(redis_url: str) -> None:
    with PseudoTerminal("top", "--redis", redis_url) as top:
        await top.see("no lock is held")
        top.type("\x1a")
        await top.until(lambda _: psutil.Process(top.process.pid).status() == psutil.STATUS_STOPPED)
        assert top.as_before()
        os.kill(top.process.pid, signal.SIGCONT)
        await top.until(lambda _: not top.as_before())
        top.type("q")
        assert await top.end() == 0
        assert top.as_before()


async def test_a_lock_is_broken_on_all_servers_of_a_quorum() -> None:
    async with IndependentRedis(3) as servers:
        async with LockGuard.from_urls(servers.urls, ttl=timedelta(seconds=30)) as guard:
            held = asyncio.Event()

            async def hold() -> None:
                async with guard.hold(APT, operation="open long"):
                    held.set()
                    await asyncio.Event().wait()

            holding = asyncio.create_task(hold())
            await held.wait()
            named = [word for url in servers.urls for word in ("--redis", url)]
            with PseudoTerminal("top", *named, "--no-fence") as top:
                await top.see("servers 3", APT)
                top.type("b")
                await top.see(f"Break {APT}", "There is no fence")
                await decide(top, "it hangs", "y")
                await top.see(f"{APT} was broken")
            assert not (await guard.inspect(APT)).held
            holding.cancel()
            await asyncio.wait([holding])
            with PseudoTerminal("top", "--redis", servers.urls[0]) as top:
                assert await top.end() == 2
                assert b"1 of the 3 servers that decide together is named" in top.written


async def test_it_follows_the_size_of_the_terminal(bots: LockGuard, redis_url: str) -> None:
    async with bots.hold(APT, operation="open long"):
        with PseudoTerminal("top", "--redis", redis_url, width=120) as top:
            await top.see("TOKEN", "OPERATION", APT)
            top.resize(60, 12)
            shown = await top.see("RESOURCE", APT, "LEFT")
            assert "OPERATION" not in shown
            top.resize(120, 40)
            await top.see("TOKEN", APT)


async def test_with_no_color_no_colour_is_written(redis_url: str, bots: LockGuard) -> None:
    async with bots.hold(APT):
        with PseudoTerminal("top", "--redis", redis_url, environ={"NO_COLOR": "1"}) as top:
            await top.see(APT)
            await press_and_leave(top, "b", "A")
        sequences = {part for part in top.written.split(b"\x1b[") if b"m" in part[:20]}
        for part in sequences:
            numbers = part.partition(b"m")[0].split(b";")
            assert not {number for number in numbers if number.isdigit()} & {
                *(b"%d" % n for n in (*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108)))
            }, part


async def test_a_terminal_of_latin_1_gets_only_its_characters(redis_url: str, bots: LockGuard) -> None:
    async with bots.hold("binance:ÄPTUSDT", operation="注文 öffnen"):
        environ = {"PYTHONIOENCODING": "iso8859-1", "PYTHONUTF8": "0"}
        with PseudoTerminal("top", "--redis", redis_url, environ=environ, encoding="iso8859-1") as top:
            await top.see("binance:ÄPTUSDT", r"\u6ce8")
            top.type("?")
            await top.see("+-----")
            top.type("\x1b")
            await top.see("RESOURCE")


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
async def test_a_terminal_that_cannot_move_its_cursor_is_refused(term: str | None, redis_url: str) -> None:
    with PseudoTerminal("top", "--redis", redis_url, environ={"TERM": term}) as top:
        assert await top.end() == 2
        (line,) = top.written.splitlines()
        assert line.startswith(b"lockguard: top needs a terminal that can move its cursor")
        assert b"lockguard ls --watch" in line


def test_a_pipe_is_refused_and_not_waited_on(redis_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "lockguard", "top", "--redis", redis_url],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "lockguard: top needs a terminal; use 'lockguard ls --watch'\n"


async def test_it_starts_while_no_server_answers() -> None:
    with RedisServer() as server:
        url = server.url
    with PseudoTerminal("top", "--redis", url, "--no-fence") as top:
        await top.see("! Redis: ", "not known yet")
        top.type("q")
        assert await top.end() == 0


async def test_with_read_only_nothing_is_asked_or_broken(bots: LockGuard, redis_url: str) -> None:
    async with bots.hold(APT):
        with PseudoTerminal("top", "--redis", redis_url, "--read-only", "--filter", "apt") as top:
            await top.see(APT, "filter 'apt'")
            for key in "ab":
                top.type(key)
                await top.see("this top was started with --read-only")


async def test_postgres_that_hangs_leaves_the_locks_live(bots: LockGuard, redis_url: str) -> None:
    with PostgresServer() as server:
        conn = await asyncpg.connect(server.url)
        await install(conn)
        await conn.close()
        with PseudoTerminal("top", "--redis", redis_url, "--database", server.url) as top:
            await top.see("no lock is held", "faults 0")
            server.pause()
            async with bots.hold(APT):
                await top.see("! Postgres: ", APT)
                server.resume()
                await top.until(lambda shown: "no answer" not in shown)


@pytest.mark.parametrize("fault", ["pause", "stop"])
async def test_a_break_while_postgres_does_not_answer_frees_nothing_and_top_goes_on(
    redis_url: str, fault: str
) -> None:
    async with LockGuard.from_url(redis_url, ttl=timedelta(seconds=60)) as bots, bots.hold(APT):
        with PostgresServer() as server:
            conn = await asyncpg.connect(server.url)
            await install(conn)
            await conn.close()
            with PseudoTerminal("top", "--redis", redis_url, "--database", server.url) as top:
                await top.see(APT, "faults 0")
                top.type("b")
                await top.see("Reason")
                getattr(server, fault)()
                try:
                    await decide(top, "stuck", "y")
                    await top.see("! the fence cannot be broken, and nothing was freed: cannot connect to")
                    await press_and_leave(top)
                    assert top.process.returncode == 0
                finally:
                    if fault == "pause":
                        server.resume()
        assert (await bots.inspect(APT)).held


async def test_a_server_that_a_quorum_does_without_is_named() -> None:
    async with IndependentRedis(3) as servers:
        named = [word for url in servers.urls for word in ("--redis", url)]
        with PseudoTerminal("top", *named, "--no-fence") as top:
            await top.see("servers 3", "faults 0", "no lock is held")
            servers.servers[0].kill()
            port = servers.urls[0].rsplit(":", 1)[1].split("/")[0]
            await top.see(f"! Redis: no answer from 127.0.0.1:{port}", "are a majority", "faults 1!")
            servers.servers[0].restart()
            await top.see("faults 0")
