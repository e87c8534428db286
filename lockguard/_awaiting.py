"""Waiting for another task, and whether one cannot go on before another has ended, where that can be seen.

asyncio has no public way to ask (before 3.14). What is looked at here is read only, and what cannot be seen
counts as "no": the asker then waits for its turn, which its patience bounds.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

__all__ = ["cancel_on_its_way", "end_of", "waits_for"]

_STEPS_MAX = 100


def end_of(task: asyncio.Task[Any]) -> asyncio.Future[None]:
    """Done when ``task`` is, however it ends. Cancelling who awaits this does not cancel the task."""
    ended: asyncio.Future[None] = task.get_loop().create_future()
    task.add_done_callback(lambda _: None if ended.done() else ended.set_result(None))
    return ended


def waits_for(owner: asyncio.Task[Any], asker: asyncio.Task[Any]) -> bool:
    """Whether ``owner`` awaits ``asker``: itself, through other tasks, ``gather`` or a ``TaskGroup``."""
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
    """Whether a cancel was asked of ``task`` that its coroutine has not seen yet."""
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
    """The task that waits at the end of the ``TaskGroup`` which ``task`` is in, if it waits there now."""
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
