"""Credentials that are fetched anew for each log-in: passwords that rotate, sources that fail or hang."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from redis.credentials import CredentialProvider

from lockguard import ConfigurationError, LockGuard, QuorumUnavailable
from lockguard_lab.servers import ClusterRedis, IndependentRedis, RedisServer, SentinelRedis
from tests.chaos.failures import at_most

NAME = "binance:APTUSDT"
FIRST, SECOND = "first-hunter2", "second-hunter3"
ACL = "~* &* +@all"


class Vault:
    """Keeps the password that rotates."""

    def __init__(self, password=FIRST, user="bot"):
        self.user, self.password = user, password
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return self.user, self.password

    async def later(self):
        await asyncio.sleep(0)
        return self()


@pytest.fixture
def server():
    with RedisServer(acl=[f"bot on >{FIRST} {ACL}"]) as started:
        yield started


def url_of(server):
    return f"redis://127.0.0.1:{server.port}/0"


def rotate(server):
    server.command("ACL", "SETUSER", "bot", "resetpass", f">{SECOND}")


def kill_clients(server):
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    server.command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")


async def once(guard, **options):
    async with guard.hold(NAME, **options) as lease:
        return lease


@pytest.mark.parametrize("options", ["", "?protocol=2"])
@pytest.mark.parametrize("how", ["plain", "coroutine"])
async def test_a_held_lease_outlives_a_rotated_password_and_a_cut_connection(server, until, options, how):
    vault = Vault()
    async with LockGuard.from_url(
        url_of(server) + options,
        ttl=timedelta(seconds=3),
        credentials=vault if how == "plain" else vault.later,
    ) as guard:
        async with guard.hold(NAME) as lease:
            assert server.command("HGET", f"lockguard:{{{NAME}}}", "grant") == lease.grant.id
            rotate(server)
            kill_clients(server)  # the old password is asked for and refused, until the vault has the new one
            await until(lambda: vault.calls >= 3)
            first = lease.deadline
            vault.password = SECOND
            await until(lambda: lease.deadline > first)
            await lease.confirm()
        await once(guard)


async def test_a_source_that_fails_once_and_then_works_is_asked_again(server, caplog):
    calls = []

    def fails_once():
        calls.append(threading.current_thread())
        if len(calls) == 1:
            raise RuntimeError(f"the token service does not know {FIRST}")
        return "bot", FIRST

    with caplog.at_level(logging.DEBUG):
        async with LockGuard.from_url(url_of(server), credentials=fails_once) as guard:
            await once(guard)
    assert len(calls) == 2
    assert all(thread is not threading.main_thread() for thread in calls)
    assert FIRST not in caplog.text


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (lambda: 1 / 0, "raised ZeroDivisionError"),
        (lambda: None, "gave a NoneType"),
        (lambda: "", "gave an empty password"),
        (lambda: b"hunter2", "gave a bytes"),
        (lambda: ("bot", None), "gave a tuple of something else"),
        (lambda: ("bot", "a", "b"), "gave a tuple of something else"),
        (lambda: exec("raise SystemExit"), "raised SystemExit"),
        (lambda: next(iter(())), "raised StopIteration"),
        (lambda: ("bot", "hunter2\udcff"), "gave a password that is no text in UTF-8"),
        (lambda: ("bot\udcff", "hunter2"), "gave a user that is no text in UTF-8"),
        (lambda: ("bot", "wrong-hunter2"), "WRONGPASS"),
    ],
)
async def test_what_is_wrong_with_a_source_is_one_line_without_the_secret(server, source, told):
    async with LockGuard.from_url(url_of(server), credentials=source) as guard:
        with pytest.raises(QuorumUnavailable) as refused:
            await once(guard, on_busy="raise")
    line = str(refused.value)
    assert told in line
    assert "credentials=" in line
    assert "\n" not in line
    assert "hunter2" not in line
    assert "hunter2" not in repr(guard)


async def test_a_refusal_that_tells_what_to_do_has_no_second_remedy_behind_it(server):
    async with LockGuard.from_url(url_of(server), credentials=lambda: ("bot", "wrong")) as guard:
        for _ in range(2):  # the first attempt's own refusal, and what is told of the connection afterwards
            with pytest.raises(QuorumUnavailable, match="WRONGPASS") as refused:
                await once(guard, on_busy="raise")
            assert "check the URL" not in str(refused.value)
    with pytest.raises(QuorumUnavailable, match="; check the URL and that the server runs"):
        await once(LockGuard.from_url("redis://127.0.0.1:1"), on_busy="raise")


@pytest.mark.parametrize("kind", ["one server", "cluster"])
async def test_a_thousand_callers_ask_a_source_that_fails_no_oftener_than_one_does(server, kind):
    vault = Vault("wrong-hunter2")
    refused = 0

    async def caller(guard):
        nonlocal refused
        with pytest.raises(QuorumUnavailable):
            await once(guard, wait=timedelta(seconds=1))
        refused += 1

    with ClusterRedis(3) if kind == "cluster" else contextlib.nullcontext() as cluster:
        url = url_of(server) if cluster is None else f"redis+cluster://127.0.0.1:{cluster.servers[0].port}"
        started = time.monotonic()
        async with LockGuard.from_url(url, credentials=vault) as guard:
            await asyncio.gather(*(caller(guard) for _ in range(1000)))
        seconds = time.monotonic() - started
    assert refused == 1000
    # At once, after pauses that add up to 0.8 s, and then every half second.
    assert 2 <= vault.calls <= 6 + seconds / 0.5


async def test_a_source_that_is_cancelled_from_within_is_one_that_failed(server):
    async def cancelled():
        raise asyncio.CancelledError

    async with LockGuard.from_url(url_of(server), credentials=cancelled) as guard:
        with pytest.raises(QuorumUnavailable, match="cancelled from within"):
            await once(guard, on_busy="raise")


@pytest.mark.parametrize("blocks", [True, False])
async def test_a_source_that_hangs_outlasts_no_caller_and_leaves_nothing(server, blocks):
    threads, resume = threading.active_count(), threading.Event()

    async def hang():
        await asyncio.Event().wait()

    source: Any = resume.wait if blocks else hang
    guard = LockGuard.from_url(url_of(server), credentials=source)
    for _ in range(3):
        with at_most(0.5 + 0.8), pytest.raises(QuorumUnavailable, match="credentials= has given none yet"):
            await once(guard, wait=timedelta(seconds=0.5))
    assert threading.active_count() <= threads + 1  # however often it is tried
    with at_most(1):
        await guard.aclose()
    resume.set()
    assert [task.get_name() for task in asyncio.all_tasks() if "lockguard" in task.get_name()] == []


async def test_a_plain_source_that_hung_once_keeps_nobody_out_for_ever(server, monkeypatch):
    monkeypatch.setattr("lockguard._nodes.credentials._WITHIN_S", 0.1)
    monkeypatch.setattr("lockguard._nodes.credentials._HUNG_S", 0.3)
    vault, resume, calls = Vault(), threading.Event(), []

    def source():
        calls.append(None)
        if len(calls) == 1:
            resume.wait()
        return vault()

    try:
        async with LockGuard.from_url(url_of(server), credentials=source) as guard:
            await once(guard, wait=timedelta(seconds=20))
    finally:
        resume.set()
    assert len(calls) == 2


KINDS = {
    "quorum": (lambda: IndependentRedis(3), lambda setup: setup.urls),
    "sentinel": (lambda: SentinelRedis(1), lambda setup: [setup.url]),
    "cluster": (lambda: ClusterRedis(3), lambda setup: [setup.url]),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_every_topology_logs_in_with_them_and_again_after_a_rotation(kind, until):
    make, urls_of = KINDS[kind]
    with make() as setup:
        for server in setup.servers:
            server.command("ACL", "SETUSER", "bot", "on", f">{FIRST}", *ACL.split())
        secret = setup.servers[0].password
        urls = [url.replace(f"default:{secret}@", "") for url in urls_of(setup)]
        assert all("@" not in url for url in urls)
        vault = Vault()
        async with LockGuard.from_urls(urls, credentials=vault, ttl=timedelta(seconds=5)) as guard:
            names = [f"x:{number}" for number in range(8)]  # on every shard
            async with guard.hold_many(names) as leases:
                before = vault.calls
                assert before >= 1
                vault.password = SECOND
                for server in setup.servers:
                    rotate(server)
                    kill_clients(server)
                first = [lease.deadline for lease in leases]
                await until(lambda: all(lease.deadline > at for lease, at in zip(leases, first, strict=True)))
                assert vault.calls > before
            await once(guard)


class Provider(CredentialProvider):
    def get_credentials(self):
        return ("bot", FIRST)


class OnlyPassword(CredentialProvider):
    async def get_credentials_async(self):
        return (FIRST,)


async def test_a_provider_of_redis_py_is_taken_and_a_user_of_the_url_stays(server):
    async with LockGuard.from_url(url_of(server), credentials=Provider()) as guard:
        await once(guard)
    with_user = url_of(server).replace("redis://", "redis://bot@")
    for source in (OnlyPassword(), lambda: FIRST, lambda: (None, FIRST)):
        async with LockGuard.from_url(with_user, credentials=source) as guard:
            await once(guard)


@pytest.mark.parametrize(
    "url",
    [
        "redis://bot:hunter2@h/0",
        "redis://h?password=hunter2",
        "redis+sentinel://bot:hunter2@h/main",
        "redis+cluster://bot:hunter2@h:1,h:2",
    ],
)
def test_two_ways_to_give_a_password_are_refused(url):
    for make in (LockGuard.from_url, lambda url, **options: LockGuard.from_urls([url], **options)):
        with pytest.raises(ConfigurationError, match="leave one of them out") as refused:
            make(url, credentials=Vault())
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigurationError, match="leave one of them out"):
        LockGuard.from_urls(["redis://a", "redis://:hunter2@b", "redis://c"], credentials=Vault())


@pytest.mark.parametrize("wrong", ["hunter2", ("bot", "hunter2"), Vault, 7, b"hunter2"])
def test_credentials_that_cannot_be_called_are_refused(wrong):
    with pytest.raises(ConfigurationError, match="credentials= is") as refused:
        LockGuard.from_url("redis://h", credentials=wrong)
    assert "hunter2" not in str(refused.value)


def test_a_guard_in_memory_has_nowhere_to_log_in():
    with pytest.raises(ConfigurationError, match="no servers"):
        LockGuard.in_memory(credentials=Vault())
