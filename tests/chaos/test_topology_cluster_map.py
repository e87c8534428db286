"""A cluster whose map has holes, lies or leads to nobody: every call ends in time, and all goes on later."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta

import pytest
from redis.crc import key_slot

from lockguard import LockGuard, QuorumUnavailable
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import ClusterRedis, FaultProxy, RedisServer
from lockguard_lab.servers.ports import free_port
from tests.chaos.failures import at_most

NAME = "binance:APTUSDT"
SLOT = key_slot(NAME.encode())
PATIENCE = timedelta(seconds=2)


async def once(guard, name=NAME, **options):
    async with guard.hold(name, **options) as lease:
        return lease


def tell_all(cluster, ask, *command):
    for server in cluster.servers:
        with contextlib.suppress(Exception):  # a server that did not know it that way
            ask(server, *command)


def agree(cluster):
    """Whether all servers name the same owner of the slot, and say that all is well."""
    try:
        owners = {cluster._owner_seen_by(server, SLOT).port for server in cluster.servers}
    except Exception:
        return False
    return len(owners) == 1 and all(map(cluster._serves, cluster.servers))


@contextlib.asynccontextmanager
async def nobody_serves_the_slot(cluster, ask, until):
    owner = cluster.owner_of(SLOT)
    tell_all(cluster, ask, "CLUSTER", "DELSLOTS", SLOT)
    try:
        yield
    finally:
        tell_all(cluster, ask, "CLUSTER", "DELSLOTS", SLOT)  # what gossip has brought back
        ask(owner, "CLUSTER", "ADDSLOTS", SLOT)
        await until(lambda: agree(cluster))


@pytest.mark.parametrize("mapped", ["mapped before", "mapped meanwhile"])
async def test_a_slot_without_an_owner_for_a_while_keeps_nobody_and_is_found_again(
    cluster, ask, until, mapped
):
    async with LockGuard.from_url(cluster.url) as guard, LockGuard.from_url(cluster.url) as other:
        if mapped == "mapped before":
            await once(guard)
        async with nobody_serves_the_slot(cluster, ask, until):
            if mapped == "mapped meanwhile":
                # Read anew while a part of it is missing: nothing that is known may be overwritten.
                await guard._core.connect()
            with at_most(3), contextlib.suppress(QuorumUnavailable):
                await once(guard, on_busy="raise")
            with at_most(3), contextlib.suppress(QuorumUnavailable):
                await once(guard, wait=PATIENCE)
            waiting = asyncio.create_task(once(other, wait=timedelta(seconds=20)))
        with at_most(3):
            await once(guard, wait=PATIENCE)
        await waiting


async def test_a_body_whose_slot_has_no_owner_is_left_in_time_and_its_lock_is_not_left_behind(
    cluster, ask, until
):
    async with LockGuard.from_url(cluster.url, ttl=timedelta(minutes=5)) as guard:
        async with contextlib.AsyncExitStack() as stack:
            async with guard.hold(NAME):
                await stack.enter_async_context(nobody_serves_the_slot(cluster, ask, until))
                left_at = SYSTEM_CLOCK.now()
            assert SYSTEM_CLOCK.now() - left_at < 3
        async with asyncio.timeout(5):
            await once(guard, wait=timedelta(seconds=5))


async def test_a_release_that_its_caller_waits_for_no_more_is_made_before_its_guard_is_closed(
    cluster, ask, until
):
    def times_refused(server):
        told = ask(server, "INFO", "errorstats")
        return told.get("errorstat_CLUSTERDOWN", {"count": 0})["count"]

    guard = LockGuard.from_url(cluster.url, ttl=timedelta(minutes=5))
    async with LockGuard.from_url(cluster.url) as other:
        await once(other)
        async with contextlib.AsyncExitStack() as stack:
            async with guard.hold(NAME):
                refusing = cluster.owner_of(SLOT)
                await stack.enter_async_context(nobody_serves_the_slot(cluster, ask, until))
            before = times_refused(refusing)
            closing = asyncio.create_task(guard.aclose())
            await until(lambda: closing.done() or times_refused(refusing) > before + 1)
        await closing
        await once(other, wait=timedelta(seconds=5))


@pytest.mark.parametrize("kind", ["MOVED", "ASK"])
async def test_a_redirection_to_a_dead_server_keeps_nobody_and_is_given_up_when_it_was_wrong(ask, kind):
    with ClusterRedis(password="") as cluster:
        owner = cluster.owner_of(SLOT)
        dead = next(server for server in cluster.servers if server is not owner)
        tell_all(cluster, ask, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        owner_id, dead_id = cluster._id(owner), cluster._id(dead)
        async with LockGuard.from_url(cluster.url) as guard:
            await once(guard, "elsewhere")
            dead.kill()
            ask(owner, "CLUSTER", "SETSLOT", SLOT, "NODE" if kind == "MOVED" else "MIGRATING", dead_id)
            for options in ({"on_busy": "raise"}, {"wait": PATIENCE}):
                with at_most(3.5), pytest.raises(QuorumUnavailable):
                    await once(guard, **options)
            tell_all(cluster, ask, "CLUSTER", "SETSLOT", SLOT, "NODE", owner_id)
            with at_most(3):
                await once(guard, wait=PATIENCE)


@pytest.mark.parametrize("endpoint", ["unknown-endpoint", "hostname", "hostname localhost"])
async def test_a_map_without_addresses_or_with_names_is_followed(cluster, ask, endpoint):
    kind, _, hostname = endpoint.partition(" ")
    tell_all(cluster, ask, "CONFIG", "SET", "cluster-preferred-endpoint-type", kind)
    tell_all(cluster, ask, "CONFIG", "SET", "cluster-announce-hostname", hostname)
    try:
        async with LockGuard.from_url(cluster.url) as guard:
            for _ in range(3):
                to = cluster.servers[(cluster.servers.index(cluster.owner_of(SLOT)) + 1) % 3]
                await asyncio.to_thread(cluster.move_slot, SLOT, to)
                with at_most(2):
                    await once(guard)
            for number in range(12):
                await once(guard, f"resource-{number}")
    finally:
        tell_all(cluster, ask, "CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")
        tell_all(cluster, ask, "CONFIG", "SET", "cluster-announce-hostname", "")


async def test_a_replica_is_good_enough_to_tell_the_map():
    with ClusterRedis(3, 1, password="") as cluster:
        replicas = ",".join(f"127.0.0.1:{server.port}" for server in cluster.servers[3:])
        async with LockGuard.from_url(f"redis+cluster://{replicas}") as guard:
            for number in range(6):
                await once(guard, f"resource-{number}", wait=PATIENCE)


async def test_seeds_that_do_not_answer_are_not_waited_for(cluster):
    hung = [RedisServer(password="") for _ in range(3)]
    with contextlib.ExitStack() as stack:
        for server in hung:
            stack.enter_context(server)
            server.pause()
        seeds = [f"127.0.0.1:{server.port}" for server in (*hung, cluster.servers[0])]
        with at_most(2.5):
            async with LockGuard.from_url(f"redis+cluster://{','.join(seeds)}") as guard:
                await once(guard, wait=timedelta(seconds=1.5))
        for server in hung:
            server.resume()


async def test_a_cluster_whose_servers_have_all_moved_is_found_again_by_its_seeds(cluster, until):
    with ClusterRedis(password="") as first:
        async with FaultProxy(first.servers[0].port) as service:
            async with LockGuard.from_url(f"redis+cluster://127.0.0.1:{service.port}") as guard:
                await once(guard)
                for server in first.servers:
                    server.kill()
                with at_most(3.5), pytest.raises(QuorumUnavailable):
                    await once(guard, wait=PATIENCE)
                service.redirect(cluster.servers[0].port)
                with at_most(6):
                    await once(guard, wait=timedelta(seconds=6))


async def test_each_of_many_callers_is_told_that_no_server_of_a_cluster_answers():
    # Their pauses differ, so that one begins to read the map anew while another is woken by the last attempt.
    async with LockGuard.from_url(f"redis+cluster://127.0.0.1:{free_port()}") as guard:
        refused = await asyncio.gather(
            *(once(guard, f"x:{number}", wait=timedelta(seconds=0.5)) for number in range(300)),
            return_exceptions=True,
        )
    assert {type(error) for error in refused} == {QuorumUnavailable}
