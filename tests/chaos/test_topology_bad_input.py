"""What a user gets wrong about the servers is told in one line that names the value and the remedy."""

from __future__ import annotations

import asyncio
import logging

import hiredis
import pytest

from lockguard import ConfigurationError, LockGuard, LockguardError
from lockguard_lab.servers import IndependentRedis, SentinelRedis

NAME = "binance:APTUSDT"


@pytest.fixture(scope="module")
def sentinel():
    with SentinelRedis(1, 1, password="") as setup:
        yield setup


async def told(*urls, **options) -> str:
    """What the user reads."""
    with pytest.raises(LockguardError) as caught:
        async with LockGuard.from_urls(list(urls), **options) as guard:
            async with guard.hold(NAME, on_busy="raise"):
                raise AssertionError("the body ran")
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_url_of_the_wrong_kind_is_answered_with_the_right_one(sentinel, cluster):
    watcher = f"127.0.0.1:{sentinel.sentinels[0].port}"
    single = f"127.0.0.1:{sentinel.master.port}"
    member = f"127.0.0.1:{cluster.servers[0].port}"
    table = {
        f"redis+cluster://{single}": f"{single} is a single server; write redis:// for it",
        f"redis://{member}": f"{member} is part of a cluster; write redis+cluster:// for it",
        f"redis://{watcher}": f"{watcher} is a Sentinel; write redis+sentinel://host:port/service",
        f"redis+cluster://{watcher}": f"{watcher} is a Sentinel; write redis+sentinel://host:port/service",
        f"redis+sentinel://{single}/main": f"{single} is no Sentinel: give Sentinels",
        f"redis+sentinel://{member}/main": f"{member} is no Sentinel: give Sentinels",
        f"redis+sentinel://{watcher}/other": "no Sentinel knows 'other'",
    }
    for url, line in table.items():
        assert line in await told(url), url


async def test_a_server_that_is_given_twice_is_refused_however_it_is_written():
    with IndependentRedis(2, password="") as setup:
        a, b = (f"127.0.0.1:{server.port}" for server in setup.servers)
        for again in (a, f"user:pw@{a}", f"{a}/3", f"{a}?protocol=2"):
            assert f"{a}" in (line := await told(f"redis://{a}", f"redis://{b}", f"redis://{again}"))
            assert "is given twice; a server has one vote: give each server once" in line
        line = await told(f"redis://{a}", f"redis://{b}", f"redis://{a.replace('127.0.0.1', 'localhost')}")
        assert "are the same server" in line
    with pytest.raises(ConfigurationError, match="given twice"):
        LockGuard.from_urls(["redis://Host", "redis://b", "redis://host.:6379"])


async def test_a_replica_is_refused_beside_its_master_and_alone(sentinel):
    master, replica = sentinel.master, next(s for s in sentinel.servers if s is not sentinel.master)
    with pytest.warns(UserWarning, match="use an odd number"):
        line = await told(master.url, replica.url)
    assert "one replicates the other; a majority needs independent ones" in line
    assert f"is a replica of 127.0.0.1:{master.port}; give its master" in await told(replica.url)


async def test_an_old_redis_is_refused_with_its_version_and_the_one_that_is_needed():
    info = b"# Server\r\nredis_version:6.0.16\r\nredis_mode:standalone\r\nrole:master\r\n"

    async def serve(reader, writer):
        parser = hiredis.Reader()
        while data := await reader.read(4096):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                word = command[0].upper()
                if word == b"HELLO":
                    writer.write(b"-NOPROTO unsupported\r\n")
                elif word == b"INFO":
                    writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
                else:
                    writer.write(b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        line = await told(f"redis://127.0.0.1:{port}")
    assert f"127.0.0.1:{port} is 6.0.16; lockguard needs 6.2 or newer" in line


async def test_a_policy_that_evicts_is_warned_of_on_every_kind_of_node(sentinel, cluster, ask, caplog):
    for setup in (sentinel, cluster):
        for server in setup.servers:
            ask(server, "CONFIG", "SET", "maxmemory", "100mb")
            ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="lockguard"):
            async with LockGuard.from_url(setup.url) as guard:
                async with guard.hold(NAME):
                    pass
        lines = [
            record.getMessage() for record in caplog.records if "maxmemory-policy" in record.getMessage()
        ]
        assert lines
        assert "allkeys-lru" in lines[0]
        assert "set noeviction" in lines[0]
        for server in setup.servers:
            ask(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")
