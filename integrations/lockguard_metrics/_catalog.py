"""Every metric that an observer gives: its name, unit, labels and meaning, in one place.

The names are those of Prometheus. OpenTelemetry has them too, as its exporters to Prometheus expect them:
``lockguard_wait_seconds`` is ``lockguard.wait`` with the unit ``s``, ``lockguard_leases_lost_total`` is the
counter ``lockguard.leases_lost``. So a query is the same, whichever way a figure came.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeAlias

from lockguard.errors import LossReason
from lockguard.events import NotAcquiredReason

__all__ = ["OBSERVED", "OF_LEASES", "OF_POSITIONS", "Kind", "Metric"]

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]

_TIMES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_MARGINS = (0.0, 0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20, 30)
_STEPS = ("entry", "stop", "close", "cancel")
_PLACES = (0, 1, 2, 5, 10, 20, 50, 100, 500)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: in Prometheus, with its unit and ``_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        labels: the names of its labels.
        meaning: what it counts or measures.
        bounds: the upper bounds of a histogram's buckets, without the last, which is infinite.
        begins: the values of the labels after ``group`` for which it begins at 0 when its group is known.
            Prometheus sees no increase in a series that begins at 1: the first loss would not alert.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()
    begins: tuple[tuple[str, ...], ...] = ()

    @property
    def unit(self) -> str:
        """The unit in Prometheus: ``seconds``, or empty for a number of things."""
        return "seconds" if self.name.endswith("_seconds") else ""

    @property
    def otel_name(self) -> str:
        """The name in OpenTelemetry."""
        bare = self.name.removesuffix("_total").removesuffix("_seconds")
        return bare.replace("lockguard_", "lockguard.", 1)

    @property
    def otel_unit(self) -> str:
        """The unit in OpenTelemetry."""
        return "s" if self.unit else ""


def _counter(
    name: str, meaning: str, *labels: str, begins: tuple[tuple[str, ...], ...] | None = None
) -> Metric:
    if begins is None:
        begins = ((),) if labels == ("group",) else ()
    return Metric(f"lockguard_{name}_total", "counter", labels, meaning, begins=begins)


def _each(*values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(product(*values))


def _gauge(name: str, meaning: str, *labels: str) -> Metric:
    return Metric(f"lockguard_{name}", "gauge", labels, meaning)


def _histogram(
    name: str,
    meaning: str,
    *labels: str,
    bounds: tuple[float, ...] = _TIMES,
    begins: tuple[tuple[str, ...], ...] = (),
) -> Metric:
    return Metric(f"lockguard_{name}", "histogram", labels, meaning, bounds, begins)


# --- leases ---

WAIT = _histogram(
    "wait_seconds", "From the call until the body, for each lease that was handed out.", "group"
)
SEAL = _histogram("seal_seconds", "How much of the wait the seal in the fence took.", "group")
HOLD = _histogram("hold_seconds", "From the grant until the end of its release.", "group")
RELEASE_MARGIN = _histogram(
    "release_margin_seconds",
    "How much of the lease was left when its body ended: its deadline minus now.",
    "group",
    bounds=_MARGINS,
)
UNWIND = _histogram(
    "unwind_seconds", "From the loss of a lease until its body has ended.", "group", begins=((),)
)
BUSY = _counter(
    "busy", "Callers that did not get the resource at once, whether they then waited or not.", "group"
)
NOT_ACQUIRED = _counter(
    "not_acquired",
    "Callers that got no lease, by reason.",
    "group",
    "reason",
    begins=_each(NotAcquiredReason),
)
WAITERS_AHEAD = _histogram(
    "waiters_ahead", "How many callers were ahead of one that began to wait.", "group", bounds=_PLACES
)
WAITERS = _gauge("waiters", "Callers of this process that wait now.", "group")
LONGEST_WAIT = _gauge(
    "longest_wait_seconds", "How long the caller that has waited longest has waited.", "group"
)
LEASES_HELD = _gauge("leases_held", "Leases that this process holds now.", "group")
OLDEST_HOLD = _gauge("oldest_hold_seconds", "How long the oldest of these leases has been held.", "group")
LOST = _counter(
    "leases_lost",
    "Leases that ended under their bodies, by reason.",
    "group",
    "reason",
    begins=_each(set(LossReason) - {LossReason.UNCONFIRMED}),
)
RENEWALS = _counter("renewals", "Renewals that were granted.", "group")
RENEWALS_LATE = _counter(
    "renewals_late", "Renewals that were not answered within a tenth of the ttl.", "group"
)
UNCONFIRMED = _counter(
    "releases_unconfirmed",
    "Releases that came after the lock had expired on the server, or got no answer.",
    "group",
    "reason",
    begins=_each(("expired", "unanswered")),
)
STALE_WRITES = _counter(
    "stale_writes_refused", "Writes that Postgres refused because their token was not in force.", "group"
)
FENCE_CLOSE_FAILURES = _counter(
    "fence_close_failures", "Fences that could not be closed when a body ended.", "group"
)
OBSERVER_FAILURES = _counter("observer_failures", "Failures of other observers, by class.", "observer")

OF_LEASES: tuple[Metric, ...] = tuple(one for one in globals().values() if isinstance(one, Metric))
"""The metrics of leases."""

# --- positions ---

ORDERS = _counter(
    "orders",
    "Orders that were placed or cancelled, by what became of them.",
    "group",
    "step",
    "result",
    begins=_each(_STEPS, ("executed", "found", "refused", "unknown")),
)
ORDERS_REFUSED = _counter("orders_refused", "Orders that were refused, by reason.", "group", "step", "reason")
ORDER_MARGIN = _histogram(
    "order_margin_seconds",
    "How much of the lease was left when an order left this machine.",
    "group",
    "step",
    bounds=_MARGINS,
    begins=_each(_STEPS),
)
ORDER = _histogram("order_seconds", "How long an order took, with its retries and searches.", "group", "step")
DOUBTS_RESOLVED = _counter(
    "order_doubts_resolved", "Orders in doubt whose outcome was found out later.", "group", "step", "outcome"
)
COMMITS_IN_DOUBT = _counter(
    "commits_in_doubt",
    "Commits whose reply was lost, by what Postgres then said.",
    "group",
    "outcome",
    begins=_each(("committed", "not_committed", "unknown")),
)
CHANGES = _counter("position_changes", "Changes of positions, by the new status.", "group", "status")
POSITIONS_OPEN = _gauge("positions_open", "Open positions that this process has read or written.", "group")
POSITIONS_WITHOUT_STOP = _gauge(
    "positions_without_stop", "Those of them that were entered and have no stop.", "group"
)
LONGEST_WITHOUT_STOP = _gauge(
    "longest_without_stop_seconds", "How long the one without a stop for longest has been so.", "group"
)
STOP = _histogram("stop_seconds", "How long a position was without a stop until it got one.", "group")
ALERTS = _counter("alerts", "Alerts that were raised; their ends and repeats within the pauses not.", "group")
PASS = _histogram("pass_seconds", "How long a pass or a recovery took.", "group", "kind")
SYMBOLS = _counter(
    "symbols_looked_at", "Symbols of passes and recoveries, by what was done.", "group", "action"
)

OBSERVED: tuple[Metric, ...] = tuple(one for one in globals().values() if isinstance(one, Metric))
"""All metrics of an observer."""

OF_POSITIONS: tuple[Metric, ...] = OBSERVED[len(OF_LEASES) :]
"""The metrics of orders and positions."""
