"""One hold in the background: a task that enters it, stays, and leaves it, as told from other threads.

The hold is the asynchronous guard's own: the task is the body that is cut when the lease ends. A caller that
is interrupted while it waits (Ctrl-C) cancels the task, which leaves nothing behind wherever it was (S8).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason
from lockguard.sync._lease import Lease
from lockguard.sync._outcome import Outcome

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from lockguard import _guard, _lease
    from lockguard.sync._background import Background

__all__ = ["Enter", "Holding", "OnLoss"]

_LOG = logging.getLogger("lockguard")

Enter = Callable[["_guard.LockGuard"], "AbstractAsyncContextManager[_lease.Lease | tuple[_lease.Lease, ...]]"]
"""Makes the hold, given the guard of the background loop."""

OnLoss = Callable[[LeaseLost], object]
"""Told of the loss of a lease, in the guard's background thread."""


class Holding:
    """One hold in the background loop.

    Args:
        guard: kept until the hold has ended: a guard that nothing refers to is closed, with all leases.
        background: runs it.
        enter: makes the hold.
        resource: what is held, for errors.
        on_loss: called in the background thread when the lease ends under the body.
    """

    __slots__ = (
        "_ended",
        "_enter",
        "_entered",
        "_guard",
        "_leave",
        "_on_loss",
        "_once",
        "_resource",
        "_task",
        "_thread_name",
        "background",
        "leases",
        "let_go",
    )

    def __init__(
        self, guard: object, background: Background, enter: Enter, resource: str, on_loss: OnLoss | None
    ) -> None:
        self._guard: object | None = guard
        self.background = background
        self._enter = enter
        self._resource = resource
        self._on_loss = on_loss
        self._thread_name = threading.current_thread().name
        self._entered: Outcome[tuple[Lease, ...]] = Outcome()
        self._ended: Outcome[None] = Outcome()
        self._once = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._leave: asyncio.Future[None] | None = None
        self.let_go = False
        """Whether the caller has left, or nobody waits any more."""
        self.leases: tuple[Lease, ...] = ()

    @property
    def task(self) -> asyncio.Task[None]:
        """The task in the background loop."""
        assert self._task is not None
        return self._task

    @property
    def left(self) -> bool:
        """Whether it was left, by whatever thread."""
        return self._once.locked()

    @property
    def in_own_thread(self) -> bool:
        """Whether this runs in the background thread."""
        return self.background.in_own_thread

    def ask(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in the background, and wait for it."""
        self.background.call(lambda _: work())

    async def ask_from_elsewhere(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run ``work`` in the background, and await it in another event loop."""
        await self.background.call_from_elsewhere(lambda _: work())

    def enter(self) -> tuple[Lease, ...]:
        """Acquire, and wait for it; an interrupted wait leaves nothing behind.

        Raises:
            AcquireError: the lock was not obtained; and whatever else the asynchronous guard raises.
        """
        try:
            self.background.soon(self._begin)
            return self._entered.wait()
        except BaseException:
            self.abandon()
            raise

    def leave(self) -> None:
        """Release, and wait for it; an interrupted wait releases all the same.

        Raises:
            LeaseLost: the lease ended before, or the release found that the lock was gone.
            LeaseNotHeld: it was left before.
            ConfigurationError: called in the background thread.
        """
        lease = self.leases[0]
        if not self.background.is_here:  # nothing of the parent's is touched
            raise lease.lost_error(LossReason.FORKED)
        if self.background.in_own_thread and not self._ended.done:
            raise ConfigurationError(
                f"the lease on {lease.resource!r} was released in the guard's own background thread, as by an"
                " observer, which would wait for itself; release it in another thread"
            )
        try:
            if not self._once.acquire(blocking=False):
                raise LeaseNotHeld(
                    f"the lease on {lease.resource!r} was released before",
                    resource=lease.resource,
                    token=lease.token,
                )
            if not self._ended.done:
                self.background.soon(self._let_go)
            self._ended.wait()
        except BaseException:
            self.abandon()
            raise
        finally:
            for each in self.leases:
                each.mark_left()

    def abandon(self) -> None:
        """End it without waiting, because nobody is left who would. From any thread, and more than once."""
        if self.background.is_here and not self._ended.done:
            with contextlib.suppress(ConfigurationError):  # the guard is closed, and so ended it
                self.background.soon(self._let_go)

    # What follows runs in the background loop.

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._live(), name=self._thread_name)

    def _let_go(self) -> None:
        self.let_go = True
        if self._leave is None:
            if self._task is not None:
                self._task.cancel()
        elif not self._leave.done():
            self._leave.set_result(None)

    async def _live(self) -> None:
        try:
            async with self._enter(await self.background.guard(self._resource)) as entered:
                self._leave = asyncio.get_running_loop().create_future()
                self.leases = _bound(entered if isinstance(entered, tuple) else (entered,), self)
                self._entered.give(self.leases)
                await self._leave
        except BaseException as exc:  # noqa: BLE001 - told to the thread that waits
            self._tell(exc)
        else:
            self._ended.give(None)
        finally:
            self._guard = None

    def _tell(self, exc: BaseException) -> None:
        if not self._entered.done:
            if isinstance(exc, asyncio.CancelledError):  # the loop ends, or the caller gave up
                exc = ConfigurationError(f"the guard was closed while it waited for {self._resource!r}")
            self._ended.give(None)
            self._entered.fail(exc)
            return
        if isinstance(exc, asyncio.CancelledError):  # the same, just after it entered
            exc = self.leases[0].lost_error(LossReason.CLOSED)
        self._ended.fail(exc)
        if self._on_loss is not None and isinstance(exc, LeaseLost) and not self.let_go:
            try:
                self._on_loss(exc)
            except BaseException:  # noqa: BLE001 - as an observer's, it must not end the loop with all leases
                _LOG.exception("on_loss= of the lease on %r failed", self._resource)


def _bound(leases: tuple[_lease.Lease, ...], holding: Holding) -> tuple[Lease, ...]:
    bound = []
    for lease in leases:
        assert isinstance(lease, Lease)
        lease._holding = holding
        bound.append(lease)
    return tuple(bound)
