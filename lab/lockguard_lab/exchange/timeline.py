"""A value with its past.

A real exchange is not one machine: an order that its matching engine has filled may be missing from the
answer of the position endpoint for seconds. Every value of the local exchange keeps its past, so that each
read can be answered as of a moment ago.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Generic, TypeVar

__all__ = ["Timeline"]

T = TypeVar("T")

_VERSIONS_MAX = 512
"""How many versions of one value are kept; older ones are forgotten."""


class Timeline(Generic[T]):
    """The versions of one value, by the instant each became true."""

    __slots__ = ("_at_ms", "_values")

    def __init__(self, value: T, at_ms: int) -> None:
        self._at_ms = [at_ms]
        self._values = [value]

    @property
    def now(self) -> T:
        """What is true."""
        return self._values[-1]

    def put(self, value: T, at_ms: int) -> None:
        """From ``at_ms`` on, ``value`` is true."""
        self._at_ms.append(max(at_ms, self._at_ms[-1]))
        self._values.append(value)
        if len(self._values) > _VERSIONS_MAX:
            del self._at_ms[: _VERSIONS_MAX // 2]
            del self._values[: _VERSIONS_MAX // 2]

    def shift(self, by_ms: int) -> None:
        """The clock was stepped: what was true a moment ago by the old one was so by the new one too."""
        self._at_ms = [at_ms + by_ms for at_ms in self._at_ms]

    def as_of(self, at_ms: int) -> T | None:
        """What was true at ``at_ms``, or ``None`` if there was nothing yet."""
        index = bisect_right(self._at_ms, at_ms)
        return self._values[index - 1] if index else None
