"""What observers are told, and how often.

Changes are told as they happen. Alerts pass through :class:`~lockguard_positions._repeats.Repeats`, as passes
see the same thing again and again, and what cannot be read or decided for too long is one
(:class:`~lockguard_positions._overdue.Overdue`). A look says what it saw, and so what is over.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard._audience import Audience
from lockguard_ccxt._placing import told
from lockguard_positions._events import Alert, Moved, PositionEvent, PositionObserver, WriteRefused
from lockguard_positions._overdue import Overdue
from lockguard_positions._reconcile import SyncAction, SyncOutcome
from lockguard_positions._repeats import Repeats

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import timedelta

    from lockguard._clock import Clock
    from lockguard.errors import StaleToken
    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._model import Position

__all__ = ["Look", "Telling"]

_NOT_LOOKED = frozenset(
    {SyncAction.BUSY, SyncAction.UNREADABLE, SyncAction.SETTLING, SyncAction.IN_DOUBT, SyncAction.FAILED}
)
"""After these it is not known whether a condition of the symbol is over."""


class Telling:
    """Tells observers what happens to positions.

    Args:
        observers: who is told.
        overdue: for how long something may be unreadable or undecided before it is an alert.
        clock: measures what is repeated.
    """

    def __init__(self, observers: Sequence[PositionObserver], *, overdue: timedelta, clock: Clock) -> None:
        self._audience: Audience[PositionEvent] = Audience(observers, clock=clock)
        self._repeats = Repeats(clock)
        self._overdue_after = overdue
        self._overdue = Overdue(overdue, self._too_long, self._no_longer)
        self._open_rows: dict[str, int] = {}
        # Those that were opened here since a look last counted: it may be long until the next one does.
        self._opened: dict[str, dict[int, float]] = {}
        self._strange: dict[str, tuple[tuple[str, PlacedOrder, str], ...]] = {}

    def tell(self, event: PositionEvent) -> None:
        """Something happened."""
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

    def refused(self, stale: StaleToken) -> None:
        """Postgres refused a write."""
        self.tell(WriteRefused(stale.resource, stale.presented, stale.current))

    def told_to_wait(self, exchange: str, wait: timedelta) -> None:
        """The exchange takes no calls for a while."""
        span = f"{wait.total_seconds():g} s"
        why = f"the exchange takes no calls for {span} (ban or rate limit): none are sent"
        self._alert(Alert(exchange, None, why), about="calls are closed")

    def warn_of_stops(self, position: Position) -> None:
        """Tell of what waits to cut a position short that is opened now, as far as the last pass saw it."""
        for symbol, stop, _ in self._strange.get(position.exchange, ()):
            if symbol == position.symbol and stop.side == position.side.exit:
                why = f"opened though a reduce-only order waits that would cut it short: {_named(stop)}"
                self.tell(Alert(f"{position.exchange}:{symbol}", position.id, why))

    def rows_of(self, exchange: str, count: int, *, since: float | None = None) -> None:
        """How many positions are open by the table, as a look says that began at ``since``."""
        self._open_rows[exchange] = count
        if since is not None:
            opened = self._opened.get(exchange, {})
            self._opened[exchange] = {one: at for one, at in opened.items() if at >= since}

    @contextmanager
    def look(self, exchange: str, kind: str) -> Iterator[Look]:
        """A look that has to come to its end, and not only to an end: else it is an alert after a while."""
        about = f"{exchange} {kind}"
        began = self._repeats.now()
        self._overdue.waits(about, "it has not come to its end")
        try:
            yield Look(self, exchange, began)
        except Exception as exc:
            self._overdue.begins(about, told(exc).partition("\n")[0])
            raise
        self._overdue.ends(about)

    # --- what a look saw ---

    def saw(self, exchange: str, outcomes: Sequence[SyncOutcome], *, everything: bool, since: float) -> None:
        """Remember which symbols are undecided, and since when; tell what is over."""
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
        """Tell of each stop that nobody here knows of."""
        self._strange[exchange] = stops
        for symbol, stop, what in stops:
            alert = Alert(f"{exchange}:{symbol}", None, f"a reduce-only order waits {what}: {_named(stop)}")
            self._alert(alert, about=f"waits {stop.id}")

    # --- inside ---

    def _alert(self, alert: Alert, *, about: str | None = None, watched: bool = False) -> None:
        """Tell it, unless it was told lately."""
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
    """One pass or recovery, which says what it saw."""

    telling: Telling
    exchange: str
    began: float

    def rows(self, count: int) -> None:
        """How many positions are open by the table."""
        self.telling.rows_of(self.exchange, count, since=self.began)

    def saw(self, outcomes: Sequence[SyncOutcome], *, everything: bool = False) -> None:
        """What came of the symbols; with ``everything``, all others are well."""
        self.telling.saw(self.exchange, outcomes, everything=everything, since=self.began)

    def saw_strange(self, stops: tuple[tuple[str, PlacedOrder, str], ...]) -> None:
        """The stops that belong to no row."""
        self.telling.saw_strange(self.exchange, stops)


def _resource(about: str) -> str:
    """What a trouble is about: a symbol, or the exchange of a look."""
    return about if ":" in about else about.partition(" ")[0]


def _named(stop: PlacedOrder) -> str:
    return f"{stop.client_id or stop.id} ({stop.side} {stop.amount} at {stop.trigger})"
