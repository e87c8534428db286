"""Links that die and nobody is told, names that mean another server, and resolvers that hang."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from datetime import timedelta

import pytest

from lockguard import LockGuard, QuorumUnavailable
from lockguard_lab.servers import FaultProxy, Flow, RedisServer, ReplicatedRedis
from tests.chaos.failures import at_most

NAME = "binance:APTUSDT"
SERVICE = "redis.prod.test"


@pytest.fixture
async def link(redis_server, redis_url):
    async with FaultProxy(redis_server.port) as proxy:
        yield proxy, proxy.url_for(redis_url)


async def once(guard, **options):
    async with guard.hold(NAME, **options) as lease:
        return lease


async def test_a_call_over_a_link_that_died_silently_is_served_within_a_second(link):
    proxy, url = link
    async with LockGuard.from_url(url) as guard:
        await once(guard)
        for _ in range(2):
            proxy.forget()
            with at_most(1.0):
                await once(guard, on_busy="raise")


@pytest.mark.parametrize("options", ["", "?protocol=2"])
@pytest.mark.parametrize("ttl_s", [0.6, 3])
async def test_a_lease_outlives_a_link_that_dies_silently(link, until, ttl_s, options):
    proxy, url = link
    async with LockGuard.from_url(url + options, ttl=timedelta(seconds=ttl_s)) as guard:
        async with guard.hold(NAME) as lease:
            proxy.forget()
            first_deadline = lease.deadline
            await until(lambda: lease.deadline > first_deadline + 0.3 * ttl_s, within_s=2 * ttl_s)


async def test_a_lease_outlives_a_link_that_dies_silently_right_behind_a_slow_reply(link, until):
    proxy, url = link
    async with LockGuard.from_url(url, ttl=timedelta(seconds=2)) as guard:
        async with guard.hold(NAME) as lease:
            granted = lease.deadline
            proxy.to_client.set(Flow(latency=timedelta(seconds=0.35)))
            await until(lambda: lease.deadline > granted, within_s=2)
            proxy.heal()
            proxy.forget()
            renewed = lease.deadline
            await until(lambda: lease.deadline > renewed, within_s=2)
            lease.ensure()


@pytest.mark.parametrize(("options", "dies"), [("", 2), ("?protocol=2", 2), ("?protocol=2", 3)])
async def test_a_lease_outlives_a_link_that_dies_silently_and_so_does_the_one_that_replaces_it(
    link, until, options, dies
):
    """The new one dies in the middle of its log-in: the wire for commands, or the one for messages."""
    proxy, url = link
    async with LockGuard.from_url(url + options, ttl=timedelta(seconds=3)) as guard:
        async with guard.hold(NAME) as lease:
            connected = proxy.connections
            proxy.to_client.set(Flow(latency=timedelta(seconds=0.05)))  # so that a log-in takes its time
            proxy.forget()
            first_deadline = lease.deadline
            await until(lambda: proxy.connections == connected + dies - 1, within_s=3)
            proxy.forget()
            await until(lambda: lease.deadline > first_deadline, within_s=3)
            lease.ensure()


async def test_a_link_that_is_only_slow_is_kept(link, ask, redis_server):
    """A round trip that takes longer than the first doubt: each answer comes on the one connection."""
    proxy, url = link
    async with LockGuard.from_url(url, ttl=timedelta(seconds=3)) as guard:
        await once(guard)
        connection = guard._core.locks.nodes[0]._connection
        first = connection._wire
        proxy.to_client.set(Flow(latency=timedelta(seconds=0.35)))
        for _ in range(3):
            await once(guard, on_busy="raise")
        assert connection._wire is first


async def test_a_hung_server_keeps_a_first_call_for_no_longer_than_the_two_seconds_of_the_page():
    with RedisServer(password="") as server:
        async with LockGuard.from_url(server.url) as guard:
            await once(guard)
            server.pause()
            with at_most(2.6), pytest.raises(QuorumUnavailable):
                await once(guard, on_busy="raise")
            server.resume()
            await once(guard)


@pytest.mark.parametrize("nodes", [1, 3])
async def test_a_hung_server_does_not_outlast_a_caller_s_patience(nodes):
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(password="")) for _ in range(nodes)]
        async with LockGuard.from_urls([server.url for server in servers]) as guard:
            await once(guard)
            for server in servers:
                server.pause()
            for patience_s in (0, 0.7):
                with at_most(patience_s + 0.8), pytest.raises(QuorumUnavailable):
                    await once(guard, wait=timedelta(seconds=patience_s))
            for server in servers:
                server.resume()
            await once(guard)


async def test_a_primary_that_moves_behind_its_name_is_followed(until, ask):
    """The old one lives on as a replica: all that it says is READONLY."""
    with ReplicatedRedis(1, password="") as setup:
        old, new = setup.servers
        async with FaultProxy(old.port) as service:
            url = service.url_for(old.url)
            async with LockGuard.from_url(url) as guard, LockGuard.from_url(url) as waiting:
                async with guard.hold(NAME) as lease:
                    queued = asyncio.create_task(once(waiting))
                    await until(lambda: ask(new, "ZCARD", f"lockguard:{{{NAME}}}:queue") == 1)
                    ask(new, "REPLICAOF", "NO", "ONE")
                    ask(old, "REPLICAOF", "127.0.0.1", new.port)
                    service.redirect(new.port)
                    first_deadline = lease.deadline
                    await until(lambda: lease.deadline > first_deadline, within_s=5)
                assert (await queued).token > lease.token
                with at_most(1.0):
                    await once(guard, on_busy="raise")


def dead_address(port):
    """127.0.0.2, where nobody answers: the queue of those who want to connect is full."""
    listener = socket.socket()
    listener.bind(("127.0.0.2", port))
    listener.listen(0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.2", port))
    return [listener, *fillers]


def names(monkeypatch, answer):
    """Have ``answer`` tell the addresses of SERVICE."""
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *args, **options):
        if host != SERVICE:
            return real(host, port, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answer()]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the whole of 127.0.0.0/8")
async def test_a_name_whose_first_address_is_dead_costs_less_than_a_second(
    redis_server, redis_url, monkeypatch
):
    names(monkeypatch, lambda: ["127.0.0.2", "127.0.0.1"])
    dead = dead_address(redis_server.port)
    try:
        async with LockGuard.from_url(redis_url.replace("127.0.0.1", SERVICE)) as guard:
            with at_most(1.0):
                await once(guard, wait=timedelta(seconds=1))
    finally:
        for one in dead:
            one.close()


async def test_a_name_is_looked_up_for_each_connection(link, monkeypatch, until):
    proxy, url = link
    asked = []
    names(monkeypatch, lambda: asked.append(1) or ["127.0.0.1"])
    async with LockGuard.from_url(url.replace("127.0.0.1", SERVICE)) as guard:
        await once(guard)
        before = len(asked)
        proxy.reset()
        await until(lambda: len(asked) > before)
        await once(guard)


async def test_a_resolver_that_hangs_keeps_nobody_longer_than_its_patience_and_one_thread(
    redis_url, monkeypatch
):
    answered = threading.Event()

    def hang():
        answered.wait(20)
        return ["127.0.0.1"]

    names(monkeypatch, hang)
    guard = LockGuard.from_url(redis_url.replace("127.0.0.1", SERVICE))
    for _ in range(3):
        with at_most(1.5), pytest.raises(QuorumUnavailable):
            await once(guard, wait=timedelta(seconds=0.2))
    assert len([one for one in threading.enumerate() if SERVICE in one.name]) == 1
    answered.set()
    await once(guard)
    await guard.aclose()


PROGRAM = """
import asyncio, socket, sys, threading
from datetime import timedelta
from lockguard import LockGuard, QuorumUnavailable

socket.getaddrinfo = lambda *_, **__: threading.Event().wait()

async def main():
    async with LockGuard.from_url(sys.argv[1]) as guard:
        try:
            async with guard.hold("x", wait=timedelta(seconds=0.2)):
                pass
        except QuorumUnavailable as error:
            print(error)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    "url",
    ["redis://redis.prod.test", "redis+sentinel://redis.prod.test/main", "redis+cluster://redis.prod.test"],
)
def test_a_resolver_that_hangs_does_not_keep_a_program_from_ending(url):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, url], check=False, timeout=15, capture_output=True, text=True
    )
    assert "redis.prod.test" in done.stdout
    assert done.returncode == 0, done.stderr
