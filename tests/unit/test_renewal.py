"""Renewal decides by a majority, and by the clock when there is none."""

from __future__ import annotations

import asyncio
import math
from asyncio import Future
from datetime import timedelta

import pytest

from lockguard._lease import Grant, GrantId, Lease, LeaseState, Resource, Token
from lockguard._quorum import trusted_s
from lockguard._renewal import Keeper
from lockguard.errors import LeaseNotHeld, LossReason
from lockguard.events import Event, Renewed
from lockguard.ports import Extended, NoVote
from lockguard.testing import FakeClock

TTL_MS = 60_000


class ThreeNodes:
    """Two answer when they are told to, the third never."""

    def __init__(self) -> None:
        self.asked: list[list[Future[Extended | NoVote]]] = []

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        loop = asyncio.get_running_loop()
        self.asked.append([loop.create_future() for _ in range(3)])
        return self.asked[-1]


async def renewing(
    events: list[Event], lost: list[LossReason]
) -> tuple[Keeper, ThreeNodes, Lease, FakeClock]:
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
    return keeper, nodes, lease, clock


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_majority_moves_the_deadline_although_a_node_hangs():
    events: list[Event] = []
    keeper, nodes, lease, _ = await renewing(events, [])
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
    keeper.close()


async def test_a_majority_that_refuses_ends_the_lease_although_a_node_hangs():
    lost: list[LossReason] = []
    keeper, nodes, _, _ = await renewing([], lost)
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=False))
    await turns()
    assert lost == [LossReason.REFUSED]
    keeper.close()


async def test_a_lease_released_while_its_renewal_is_under_way_is_left_alone():
    events: list[Event] = []
    keeper, nodes, lease, _ = await renewing(events, [])
    keeper.drop(lease)
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    assert events == []
    keeper.close()


def later(keeper: Keeper, clock: FakeClock, share: float) -> None:
    clock.advance(timedelta(milliseconds=TTL_MS * share))
    keeper._look()


async def test_a_good_answer_counts_from_its_own_sending_however_late_it_comes():
    """Three renewals are under way before the first is answered."""
    keeper, nodes, lease, clock = await renewing([], [])
    sent_at = clock.now()
    later(keeper, clock, 0.11)
    later(keeper, clock, 0.11)
    assert len(nodes.asked) == 3
    assert lease.state is LeaseState.UNKNOWN
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    assert lease.deadline == sent_at + trusted_s(TTL_MS)
    assert lease.state is LeaseState.HELD
    keeper.close()


async def test_a_late_good_answer_to_an_earlier_renewal_does_not_shorten_a_lease():
    keeper, nodes, lease, clock = await renewing([], [])
    later(keeper, clock, 0.11)
    for asked in reversed(nodes.asked):
        for vote in asked[:2]:
            vote.set_result(Extended(held=True))
        await turns()
        assert lease.deadline == clock.now() + trusted_s(TTL_MS)
    keeper.close()


async def test_a_refusal_from_before_a_renewal_that_was_granted_ends_nothing():
    """A node that lost the lease, was given it back, and answers an old renewal only now."""
    lost: list[LossReason] = []
    keeper, nodes, lease, clock = await renewing([], lost)
    later(keeper, clock, 0.11)
    for vote in nodes.asked[1][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=False))
    await turns()
    assert lost == []
    lease.ensure()
    keeper.close()


async def test_a_late_refusal_of_the_latest_renewal_ends_the_lease():
    lost: list[LossReason] = []
    keeper, nodes, _, clock = await renewing([], lost)
    later(keeper, clock, 0.05)
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=False))
    await turns()
    assert lost == [LossReason.REFUSED]
    keeper.close()


async def test_a_late_good_answer_does_not_bring_an_ended_lease_back():
    lost: list[LossReason] = []
    events: list[Event] = []
    keeper, nodes, lease, clock = await renewing(events, lost)
    clock.advance(timedelta(milliseconds=TTL_MS))
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    assert lease.state is LeaseState.LOST
    assert Renewed not in [type(event) for event in events]
    keeper._look()
    assert lost == [LossReason.EXPIRED]


async def test_an_answer_to_a_renewal_from_before_is_no_confirmation():
    """It says what the servers knew then."""
    keeper, nodes, lease, clock = await renewing([], [])
    clock.advance(timedelta(milliseconds=1))
    confirming = asyncio.create_task(keeper.confirm(lease, 60.0))
    await turns()
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    assert not confirming.done()
    for vote in nodes.asked[1][:2]:
        vote.set_result(Extended(held=True))
    await confirming
    keeper.close()


async def test_a_release_while_a_lease_is_being_confirmed_is_told():
    keeper, _, lease, _ = await renewing([], [])
    confirming = asyncio.create_task(keeper.confirm(lease, 60.0))
    await turns()
    lease.mark_released()
    keeper.drop(lease)
    with pytest.raises(LeaseNotHeld):
        await confirming
    keeper.close()
