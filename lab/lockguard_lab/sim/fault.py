"""One thing that goes wrong in a schedule."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: what.
        at: when, in seconds since the beginning, or since what it waits for.
        lasts: for how long, in seconds.
        where: numbers that choose a process and a server.
        upon: what it waits for, empty for nothing: ``held`` (a body begins), ``granted`` (a server gave the
            lock, and its answer is under way), ``long`` (the same, for the longer of two ttls), ``released``
            (a server took it back), ``waits`` (a server queued a caller), ``woken`` (a server keeps the lock
            for one). It befalls the process of the call.
        nth: at which time of these.
    """

    kind: str
    at: float
    lasts: float
    where: tuple[int, int] = (0, 0)
    upon: str = ""
    nth: int = 1
