"""What observers are told, and how often.

Changes are told as they happen. Alerts go through :class:`Repeats`, because each pass sees the same condition
again. What cannot be read or decided for too long becomes an alert (:class:`Overdue`). A look (a pass or a
recovery) reports what it saw, which also tells which conditions have ended.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from lockguard._audience import Audience
from lockguard_ccxt._placing import told
from lockguard_positions._events import (
    OVER,
    Alert,
    DoubtResolved,
    Looked,
    Moved,
    PositionEvent,
    PositionObserver,
    WriteRefused,
)
from lockguard_positions._model import GONE, IntentOutcome, SyncAction, SyncOutcome
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import named

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from lockguard._clock import Clock
    from lockguard.errors import StaleToken
    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._model import Intent, Position

__all__ = ["PAUSES", "LeftWithoutStop", "Look", "Repeats", "Telling", "is_over"]

PAUSES = (timedelta(minutes=5), timedelta(minutes=30), timedelta(days=1))
"""Pauses between two alerts of one condition; the last is repeated."""

_NOT_LOOKED = frozenset(
    {SyncAction.BUSY, SyncAction.UNREADABLE, SyncAction.SETTLING, SyncAction.IN_DOUBT, SyncAction.FAILED}
)
"""After these it is not known whether a condition of the symbol has ended."""
_CONDITIONS_MAX = 10_000
_WITHOUT_STOP = frozenset({PositionStatus.ENTRY_PLACED, PositionStatus.PENDING_SL})


class Telling:
    """Tells observers what happens to positions.

    Args:
        observers: told of each event.
        overdue: for how long something may be unreadable or undecided before an alert is raised.
        clock: measures the pauses between repeated alerts.
    """

    def __init__(self, observers: Sequence[PositionObserver], *, overdue: timedelta, clock: Clock) -> None:
        self._audience: Audience[PositionEvent] = Audience(observers, clock=clock)
        self._repeats = Repeats(clock)
        self._overdue_after = overdue
        self._overdue = Overdue(overdue, self._too_long, self._no_longer)
        self._open_rows: dict[str, int] = {}
        # Positions opened here since a look last counted the rows: the next look may be long in coming.
        self._opened: dict[str, dict[int, float]] = {}
        self._strange: dict[str, tuple[tuple[str, PlacedOrder, str], ...]] = {}

    def tell(self, event: PositionEvent) -> None:
        """Tell the observers of an event; an alert only if it is due."""
        if isinstance(event, Alert):
            self._alert(event)
            return
        if isinstance(event, Moved):
            opened = self._opened.setdefault(event.position.exchange, {})
            if event.position.status.open:
                opened.setdefault(event.position.id, self._repeats.now())
            else:
                opened.pop(event.position.id, None)
        self._audience.tell(event)

    def now(self) -> float:
        """The clock's time in seconds."""
        return self._repeats.now()

    def refused(self, stale: StaleToken) -> None:
        """Tell of a write that Postgres refused."""
        self.tell(WriteRefused(stale.resource, stale.presented, stale.current))

    def settled(self, position: Position, intent: Intent, outcome: IntentOutcome) -> None:
        """Tell what became of an order that was in doubt."""
        resource = f"{position.exchange}:{position.symbol}"
        self.tell(
            DoubtResolved(resource, position.id, intent.step.value, intent.client_id, outcome, intent.age_ms)
        )

    def told_to_wait(self, exchange: str, wait: timedelta) -> None:
        """Raise an alert that the exchange accepts no calls for ``wait``."""
        span = f"{wait.total_seconds():g} s"
        why = f"the exchange takes no calls for {span} (ban or rate limit): none are sent"
        self._alert(Alert(exchange, None, why), about="calls are closed")

    def warn_of_stops(self, position: Position) -> None:
        """Raise an alert for each order, seen by the last pass, that would cut a new position short."""
        for symbol, stop, _ in self._strange.get(position.exchange, ()):
            if symbol == position.symbol and stop.side == position.side.exit:
                why = f"opened though a reduce-only order waits that would cut it short: {named(stop)}"
                self.tell(Alert(f"{position.exchange}:{symbol}", position.id, why))

    def rows_of(self, exchange: str, count: int, *, since: float | None = None) -> None:
        """Record how many positions are open in the table, as read by a look that began at ``since``."""
        self._open_rows[exchange] = count
        if since is not None:
            opened = self._opened.get(exchange, {})
            self._opened[exchange] = {one: at for one, at in opened.items() if at >= since}

    @contextmanager
    def look(self, exchange: str, kind: str) -> Iterator[Look]:
        """Watch a look: if it fails, or does not end, for too long, an alert is raised."""
        about = f"{exchange} {kind}"
        began = self._repeats.now()
        self._overdue.waits(about, "it has not come to its end")
        try:
            yield Look(self, exchange, kind, began)
        except Exception as exc:
            self._overdue.begins(about, told(exc).partition("\n")[0])
            raise
        self._overdue.ends(about)

    # --- what a look saw ---

    def saw(self, exchange: str, outcomes: Sequence[SyncOutcome], *, everything: bool, since: float) -> None:
        """Remember which symbols are undecided, and since when; tell which conditions have ended."""
        named = {f"{exchange}:{outcome.symbol}": outcome for outcome in outcomes}
        for about, outcome in named.items():
            if outcome.action.settled:
                self._overdue.ends(about)
            else:
                self._overdue.begins(about, f"{outcome.action.value}: {outcome.details}")
        if everything:
            undecided = [about for about, outcome in named.items() if not outcome.action.settled]
            self._overdue.ends_all_but(f"{exchange}:", undecided)

        def looked_at(resource: str) -> bool:
            if (outcome := named.get(resource)) is not None:
                return outcome.action not in _NOT_LOOKED
            return everything and (resource == exchange or resource.startswith(f"{exchange}:"))

        for alert in self._repeats.over(looked_at, since):
            self._audience.tell(alert)

    def saw_strange(self, exchange: str, stops: tuple[tuple[str, PlacedOrder, str], ...]) -> None:
        """Raise an alert for each stop that belongs to no row."""
        self._strange[exchange] = stops
        for symbol, stop, what in stops:
            alert = Alert(f"{exchange}:{symbol}", None, f"a reduce-only order waits {what}: {named(stop)}")
            self._alert(alert, about=f"waits {stop.id}")

    # --- inside ---

    def _alert(self, alert: Alert, *, about: str | None = None, watched: bool = False) -> None:
        """Tell an alert, unless it was told lately."""
        if self._repeats.is_due(alert, about=about, watched=watched):
            self._audience.tell(alert)

    def _too_long(self, about: str, why: str) -> None:
        exchange = about.partition(":")[0].partition(" ")[0]
        rows, opened = self._open_rows.get(exchange), len(self._opened.get(exchange, {}))
        if rows is not None:
            rows = max(rows, opened)
        if ":" not in about and rows == 0:
            return
        count = "an unknown number of" if rows is None else rows
        held = "" if ":" in about else f", with {count} open positions"
        span = f"{self._overdue_after.total_seconds():g} s"
        alert = Alert(_resource(about), None, f"not read or decided for longer than {span}{held}: {why}")
        self._alert(alert, about=f"overdue {about}", watched=True)

    def _no_longer(self, about: str) -> None:
        for alert in self._repeats.end(_resource(about), f"overdue {about}"):
            self._audience.tell(alert)


@dataclass(frozen=True, slots=True)
class Look:
    """One pass or recovery, which reports what it saw.

    Attributes:
        telling: receives the reports.
        exchange: the account that is looked at.
        kind: ``pass`` or ``recovery``.
        began: when it began, in seconds of the clock of ``telling``.
    """

    telling: Telling
    exchange: str
    kind: str
    began: float

    def rows(self, count: int) -> None:
        """Report how many positions are open in the table."""
        self.telling.rows_of(self.exchange, count, since=self.began)

    def saw(self, outcomes: Sequence[SyncOutcome], *, everything: bool = False) -> None:
        """Report the outcomes of symbols; with ``everything``, all other symbols are in order."""
        self.telling.saw(self.exchange, outcomes, everything=everything, since=self.began)

    def saw_strange(self, stops: tuple[tuple[str, PlacedOrder, str], ...]) -> None:
        """Report the stops that belong to no row."""
        self.telling.saw_strange(self.exchange, stops)

    def over(self, outcomes: Sequence[SyncOutcome], *, open_rows: tuple[Position, ...] | None = None) -> None:
        """Tell that it has come to its end, with the open rows if it has read them all."""
        took_ms = (self.telling.now() - self.began) * 1000
        self.telling.tell(Looked(self.exchange, self.kind, took_ms, tuple(outcomes), open_rows))


def _resource(about: str) -> str:
    """The resource of a trouble: a symbol, or the exchange of a look."""
    return about if ":" in about else about.partition(" ")[0]


# --- how often ---

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
    """Decides which alerts of a condition are passed on: at its start, at growing intervals, and at its end.

    A pass sees the same trouble every few seconds. Told each time, one delisted contract makes thousands of
    alerts a day, which bury the one that matters; told only once, it is forgotten. What was seen a single
    time was an event, and has no end to tell of.

    A condition is identified by its resource, its position and the message up to its first colon; the rest
    of the message may change each time.

    Args:
        clock: measures the pauses.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._conditions: OrderedDict[_Key, _Condition] = OrderedDict()

    def now(self) -> float:
        """The clock's time in seconds, to pass to :meth:`over` as the start of a look."""
        return self._clock.now()

    def is_due(self, alert: Alert, *, about: str | None = None, watched: bool = False) -> bool:
        """Whether an alert is to be told now.

        Args:
            alert: what was seen, again or for the first time.
            about: names the condition, where the start of the message does not identify it.
            watched: whether the caller reports the end (:meth:`end`); otherwise the condition ends with the
                first look that does not see it.
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
        """Forget the conditions that a look has not seen again; returns the alerts of their ends.

        Args:
            looked_at: whether the look has decided about a resource.
            since: when the look began.
        """
        gone = [
            key
            for key, one in self._conditions.items()
            if not one.watched and one.seen_at < since and looked_at(key[0])
        ]
        ended = [self._conditions.pop(key) for key in gone]
        return [_over(one.alert) for one in ended if one.seen > 1]

    def end(self, resource: str, about: str) -> list[Alert]:
        """Forget a condition that has ended, of any position; returns the alerts of its end."""
        gone = [key for key in self._conditions if key[0] == resource and key[2] == about]
        return [_over(self._conditions.pop(key).alert) for key in gone]


def is_over(alert: Alert) -> bool:
    """Whether an alert tells that a condition has ended."""
    return alert.over


def _key(alert: Alert, about: str | None) -> _Key:
    return alert.resource, alert.position_id, about or alert.message.partition(": ")[0]


def _over(alert: Alert) -> Alert:
    return replace(alert, message=f"{OVER}{alert.message}")


# --- for how long ---


@dataclass(slots=True)
class _Trouble:
    why: str
    timer: asyncio.TimerHandle | None
    told: bool = False


class Overdue:
    """Raises an alert for what is unreadable or undecided for too long, even while a pass hangs.

    A failing pass raises each time, and a bot that only logs it carries on: once, with fifteen open
    positions, no alert was raised for five minutes although the exchange could not be read. So each trouble
    has a timer from its first report: it fires even if the pass hangs, and only the trouble's end stops it.

    Args:
        after: how long a trouble may last.
        tell: called with the trouble's name and reason, each time it has lasted for another ``after``.
        over: called with the name of a trouble that has ended, if it was told of.
    """

    def __init__(
        self, after: timedelta, tell: Callable[[str, str], None], over: Callable[[str], None]
    ) -> None:
        self._after_s = after.total_seconds()
        self._tell = tell
        self._over = over
        self._troubles: dict[str, _Trouble] = {}

    def begins(self, about: str, why: str) -> None:
        """Report a trouble that begins or continues; its time counts from the first report."""
        known = self._troubles.get(about)
        if known is None:
            known = self._troubles[about] = _Trouble(why, None)
        known.why = why
        if known.timer is None:
            loop = asyncio.get_running_loop()
            known.timer = loop.call_later(self._after_s, self._fire, about)

    def waits(self, about: str, why: str) -> None:
        """Report the start of something that must end in time; a trouble already known keeps its reason."""
        known = self._troubles.get(about)
        self.begins(about, why if known is None else known.why)

    def ends(self, about: str) -> None:
        """Report the end of a trouble, if there is one of this name."""
        known = self._troubles.pop(about, None)
        if known is None:
            return
        if known.timer is not None:
            known.timer.cancel()
        if known.told:
            self._over(about)

    def ends_all_but(self, prefix: str, kept: Iterable[str]) -> None:
        """End all troubles whose name begins with ``prefix``, except those in ``kept``."""
        keep = set(kept)
        for about in [name for name in self._troubles if name.startswith(prefix) and name not in keep]:
            self.ends(about)

    def _fire(self, about: str) -> None:
        known = self._troubles.get(about)
        if known is not None:
            known.timer = None  # the next report starts the timer again
            known.told = True
            self._tell(about, known.why)


class LeftWithoutStop:
    """Raises an alert for each position that this process entered or resumed and that has no stop in time.

    A flow's own timer ends with the flow. An exit in place of a stop whose answer is lost, or a lease that
    ends, leaves the position to the next holder, and a pass may come seconds later.

    Args:
        deadline: how long a position may be without a stop, from its entry.
        read: reads a row, as another process may have placed the stop.
        tell: called with the alert.
    """

    def __init__(
        self,
        deadline: timedelta,
        read: Callable[[int], Awaitable[Position | None]],
        tell: Callable[[PositionEvent], None],
    ) -> None:
        self._deadline_s = deadline.total_seconds()
        self._read = read
        self._tell = tell
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._reading: set[asyncio.Task[None]] = set()

    @property
    def pending(self) -> bool:
        """Whether an alert may still be raised."""
        return bool(self._timers or self._reading)

    def saw(self, event: PositionEvent) -> None:
        """Start or stop a position's timer by what became of its row."""
        if not isinstance(event, Moved):
            return
        row = event.position
        if row.status not in _WITHOUT_STOP:
            if (timer := self._timers.pop(row.id, None)) is not None:
                timer.cancel()
        elif row.id not in self._timers:
            left_s = max(0.0, self._deadline_s - row.age_ms / 1000)
            self._timers[row.id] = asyncio.get_running_loop().call_later(left_s, self._passed, row)

    def _passed(self, row: Position) -> None:
        del self._timers[row.id]
        reading = asyncio.create_task(self._judge(row), name=f"look for the stop of {row.id}")
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)

    async def _judge(self, row: Position) -> None:
        now: Position | None = row
        try:
            async with asyncio.timeout(self._deadline_s):
                now = await self._read(row.id)
        except Exception:  # noqa: BLE001, S110 - what cannot be read may well have no stop: the alert is due
            pass
        if now is not None and now.status in _WITHOUT_STOP and now.error_details != GONE:
            why = f"without a stop for longer than {self._deadline_s:g} s"
            self._tell(Alert(f"{row.exchange}:{row.symbol}", row.id, why))
