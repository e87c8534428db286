"""Keeping leases alive, and telling their bodies in time when that fails.

One timer serves all leases of a guard: it is set to the first instant at which something is due. Leases are
renewed together, so a thousand of them cost one write per round and not a thousand watchdogs. Renewal begins
at a third of the ttl and goes on until the deadline: one failed renewal ends no lease (L7). A lease that is
released sooner costs neither a task nor a timer of its own.

A renewal that is not answered for a while is sent again, but the first one still counts: a grant counts from
when its own renewal was sent, however late the answer, so a slow link costs no lease while a round trip is
shorter than what is left of the lease. A refusal counts unless a renewal that was sent later has been
granted: then the refusal shows an earlier state of the node.

When a connection comes back, or a server says that its data are gone, all leases are renewed at once: what
the server forgot is known one round trip later, and not at the next renewal.

That a lock key has vanished by itself, by DEL or eviction, is told by no server. So between two renewals that
are farther apart, the servers are asked every 0.8 s whether the locks are still held (L4): for all leases of
the guard together, in one round trip, by a read that moves no expiry and reaches no replica. Only a refusal
means anything to the lease: whatever else comes of a check, the deadline stands. It tells as well that
another process has asked for a hand-over. A lease that ends sooner costs none.

Where a check shows that a minority of several nodes does not hold the lock, the next renewal is due at once,
as it gives the lock back there: the loss of one more node would end the lease. Such a lease may be a new one
whose last vote a rival had. While that does not help, each early renewal waits twice as long as the one
before, until there are only the regular ones. Each check that finds the lock on all nodes takes a tenth off.

The end of a lease depends on no reply. Its deadline lies before the instant at which the server drops the key
(S10); when it passes without having been moved, the lease is lost. So a hung or unreachable Redis, or a
renewal that hangs, delays nothing. A timer of the event loop does not run while the machine is suspended or
the loop is stalled; that is why ``Lease`` reads the clock itself as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from lockguard._clock import Clock, Timer, timers_of
from lockguard._lease import RENEWED_AGAIN_AFTER, RENEWED_AT, Grant, GrantId, Lease, Resource, Token
from lockguard._locks import Locks
from lockguard._quorum import Extension, Renewal, tally, trusted_s
from lockguard.errors import ConfigurationError, FenceUnavailable, LossReason
from lockguard.events import Event, Lost, RenewalUnanswered, Renewed, StaleWrite
from lockguard.ports import AnsweringFence, Extended, NoVote

__all__ = ["Keeper", "end_here"]

_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()
"""The keepers of all guards of this process, in whatever thread their loops run."""

_keepers_lock = threading.Lock()


def _forget_the_parents() -> None:
    """After a fork: what they keep is kept by the parent, and its event loop must not be touched here."""
    global _keepers_lock  # noqa: PLW0603 - another thread of the parent may have held it
    _keepers_lock = threading.Lock()
    _keepers.clear()


os.register_at_fork(after_in_child=_forget_the_parents)

_CHECKED_EVERY_S = 0.8
"""Seconds between two questions about a lock: with the trip, a loss is noticed within a second (L4)."""

_TOGETHER = 1 / 12
"""Leases that would be due within this share of their ttl are renewed along with the first one."""


@dataclass(slots=True, eq=False)
class _Asked:
    """One renewal or check that was sent, and the votes on it."""

    kept: _Kept
    sent_at: float
    votes: list[asyncio.Future[Extended | NoVote]]
    renews: bool = True
    decided: bool = False


@dataclass(slots=True, eq=False)
class _Kept:
    lease: Lease
    on_lost: Callable[[LossReason], None]
    due_at: float
    check_at: float
    """When the servers are asked whether the lock is still held, unless a renewal asks them before."""
    slack_s: float
    asked: _Asked | None = None
    """The latest renewal, until it is decided."""
    sent_at: float = -math.inf
    """When the latest renewal was sent."""
    mend_s: float = _CHECKED_EVERY_S
    """How long after the latest renewal one may be sent early, for a node on which the lock is missing."""
    proven_at: float = -math.inf
    """When the latest granted renewal was sent."""
    changed: asyncio.Future[None] | None = None
    """What :meth:`Keeper.confirm` waits for: done at the next news of the lease."""

    def notify(self) -> None:
        """Wake what waits for news of the lease."""
        if self.changed is not None and not self.changed.done():
            self.changed.set_result(None)


class Keeper:
    """Renews the leases of one guard.

    Args:
        locks: where the leases are held.
        clock: for deadlines.
        emit: told of each event.
        fence: asked as well when a lease is to be confirmed.
    """

    def __init__(
        self,
        locks: Locks,
        *,
        clock: Clock,
        emit: Callable[[Event], None],
        fence: AnsweringFence | None = None,
    ) -> None:
        self._locks = locks
        self._fence = fence
        self._clock = clock
        self._emit = emit
        self._kept: dict[GrantId, _Kept] = {}
        self._timers = timers_of(clock)
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(
        self, lease: Lease, on_lost: Callable[[LossReason], None], *, max_hold_s: float = math.inf
    ) -> float:
        """Renew ``lease`` until :meth:`drop`; call ``on_lost`` once if it ends before that.

        Args:
            lease: the lease, just granted.
            on_lost: called with the reason.
            max_hold_s: ends the lease after so many seconds, renewed or not.

        Returns:
            The instant on the clock, in seconds, from which ``max_hold_s`` counts.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            with _keepers_lock:
                _keepers.add(self)
        grant, now = lease.grant, self._clock.now()
        ttl_s, until = grant.ttl_ms / 1000, now + max_hold_s
        deadline = lease.keep_by(self, until=until)
        # Counted from when the request was sent: behind a slow link half of the ttl may be over.
        due_at = max(now, min(now, deadline - ttl_s) + ttl_s * RENEWED_AT)
        check_at = min(now, deadline - trusted_s(grant.ttl_ms)) + _CHECKED_EVERY_S
        self._kept[grant.id] = _Kept(lease, on_lost, due_at, check_at, ttl_s * _TOGETHER)
        if (first := min(due_at, check_at, deadline, until)) < self._timer_at:
            self._look_by(first, now)
        return now

    def drop(self, lease: Lease) -> bool:
        """Stop renewing ``lease``; returns whether it was being renewed."""
        kept = self._kept.pop(lease.grant.id, None)
        if kept is not None and kept.changed is not None:
            kept.notify()
        return kept is not None

    def renew_now(self) -> None:
        """Renew all leases now, because a server may have lost its data."""
        now = self._clock.now()
        for kept in list(self._kept.values()):
            self._ask(kept, now)
        self._look_again()

    async def confirm(self, lease: Lease, within_s: float) -> None:
        """Ask now; return when a renewal sent from now on is granted, and the fence accepts the lease.

        Raises:
            LeaseLost: the lease has ended, or not everything was answered within ``within_s``.
            ConfigurationError: called outside the guard's event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigurationError("a lease is confirmed in the event loop of its guard")
        asked: asyncio.Task[bool] | None = None
        if self._fence is not None and lease.grant.id in self._kept:
            within = timedelta(seconds=within_s)
            asked = asyncio.ensure_future(self._fence.confirm(lease.grant, within=within))
            # Retrieved here, because nothing awaits it if the lock is not confirmed.
            asked.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            await self._proven(lease, within_s)
            if asked is not None and not await asked:
                lease.end(LossReason.FENCED)
        except FenceUnavailable as exc:
            raise lease.lost_error(LossReason.UNCONFIRMED) from exc
        finally:
            if asked is not None:
                asked.cancel()
        lease.ensure()

    async def _proven(self, lease: Lease, within_s: float) -> None:
        began = self._clock.now()
        kept = self._kept.get(lease.grant.id)
        if kept is not None:
            self._ask(kept, began)
            self._look_again()
        while kept is not None and kept.proven_at < began:
            lease.ensure()
            left_s = within_s - (self._clock.now() - began)
            if left_s <= 0:
                raise lease.lost_error(LossReason.UNCONFIRMED)
            if kept.changed is None or kept.changed.done():
                kept.changed = asyncio.get_running_loop().create_future()
            over = (self._timers or asyncio.get_running_loop()).call_later(left_s, kept.notify)
            try:
                await asyncio.wait([kept.changed])
            finally:
                over.cancel()

    def end(self, grant: GrantId, reason: LossReason) -> None:
        """End the lease of this grant, if it is kept here. May be called from any thread."""
        if (kept := self._kept.get(grant)) is not None:
            kept.lease.end(reason)

    def grants_on(self, resource: Resource) -> list[GrantId]:
        """The grants of the leases on ``resource`` that are kept here."""
        return [grant for grant, kept in self._kept.items() if kept.lease.resource == resource]

    def lose_all(self, reason: LossReason) -> list[Lease]:
        """End every lease that is kept; returns them."""
        ended = list(self._kept.values())
        for kept in ended:
            self._lose(kept, reason)
        return [kept.lease for kept in ended]

    def abandon(self) -> list[tuple[Grant, LossReason]]:
        """Mark every lease as lost whose event loop was closed around it; returns their grants, and why.

        Nothing is sent, and no body is cut: none can run any more.
        """
        ended = [(kept.lease, kept.lease.loss or LossReason.ABANDONED) for kept in self._kept.values()]
        self._kept.clear()
        for lease, reason in ended:
            lease.mark_lost(reason)
        return [(lease.grant, reason) for lease, reason in ended]

    def close(self) -> None:
        """Stop renewing all leases."""
        for kept in list(self._kept.values()):
            self.drop(kept.lease)
        if self._timer is not None:
            self._timer.cancel()

    def _look_by(self, at: float, now: float) -> None:
        """Have the timer fire at ``at`` or before.

        Renewals and releases do not move it: what is due is looked up when it fires, once and not each time.
        """
        if self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        timers = self._timers or asyncio.get_running_loop()
        self._timer = timers.call_later(max(0.0, at - now), self._look)

    def _look(self) -> None:
        self._timer, self._timer_at = None, math.inf
        now = self._clock.now()
        for kept in list(self._kept.values()):
            if (reason := kept.lease.loss) is not None:
                self._lose(kept, reason)
        if any(kept.due_at <= now for kept in self._kept.values()):
            self._renew_due(now)
        if any(kept.check_at <= now for kept in self._kept.values()):
            self._check_due(now)
        self._look_again()

    def _look_again(self) -> None:
        if self._kept:
            first = min(min(kept.lease.deadline, kept.due_at, kept.check_at) for kept in self._kept.values())
            self._look_by(first, self._clock.now())

    def cut(self, lease: Lease, reason: LossReason) -> None:
        """Cut the body of a lease that is marked as lost, in the body's own loop. From any thread."""

        def lose() -> None:
            if (kept := self._kept.get(lease.grant.id)) is not None:
                self._lose(kept, reason)

        self._in_own_loop(lose)

    def refused(self, lease: Lease, current: int | None) -> None:
        """Tell the observers that Postgres refused a write under this lease. From any thread."""
        stale = StaleWrite(lease.grant, None if current is None else Token(current))
        self._in_own_loop(partial(self._emit, stale))

    def _in_own_loop(self, call: Callable[[], None]) -> None:
        if self._loop is None or asyncio._get_running_loop() is self._loop:  # it does not raise
            call()
        else:
            with contextlib.suppress(RuntimeError):  # that loop has ended, and the body with it
                self._loop.call_soon_threadsafe(call)

    def _lose(self, kept: _Kept, reason: LossReason) -> None:
        if kept.lease.grant.id not in self._kept:
            return
        self.drop(kept.lease)
        kept.lease.mark_lost(reason)
        self._emit(Lost(kept.lease.grant, reason))
        kept.on_lost(reason)

    def _renew_due(self, now: float) -> None:
        for kept in list(self._kept.values()):
            if kept.asked is not None:
                if kept.due_at <= now:
                    self._note_unanswered(kept, kept.asked)
                    self._ask(kept, now)
            elif kept.due_at - kept.slack_s <= now:
                self._ask(kept, now)

    def _ask(self, kept: _Kept, now: float) -> None:
        grant = kept.lease.grant
        kept.sent_at = now
        kept.due_at = now + grant.ttl_ms / 1000 * RENEWED_AGAIN_AFTER
        kept.asked = _Asked(kept, now, self._locks.extend(grant))
        self._expect(kept.asked)

    def _check_due(self, now: float) -> None:
        """Ask about each lock that is due within half of the time, so that soon all are due together."""
        for kept in list(self._kept.values()):
            if kept.check_at - _CHECKED_EVERY_S / 2 <= now:
                self._expect(_Asked(kept, now, self._locks.check(kept.lease.grant), renews=False))

    def _expect(self, asked: _Asked) -> None:
        asked.kept.check_at = asked.sent_at + _CHECKED_EVERY_S
        for future in asked.votes:
            # Each vote as it comes: one hung node of several must not hold up what the others have decided.
            future.add_done_callback(partial(self._count, asked))

    def _count(self, asked: _Asked, _: object) -> None:
        """Act on the votes once they decide, however late that is."""
        kept = asked.kept
        grant = kept.lease.grant
        if self._kept.get(grant.id) is not kept or (asked.decided and asked.renews):
            return
        extension = tally(asked.votes, sent_at=asked.sent_at, ttl_ms=grant.ttl_ms)
        if extension.wanted:
            kept.lease.mark_wanted()
        if not asked.renews and extension.renewal is Renewal.RENEWED:
            self._mend(kept, asked, absent=extension.noes)
        if asked.decided:
            return
        unanswered = extension.renewal is Renewal.UNANSWERED
        if unanswered and not all(vote.done() for vote in asked.votes):
            return
        asked.decided = True
        latest = kept.asked is asked
        if latest:
            kept.asked = None
        match extension.renewal:
            case Renewal.RENEWED if asked.renews:
                self._renewed(kept, asked.sent_at, extension)
            case Renewal.REFUSED if asked.sent_at > kept.proven_at:
                self._lose(kept, LossReason.REFUSED)
            case Renewal.UNANSWERED if latest:
                self._note_unanswered(kept, asked)
            case _:
                pass
        kept.notify()

    def _mend(self, kept: _Kept, asked: _Asked, *, absent: int) -> None:
        """Have the lease renewed early if a check showed that a minority does not hold the lock."""
        now = self._clock.now()
        if kept.asked is not None or asked.sent_at <= kept.sent_at:
            return  # a renewal has given it back since, or is about to
        if not absent:
            if all(vote.done() for vote in asked.votes):
                kept.mend_s = max(_CHECKED_EVERY_S, kept.mend_s * 0.9)
        elif (due_at := max(now, kept.sent_at + kept.mend_s)) < kept.due_at:
            kept.due_at = due_at
            kept.mend_s *= 2
            self._look_by(due_at, now)

    def _renewed(self, kept: _Kept, sent_at: float, extension: Extension) -> None:
        if kept.lease.loss is not None:  # too late; the timer reports the loss
            return
        ttl_s = kept.lease.grant.ttl_ms / 1000
        kept.lease.mark_renewed(extension.deadline)
        kept.proven_at = max(kept.proven_at, sent_at)
        # While a later renewal is in flight, the next one waits as a repetition would.
        kept.due_at = max(sent_at + ttl_s * RENEWED_AT, kept.sent_at + ttl_s * RENEWED_AGAIN_AFTER)
        self._emit(Renewed(kept.lease.grant))

    def _note_unanswered(self, kept: _Kept, asked: _Asked) -> None:
        grant = kept.lease.grant
        kept.lease.mark_unanswered()
        cause = tally(asked.votes, sent_at=asked.sent_at, ttl_ms=grant.ttl_ms).cause
        self._emit(RenewalUnanswered(grant, kept.lease.remaining.total_seconds() * 1000, cause))


def end_here(grant: GrantId, reason: LossReason) -> None:
    """End the lease of this grant at once, whichever guard of this process keeps it."""
    with _keepers_lock:
        keepers = list(_keepers)
    for keeper in keepers:
        keeper.end(grant, reason)
