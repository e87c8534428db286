"""What one thread waits for and another gives.

``concurrent.futures.Future`` and ``threading.Event`` are built of a condition in Python, which an exception
raised by a signal handler in the middle of it leaves in a state that raises a ``RuntimeError`` of its own
instead. Here the wait is one call of a lock written in C.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar, cast

__all__ = ["Outcome"]

T = TypeVar("T")


class Outcome(Generic[T]):
    """A result or an error, given once and waited for by one thread."""

    __slots__ = ("_error", "_given", "_result", "done")

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._given.acquire()
        self._result: T | None = None
        self._error: BaseException | None = None
        self.done = False
        """Whether it was given."""

    def give(self, result: T) -> None:
        """Give the result."""
        self._result = result
        self._end()

    def fail(self, error: BaseException) -> None:
        """Give an error, which :meth:`wait` raises."""
        self._error = error
        self._end()

    def wait(self) -> T:
        """Wait for it; returns the result, or raises the error."""
        if not self.done:
            self._given.acquire()
        if self._error is not None:
            raise self._error
        return cast("T", self._result)

    def _end(self) -> None:
        self.done = True
        self._given.release()
