"""Releases that a failover may have lost.

Replicas are behind their master. A release that the old master has answered may be unknown to the new one,
and then the lock would stay closed there, held by nobody, for the rest of its ttl. So what was released
lately is released again where the resource lives next. That is harmless: a release is by grant, a grant that
is not there is no error, and where one node decides, it is the last that is ever said of its grant.
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
"""How long a release may be unknown to a replica: an old master that was cut off answers until it is left."""

KEPT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Release:
    """What was said.

    Attributes:
        said_at: when, by the clock of the event loop, in seconds.
        place: to which server.
        keys: of release.lua.
        args: of release.lua.
    """

    said_at: float
    place: Place
    keys: tuple[str, ...]
    args: tuple[str | int, ...]


class Releases:
    """The latest ones."""

    def __init__(self) -> None:
        self._releases: deque[Release] = deque(maxlen=KEPT_MAX)

    def note(self, place: Place, keys: tuple[str, ...], args: tuple[str | int, ...]) -> None:
        """Remember one."""
        self._releases.append(Release(asyncio.get_running_loop().time(), place, keys, args))

    def moved(self, place_of: Callable[[str], Place | None]) -> list[Release]:
        """Those whose resource lives on another server now; they count as said there.

        Args:
            place_of: tells the server that a key lives on; ``None`` while nobody knows.
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
