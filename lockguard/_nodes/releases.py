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

__all__ = ["Endpoint", "Release", "Releases"]

Endpoint = tuple[str, int]
"""A server: host and port."""

KEPT_S = 60.0
"""How long a release may be unknown to a replica: a cut-off old master answers until its clients leave it."""

KEPT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Release:
    """A release that was sent.

    Attributes:
        said_at: when it was noted, by the event loop's clock, in seconds.
        endpoint: the server that it was sent to.
        keys: the keys of release.lua.
        args: the arguments of release.lua.
    """

    said_at: float
    endpoint: Endpoint
    keys: tuple[str, ...]
    args: tuple[str | int, ...]


class Releases:
    """The releases of the last ``KEPT_S`` seconds, at most ``KEPT_MAX``."""

    def __init__(self) -> None:
        self._releases: deque[Release] = deque(maxlen=KEPT_MAX)

    def note(self, endpoint: Endpoint, keys: tuple[str, ...], args: tuple[str | int, ...]) -> None:
        """Remember a release sent to ``endpoint``."""
        self._releases.append(Release(asyncio.get_running_loop().time(), endpoint, keys, args))

    def moved(self, endpoint_of: Callable[[str], Endpoint | None]) -> list[Release]:
        """The releases whose resource is now on another server; from now on they count as sent there.

        Args:
            endpoint_of: returns the server that serves a key; ``None`` if unknown.
        """
        since = asyncio.get_running_loop().time() - KEPT_S
        endpoints: dict[str, Endpoint | None] = {}
        moved, kept = [], []
        for release in self._releases:
            if release.said_at < since:
                continue
            lock = release.keys[0]
            if lock not in endpoints:
                endpoints[lock] = endpoint_of(lock)
            endpoint = endpoints[lock] or release.endpoint
            if endpoint != release.endpoint:
                release = Release(release.said_at, endpoint, release.keys, release.args)  # noqa: PLW2901
                moved.append(release)
            kept.append(release)
        self._releases = deque(kept, maxlen=KEPT_MAX)
        return moved
