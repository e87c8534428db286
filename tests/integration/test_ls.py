"""``lockguard ls`` and ``lockguard show`` against real servers, as processes."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
import redis

from lockguard import LeaseLost, LockGuard
from lockguard._lease import parse_resource
from lockguard_asyncpg import PostgresFence, install
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import ClusterRedis, IndependentRedis, RedisServer, SentinelRedis

APT, WIF = "binance:APTUSDT", "okx:WIFUSDT"
HOSTILE = "[/x] \x1b[31m<script>\nmore"


async def _run(*words: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", *words),
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(errors="replace"), err.decode()


async def _listed(*words: str, **environment: str) -> list[dict[str, Any]]:
    code, out, err = await _run("ls", "--json", *words, **environment)
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


@asynccontextmanager
async def _waiter(guard: LockGuard, name: str, operation: str, *, seen_by: LockGuard) -> AsyncIterator[None]:
    async def wait() -> None:
        async with guard.hold(name, operation=operation, wait=timedelta(seconds=60)):
            pass

    waiting = asyncio.create_task(wait(), name="one that waits")
    async with asyncio.timeout(15):
        while not (await seen_by.inspect(name)).waiters:
            await asyncio.sleep(0.01)
    yield
    waiting.cancel()
    await asyncio.wait([waiting])


async def test_a_list_tells_who_holds_what_since_when_and_who_waits_the_oldest_first(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(APT, operation=HOSTILE) as lease:
            while (await guard.inspect(APT)).age_ms < 100:
                await asyncio.sleep(0.02)
            async with guard.hold(WIF), _waiter(other, APT, "sync pass", seen_by=guard):
                await other.request_handover(WIF, reason="deploy at four")
                code, out, err = await _run("ls", "--redis", redis_url, COLUMNS="60")
                assert (code, err) == (0, "")
                head, first, second = out.splitlines()
                assert head.split() == [
                    *("resource", "host", "pid", "task", "operation", "token"),
                    *("age", "left", "late", "waiters", "wanted"),
                ]
                assert first.startswith(APT)
                assert f" {os.getpid()} " in first
                assert str(lease.token) in first
                assert "[/x] \\x1b[31m<script>\\nmore" in first
                assert second.startswith(WIF)
                assert "deploy at four" in second
                assert {line.index(name) for line, name in ((head, "token"), (first, str(lease.token)))} == {
                    head.index("token")
                }
                (waited,) = await _listed("--waiting", "--redis", redis_url)
                assert waited["resource"] == APT
                assert (waited["host"], waited["pid"]) == (os.uname().nodename, os.getpid())
                assert waited["waiters"][0]["operation"] == "sync pass"
                assert "fence" not in waited
                assert [each["resource"] for each in await _listed("okx:*", "--redis", redis_url)] == [WIF]
                assert await _listed("--older-than", "1h", "--redis", redis_url) == []
                code, out, _ = await _run("ls", "--older-than", "1h", "--redis", redis_url)
                assert (code, out) == (0, "no lock that matches '*' is held, waited for or kept closed\n")


async def test_a_letter_that_the_locale_lacks_is_escaped(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as guard, guard.hold("binance:\u4e2d"):
        for command in (["ls"], ["show", "binance:\u4e2d"]):
            code, out, err = await _run(*command, "--redis", redis_url, PYTHONIOENCODING="latin-1")
            assert (code, err) == (0, "")
            assert "binance:\\u4e2d" in out


async def test_what_is_only_kept_closed_is_listed_as_such_and_shown_as_free(
    redis_url: str,
) -> None:
    async with LockGuard.from_url(redis_url, lock_delay=timedelta(seconds=60)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(APT):
                await guard.break_(APT, reason="it hangs")
        _, out, _ = await _run("ls", "--redis", redis_url)
        assert out.splitlines()[1].split()[:2] == [APT, "(closed)"]
        (told,) = await _listed("--redis", redis_url)
        assert (told["held"], told["host"], told["pid"]) == (False, "", None)
        assert 0 < told["closed_ms"] <= 60_000
        code, out, _ = await _run("show", APT, "--redis", redis_url)
        assert code == 4
        assert "closed for another" in out
        assert "broken" in out
        assert "(it hangs)" in out


async def test_show_ends_with_whether_it_is_held_and_inspect_with_0_for_both(
    redis_url: str,
) -> None:
    async with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        async with guard.hold(APT, operation=HOSTILE), _waiter(other, APT, "[/y]", seen_by=guard):
            for command in ("show", "inspect"):
                code, out, err = await _run(command, APT, "--redis", redis_url)
                assert (code, err) == (0, "")
                assert "\x1b" not in out
                assert "one\\x20that\\x20waits ([/y]), for " in out
                assert "granted to " in out
            _, out, _ = await _run("show", APT, "--json", "--lines", "1", "--redis", redis_url)
            facts = json.loads(out)
            assert [entry["event"] for entry in facts["history"]] == ["granted"]
            assert facts["task"] == facts["holder"].partition("/")[2]
        for command, code in (("show", 4), ("inspect", 0)):
            assert (await _run(command, APT, "--redis", redis_url))[0] == code
        for command in ("show", "inspect", "ls"):
            words = [command, *([] if command == "ls" else [APT]), "--redis", "redis://127.0.0.1:1"]
            code, out, err = await _run(*words)
            assert (code, out, err.count("\n")) == (1, "", 1)


async def test_the_fence_is_told_open_closed_and_ahead_and_what_cannot_be_read_hides_no_lock(
    redis_url: str, database_url: str
) -> None:
    words = ("--redis", redis_url, "--database", database_url)
    async with asyncpg.create_pool(database_url, min_size=1) as pool:
        async with LockGuard.from_url(redis_url) as guard, guard.hold(APT):
            code, out, err = await _run("ls", *words)
            assert (code, err.count("\n")) == (3, 1)
            assert "the fence could not be read" in err
            assert out.splitlines()[1].split()[-1] == "?"
            code, out, _ = await _run("show", APT, *words)
            assert code == 3
            assert APT in out
            assert (await _run("inspect", APT, *words))[0] == 0
        async with pool.acquire() as connection:
            await install(connection)
        fenced = LockGuard.from_url(redis_url, fence=PostgresFence(pool))
        async with fenced, LockGuard.from_url(redis_url) as unfenced:
            async with fenced.hold(APT), unfenced.hold("okx:never-sealed"):
                seen = {each["resource"]: each["fence"] for each in await _listed(*words)}
                assert seen == {APT: "open", "okx:never-sealed": None}
                name = parse_resource(APT)
                await PostgresFence(pool).break_(name, reason="it hangs", within=timedelta(seconds=5))
                (told,) = await _listed("binance:*", *words)
                assert told["fence"] == "ahead"
                code, out, _ = await _run("show", APT, *words)
                assert code == 0
                assert "ahead, token" in out


@pytest.mark.parametrize("kind", [IndependentRedis, ClusterRedis, SentinelRedis])
async def test_every_topology_is_listed_and_a_quorum_named_in_part_is_refused(kind: Any) -> None:
    with kind(3) as servers:
        urls = servers.urls if kind is IndependentRedis else [servers.url]
        guard = LockGuard.from_urls(urls) if len(urls) > 1 else LockGuard.from_url(urls[0])
        names = [f"x:{number}" for number in range(9)]
        async with guard:
            async with guard.hold_many(names) as leases:
                await asyncio.gather(*(lease.confirm() for lease in leases))
                seen = await _listed(LOCKGUARD_REDIS_URL=" ".join(urls))
                assert sorted(each["resource"] for each in seen) == names
                if len(urls) > 1:
                    for command in (["ls"], ["show", "x:1"]):
                        code, out, err = await _run(*command, LOCKGUARD_REDIS_URL=" ".join(urls[:2]))
                        assert (code, out) == (2, "")
                        assert "servers that decide together" in err


async def test_a_watch_prints_a_block_each_time_and_goes_on_while_the_server_is_away() -> None:
    with RedisServer() as server:
        async with LockGuard.from_url(server.url) as guard, guard.hold(APT):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "lockguard", "ls", "--watch", "--every", "1s", "--redis", server.url),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            assert process.stderr is not None
            async with asyncio.timeout(30):
                for _ in range(2):
                    block = [(await process.stdout.readline()).decode() for _ in range(3)]
                    assert block[2].startswith(APT)
                server.kill()
                assert b"could not" in (told := await process.stderr.readline()) or b"127.0.0.1" in told
                signal_child(process, signal.SIGINT)
                _, err = await process.communicate()
                assert process.returncode == 130
                assert b"Traceback" not in err


async def test_a_watch_redraws_a_terminal_of_60_columns_and_gives_it_back(redis_url: str) -> None:
    async with LockGuard.from_url(redis_url) as guard, guard.hold(APT, operation="[/x]"):
        master, slave = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockguard", "ls", "--watch", "--every", "1s", "--redis", redis_url),
            env={**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "20", "NO_COLOR": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown = b""
        async with asyncio.timeout(30):
            while shown.count(APT.encode()) < 2:
                shown += await asyncio.to_thread(os.read, master, 65536)
        signal_child(process, signal.SIGINT)
        with suppress(OSError):  # how Linux says that the process has closed the terminal
            while part := await asyncio.to_thread(os.read, master, 65536):
                shown += part
        os.close(master)
        assert await process.wait() == 130
    text = shown.decode()
    assert "\x1b[?1049h" in text  # the other screen
    assert "\x1b[?1049l" in text  # and back
    assert f"{APT}: held for " in text
    assert "[/x]" in text
    assert "Traceback" not in text


async def test_a_redis_without_the_rights_is_told_in_one_line() -> None:
    acl = "bot on >secret ~* &* +@all -scan -lrange"
    with RedisServer(acl=[acl]) as server:
        url = f"redis://bot:secret@127.0.0.1:{server.port}"
        with redis.Redis.from_url(server.url) as client:
            client.hset(f"lockguard:{{{APT}}}", "grant", "ab")
        code, _, err = await _run("ls", "--redis", url)
        assert (code, err.count("\n")) == (1, 1)
        assert "scan" in err.lower()
        code, out, err = await _run("show", APT, "--redis", url)
        assert (code, err.count("\n")) == (3, 1)
        assert "the history could not be read" in err
        assert APT in out
        assert "secret" not in err


async def test_a_key_that_something_else_wrote_hides_no_other_lock(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("lockguard:{mine}", "a value of another program", px=60_000)
        async with LockGuard.from_url(redis_url) as guard, guard.hold(APT):
            code, out, err = await _run("ls", "--redis", redis_url, "--json")
            assert (code, [json.loads(line)["resource"] for line in out.splitlines()]) == (3, [APT])
            assert err.startswith("lockguard: not listed is mine: ")
            assert "lockguard:{mine}" in err
        code, out, err = await _run("ls", "--redis", redis_url)
        assert (code, out) == (1, "")
        assert "lockguard:{mine}" in err
