"""A cluster whose slots move and whose masters die."""

from __future__ import annotations

import asyncio
import contextlib
import os
from datetime import timedelta

import pytest
import redis
from redis.crc import key_slot

from lockguard import ConfigurationError, LeaseLost, LockGuard, LossReason, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import ClusterRedis, RedisServer, ReplicatedRedis

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
SLOT = key_slot(NAME.encode())
RESHARD = timedelta(seconds=float(os.environ.get("LOCKGUARD_RESHARD_SECONDS", "4")))


async def test_locking_goes_on_while_the_slot_moves(cluster, ledger):
    """LOCKGUARD_RESHARD_SECONDS sets for how long; ``-s`` shows the figures."""
    async with (
        LockGuard.from_url(cluster.url, fence=ledger.fence) as guard,
        LockGuard.from_url(cluster.url) as bare,
    ):
        busy, moves, held = True, 0, 0
        workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for _ in range(3)]
        inside = 0

        async def exclude() -> None:
            nonlocal inside, held
            while busy:
                async with bare.hold("another", wait=timedelta(seconds=30)):
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1
                    held += 1

        others = [asyncio.create_task(exclude()) for _ in range(2)]
        end_at = SYSTEM_CLOCK.now() + RESHARD.total_seconds()
        while SYSTEM_CLOCK.now() < end_at or moves <= 5 or ledger.commits <= 5:
            await asyncio.to_thread(cluster.move_slot, SLOT, cluster.servers[moves % 3])
            moves += 1
            await asyncio.sleep(0.05)
        busy = False
        await asyncio.gather(*workers, *others)
    print(
        f"{moves} moves in {RESHARD.total_seconds():g} s: {ledger.commits} commits, {held} other locks,"
        f" {await ledger.lost_updates()} lost updates, {ledger.refused} refused,"
        f" {ledger.lost} leases lost, {ledger.retried} errors that say to try again, none of another kind"
    )
    assert ledger.refused == ledger.lost == 0
    assert await ledger.lost_updates() == 0


async def test_a_cancelled_acquire_leaves_nothing_while_the_slot_moves(cluster, ask, until):
    async with LockGuard.from_url(cluster.url) as guard:
        for turn in range(30):
            moving = asyncio.create_task(
                asyncio.to_thread(cluster.move_slot, SLOT, cluster.servers[turn % 3])
            )
            task = asyncio.create_task(_once(guard))
            for _ in range(turn):
                await asyncio.sleep(0.0003)  # somewhere within the move
                if task.done():
                    break
            task.cancel()
            await asyncio.wait([task])
            await moving
            owner = cluster.owner_of(SLOT)
            await until(lambda owner=owner: not ask(owner, "EXISTS", LOCK), within_s=5)


async def test_a_release_that_has_to_wait_for_a_move_finds_its_lock_there(cluster, ask, until, monkeypatch):
    # So that the map is read anew before the release is sent again.
    monkeypatch.setattr("lockguard._nodes.cluster._TRY_AGAIN_S", 0.8)
    monkeypatch.setattr("lockguard._nodes.cluster_map._REFRESH_S", 0)
    source = cluster.owner_of(SLOT)
    target = next(server for server in cluster.servers if server is not source)
    async with LockGuard.from_url(cluster.url) as guard:
        leave = asyncio.Event()

        async def hold() -> None:
            async with guard.hold(NAME):
                await leave.wait()

        holding = asyncio.create_task(hold())
        await until(lambda: ask(source, "EXISTS", LOCK))
        await _let_a_release_be_put_off(cluster, source, target, leave, until)
        await asyncio.to_thread(cluster.move_slot, SLOT, target)
        assert (await guard.inspect(NAME)).resource == NAME  # learns where the slot went
        await holding  # nobody took its lock from under it
        assert not ask(target, "EXISTS", LOCK)


async def test_a_release_that_waits_for_a_move_is_made_though_its_guard_is_closed(cluster, ask, until):
    source = cluster.owner_of(SLOT)
    target = next(server for server in cluster.servers if server is not source)
    guard = LockGuard.from_url(cluster.url)
    leave = asyncio.Event()

    async def hold() -> None:
        async with guard.hold(NAME):
            await leave.wait()

    holding = asyncio.create_task(hold())
    await until(lambda: ask(source, "EXISTS", LOCK))
    put_off = await _let_a_release_be_put_off(cluster, source, target, leave, until)
    closing = asyncio.create_task(guard.aclose())
    await until(lambda: closing.done() or _times_put_off(source) > put_off + 1)
    await asyncio.to_thread(cluster.move_slot, SLOT, target)
    await closing
    await holding
    assert not ask(target, "EXISTS", LOCK)


async def _let_a_release_be_put_off(cluster, source, target, leave, until):
    """Begin to move the slot, and have the holder leave; gives how often one had been put off before."""
    target.command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", cluster._id(source))
    source.command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", cluster._id(target))
    put_off = _times_put_off(source)
    leave.set()
    await until(lambda: _times_put_off(source) > put_off)
    return put_off


def _times_put_off(server):
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.info("errorstats").get("errorstat_TRYAGAIN", {"count": 0})["count"]


async def test_a_release_that_a_master_answers_when_it_is_one_no_more_is_made_again(until):
    with ClusterRedis(3, 1) as cluster:
        async with LockGuard.from_url(cluster.url, ttl=timedelta(minutes=5)) as guard:
            owner = cluster.owner_of(SLOT)
            standing = next(server for server in cluster.servers if server is not owner)
            known = guard._core.locks.nodes[0]._map

            async def take_over(replica) -> None:
                await asyncio.to_thread(replica.command, "CLUSTER", "FAILOVER", "TAKEOVER")
                await until(lambda: cluster._owner_seen_by(standing, SLOT) is replica)
                while known.endpoint_of(LOCK)[1] != replica.port:
                    known.refresh_soon()
                    await asyncio.sleep(0.01)
                owner.resume()  # it finds the release in its socket before it hears that it was replaced

            async with guard.hold(NAME) as lease:
                replicas = cluster.servers[3:]
                await until(lambda: lease.grant.id in [_grant_on(server) for server in replicas])
                replica = next(server for server in replicas if _grant_on(server) == lease.grant.id)
                owner.pause()
                taking_over = asyncio.create_task(take_over(replica))
            await taking_over
            async with asyncio.timeout(10):
                async with guard.hold(NAME, wait=timedelta(seconds=10)) as after:
                    assert after.token > lease.token


async def test_a_dead_master_stops_only_its_own_resources_and_its_replica_takes_over(until):
    with ClusterRedis(3, 1) as cluster:
        async with LockGuard.from_url(cluster.url) as guard:
            async with guard.hold(NAME) as lease:
                token = lease.token
            owner = cluster.owner_of(SLOT)
            elsewhere = next(
                name
                for name in map(str, range(100))
                if cluster.owner_of(key_slot(name.encode())) is not owner
            )
            owner.kill()
            async with asyncio.timeout(1.5):
                async with guard.hold(elsewhere):
                    pass
            async with asyncio.timeout(30):
                async with guard.hold(NAME, wait=timedelta(seconds=30)) as lease:
                    assert lease.token > token


async def test_a_release_that_a_dead_master_kept_to_itself_is_made_again_on_its_replica(cut_off, until):
    """By a process that asks for nothing any more."""
    with ClusterRedis(3, 1) as cluster, contextlib.ExitStack() as stack:
        async with (
            LockGuard.from_url(cluster.url, ttl=timedelta(minutes=5)) as guard,
            LockGuard.from_url(cluster.url) as other,
        ):
            owner = cluster.owner_of(SLOT)
            async with guard.hold(NAME) as lease:
                grant, token = lease.grant.id, lease.token
                await until(lambda: grant in [_grant_on(server) for server in cluster.servers[3:]])
                stack.enter_context(cut_off(owner))
            assert grant in [_grant_on(server) for server in cluster.servers[3:]]
            owner.kill()
            async with asyncio.timeout(30):
                async with other.hold(NAME, wait=timedelta(seconds=30)) as lease:
                    assert lease.token > token


async def test_a_grant_that_a_dead_master_kept_to_itself_is_lost_and_the_next_token_is_higher(cut_off, until):
    with ClusterRedis(3, 1) as cluster, contextlib.ExitStack() as stack:
        options = {"ttl": timedelta(seconds=20)}
        async with (
            LockGuard.from_url(cluster.url, **options) as guard,
            LockGuard.from_url(cluster.url, **options) as other,
        ):
            await _once(other)
            owner = cluster.owner_of(SLOT)
            stack.enter_context(cut_off(owner))
            with pytest.raises(LeaseLost) as caught:
                async with guard.hold(NAME):
                    owner.kill()
                    successor = asyncio.create_task(_token_of(other))
                    await asyncio.Event().wait()  # until the new master refuses the first holder
            assert caught.value.reason is LossReason.REFUSED
            assert await successor > caught.value.token


async def test_a_hung_master_that_comes_back_is_left_and_no_update_is_lost(ledger, until):
    with ClusterRedis(3, 1) as cluster:
        options = {"ttl": timedelta(seconds=2), "fence": ledger.fence}
        async with (
            LockGuard.from_url(cluster.url, **options) as first,
            LockGuard.from_url(cluster.url, **options) as second,
        ):
            busy = True
            workers = [asyncio.create_task(ledger.work(guard, lambda: busy)) for guard in (first, second)]
            await until(lambda: ledger.commits > 5)
            owner = cluster.owner_of(SLOT)
            standing = next(server for server in cluster.servers if server is not owner)
            owner.pause()
            await until(lambda: cluster._owner_seen_by(standing, SLOT) is not owner, within_s=20)
            since = ledger.commits
            await until(lambda: ledger.commits > since + 5, within_s=20)
            owner.resume()  # takes itself for the master until the others tell it
            since = ledger.commits
            await until(lambda: ledger.commits > since + 50, within_s=30)
            busy = False
            await asyncio.gather(*workers)
    assert await ledger.lost_updates() == 0
    assert ledger.fallen == 0


def _grant_on(server):
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.execute_command("READONLY")
        try:
            return client.hget(LOCK, "grant")
        except redis.ResponseError:
            return None


async def test_a_url_of_the_wrong_kind_is_refused_with_the_right_one(cluster):
    with RedisServer() as single:
        for url, told in (
            (single.url.replace("redis://", "redis+cluster://"), "a single server; write redis://"),
            (cluster.servers[0].url, r"part of a cluster; write redis\+cluster://"),
        ):
            with pytest.raises(ConfigurationError, match=told):
                async with LockGuard.from_url(url) as guard:
                    await _once(guard)
    with pytest.raises(ConfigurationError, match="has only one"):
        LockGuard.from_url("redis+cluster://localhost:6379/3")
    with pytest.raises(ConfigurationError, match="cannot be had from a cluster"):
        LockGuard.from_url(cluster.url, min_replicas=1)
    with pytest.raises(ConfigurationError, match="min_replicas=-1"):
        LockGuard.from_url(single.url, min_replicas=-1)


async def test_a_lock_that_too_few_replicas_have_is_not_granted_and_given_back(ask, until):
    with ReplicatedRedis(1) as cluster:
        async with LockGuard.from_url(cluster.url, min_replicas=1, ttl=timedelta(seconds=2)) as guard:
            async with guard.hold(NAME) as lease:
                assert ask(cluster.replicas[0], "HGET", LOCK, "grant") == lease.grant.id
            cluster.replicas[0].pause()
            with pytest.raises(QuorumUnavailable, match="only 0 of 1 replicas have it"):
                async with guard.hold(NAME, on_busy="raise"):
                    raise AssertionError("the body ran")
            await until(lambda: not ask(cluster.servers[0], "EXISTS", LOCK), within_s=3)
            cluster.replicas[0].resume()
            async with guard.hold(NAME, wait=timedelta(seconds=10)):
                pass


async def _token_of(guard):
    async with guard.hold(NAME, wait=timedelta(seconds=30)) as lease:
        return lease.token


async def _once(guard):
    async with guard.hold(NAME):
        pass


async def test_the_password_of_a_cluster_is_used_on_every_shard(ask):
    with ClusterRedis(password="") as cluster:
        for server in cluster.servers:
            ask(server, "CONFIG", "SET", "requirepass", "pw")
        async with LockGuard.from_url(cluster.url.replace("cluster://", "cluster://:pw@")) as guard:
            for number in range(12):
                async with guard.hold(f"resource-{number}"):
                    pass
        with pytest.raises(ConfigurationError, match="refused the log-in"):
            async with LockGuard.from_url(cluster.url) as guard:
                await _once(guard)


def over_the_bus(cluster):
    """How many messages of PUBLISH the servers sent to each other so far."""
    told = [server_info(server) for server in cluster.servers]
    return sum(int(facts.get("cluster_stats_messages_publish_sent", 0)) for facts in told)


def server_info(server):
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.execute_command("CLUSTER INFO")


async def hand_over(first, second, until):
    """The second guard waits for the first one; gives how long the wake-up took, in seconds."""
    released_at = None

    async def wait():
        async with second.hold(NAME, wait=timedelta(seconds=10)):
            return SYSTEM_CLOCK.now()

    async with first.hold(NAME):
        waiting = asyncio.create_task(wait())
        await until_queued(first)
        released_at = SYSTEM_CLOCK.now()
    return await waiting - released_at


async def until_queued(guard):
    async with asyncio.timeout(10):
        while not (await guard.inspect(NAME)).waiters:
            await asyncio.sleep(0.001)


def channels_of(guard):
    """Of each shard, what this process listens to beside its inbox."""
    node = guard._core.locks.nodes[0]
    return [len(shard._connection._channels or ()) for shard in node._map.shards.values()]


async def test_a_wake_up_stays_on_the_shard_of_its_resource(cluster, until):
    async with LockGuard.from_url(cluster.url) as first, LockGuard.from_url(cluster.url) as second:
        await hand_over(first, second, until)  # the first answer says that it has to wait: then it listens
        before = over_the_bus(cluster)
        for _ in range(20):
            await hand_over(first, second, until)
        assert over_the_bus(cluster) == before
        assert sum(channels_of(second)) == 1


@pytest.mark.parametrize("options", ["", "?protocol=2"])
async def test_a_waiter_is_woken_at_once_and_on_its_shard_again_after_the_slot_moved(cluster, until, options):
    async with LockGuard.from_url(cluster.url) as first, LockGuard.from_url(cluster.url + options) as second:
        await hand_over(first, second, until)
        for turn in range(3):
            async with first.hold(NAME):
                waiting = asyncio.create_task(_once(second))
                await until_queued(first)
                source = cluster.owner_of(SLOT)
                to = cluster.servers[(cluster.servers.index(source) + 1) % 3]
                await asyncio.to_thread(cluster.move_slot, SLOT, to)
                released_at = SYSTEM_CLOCK.now()
            await waiting
            assert SYSTEM_CLOCK.now() - released_at < 0.5, f"asked by itself, in turn {turn}"
            await hand_over(first, second, until)
            before = over_the_bus(cluster)
            await hand_over(first, second, until)
            assert over_the_bus(cluster) == before


async def test_who_may_not_use_shard_channels_is_woken_over_the_bus_and_nothing_else_is_disturbed(
    cluster, until, ask
):
    for server in cluster.servers:
        ask(server, "ACL", "SETUSER", "bot", "on", ">pw", "~*", "&*", "+@all", "-ssubscribe")
    places = cluster.url.rpartition("://")[2].rpartition("@")[2]
    url = f"redis+cluster://bot:pw@{places}"
    async with LockGuard.from_url(url) as first, LockGuard.from_url(url) as second:
        for _ in range(3):
            assert await hand_over(first, second, until) < 0.5
        assert sum(channels_of(second)) == 0


async def test_a_user_that_may_not_read_the_map_is_told_which_right_it_lacks(cluster, ask):
    for server in cluster.servers:
        ask(server, "ACL", "SETUSER", "mapless", "on", ">pw", "~*", "&*", "+@all", "-cluster|slots")
    places = cluster.url.rpartition("://")[2].rpartition("@")[2]
    with pytest.raises(ConfigurationError, match=r"refused the map .*; give its ACL user \+cluster\|slots"):
        async with LockGuard.from_url(f"redis+cluster://mapless:pw@{places}") as guard, guard.hold(NAME):
            pass


async def test_channels_are_bounded_and_a_forgotten_one_still_wakes(cluster, until, monkeypatch):
    monkeypatch.setattr("lockguard._nodes.channels.CHANNELS_MAX", 4)
    names = [f"resource-{number}" for number in range(40)]
    async with LockGuard.from_url(cluster.url) as first, LockGuard.from_url(cluster.url) as second:
        async with first.hold_many(names):
            waiting = [asyncio.create_task(_hold(second, name)) for name in names]
            await until(lambda: sum(channels_of(second)) >= 10)
            released_at = SYSTEM_CLOCK.now()
        await asyncio.gather(*waiting)
        assert SYSTEM_CLOCK.now() - released_at < 0.8
        assert max(channels_of(second)) <= 4


async def _hold(guard, name):
    async with guard.hold(name):
        pass
