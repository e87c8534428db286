"""How long a position has been without a stop, and the one alert when that has been too long.

Two times are kept apart. *How long it has been without one* begins with the entry, in whatever process that
was, and is what the alert is about; the timer fires at the deadline itself, also while an order is waited
for. *How long this holder has tried* begins anew with each holder, and is what the decision to close the
position is about: a successor that comes late shall try to place the stop before it closes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from lockguard._clock import Clock

__all__ = ["StopDeadline"]


class StopDeadline:
    """Measures one position's time without a stop.

    Args:
        deadline: how long it may be.
        clock: measures it.
    """

    def __init__(self, deadline: timedelta, clock: Clock) -> None:
        self._deadline_s = deadline.total_seconds()
        self._clock = clock
        self._tried_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, passed: Callable[[float], None], *, already_ms: int = 0) -> None:
        """It is without a stop; nothing if that is known.

        Args:
            passed: called once, with the deadline in seconds, when it passes; at once if it has.
            already_ms: how long it has been without one before.
        """
        if self._tried_since is not None:
            return
        self._tried_since = self._clock.now()
        left_s = max(0.0, self._deadline_s - already_ms / 1000)
        self._timer = asyncio.get_running_loop().call_later(left_s, passed, self._deadline_s)

    @property
    def running(self) -> bool:
        """Whether it is without a stop, as far as is known."""
        return self._tried_since is not None

    @property
    def over(self) -> bool:
        """Whether this holder has tried for long enough."""
        if self._tried_since is None:
            return False
        return self._clock.now() - self._tried_since >= self._deadline_s

    def end(self) -> None:
        """It has its stop, or has ended, or is no longer this holder's."""
        self._tried_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
