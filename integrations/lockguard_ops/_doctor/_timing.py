"""Round trips and clocks: how long a server takes to answer, and how far its clock is from this machine's.

A server's clock is read in the middle of a round trip, so half of the trip is the uncertainty. The shortest
trips tell most, so an offset is taken from these.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard._quorum import DRIFT_SHARE
from lockguard_ops._doctor._findings import Report, Severity, advice

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["Sample", "Timing", "apart", "measure", "tell_clocks", "tell_latency"]

_PAUSE_S = 0.05
_SAMPLES_MIN = 3
_OFFSET_S = 1.0
_STEP_S = 0.1
_PARTS = 3
_SLOW_SHARE = 1 / 3
_LONG_SHARE = 1 / 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a server's clock; all in seconds.

    Attributes:
        at: the middle of the round trip, on this machine's monotonic clock.
        trip: how long the round trip took.
        ahead: how far the server's clock was ahead of this machine's wall clock.
        since: the server's clock, less ``at``.
    """

    at: float
    trip: float
    ahead: float
    since: float


@dataclass(frozen=True, slots=True)
class Timing:
    """The readings of one server.

    Attributes:
        server: for display.
        samples: at least one, in their order.
    """

    server: str
    samples: tuple[Sample, ...]

    @property
    def median(self) -> float:
        """The usual length of a round trip, in seconds."""
        return statistics.median(sample.trip for sample in self.samples)

    @property
    def longest(self) -> float:
        """The longest round trip, in seconds."""
        return max(sample.trip for sample in self.samples)

    @property
    def ahead(self) -> tuple[float, float]:
        """How far the server's clock is ahead of this machine's, and the uncertainty, in seconds."""
        best = _best(self.samples)
        return best.ahead, best.trip / 2

    @property
    def step(self) -> float:
        """By how much the server's clock was set between two readings, in seconds; 0 if it was not."""
        apart_s = [
            after.since - before.since
            for before, after in itertools.pairwise(self.samples)
            if abs(after.since - before.since) - (before.trip + after.trip) / 2 > _STEP_S
        ]
        return sum(apart_s)

    @property
    def drift(self) -> tuple[float, float] | None:
        """By which share the server's clock runs faster, and the uncertainty; ``None`` if it is not known."""
        part = len(self.samples) // _PARTS
        if not part:
            return None
        first, last = _best(self.samples[:part]), _best(self.samples[-part:])
        passed = last.at - first.at
        return (last.since - first.since) / passed, (first.trip + last.trip) / 2 / passed


def _best(samples: Sequence[Sample]) -> Sample:
    return min(samples, key=lambda sample: sample.trip)


async def measure(server: str, ask: Callable[[], Awaitable[float]], length: timedelta) -> Timing:
    """Read a server's clock again and again.

    Args:
        server: for display.
        ask: one round trip; returns the server's clock in seconds since 1970.
        length: for how long.

    Raises:
        Exception: what ``ask`` raises.
    """
    clock, samples = SYSTEM_CLOCK, list[Sample]()
    end = clock.now() + length.total_seconds()
    while len(samples) < _SAMPLES_MIN or clock.now() < end:
        before, wall = clock.now(), clock.wall()
        told = await ask()
        trip = clock.now() - before
        middle = before + trip / 2
        samples.append(Sample(middle, trip, told - wall - trip / 2, told - middle))
        await asyncio.sleep(_PAUSE_S)
    return Timing(server, tuple(samples))


def tell_latency(timing: Timing, ttl: timedelta, report: Report) -> None:
    """Compare the round trips with the ttl."""
    third, median, longest = ttl.total_seconds() * _SLOW_SHARE, timing.median, timing.longest
    found = f"median {_ms(median)}, longest {_ms(longest)}; ttl {ttl.total_seconds():g} s"
    severity, remedy = Severity.OK, ""
    if median >= third:
        severity = Severity.ERROR
    elif longest >= third or median >= ttl.total_seconds() * _LONG_SHARE:
        severity = Severity.WARNING
    if severity is not Severity.OK:
        seconds = max(longest / _SLOW_SHARE, median / _LONG_SHARE)
        remedy = advice(
            f"run the bot nearer to the server, or give its guard ttl=timedelta(seconds={int(seconds) + 1})"
        )
    report.add("latency", severity, timing.server, found, remedy)


def tell_clocks(timings: Sequence[Timing], report: Report) -> None:
    """Compare the clocks with this machine's and with each other, and their speed."""
    for timing in timings:
        ahead, give = timing.ahead
        found, severity, remedy = f"{apart(ahead)} this machine's", Severity.OK, ""
        if abs(ahead) - give > _OFFSET_S:
            for other in timings:
                between = ahead - other.ahead[0]
                if abs(between) - give - other.ahead[1] > _OFFSET_S:
                    found += f", {apart(between)} {other.server}'s"
            severity = Severity.WARNING
            remedy = advice("on that machine, and on this one: timedatectl set-ntp true")
        report.add("clock.offset", severity, timing.server, f"{found} (+/- {_ms(give)})", remedy)
        _tell_drift(timing, report)


def _tell_drift(timing: Timing, report: Report) -> None:
    if step := timing.step:
        found = f"it was set by {_ms(step)} while it was watched"
    elif timing.drift is None or abs(timing.drift[0]) - timing.drift[1] <= DRIFT_SHARE:
        return
    else:
        share, give = timing.drift
        found = f"it gains {share:+.1%} on this machine's (+/- {give:.1%})"
    remedy = advice("on that machine: chronyc makestep, then see why it was off: chronyc tracking")
    report.add("clock.drift", Severity.ERROR, timing.server, found, remedy)


def apart(ahead: float) -> str:
    """How far a clock that is this many seconds ahead is from another, for display."""
    return f"{_ms(abs(ahead))} {'ahead of' if ahead >= 0 else 'behind'}"


def _ms(seconds: float) -> str:
    return f"{seconds:,.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"
