"""The bounds of the flow's waits, and the measure of a position's time without a stop."""

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
    """The bounds of the flow's waits. Each wait ends earlier if what it waits for happens.

    Attributes:
        settle: how long an entry may take to be filled. One that is filled in part has at most half of
            ``stop_deadline`` from then on; what is left of it is cancelled, so that the part gets its stop.
        poll: the pause between two reads of the exchange meanwhile.
        stop_deadline: how long a position may be without a stop before an alert is raised, and how long each
            holder tries to place one before it leaves that to the next pass.
        retry_pause: the pause after the first refusal for a passing reason; it doubles with each retry.
        attempts: how many attempts are made in all.
        grace: for how long after a change the exchange's lists are not trusted.
        overdue: for how long something may be unreadable or undecided before an alert is raised.

    Raises:
        ConfigurationError: a bound cannot work; unchecked, it would fail while an entry waits for its stop.
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
    """Measures one position's time without a stop, and raises one alert when it is too long.

    Two times are kept apart. *The time without a stop* begins with the entry, in any process, and decides on
    the alert; its timer fires at the deadline, even while an order's answer is awaited. *The time that this
    holder has tried* begins with each holder, and decides when to leave the stop to the next pass: a late
    successor must still try to place the stop.

    Args:
        deadline: the limit of both times.
        clock: measures the time that this holder has tried.
    """

    def __init__(self, deadline: timedelta, clock: Clock) -> None:
        self._deadline_s = deadline.total_seconds()
        self._clock = clock
        self._tried_since: float | None = None
        self._already_ms = 0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, passed: Callable[[float], None], *, already_ms: int = 0) -> None:
        """Start measuring a position without a stop; does nothing if already started.

        Args:
            passed: called once, with the deadline in seconds, when it passes; soon if it has passed already.
            already_ms: for how many milliseconds the position has been without a stop before.
        """
        if self._tried_since is not None:
            return
        self._tried_since, self._already_ms = self._clock.now(), already_ms
        left_s = max(0.0, self._deadline_s - already_ms / 1000)
        self._timer = asyncio.get_running_loop().call_later(left_s, passed, self._deadline_s)

    @property
    def running(self) -> bool:
        """Whether the position is without a stop, as far as is known."""
        return self._tried_since is not None

    @property
    def over(self) -> bool:
        """Whether this holder has tried for long enough."""
        if self._tried_since is None:
            return False
        return self._clock.now() - self._tried_since >= self._deadline_s

    @property
    def for_the_rest_s(self) -> float:
        """For how many seconds the rest of an entry may be waited for while a part of it has no stop.

        The first half of the deadline is for that, and the other one for the cancel and the stop.
        """
        return max(0.0, self._deadline_s / 2 - (self.lasted_ms or 0.0) / 1000)

    @property
    def lasted_ms(self) -> float | None:
        """For how many milliseconds the position has been without a stop; ``None`` if it is not measured."""
        if self._tried_since is None:
            return None
        return self._already_ms + (self._clock.now() - self._tried_since) * 1000

    def end(self) -> None:
        """Stop measuring: the position has its stop, has ended, or is left to the next holder."""
        self._tried_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
