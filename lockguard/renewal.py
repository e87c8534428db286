"""Keeping leases alive, and telling their bodies in time when that fails.

One task renews all leases of a guard together, so a thousand leases cost one write per round and not a
thousand watchdogs. It begins at a third of the ttl and goes on until the deadline: one failed renewal ends
nothing (L7).

What ends a lease does not depend on that task, nor on any reply. Each lease has a timer at its deadline,
which lies before the instant at which the server drops the key (S10); when it fires and the deadline has
not been moved, the lease is lost. So a hung or unreachable Redis, or a renewal that hangs, delays nothing.
A timer of the event loop does not run while the machine is suspended or the loop is stalled; that is why
``Lease`` looks at the clock itself as well.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass

from lockguard.clock import Clock
from lockguard.errors import LossReason
from lockguard.events import Event, Lost, RenewalUnanswered, Renewed
from lockguard.lease import Grant, GrantId, Lease
from lockguard.ports import Extended, NoVote
from lockguard.redlock import Redlock, Renewal

__all__ = ["Keeper"]

_FIRST_AT = 1 / 3
"""The share of the ttl after which a lease is renewed."""

_TOGETHER = 1 / 12
"""Leases that would be due within this share of their ttl are renewed along with the first one."""

_RETRY_AT = 1 / 10
"""The share of the ttl after which a renewal that was not answered is sent again."""


@dataclass(slots=True)
class _Kept:
    lease: Lease
    on_lost: Callable[[LossReason], None]
    due_at: float
    slack_s: float
    ends_at: float
    timer: asyncio.TimerHandle | None = None


class Keeper:
    """Renews the leases of one guard.

    Args:
        redlock: where they are held.
        clock: for deadlines.
        emit: told what happens.
    """

    def __init__(self, redlock: Redlock, *, clock: Clock, emit: Callable[[Event], None]) -> None:
        self._redlock = redlock
        self._clock = clock
        self._emit = emit
        self._kept: dict[GrantId, _Kept] = {}
        self._task: asyncio.Task[None] | None = None
        self._earlier = asyncio.Event()
        self._wakes_at = 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, lease: Lease, on_lost: Callable[[LossReason], None], *, max_hold_s: float = math.inf
    ) -> None:
        """Renew ``lease`` until :meth:`drop`; call ``on_lost`` once if it ends before that.

        Args:
            lease: just granted.
            on_lost: told why.
            max_hold_s: end it after so long, renewed or not.
        """
        ttl_s = lease.grant.ttl_ms / 1000
        now = self._clock.now()
        due_at = now + ttl_s * _FIRST_AT
        kept = _Kept(lease, on_lost, due_at, ttl_s * _TOGETHER, now + max_hold_s)
        self._kept[lease.grant.id] = kept
        self._arm(kept)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="lockguard-renewal")
        elif due_at < self._wakes_at:
            self._earlier.set()

    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        kept = self._kept.pop(lease.grant.id, None)
        if kept is not None and kept.timer is not None:
            kept.timer.cancel()

    def lose_all(self, reason: LossReason) -> list[Lease]:
        """End every lease that is kept; gives them."""
        ended = list(self._kept.values())
        for kept in ended:
            self._lose(kept, reason)
        return [kept.lease for kept in ended]

    async def aclose(self) -> None:
        """End the task. Leases that are still kept are no longer renewed."""
        for kept in list(self._kept.values()):
            self.drop(kept.lease)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _arm(self, kept: _Kept) -> None:
        left_s = max(0.0, min(kept.lease.deadline, kept.ends_at) - self._clock.now())
        kept.timer = asyncio.get_running_loop().call_later(left_s, self._at_deadline, kept)

    def _at_deadline(self, kept: _Kept) -> None:
        # A renewal only moves the deadline; the timer finds out here, once, instead of at each renewal.
        reason = kept.lease.loss
        if reason is None and self._clock.now() >= kept.ends_at:
            reason = LossReason.MAX_HOLD
        if reason is None:
            self._arm(kept)
        else:
            self._lose(kept, reason)

    def _lose(self, kept: _Kept, reason: LossReason) -> None:
        if kept.lease.grant.id not in self._kept:
            return
        self.drop(kept.lease)
        kept.lease.mark_lost(reason)
        self._emit(Lost(kept.lease.grant, reason))
        kept.on_lost(reason)

    async def _run(self) -> None:
        while self._kept:
            self._earlier.clear()
            self._wakes_at = min(kept.due_at for kept in self._kept.values())
            left_s = self._wakes_at - self._clock.now()
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._earlier.wait()
                except TimeoutError:
                    pass
                continue
            await self._renew_due()

    async def _renew_due(self) -> None:
        now = self._clock.now()
        due = [kept for kept in self._kept.values() if kept.due_at - kept.slack_s <= now]
        asked = [(kept, self._redlock.extend(kept.lease.grant)) for kept in due]
        futures = [future for _, futures in asked for future in futures]
        if not futures:
            return
        # Bounded by the shortest lease among them, so that one hung node does not starve the others.
        patience_s = min(kept.lease.grant.ttl_ms for kept in due) / 1000 * _RETRY_AT
        await asyncio.wait(futures, timeout=patience_s)
        for kept, votes in asked:
            self._apply(kept, votes, sent_at=now)

    def _apply(self, kept: _Kept, votes: list[asyncio.Future[Extended | NoVote]], *, sent_at: float) -> None:
        grant: Grant = kept.lease.grant
        if grant.id not in self._kept:
            return
        ttl_s = grant.ttl_ms / 1000
        extension = self._redlock.tally(votes, sent_at=sent_at, ttl_ms=grant.ttl_ms)
        match extension.renewal:
            case Renewal.RENEWED:
                kept.lease.mark_renewed(extension.deadline, wanted=extension.wanted)
                kept.due_at = sent_at + ttl_s * _FIRST_AT
                self._emit(Renewed(grant))
            case Renewal.REFUSED:
                self._lose(kept, LossReason.REFUSED)
            case Renewal.UNANSWERED:
                kept.lease.mark_unanswered()
                kept.due_at = self._clock.now() + ttl_s * _RETRY_AT
                left_ms = kept.lease.remaining.total_seconds() * 1000
                self._emit(RenewalUnanswered(grant, left_ms, extension.cause))
