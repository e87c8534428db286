"""What others find out ends a lease at once: a refused write, and a break in this process (S5, S10)."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from lockguard import LeaseLost, LeaseNotHeld, LeaseState, LockGuard, LossReason, StaleToken
from lockguard.events import Lost

NAME = "binance:APTUSDT"


class Watcher:
    def __init__(self):
        self.lost = []

    def on(self, event):
        if isinstance(event, Lost):
            self.lost.append(event)


def refusal(lease, token=None):
    presented = lease.token if token is None else token
    return StaleToken("refused", resource=lease.resource, presented=presented, current=presented + 1)


async def test_a_refused_write_ends_its_lease_at_once(redis_url):
    watcher = Watcher()
    async with LockGuard.from_url(redis_url, observers=[watcher]) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                lease.lost_to_fence(refusal(lease))
                assert lease.state is LeaseState.LOST
                with pytest.raises(LeaseLost):
                    lease.ensure()
                lease.lost_to_fence(refusal(lease))  # again: nothing more happens
                async with asyncio.timeout(5):
                    await asyncio.Event().wait()
        assert caught.value.reason is LossReason.FENCED
        assert [event.reason for event in watcher.lost] == [LossReason.FENCED]
        assert asyncio.current_task().cancelling() == 0


async def test_a_refusal_that_is_handled_in_the_body_still_ends_as_lost(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                lease.lost_to_fence(refusal(lease))
        assert caught.value.reason is LossReason.FENCED
        await asyncio.sleep(0)


async def test_a_refusal_of_another_lease_or_of_a_released_one_ends_nothing(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        async with guard.hold(NAME) as lease:
            lease.lost_to_fence(refusal(lease, token=lease.token - 1))
            assert lease.state is LeaseState.HELD
            other = StaleToken("refused", resource="other", presented=lease.token, current=None)
            lease.lost_to_fence(other)
            lease.ensure()
        lease.lost_to_fence(refusal(lease))
        assert lease.state is LeaseState.RELEASED
        with pytest.raises(LeaseNotHeld):
            lease.ensure()


async def test_a_refusal_seen_in_another_thread_cuts_the_body_in_its_own_loop(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME) as lease:
                thread = threading.Thread(target=lambda: lease.lost_to_fence(refusal(lease)))
                thread.start()
                async with asyncio.timeout(5):
                    await asyncio.Event().wait()
        thread.join()
        assert caught.value.reason is LossReason.FENCED


async def test_a_break_ends_the_lease_of_any_guard_of_this_process_at_once(redis_url):
    watcher = Watcher()
    hour = timedelta(hours=1)  # its own renewal would find out in twenty minutes
    holder = LockGuard.from_url(redis_url, ttl=hour, observers=[watcher])
    async with holder, LockGuard.from_url(redis_url) as operator:
        with pytest.raises(LeaseLost) as caught:
            async with holder.hold(NAME) as lease:
                broken = await operator.break_(NAME, reason="an operator")
                assert broken.grant == lease.grant.id
                with pytest.raises(LeaseLost):
                    lease.ensure()
                async with asyncio.timeout(5):
                    await asyncio.Event().wait()
        assert caught.value.reason is LossReason.BROKEN
        assert [event.reason for event in watcher.lost] == [LossReason.BROKEN]
        async with holder.hold(NAME):  # nothing of it is left
            pass


async def test_a_body_that_breaks_its_own_lease_ends_as_lost(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        with pytest.raises(LeaseLost) as caught:
            async with guard.hold(NAME):
                await guard.break_(NAME, reason="myself")
        assert caught.value.reason is LossReason.BROKEN
        await asyncio.sleep(0)
        assert asyncio.current_task().cancelling() == 0
