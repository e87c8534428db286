"""Renewal decides by a majority, and by the clock when there is none."""

from __future__ import annotations

import asyncio
import math
from asyncio import Future
from datetime import timedelta

from lockguard.errors import LossReason
from lockguard.events import Event, Renewed
from lockguard.lease import Grant, GrantId, Lease, Resource, Token
from lockguard.ports import Extended, NoVote
from lockguard.redlock import Extension, Redlock, Renewal
from lockguard.renewal import Keeper
from lockguard.testing import FakeClock

TTL_MS = 60_000


class ThreeNodes(Redlock):
    """Two answer when they are told to, the third never."""

    def __init__(self) -> None:
        self.asked: list[list[Future[Extended | NoVote]]] = []

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        loop = asyncio.get_running_loop()
        self.asked.append([loop.create_future() for _ in range(3)])
        return self.asked[-1]

    def tally(self, asked, *, sent_at: float, ttl_ms: int) -> Extension:
        said = [future.result().held for future in asked if future.done()]
        if said.count(True) >= 2:
            return Extension(Renewal.RENEWED, sent_at + ttl_ms / 1000)
        return Extension(Renewal.REFUSED if said.count(False) >= 2 else Renewal.UNANSWERED)


async def renewing(events: list[Event], lost: list[LossReason]) -> tuple[Keeper, ThreeNodes, Lease]:
    """A lease whose renewal has just been sent."""
    nodes, clock = ThreeNodes(), FakeClock()
    keeper = Keeper(nodes, clock=clock, emit=events.append)
    grant = Grant(Resource("a"), GrantId("0" * 32), Token(1), "h", "o", TTL_MS)
    lease = Lease(grant, deadline=clock.now() + TTL_MS / 1000, clock=clock)
    keeper.keep(lease, lost.append, max_hold_s=math.inf)
    clock.advance(timedelta(milliseconds=TTL_MS / 2))
    keeper._look()
    while not nodes.asked:
        await asyncio.sleep(0)
    return keeper, nodes, lease


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_majority_moves_the_deadline_although_a_node_hangs():
    events: list[Event] = []
    keeper, nodes, lease = await renewing(events, [])
    before = lease.deadline
    nodes.asked[0][0].set_result(Extended(held=True))
    await turns()
    assert lease.deadline == before
    nodes.asked[0][1].set_result(Extended(held=True))
    await turns()
    assert lease.deadline > before
    assert [type(event) for event in events] == [Renewed]
    nodes.asked[0][2].set_result(Extended(held=False))
    await turns()
    assert [type(event) for event in events] == [Renewed]
    await keeper.aclose()


async def test_a_majority_that_refuses_ends_the_lease_although_a_node_hangs():
    lost: list[LossReason] = []
    keeper, nodes, _ = await renewing([], lost)
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=False))
    await turns()
    assert lost == [LossReason.REFUSED]
    await keeper.aclose()


async def test_a_lease_released_while_its_renewal_is_under_way_is_left_alone():
    events: list[Event] = []
    keeper, nodes, lease = await renewing(events, [])
    keeper.drop(lease)
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    assert events == []
    await keeper.aclose()
