"""A clock that moves only when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["FakeClock"]


class FakeClock:
    """A :class:`lockguard._clock.Clock` whose time tests set.

    Args:
        now_s: where the suspend-proof clock begins, in seconds.
        wall_s: where the wall clock begins, in seconds since 1970.
    """

    __slots__ = ("_now_s", "_wall_s")

    def __init__(self, *, now_s: float = 1_000.0, wall_s: float = 1_750_000_000.0) -> None:
        self._now_s = now_s
        self._wall_s = wall_s

    def now(self) -> float:
        """Seconds on the clock that never goes back."""
        return self._now_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return self._wall_s

    def advance(self, by: timedelta) -> None:
        """Let time pass on both clocks.

        Raises:
            ConfigurationError: ``by`` is negative.
        """
        if by.total_seconds() < 0:
            raise ConfigurationError(f"time cannot advance by {by}: only set_wall_back() goes back")
        self._now_s += by.total_seconds()
        self._wall_s += by.total_seconds()

    def set_wall_back(self, by: timedelta) -> None:
        """Step the wall clock alone, as time synchronisation or an operator does (negative: forward)."""
        self._wall_s -= by.total_seconds()
