"""What has been unreadable or undecided for too long is an alert, also while whoever looks is waiting.

A pass that fails says so each time, and a bot that logs it goes on; under fifteen open positions nobody was
told for five minutes that the exchange could not be read. So each trouble has a timer from its first moment:
it fires at its time even if the pass hangs, and only the end of the trouble stops it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

__all__ = ["Overdue"]


@dataclass(slots=True)
class _Trouble:
    why: str
    timer: asyncio.TimerHandle | None
    told: bool = False


class Overdue:
    """Troubles by what they are about.

    Args:
        after: for how long one may last.
        tell: called with what it is about and why, each time it has lasted for ``after`` more.
        over: called with what it was about, when one ends that was told of.
    """

    def __init__(
        self, after: timedelta, tell: Callable[[str, str], None], over: Callable[[str], None]
    ) -> None:
        self._after_s = after.total_seconds()
        self._tell = tell
        self._over = over
        self._troubles: dict[str, _Trouble] = {}

    def begins(self, about: str, why: str) -> None:
        """Something is in trouble, or still is; the time counts from the first word of it."""
        known = self._troubles.get(about)
        if known is None:
            known = self._troubles[about] = _Trouble(why, None)
        known.why = why
        if known.timer is None:
            loop = asyncio.get_running_loop()
            known.timer = loop.call_later(self._after_s, self._fire, about)

    def waits(self, about: str, why: str) -> None:
        """Something has begun that has to come to its end. What is in trouble keeps its reason."""
        known = self._troubles.get(about)
        self.begins(about, why if known is None else known.why)

    def ends(self, about: str) -> None:
        """It is well again."""
        known = self._troubles.pop(about, None)
        if known is None:
            return
        if known.timer is not None:
            known.timer.cancel()
        if known.told:
            self._over(about)

    def ends_all_but(self, prefix: str, kept: Iterable[str]) -> None:
        """Of everything whose name begins with ``prefix``, only these are still in trouble."""
        keep = set(kept)
        for about in [name for name in self._troubles if name.startswith(prefix) and name not in keep]:
            self.ends(about)

    def _fire(self, about: str) -> None:
        known = self._troubles.get(about)
        if known is not None:
            known.timer = None  # the next word of it starts the time anew
            known.told = True
            self._tell(about, known.why)
