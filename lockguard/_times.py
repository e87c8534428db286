"""Times as callers give them: checked once, at the edge."""

from __future__ import annotations

from datetime import timedelta

from lockguard.errors import ConfigurationError

__all__ = [
    "TTL_MAX",
    "TTL_MIN",
    "WAIT_MAX",
    "checked_ttl",
    "checked_wait",
    "checked_within",
    "milliseconds",
    "require_timedelta",
]

TTL_MIN = timedelta(milliseconds=100)
TTL_MAX = timedelta(days=1)
WAIT_MAX = timedelta(days=1)
WITHIN_MIN = timedelta(milliseconds=1)


def milliseconds(time: timedelta) -> int:
    """For the wire."""
    return round(time.total_seconds() * 1000)


def checked_ttl(ttl: timedelta, name: str = "ttl") -> timedelta:
    """A life that can be kept alive.

    Raises:
        ConfigurationError: no timedelta, or out of range.
    """
    require_timedelta(name, ttl)
    if not TTL_MIN <= ttl <= TTL_MAX:
        raise ConfigurationError(
            f"{name}={ttl.total_seconds():g} s cannot work: a lease is trusted for its ttl less 1 % and 2 ms"
            f" of clock drift, and is renewed from a third of it on; use {TTL_MIN.total_seconds():g} s to"
            f" {TTL_MAX.total_seconds():g} s"
        )
    return ttl


def checked_wait(wait: timedelta, name: str = "wait") -> timedelta:
    """A patience, which may be none.

    Raises:
        ConfigurationError: no timedelta, or out of range.
    """
    require_timedelta(name, wait)
    if not timedelta(0) <= wait <= WAIT_MAX:
        raise ConfigurationError(
            f"{name}={wait.total_seconds():g} s cannot work; use 0 s to {WAIT_MAX.total_seconds():g} s"
        )
    return wait


def checked_within(within: timedelta, name: str) -> timedelta:
    """A time in which somebody must answer, so it cannot be none.

    Raises:
        ConfigurationError: no timedelta, or out of range.
    """
    if checked_wait(within, name) < WITHIN_MIN:
        raise ConfigurationError(
            f"{name}={within.total_seconds():g} s cannot work: nobody answers in no time;"
            f" use {WITHIN_MIN.total_seconds():g} s to {WAIT_MAX.total_seconds():g} s"
        )
    return within


def require_timedelta(name: str, value: object) -> None:
    """A time with its unit.

    Raises:
        ConfigurationError: no timedelta.
    """
    if not isinstance(value, timedelta):
        raise ConfigurationError(
            f"{name}={_shown(value)} has no unit; write a timedelta, such as timedelta(seconds=10)"
        )


def _shown(value: object) -> str:
    """A number as it is; of anything else only what it is."""
    return repr(value) if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"
