"""TLS with a private authority and users with the least rights, behind Sentinel and in a cluster."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from redis.crc import key_slot

from lockguard import LockGuard, QuorumUnavailable
from lockguard_lab.servers import ClusterRedis, RedisServer, SentinelRedis, TlsFiles, find_system_redis
from tests.tls_files import issued

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
SYSTEM = find_system_redis()

needs_tls = pytest.mark.skipif(
    SYSTEM is None, reason="no redis-server 7 or newer on PATH, and the servers of the wheels know no TLS"
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> TlsFiles:
    return issued(tmp_path_factory.mktemp("tls") / "ours", trustme.CA())


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> TlsFiles:
    return issued(tmp_path_factory.mktemp("tls") / "theirs", trustme.CA())


@pytest.fixture(scope="module", params=["sentinel", "cluster", "one"])
def setup(request, ours):
    match request.param:
        case "sentinel":
            made = SentinelRedis(1, tls=ours, binary=SYSTEM)
        case "cluster":
            made = ClusterRedis(3, tls=ours, binary=SYSTEM)
        case _:
            made = RedisServer(tls=ours, binary=SYSTEM)
    with made:
        yield made


def url_of(setup) -> str:
    return setup.tls_url if isinstance(setup, RedisServer) else setup.url


@needs_tls
async def test_every_connection_uses_tls_and_locks_are_handed_over(setup, ask):
    url = url_of(setup)
    assert url.startswith("rediss")
    async with LockGuard.from_url(url) as guard, LockGuard.from_url(url) as other:
        async with guard.hold(NAME):
            waiting = asyncio.create_task(_once(other))
            async with asyncio.timeout(10):
                while not (await guard.inspect(NAME)).waiters:
                    await asyncio.sleep(0.005)
            servers = [setup] if isinstance(setup, RedisServer) else setup.servers
            ours = [line for server in servers for line in _clients(ask, server) if "name=lockguard" in line]
            ports = {line.split("laddr=127.0.0.1:")[1].split()[0] for line in ours}
            assert ours
            assert ports <= {str(server.told_port) for server in servers}
        async with asyncio.timeout(5):
            await waiting


def _clients(ask, server):
    listed = ask(server, "CLIENT", "LIST")
    lines = listed if isinstance(listed, list) else listed.splitlines()
    return [
        " ".join(f"{k}={v}" for k, v in line.items()) if isinstance(line, dict) else line for line in lines
    ]


async def _once(guard):
    async with guard.hold(NAME):
        pass


async def refused(url, because="") -> str:
    """What is told; asked again until it is the wanted cause, as on a busy machine a first answer is late."""
    async with asyncio.timeout(30):
        while because not in (told := await refused_once(url)):
            assert "no answer within" in told
    return told


async def refused_once(url) -> str:
    with pytest.raises(QuorumUnavailable) as caught:
        async with LockGuard.from_url(url) as guard:
            async with guard.hold(NAME, on_busy="raise"):
                raise AssertionError("the body ran")
    return str(caught.value)


@needs_tls
async def test_a_wrong_authority_a_missing_certificate_and_no_tls_are_each_told_in_one_line(
    setup, ours, theirs
):
    url = url_of(setup)
    place, _, _ = url.partition("?")
    stranger = await refused(url.replace(ours.query, theirs.query), "certificate verify failed")
    if not isinstance(setup, SentinelRedis):
        assert "give the authority that signed its certificate as ?ssl_ca_certs=FILE" in stranger
    unsigned = await refused(f"{place}?ssl_ca_certs={quote(str(ours.authority), safe='')}", "certificate")
    plain = await refused(place.replace("rediss", "redis", 1))
    if isinstance(setup, RedisServer):
        assert "as from a port that speaks none" in await refused(setup.url.replace("redis", "rediss", 1))
    for told in (stranger, unsigned, plain):
        assert "\n" not in told
        assert "127.0.0.1" in told


@needs_tls
async def test_a_failover_and_a_moved_slot_keep_to_tls(setup):
    if isinstance(setup, RedisServer):
        return
    async with LockGuard.from_url(url_of(setup)) as guard:
        await _once(guard)
        if isinstance(setup, SentinelRedis):
            await asyncio.to_thread(setup.failover)
        else:
            slot = key_slot(NAME.encode())
            there = setup.servers[(setup.servers.index(setup.owner_of(slot)) + 1) % 3]
            await asyncio.to_thread(setup.move_slot, slot, there)
        async with asyncio.timeout(20):
            async with guard.hold(NAME, wait=timedelta(seconds=20)):
                pass


def documented(user: str) -> list[str]:
    """The words of an ``ACL SETUSER`` that the page prints."""
    rules = re.search(rf"ACL SETUSER ({user} .*?)```", PAGE, re.DOTALL)[1]
    return rules.replace("SECRET", "secret").split()


def more_for(subject: str) -> list[str]:
    """The further rights that the page lists for a kind of node."""
    line = re.search(rf"^\| {subject} \| (.*?) \|", PAGE, re.MULTILINE)[1]
    return [word for word in line.replace("`", "").replace("\\|", "|").split() if word.startswith("+")]


async def contended(url, until):
    """Everything that a bot does: lock, wait, be woken, ask for and break a lease."""
    async with LockGuard.from_url(url) as guard, LockGuard.from_url(url) as other:
        for _ in range(2):
            async with guard.hold(NAME):
                waiting = asyncio.create_task(_once(other))
                async with asyncio.timeout(10):
                    while not (await guard.inspect(NAME)).waiters:
                        await asyncio.sleep(0.005)
                await guard.request_handover(NAME, reason="r")
            async with asyncio.timeout(5):
                await waiting
            await guard.break_(NAME, reason="r")
        return other


async def test_the_documented_users_are_enough_behind_sentinel(ask, until):
    with SentinelRedis(1, password="") as setup:
        for server in setup.servers:
            ask(server, "ACL", "SETUSER", *documented("bot"))
        for sentinel in setup.sentinels:
            ask(sentinel, "ACL", "SETUSER", *documented("watcher"))
        url = setup.url.replace("sentinel://", "sentinel://bot:secret@")
        await contended(f"{url}?sentinel_username=watcher&sentinel_password=secret", until)
        denied = [entry["object"] for server in setup.servers for entry in _denied(ask, server)]
        assert set(denied) <= {"script|load", "client|kill", "info"}  # which the page says it does without


async def test_the_documented_users_are_enough_in_a_cluster_and_wake_on_the_shard(ask, until):
    with ClusterRedis(3, password="") as setup:
        for server in setup.servers:
            ask(server, "ACL", "SETUSER", *documented("bot"), *more_for("Cluster"))
        other = await contended(setup.url.replace("cluster://", "cluster://bot:secret@"), until)
        assert other is not None
        denied = [entry["object"] for server in setup.servers for entry in _denied(ask, server)]
        assert set(denied) <= {"script|load", "client|kill", "info"}


def _denied(ask, server):
    return ask(server, "ACL", "LOG", 100)


@needs_tls
@pytest.mark.parametrize("setup", ["cluster"], indirect=True)
async def test_a_certificate_is_checked_against_the_mapped_address(setup):
    """Not against the announced name, which is that of the servers' own network."""
    for number, server in enumerate(setup.servers):
        server.command("CONFIG", "SET", "cluster-announce-hostname", f"shard-{number}.invalid")
        server.command("CONFIG", "SET", "cluster-preferred-endpoint-type", "hostname")
    try:
        async with asyncio.timeout(20):
            while any(str(each.command("CLUSTER", "SLOTS")).count(".invalid") < 3 for each in setup.servers):
                await asyncio.sleep(0.05)
        names = [f"x:{number}" for number in range(12)]  # on every shard

        async def all_held(host: str, query: str = "") -> None:
            url = f"{setup.url}{query}"
            async with LockGuard.from_url(url, address_map=lambda announced: (host, announced[1])) as guard:
                async with guard.hold_many(names, wait=timedelta(seconds=5)):
                    pass

        await all_held("127.0.0.1")
        with pytest.raises(QuorumUnavailable):
            await all_held("127.1")  # the same address, by a name that the certificate lacks
        await all_held("127.1", "&ssl_check_hostname=false")
    finally:
        for server in setup.servers:
            server.command("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
