"""``lockguard inspect`` and ``lockguard break`` against a real server, as a process."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from lockguard import LeaseLost, LockGuard
from lockguard.testing import RedisServer

RESOURCE = "binance:APTUSDT"


async def lockguard(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run the command; gives exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "lockguard.cli", *arguments),
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


async def test_break_ends_the_holder(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(LeaseLost):
            async with guard.hold(RESOURCE) as lease:
                code, out, _ = await lockguard(
                    "break", RESOURCE, "--reason", "it's stuck", "--yes", "--redis", redis_url
                )
                assert code == 0
                assert lease.grant.holder in out
                assert "select lockguard.break_('binance:APTUSDT', 'it''s stuck', 5000)" in out
                await asyncio.Event().wait()
    code, out, _ = await lockguard("break", RESOURCE, "--reason", "again", "--redis", redis_url)
    assert code == 0
    assert "nothing to break" in out


async def test_break_does_not_act_without_a_yes(redis_url):
    async with LockGuard.from_url(redis_url) as guard, guard.hold(RESOURCE):
        code, _, err = await lockguard("break", RESOURCE, "--reason", "x", "--redis", redis_url)
        assert code == 2
        assert err == "lockguard: nobody is here to be asked whether to break it; give --yes\n"
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
