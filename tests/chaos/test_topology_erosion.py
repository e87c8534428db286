"""Quorum erosion: one node after the other forgets a lease that is held, and a rival asks all the time.

Each loss by itself is survived. What must not happen is that they add up: three nodes that forgot, one at a
time, are a majority for somebody else. ``LOCKGUARD_EROSION_S=180`` makes it last for three minutes, and
``LOCKGUARD_EROSION_SEED`` repeats the order of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import statistics
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from lockguard import LeaseState, LockGuard, QuorumUnavailable, ResourceBusy
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import RedisServer

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
TTL = timedelta(seconds=2)
LASTS_S = float(os.environ.get("LOCKGUARD_EROSION_S", "15"))
SEED = int(os.environ.get("LOCKGUARD_EROSION_SEED", "20261121"))


@dataclass
class Rival:
    """Asks all the time: at once and in the queue, in turns."""

    guard: LockGuard
    asked: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    tokens: list[int] = field(default_factory=list)

    async def ask(self) -> None:
        while True:
            self.asked += 1
            wait = timedelta(seconds=0.2 if self.asked % 2 else 0)
            try:
                async with self.guard.hold(NAME, wait=wait) as lease:
                    self.tokens.append(lease.token)
            except (ResourceBusy, QuorumUnavailable) as refusal:
                self.refused[type(refusal).__name__] += 1
            await asyncio.sleep(0.002)


def forget(server, how, ask):
    """Have a server lose what it knows, or seem to."""
    match how:
        case "killed and empty":
            server.kill()
            server.restart(keep_data=False)
        case "killed, with old data":
            server.kill()
            server.restart(keep_data=True)
        case "killed, with older data":
            ask(server, "DEL", LOCK)
            server.kill()
            server.restart(keep_data=True)
        case "flushed":
            ask(server, "FLUSHALL")
        case "restarted empty":
            server.restart(keep_data=False)


def is_member(server, ask):
    """Whether a server is admitted as it is now: who restarted, or forgot that, is a newcomer."""
    return ask(server, "HGET", "lockguard:member", "run") == ask(server, "INFO", "server")["run_id"]


HOWS = ("killed and empty", "killed, with old data", "killed, with older data", "flushed", "restarted empty")


@pytest.mark.timeout(LASTS_S + 90)
async def test_nodes_that_forget_one_after_the_other_never_make_a_second_majority(
    ask, until, record_property
):
    dice, back_s = random.Random(SEED), []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(RedisServer(persistence="aof")) for _ in range(5)]
        urls = [server.url for server in servers]
        async with LockGuard.from_urls(urls, ttl=TTL) as guard, LockGuard.from_urls(urls, ttl=TTL) as other:
            for one in (guard, other):
                async with one.hold(NAME):
                    pass
            rival = Rival(other)
            async with guard.hold(NAME) as lease:
                # It begins with no more than a majority, if others are late; each loss counts from all five.
                for server in servers:
                    await until(lambda s=server: ask(s, "HGET", LOCK, "grant") == lease.grant.id)
                # Of its own, as in another process: a child of the body may not ask for what the body holds.
                asking = asyncio.create_task(rival.ask(), context=contextvars.Context())
                end_at = SYSTEM_CLOCK.now() + LASTS_S
                while SYSTEM_CLOCK.now() < end_at:
                    order = dice.sample(range(5), 5)
                    for index in order:
                        server = servers[index]
                        await asyncio.to_thread(forget, server, dice.choice(HOWS), ask)
                        began = SYSTEM_CLOCK.now()
                        # Each loss is one by itself: the node has the lease again, and is a member again.
                        await until(lambda s=server: ask(s, "HGET", LOCK, "grant") == lease.grant.id)
                        await until(lambda s=server: is_member(s, ask))
                        back_s.append(SYSTEM_CLOCK.now() - began)
                        assert lease.state is not LeaseState.LOST
                        assert not rival.tokens, "a second majority"
            freed_at = SYSTEM_CLOCK.now()
            try:
                await until(lambda: rival.tokens)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            free_s = SYSTEM_CLOCK.now() - freed_at
            assert min(rival.tokens) > lease.token
            assert free_s < TTL.total_seconds() + 1  # too few members: a quarantine of 30 s
    assert rival.asked > LASTS_S * 5
    told = (
        f"{len(back_s)} losses in {LASTS_S:g} s, seed {SEED}; the lease was back after"
        f" {statistics.median(back_s):.2f} s, at most {max(back_s):.2f} s; the rival asked"
        f" {rival.asked} times, {dict(rival.refused)}, and had it {free_s:.2f} s after its release"
    )
    print(told)
