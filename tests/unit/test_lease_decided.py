"""A lease: until when it is good, what ends it, and when it is renewed."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from lockguard._lease import Grant, Lease, LeaseState
from lockguard._quorum import trusted_s
from lockguard._renewal import Keeper
from lockguard.errors import (
    LeaseLost,
    LeaseNotHeld,
    LossReason,
    StaleToken,
)
from lockguard.testing import FakeClock
from tests.unit.nodes_in_memory import (
    APT,
    HELD,
    NOT_HELD,
    TTL_MS,
    grant,
    turns,
    unknown,
    until,
)


def leased(clock: FakeClock, seconds: float = 10.0) -> Lease:
    return Lease(grant(), deadline=clock.now() + seconds, clock=clock)


def test_a_lease_is_good_until_its_deadline_and_for_what_an_effect_needs() -> None:
    clock = FakeClock()
    lease = leased(clock, 3.0)
    lease.ensure(timedelta(seconds=2.9))
    for needed in (timedelta(seconds=3.1), timedelta(seconds=4), timedelta(minutes=1)):
        with pytest.raises(LeaseLost):
            lease.ensure(needed)
    clock.advance(timedelta(seconds=3))
    assert lease.state is LeaseState.LOST
    with pytest.raises(LeaseLost):
        lease.ensure()


def test_a_renewal_neither_shortens_a_lease_nor_brings_it_back() -> None:
    clock = FakeClock()
    lease = leased(clock)
    lease.mark_renewed(clock.now() + 20)
    lease.mark_wanted()
    lease.mark_renewed(clock.now() + 15)
    assert lease.deadline == clock.now() + 20
    assert lease.wanted
    clock.advance(timedelta(seconds=20))
    lease.mark_renewed(clock.now() + 60)
    assert lease.state is LeaseState.LOST
    released = leased(clock)
    released.mark_released()
    released.mark_renewed(clock.now() + 60)
    assert released.state is LeaseState.RELEASED
    released.mark_lost(LossReason.REFUSED)
    assert released.loss is None
    with pytest.raises(LeaseNotHeld):
        released.ensure()


def test_no_forked_process_trusts_the_lease_of_its_parent() -> None:
    lease = leased(FakeClock())
    lease._process = -1  # as a child sees it
    assert lease.loss is LossReason.FORKED
    with pytest.raises(LeaseLost):
        lease.ensure()


def test_only_a_refusal_of_this_lease_ends_it() -> None:
    lease = leased(FakeClock())
    for resource, presented in ((str(APT), 6), ("binance:OTHER", 7)):
        lease.lost_to_fence(StaleToken("x", resource=resource, presented=presented, current=9))
        lease.ensure()
    lease.lost_to_fence(StaleToken("x", resource=str(APT), presented=7, current=9))
    assert lease.loss is LossReason.FENCED


class Renewing:
    """Locks whose renewals a test answers."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []

    def extend(self, granted: Grant) -> list[asyncio.Future[Any]]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return [self.asked[-1]]

    def check(self, granted: Grant) -> list[asyncio.Future[Any]]:
        return [asyncio.get_running_loop().create_future()]


class Fence:
    """A fence that answers what a test says."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts = accepts

    async def confirm(self, granted: Grant, *, within: timedelta) -> bool:
        return self.accepts


def keeping(*, fence: Any = None) -> tuple[Keeper, Renewing, FakeClock, list[Any]]:
    locks, clock, events = Renewing(), FakeClock(), list[Any]()
    anything: Any = locks
    return Keeper(anything, clock=clock, emit=events.append, fence=fence), locks, clock, events


async def test_a_lease_is_renewed_after_a_third_of_its_ttl_counted_from_its_request() -> None:
    keeper, locks, clock, _ = keeping()
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    clock.advance(timedelta(seconds=14))
    keeper._look()
    assert locks.asked == []
    clock.advance(timedelta(seconds=6.5))
    keeper._look()
    assert len(locks.asked) == 1
    keeper.close()
    slow, locks, clock, _ = keeping()
    behind = Lease(grant(), deadline=clock.now() + 45, clock=clock)  # the answer took a quarter of the ttl
    slow.keep(behind, lambda _: None)
    clock.advance(timedelta(seconds=5.5))
    slow._look()
    assert len(locks.asked) == 1
    slow.close()


async def test_a_renewal_without_an_answer_is_sent_again_and_ends_nothing() -> None:
    keeper, locks, clock, events = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lost.append)
    clock.advance(timedelta(seconds=21))
    keeper._look()
    locks.asked[0].set_result(unknown())
    await turns()
    assert lost == []
    assert lease.state is LeaseState.UNKNOWN
    clock.advance(timedelta(seconds=7))
    keeper._look()
    assert len(locks.asked) == 2
    clock.advance(timedelta(seconds=7))
    keeper._look()
    assert len(locks.asked) == 3
    assert [type(event).__name__ for event in events].count("RenewalUnanswered") >= 1
    keeper.close()


async def test_a_renewal_that_is_granted_after_the_deadline_is_none() -> None:
    keeper, locks, clock, events = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lost.append)
    clock.advance(timedelta(seconds=21))
    await turns()
    locks.asked[0].set_result(HELD)  # which a process that was stopped meanwhile reads before it looks
    clock.advance(timedelta(seconds=40))
    await turns()
    assert [type(event).__name__ for event in events] == ["Lost"]
    assert lost == [LossReason.EXPIRED]
    keeper.close()


async def test_a_body_is_told_at_the_deadline_itself_however_many_renewals_are_unanswered() -> None:
    keeper, _locks, clock, _ = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + trusted_s(TTL_MS), clock=clock)
    keeper.keep(lease, lost.append)
    while lease.deadline - clock.now() > 1:
        clock.advance(timedelta(seconds=1))
        await turns()
    clock.advance(timedelta(seconds=lease.deadline - clock.now() - 0.001))
    await turns()
    assert lost == []
    clock.advance(timedelta(milliseconds=2))
    await until(lambda: lost)
    assert lost == [LossReason.EXPIRED]
    assert clock.now() < lease.deadline + 0.01


async def test_a_refusal_ends_the_lease_and_tells_its_body() -> None:
    keeper, locks, clock, _ = keeping()
    lost: list[LossReason] = []
    keeper.keep(Lease(grant(), deadline=clock.now() + 60, clock=clock), lost.append)
    keeper.renew_now()
    locks.asked[0].set_result(NOT_HELD)
    await turns()
    assert lost == [LossReason.REFUSED]
    assert len(keeper) == 0


async def test_the_longest_hold_ends_a_lease_however_often_it_was_renewed() -> None:
    keeper, locks, clock, _ = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lost.append, max_hold_s=30)
    assert lease.deadline == clock.now() + 30
    keeper.renew_now()
    locks.asked[0].set_result(HELD)
    await turns()
    clock.advance(timedelta(seconds=30))
    keeper._look()
    assert lost == [LossReason.MAX_HOLD]


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_lease_is_confirmed_by_the_servers_and_the_fence(accepts: bool) -> None:
    keeper, locks, clock, _ = keeping(fence=Fence(accepts=accepts))
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    confirming = asyncio.create_task(keeper.confirm(lease, 5.0))
    await turns()
    assert not confirming.done()
    assert len(locks.asked) == 1
    locks.asked[0].set_result(HELD)
    if accepts:
        await confirming
    else:
        with pytest.raises(LeaseLost):
            await confirming
        assert lease.loss is LossReason.FENCED
    keeper.close()


async def test_a_lease_that_is_not_confirmed_in_time_goes_on_but_is_not_confirmed() -> None:
    keeper, _locks, clock, _ = keeping()
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    confirming = asyncio.create_task(keeper.confirm(lease, 2.0))
    await turns()
    clock.advance(timedelta(seconds=2))
    await turns()
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLost) as caught:
            await confirming
    assert caught.value.reason is LossReason.UNCONFIRMED
    lease.ensure()
    keeper.close()
