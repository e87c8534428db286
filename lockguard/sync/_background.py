"""One event loop in one daemon thread, which does the work of one synchronous guard in one process.

* It begins with the first call and not with the guard: a guard at module level starts no thread at import,
  and one that was made before a fork starts its own in each child.
* A child never touches what it inherited: not the sockets, whose replies belong to the parent, and not the
  selector, which the kernel shares with the parent. It is kept out of the reach of the garbage collector too,
  because closing it would take the parent's sockets out of the parent's selector.
* At the interpreter's exit all leases are released, within a bounded time: a server that hangs keeps no
  process from ending. Exit handlers run while daemon threads still do.
* A thread of gevent or eventlet is no thread: it runs only when the others give way, so a body that does not
  would keep its own lease from being renewed. That is refused.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, TypeAlias, TypeVar

from lockguard import _guard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard_options import require_fence
from lockguard._lease import PROCESS
from lockguard.errors import ConfigurationError, FenceUnavailable, LockguardError
from lockguard.ports import Fence
from lockguard.sync._blocking import require_real_threads
from lockguard.sync._outcome import Outcome
from lockguard.text import kind_of

__all__ = ["Background", "FenceMaker", "starting"]

T = TypeVar("T")

_LOG = logging.getLogger("lockguard")

FenceMaker: TypeAlias = Callable[[], AbstractAsyncContextManager[Fence]]
"""Makes the fence in the guard's own event loop, and ends what it needs when the guard closes."""

_EXIT_S = 2.0
"""Seconds that all guards together have at the interpreter's exit."""

starting = threading.RLock()
"""Held while a background is begun or a guard is closed."""

_running: set[Background] = set()
_inherited: list[Background] = []
"""What a forked process must not touch, nor let be collected."""


class Background:
    """The event loop, its thread, and the asynchronous guard in it.

    Args:
        make: makes the guard, given its fence.
        fence: makes the fence; ``None``: the guard has none, or was given one.
        fence_within_s: how long that may take, in seconds.
    """

    def __init__(
        self,
        make: Callable[[Fence | None], _guard.LockGuard],
        fence: FenceMaker | None,
        fence_within_s: float,
    ) -> None:
        require_real_threads()
        self._make = make
        self._fence = fence
        self._fence_within_s = fence_within_s
        self._pid = PROCESS.id
        self._opening = asyncio.Lock()
        self._guard: _guard.LockGuard | None = None
        self._stack = AsyncExitStack()
        self._end: asyncio.Task[None] | None = None
        self._gate = threading.RLock()
        self._over = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="lockguard", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as exc:  # at the interpreter's exit, or the system allows no more threads
            self._loop.close()
            raise ConfigurationError(f"the guard's background thread cannot start: {exc}") from exc
        except BaseException:  # as of Ctrl-C: it runs, and nobody knows of it
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise
        _running.add(self)
        _end_with_child_process()

    @property
    def over(self) -> bool:
        """Whether it has ended, or is of another process: a new one is needed."""
        return self._over or not self.is_here

    @property
    def is_here(self) -> bool:
        """Whether it is of this process, and not inherited by a fork."""
        return self._pid == PROCESS.id

    @property
    def in_own_thread(self) -> bool:
        """Whether this runs in the background thread itself, of this process."""
        return self.is_here and threading.get_ident() == self._thread.ident

    async def guard(self, resource: str = "") -> _guard.LockGuard:
        """The guard, made with the first call. Runs in the loop.

        Args:
            resource: what it is needed for, for errors.

        Raises:
            FenceUnavailable: the fence could not be made; the next call tries again.
            ConfigurationError: it is being closed.
        """
        if self._guard is None:
            async with self._opening:
                if self._guard is None:
                    made = None if self._fence is None else await self._made(self._fence, resource)
                    self._guard = self._make(made)
        if self._end is not None:  # accepted just before
            raise _closed()
        return self._guard

    async def _made(self, maker: FenceMaker, resource: str) -> Fence:
        try:
            making: Any = maker()
            if not hasattr(type(making), "__aenter__"):
                raise ConfigurationError(
                    f"the function that was given as fence= gave {kind_of(making)}; have it give an async"
                    " context manager: write @contextlib.asynccontextmanager above it, and yield the fence"
                )
            async with asyncio.timeout(self._fence_within_s):
                fence: Fence | None = await self._stack.enter_async_context(making)
        except LockguardError:
            raise
        except Exception as exc:
            # The text of a driver's error may show an address with a password.
            raise FenceUnavailable(
                f"the function that was given as fence= failed: {type(exc).__name__}", resource=resource
            ) from exc
        if fence is None:  # a bare `yield`: leases would be given that Postgres has never heard of
            raise ConfigurationError("the function that was given as fence= yielded nothing; yield the fence")
        require_fence(fence)
        return fence

    def soon(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called in the loop, in this thread's context.

        Raises:
            ConfigurationError: the guard is closed.
        """
        with self._gate:  # what is accepted is run: the loop ends only after it has closed this gate
            if self._over:
                raise _closed()
            self._loop.call_soon_threadsafe(callback)

    def call(self, work: Callable[[_guard.LockGuard], Awaitable[T]]) -> T:
        """Run ``work`` in the loop and wait for its end. If the wait is interrupted, it is cancelled.

        Raises:
            ConfigurationError: the guard is closed.
        """
        outcome: Outcome[T] = Outcome()
        running: list[asyncio.Task[None]] = []

        async def run() -> None:
            try:
                outcome.give(await work(await self.guard()))
            except asyncio.CancelledError:  # the loop ends
                outcome.fail(_closed())
            except BaseException as exc:  # noqa: BLE001 - raised in the thread that waits
                outcome.fail(exc)

        def cancel() -> None:
            for task in running:
                task.cancel()

        try:
            self.soon(lambda: running.append(self._loop.create_task(run())))
            return outcome.wait()
        except BaseException:
            if not outcome.done:
                with contextlib.suppress(ConfigurationError):
                    self.soon(cancel)
            raise

    async def call_from_elsewhere(self, work: Callable[[_guard.LockGuard], Awaitable[T]]) -> T:
        """Run ``work`` in the loop and await its end in another loop.

        Raises:
            ConfigurationError: the guard is closed.
        """

        async def run() -> T:
            return await work(await self.guard())

        with self._gate:
            if self._over:
                raise _closed()
            running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return await asyncio.wrap_future(running)

    def close_soon(self) -> None:
        """Begin to close: end every lease, send what is queued, then end the thread. From any thread."""
        if self.is_here:
            with contextlib.suppress(ConfigurationError):  # it is closed already
                self.soon(self._close)

    def join(self, within_s: float | None = None) -> None:
        """Wait until the thread has ended, for so many seconds; ``None``: as long as it takes."""
        if self.is_here and not self.in_own_thread:
            self._thread.join(within_s)

    def _close(self) -> None:
        if self._end is None:
            self._end = self._loop.create_task(self._finish(), name="lockguard-end")

    async def _finish(self) -> None:
        try:
            async with self._opening:  # a fence that is being made is made first, and then closed
                if self._guard is not None:
                    await self._guard.aclose()
            await self._stack.aclose()
        except Exception:  # noqa: BLE001 - whatever the fence's own maker raises, the loop ends
            _LOG.exception("lockguard.sync: closing failed")
        finally:
            self._loop.stop()

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            with self._gate:
                self._over = True
            loop.run_until_complete(_end_tasks())
            loop.run_until_complete(loop.shutdown_asyncgens())
            asyncio.set_event_loop(None)
            loop.close()
            _running.discard(self)


async def _end_tasks() -> None:
    """End what still runs, so that nobody waits for it for ever."""
    await asyncio.sleep(0)  # what was accepted last begins
    while left := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in left:
            task.cancel()
        await asyncio.wait(left)


def _closed() -> ConfigurationError:
    return ConfigurationError("this guard is closed; `with guard:` opens it again, or make a new one")


def _end_all() -> None:
    """Release all leases at the interpreter's exit."""
    running, give_up_at = list(_running), SYSTEM_CLOCK.now() + _EXIT_S
    for each in running:
        each.close_soon()
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # somebody does not want to wait so long
        for each in running:
            each.join(max(0.0, give_up_at - SYSTEM_CLOCK.now()))


def _end_with_child_process() -> None:
    """In a child of ``multiprocessing`` that was forked, exit handlers do not run; its finalizers do."""
    util, process = sys.modules.get("multiprocessing.util"), sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _end_all, exitpriority=0)


def _forked() -> None:
    global starting  # noqa: PLW0603 - a thread that the child does not have may have held it
    starting = threading.RLock()
    _inherited.extend(_running)
    _running.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
