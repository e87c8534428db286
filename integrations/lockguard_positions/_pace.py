"""How the flow waits, and how long a position has been without a stop meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard._times import checked_wait
from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard._clock import Clock

__all__ = ["Pace", "StopDeadline"]


@dataclass(frozen=True, slots=True)
class Pace:
    """How the flow waits. Every wait ends with what it waits for; these are the bounds.

    Attributes:
        settle: how long an entry may take to be filled.
        poll: how often the exchange is asked meanwhile.
        stop_deadline: how long a position may be without a stop before an alert is raised, and how long each
            holder tries to place one before it leaves that to the next look.
        retry_pause: between attempts that the exchange refused for a passing reason; it doubles.
        attempts: how many of those are made.
        grace: for how long after a change the exchange's lists are not taken at their word.
        overdue: for how long something may be unreadable or undecided before an alert is raised.

    Raises:
        ConfigurationError: a bound cannot work. Without that it would fail where an entry waits for its stop.
    """

    settle: timedelta = timedelta(seconds=20)
    poll: timedelta = timedelta(milliseconds=200)
    stop_deadline: timedelta = timedelta(seconds=10)
    retry_pause: timedelta = timedelta(milliseconds=300)
    attempts: int = 4
    grace: timedelta = timedelta(seconds=10)
    overdue: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        for name in ("settle", "poll", "stop_deadline", "retry_pause", "grace", "overdue"):
            checked_wait(getattr(self, name), name)
        if type(self.attempts) is not int or self.attempts < 1:
            raise ConfigurationError(f"attempts={self.attempts!r} cannot work; write a whole number from 1")

    @property
    def grace_ms(self) -> int:
        """The grace in milliseconds."""
        return round(self.grace / timedelta(milliseconds=1))


class StopDeadline:
    """Measures one position's time without a stop; the one alert is due when that has been too long.

    Two times are kept apart. *How long it has been without one* begins with the entry, in whatever process
    that was, and is what the alert is about; the timer fires at the deadline itself, also while an order is
    waited for. *How long this holder has tried* begins anew with each holder, and is what the decision to
    leave it to the next look is about: a successor that comes late shall try to place the stop first.

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
