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
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


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


SYSTEM_CLOCK = SystemClock()
