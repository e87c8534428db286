"""Failovers: the lock is there again, tokens go on, and Postgres accepts one writer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
from datetime import timedelta

import pytest
import redis

from lockguard import ConfigurationError, LeaseLost, LeaseState, LockGuard, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.sentinel import SentinelUrl
from lockguard_lab.servers import FaultProxy, Flow, SentinelRedis

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
ANSWER_BYTES = 1_000
"""About as much as a Sentinel says of a master."""

FAILOVERS = int(os.environ.get("LOCKGUARD_FAILOVERS", "3"))
USABLE_AGAIN_S = 2.0
"""Promised is one second after the failover; a busy machine gets another."""


@pytest.fixture
def setup():
    with SentinelRedis(replicas=2, password="") as setup:
        yield setup


def master_of(guard):
    return guard._core.locks.nodes[0]._connection.address.port


async def hold_on_another_master(guard, old_port):
    """Hold once the guard speaks to another master; gives the token."""
    while True:
        try:
            async with guard.hold(NAME, wait=timedelta(seconds=20)) as lease:
                if master_of(guard) != old_port:
                    return lease.token
        except (QuorumUnavailable, LeaseLost):
            pass
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("fault", ["killed", "hung"])
async def test_the_lock_is_usable_soon_after_a_failover_and_tokens_go_on(setup, until, fault):
    async with LockGuard.from_url(setup.url) as guard:
        async with guard.hold(NAME) as lease:
            token = lease.token
        old = setup.master
        old.kill() if fault == "killed" else old.pause()
        using = asyncio.create_task(hold_on_another_master(guard, old.port))
        while await asyncio.to_thread(lambda: setup.master) is old:
            await asyncio.sleep(0.005)
        failed_over_at = SYSTEM_CLOCK.now()
        async with asyncio.timeout(20):
            assert await using > token
        assert SYSTEM_CLOCK.now() - failed_over_at < USABLE_AGAIN_S
        if fault == "hung":
            old.resume()


async def test_a_lease_that_was_replicated_outlives_a_failover(setup):
    async with LockGuard.from_url(setup.url, min_replicas=2, ttl=timedelta(seconds=6)) as guard:
        async with guard.hold(NAME) as lease:
            old, deadline = setup.master, lease.deadline
            await asyncio.to_thread(setup.failover)
            async with asyncio.timeout(10):
                while lease.deadline < deadline + 3 or master_of(guard) == old.port:
                    await asyncio.sleep(0.01)
            assert lease.state is LeaseState.HELD


async def test_a_failover_that_loses_the_last_write_ends_the_lease_and_the_next_token_is_higher(setup, ask):
    async with LockGuard.from_url(setup.url, ttl=timedelta(seconds=6)) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME):
                for replica in setup.servers:
                    if replica is not setup.master:
                        ask(replica, "CONFIG", "SET", "replica-read-only", "no")
                        ask(replica, "DEL", LOCK, f"{LOCK}:token", f"{LOCK}:history")
                await asyncio.to_thread(setup.failover)
                await asyncio.Event().wait()
        async with guard.hold(NAME) as lease:
            assert lease.token > caught.value.token


async def test_an_old_master_that_comes_back_and_takes_writes_is_left(setup, ledger, ask, until):
    options = {"ttl": timedelta(seconds=3), "fence": ledger.fence}
    async with (
        LockGuard.from_url(setup.url, **options) as first,
        LockGuard.from_url(setup.url, **options) as second,
    ):
        busy = True
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for guard in (first, second)]
        await until(lambda: ledger.commits > 5)
        old = setup.master
        old.pause()
        while await asyncio.to_thread(lambda: setup.master) is old:
            await asyncio.sleep(0.01)
        old.resume()  # it still thinks that it is the master, and takes writes until the Sentinels tell it
        await until(lambda: old.port not in (master_of(first), master_of(second)))
        since = ledger.commits
        await until(lambda: ledger.commits > since + 5)
        busy = False
        await asyncio.gather(*workers)
    assert await ledger.lost_updates() == 0


async def test_a_release_that_a_failover_lost_is_made_again_on_the_new_master(setup, ask):
    ttl = timedelta(seconds=60)
    async with LockGuard.from_url(setup.url, ttl=ttl) as guard, LockGuard.from_url(setup.url) as other:
        async with other.hold(NAME):
            pass
        async with guard.hold(NAME) as lease:
            grant = lease.grant.id
        for replica in setup.servers:
            if replica is not setup.master:  # as if it had heard of the grant and not of the release
                ask(replica, "CONFIG", "SET", "replica-read-only", "no")
                ask(replica, "HSET", LOCK, "grant", grant, "token", 1, "holder", "ghost")
                ask(replica, "PEXPIRE", LOCK, 60_000)
        old = setup.master
        await asyncio.to_thread(setup.failover)
        async with asyncio.timeout(5):
            await hold_on_another_master(other, old.port)


async def test_a_master_cut_off_with_a_guard_that_is_not_told_never_makes_two_writers(
    setup, ledger, until, cut_off
):
    """The first guard goes on with the old master, which takes writes; the second follows the Sentinels."""
    options = {"ttl": timedelta(seconds=2), "fence": ledger.fence}
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(FaultProxy(sentinel.port)) for sentinel in setup.sentinels]
        places = ",".join(f"127.0.0.1:{link.port}" for link in links)
        untold = f"redis+sentinel://{places}/{setup.service}/0"
        first = await stack.enter_async_context(LockGuard.from_url(untold, **options))
        second = await stack.enter_async_context(LockGuard.from_url(setup.url, **options))
        busy = True
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for guard in (first, second)]
        await until(lambda: ledger.commits > 5)
        old = setup.master
        with cut_off(old):
            for link in links:
                link.partition()
            await until(lambda: master_of(second) != old.port, within_s=20)
            since, refused = ledger.commits, ledger.refused
            # Both hold at the same time, as soon as what the second left on the old master has expired there;
            # the fence takes the writes of one of them.
            await until(lambda: ledger.commits > since + 20 and ledger.refused > refused, within_s=30)
            assert master_of(first) == old.port
        for link in links:
            link.heal()
            link.reset()
        await until(lambda: master_of(first) == master_of(second), within_s=20)
        since = ledger.commits
        await until(lambda: ledger.commits > since + 5, within_s=20)
        busy = False
        await asyncio.gather(*workers)
    assert await ledger.lost_updates() == 0
    assert ledger.fallen == 0


async def test_a_lease_outlives_sentinels_whose_links_died_silently(setup, ask, until):
    """Its connection to the master ends, and no Sentinel that was connected says where the master is."""
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(FaultProxy(sentinel.port)) for sentinel in setup.sentinels]
        places = ",".join(f"127.0.0.1:{link.port}" for link in links)
        url = f"redis+sentinel://{places}/{setup.service}/0"
        guard = await stack.enter_async_context(LockGuard.from_url(url, ttl=timedelta(seconds=2)))
        async with guard.hold(NAME) as lease:
            for link in links:
                link.forget()
            ask(setup.master, "CLIENT", "KILL", "TYPE", "pubsub")
            first_deadline = lease.deadline
            await until(lambda: lease.deadline > first_deadline, within_s=2)
            lease.ensure()


async def test_a_sentinel_that_is_far_away_is_not_connected_anew_for_each_question(setup, until):
    async with FaultProxy(setup.sentinels[0].port) as link:
        url = f"redis+sentinel://127.0.0.1:{link.port}/{setup.service}/0"
        async with LockGuard.from_url(url) as guard:
            async with guard.hold(NAME):
                link.to_client.set(Flow(latency=timedelta(seconds=0.35)))
                async with asyncio.timeout(20):
                    while not await three_answers_on_one_connection(link, until):
                        pass


async def three_answers_on_one_connection(link, until):
    known, answered = link.accepted, link.to_client.received_bytes
    three_bytes = 3 * ANSWER_BYTES
    await until(lambda: link.to_client.received_bytes > answered + three_bytes or link.accepted > known)
    return link.accepted == known


async def test_a_holder_cut_off_from_the_master_ends_before_anybody_else_can_begin(setup):
    async with contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(FaultProxy(setup.master.port))
        guard = await stack.enter_async_context(
            LockGuard.from_url(link.url_for(setup.master.url), ttl=timedelta(seconds=2))
        )
        other = await stack.enter_async_context(LockGuard.from_url(setup.url))
        async with other.hold(NAME):
            pass
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                link.partition()
                waiting = asyncio.create_task(_held_at(other))
                await asyncio.Event().wait()
        ended_at = SYSTEM_CLOCK.now()
        assert await waiting > ended_at
        link.heal()
        link.reset()
        async with asyncio.timeout(10):
            async with guard.hold(NAME, wait=timedelta(seconds=10)):
                pass


async def _held_at(guard):
    async with guard.hold(NAME, wait=timedelta(seconds=30)):
        return SYSTEM_CLOCK.now()


async def test_failovers_lose_no_update(setup, ledger, until):
    """LOCKGUARD_FAILOVERS sets how many; ``-s`` shows the figures."""
    options = {"ttl": timedelta(seconds=2), "fence": ledger.fence}
    async with (
        LockGuard.from_url(setup.url, **options) as first,
        LockGuard.from_url(setup.url, **options) as second,
    ):
        busy = True
        took_s: dict[str, list[float]] = {"ordered": [], "hung": [], "killed": []}
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for guard in (first, second, first)]
        await until(lambda: ledger.commits > 3)
        for number in range(FAILOVERS):
            how = {2: "hung", 6: "killed"}.get(number % 8, "ordered")
            await fail_over(setup, how)
            failed_over_at, new = SYSTEM_CLOCK.now(), setup.master.port
            await until(lambda new=new: {master_of(first), master_of(second)} == {new}, within_s=30)
            since = ledger.commits
            await until(lambda since=since: ledger.commits > since, within_s=30)
            took_s[how].append(SYSTEM_CLOCK.now() - failed_over_at)
        busy = False
        await asyncio.gather(*workers)
    lost = await ledger.lost_updates()
    print(
        f"{FAILOVERS} failovers: {ledger.commits} commits, {lost} lost updates, {ledger.fallen} tokens fell,"
        f" {ledger.refused} stale writes refused; usable after it within, in seconds:"
    )
    for how, times_s in took_s.items():
        if times_s:
            median_s, late = statistics.median(times_s), sum(time_s > 1 for time_s in times_s)
            print(f"  {len(times_s)} {how}: {median_s:.2f} median, {max(times_s):.2f} longest, {late} over 1")
    assert lost == ledger.fallen == 0
    every = [time_s for times_s in took_s.values() for time_s in times_s]
    assert statistics.median(every) < 1
    assert max(every) < 5  # a machine with nothing else to do: 1


async def fail_over(setup, how):
    """Have another server become the master; returns when it is."""
    old = setup.master
    if how == "ordered":
        await asyncio.to_thread(setup.failover)
        return
    old.kill() if how == "killed" else old.pause()
    while await asyncio.to_thread(lambda: setup.master) is old:
        await asyncio.sleep(0.005)
    if how == "killed":
        await asyncio.to_thread(old.restart)
    else:
        old.resume()


async def test_sentinels_that_are_gone_do_not_end_what_is_connected(setup):
    async with LockGuard.from_url(setup.url) as guard:
        async with guard.hold(NAME):
            pass
        setup.sentinels[0].kill()
        setup.sentinels[1].pause()
        setup.sentinels[2].kill()
        for _ in range(3):
            async with guard.hold(NAME) as lease:
                assert lease.state is LeaseState.HELD
        setup.sentinels[1].resume()


async def test_a_service_that_no_sentinel_knows_is_told_with_each_answer(setup):
    url = setup.url.replace("/main/", "/other/")
    async with LockGuard.from_url(url) as guard:
        with pytest.raises(QuorumUnavailable, match="no Sentinel knows 'other'"):
            async with guard.hold(NAME, on_busy="raise"):
                pass


def test_a_sentinel_url_is_read_with_its_credentials_and_shows_none():
    parsed = SentinelUrl.parse(
        "redis+sentinel://bot:secret@a:1,b,[::1]:3/main/2?sentinel_username=s&sentinel_password=hush"
    )
    assert [place.name for place in parsed.sentinels] == ["a:1", "b:26379", "[::1]:3"]
    assert parsed.sentinels[0].url.startswith("redis://s:hush@a:1")
    assert (parsed.service, parsed.master.db) == ("main", 2)
    assert (parsed.master.username, parsed.master.password) == ("bot", "secret")
    assert "hush" not in repr(parsed)
    assert "secret" not in repr(parsed)
    for wrong in ("redis+sentinel://a:1", "redis+sentinel:///main", "redis+sentinel://a/b/c/d"):
        with pytest.raises(ConfigurationError, match="redis\\+sentinel://host:port,host:port/service"):
            LockGuard.from_url(wrong)


async def test_passwords_of_servers_and_of_sentinels_are_used(setup, ask):
    for sentinel in setup.sentinels:
        ask(sentinel, "SENTINEL", "SET", setup.service, "auth-pass", "pw")
        ask(sentinel, "ACL", "SETUSER", "watcher", "on", ">hush", "+@all")
    for server in setup.servers:
        ask(server, "CONFIG", "SET", "masterauth", "pw")
        ask(server, "CONFIG", "SET", "requirepass", "pw")
    url = setup.url.replace("redis+sentinel://", "redis+sentinel://:pw@")
    async with LockGuard.from_url(f"{url}?sentinel_username=watcher&sentinel_password=hush") as guard:
        async with guard.hold(NAME) as lease:
            assert lease.state is LeaseState.HELD
    with pytest.raises(ConfigurationError, match="refused the log-in") as caught:
        async with LockGuard.from_url(url.replace(":pw@", ":wrong@")) as guard:
            await hold_on_another_master(guard, 0)
    assert "wrong" not in str(caught.value)
    assert "sentinel" not in str(caught.value)


async def refusal(url):
    """What is told, and that it is told at once."""
    with pytest.raises(ConfigurationError) as caught:
        async with LockGuard.from_url(url) as guard, guard.hold(NAME, on_busy="raise"):
            pass
    return str(caught.value)


async def test_sentinels_that_refuse_the_log_in_or_the_question_are_no_missing_master(setup, ask):
    """It is told as a mistake in the configuration, with its remedy: looking at servers mends nothing."""
    as_watcher = f"{setup.url}?sentinel_username=watcher&sentinel_password="
    for sentinel in setup.sentinels:
        ask(sentinel, "ACL", "SETUSER", "watcher", "on", ">hush", "-@all", "+@connection")
    told = await refusal(f"{as_watcher}wrong")
    assert "?sentinel_username= and &sentinel_password=" in told
    assert "wrong" not in told.replace(setup.url, "")
    told = await refusal(f"{as_watcher}hush")
    assert told.endswith("give their user +sentinel|master and +sentinel|get-master-addr-by-name")
    for sentinel in setup.sentinels:
        ask(sentinel, "ACL", "SETUSER", "watcher", "+sentinel|master", "+sentinel|get-master-addr-by-name")
    async with LockGuard.from_url(f"{as_watcher}hush") as guard, guard.hold(NAME) as lease:
        assert lease.state is LeaseState.HELD
    for sentinel in setup.sentinels:
        ask(sentinel, "ACL", "SETUSER", "default", "resetpass", ">hush")
    assert "sentinel_password" in await refusal(setup.url)
    setup.sentinels[0].stop()  # one that does not answer may be restarted, and tell: that is waited for
    async with LockGuard.from_url(setup.url) as guard:
        with pytest.raises(QuorumUnavailable, match="sentinel_password"):
            async with guard.hold(NAME, on_busy="raise"):
                pass
    ask_as(setup.sentinels[1], "ACL", "SETUSER", "default", "nopass")
    async with LockGuard.from_url(setup.url.replace("/main/", "/other/")) as guard:
        with pytest.raises(QuorumUnavailable, match="no Sentinel knows 'other'") as unknown:
            async with guard.hold(NAME, on_busy="raise"):
                pass
    assert "uthenticat" in str(unknown.value)  # of the one that does not let lockguard ask


async def test_a_sentinel_that_refuses_decides_nothing_for_others_that_are_slow(setup, ask):
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(FaultProxy(sentinel.port)) for sentinel in setup.sentinels]
        for link in links[1:]:
            link.to_client.set(Flow(latency=timedelta(seconds=0.35)))  # longer than is waited
        ask(setup.sentinels[0], "ACL", "SETUSER", "default", "resetpass", ">hush")
        places = ",".join(f"127.0.0.1:{link.port}" for link in links)
        url = f"redis+sentinel://{places}/{setup.service}/0"
        async with LockGuard.from_url(url) as guard, guard.hold(NAME, wait=timedelta(seconds=10)) as lease:
            assert lease.state is LeaseState.HELD


def ask_as(server, *command):
    """Say one command with the password that the test gave to the default user."""
    with redis.Redis(port=server.port, password="hush") as client:
        return client.execute_command(*command)
