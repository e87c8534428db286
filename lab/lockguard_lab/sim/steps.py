"""Cancels a task at its n-th step."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any

__all__ = ["CancelledAtStep"]


class CancelledAtStep(Coroutine[Any, Any, Any]):
    """A coroutine whose task is cancelled while it awaits for the n-th time.

    Args:
        work: the coroutine.
        step: which await, from 1.
        late: cancel once what is awaited is there, right before the task goes on with it; else at once.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], step: int, *, late: bool) -> None:
        self._work, self._left, self._late = work, step, late

    def send(self, value: Any) -> Any:
        """Run to the next await."""
        return self._counted(self._work.send(value))

    def throw(self, *error: Any) -> Any:
        """Run to the next await."""
        return self._counted(self._work.throw(*error))

    def close(self) -> None:
        """End it."""
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        """As of every coroutine."""
        raise NotImplementedError("it is for a task only")

    def _counted(self, awaited: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            task = asyncio.current_task()
            assert task is not None
            if self._late and awaited is not None:
                awaited.add_done_callback(lambda _: task.cancel())
            else:
                task.get_loop().call_soon(task.cancel)
        return awaited
