"""The lease that synchronous code holds, and where its context shows it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol

from lockguard import _lease
from lockguard._context import LeaseScope, exit_thread_scope
from lockguard._times import require_timedelta
from lockguard.errors import ConfigurationError, LossReason
from lockguard.sync._blocking import require_blocking_allowed

__all__ = ["KeepsOpen", "Lease", "ThreadScope"]

_SECOND = timedelta(seconds=1)


class KeepsOpen(Protocol):
    """What holds leases in the background."""

    @property
    def leases(self) -> tuple[Lease, ...]:
        """All that it holds."""
        ...

    @property
    def let_go(self) -> bool:
        """Whether the caller has left, or nobody waits any more."""
        ...

    @property
    def in_own_thread(self) -> bool:
        """Whether this runs in the background thread."""
        ...

    def leave(self) -> None:
        """Release them all, and wait for it."""
        ...

    def ask(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in the background, and wait for it."""
        ...

    async def ask_from_elsewhere(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in the background, and await it in another event loop."""
        ...


class Lease(_lease.Lease):
    """The right to act on a resource, until its deadline; for synchronous code.

    It may be used and released in any thread. No thread can be cancelled, so a loss is told by ``LeaseLost``:
    from :meth:`ensure` and every other guarded call, from :meth:`release` and by leaving the body. They read
    the clock in the thread that asks, so a process or a thread that was stopped learns of it before anything
    else has run.
    """

    __slots__ = ("_holding",)

    _holding: KeepsOpen

    def release(self) -> None:
        """Release what ``guard.acquire()`` gave, in whatever thread; returns once the server has answered.

        Inside ``with guard.hold(...)`` it ends the hold early.

        Raises:
            LeaseLost: the lease ended before; or the release found that the lock was gone.
            LeaseNotHeld: it was released before.
            ConfigurationError: it is one of ``hold_many``, which are released together; or this is called in
                the guard's own background thread.
        """
        if len(self._holding.leases) > 1:
            raise ConfigurationError(
                f"the lease on {self.resource!r} is one of hold_many, which are released together:"
                " leave the body"
            )
        exit_thread_scope(self)
        self._holding.leave()

    def confirm_now(self, *, within: timedelta = _SECOND) -> None:
        """Ask the servers now, as :meth:`lockguard.Lease.confirm` does, and wait for the answer.

        Args:
            within: how long the servers may take.

        Raises:
            LeaseLost: it has ended, or the servers did not confirm it in time; then its ``reason`` is
                ``UNCONFIRMED``, and the lease itself goes on until its deadline.
            LeaseNotHeld: it was released.
            ConfigurationError: called in a running event loop, or ``within`` is not a timedelta.
        """
        require_timedelta("within", within)
        self.ensure()
        require_blocking_allowed("lease.confirm_now()", in_own_thread=self._holding.in_own_thread)
        self._holding.ask(lambda: super(Lease, self).confirm(within=within))

    # The same as the asynchronous one, but that it is refused before anything could await it.
    def confirm(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, within: timedelta = _SECOND
    ) -> Coroutine[Any, Any, None]:
        """For ``async def`` code that runs inside the body, in whatever event loop.

        Args:
            within: how long the servers may take.

        Raises:
            ConfigurationError: no event loop runs here; synchronous code calls :meth:`confirm_now`.
        """
        if asyncio._get_running_loop() is None:  # else the coroutine would silently not be awaited
            raise ConfigurationError(
                "lease.confirm() is for `async def` functions; in synchronous code write lease.confirm_now()"
            )
        return self._confirm_from_elsewhere(within)

    async def _confirm_from_elsewhere(self, within: timedelta) -> None:
        require_timedelta("within", within)
        self.ensure()
        await self._holding.ask_from_elsewhere(lambda: super(Lease, self).confirm(within=within))

    def mark_released(self) -> float:
        """Note that the background has ended the hold.

        If nobody asked for that, it was cut, and its thread runs on: the lease then stays lost, because one
        that counts as released is no longer current, and writes would go out as if there had never been one.
        """
        if self._holding.let_go:
            return super().mark_released()
        reasons = (each._loss for each in self._holding.leases)
        self.mark_lost(next(filter(None, reasons), LossReason.CLOSED))  # one of several ends all
        return self.deadline

    def mark_left(self) -> None:
        """Note that its own code has left the body, and was told of the loss."""
        super().mark_released()


class ThreadScope(LeaseScope):
    """A lease in force in the context of a thread.

    Attributes:
        borrowed: whether ``acquire`` gave the lease, so that another thread may release it.
        bodies: which ``with guard.hold(...)`` bodies the thread has entered again inside it. Whoever releases
            the lease meanwhile, what runs in such a body is refused, and does not count as never guarded.
    """

    __slots__ = ("bodies", "borrowed", "thread")

    lease: Lease

    def __init__(self, lease: Lease, owner: asyncio.Task[None], guard: object, *, borrowed: bool) -> None:
        super().__init__(lease, owner, guard)
        self.thread = threading.get_ident()
        self.borrowed = borrowed
        self.bodies: set[int] = set()

    @property
    def over(self) -> bool:
        """Whether nothing can be entered inside it any more. A lost one can still be: it then refuses."""
        return self.lease.given_back or self.unwound

    @property
    def entered_again(self) -> bool:
        """Whether its thread is in such a body now."""
        return bool(self.bodies)

    @property
    def body_runs_here(self) -> bool:
        """Whether this thread is in a body under the lease, which another thread may have released."""
        outside = (self.borrowed or self.unwound) and not self.bodies
        return not outside and self.thread == threading.get_ident()

    @property
    def left_here(self) -> bool:
        """Whether its thread goes on after another one has released what it acquired, or left its body."""
        return self.lease.given_back and self.thread == threading.get_ident() and not self.body_runs_here
