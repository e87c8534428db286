"""A cancel stays a cancel, although the connection breaks in the same moment.

Whoever is cancelled in the middle of a statement tidies up on the connection, and an error of that is raised
in place of the ``CancelledError``. A loop that takes errors of the database for passing ones would then go
on, past its own timeout too, with nobody left to stop it.
"""

from __future__ import annotations

import asyncio

__all__ = ["CancelWatch"]


class CancelWatch:
    """Those of the running task, from the making of this object on."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def raise_if_cancelled(self) -> None:
        """Be cancelled now, if the task was asked to meanwhile; a timeout's own cancel counts too.

        Raises:
            asyncio.CancelledError: it was.
        """
        if self._task is not None and self._task.cancelling() > self._before:
            raise asyncio.CancelledError
