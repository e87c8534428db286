"""The only place that reads a clock.

A lease's deadline must also pass while the machine is suspended. ``time.monotonic`` stops then on Linux
(CLOCK_MONOTONIC), so a laptop that sleeps for an hour would wake up believing that its ten-second lease
is alive. CLOCK_BOOTTIME keeps counting. On macOS it is CLOCK_MONOTONIC, read through ``clock_gettime``,
that counts on. Elsewhere ``time.monotonic`` is the best there is.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock"]


class Clock(Protocol):
    """What the library needs to know about time."""

    def now(self) -> float:
        """Seconds on a clock that never goes back and also runs while the machine is suspended."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, for people to read; nothing is decided by it."""
        ...


if sys.platform == "linux":
    _CLOCK_ID: int | None = time.CLOCK_BOOTTIME
elif sys.platform == "darwin":
    _CLOCK_ID = time.CLOCK_MONOTONIC
else:
    _CLOCK_ID = None


class SystemClock:
    """The machine's own clocks."""

    __slots__ = ()

    def now(self) -> float:
        """Seconds on the suspend-proof clock."""
        return time.monotonic() if _CLOCK_ID is None else time.clock_gettime(_CLOCK_ID)

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()


SYSTEM_CLOCK = SystemClock()
