"""Three servers whose clients may not all run INFO: who cannot know a server's run reports no restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from datetime import timedelta
from pathlib import Path

import pytest

from lockguard import LockGuard, QuorumUnavailable
from lockguard_lab.servers import FaultProxy, RedisServer
from tests.chaos.failures import ask, until
from tests.chaos.test_topology_quorum import LOCK, NAME, PATIENT, TTL, once, silently_held

PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
MEMBER = "lockguard:member"


def user(name: str, *, info: bool) -> str:
    """A user with the rights of the page's bot; the page adds ``+info`` for several servers."""
    found = re.search(r"ACL SETUSER bot (on >SECRET.*?)```", PAGE, re.DOTALL)
    assert found is not None
    assert "+info" not in found[1]
    return f"{name} {' '.join(found[1].split())} {'+info' if info else ''}"


@pytest.fixture
def servers():
    users = (user("knows", info=True), user("unknowing", info=False))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RedisServer(persistence="aof", password="", acl=users)) for _ in range(3)]


@contextlib.asynccontextmanager
async def guard_of(name, servers):
    urls = [server.url_for(name, "SECRET") for server in servers]
    async with LockGuard.from_urls(urls, ttl=TTL, node_timeout=PATIENT, observers=[]) as guard:
        yield guard


def runs(servers):
    """The run that each server has recorded, and the one that it is in."""
    return [(ask(one, "HGET", MEMBER, "run"), ask(one, "INFO", "server")["run_id"]) for one in servers]


def quarantined(caplog):
    return [entry.getMessage() for entry in caplog.records if "gives no vote" in entry.getMessage()]


async def test_a_client_without_info_beside_others_costs_nobody_a_vote(servers, caplog):
    caplog.set_level(logging.WARNING, "lockguard")
    async with guard_of("knows", servers) as one, guard_of("unknowing", servers) as another:
        await once(one)
        for _ in range(5):
            await once(another)
            await once(one)
    async with guard_of("unknowing", servers) as again:
        await once(again)
    assert all(recorded == now for recorded, now in runs(servers))
    assert quarantined(caplog) == []
    assert [ask(server, "HGET", MEMBER, "quiet_until_ms") for server in servers] == ["0"] * 3


async def test_a_user_that_loses_info_under_a_running_bot_goes_on(servers, caplog):
    caplog.set_level(logging.WARNING, "lockguard")
    async with guard_of("knows", servers) as guard, guard_of("knows", servers) as other:
        await once(guard)
        for server in servers:
            ask(server, "ACL", "SETUSER", "knows", "-info")
            ask(server, "CLIENT", "KILL", "USER", "knows")
        nodes = [*guard._core.locks.nodes, *other._core.locks.nodes]
        await until(lambda: all(node.ready and not node._facts.run_id for node in nodes))
        for _ in range(3):
            await once(guard)
            await once(other)
    assert all(recorded == now for recorded, now in runs(servers))
    assert quarantined(caplog) == []


@pytest.mark.parametrize("asks_first", [True, False])
async def test_a_restart_with_old_data_is_recognised_beside_a_client_without_info(servers, asks_first):
    async with guard_of("knows", servers) as guard, guard_of("unknowing", servers) as unknowing:
        await once(guard)
        await once(unknowing)
        await silently_held(servers[:2])
        ask(servers[1], "DEL", LOCK)  # the second has forgotten its vote
        await asyncio.to_thread(servers[1].restart)
        nodes = [guard._core.locks.nodes[1], unknowing._core.locks.nodes[1]]
        await until(lambda: all(node.ready for node in nodes))
        if asks_first:  # about another lock, which nobody holds
            async with unknowing.hold("binance:OTHER"):
                pass
        with pytest.raises(QuorumUnavailable) as caught:
            async with guard.hold(NAME, on_busy="raise"):
                raise AssertionError("a second majority")
        assert any("lost what it knew" in vote for vote in caught.value.votes.values())
        ask(servers[0], "DEL", LOCK)
        async with guard.hold(NAME, wait=timedelta(seconds=10)):
            pass
    assert all(recorded == now for recorded, now in runs(servers))


async def test_a_node_that_forgot_its_vote_and_whose_it_was_gives_no_second_one(servers):
    """All clients that vote here know the runs; who admitted the nodes did not."""
    async with guard_of("unknowing", servers) as guard:
        await once(guard)
    assert [recorded for recorded, _ in runs(servers)] == [""] * 3
    # What is written from here on does not reach the disk of the second, as between two snapshots.
    ask(servers[1], "CONFIG", "SET", "appendonly", "no")
    urls = [server.url_for("knows", "SECRET") for server in servers]
    async with FaultProxy(servers[0].port) as first, FaultProxy(servers[2].port) as third:
        first.refuse()
        third.refuse()
        async with (
            knowing([urls[0], urls[1], third.url_for(urls[2])]) as one,
            one.hold(NAME, wait=timedelta(seconds=50)) as lease,  # votes of the first and the second
        ):
            await asyncio.to_thread(servers[1].restart)
            async with knowing([first.url_for(urls[0]), urls[1], urls[2]]) as other:
                with pytest.raises(QuorumUnavailable):
                    async with other.hold(NAME, on_busy="raise"):
                        lease.ensure()  # still believed
                        raise AssertionError("a second majority")


def knowing(urls):
    return LockGuard.from_urls(urls, ttl=timedelta(seconds=20), node_timeout=PATIENT, observers=[])


async def test_new_and_forgetful_nodes_are_admitted_by_clients_without_info_alone(servers):
    async with guard_of("unknowing", servers) as guard, guard_of("unknowing", servers) as other:
        await once(guard)
        ask(servers[0], "FLUSHALL")
        await once(other)
        await until(lambda: ask(servers[0], "HEXISTS", MEMBER, "run"))
        assert int(ask(servers[0], "HGET", MEMBER, "ttl_max_ms")) == TTL / timedelta(milliseconds=1)
