"""What events come to, as counters and histograms, and what is under way, as gauges.

One mapping of events to metrics serves both Prometheus and OpenTelemetry; they differ in where a number goes.
Events of positions and exchanges are known by their names, so that their packages need not be installed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from lockguard.errors import LossReason
from lockguard.events import (
    Acquired,
    FenceCloseFailed,
    Lost,
    NotAcquired,
    ObserverFailed,
    Released,
    RenewalUnanswered,
    Renewed,
    StaleWrite,
    Unwound,
    Waited,
)
from lockguard_metrics import _catalog as the

if TYPE_CHECKING:
    from lockguard._clock import Clock
    from lockguard_ccxt import OrderAnswered
    from lockguard_metrics._catalog import Metric
    from lockguard_metrics._groups import Groups
    from lockguard_positions import Alert, CommitResolved, DoubtResolved, Looked, Moved, Position

__all__ = ["Counter", "Histogram", "Sink", "Tally"]

_UNDER_WAY_MAX = 100_000
"""Of how many leases or waiters at once the ages are known: a bound, should their ends never be told."""
_NAKED = frozenset({"entry_placed", "pending_sl"})
"""The statuses of a position that was entered and has no stop."""
_OBSERVERS_MAX = 50


class Counter(Protocol):
    """One counter."""

    def add(self, *labels: str) -> None:
        """Count one more."""
        ...

    def begin(self, *labels: str) -> None:
        """Be at 0, unless it was counted before."""
        ...


class Histogram(Protocol):
    """One histogram."""

    def observe(self, value: float, *labels: str) -> None:
        """Record a value."""
        ...

    def begin(self, *labels: str) -> object:
        """Have no value yet, unless one was recorded before."""
        ...


class Sink(Protocol):
    """Where numbers go."""

    def counter(self, metric: Metric) -> Counter:
        """The counter of a metric."""
        ...

    def histogram(self, metric: Metric) -> Histogram:
        """The histogram of a metric."""
        ...


class Tally:
    """Turns events into numbers.

    Args:
        sink: where they go.
        groups: the label of each resource.
        clock: measures what is under way.
    """

    def __init__(self, sink: Sink, groups: Groups, clock: Clock) -> None:
        self._group = groups.of
        self._account = groups.of_account
        self._now = clock.now
        self._held: dict[str, tuple[str, float]] = {}
        self._waiting: dict[str, tuple[str, float]] = {}
        self._lost: dict[str, float] = {}
        self._positions: dict[tuple[str, int], tuple[str, str, float]] = {}
        self._observers: set[str] = set()
        self._locking: set[str] = set()
        self._trading: set[str] = set()

        self._wait = sink.histogram(the.WAIT).observe
        self._seal = sink.histogram(the.SEAL).observe
        self._hold = sink.histogram(the.HOLD).observe
        self._margin = sink.histogram(the.RELEASE_MARGIN).observe
        self._unwind = sink.histogram(the.UNWIND)
        self._ahead = sink.histogram(the.WAITERS_AHEAD)
        self._order_margin = sink.histogram(the.ORDER_MARGIN)
        self._order = sink.histogram(the.ORDER)
        self._stop = sink.histogram(the.STOP)
        self._pass = sink.histogram(the.PASS)
        counters = {one: sink.counter(one) for one in the.OBSERVED if one.kind == "counter"}
        self._count = {metric: counter.add for metric, counter in counters.items()}
        self._series: dict[Metric, Counter | Histogram] = {
            **counters,
            the.UNWIND: self._unwind,
            the.ORDER_MARGIN: self._order_margin,
        }
        self._take: dict[type, Callable[[Any], None]] = {
            Acquired: self._acquired,
            Released: self._released,
            Renewed: lambda event: self._one(the.RENEWALS, event.grant.resource),
            RenewalUnanswered: lambda event: self._one(the.RENEWALS_LATE, event.grant.resource),
            Waited: self._waited,
            NotAcquired: self._not_acquired,
            Lost: self._was_lost,
            Unwound: self._unwound,
            StaleWrite: lambda event: self._one(the.STALE_WRITES, event.grant.resource),
            FenceCloseFailed: lambda event: self._one(the.FENCE_CLOSE_FAILURES, event.grant.resource),
            ObserverFailed: self._observer_failed,
        }

    def on(self, event: object) -> None:
        """Take one event; one of an unknown kind is ignored."""
        take = self._take.get(type(event))
        if take is None:
            take = self._take[type(event)] = self._learnt(type(event))
        take(event)

    def _learnt(self, kind: type) -> Callable[[Any], None]:
        package = kind.__module__.partition(".")[0]
        if package not in {"lockguard_positions", "lockguard_ccxt"}:
            return _ignored
        known: dict[str, Callable[[Any], None]] = {
            "OrderAnswered": self._order_answered,
            "DoubtResolved": self._doubt_resolved,
            "CommitResolved": self._commit_resolved,
            "Moved": self._moved,
            "Looked": self._looked,
            "Alert": self._alerted,
        }
        return known.get(kind.__name__, _ignored)

    def expect(self, resource: str) -> None:
        """Begin what is counted at zero; how many positions are open is not known before it was read."""
        group = self._group(resource)
        self._begin(group, self._locking, the.OF_LEASES)
        self._begin(group, set(), the.OF_POSITIONS)

    def gauges(self) -> Iterator[tuple[Metric, dict[tuple[str, ...], float]]]:
        """What is under way now: each gauge with its values by labels."""
        now = self._now()
        waiting, held = list(self._waiting.values()), list(self._held.values())
        # Nothing is zero and not absent, so that a graph falls to the ground and an alert sees its end.
        zero: dict[tuple[str, ...], float] = {(group,): 0.0 for group in self._locking}
        yield the.WAITERS, zero | _number(group for group, _ in waiting)
        yield the.LONGEST_WAIT, zero | _longest(waiting, now)
        yield the.LEASES_HELD, zero | _number(group for group, _ in held)
        yield the.OLDEST_HOLD, zero | _longest(held, now)
        positions = list(self._positions.values())
        naked = [(group, since) for group, status, since in positions if status in _NAKED]
        zero = {(group,): 0.0 for group in self._trading}
        yield the.POSITIONS_OPEN, zero | _number(group for group, _, _ in positions)
        yield the.POSITIONS_WITHOUT_STOP, zero | _number(group for group, _ in naked)
        yield the.LONGEST_WITHOUT_STOP, zero | _longest(naked, now)

    def _begin(self, group: str, known: set[str], metrics: tuple[Metric, ...]) -> None:
        known.add(group)
        for metric in metrics:
            for labels in metric.begins:
                self._series[metric].begin(group, *labels)

    # --- leases ---

    def _one(self, metric: Metric, resource: str, *labels: str) -> None:
        self._count[metric](self._group(resource), *labels)

    def _acquired(self, event: Acquired) -> None:
        grant = event.grant
        group = self._group(grant.resource)
        self._wait(event.waited_ms / 1000, group)
        if event.sealed_ms:
            self._seal(event.sealed_ms / 1000, group)
        if self._waiting:
            self._waiting.pop(grant.id, None)
        if group not in self._locking:
            self._begin(group, self._locking, the.OF_LEASES)
        if len(self._held) < _UNDER_WAY_MAX:
            self._held[grant.id] = (group, self._now())

    def _released(self, event: Released) -> None:
        grant = event.grant
        group = self._group(grant.resource)
        self._hold(event.held_ms / 1000, group)
        self._margin(event.margin_ms / 1000, group)
        self._held.pop(grant.id, None)
        if event.found is not True and not event.cancelled:
            reason = "unanswered" if event.found is None else "expired"
            self._count[the.UNCONFIRMED](group, reason)

    def _waited(self, event: Waited) -> None:
        group, grant = self._group(event.resource), event.grant
        if grant not in self._waiting:  # told once more when a caller that waited gives up
            self._count[the.BUSY](group)
        if event.gave_up or grant is None or grant in self._waiting:
            return
        if event.ahead is not None:
            self._ahead.observe(event.ahead, group)
        if group not in self._locking:
            self._begin(group, self._locking, the.OF_LEASES)
        if len(self._waiting) < _UNDER_WAY_MAX:
            self._waiting[grant] = (group, self._now())

    def _not_acquired(self, event: NotAcquired) -> None:
        self._waiting.pop(event.grant, None)
        self._one(the.NOT_ACQUIRED, event.resource, event.reason.value)

    def _was_lost(self, event: Lost) -> None:
        known = self._held.pop(event.grant.id, None)
        self._one(the.LOST, event.grant.resource, event.reason.value)
        if known is not None and event.reason is not LossReason.ABANDONED:
            self._lost[event.grant.id] = self._now()

    def _unwound(self, event: Unwound) -> None:
        lost_at = self._lost.pop(event.grant.id, None)
        if lost_at is not None:
            self._unwind.observe(self._now() - lost_at, self._group(event.grant.resource))

    def _observer_failed(self, event: ObserverFailed) -> None:
        name = event.observer
        if name not in self._observers:
            if len(self._observers) >= _OBSERVERS_MAX:
                name = "other"
            self._observers.add(name)
        self._count[the.OBSERVER_FAILURES](name)

    # --- positions ---

    def _order_answered(self, event: OrderAnswered) -> None:
        group, step = self._group(event.resource), event.step
        self._count[the.ORDERS](group, step, event.result.value)
        self._order.observe(event.took_ms / 1000, group, step)
        if event.margin_ms is not None:
            self._order_margin.observe(event.margin_ms / 1000, group, step)
        if event.refusal is not None:
            self._count[the.ORDERS_REFUSED](group, step, event.refusal.name.lower())

    def _doubt_resolved(self, event: DoubtResolved) -> None:
        self._one(the.DOUBTS_RESOLVED, event.resource, event.step, event.outcome.value)

    def _commit_resolved(self, event: CommitResolved) -> None:
        outcome = {None: "unknown", True: "committed", False: "not_committed"}[event.committed]
        self._one(the.COMMITS_IN_DOUBT, event.resource, outcome)

    def _moved(self, event: Moved) -> None:
        position = event.position
        group = self._group(f"{position.exchange}:{position.symbol}")
        self._count[the.CHANGES](group, position.status.value)
        if event.without_stop_ms is not None:
            self._stop.observe(event.without_stop_ms / 1000, group)
        self._note(position, group, naked_for_ms=0)

    def _looked(self, event: Looked) -> None:
        account = self._account(event.exchange)
        self._pass.observe(event.took_ms / 1000, account, event.kind)
        for outcome in event.outcomes:
            action = outcome.action.value.replace(" ", "_")
            self._one(the.SYMBOLS, f"{event.exchange}:{outcome.symbol}", action)
        if event.rows is None:
            return
        if account not in self._trading:
            self._begin(account, self._trading, the.OF_POSITIONS)
        began = self._now() - event.took_ms / 1000
        read = {row.id for row in event.rows}
        for key, (_, _, since) in list(self._positions.items()):
            # What was written here since the rows were read is newer than they are.
            if key[0] == event.exchange and key[1] not in read and since < began:
                del self._positions[key]
        for row in event.rows:
            known = self._positions.get((row.exchange, row.id))
            if known is None or (known[1] != row.status.value and known[2] < began):
                group = self._group(f"{row.exchange}:{row.symbol}")
                self._note(row, group, naked_for_ms=row.age_ms)

    def _note(self, position: Position, group: str, *, naked_for_ms: int) -> None:
        key, status = (position.exchange, position.id), position.status.value
        known = self._positions.get(key)
        if group not in self._trading:
            self._begin(group, self._trading, the.OF_POSITIONS)
        if not position.status.open:
            self._positions.pop(key, None)
        elif known is not None and known[1] in _NAKED and status in _NAKED:
            self._positions[key] = (group, status, known[2])
        elif known is not None or len(self._positions) < _UNDER_WAY_MAX:
            self._positions[key] = (group, status, self._now() - naked_for_ms / 1000)

    def _alerted(self, event: Alert) -> None:
        if not event.over:
            self._one(the.ALERTS, event.resource if ":" in event.resource else f"{event.resource}:")


def _ignored(event: object) -> None:
    pass


def _number(groups: Iterator[str]) -> dict[tuple[str, ...], float]:
    found: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for group in groups:
        found[group,] += 1
    return dict(found)


def _longest(since: list[tuple[str, float]], now: float) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for group, at in since:
        found[group,] = max(found.get((group,), 0.0), now - at)
    return found
