"""No password is on a page, in a figure, on a terminal or in an argument of a process.

The canary is the password of users on a real Redis and a real Postgres, and then stands in the URLs of
servers that fail and quote what they are sent.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import pytest
import redis.asyncio

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, create_pool, install
from lockguard_positions import migrate
from tests.integration.pseudo_terminal import PseudoTerminal
from tests.integration.test_bot_least_privilege import with_user
from tests.integration.test_servers_command import Command
from tests.unit.test_no_secret_is_told import CANARY, RAW, leaks, ports

__all__ = ["ports"]

NAME = "binance:APTUSDT"
SILENT = {name: value for name, value in os.environ.items() if not name.startswith(("LOCKGUARD_", "PG"))}
FAULTY = (("unknown", "postgres"), ("echo", "hang up"))


def arguments_of(process: psutil.Process) -> str:
    """Of a process and of all that it has started, as everybody on the machine sees them."""
    told = []
    for each in (process, *process.children(recursive=True)):
        try:
            told.append(" ".join(each.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return "\n".join(told)


@asynccontextmanager
async def an_installation(redis_url: str, database_url: str) -> AsyncIterator[dict[str, str]]:
    """The variables of servers whose users have the canary as their password, with something to show."""
    client = redis.asyncio.Redis.from_url(redis_url)
    async with create_pool(database_url, min_size=0, max_size=2) as pool:
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
            role = f"canary_{os.getpid()}"
            await conn.execute(f"create role {role} login superuser password '{CANARY}'")
        await client.execute_command("ACL", "SETUSER", "canary", "on", f">{CANARY}", "~*", "&*", "+@all")
        guard = LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=30))
        try:
            async with guard, guard.hold(NAME, operation="open long"):
                yield SILENT | {
                    "LOCKGUARD_REDIS_URL": with_user(redis_url, "canary", RAW),
                    "LOCKGUARD_DATABASE_URL": with_user(database_url, role, RAW),
                }
        finally:
            await client.execute_command("ACL", "DELUSER", "canary")
            await client.aclose()
            async with pool.acquire() as conn:
                await conn.execute(f"drop role {role}")


@asynccontextmanager
async def serving(*words: str, environ: Mapping[str, str]) -> AsyncIterator[tuple[str, Callable[[], str]]]:
    """A command that serves a page: its URL, and what it has said by its end, with its arguments."""
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-m", "lockguard", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environ),
    )
    assert process.stdout is not None
    said = [await asyncio.to_thread(process.stdout.readline)]
    said.append(arguments_of(psutil.Process(process.pid)))

    def all_said() -> str:
        process.terminate()
        return "\n".join((*said, *process.communicate(timeout=30)))

    try:
        yield said[0].split()[-1], all_said
    finally:
        process.kill()
        process.wait()


async def page_of(url: str) -> str:
    """All that the live page sends to a browser until it has shown the servers once."""
    told = ""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar, headers={"Sec-Fetch-Site": "none"}) as session:
        async with session.get(url) as moved_in:
            told += f"{await moved_in.text()} {moved_in.headers}"
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        async with session.get(f"{origin}/") as page:
            assert page.status == 200
            told += await page.text()
        async with asyncio.timeout(30), session.get(f"{origin}/events") as events:
            assert events.status == 200
            while told.count("data:") < 3:
                told += (await events.content.readline()).decode()
    return told


async def figures_of(url: str) -> str:
    async with aiohttp.ClientSession() as session:
        told = ""
        for _ in range(2):  # the second has read the servers
            async with session.get(url) as answer:
                told += await answer.text()
            await asyncio.sleep(0)
        return told


PAGES: dict[str, tuple[tuple[str, ...], Any]] = {
    "web": (("web", "--port", "0", "--allow-break"), page_of),
    "exporter": (("exporter", "--listen", "0", "--every", "1s"), figures_of),
}


@pytest.mark.parametrize("page", PAGES)
async def test_no_page_and_no_figure_tells_a_password(page: str, redis_url: str, database_url: str) -> None:
    words, read = PAGES[page]
    async with (
        an_installation(redis_url, database_url) as environ,
        serving(*words, environ=environ) as (url, said),
    ):
        shown = await read(url)
        assert (NAME if page == "web" else "lockguard_locks_held") in shown
        assert not leaks(f"{shown}\n{said()}")


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(("locks", "database"), FAULTY)
async def test_no_page_and_no_figure_tells_a_password_whatever_its_servers_do(
    page: str, locks: str, database: str, ports: dict[str, int]
) -> None:
    words, read = PAGES[page]
    async with serving(*words, environ=faulty(locks, database, ports)) as (url, said):
        shown = await read(url)
        told = said()
        assert "Traceback" not in told
        if page == "web" and locks == "unknown":  # the page tells of it, and does not stay empty
            assert "refused the log-in" in shown
        assert not leaks(f"{shown}\n{told}")


def faulty(locks: str, database: str, ports: dict[str, int]) -> dict[str, str]:
    return SILENT | {
        "LOCKGUARD_REDIS_URL": f"redis://u:{RAW}@127.0.0.1:{ports[locks]}/0",
        "LOCKGUARD_DATABASE_URL": f"postgresql://u:{RAW}@127.0.0.1:{ports[database]}/d?sslmode=disable",
    }


async def test_top_shows_no_password(redis_url: str, database_url: str) -> None:
    async with an_installation(redis_url, database_url) as environ:
        with PseudoTerminal("top", width=120, environ=environ) as top:
            await top.see(NAME)
            assert not leaks(arguments_of(psutil.Process(top.process.pid)))
            top.type("\r")  # the page of the resource
            await top.see("open long")
            top.type("\x03")
            await top.end()
            assert not leaks(top.written.decode(errors="replace"))


@pytest.mark.parametrize(("locks", "database"), FAULTY)
async def test_top_shows_no_password_whatever_its_servers_do(
    locks: str, database: str, ports: dict[str, int]
) -> None:
    with PseudoTerminal("top", width=200, environ=faulty(locks, database, ports)) as top:
        await top.until(lambda shown: top.process.poll() is not None or "127.0.0.1" in shown)
        top.type("\x03")
        await top.end()
        assert not leaks(top.written.decode(errors="replace"))


WAITS = "print('on', flush=True); input()"


@pytest.mark.parametrize("typed", [False, True], ids=["by a variable", "typed"])
async def test_no_process_that_is_started_has_a_password_in_its_arguments(
    typed: bool, redis_url: str, database_url: str
) -> None:
    """Everybody on a machine can read them. What somebody types himself is in those of the command alone."""
    async with an_installation(redis_url, database_url) as environ:
        options = ("--redis", environ["LOCKGUARD_REDIS_URL"]) if typed else ()
        given = environ if not typed else {**environ, "LOCKGUARD_REDIS_URL": ""}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockguard", "run", "x:y", *options, "--", sys.executable, "-c", WAITS),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=given,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.readline() == b"on\n"
        running = psutil.Process(process.pid)
        started = running.children(recursive=True)
        assert len(started) >= 2  # the watchdog, and what it runs
        told = "\n".join(arguments_of(each) for each in started)
        assert not leaks(told if typed else arguments_of(running))
        process.stdin.write(b"\n")
        assert await process.wait() == 0


def test_no_server_that_is_started_has_its_password_in_its_arguments() -> None:
    servers = Command()
    told = servers.read(2)
    secrets = [
        urlsplit(word.strip("'\"")).password for line in told.split() for word in line.split("=", 1)[1:]
    ]
    assert any(secrets)
    seen = arguments_of(psutil.Process(servers.process.pid))
    assert not any(secret in seen for secret in secrets if secret)
    servers.end(15)
    assert servers.nothing_is_left()
