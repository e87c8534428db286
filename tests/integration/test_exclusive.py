"""The decorator, and the ways to use a guard wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from lockguard import (
    ConfigurationError,
    LockGuard,
    QuorumUnavailable,
    ResourceBusy,
    Skipped,
    current_lease,
    exclusive,
)
from lockguard_lab.servers import RedisServer
from lockguard_lab.servers.ports import free_port


async def test_the_template_reads_the_parameters_however_they_are_passed(guard):
    @guard.exclusive("{exchange}:{symbol}")
    async def body(symbol, exchange="binance", *, side="long"):
        return current_lease().resource

    assert await body("APTUSDT") == "binance:APTUSDT"
    assert await body(exchange="bybit", symbol="APTUSDT") == "bybit:APTUSDT"
    assert body.__name__ == "body"


async def test_methods_find_their_guard_when_they_are_called(guard):
    class Manager:
        def __init__(self, guard):
            self.guard = guard
            self.exchange = "binance"

        @exclusive("{self.exchange}:{symbol}", guard="guard")
        async def open(self, symbol):
            return current_lease().resource, (await self.guard.inspect(current_lease().resource)).operation

    resource, operation = await Manager(guard).open("APTUSDT")
    assert resource == "binance:APTUSDT"
    assert operation.endswith("Manager.open")


async def test_skip_returns_who_holds_it_and_does_not_run(guard, redis_url):
    ran = []

    async with LockGuard.from_url(redis_url) as other:

        @other.exclusive("{symbol}", on_busy="skip")
        async def sync_symbol(symbol):
            ran.append(symbol)
            return "synced"

        async with guard.hold("APTUSDT", operation="open"):
            skipped = await sync_symbol("APTUSDT")
            assert not skipped
            assert isinstance(skipped, Skipped)
            assert skipped.busy.operation == "open"
        assert ran == []
        assert await sync_symbol("APTUSDT") == "synced"


async def test_with_at_least_ten_that_skip_run_once_and_what_is_closed_is_told(guard, redis_url):
    ran = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            other = await stack.enter_async_context(LockGuard.from_url(redis_url))

            @other.exclusive("{symbol}", on_busy="skip", at_least=timedelta(minutes=1))
            async def on_candle(symbol):
                ran.append(symbol)

            if isinstance(skipped := await on_candle("APTUSDT"), Skipped):
                assert "closed" in str(skipped.busy)
                assert skipped.busy.retry_after > timedelta(seconds=30)
    assert ran == ["APTUSDT"]


async def test_a_busy_error_of_the_body_itself_is_not_a_skip(guard):
    @guard.exclusive("{symbol}", on_busy="skip")
    async def body(symbol):
        raise ResourceBusy("another lock", resource="other")

    with pytest.raises(ResourceBusy, match="another lock"):
        await body("APTUSDT")


async def test_raise_does_not_wait(guard, redis_url):
    async with LockGuard.from_url(redis_url) as other:

        @other.exclusive("{symbol}", on_busy="raise")
        async def body(symbol):
            pass

        async with guard.hold("APTUSDT"):
            with pytest.raises(ResourceBusy):
                await body("APTUSDT")


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("fixed", "names no parameter"),
        ("{exchange}:{symbl}", "'symbl'"),
        ("{exchange", "malformed"),
        ("{}", "no parameter"),
        ("{0}", "no parameter"),
    ],
)
async def test_a_template_that_does_not_fit_is_refused_when_decorating(guard, template, told):
    async def body(symbol, exchange):
        pass

    with pytest.raises(ConfigurationError, match=told):
        guard.exclusive(template)(body)


async def test_a_plain_function_cannot_be_guarded(guard):
    with pytest.raises(ConfigurationError, match="async def"):

        @guard.exclusive("{symbol}")
        def body(symbol):
            pass


async def test_wrong_options_are_named(guard):
    with pytest.raises(ConfigurationError, match="'later'"):
        guard.exclusive("{symbol}", on_busy="later")
    with pytest.raises(ConfigurationError, match="'skip'"):
        guard.hold("x", on_busy="skip")
    with pytest.raises(ConfigurationError, match="wait=5"):
        guard.hold("x", wait=5)
    with pytest.raises(ConfigurationError, match="brace"):
        guard.hold("{x}")


async def test_a_closed_guard_says_so(redis_url):
    guard = LockGuard.from_url(redis_url)
    await guard.aclose()
    with pytest.raises(ConfigurationError, match="closed"):
        async with guard.hold("x"):
            pass


def test_a_guard_serves_one_event_loop(redis_url):
    guard = LockGuard.from_url(redis_url)

    async def use():
        async with guard.hold("x"):
            pass

    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(use())
        with pytest.raises(ConfigurationError, match="another event loop"):
            second.run(use())
        first.run(use())
        first.run(guard.aclose())


FORKED = """
import asyncio, os, sys
from lockguard import ConfigurationError, LockGuard

async def hold():
    async with guard.hold("x") as lease:
        await lease.confirm()

guard, loop = LockGuard.from_url(sys.argv[1]), asyncio.new_event_loop()
loop.run_until_complete(hold())
if not (child := os.fork()):
    try:
        loop.run_until_complete(hold())  # the loop that it belongs to, as far as a copy of it can tell
    except ConfigurationError as error:
        os._exit(7 if "before a fork" in str(error) else 1)
    os._exit(2)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
loop.run_until_complete(hold())
loop.run_until_complete(guard.aclose())
print("as it was")
"""


def test_a_guard_that_was_forked_says_so(redis_url):
    done = subprocess.run(
        [sys.executable, "-c", FORKED, redis_url], check=False, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "as it was\n"), done.stderr


async def test_an_unreachable_server_is_named_with_the_remedy():
    url = f"redis://127.0.0.1:{free_port()}"
    async with LockGuard.from_url(url, wait=timedelta(milliseconds=200)) as guard:
        with pytest.raises(QuorumUnavailable, match=r"127\.0\.0\.1.*check the URL"):
            async with guard.hold("x"):
                pass


async def test_a_wrong_password_is_refused_at_once_and_not_shown():
    with RedisServer(password="right") as server:
        guard = LockGuard.from_url(server.url.replace("right", "hunter2"))
        with pytest.raises(ConfigurationError, match="check the user, the password") as caught:
            async with guard.hold("x"):
                pass
        assert "hunter2" not in str(caught.value)
        await guard.aclose()


async def test_a_missing_password_is_refused_at_once():
    with RedisServer(password="right") as server:
        guard = LockGuard.from_url(f"redis://127.0.0.1:{server.port}")
        with pytest.raises(ConfigurationError, match="NOAUTH"):
            async with guard.hold("x"):
                pass
        await guard.aclose()


@pytest.mark.parametrize(
    "without",
    ["", "+zrank", "+hdel +hlen"],
    ids=["the documented one", "of before the hand-over", "of before waiters were named"],
)
async def test_the_documented_acl_is_enough_and_least(without):
    page = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
    rules = " ".join(re.search(r"ACL SETUSER (bot .*?)```", page, re.DOTALL)[1].split()).replace(
        "SECRET", "secret"
    )
    assert without in rules
    with RedisServer(acl=[rules.replace(without, "")]) as server:
        url = f"redis://bot:secret@127.0.0.1:{server.port}"
        async with LockGuard.from_url(url) as guard, LockGuard.from_url(url) as other:
            async with guard.hold("x"):
                with pytest.raises(ResourceBusy):  # and nothing of a missing right
                    await other.hold("x", wait=timedelta(milliseconds=100)).__aenter__()
                waiting = asyncio.create_task(_once(other))
                async with asyncio.timeout(5):
                    while not (await guard.inspect("x")).waiters:
                        await asyncio.sleep(0.005)
                await guard.request_handover("x", reason="r")
            await waiting
            await guard.break_("x", reason="r")
        words = ("break", "x", "--reason", "r", "--yes", "--no-fence", "--redis", url)
        broken = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockguard", *words), stderr=asyncio.subprocess.PIPE
        )
        assert (await broken.communicate())[1] == b""
        assert broken.returncode == 0


async def test_tls_is_used_and_a_stranger_is_refused(redis_server, redis_url, certificate):
    authority, server_context = certificate
    secret = f":{redis_server.password}@"

    async def forward(reader, writer):
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0, ssl=server_context) as server:
        port = server.sockets[0].getsockname()[1]
        async with LockGuard.from_url(f"rediss://{secret}127.0.0.1:{port}?ssl_ca_certs={authority}") as guard:
            await _once(guard)
        async with LockGuard.from_url(
            f"rediss://{secret}127.0.0.1:{port}", wait=timedelta(milliseconds=100)
        ) as guard:
            with pytest.raises(QuorumUnavailable, match=r"(?i)certificate"):
                await _once(guard)


async def _pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@pytest.fixture
def certificate(tmp_path):
    """A private authority's file and a server context whose certificate it signed."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem", context


async def test_a_unix_socket_works():
    with RedisServer(unix_socket=True, password="secret") as server:
        async with LockGuard.from_url(server.unix_url) as guard:
            async with guard.hold("x"):
                pass


async def test_another_database_number_is_used():
    with RedisServer() as server:
        async with (
            LockGuard.from_url(server.url[:-1] + "3") as guard,
            LockGuard.from_url(server.url) as other,
        ):
            async with guard.hold("x"):
                assert not (await other.inspect("x")).held
                assert (await guard.inspect("x")).held


async def _once(guard):
    async with guard.hold("x"):
        pass


async def test_the_older_protocol_works_with_a_second_connection_to_listen(redis_url):
    async with LockGuard.from_url(f"{redis_url}?protocol=2") as guard, LockGuard.from_url(redis_url) as other:
        async with other.hold("x"):
            waiting = asyncio.create_task(_once(guard))
            async with asyncio.timeout(5):
                while not (await other.inspect("x")).waiters:
                    await asyncio.sleep(0.005)
            released_at = asyncio.get_running_loop().time()
        await waiting
        assert asyncio.get_running_loop().time() - released_at < 0.5, "it was woken, not timed out"
