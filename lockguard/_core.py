"""What a guard is made of, and the few things that its holds share."""

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
        locks: over one node or several.
        fence: the database's side, if there is one.
        clock: for deadlines.
        observers: told what happens.
        fence_within: how long a seal or a close may take.
        max_hold_s: how long a lease is renewed.
        lock_delay_ms: how long a resource stays closed after a lease that was not released.
        history: of how many grants of each resource Redis tells afterwards.
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
        # A little longer, so that a fence can say itself why it failed.
        self.fence_bounds = Bounds(fence_within.total_seconds() + _FENCE_GRACE_S)
        """Of what a fence does."""
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
        """Whether it was closed."""
        return self._closed

    @property
    def in_own_loop(self) -> bool:
        """Whether the running event loop is the guard's own."""
        return asyncio._get_running_loop() is self._loop  # it does not raise where none runs

    def call_in_own_loop(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in the guard's own event loop, if that still runs."""
        if self._loop is not None and self._pid == PROCESS.id:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(callback)

    @property
    def connected(self) -> bool:
        """Whether every node is connected."""
        return self.locks.ready

    async def connect(self) -> None:
        """Try to connect to every node.

        Raises:
            ConfigurationError: a node refused the log-in.
        """
        await self.locks.connect()

    def enter(self) -> asyncio.Task[Any]:
        """Check that the guard can be used here; gives the running task.

        Raises:
            ConfigurationError: it is closed, or was first used in another process or event loop.
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
        """Who holds, as text for people."""
        text = f"{self._host}:{self._pid}/{task.get_name()}"[:TEXT_CHARACTERS_MAX]
        return one_word(text)[:TEXT_CHARACTERS_MAX]

    def close_fence(self, grant: Grant, successor: GrantId | None = None) -> asyncio.Task[None]:
        """Close the fence for an ended grant; never raises. The guard waits for it when it closes.

        Args:
            grant: which.
            successor: whose lock it is about to be, in this process.
        """
        return self.run_to_end(self._close_fence(grant, successor), name="lockguard-close-fence")

    def run_to_end(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Do what a cancelled caller must not leave half done. The guard waits for it when it closes."""
        task = asyncio.create_task(work, name=name)
        self._closing.add(task)
        task.add_done_callback(self._ran_to_end)
        return task

    def _ran_to_end(self, task: asyncio.Task[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def aclose(self) -> None:
        """End every lease, then everything else; seen through also when the caller is cancelled.

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
            # A task of its own: who closes in a body is cut by it, and others have no patience. Half of it
            # would leave connections for ever, and cancel what is to be seen through.
            self._end = asyncio.create_task(self._finish(), name="lockguard-close")
        if not self._end.done():
            await asyncio.wait([self._end])
        self._end.result()

    def _end_leases(self) -> None:
        for lease in self.keeper.lose_all(LossReason.CLOSED):
            # Their bodies are being cancelled and will find the connections closed.
            self.locks.release(lease.resource, lease.grant.id, lost=True, seal=lease.grant.seal)
            self.close_fence(lease.grant)
        self.keeper.close()

    async def _finish(self) -> None:
        await asyncio.gather(*self._closing, return_exceptions=True)
        self.fence_bounds.close()
        await self.locks.aclose()

    def _woken(self, grant: GrantId | None) -> None:
        if grant is None:
            # A server may have forgotten what it knew. Our own leases first: others come to take them.
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
            # Not raised: the body has ended, and the next seal shuts this grant out. Also when the fence is
            # set up wrongly by now (somebody removed its schema): the seal of the next caller says so.
            told = str(exc) if isinstance(exc, LockguardError) else f"{type(exc).__name__}: {exc}"
            self.emit(FenceCloseFailed(grant, told))
