"""Checks of the times that callers give, made once, where they enter the library."""

from __future__ import annotations

from datetime import timedelta

from lockguard.errors import ConfigurationError

__all__ = [
    "AT_LEAST_MAX",
    "TTL_MAX",
    "TTL_MIN",
    "WAIT_MAX",
    "checked_at_least",
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
AT_LEAST_MAX = timedelta(days=7)
"""As long as Redis remembers anything of a resource that is not used."""


def milliseconds(time: timedelta) -> int:
    """``time`` in whole milliseconds, as it is sent to Redis."""
    return round(time.total_seconds() * 1000)


def checked_ttl(ttl: timedelta, name: str = "ttl") -> timedelta:
    """Check and return a ttl: ``TTL_MIN`` to ``TTL_MAX``, so that the lease can be kept alive.

    Raises:
        ConfigurationError: not a timedelta, or out of range.
    """
    require_timedelta(name, ttl)
    if not TTL_MIN <= ttl <= TTL_MAX:
        raise ConfigurationError(
            f"{name}={_seconds(ttl)} s cannot work: a lease is trusted for its ttl less 1 % and 2 ms"
            f" of clock drift, and is renewed from a third of it on; use {TTL_MIN.total_seconds():g} s to"
            f" {TTL_MAX.total_seconds():g} s"
        )
    return ttl


def checked_wait(wait: timedelta, name: str = "wait") -> timedelta:
    """Check and return a patience: zero to ``WAIT_MAX``.

    Raises:
        ConfigurationError: not a timedelta, or out of range.
    """
    require_timedelta(name, wait)
    if not timedelta(0) <= wait <= WAIT_MAX:
        raise ConfigurationError(
            f"{name}={_seconds(wait)} s cannot work; use 0 s to {WAIT_MAX.total_seconds():g} s"
        )
    return wait


def checked_at_least(at_least: timedelta | None, name: str = "at_least") -> int:
    """Check for how long a resource stays closed from its grant on; returns milliseconds, 0 for none.

    Raises:
        ConfigurationError: not a timedelta, or out of range.
    """
    if at_least is None:
        return 0
    require_timedelta(name, at_least)
    if not timedelta(0) <= at_least <= AT_LEAST_MAX:
        raise ConfigurationError(
            f"{name}={_seconds(at_least)} s cannot work; use 0 s to {AT_LEAST_MAX.days} days"
        )
    return milliseconds(at_least)


def checked_within(within: timedelta, name: str) -> timedelta:
    """Check and return a time limit for an answer: ``WITHIN_MIN`` to ``WAIT_MAX``, so never zero.

    Raises:
        ConfigurationError: not a timedelta, or out of range.
    """
    require_timedelta(name, within)
    if not WITHIN_MIN <= within <= WAIT_MAX:
        why = ": nobody answers in no time" if within < WITHIN_MIN else ""
        raise ConfigurationError(
            f"{name}={_seconds(within)} s cannot work{why};"
            f" use {WITHIN_MIN.total_seconds():g} s to {WAIT_MAX.total_seconds():g} s"
        )
    return within


def _seconds(time: timedelta) -> str:
    """``time`` to the microsecond, so that what is just out of range is not shown as its bound."""
    return f"{time.total_seconds():.12g}"


def require_timedelta(name: str, value: object) -> None:
    """Check that ``value`` is a timedelta: a bare number has no unit.

    Raises:
        ConfigurationError: it is not.
    """
    if not isinstance(value, timedelta):
        raise ConfigurationError(
            f"{name}={_shown(value)} has no unit; write a timedelta, such as timedelta(seconds=10)"
        )


def _shown(value: object) -> str:
    """A number or ``None`` as it is; of anything else only its type."""
    return repr(value) if value is None or isinstance(value, int | float) else f"<{type(value).__name__}>"
