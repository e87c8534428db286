"""Renewal decides by a majority, and by the clock when there is none."""

from __future__ import annotations

import asyncio
import math
from asyncio import Future
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest

from lockguard._lease import Grant, GrantId, Lease, LeaseState, Resource, Token
from lockguard._quorum import trusted_s
from lockguard._renewal import Keeper
from lockguard.errors import LeaseNotHeld, LossReason, NodeRefused
from lockguard.events import Event, Renewed
from lockguard.ports import Extended, NotExecuted, NoVote
from lockguard.testing import FakeClock

TTL_MS = 60_000


class ThreeNodes:
    """Two answer when they are told to, the third never."""

    def __init__(self) -> None:
        self.asked: list[list[Future[Extended | NoVote]]] = []
        self.checks: list[list[Future[Extended | NoVote]]] = []

    def extend(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        loop = asyncio.get_running_loop()
        self.asked.append([loop.create_future() for _ in range(3)])
        return self.asked[-1]

    def check(self, grant: Grant) -> list[Future[Extended | NoVote]]:
        loop = asyncio.get_running_loop()
        self.checks.append([loop.create_future() for _ in range(3)])
        return self.checks[-1]


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


async def checked(events: list[Event], lost: list[LossReason]) -> tuple[Keeper, ThreeNodes, Lease, FakeClock]:
    """A lease that is far from its renewal, and was asked for once."""
    nodes, clock = ThreeNodes(), FakeClock()
    keeper = Keeper(nodes, clock=clock, emit=events.append)
    lease = kept_by(keeper, clock, lost)
    await clock.run_for(timedelta(seconds=1))
    assert len(nodes.checks) == 1
    return keeper, nodes, lease, clock


def kept_by(
    keeper: Keeper, clock: FakeClock, lost: list[LossReason], *, ttl_ms: int = TTL_MS, number: int = 0
) -> Lease:
    grant = Grant(Resource("a"), GrantId(f"{number:032x}"), Token(1), "h", "o", ttl_ms)
    lease = Lease(grant, deadline=clock.now() + trusted_s(ttl_ms), clock=clock)
    keeper.keep(lease, lost.append)
    return lease


async def test_a_majority_that_lost_the_key_ends_the_lease_long_before_its_renewal():
    lost: list[LossReason] = []
    keeper, nodes, _, _ = await checked([], lost)
    for vote in nodes.checks[0][:2]:
        assert lost == []
        vote.set_result(Extended(held=False))
        await turns()
    assert lost == [LossReason.REFUSED]
    assert nodes.asked == []
    keeper.close()


async def test_only_a_refusal_means_anything_in_answer_to_a_check():
    """One node lost the key, one has it, and one cannot be reached: that is for the renewal to mend."""
    lost: list[LossReason] = []
    events: list[Event] = []
    keeper, nodes, lease, clock = await checked(events, lost)
    before = lease.deadline
    held, gone, silent = nodes.checks[0]
    held.set_result(Extended(held=True))
    gone.set_result(Extended(held=False))
    silent.set_result(NotExecuted(NodeRefused("away", node="c")))
    await turns()
    await clock.run_for(timedelta(seconds=0.8))
    for vote in nodes.checks[1]:
        vote.set_result(Extended(held=True))
    await turns()
    assert (lost, events, lease.deadline, lease.state) == ([], [], before, LeaseState.HELD)
    keeper.close()


async def test_a_check_tells_that_the_lease_is_wanted_by_whichever_node_was_asked():
    keeper, nodes, lease, _ = await checked([], [])
    first, second, third = nodes.checks[0]
    first.set_result(Extended(held=True))
    second.set_result(Extended(held=True))
    await turns()
    assert not lease.wanted
    third.set_result(Extended(held=True, wanted=True))
    await turns()
    assert lease.wanted
    keeper.close()


async def test_a_refused_check_from_before_a_renewal_that_was_granted_ends_nothing():
    lost: list[LossReason] = []
    keeper, nodes, _, clock = await checked([], lost)
    clock.advance(timedelta(milliseconds=1))
    keeper.renew_now()
    for vote in nodes.asked[0][:2]:
        vote.set_result(Extended(held=True))
    await turns()
    for vote in nodes.checks[0][:2]:
        vote.set_result(Extended(held=False))
    await turns()
    assert lost == []
    keeper.close()


async def test_a_lock_is_asked_for_every_second_whatever_became_of_the_last_question():
    keeper, nodes, _, clock = await checked([], [])
    asked_at = [clock.now()]
    while clock.now() < asked_at[0] + 15:
        before = len(nodes.checks) + len(nodes.asked)
        await clock.run_for(timedelta(milliseconds=50))
        if len(nodes.checks) + len(nodes.asked) > before:
            asked_at.append(clock.now())
    assert max(after - at for at, after in pairwise(asked_at)) < 0.95
    keeper.close()


async def test_many_locks_are_soon_asked_for_in_one_round_trip():
    nodes, clock = ThreeNodes(), FakeClock()
    keeper = Keeper(nodes, clock=clock, emit=lambda _: None)
    for number in range(100):
        kept_by(keeper, clock, [], number=number)
        await clock.run_for(timedelta(milliseconds=8))
    await clock.run_for(timedelta(seconds=2))
    nodes.checks.clear()
    rounds = 0
    for _ in range(40):
        before = len(nodes.checks)
        await clock.run_for(timedelta(milliseconds=100))
        rounds += len(nodes.checks) > before
    assert (rounds, len(nodes.checks)) == (5, 500)
    keeper.close()


async def test_a_lease_that_is_short_or_over_soon_costs_no_check():
    nodes, clock = ThreeNodes(), FakeClock()
    keeper = Keeper(nodes, clock=clock, emit=lambda _: None)
    short = kept_by(keeper, clock, [], ttl_ms=2_000)
    for number in range(20):
        over_soon = kept_by(keeper, clock, [], number=number + 1)
        await clock.run_for(timedelta(milliseconds=100))
        keeper.drop(over_soon)
        while nodes.asked:
            for vote in nodes.asked.pop():
                vote.set_result(Extended(held=True))
        await turns()
    short.ensure()
    assert nodes.checks == []
    keeper.close()


def answer(votes: list[Future[Extended | NoVote]], *held: bool | None) -> None:
    """``None``: the node is away."""
    for vote, yes in zip(votes, held, strict=True):
        vote.set_result(NotExecuted(NodeRefused("away", node="c")) if yes is None else Extended(held=yes))


async def renewed_at(on_the_third: Callable[[float], bool | None], *, for_s: float) -> list[float]:
    """When a lease with a ttl of a minute is renewed, by what the third node says to a check at a time."""
    nodes, clock = ThreeNodes(), FakeClock()
    keeper = Keeper(nodes, clock=clock, emit=lambda _: None)
    kept_by(keeper, clock, [])
    began, at = clock.now(), []
    while clock.now() < began + for_s:
        await clock.run_for(timedelta(milliseconds=100))
        while nodes.asked:
            at.append(round(clock.now() - began, 1))
            answer(nodes.asked.pop(), True, True, False)
        while nodes.checks:
            answer(nodes.checks.pop(), True, True, on_the_third(clock.now() - began))
        await turns()
    keeper.close()
    return at


async def test_a_lock_that_is_missing_on_a_minority_is_renewed_early():
    """A rival had the third vote as the lease was granted, and takes it back."""
    early = await renewed_at(lambda at_s: at_s > 1, for_s=30)
    assert early[0] <= 1.0
    assert len(early) == 2


async def test_a_node_that_is_away_costs_no_early_renewal():
    assert len(await renewed_at(lambda at_s: None, for_s=30)) == 1


async def test_a_minority_that_never_takes_the_lock_costs_a_few_early_renewals_in_all():
    early = await renewed_at(lambda at_s: False, for_s=90)
    assert len([at for at in early if at < 30]) <= 6
    assert len([at for at in early if at > 30]) <= 60 / 20


async def test_a_node_that_loses_the_lock_again_and_again_costs_an_early_renewal_every_few_checks():
    early = await renewed_at(lambda at_s: int(at_s / 0.8) % 2 == 1, for_s=40)
    assert min(after - at for at, after in pairwise(early) if at > 10) > 3 * 0.8


@pytest.mark.parametrize("before_s", [1, 30])
async def test_a_lock_that_is_missing_once_more_after_a_quiet_time_is_renewed_early_again(before_s):
    """However long it took the first time."""
    early = await renewed_at(lambda at_s: not (at_s < before_s or 71 < at_s < 73), for_s=73)
    assert [at for at in early if 50 < at < 71], "a renewal was sent not long before"
    assert [at for at in early if 71 < at < 72.1]
