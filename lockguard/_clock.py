"""The only place that reads a clock.

A lease's deadline must also pass while the machine is suspended. ``time.monotonic`` stops then on Linux
(CLOCK_MONOTONIC), so a laptop that sleeps for an hour would wake up believing that its ten-second lease
is alive. CLOCK_BOOTTIME keeps counting. On macOS CLOCK_MONOTONIC does, read through ``clock_gettime``.
Elsewhere ``time.monotonic`` is the best there is.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "Timer", "Timers", "timers_of"]


class Clock(Protocol):
    """The two clocks that the library reads."""

    def now(self) -> float:
        """Seconds on a clock that never goes back and also runs while the machine is suspended."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for display; nothing is decided by it."""
        ...


class SystemClock:
    """The machine's own clocks: ``now`` in seconds on the suspend-proof one, ``wall`` since 1970."""

    __slots__ = ()

    # A C function and not a method that calls one: a hold reads the clock ten times.
    if sys.platform == "linux":
        now = staticmethod(partial(time.clock_gettime, time.CLOCK_BOOTTIME))
    elif sys.platform == "darwin":
        now = staticmethod(partial(time.clock_gettime, time.CLOCK_MONOTONIC))
    else:
        now = staticmethod(time.monotonic)

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()


class Timer(Protocol):
    """A call that is to come, such as an ``asyncio.TimerHandle``."""

    def cancel(self) -> None:
        """Have it not come."""


class Timers(Protocol):
    """What calls later: an event loop, or a clock that tests move."""

    def time(self) -> float:
        """Seconds on the clock of the calls."""
        ...

    def call_at(self, when: float, callback: Callable[..., Any], /, *args: Any) -> Timer:
        """Call when :meth:`time` has come to ``when``."""
        ...

    def call_later(self, delay: float, callback: Callable[..., Any], /, *args: Any) -> Timer:
        """Call after so many seconds."""
        ...


def timers_of(clock: Clock) -> Timers | None:
    """The clock itself if it also calls later, as one that tests move; else ``None``: an event loop does.

    Time limits that ran on an event loop would not pass with the time of such a clock.
    """
    return cast("Timers", clock) if callable(getattr(clock, "call_later", None)) else None


SYSTEM_CLOCK = SystemClock()
