"""Servers that announce addresses which only they themselves can reach, as behind a NAT or in containers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import pytest
from redis.crc import key_slot

from lockguard import ConfigurationError, LockGuard, QuorumUnavailable
from lockguard._nodes.address_map import AddressMap
from lockguard_lab.servers import ClusterRedis, SentinelRedis
from lockguard_lab.servers.topologies import wait_settled

NAMES = [f"x:{number}" for number in range(12)]
"""On every shard."""


@pytest.fixture(scope="module")
def cluster():
    """Its servers reach each other by IP, and tell clients names that nobody knows."""
    with ClusterRedis(3) as started:
        for number, server in enumerate(started.servers):
            server.command("CONFIG", "SET", "cluster-announce-hostname", f"shard-{number}.invalid")
            server.command("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
        yield started


def table_of(cluster):
    return {
        (f"shard-{number}.invalid", server.port): ("127.0.0.1", server.port)
        for number, server in enumerate(cluster.servers)
    }


@pytest.fixture
async def announced(cluster):
    """All servers have heard of all names."""
    async with asyncio.timeout(20):
        while any(
            str(server.command("CLUSTER", "SLOTS")).count(".invalid") < 3 for server in cluster.servers
        ):
            await asyncio.sleep(0.05)


async def all_held(guard):
    async with guard.hold_many(NAMES, wait=timedelta(seconds=5)) as leases:
        return len(leases)


@pytest.mark.usefixtures("announced")
@pytest.mark.parametrize("as_function", [False, True])
async def test_a_cluster_is_reached_with_the_map_only(cluster, as_function):
    table = table_of(cluster)
    async with LockGuard.from_url(cluster.url) as lost:
        with pytest.raises(QuorumUnavailable):
            async with lost.hold_many(NAMES, wait=timedelta(seconds=1)):
                pass
        with pytest.raises(QuorumUnavailable, match=r"shard-\d\.invalid:\d+: "):
            async with lost.hold_many(NAMES, on_busy="raise"):
                pass
    given: Any = (lambda announced: table.get(announced, announced)) if as_function else table
    async with LockGuard.from_url(cluster.url, address_map=given) as guard:
        assert await all_held(guard) == len(NAMES)
        async with guard.hold_many(NAMES):
            assert len([found async for found in guard.list("x:*")]) == len(NAMES)


@pytest.mark.usefixtures("announced")
async def test_a_slot_that_moves_is_followed_through_the_map(cluster):
    async with LockGuard.from_url(cluster.url, address_map=table_of(cluster)) as guard:
        await all_held(guard)
        slot = key_slot(b"lockguard:{x:1}")
        for to in cluster.servers:
            async with guard.hold("x:1", ttl=timedelta(seconds=5)) as lease:
                await asyncio.to_thread(cluster.move_slot, slot, to)
                await lease.confirm()
            async with guard.hold("x:1"):
                pass
        node: Any = guard._core.locks.nodes[0]
        known = node._map
        for (host, port), reached in table_of(cluster).items():  # a map that is read anew would hide a miss
            assert known.endpoint_in(f"{host}:{port}", by=known.shard_at(reached)) == reached


@pytest.mark.usefixtures("announced")
async def test_the_table_of_the_file_serves_every_command(cluster, tmp_path):
    table = "\n".join(f'"{a}:{b}" = "{c}:{d}"' for (a, b), (c, d) in table_of(cluster).items())
    (tmp_path / "lockguard.toml").write_text(f'redis = "{cluster.url}"\n[address_map]\n{table}\n')
    async with LockGuard.from_url(cluster.url, address_map=table_of(cluster)) as guard:
        async with guard.hold_many(NAMES):
            code, out, err = await command("ls", "--json", "x:*", directory=tmp_path)
            assert (code, err, out.count("\n")) == (0, "", len(NAMES))
    code, out, err = await command("doctor", "--json", "--watch", "0s", directory=tmp_path)
    assert (code, err) == (0, "")
    assert not [x for x in json.loads(out)["findings"] if x["code"] == "redis.unreachable"]


async def command(*words, directory):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("LOCKGUARD_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lockguard", *words),
        cwd=directory,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_a_master_and_its_successor_are_reached_with_the_map_only(monkeypatch):
    """The Sentinels announce a name that this process cannot look up, and their own servers can."""
    look_up = socket.getaddrinfo

    def here(host, *args, **options):
        if host == "localhost":
            raise socket.gaierror(socket.EAI_NONAME, "not known here")
        return look_up(host, *args, **options)

    with SentinelRedis(1) as setup:
        announce_names(setup)
        monkeypatch.setattr(socket, "getaddrinfo", here)
        async with LockGuard.from_url(setup.url) as lost:
            with pytest.raises(QuorumUnavailable, match="not known here"):
                async with lost.hold("x:1", wait=timedelta(seconds=1)):
                    pass
        table = {("localhost", server.port): ("127.0.0.1", server.port) for server in setup.servers}
        async with LockGuard.from_url(setup.url, address_map=table, ttl=timedelta(seconds=20)) as guard:
            async with guard.hold("x:1") as lease:
                await asyncio.to_thread(setup.failover)
                async with asyncio.timeout(10):
                    while str(setup.master.port) not in guard._core.locks.nodes[0].name:
                        await asyncio.sleep(0.05)
                await lease.confirm(within=timedelta(seconds=5))
            async with guard.hold("x:2"):
                pass


def announce_names(setup):
    """Have the Sentinels know all servers as localhost, and say so."""
    for server in setup.servers:
        server.command("CONFIG", "SET", "replica-announce-ip", "localhost")
    master = setup.master
    for sentinel in setup.sentinels:
        sentinel.command("SENTINEL", "CONFIG", "SET", "resolve-hostnames", "yes")
        sentinel.command("SENTINEL", "CONFIG", "SET", "announce-hostnames", "yes")
        sentinel.command("SENTINEL", "REMOVE", setup.service)
        sentinel.command("SENTINEL", "MONITOR", setup.service, "localhost", master.port, 2)
        sentinel.command("SENTINEL", "SET", setup.service, "auth-pass", master.password)
        sentinel.command("SENTINEL", "SET", setup.service, "down-after-milliseconds", 1000)
    names = ("localhost", "1", "2")
    wait_settled(
        lambda: all(known_of(sentinel, setup.service) == names for sentinel in setup.sentinels),
        "the names",
        setup,
    )


def known_of(sentinel, service):
    facts = sentinel.command("SENTINEL", "MASTER", service)
    known = dict(zip(facts[::2], facts[1::2], strict=True))
    return known["ip"], known["num-slaves"], known["num-other-sentinels"]


# --- what cannot work ---


async def _asks_somebody(announced):
    return announced


@pytest.mark.parametrize(
    "wrong",
    [
        7,
        "10.0.0.5:6379=localhost:7001",
        AddressMap,
        {"10.0.0.5:6379": "localhost:7001"},
        {("10.0.0.5", 6379): "localhost"},
        {("10.0.0.5", "6379"): ("localhost", 7001)},
        {("10.0.0.5", 6379): ("localhost", 70_000)},
        {("", 6379): ("localhost", 7001)},
        {("[fd00::5]", 6379): ("localhost", 7001)},
        {("shard-1", 6379): ("localhost", 7001), ("Shard-1", 6379): ("localhost", 7002)},
        _asks_somebody,
    ],
)
def test_a_map_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="address_map= ") as refused:
        LockGuard.from_url("redis+cluster://h:1", address_map=wrong)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("function", [lambda _: 1 / 0, lambda _: None, lambda _: ("h", "1")])
def test_a_function_that_fails_is_told_once_and_changes_nothing(function, caplog):
    with caplog.at_level(logging.WARNING):
        mapped = AddressMap(function)
        assert [mapped("Shard", 1), mapped("Shard", 2)] == [("Shard", 1), ("Shard", 2)]
    assert len(caplog.records) == 1
    assert "Shard:1" in caplog.text


def test_a_name_is_found_in_any_case_and_what_is_not_listed_stays():
    mapped = AddressMap({("Shard-1", 1): ("h", 2)})
    assert [mapped("sHARD-1", 1), mapped("Shard-1", 2)] == [("h", 2), ("shard-1", 2)]
