"""Five independent servers, and what happens to them: the guarantees hold, and it goes on by itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from lockguard import (
    ConfigurationError,
    LeaseLost,
    LeaseState,
    LockGuard,
    LossReason,
    QuorumUnavailable,
    ResourceBusy,
)
from lockguard._clock import SYSTEM_CLOCK
from lockguard._membership import QUARANTINE_UNKNOWN_MS, Quarantine, quarantine_for
from lockguard._namespace import NAMESPACE
from lockguard._nodes.login import ServerFacts, require
from lockguard._nodes.named import require_all_named
from lockguard.errors import NodeRefused
from lockguard.ports import Membership
from lockguard_lab.servers import FaultProxy, RedisServer
from tests.chaos.failures import ask, until

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
TTL = timedelta(seconds=1)
PATIENT = timedelta(seconds=1)
"""A node timeout that a busy machine does not reach by itself."""


@pytest.fixture
def servers():
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RedisServer(password="")) for _ in range(5)]


@contextlib.asynccontextmanager
async def guard_over(servers, **options) -> AsyncIterator[LockGuard]:
    options = {"ttl": TTL, "node_timeout": PATIENT} | options
    async with LockGuard.from_urls([server.url for server in servers], **options) as guard:
        yield guard


async def once(guard):
    began = SYSTEM_CLOCK.now()
    async with guard.hold(NAME):
        pass
    return SYSTEM_CLOCK.now() - began


async def test_a_hung_node_does_not_cost_its_connect_timeout_on_first_use(servers):
    async with guard_over(servers) as guard:  # the nodes are no longer new
        await once(guard)
    servers[4].pause()
    began = SYSTEM_CLOCK.now()
    async with guard_over(servers, node_timeout=timedelta(milliseconds=200)) as guard:
        await once(guard)
        assert SYSTEM_CLOCK.now() - began < 1.5  # connecting to a hung node takes 2 s
        servers[4].resume()
        await until(lambda: all(node.ready for node in guard._core.locks.nodes))


async def spent(guard, times=50, series=5):
    """Median and 95th percentile of taking the lock, in seconds; of the calmest of several series."""
    found = []
    for _ in range(series):
        took = []
        for _ in range(times):
            hold = guard.hold(NAME)
            began = SYSTEM_CLOCK.now()
            async with hold:
                took.append(SYSTEM_CLOCK.now() - began)
        found.append((statistics.median(took), sorted(took)[int(times * 0.95) - 1]))
    return min(median for median, _ in found), min(p95 for _, p95 in found)


async def test_a_dead_and_a_hung_node_cost_under_ten_milliseconds_each(servers):
    async with guard_over(servers) as guard:
        await once(guard)
        healthy = await spent(guard)
        servers[3].kill()
        await once(guard)
        one_dead = await spent(guard)
        servers[4].pause()
        await once(guard)  # which waits for it, once
        one_hung_too = await spent(guard)
        servers[4].resume()
    for before, after in ((healthy, one_dead), (one_dead, one_hung_too)):
        for kind, was_s, is_s in zip(("median", "p95"), before, after, strict=True):
            assert is_s - was_s < 0.010, f"{kind} rose by {is_s - was_s:.4f} s"
    states = zip(("healthy", "one dead", "one hung too"), (healthy, one_dead, one_hung_too), strict=True)
    print(
        *(f"{state}: {median * 1e3:.2f} ms, p95 {p95 * 1e3:.2f}" for state, (median, p95) in states), sep="; "
    )


async def test_a_split_with_a_silent_node_waits_for_it_once_and_not_again(servers):
    async with guard_over(servers, node_timeout=timedelta(milliseconds=500)) as guard:
        await once(guard)
        servers[4].pause()
        for server in servers[:2]:
            ask(server, "HSET", LOCK, "grant", "f" * 32, "token", 1, "holder", "other")
        times = []
        times = []
        for _ in range(3):
            began = SYSTEM_CLOCK.now()
            with pytest.raises(QuorumUnavailable) as caught:
                async with guard.hold(NAME, on_busy="raise"):
                    pass
            times.append(SYSTEM_CLOCK.now() - began)
        assert times[0] >= 0.5
        assert max(times[1:]) < 0.5
        votes = list(caught.value.votes.values())
        assert sum("busy: other" in vote for vote in votes) == 2
        assert sum("granted" in vote for vote in votes) == 2
        assert sum("no answer in time" in vote for vote in votes) == 1
        servers[4].resume()


async def test_a_lock_delay_is_kept_by_those_who_were_given_the_lease_later(servers):
    """A majority of them was not asked when the resource was taken, and closes it all the same."""
    delay = timedelta(seconds=2)
    async with guard_over(servers, lock_delay=delay) as guard, guard_over(servers) as other:
        await once(other)
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME) as lease:
                for server in servers[:3]:
                    ask(server, "DEL", LOCK, f"{LOCK}:tenure")
                    await until(lambda s=server: ask(s, "HGET", LOCK, "grant") == lease.grant.id)
                lease.end(LossReason.FENCED)
                lost_at = SYSTEM_CLOCK.now()
                await asyncio.Event().wait()
        async with other.hold(NAME):
            assert SYSTEM_CLOCK.now() - lost_at >= delay.total_seconds()


@pytest.mark.parametrize("how", ["dead", "hung", "mixed"])
async def test_it_works_with_two_of_five_gone_and_refuses_with_three(servers, how):
    """Refuses within the node timeout, with each node's vote; and goes on by itself."""
    patience_s = 0.5
    hangs = {"dead": [], "hung": servers[:3], "mixed": servers[1:3]}[how]
    async with guard_over(servers, node_timeout=timedelta(seconds=patience_s)) as guard:
        await once(guard)
        for server in servers[:2]:
            (server.pause if server in hangs else server.kill)()
        await once(guard)
        (servers[2].pause if servers[2] in hangs else servers[2].kill)()
        times = []
        for _ in range(3):
            began = SYSTEM_CLOCK.now()
            with pytest.raises(QuorumUnavailable) as caught:
                async with guard.hold(NAME, on_busy="raise"):
                    raise AssertionError("the body ran")
            times.append(SYSTEM_CLOCK.now() - began)
            votes = list(caught.value.votes.values())
            assert len(votes) == 5
            gone = sum(
                "no answer in time" in vote or "not connected" in vote or "closed" in vote for vote in votes
            )
            assert gone == 3, votes
        assert min(times) < patience_s + (0.1 if hangs else 0)  # the least disturbed one
        for server in hangs:
            server.resume()
        if how == "hung":  # they forgot nothing; of the dead ones a majority would be in quarantine for 30 s
            async with asyncio.timeout(10):
                async with guard.hold(NAME, wait=timedelta(seconds=10)):
                    pass


async def test_an_acquire_cancelled_while_a_node_hangs_is_undone_there_when_it_goes_on(servers):
    async with guard_over(servers, node_timeout=timedelta(seconds=5)) as guard:
        await once(guard)
        for server in servers[:3]:
            server.pause()
        task = asyncio.create_task(once(guard))
        await until(lambda: any(ask(server, "EXISTS", LOCK) for server in servers[3:]))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        for server in servers[:3]:
            server.resume()
        await until(lambda: not any(ask(server, "EXISTS", LOCK) for server in servers), within_s=3)


async def test_a_release_that_was_lost_with_its_connection_is_sent_again(servers):
    async with FaultProxy(servers[0].port) as proxy:
        async with LockGuard.from_url(proxy.url_for(servers[0].url), ttl=timedelta(minutes=1)) as guard:
            async with guard.hold(NAME):
                proxy.refuse()
                proxy.reset()
                await until(lambda: not guard._core.connected)
            assert ask(servers[0], "EXISTS", LOCK) == 1
            await proxy.start()
            await until(lambda: not ask(servers[0], "EXISTS", LOCK))


async def test_nodes_that_lost_a_lease_get_it_back_and_never_a_second_majority(servers):
    async with guard_over(servers) as guard, guard_over(servers) as other:
        await once(other)
        async with guard.hold(NAME) as lease:
            for server in [*servers, *servers]:
                ask(server, "FLUSHALL")
                with pytest.raises((ResourceBusy, QuorumUnavailable)):
                    async with other.hold(NAME, on_busy="raise"):
                        raise AssertionError("a second majority")
                await until(lambda server=server: ask(server, "HGET", LOCK, "grant") == lease.grant.id)
                assert lease.state is not LeaseState.LOST
        await until(lambda: not any(ask(server, "EXISTS", LOCK) for server in servers))


@pytest.mark.parametrize("comes_back", ["empty", "with old data", "flushed"])
async def test_a_node_that_may_have_forgotten_does_not_vote_for_the_longest_ttl(comes_back):
    """A, B, C granted; C forgets; D and E are there again: C must not help them to a second majority."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(persistence="aof", password="")) for _ in range(5)]
        async with guard_over(servers) as guard, guard_over(servers) as other:
            await once(guard)
            await once(other)
            lost = await silently_held(servers[:3])
            forgets = servers[2]
            if comes_back == "flushed":
                ask(forgets, "FLUSHALL")
            else:
                if comes_back == "with old data":
                    ask(forgets, "DEL", LOCK)
                forgets.restart(keep_data=comes_back == "with old data")
                run = ask(forgets, "INFO", "server")["run_id"]
                node = other._core.locks.nodes[2]
                await until(lambda: node.ready and node._facts.run_id == run)
            with pytest.raises(QuorumUnavailable) as caught:
                async with other.hold(NAME, on_busy="raise"):
                    raise AssertionError("a second majority")
            assert any("lost what it knew" in vote for vote in caught.value.votes.values())
            for server in servers[:2]:
                ask(server, "DEL", LOCK)
            async with other.hold(NAME, wait=timedelta(seconds=10)) as lease:
                assert lease.token > lost


async def silently_held(servers) -> int:
    """A grant on these servers, as of a holder in another process."""
    token = 9_000
    for server in servers:
        ask(server, "HSET", LOCK, "grant", "a" * 32, "token", token, "holder", "another process")
        ask(server, "PEXPIRE", LOCK, 60_000)
    return token


async def test_new_nodes_vote_at_once_and_a_new_one_beside_old_ones_does_not(servers):
    async with guard_over(servers) as guard:
        assert await once(guard) < 2
    await asyncio.to_thread(servers[0].restart, keep_data=False)
    async with guard_over(servers, observers=[]) as guard:
        await once(guard)
        await until(lambda: ask(servers[0], "HEXISTS", "lockguard:member", "run"))
        assert int(ask(servers[0], "HGET", "lockguard:member", "ttl_max_ms")) == 1000


async def test_a_node_that_forgot_beside_members_that_granted_nothing_gives_no_vote(servers):
    """It may have voted for a lease that the others are about to be asked for (spec/redlock.pml)."""
    async with guard_over(servers, observers=[]) as guard:
        await once(guard)
        for server in servers:
            ask(server, "HSET", "lockguard:member", "ttl_max_ms", 0)
        await asyncio.to_thread(servers[0].restart, keep_data=False)
        await until(lambda: ask(servers[0], "HEXISTS", "lockguard:member", "run"))
        assert int(ask(servers[0], "HGET", "lockguard:member", "ttl_max_ms")) == QUARANTINE_UNKNOWN_MS
        assert int(ask(servers[0], "HGET", "lockguard:member", "quiet_until_ms")) > 0


async def test_one_server_of_a_quorum_named_alone_grants_nothing(servers):
    """A lock that it would grant by itself may be held on the others."""
    async with guard_over(servers) as guard:
        await once(guard)
    alone = LockGuard.from_url(servers[0].url, observers=[])
    with pytest.raises(ConfigurationError, match=f"one of the {len(servers)} servers that decide together"):
        async with alone.hold(NAME):
            pytest.fail("granted by one server")
    await alone.aclose()
    ask(servers[0], "DEL", "lockguard:member")
    async with LockGuard.from_url(servers[0].url) as guard, guard.hold(NAME):
        pass


async def test_some_servers_of_a_quorum_are_noticed(servers):
    async with guard_over(servers) as guard:
        await once(guard)
    urls = [server.url for server in servers]
    await require_all_named(urls, namespace=NAMESPACE)
    with pytest.raises(ConfigurationError, match=f"{len(urls) - 1} of the {len(urls)} servers"):
        await require_all_named(urls[1:], namespace=NAMESPACE)


def test_how_long_a_quarantine_lasts():
    new = Membership(known=False, member=False, quarantine_ms=0, ttl_max_ms=0)
    old = Membership(known=True, member=True, quarantine_ms=0, ttl_max_ms=7_000)
    assert quarantine_for([new] * 5, ttl_max_ms=10_000) == Quarantine(0, 0)
    idle = Membership(known=True, member=True, quarantine_ms=0, ttl_max_ms=0)
    assert quarantine_for([new, idle, idle, idle, idle], ttl_max_ms=1_000) == Quarantine(30_000, 30_000)
    assert quarantine_for([new, old, old, old, old], ttl_max_ms=1_000) == Quarantine(7_000, 7_000)
    assert quarantine_for([new, old, old, old, None], ttl_max_ms=10_000) == Quarantine(10_000, 10_000)
    assert quarantine_for([new, new, new, old, old], ttl_max_ms=1_000) == Quarantine(30_000, 30_000)
    assert quarantine_for([new, new, new, new, None], ttl_max_ms=1_000) == Quarantine(30_000, 30_000)


async def test_one_server_under_two_names_is_refused(servers):
    urls = [server.url for server in servers[:2]] + [servers[0].url.replace("127.0.0.1", "localhost")]
    with pytest.raises(ConfigurationError, match="same server"):
        async with LockGuard.from_urls(urls) as guard:
            await once(guard)
    with pytest.raises(ConfigurationError, match="given twice"):
        LockGuard.from_urls([servers[0].url, servers[1].url, servers[0].url])


async def test_a_replica_of_another_node_is_refused(servers):
    ask(servers[1], "REPLICAOF", "127.0.0.1", servers[0].port)
    await until(lambda: ask(servers[1], "ROLE")[3] == "connected")
    with pytest.raises(ConfigurationError, match="one replicates the other"):
        async with guard_over(servers[:3]) as guard:
            await once(guard)
    with pytest.raises(QuorumUnavailable, match=f"is a replica of 127.0.0.1:{servers[0].port}"):
        async with LockGuard.from_url(servers[1].url) as guard:
            async with guard.hold(NAME, on_busy="raise"):
                pass


async def test_what_should_not_be_is_told_in_one_line(servers, caplog):
    with pytest.warns(UserWarning, match="use an odd number"):
        LockGuard.from_urls([server.url for server in servers[:4]])
    ask(servers[0], "CONFIG", "SET", "maxmemory", "100mb")
    ask(servers[0], "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    with caplog.at_level(logging.WARNING, logger="lockguard"):
        async with LockGuard.from_url(servers[0].url) as guard:
            await once(guard)
    assert "volatile-lru" in caplog.text
    with pytest.raises(ConfigurationError, match="takes a list"):
        LockGuard.from_urls(servers[0].url)
    with pytest.raises(ConfigurationError, match="independent servers"):
        LockGuard.from_urls(["redis://a", "redis://b", "redis+cluster://c"])


def test_a_server_that_is_too_old_is_refused_and_one_that_says_nothing_is_not():
    old = ServerFacts.parse(b"# Server\r\nredis_version:6.0.9\r\nredis_mode:standalone\r\nrole:master\r\n")
    with pytest.raises(ConfigurationError, match=r"is 6\.0\.9; lockguard needs 6\.2 or newer"):
        require(old, name="a:6379", mode="standalone")
    require(ServerFacts.parse(Exception("NOPERM")), name="a:6379", mode="standalone")
    loading = ServerFacts.parse(b"redis_version:7.2.4\r\nloading:1\r\n")
    with pytest.raises(NodeRefused, match="still loading"):
        require(loading, name="a:6379", mode="standalone")


async def test_waiters_of_several_processes_are_all_served_in_their_turn(servers):
    """Nodes that wake different waiters would serve nobody for half a second at a time."""
    async with guard_over(servers) as first, guard_over(servers) as second:
        served = []

        async def work(guard, me):
            for _ in range(5):
                async with guard.hold(NAME, wait=timedelta(seconds=60)):
                    served.append(me)

        async def took_s(*tasks):
            began = SYSTEM_CLOCK.now()
            await asyncio.gather(*tasks)
            return SYSTEM_CLOCK.now() - began

        await took_s(work(first, 0), work(second, 0))
        alone_s = await took_s(*(work(first, 0) for _ in range(20)))
        served.clear()
        crowded_s = await took_s(*(work(guard, me) for me, guard in enumerate((first, second) * 10)))
        # Somebody else each time, and a crowd of two processes costs little more than one of one: with half a
        # second lost for each split it was sixty times as much.
        rounds = [len(set(served[at : at + 20])) for at in range(0, 100, 20)]
        assert statistics.median(rounds) >= 15, rounds
        assert crowded_s < 20 * alone_s, (crowded_s, alone_s)
