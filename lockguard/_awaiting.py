"""What asyncio lacks: cheap time limits, whether one task waits for another, and the end of an event loop.

``asyncio.timeout`` creates and cancels a timer for each use, which costs more than most of the work that it
bounds. Here many uses share one timer, which an answer in time does not touch: :class:`Bounds` for bodies
with one limit, :class:`AnswerBounds` for futures with different limits.

Nor can one be told before an event loop is closed, or rid oneself of tasks that were in a closed one:
:class:`LoopEnd`, :func:`drop_tasks`.

Before Python 3.14 there is no public way to ask whether a task waits for another one to end. The private
attributes used for that are only read, and what they do not show counts as "no": the asker then waits its
turn, for no longer than its patience.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

if TYPE_CHECKING:
    from asyncio import Future
    from types import TracebackType

    from lockguard._clock import Timer, Timers

__all__ = [
    "AnswerBounds",
    "Bound",
    "Bounds",
    "LoopEnd",
    "cancel_on_its_way",
    "drop_tasks",
    "end_of",
    "waits_for",
]

T = TypeVar("T")

_STEPS_MAX = 100


class Bounds:
    """Time limits of one length, in one event loop.

    Args:
        seconds: the limit for each body.
        timers: calls when a limit is over; by default the event loop.
    """

    __slots__ = ("_open", "_seconds", "_timer", "_timers")

    def __init__(self, seconds: float, timers: Timers | None = None) -> None:
        self._seconds = seconds
        self._open: dict[Bound, float] = {}  # in order of entry, and so of expiry
        self._timer: Timer | None = None
        self._timers = timers

    def close(self) -> None:
        """Cancel the timer, unless a body is still open."""
        if self._timer is not None and not self._open:
            self._timer.cancel()
            self._timer = None

    def _look(self, loop: Timers) -> None:
        self._timer, now = None, loop.time()
        for bound, due in list(self._open.items()):
            if due > now:
                self._timer = loop.call_at(due, self._look, loop)
                return
            del self._open[bound]
            bound.expire()


class Bound:
    """Ends one body with ``TimeoutError`` when its time is up: ``with Bound(bounds): ...``.

    It undoes its own cancel and no other.

    Args:
        bounds: gives the limit and the timer.
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
        loop = bounds._timers or task.get_loop()
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
        """Cancel the body's task: its time is up."""
        assert self._task is not None
        self._expired = True
        self._task.cancel()


class AnswerBounds:
    """Ends the wait for answers that do not come, each after its own time.

    Args:
        within_s: the limit for every answer, in seconds.
        give_up: called with each future that took longer, and with the seconds that it had.
        timers: calls when a limit is over; by default the event loop.
    """

    def __init__(
        self,
        within_s: float,
        give_up: Callable[[Future[Any], float], None],
        timers: Timers | None = None,
    ) -> None:
        self._within_s = within_s
        self._give_up = give_up
        self._open: deque[tuple[float, float, Future[Any]]] = deque()
        self._timer: Timer | None = None
        self._timer_at = math.inf
        self._timers = timers

    def expect(self, asked: Future[T], within_s: float = math.inf) -> Future[T]:
        """Bound the wait for ``asked``, by ``within_s`` seconds if that is the lesser limit; returns it."""
        within_s = min(within_s, self._within_s)
        loop, waited_for = self._timers or asked.get_loop(), self._open
        while waited_for and waited_for[0][2].done():
            waited_for.popleft()
        due = loop.time() + within_s
        waited_for.append((due, within_s, asked))
        if due < self._timer_at:
            self.close()
            self._timer_at, self._timer = due, loop.call_at(due, self._look, loop)
        return asked

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, math.inf

    def _look(self, loop: Timers) -> None:
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


class LoopEnd:
    """Calls a coroutine function before the running event loop is closed.

    ``asyncio.run`` and everything else that runs a loop to its end first ends the loop's asynchronous
    generators (``loop.shutdown_asyncgens``). One that waits there is the only way to be told. Where a loop is
    closed without that, nothing is called.

    Args:
        call: called once, in the loop.
    """

    def __init__(self, call: Callable[[], Awaitable[None]]) -> None:
        self._call: Callable[[], Awaitable[None]] | None = call
        self._waiting = self._wait()
        with contextlib.suppress(StopIteration):
            self._waiting.__anext__().send(None)  # begins it, which needs no await

    def forget(self) -> None:
        """Call nothing any more."""
        self._call = None
        with contextlib.suppress(StopIteration, RuntimeError):  # it is being ended: this is part of the call
            self._waiting.aclose().send(None)

    async def _wait(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._call is not None:
                await self._call()


def drop_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let lockguard's tasks go that were left in a closed loop: asyncio would log that they never ended."""
    for task in asyncio.all_tasks(loop):
        if task.get_name().startswith("lockguard-"):
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio itself does in gather()


def end_of(task: asyncio.Task[Any]) -> asyncio.Future[None]:
    """A future that is done when ``task`` is, however it ends. Cancelling it does not cancel the task."""
    ended: asyncio.Future[None] = task.get_loop().create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    return ended


def waits_for(owner: asyncio.Task[Any], asker: asyncio.Task[Any]) -> bool:
    """Whether ``owner`` awaits ``asker``: directly, or through other tasks, ``gather`` or a ``TaskGroup``."""
    grouped: defaultdict[Any, list[Any]] = defaultdict(list)
    for task in asyncio.all_tasks():
        if (parent := _group_parent(task)) is not None:
            grouped[parent].append(task)
    open_ends: list[Any] = [owner]
    seen: set[Any] = set()
    while open_ends:
        future = open_ends.pop()
        if future is asker:
            return True
        if future is not None and future not in seen:
            seen.add(future)
            open_ends.append(getattr(future, "_fut_waiter", None))
            open_ends.extend(getattr(future, "_children", ()))
            open_ends.extend(grouped.get(future, ()))
    return False


def cancel_on_its_way(task: asyncio.Task[Any]) -> bool:
    """Whether ``task`` was asked to cancel and its coroutine has not seen it yet."""
    waiter: Any = task
    for _ in range(_STEPS_MAX):
        if getattr(waiter, "_must_cancel", False) or getattr(waiter, "_cancel_requested", False):
            return True
        if waiter is not task and (waiter.cancelled() or _was_cancelled(waiter)):
            return True
        waiter = getattr(waiter, "_fut_waiter", None)
        if waiter is None:
            return False
    return True


def _group_parent(task: asyncio.Task[Any]) -> asyncio.Task[Any] | None:
    """The parent of the ``TaskGroup`` that ``task`` is in, if it now waits at the group's end."""
    for callback, _ in getattr(task, "_callbacks", None) or ():
        group = getattr(callback, "__self__", None)
        if isinstance(group, asyncio.TaskGroup):
            parent = getattr(group, "_parent_task", None)
            end = getattr(group, "_on_completed_fut", None)
            if parent is not None and end is not None and getattr(parent, "_fut_waiter", None) is end:
                return parent  # type: ignore[no-any-return]
    return None


def _was_cancelled(future: Any) -> bool:
    return isinstance(future, asyncio.Task) and future.cancelling() > 0
