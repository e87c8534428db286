"""Keeping leases alive, and telling their bodies in time when that fails.

One timer serves all leases of a guard: it stands at the first instant at which anything is to be done. Leases
are renewed together, so a thousand of them cost one write per round and not a thousand watchdogs. It begins
at a third of the ttl and goes on until the deadline: one failed renewal ends nothing (L7). A lease that is
released sooner costs neither a task nor a timer of its own.

What ends a lease depends on no reply. Its deadline lies before the instant at which the server drops the
key (S10); when it has come and has not been moved, the lease is lost. So a hung or unreachable Redis, or a
renewal that hangs, delays nothing. A timer of the event loop does not run while the machine is suspended or
the loop is stalled; that is why ``Lease`` looks at the clock itself as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lockguard.clock import Clock
from lockguard.errors import LossReason
from lockguard.events import Event, Lost, RenewalUnanswered, Renewed
from lockguard.lease import Grant, GrantId, Lease
from lockguard.ports import Extended, NoVote
from lockguard.redlock import Redlock, Renewal

__all__ = ["Keeper", "end_here"]

_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
"""Those of all guards of this process, in whatever thread their loops run."""

_keepers_lock = threading.Lock()

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

    @property
    def deadline(self) -> float:
        """When it ends unless it is renewed."""
        return min(self.lease.deadline, self.ends_at)


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
        self._round: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        with _keepers_lock:
            _keepers.add(self)

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, lease: Lease, on_lost: Callable[[LossReason], None], *, max_hold_s: float = math.inf
    ) -> float:
        """Renew ``lease`` until :meth:`drop`; call ``on_lost`` once if it ends before that.

        Args:
            lease: just granted.
            on_lost: told why.
            max_hold_s: end it after so long, renewed or not.

        Returns:
            The instant on the clock, in seconds, from which that counts.
        """
        self._loop = asyncio.get_running_loop()
        lease.on_end(partial(self._end, lease.grant.id))
        ttl_s = lease.grant.ttl_ms / 1000
        now = self._clock.now()
        kept = _Kept(lease, on_lost, now + ttl_s * _FIRST_AT, ttl_s * _TOGETHER, now + max_hold_s)
        self._kept[lease.grant.id] = kept
        self._look_by(min(kept.due_at, lease.deadline, kept.ends_at), now)
        return now

    def drop(self, lease: Lease) -> None:
        """Renew it no more."""
        self._kept.pop(lease.grant.id, None)

    def end(self, grant: GrantId, reason: LossReason) -> None:
        """End the lease of this grant, if it is kept here. May be called from any thread."""
        if (kept := self._kept.get(grant)) is not None:
            kept.lease.end(reason)

    def lose_all(self, reason: LossReason) -> list[Lease]:
        """End every lease that is kept; gives them."""
        ended = list(self._kept.values())
        for kept in ended:
            self._lose(kept, reason)
        return [kept.lease for kept in ended]

    async def aclose(self) -> None:
        """Renew nothing any more."""
        self._kept.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)

    def _look_by(self, at: float, now: float) -> None:
        """Have the timer fire at ``at`` or before.

        Neither a renewal nor a release touches it: it finds out when it fires, once and not each time.
        """
        if self._timer is not None:
            if self._timer_at <= at:
                return
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._clock.now()
        for kept in list(self._kept.values()):
            reason = kept.lease.loss
            if reason is None and now >= kept.ends_at:
                reason = LossReason.MAX_HOLD
            if reason is not None:
                self._lose(kept, reason)
        if self._round is None and any(kept.due_at <= now for kept in self._kept.values()):
            self._round = asyncio.create_task(self._renew_due(), name="lockguard-renewal")
            self._round.add_done_callback(self._round_ended)
        self._look_again()

    def _look_again(self) -> None:
        if not self._kept:
            return
        instants = [kept.deadline for kept in self._kept.values()]
        if self._round is None:  # otherwise its end looks again
            instants += [kept.due_at for kept in self._kept.values()]
        self._look_by(min(instants), self._clock.now())

    def _end(self, grant: GrantId, reason: LossReason) -> None:
        """The lease knows that it is lost: cut its body, in the loop that the body runs in."""

        def lose() -> None:
            if (kept := self._kept.get(grant)) is not None:
                self._lose(kept, reason)

        if self._loop is None or asyncio._get_running_loop() is self._loop:  # it does not raise
            lose()
        else:
            with contextlib.suppress(RuntimeError):  # that loop has ended, and the body with it
                self._loop.call_soon_threadsafe(lose)

    def _lose(self, kept: _Kept, reason: LossReason) -> None:
        if kept.lease.grant.id not in self._kept:
            return
        self.drop(kept.lease)
        kept.lease.mark_lost(reason)
        self._emit(Lost(kept.lease.grant, reason))
        kept.on_lost(reason)

    async def _renew_due(self) -> None:
        now = self._clock.now()
        due = [kept for kept in self._kept.values() if kept.due_at - kept.slack_s <= now]
        for kept in due:  # should this round fail, the next one is not at once
            kept.due_at = now + kept.lease.grant.ttl_ms / 1000 * _RETRY_AT
        asked = {kept.lease.grant.id: (kept, self._redlock.extend(kept.lease.grant)) for kept in due}
        if not asked:  # released meanwhile
            return
        all_told = asyncio.get_running_loop().create_future()

        def answered(grant: GrantId, _: object) -> None:
            # At once: of several nodes a hung one must not hold up what the others have decided.
            if grant in asked and self._apply(*asked[grant], sent_at=now, final=False):
                del asked[grant]
                if not asked and not all_told.done():
                    all_told.set_result(None)

        for grant, (_, votes) in asked.items():
            for future in votes:
                future.add_done_callback(partial(answered, grant))
        # Bounded by the shortest lease among them, so that one hung node does not starve the others.
        patience_s = min(kept.lease.grant.ttl_ms for kept in due) / 1000 * _RETRY_AT
        await asyncio.wait([all_told], timeout=patience_s)
        undecided, asked = asked, {}  # what comes after this is too late for this round
        for kept, votes in undecided.values():
            self._apply(kept, votes, sent_at=now, final=True)

    def _round_ended(self, _: object) -> None:
        self._round = None
        self._look_again()

    def _apply(
        self, kept: _Kept, votes: list[asyncio.Future[Extended | NoVote]], *, sent_at: float, final: bool
    ) -> bool:
        """Act on the votes once they decide, or are ``final``; tells whether that was done."""
        grant: Grant = kept.lease.grant
        if grant.id not in self._kept:
            return True
        ttl_s = grant.ttl_ms / 1000
        extension = self._redlock.tally(votes, sent_at=sent_at, ttl_ms=grant.ttl_ms)
        match extension.renewal:
            case Renewal.RENEWED:
                kept.lease.mark_renewed(extension.deadline, wanted=extension.wanted)
                kept.due_at = sent_at + ttl_s * _FIRST_AT
                self._emit(Renewed(grant))
            case Renewal.REFUSED:
                self._lose(kept, LossReason.REFUSED)
            case Renewal.UNANSWERED if not final and not all(vote.done() for vote in votes):
                return False
            case Renewal.UNANSWERED:
                kept.lease.mark_unanswered()
                kept.due_at = self._clock.now() + ttl_s * _RETRY_AT
                left_ms = kept.lease.remaining.total_seconds() * 1000
                self._emit(RenewalUnanswered(grant, left_ms, extension.cause))
        return True


def end_here(grant: GrantId, reason: LossReason) -> None:
    """End the lease of this grant at once, whichever guard of this process keeps it."""
    with _keepers_lock:
        keepers = list(_keepers)
    for keeper in keepers:
        keeper.end(grant, reason)
