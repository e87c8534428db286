"""A value with its history.

A real exchange is not one machine: an order that its matching engine has filled may be missing from the
answer of the position endpoint for seconds. Every value of the local exchange keeps its history, so that each
read can be answered as of an earlier time.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Generic, TypeVar

__all__ = ["Timeline"]

T = TypeVar("T")

_VERSIONS_MAX = 512
"""How many versions of one value are kept; older ones are forgotten."""


class Timeline(Generic[T]):
    """The versions of one value, by the time at which each took effect."""

    __slots__ = ("_at_ms", "_values")

    def __init__(self, value: T, at_ms: int) -> None:
        self._at_ms = [at_ms]
        self._values = [value]

    @property
    def now(self) -> T:
        """The current value."""
        return self._values[-1]

    def put(self, value: T, at_ms: int) -> None:
        """Make ``value`` the current one from ``at_ms`` on."""
        self._at_ms.append(max(at_ms, self._at_ms[-1]))
        self._values.append(value)
        if len(self._values) > _VERSIONS_MAX:
            del self._at_ms[: _VERSIONS_MAX // 2]
            del self._values[: _VERSIONS_MAX // 2]

    def shift(self, by_ms: int) -> None:
        """Shift the history with a stepped clock, so that each version keeps its age."""
        self._at_ms = [at_ms + by_ms for at_ms in self._at_ms]

    def as_of(self, at_ms: int) -> T | None:
        """The value at ``at_ms``, or ``None`` if there was none yet."""
        index = bisect_right(self._at_ms, at_ms)
        return self._values[index - 1] if index else None
