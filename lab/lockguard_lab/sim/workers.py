"""Work in several processes, which end when the command ends, however it ends."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import active_children, connection, parent_process
from typing import TypeVar

__all__ = ["results"]

P = TypeVar("P")
R = TypeVar("R")

_AHEAD = 2
"""How many parts wait for each process: a range of seeds may be longer than memory has room for."""


def results(work: Callable[[P], R], parts: Iterable[P], processes: int) -> Generator[R, None, None]:
    """What ``work`` returns for each part, in order.

    Close it (``contextlib.closing``) if it may be left early: its processes are then killed.

    Args:
        work: a function of a module, for one part.
        parts: what to work on; read as it is needed.
        processes: how many run at once.
    """
    others = set(active_children())
    waiting: deque[Future[R]] = deque()
    with ProcessPoolExecutor(processes, initializer=_begin) as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(work, part))
                if len(waiting) > _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:  # also when the iterator is closed
            for future in waiting:
                future.cancel()
            for child in set(active_children()) - others:
                child.kill()
            raise


def _begin() -> None:
    """Leave Ctrl-C to the parent, which ends its children, and end when the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
