"""Bounds of what a task awaits: ``asyncio.timeout`` for those who need it often.

That one makes a timer for each use and takes it back, which costs more than most of what is bounded. Here
many uses share a timer, which an answer in time does not touch: :class:`Bounds` those of one length, for
bodies; :class:`AnswerBounds` those of different lengths, for futures.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from asyncio import Future
    from types import TracebackType

__all__ = ["AnswerBounds", "Bound", "Bounds"]

T = TypeVar("T")


class Bounds:
    """Bounds of one length, in one event loop.

    Args:
        seconds: how long each body may take.
    """

    __slots__ = ("_open", "_seconds", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._open: dict[Bound, float] = {}  # the first began first, so it also ends first
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Leave no timer behind, unless there is still a body to end."""
        if self._timer is not None and not self._open:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, now = None, loop.time()
        for bound, due in list(self._open.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._open[bound]
            bound.expire()


class Bound:
    """Ends one body with ``TimeoutError`` when its time is up: ``with Bound(bounds): ...``.

    It takes back exactly its own cancel.

    Args:
        bounds: of what length.
    """

    __slots__ = ("_bounds", "_cancels_before", "_expired", "_task")

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._task: asyncio.Task[Any] | None = None
        self._cancels_before = 0
        self._expired = False

    def __enter__(self) -> Self:
        bounds, task = self._bounds, asyncio.current_task()
        assert task is not None
        self._task, self._cancels_before = task, task.cancelling()
        loop = task.get_loop()
        due = bounds._open[self] = loop.time() + bounds._seconds
        if bounds._timer is None:
            bounds._timer = loop.call_at(due, bounds._look, loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bounds._open.pop(self, None)
        if not self._expired:
            return
        assert self._task is not None
        only_ours = self._task.uncancel() <= self._cancels_before
        if only_ours and isinstance(exc, asyncio.CancelledError):
            raise TimeoutError from exc

    def expire(self) -> None:
        """Its time is up."""
        assert self._task is not None
        self._expired = True
        self._task.cancel()


class AnswerBounds:
    """Ends the wait for answers that do not come, each in its own time.

    Args:
        within_s: how long one may take at most.
        give_up: called with each that took longer, and with how long it had.
    """

    def __init__(self, within_s: float, give_up: Callable[[Future[Any], float], None]) -> None:
        self._within_s = within_s
        self._give_up = give_up
        self._open: deque[tuple[float, float, Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def expect(self, asked: Future[T], within_s: float = math.inf) -> Future[T]:
        """Wait for it no longer than that, or than ``within_s`` if that is less; gives it back."""
        within_s = min(within_s, self._within_s)
        loop, waited_for = asked.get_loop(), self._open
        while waited_for and waited_for[0][2].done():
            waited_for.popleft()
        due = loop.time() + within_s
        waited_for.append((due, within_s, asked))
        if due < self._timer_at:
            self.close()
            self._timer_at, self._timer = due, loop.call_at(due, self._look, loop)
        return asked

    def close(self) -> None:
        """Leave no timer behind."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now, waited_for, self._open = loop.time(), self._open, deque()
        for due, within_s, asked in waited_for:
            if asked.done():
                continue
            if due > now:
                self._open.append((due, within_s, asked))
            else:
                self._give_up(asked, within_s)
        self._timer, self._timer_at = None, min((due for due, _, _ in self._open), default=math.inf)
        if self._open:
            self._timer = loop.call_at(self._timer_at, self._look, loop)
