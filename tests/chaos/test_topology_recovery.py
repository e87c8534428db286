"""Five independent servers fail and come back: how long nobody can lock, for each way to fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from lockguard import AcquireError, LeaseLost, LockGuard
from lockguard import _membership as membership
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import FaultProxy, Flow, RedisServer

NAME = "binance:APTUSDT"
NODE_TIMEOUT = timedelta(milliseconds=200)
TTL = timedelta(seconds=1)
QUARANTINE_S = 2.0
"""Instead of the 30 s of quarantine of a majority that forgot."""

MINORITY, MAJORITY = 2, 3


@dataclass
class Caller:
    """Locks and unlocks all the time."""

    guard: LockGuard
    locked_at: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    async def work(self) -> None:
        while True:
            with contextlib.suppress(AcquireError, LeaseLost):
                async with self.guard.hold(NAME, wait=timedelta(seconds=0.3)) as lease:
                    self.locked_at.append(SYSTEM_CLOCK.now())
                    self.tokens.append(lease.token)
            await asyncio.sleep(0.002)

    def longest_gap_s(self, since: float) -> float:
        instants = [since, *(at for at in self.locked_at if at > since)]
        return max(later - earlier for earlier, later in itertools.pairwise(instants))


class Nodes:
    """The servers, each behind a link."""

    def __init__(self, servers, links):
        self.servers, self.links = servers, links

    async def fail(self, how, count):
        for server, link in zip(self.servers[:count], self.links, strict=False):
            match how:
                case "cut off":
                    link.partition()
                case "hung":
                    await asyncio.to_thread(server.pause)
                case "slow":
                    link.to_server.set(Flow(latency=timedelta(milliseconds=150)))
                    link.to_client.set(Flow(latency=timedelta(milliseconds=150)))
                case _:
                    await asyncio.to_thread(server.kill)

    async def come_back(self, how, count):
        for server, link in zip(self.servers[:count], self.links, strict=False):
            match how:
                case "cut off" | "slow":
                    link.heal()
                case "hung":
                    await asyncio.to_thread(server.resume)
                case _:
                    await asyncio.to_thread(server.restart, keep_data=how == "killed, back with old data")


@pytest.fixture
async def nodes():
    async with contextlib.AsyncExitStack() as stack:
        servers = [stack.enter_context(RedisServer(persistence="aof")) for _ in range(5)]
        yield Nodes(servers, [await stack.enter_async_context(FaultProxy(s.port)) for s in servers])


@contextlib.asynccontextmanager
async def calling(nodes, until):
    urls = [link.url_for(server.url) for server, link in zip(nodes.servers, nodes.links, strict=True)]
    async with LockGuard.from_urls(urls, ttl=TTL, node_timeout=NODE_TIMEOUT) as guard:
        caller = Caller(guard)
        working = asyncio.create_task(caller.work())
        try:
            await until(lambda: len(caller.locked_at) > 20)
            yield caller
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    assert caller.tokens == sorted(set(caller.tokens))


async def more(caller, until, number=20, within_s=30.0):
    wanted = len(caller.locked_at) + number
    await until(lambda: len(caller.locked_at) >= wanted, within_s)


WAYS = ["killed, back empty", "killed, back with old data", "hung", "cut off"]


@pytest.mark.parametrize(("how", "count"), [*((way, MINORITY) for way in WAYS), ("slow", 1)])
async def test_a_minority_that_fails_and_comes_back_interrupts_nobody_for_longer_than_one_node_timeout(
    nodes, until, how, count
):
    async with calling(nodes, until) as caller:
        began = SYSTEM_CLOCK.now()
        await nodes.fail(how, count)
        await more(caller, until)
        await nodes.come_back(how, count)
        await more(caller, until)
        gap_s = caller.longest_gap_s(began)
    print(f"{count} {how}: longest gap {gap_s:.2f} s")
    assert gap_s < NODE_TIMEOUT.total_seconds() + 0.5  # two are silent one after the other; a busy machine


@pytest.mark.parametrize("how", WAYS)
async def test_a_majority_that_fails_stops_everybody_until_it_is_back(nodes, until, how, monkeypatch):
    monkeypatch.setattr(membership, "QUARANTINE_UNKNOWN_MS", int(QUARANTINE_S * 1000))
    quarantine_s = QUARANTINE_S if "killed" in how else 0.0
    async with calling(nodes, until) as caller:
        await nodes.fail(how, MAJORITY)
        failed_at = SYSTEM_CLOCK.now()
        await until(lambda: SYSTEM_CLOCK.now() > failed_at + 1)  # refused again and again meanwhile
        assert not any(at > failed_at + 0.1 for at in caller.locked_at)
        await nodes.come_back(how, MAJORITY)
        back_at = SYSTEM_CLOCK.now()
        await more(caller, until)
        recovery_s = next(at for at in caller.locked_at if at > failed_at + 0.1) - back_at
    print(f"majority {how}: usable {recovery_s:.2f} s after it is back, {quarantine_s:g} of them quarantine")
    assert recovery_s > quarantine_s - 1  # the first of them is back before the last
    assert recovery_s < quarantine_s + 1.5 + 1  # the backoff of the connections, and a busy machine
