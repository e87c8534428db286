"""The pauses between the log-ins of one connection, which begin at 0.05 s and double.

There is one after each attempt that failed. There is also one after a connection that ended before it had
lasted as long as the pause: a peer that ends each connection right behind its log-in would otherwise have us
log in without any, and fetch credentials as often.
"""

from __future__ import annotations

import asyncio
import random

__all__ = ["PAUSE_FIRST_S", "Pauses"]

PAUSE_FIRST_S = 0.05
"""The first pause, before jitter of up to a half."""

_COUNTED = 10
"""After so many failures the pause grows no more."""


class Pauses:
    """The pauses of one connection.

    Args:
        max_s: the longest pause, before jitter.

    Attributes:
        short_lived: how many connections in a row ended soon after their log-in.
    """

    def __init__(self, max_s: float) -> None:
        self.short_lived = 0
        self._max_s = max_s
        self._kept_at = 0.0
        self._failed = 0
        self._callers_until = 0.0

    @property
    def callers_rest(self) -> bool:
        """Whether a failure is so recent that callers share it."""
        return asyncio.get_running_loop().time() < self._callers_until

    async def after(self, failures: int) -> None:
        """Pause after so many failures in a row; returns at once after none."""
        if failures:
            # Jitter, so that a hundred bots do not all reconnect to a restarted server at once.
            await asyncio.sleep(self._pause_s(failures) * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    def note_failed(self) -> None:
        """Note that an attempt failed."""
        self._failed += 1
        self._rest_callers(self._failed)

    def note_kept(self) -> None:
        """Note that a connection was made."""
        self._kept_at = asyncio.get_running_loop().time()
        self._failed, self._callers_until = 0, 0.0

    def note_doubted(self) -> None:
        """Note that the connection is doubted, or has ended."""
        lasted_s = asyncio.get_running_loop().time() - self._kept_at
        self.short_lived = self.short_lived + 1 if lasted_s < self._pause_s(self.short_lived + 1) else 0
        if self.short_lived:
            self._rest_callers(self.short_lived)

    def _rest_callers(self, failures: int) -> None:
        # Never longer than the shortest pause of a reconnect, which is not to be kept waiting here.
        self._callers_until = asyncio.get_running_loop().time() + self._pause_s(failures) / 2

    def _pause_s(self, failures: int) -> float:
        return min(PAUSE_FIRST_S * 2.0 ** min(failures - 1, _COUNTED), self._max_s)
