"""Releases that a failover may have lost.

Replicas lag behind their master. A release that the old master answered may be unknown to the new one, where
the lock would then stay closed without a holder for the rest of its ttl. So recent releases are sent again to
the server that serves the resource next. That is harmless: a release names its grant, a missing grant is no
error, and where one node decides, a release is the last command ever sent for its grant.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Place", "Release", "Releases"]

Place = tuple[str, int]
"""A server: host and port."""

KEPT_S = 60.0
"""How long a release may be unknown to a replica: a cut-off old master answers until its clients leave it."""

KEPT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was sent.

    Attributes:
        said_at: when it was noted, by the event loop's clock, in seconds.
        place: the server that it was sent to.
        keys: the keys of release.lua.
        args: the arguments of release.lua.
    """

    said_at: float
    place: Place
    keys: tuple[str, ...]
    args: tuple[str | int, ...]


class Releases:
    """The releases of the last ``KEPT_S`` seconds, at most ``KEPT_MAX``."""

    def __init__(self) -> None:
        self._releases: deque[Release] = deque(maxlen=KEPT_MAX)

    def note(self, place: Place, keys: tuple[str, ...], args: tuple[str | int, ...]) -> None:
        """Remember a release sent to ``place``."""
        self._releases.append(Release(asyncio.get_running_loop().time(), place, keys, args))

    def moved(self, place_of: Callable[[str], Place | None]) -> list[Release]:
        """The releases whose resource is now on another server; from now on they count as sent there.

        Args:
            place_of: returns the server that serves a key; ``None`` if unknown.
        """
        since = asyncio.get_running_loop().time() - KEPT_S
        places: dict[str, Place | None] = {}
        moved, kept = [], []
        for release in self._releases:
            if release.said_at < since:
                continue
            lock = release.keys[0]
            if lock not in places:
                places[lock] = place_of(lock)
            place = places[lock] or release.place
            if place != release.place:
                release = Release(release.said_at, place, release.keys, release.args)  # noqa: PLW2901
                moved.append(release)
            kept.append(release)
        self._releases = deque(kept, maxlen=KEPT_MAX)
        return moved
