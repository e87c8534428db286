"""What persists is told when it begins, now and then while it lasts, and once more when it is over.

A pass sees the same trouble every few seconds. Told each time, one delisted contract is thousands of alerts
a day, among which the one that matters is not found; told once only, it is forgotten. So each condition has
its times: at once, after five minutes, after half an hour more, and then once a day. What was seen a single
time was an event and has no end to tell of.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockguard._clock import Clock
    from lockguard_positions._events import Alert

__all__ = ["PAUSES", "Repeats", "is_over"]

PAUSES = (timedelta(minutes=5), timedelta(minutes=30), timedelta(days=1))
"""Between one word of a condition and the next; the last of them stays."""
_CONDITIONS_MAX = 10_000
_OVER = "over: "

_Key: TypeAlias = tuple[str, int | None, str]


@dataclass(slots=True)
class _Condition:
    alert: Alert
    watched: bool
    seen_at: float
    told_at: float
    told: int = 1
    seen: int = 1


class Repeats:
    """Decides which word of a condition is passed on.

    A condition is told from another one by its resource, its position and what the message says before its
    first colon; what follows may be worded anew each time.

    Args:
        clock: measures the pauses.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._conditions: OrderedDict[_Key, _Condition] = OrderedDict()

    def now(self) -> float:
        """For :meth:`over`: when a look began."""
        return self._clock.now()

    def is_due(self, alert: Alert, *, about: str | None = None, watched: bool = False) -> bool:
        """Whether an alert is to be told now.

        Args:
            alert: what was seen, again or for the first time.
            about: which condition of the resource, where the message does not tell by its beginning.
            watched: whether somebody will say when it ends (:meth:`end`); otherwise a look that does not see
                it is its end.
        """
        now = self._clock.now()
        key = _key(alert, about)
        known = self._conditions.get(key)
        if known is None:
            self._conditions[key] = _Condition(alert, watched, now, now)
            if len(self._conditions) > _CONDITIONS_MAX:
                self._conditions.popitem(last=False)
            return True
        self._conditions.move_to_end(key)
        known.alert, known.seen_at, known.seen = alert, now, known.seen + 1
        pause = PAUSES[min(known.told, len(PAUSES)) - 1]
        if now - known.told_at < pause.total_seconds():
            return False
        known.told_at, known.told = now, known.told + 1
        return True

    def over(self, looked_at: Callable[[str], bool], since: float) -> list[Alert]:
        """What a look has not seen again: the ends that are to be told.

        Args:
            looked_at: whether the look has decided about a resource.
            since: when it began.
        """
        gone = [
            key
            for key, one in self._conditions.items()
            if not one.watched and one.seen_at < since and looked_at(key[0])
        ]
        ended = [self._conditions.pop(key) for key in gone]
        return [_over(one.alert) for one in ended if one.seen > 1]

    def end(self, resource: str, about: str) -> list[Alert]:
        """A condition is over, whoever had it; what is to be told of it."""
        gone = [key for key in self._conditions if key[0] == resource and key[2] == about]
        return [_over(self._conditions.pop(key).alert) for key in gone]


def is_over(alert: Alert) -> bool:
    """Whether it says that something has come to its end."""
    return alert.message.startswith(_OVER)


def _key(alert: Alert, about: str | None) -> _Key:
    return alert.resource, alert.position_id, about or alert.message.partition(": ")[0]


def _over(alert: Alert) -> Alert:
    return replace(alert, message=f"{_OVER}{alert.message}")
