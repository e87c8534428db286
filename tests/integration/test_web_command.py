"""``lockguard web`` as a process, on real servers, in a real browser."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis.asyncio
from playwright.async_api import expect

from lockguard import Lease, LeaseLost, LockGuard, StaleToken
from lockguard_asyncpg import PostgresFence, create_pool, fenced_execute, install
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import IndependentRedis, RedisServer
from lockguard_positions._schema import migrate
from tests.integration.fence_leases import lease_of
from tests.integration.test_bot_least_privilege import with_user
from tests.integration.web_pages import chromium, visit

APT = "binance:APTUSDT"
PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
TTL = timedelta(seconds=30)


def without(text: str, *words: str) -> bool:
    return not any(word in text for word in words)


@dataclass
class Command:
    """A running ``lockguard web``."""

    process: asyncio.subprocess.Process
    url: str

    async def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        signal_child(self.process, number)
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "lockguard", "web", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )


@asynccontextmanager
async def web(*arguments: str, **environment: str) -> AsyncIterator[Command]:
    process = await start("--port", "0", *arguments, **environment)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        assert url, (await process.communicate())[1]
        yield Command(process, url)
    finally:
        signal_child(process, signal.SIGKILL)
        await process.wait()


async def refused(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await start(*arguments, **environment)
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert out == b""
    assert err.count(b"\n") == 1
    assert process.returncode is not None
    return process.returncode, err.decode()


async def test_a_stuck_lock_is_seen_broken_and_its_next_write_is_refused(
    redis_url: str, database_url: str
) -> None:
    servers = {"LOCKGUARD_REDIS_URL": redis_url, "LOCKGUARD_DATABASE_URL": database_url}
    blind: list[Lease] = []
    async with create_pool(database_url, min_size=0, max_size=5) as pool, chromium() as browser:
        async with pool.acquire() as conn:
            await install(conn)
        await pool.execute("create table note (id int)")

        async def stuck(guard: LockGuard) -> None:
            async with guard.hold(APT, operation="open long") as lease:
                blind.append(lease_of(lease.grant))
                await asyncio.Event().wait()

        async with (
            LockGuard.from_url(redis_url, ttl=TTL, fence=PostgresFence(pool)) as guard,
            web("--allow-break", **servers) as command,
            visit(browser, command.url) as seen,
        ):
            await expect(seen.page.locator("#more")).to_contain_text("No lock is held")
            holder = asyncio.create_task(stuck(guard))
            await seen.page.get_by_role("button", name=APT, exact=True).click()
            await expect(seen.page.locator("#facts")).to_contain_text("open long")
            await expect(seen.page.locator("#facts")).to_contain_text("open, token")
            waiting = asyncio.create_task(hold(guard, wait=TTL, operation="sync"))
            await expect(seen.page.locator("#waiters li")).to_contain_text("sync")
            await seen.page.get_by_role("button", name="Break it").click()
            await seen.page.get_by_label("Reason").fill("stuck in a fill")
            await seen.page.keyboard.press("Enter")
            await expect(seen.page.locator("#done")).to_contain_text("It was broken.")
            with pytest.raises(StaleToken):  # before its next renewal could tell the holder
                await fenced_execute(pool, "insert into note values (1)", lease=blind[0])
            await expect(seen.page.locator("#refused-rows tr")).to_contain_text("LG001")
            await expect(seen.page.locator("#lines")).to_contain_text("stuck in a fill (web)")
            await expect(seen.page.locator("#picture line.broken")).to_have_count(1)
            await expect(seen.page.locator("#picture path.cross")).to_have_count(1)
            with pytest.raises(LeaseLost):
                await holder
            await expect(seen.page.locator("#facts")).to_contain_text("sync")
            waiting.cancel()
            await asyncio.wait([waiting])
            assert seen.said == []
            page = await seen.page.content()
            code, out, err = await command.end()
    assert code == 130
    assert f"broke {APT}, held by" in err
    passwords = [part for url in (redis_url, database_url) for part in re.findall(r":([^:/@]+)@", url)]
    assert passwords
    assert without(page + out + err, *passwords)


async def hold(guard: LockGuard, **options: Any) -> None:
    async with guard.hold(APT, **options):
        await asyncio.Event().wait()


async def test_it_lives_through_a_death_of_redis() -> None:
    with RedisServer() as server:
        async with chromium() as browser, web(LOCKGUARD_REDIS_URL=server.url) as command:
            async with LockGuard.from_url(server.url, ttl=TTL) as guard:
                holder = asyncio.create_task(hold(guard))
                async with visit(browser, command.url) as seen:
                    rows = seen.page.locator("#lock-rows tr")
                    await expect(rows).to_have_count(1)
                    server.kill()
                    await expect(seen.page.locator("#faults li")).to_contain_text(
                        "Redis does not answer", timeout=30_000
                    )
                    await expect(rows).to_have_count(1)
                    await expect(seen.page.locator("#locks")).to_have_class("locks stale")
                    server.restart(keep_data=False)
                    await expect(seen.page.locator("#faults li")).to_have_count(0, timeout=30_000)
                    await expect(rows).to_have_count(0)
                    assert seen.said == []
                with pytest.raises(LeaseLost):
                    await holder


async def test_the_documented_rights_of_who_looks_are_enough(database_url: str) -> None:
    rules = re.search(r"ACL SETUSER (viewer [^`]*?)```", PAGE)
    assert rules is not None
    role = f"watcher_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(database_url)
    await install(owner)
    await migrate(owner)
    await owner.execute(f"create role {role} login password 'secret'")
    try:
        for statement in re.findall(r"^grant .*? to watcher;", PAGE, re.MULTILINE):
            await owner.execute(statement.replace("to watcher;", f"to {role};"))
        with RedisServer(acl=[" ".join(rules[1].split()).replace("SECRET", "secret")]) as server:
            url = f"redis://viewer:secret@127.0.0.1:{server.port}"
            database = with_user(database_url, role, "secret")
            async with (
                asyncpg.create_pool(database_url, min_size=0) as pool,
                LockGuard.from_url(server.url, ttl=TTL, fence=PostgresFence(pool)) as guard,
                guard.hold(APT, operation="open long"),
                web(LOCKGUARD_REDIS_URL=url, LOCKGUARD_DATABASE_URL=database) as command,
                chromium() as browser,
                visit(browser, command.url) as seen,
            ):
                await seen.page.get_by_role("button", name=APT, exact=True).click()
                await expect(seen.page.locator("#facts")).to_contain_text("open, token")
                await expect(seen.page.locator("#lines")).to_contain_text("Postgres accepts writes of")
                await expect(seen.page.locator("#no-refused")).to_have_text("None on record.")
                await expect(seen.page.locator("#faults li")).to_have_count(0)
    finally:
        await owner.execute(f"drop owned by {role}; drop role {role}")
        await owner.close()


async def test_it_starts_while_redis_does_not_answer(unused_tcp_port: int) -> None:
    async with (
        chromium() as browser,
        web(LOCKGUARD_REDIS_URL=f"redis://:secret@127.0.0.1:{unused_tcp_port}") as command,
    ):
        async with visit(browser, command.url) as seen:
            await expect(seen.page.locator("#faults li")).to_contain_text(
                "Nothing is known yet", timeout=30_000
            )
            assert without(await seen.page.content(), "secret")


async def executed(
    client: redis.asyncio.Redis, session: aiohttp.ClientSession, url: str, pages: int
) -> float:
    """How many commands the server runs for each state that so many open pages show."""
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(session.get(f"{url}events?open={APT}")) for _ in range(pages)
        ]

        async def states(stream: aiohttp.ClientResponse, number: int) -> None:
            while number and (line := await stream.content.readline()):
                number -= line.startswith(b"data: {") and b'"locks"' in line

        await asyncio.gather(*(states(stream, 2) for stream in streams))
        before = (await client.info("stats"))["total_commands_processed"]
        await asyncio.gather(*(states(stream, 4) for stream in streams))
        after = (await client.info("stats"))["total_commands_processed"]
    return float(after - before) / 4


async def test_twenty_pages_cost_redis_what_one_costs(redis_url: str) -> None:
    async with (
        LockGuard.from_url(redis_url, ttl=timedelta(minutes=5)) as guard,
        guard.hold(APT),
        web(LOCKGUARD_REDIS_URL=redis_url) as command,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        redis.asyncio.Redis.from_url(redis_url) as client,
    ):
        async with session.get(command.url) as answer:
            assert answer.status == 200
        url = command.url.partition("?")[0]
        one = await executed(client, session, url, 1)
        twenty = await executed(client, session, url, 20)
    assert one > 0
    assert twenty <= 2 * one


async def test_a_used_url_is_followed_by_another_and_nothing_is_left_behind(redis_url: str) -> None:
    async with web(LOCKGUARD_REDIS_URL=redis_url) as command, aiohttp.ClientSession() as session:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[A-Za-z0-9_-]{32}", command.url)
        async with session.get(command.url) as answer:
            assert answer.status == 200
        async with aiohttp.ClientSession() as other, other.get(command.url) as answer:
            assert answer.status == 404
        code, out, err = await command.end(signal.SIGTERM)
    assert code == 130
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[A-Za-z0-9_-]{32}\n", out)
    assert out.strip() != command.url
    assert [line for line in err.splitlines() if line] == [
        "lockguard: the page was opened; the URL for another browser:",
        "lockguard: interrupted",
    ]


async def test_a_token_of_the_environment_is_not_printed(redis_url: str) -> None:
    token = "A-token_of_24-characters"
    async with web(LOCKGUARD_REDIS_URL=redis_url, LOCKGUARD_WEB_TOKEN=token) as command:
        assert command.url.endswith("?token=(that of LOCKGUARD_WEB_TOKEN)")
        address = command.url.partition("?")[0]
        async with aiohttp.ClientSession() as session, session.get(f"{address}?token={token}") as answer:
            assert answer.status == 200
        _, out, err = await command.end()
    assert token not in out + err


async def test_it_ends_while_pages_are_open(redis_url: str) -> None:
    async with (
        chromium() as browser,
        web(LOCKGUARD_REDIS_URL=redis_url) as command,
        visit(browser, command.url) as seen,
    ):
        await expect(seen.page.locator("#live")).to_have_class("live on")
        async with asyncio.timeout(20):
            code, _, _ = await command.end()
        assert code == 130
        await expect(seen.page.locator("#live")).to_have_class("live off")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "0.0.0.0"), "--allow-remote"),
        (("--host", "192.0.2.1"), "--allow-remote"),
        (
            ("--host", "192.0.2.1", "--allow-remote", "--port", "0"),
            "--host 192.0.2.1, --port 0 cannot be listened on",
        ),
        (("--port", "70000"), "70000"),
        (("--interval", "0s"), "'0s' is no interval"),
        (("--interval", "fast"), "'fast' is no interval"),
        (("--redis", "http://:secret@x"), "redis"),
    ],
)
async def test_what_cannot_be_served_is_refused_in_one_line(
    redis_url: str, arguments: tuple[str, ...], told: str
) -> None:
    code, err = await refused(*arguments, LOCKGUARD_REDIS_URL=redis_url)
    assert code == 2
    assert told in err
    assert without(err, "secret", "Traceback")


async def test_a_weak_token_is_refused_and_not_shown(redis_url: str) -> None:
    code, err = await refused("--port", "0", LOCKGUARD_REDIS_URL=redis_url, LOCKGUARD_WEB_TOKEN="hunter2")
    assert code == 2
    assert "LOCKGUARD_WEB_TOKEN" in err
    assert without(err, "hunter2")


async def test_a_port_in_use_is_told_with_the_remedy(redis_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = await refused("--port", str(taken.getsockname()[1]), LOCKGUARD_REDIS_URL=redis_url)
    assert code == 1
    assert "is in use" in err
    assert "--port 0" in err


async def test_a_quorum_that_is_named_in_part_is_refused() -> None:
    with IndependentRedis() as servers:
        async with LockGuard.from_urls(servers.urls) as guard, guard.hold(APT):
            pass
        code, err = await refused("--port", "0", LOCKGUARD_REDIS_URL=servers.urls[0])
    assert code == 2
    assert "servers that decide together is named" in err


async def test_it_shows_a_lock_of_a_quorum() -> None:
    with IndependentRedis() as servers:
        async with LockGuard.from_urls(servers.urls) as guard, guard.hold(APT, operation="open long"):
            async with web(LOCKGUARD_REDIS_URL=" ".join(servers.urls)) as command, chromium() as browser:
                async with visit(browser, command.url) as seen:
                    await expect(seen.page.locator("#lock-rows tr")).to_contain_text("open long")


async def test_what_is_no_http_leaves_no_trace_in_the_terminal(redis_url: str) -> None:
    """Anyone who reaches the port could fill the terminal with tracebacks and with texts of their own."""
    async with web("--redis", redis_url) as command:
        port = int(command.url.rpartition(":")[2].partition("/")[0])
        for sent in (b"secret-words / HTTP/1.1\r\n\r\n", "GET /?token=wörds HTTP/1.1\r\n\r\n".encode()):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()
        _, _, told = await command.end()
    assert without(told, "Traceback", "words", "wörds", "Error")
