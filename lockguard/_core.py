"""The parts of a guard, which its holds share."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard._audience import Audience
from lockguard._awaiting import Bound, Bounds
from lockguard._context import note_task
from lockguard._lease import PROCESS
from lockguard._renewal import Keeper
from lockguard._waiting import Queue
from lockguard.errors import ConfigurationError, LockguardError, LossReason
from lockguard.events import Event, FenceCloseFailed
from lockguard.ports import AnsweringFence, RelayFence
from lockguard.text import TEXT_CHARACTERS_MAX, one_word

if TYPE_CHECKING:
    from lockguard._clock import Clock
    from lockguard._lease import Grant, GrantId
    from lockguard._locks import Locks
    from lockguard.ports import Fence, Observer

__all__ = ["Core"]

T = TypeVar("T")

_FENCE_GRACE_S = 1.0


class Core:
    """The parts of one guard, bound to the first event loop and process that use it.

    Args:
        locks: the locks of one node or several.
        fence: the fence in the database, if there is one.
        clock: for deadlines.
        observers: told of each event.
        fence_within: how long a seal or a close may take.
        max_hold_s: how long a lease is renewed, in seconds.
        lock_delay_ms: how long a resource stays closed after a lease that was not released, in milliseconds.
        history: how many grants of each resource Redis keeps in its history.
    """

    def __init__(
        self,
        locks: Locks,
        *,
        fence: Fence | None,
        clock: Clock,
        observers: Sequence[Observer],
        fence_within: timedelta,
        max_hold_s: float = math.inf,
        lock_delay_ms: int = 0,
        history: int = 100,
    ) -> None:
        self.locks = locks
        self.fence = fence
        self.clock = clock
        self.fence_within = fence_within
        # A little longer, so that the fence itself can say why it failed.
        self.fence_bounds = Bounds(fence_within.total_seconds() + _FENCE_GRACE_S)
        """The time limit of what the fence does."""
        self.max_hold_s = max_hold_s
        self.lock_delay_ms = lock_delay_ms
        self.history = history
        self.emit: Callable[[Event], None] = Audience(observers, clock=clock).tell
        """Tell the observers; never raises."""
        self.queue = Queue(locks, clock=clock, emit=self.emit)
        self._relays = fence if isinstance(fence, RelayFence) else None
        answers = fence if isinstance(fence, AnsweringFence) else None
        self.keeper = Keeper(locks, clock=clock, emit=self.emit, fence=answers)
        locks.on_wake(self._woken)
        self._closing: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = PROCESS.id
        self._host = socket.gethostname()
        self._closed = False
        self._end: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether the guard is closed, or being closed."""
        return self._closed

    @property
    def in_own_loop(self) -> bool:
        """Whether the running event loop is the guard's own."""
        return asyncio._get_running_loop() is self._loop  # does not raise where no loop runs

    def call_in_own_loop(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the guard's own event loop, if that still runs."""
        if self._loop is not None and self._pid == PROCESS.id:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(callback)

    @property
    def connected(self) -> bool:
        """Whether enough nodes are connected to decide."""
        return self.locks.ready

    async def connect(self) -> None:
        """Connect to enough nodes to decide; returns also if that is not possible now.

        Raises:
            ConfigurationError: a node refused the log-in, or nodes are not independent.
        """
        await self.locks.connect()

    def enter(self) -> asyncio.Task[Any]:
        """Check that the guard can be used here; returns the running task.

        Raises:
            ConfigurationError: no task runs, or the guard is closed, or was first used in another process or
                event loop.
        """
        if self._closed:
            raise ConfigurationError("this guard is closed; make a new one with LockGuard.from_url()")
        task = note_task()
        if task is None:
            raise ConfigurationError(
                "a guard is used inside a running asyncio task, for example under asyncio.run()"
            )
        loop = task.get_loop()
        if self._loop is None:
            self._loop, self._pid = loop, PROCESS.id
        elif self._loop is not loop:
            raise ConfigurationError("this guard belongs to another event loop; make one guard for each loop")
        if self._pid != PROCESS.id:
            # Two processes on one socket would read each other's replies.
            raise ConfigurationError(
                "this guard was first used before a fork; make a new one in the child process"
            )
        return task

    def holder(self, task: asyncio.Task[Any]) -> str:
        """The holder as text for display: host, process id and task name."""
        text = f"{self._host}:{self._pid}/{task.get_name()}"[:TEXT_CHARACTERS_MAX]
        return one_word(text)[:TEXT_CHARACTERS_MAX]

    def close_fence(self, grant: Grant, successor: GrantId | None = None) -> asyncio.Task[None]:
        """Close the fence for an ended grant; never raises. The guard waits for it when it closes.

        Args:
            grant: the ended grant.
            successor: the grant of this process that takes the lock next, if known.
        """
        return self.run_to_end(self._close_fence(grant, successor), name="lockguard-close-fence")

    def run_to_end(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run what a cancelled caller must not leave half done. The guard waits for it when it closes."""
        task = asyncio.create_task(work, name=name)
        self._closing.add(task)
        task.add_done_callback(self._ran_to_end)
        return task

    def _ran_to_end(self, task: asyncio.Task[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved here, because its caller may have been cancelled

    async def aclose(self) -> None:
        """End every lease, then everything else; completes even if the caller is cancelled.

        Raises:
            ConfigurationError: called in another event loop than the guard's.
        """
        if self._loop is not None and not self.in_own_loop:
            raise ConfigurationError(
                "this guard belongs to another event loop; close it there, as `async with guard:` does"
            )
        if self._end is None or self._end.cancelled():
            self._closed = True
            self.queue.close()
            self._end_leases()
            # A task of its own: a caller in a body is cut by the close, and other callers may be cancelled.
            # Half a close would leave connections open for ever, and cancel work that must complete.
            self._end = asyncio.create_task(self._finish(), name="lockguard-close")
        if not self._end.done():
            await asyncio.wait([self._end])
        self._end.result()

    def _end_leases(self) -> None:
        for lease in self.keeper.lose_all(LossReason.CLOSED):
            # Released here: their bodies are being cancelled, and will find the connections closed.
            self.locks.release(lease.resource, lease.grant.id, lost=True, seal=lease.grant.seal)
            self.close_fence(lease.grant)
        self.keeper.close()

    async def _finish(self) -> None:
        await asyncio.gather(*self._closing, return_exceptions=True)
        self.fence_bounds.close()
        await self.locks.aclose()

    def _woken(self, grant: GrantId | None) -> None:
        if grant is None:
            # A server may have lost its data. Our own leases first, before other processes take them.
            self.keeper.renew_now()
        self.queue.wake(grant)

    async def _close_fence(self, grant: Grant, successor: GrantId | None) -> None:
        if self.fence is None:
            return
        try:
            with Bound(self.fence_bounds):
                if successor is not None and self._relays is not None:
                    await self._relays.hand_on(grant, successor, within=self.fence_within)
                else:
                    await self.fence.close(grant, within=self.fence_within)
        except Exception as exc:  # noqa: BLE001 - whatever a fence raises must not mask the body's error
            # Not raised: the body has ended, and the next seal shuts this grant out. Nor if the fence is set
            # up wrongly by now (its schema was removed): the next caller's seal says so.
            told = str(exc) if isinstance(exc, LockguardError) else f"{type(exc).__name__}: {exc}"
            self.emit(FenceCloseFailed(grant, told))
