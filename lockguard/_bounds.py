"""Bounds of what a task awaits: ``asyncio.timeout`` for those who need it often.

That one makes a timer for each use and takes it back, which costs more than most of what is bounded. Here
all uses of one length share a timer, which an answer in time does not touch.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Bound", "Bounds"]


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
