"""A clock that moves only when a test says so, and the timers that run on it."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from typing import TYPE_CHECKING, Any, TypeVar, overload

from lockguard._times import require_timedelta
from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

__all__ = ["FakeClock"]

T = TypeVar("T")

_ROUNDS = 100
"""Rounds of the event loop that are enough for everything that only waits for its turn."""

_sleep = asyncio.sleep
"""Python's own: a test may have put :meth:`FakeClock.sleep` in its place."""


class _Timer:
    __slots__ = ("args", "callback", "cancelled", "loop", "when")

    def __init__(
        self,
        when: float,
        loop: asyncio.AbstractEventLoop,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
    ) -> None:
        self.when, self.loop, self.callback, self.args = when, loop, callback, args
        self.cancelled = False

    def cancel(self) -> None:
        """Have it not come."""
        self.cancelled = True

    def run(self) -> None:
        if not self.cancelled:
            self.callback(*self.args)


class FakeClock:
    """A clock whose time tests set, for ``MemoryStore(clock)`` and ``LockGuard.in_memory(..., clock=clock)``.

    Renewals, deadlines, waits and time limits of such a guard run on it, and on no other clock: nothing
    happens until the test moves the time. :meth:`run_for` lets everything run in the course of it.
    :meth:`advance` is a leap: nothing runs meanwhile, as in a process that was stopped or a machine that was
    suspended. A process that is stopped while others go on is a guard with a ``FakeClock`` of its own.

    Args:
        now_s: where the suspend-proof clock begins, in seconds.
        wall_s: where the wall clock begins, in seconds since 1970.
    """

    __slots__ = ("_count", "_now_s", "_timers", "_wall_s")

    def __init__(self, *, now_s: float = 1_000.0, wall_s: float = 1_750_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s
        self._timers: list[tuple[float, int, _Timer]] = []
        self._count = itertools.count()

    def now(self) -> float:
        """Seconds on the clock that never goes back."""
        return self._now_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._wall_s

    def time(self) -> float:
        """The same as :meth:`now`, by the name that an event loop has for it."""
        return self._now_s

    def call_at(self, when: float, callback: Callable[..., Any], /, *args: Any) -> _Timer:
        """Call in the running event loop when :meth:`time` has come to ``when``."""
        timer = _Timer(when, asyncio.get_running_loop(), callback, args)
        heapq.heappush(self._timers, (when, next(self._count), timer))
        if when <= self._now_s:
            self._fire()
        return timer

    def call_later(self, delay: float, callback: Callable[..., Any], /, *args: Any) -> _Timer:
        """Call in the running event loop after ``delay`` seconds."""
        return self.call_at(self._now_s + delay, callback, *args)

    def advance(self, by: timedelta) -> None:
        """Leap ahead on both clocks. What is due by then runs at the next ``await`` of the test.

        Raises:
            ConfigurationError: ``by`` is negative, or no timedelta.
        """
        self._go_to(self._until(by))
        self._fire()

    async def run_for(self, by: timedelta) -> None:
        """Let time pass on both clocks, and everything run that becomes due in the course of it.

        At each instant at which something is due, the event loop goes round a hundred times: enough for all
        that waits for its turn only, and not for what needs a thread or a socket. What else is to happen at
        a time must wait by :meth:`sleep`.

        Raises:
            ConfigurationError: ``by`` is negative, or no timedelta.
        """
        until = self._until(by)
        await _settled()
        while self._timers and self._timers[0][0] <= until:
            self._go_to(self._timers[0][0])
            self._fire()
            await _settled()
        self._go_to(until)
        await _settled()

    @overload
    async def sleep(self, delay: float) -> None: ...
    @overload
    async def sleep(self, delay: float, result: T) -> T: ...
    async def sleep(self, delay: float, result: Any = None) -> Any:
        """As ``asyncio.sleep``, on this clock: ``monkeypatch.setattr("asyncio.sleep", clock.sleep)``.

        Args:
            delay: seconds; 0 or less only lets others run.
            result: what it returns.
        """
        if delay <= 0:
            return await _sleep(0, result)
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay, lambda: None if over.done() else over.set_result(None))
        try:
            await over
        finally:
            timer.cancel()
        return result

    def set_wall_back(self, by: timedelta) -> None:
        """Step the wall clock alone, as time synchronisation or an operator does (negative: forward).

        Raises:
            ConfigurationError: ``by`` is no timedelta.
        """
        require_timedelta("by", by)
        self._wall_s -= by.total_seconds()

    def _until(self, by: timedelta) -> float:
        require_timedelta("by", by)
        if by.total_seconds() < 0:
            raise ConfigurationError(f"time cannot advance by {by}: only set_wall_back() goes back")
        return self._now_s + by.total_seconds()

    def _go_to(self, when: float) -> None:
        if when > self._now_s:  # another task of the test may have moved it meanwhile
            self._wall_s += when - self._now_s
            self._now_s = when

    def _fire(self) -> None:
        """Have each timer that is due run in its own event loop."""
        while self._timers and self._timers[0][0] <= self._now_s:
            _, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                with contextlib.suppress(RuntimeError):  # its loop was closed
                    timer.loop.call_soon_threadsafe(timer.run)


async def _settled() -> None:
    for _ in range(_ROUNDS):
        await _sleep(0)
