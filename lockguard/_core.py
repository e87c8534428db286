"""The parts of a guard, which its holds share."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lockguard._awaiting import Bound, Bounds, LoopEnd, drop_tasks
from lockguard._clock import timers_of
from lockguard._lease import PROCESS
from lockguard._renewal import Keeper
from lockguard._waiting import Queue
from lockguard.errors import LockguardError, LossReason
from lockguard.events import Event, FenceCloseFailed, Lost
from lockguard.ports import AnsweringFence, LoopBoundNode, RelayFence
from lockguard.text import TEXT_CHARACTERS_MAX, one_word

if TYPE_CHECKING:
    from lockguard._clock import Clock
    from lockguard._lease import Grant, GrantId
    from lockguard._locks import Locks
    from lockguard.ports import Fence

__all__ = ["Core"]

T = TypeVar("T")

_FENCE_GRACE_S = 1.0


class Core:
    """The parts of one guard in one event loop, see :mod:`lockguard._binding`.

    Args:
        locks: the locks of one node or several.
        fence: the fence in the database, if there is one.
        clock: for deadlines.
        emit: tells the observers of an event; never raises.
        fence_within: how long a seal or a close may take.
        max_hold_s: how long a lease is renewed, in seconds.
        lock_delay_ms: how long a resource stays closed after a lease that was not released, in milliseconds.
        history: how many grants of each resource Redis keeps in its history.
        name: who holds, for display; may be empty.
    """

    def __init__(
        self,
        locks: Locks,
        *,
        fence: Fence | None,
        clock: Clock,
        emit: Callable[[Event], None],
        fence_within: timedelta,
        max_hold_s: float = math.inf,
        lock_delay_ms: int = 0,
        history: int = 100,
        name: str = "",
    ) -> None:
        self.locks = locks
        self.fence = fence
        self.clock = clock
        self.fence_within = fence_within
        # A little longer, so that the fence itself can say why it failed.
        self.fence_bounds = Bounds(fence_within.total_seconds() + _FENCE_GRACE_S, timers_of(clock))
        """The time limit of what the fence does."""
        self.max_hold_s = max_hold_s
        self.lock_delay_ms = lock_delay_ms
        self.history = history
        self.emit = emit
        self.queue = Queue(locks, clock=clock, emit=self.emit)
        self._relays = fence if isinstance(fence, RelayFence) else None
        answers = fence if isinstance(fence, AnsweringFence) else None
        self.keeper = Keeper(locks, clock=clock, emit=self.emit, fence=answers)
        locks.on_wake(self._woken)
        self._closing: set[asyncio.Task[Any]] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that it is bound to."""
        self.pid = PROCESS.id
        """The process that it is bound to, or was made in."""
        self._host = f"{name}@{socket.gethostname()}" if name else socket.gethostname()
        self._loop_end: LoopEnd | None = None
        self.closed = False
        """Whether it is closed, or being closed."""
        self._end: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether it is closed, and nothing of it is left in its event loop."""
        return self._end is not None and self._end.done() and not self._end.cancelled()

    @property
    def in_own_loop(self) -> bool:
        """Whether the running event loop is the one that it is bound to, and no copy of that after a fork."""
        # The first does not raise where no loop runs.
        return asyncio._get_running_loop() is self.loop and self.pid == PROCESS.id

    def serves(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it is bound to this event loop and process, and open."""
        return self.loop is loop and self.pid == PROCESS.id and not self.closed

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Bind it to ``loop``, which runs, and to this process; it is closed before the loop is."""
        self.loop, self.pid = loop, PROCESS.id
        self._loop_end = LoopEnd(self._end_with_loop)

    async def _end_with_loop(self) -> None:
        if self.in_own_loop:
            await self.aclose()

    def abandon(self) -> None:
        """Give up what is left of it in an event loop that was closed around it.

        Nothing is sent and nothing is scheduled. Its leases are marked as lost; their locks run out.
        """
        if self.ended:
            return
        self.closed = True
        for grant, reason in self.keeper.abandon():
            self.emit(Lost(grant, reason))
        for node in self.locks.nodes:
            if isinstance(node, LoopBoundNode):
                node.abandon()
        if self.loop is not None:
            drop_tasks(self.loop)

    def call_in_own_loop(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called in its own event loop, if that still runs."""
        if self.loop is not None and self.pid == PROCESS.id:
            with contextlib.suppress(RuntimeError):  # it has ended
                self.loop.call_soon_threadsafe(callback)

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

    def holder(self, task: asyncio.Task[Any]) -> str:
        """The holder as text for display: the guard's name, host, process id and task name."""
        text = f"{self._host}:{self.pid}/{task.get_name()}"[:TEXT_CHARACTERS_MAX]
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
        """End every lease, then everything else; completes even if the caller is cancelled."""
        if self._end is None or self._end.cancelled():
            self.closed = True
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
        if self._loop_end is not None:
            self._loop_end.forget()

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
