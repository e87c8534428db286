"""``lockguard inspect`` and ``lockguard break`` against a real server, as a process."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import socket
import sys
from datetime import timedelta

import asyncpg
import pytest

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard_asyncpg import PostgresFence, fenced_execute, install
from lockguard_lab.servers import IndependentRedis, RedisServer

RESOURCE = "binance:APTUSDT"


async def lockguard(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; gives exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "lockguard", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_inspect_tells_who_holds_it_and_who_waits(redis_url):
    async with LockGuard.from_url(redis_url) as other, LockGuard.from_url(redis_url) as guard:
        async with guard.hold(RESOURCE, operation="open long") as lease:
            waiting = asyncio.ensure_future(other.hold(RESOURCE).__aenter__())
            while not (await guard.inspect(RESOURCE)).waiters:
                await asyncio.sleep(0.01)
            code, out, err = await lockguard("inspect", RESOURCE, "--redis", redis_url)
            assert (code, err) == (0, "")
            assert str(lease.token) in out
            assert "open long" in out
            assert lease.grant.holder in out
            code, out, err = await lockguard("inspect", RESOURCE, "--json", LOCKGUARD_REDIS_URL=redis_url)
            found = json.loads(out)
            assert found["grant"] == lease.grant.id
            assert len(found["waiters"]) == 1
            waiting.cancel()


async def test_inspect_tells_that_it_is_free(redis_url):
    code, out, _ = await lockguard("inspect", RESOURCE, "--redis", redis_url)
    assert code == 0
    assert "free" in out


@pytest.fixture
async def pool(database_url):
    async with asyncpg.create_pool(database_url, min_size=1, max_size=6) as pool:
        async with pool.acquire() as connection:
            await install(connection)
            await connection.execute("create table lockguard_test (n integer)")
        yield pool


async def test_one_break_ends_the_holder_in_redis_and_in_the_fence(redis_url, database_url, pool):
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(RESOURCE) as lease:
                blind = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
                write = asyncio.create_task(
                    _refused(pool, blind, _told_to_break(redis_url, database_url, "it's stuck"))
                )
                try:
                    await asyncio.Event().wait()
                finally:
                    code, out, err = await write
    assert (code, err) == (0, "")
    assert lease.grant.holder in out
    assert "It is free now" in out
    reason = await pool.fetchval("select reason from lockguard.audit where action = 'break'")
    assert reason == f"{getpass.getuser()}@{socket.gethostname()}: it's stuck"


async def _told_to_break(redis_url, database_url, reason):
    return await lockguard(
        *("break", RESOURCE, "--reason", reason, "--yes", "--redis", redis_url),
        LOCKGUARD_DATABASE_URL=database_url,
    )


async def _refused(pool, lease, breaking):
    """Break, and write under the broken lease before its next renewal could tell anybody."""
    result = await breaking
    with pytest.raises(StaleToken):
        await fenced_execute(pool, "insert into lockguard_test values (1)", lease=lease)
    return result


async def test_a_break_fences_the_holder_though_redis_has_lost_the_lock(redis_url, database_url, pool):
    grant = Grant(parse_resource(RESOURCE), new_grant_id(), Token(7), "host", "open", 60_000)
    await PostgresFence(pool).seal(grant, within=timedelta(seconds=5))
    code, out, _ = await _told_to_break(redis_url, database_url, "wiped")
    assert (code, "Postgres accepts nothing below" in out) == (0, True)
    assert not await pool.fetchval("select is_open from lockguard.status($1)", RESOURCE)


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_a_break_without_redis_breaks_the_fence_and_says_what_is_left(how, database_url, pool):
    with RedisServer() as server:
        async with LockGuard.from_url(server.url, fence=PostgresFence(pool)) as guard:
            with pytest.raises(LeaseLost):
                async with guard.hold(RESOURCE) as lease:
                    getattr(server, how)()
                    blind = Lease(lease.grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
                    breaking = _told_to_break(server.url, database_url, "gone")
                    write = asyncio.create_task(_refused(pool, blind, breaking))
                    try:
                        await asyncio.Event().wait()
                    finally:
                        code, out, err = await write
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert "broken in the fence only: Postgres accepts nothing below token" in err
        assert "break it again when that is mended" in err
        reason = await pool.fetchval("select reason from lockguard.audit where action = 'break'")
        assert reason.endswith(": gone")


async def test_a_break_without_redis_and_without_a_fence_breaks_nothing():
    options = ("--reason", "gone", "--yes", "--no-fence", "--redis", "redis://127.0.0.1:1")
    code, out, err = await lockguard("break", RESOURCE, *options)
    assert (code, out, "broken" in err) == (1, "", False)


async def test_a_break_asks_where_the_fence_is(redis_url):
    command = ("break", RESOURCE, "--reason", "x", "--yes", "--redis", redis_url)
    code, _, err = await lockguard(*command)
    assert (code, "or say --no-fence if there is none" in err) == (2, True)
    code, out, _ = await lockguard(*command, "--no-fence")
    assert (code, "There is no fence" in out) == (0, True)


@pytest.mark.parametrize(("url", "exit_code"), [("postgresql://a:b@127.0.0.1:1/x", 1), ("nonsense", 2)])
async def test_a_break_tells_a_fence_that_does_not_answer_from_one_that_cannot_be(redis_url, url, exit_code):
    options = ("--reason", "x", "--yes", "--redis", redis_url)
    code, out, err = await lockguard("break", RESOURCE, *options, LOCKGUARD_DATABASE_URL=url)
    assert (code, out, len(err.splitlines())) == (exit_code, "", 1)


async def test_a_break_that_most_servers_did_not_hear_of_is_not_called_one():
    options = ("break", RESOURCE, "--reason", "x", "--yes", "--no-fence")
    with IndependentRedis(3) as servers:
        async with LockGuard.from_urls(servers.urls) as guard, LockGuard.from_urls(servers.urls) as other:
            holding = asyncio.create_task(_hold(guard))
            async with asyncio.timeout(10):
                while not (await other.inspect(RESOURCE)).held:
                    await asyncio.sleep(0.01)
            some = f"{servers.urls[0]} redis://127.0.0.1:1 redis://127.0.0.1:2"
            code, out, err = await lockguard(*options, LOCKGUARD_REDIS_URL=some)
            assert (code, out, len(err.splitlines())) == (1, "", 1)
            assert f"{RESOURCE} may still be held: 1 of 3 servers" in err
            assert err.endswith("break it again when that is mended\n")
            assert "broken;" not in err
            assert (await other.inspect(RESOURCE)).held
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)


async def test_some_of_the_servers_that_decide_together_neither_break_nor_call_it_free_and_all_do():
    options = ("break", RESOURCE, "--reason", "x", "--yes", "--no-fence")
    with IndependentRedis(5) as servers:
        async with LockGuard.from_urls(servers.urls) as guard, LockGuard.from_urls(servers.urls) as other:
            holding = asyncio.create_task(_hold(guard))
            async with asyncio.timeout(10):
                while not (await other.inspect(RESOURCE)).held:
                    await asyncio.sleep(0.01)
            for named, command in [(1, options), (2, options), (3, ("inspect", "another:resource"))]:
                some = " ".join(servers.urls[:named])
                code, out, err = await lockguard(*command, LOCKGUARD_REDIS_URL=some)
                assert (code, out, len(err.splitlines())) == (2, "", 1)
                assert "of the 5 servers that decide together" in err
            assert (await other.inspect(RESOURCE)).held
            code, out, _ = await lockguard(*options, LOCKGUARD_REDIS_URL=" ".join(servers.urls))
            assert (code, "It is free now" in out) == (0, True)
            with pytest.raises(LeaseLost):
                await holding


async def _hold(guard):
    async with guard.hold(RESOURCE):
        await asyncio.Event().wait()


async def test_break_does_not_act_without_a_yes(redis_url):
    async with LockGuard.from_url(redis_url) as guard, guard.hold(RESOURCE):
        code, _, err = await lockguard("break", RESOURCE, "--reason", "x", "--no-fence", "--redis", redis_url)
        assert code == 2
        assert err == "lockguard: there is no terminal to ask whether to break it; give --yes or --grant\n"
        assert (await guard.inspect(RESOURCE)).held


async def test_a_wrong_password_is_one_line():
    with RedisServer(password="right") as server:
        wrong = server.url.replace("right", "wr0ng")
        code, _, err = await lockguard("inspect", RESOURCE, LOCKGUARD_REDIS_URL=wrong)
    assert code == 2
    assert err.count("\n") == 1
    assert "refused the log-in" in err
    assert "wr0ng" not in err


async def test_an_unreachable_server_is_one_line():
    code, _, err = await lockguard("inspect", RESOURCE, "--redis", "redis://127.0.0.1:1")
    assert code == 1
    assert err.count("\n") == 1
    assert "127.0.0.1:1" in err


async def test_a_break_by_a_role_without_rights_is_one_line_and_breaks_nothing(redis_url, database_url, pool):
    role = f"poor_{new_grant_id()[:8]}"
    await pool.execute(f"create role {role} login password 'poor'")
    poor = f"postgresql://{role}:poor@{database_url.rpartition('@')[2]}"
    try:
        async with LockGuard.from_url(redis_url) as guard, guard.hold(RESOURCE) as lease:
            arguments = ("break", RESOURCE, "--reason", "r", "--yes", "--redis", redis_url)
            code, out, err = await lockguard(*arguments, LOCKGUARD_DATABASE_URL=poor)
            assert (code, out, len(err.splitlines())) == (2, "", 1), err
            assert "GRANT lockguard_app" in err
            assert (await guard.inspect(RESOURCE)).grant == lease.grant.id
    finally:
        await pool.execute(f"drop role {role}")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    ("redirected", "code", "told"),
    [
        (">/dev/full", 1, "lockguard: the output could not be written: No space left on device\n"),
        (">&-", 0, ""),
    ],
)
async def test_an_output_that_is_full_or_closed_is_one_line_at_most(
    redis_url, database_url, redirected, code, told
):
    connection = await asyncpg.connect(database_url)
    await install(connection)
    await connection.close()
    told_by = (f"inspect {RESOURCE}", f"inspect {RESOURCE} --json", "fence sql", "fence status", "--help")
    for words in told_by:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", f"exec {sys.executable} -m lockguard {words} {redirected}"),
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LOCKGUARD_REDIS_URL": redis_url, "LOCKGUARD_DATABASE_URL": database_url},
        )
        _, err = await process.communicate()
        assert (words, process.returncode, err.decode()) == (words, code, told)
