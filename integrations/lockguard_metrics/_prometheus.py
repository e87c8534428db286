"""Metrics for Prometheus.

An observer is told of each lock between the caller and its body, so it must be fast: prometheus_client's own
histograms take a microsecond and more for each value. So the numbers are kept here, in lists, and are made
into samples when they are scraped; registry, exposition and server are prometheus_client's.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard.errors import ConfigurationError
from lockguard_metrics._catalog import OBSERVED, Metric
from lockguard_metrics._groups import Groups, Label, exchange_of
from lockguard_metrics._tally import Tally

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

__all__ = ["PrometheusObserver"]

_INFINITE = "+Inf"


class _Counter:
    """A counter, by labels."""

    __slots__ = ("series",)

    def __init__(self) -> None:
        self.series: dict[tuple[str, ...], float] = {}

    def add(self, *labels: str) -> None:
        """Count one more."""
        self.series[labels] = self.series.get(labels, 0.0) + 1

    def begin(self, *labels: str) -> None:
        """Be at 0, unless it was counted before."""
        self.series.setdefault(labels, 0.0)


class _Histogram:
    """A histogram, by labels: how many values fell into each bucket, and last their sum."""

    __slots__ = ("_bounds", "series")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.series: dict[tuple[str, ...], list[float]] = {}

    def observe(self, value: float, *labels: str) -> None:
        """Record a value."""
        found = self.series.get(labels)
        if found is None:
            found = self.begin(*labels)
        found[bisect_left(self._bounds, value)] += 1
        found[-1] += value

    def begin(self, *labels: str) -> list[float]:
        """Have no value yet, unless one was recorded before."""
        return self.series.setdefault(labels, [0.0] * (len(self._bounds) + 2))


class _Sink:
    """Keeps the numbers of all metrics."""

    def __init__(self) -> None:
        self.counters: dict[Metric, _Counter] = {}
        self.histograms: dict[Metric, _Histogram] = {}

    def counter(self, metric: Metric) -> _Counter:
        """The counter of a metric."""
        return self.counters.setdefault(metric, _Counter())

    def histogram(self, metric: Metric) -> _Histogram:
        """The histogram of a metric."""
        return self.histograms.setdefault(metric, _Histogram(metric.bounds))


class PrometheusObserver(Collector):
    """Counts what happens to leases, orders and positions, for Prometheus.

    One observer serves all guards and all managers of positions of a process: give the same one to each. It
    is told of orders that are placed without a manager by ``exchange.on_order(observer.on)``.

    Args:
        registry: where it is registered; by default the one that prometheus_client's server shows. ``None``:
            nowhere, for a caller that registers it by itself.
        label: gives the label ``group`` of a resource's name; by default its part before the first colon,
            which is the exchange. What concerns a whole exchange is asked for as ``binance:``.
        groups_max: how many groups are told by name. The others are told together as ``other``, so that no
            name of a resource can fill the monitoring.
        clock: measures what is under way; for tests.

    Raises:
        ConfigurationError: the registry has such an observer already, or a value cannot work.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = REGISTRY,
        *,
        label: Label = exchange_of,
        groups_max: int = 50,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._sink = _Sink()
        self._tally = Tally(self._sink, Groups(label, groups_max), clock)
        # A lock that its holder may take again: what is garbage-collected inside may emit an event too.
        self._lock = threading.RLock()
        if registry is not None:
            try:
                registry.register(self)
            except ValueError:
                raise ConfigurationError(
                    "this registry has a PrometheusObserver already; give that one to all guards of the"
                    " process, or make the second with registry=CollectorRegistry()"
                ) from None

    def on(self, event: object) -> None:
        """Count one event of a guard, of a manager of positions or of a guarded exchange."""
        with self._lock:
            self._tally.on(event)

    def expect(self, *resources: str) -> None:
        """Begin what is counted at zero, so that even the first event is an increase, and an alert.

        Otherwise a group begins with its first lease, and a failure before that is seen by no alert.

        Args:
            *resources: one of each group, such as ``binance:`` for that exchange.
        """
        with self._lock:
            for resource in resources:
                self._tally.expect(resource)

    def describe(self) -> Iterable[Family]:
        """The names of all metrics, by which a registry refuses a second observer."""
        return [_family(metric) for metric in OBSERVED]

    def collect(self) -> Iterator[Family]:
        """All metrics as they are now."""
        with self._lock:
            counters = {metric: dict(one.series) for metric, one in self._sink.counters.items()}
            histograms = {
                metric: {labels: values.copy() for labels, values in one.series.items()}
                for metric, one in self._sink.histograms.items()
            }
            gauges = dict(self._tally.gauges())
        for metric in OBSERVED:
            family = _family(metric)
            if isinstance(family, HistogramMetricFamily):
                for labels, values in histograms[metric].items():
                    family.add_metric(labels, _buckets(metric.bounds, values), values[-1])
            else:
                plain = counters[metric] if metric.kind == "counter" else gauges[metric]
                for labels, value in plain.items():
                    family.add_metric(labels, value)
            yield family


def _family(metric: Metric) -> HistogramMetricFamily | CounterMetricFamily | GaugeMetricFamily:
    facts = (metric.name, metric.meaning)
    match metric.kind:
        case "counter":
            return CounterMetricFamily(*facts, labels=metric.labels)
        case "gauge":
            return GaugeMetricFamily(*facts, labels=metric.labels, unit=metric.unit)
        case "histogram":
            return HistogramMetricFamily(*facts, labels=metric.labels, unit=metric.unit)


def _buckets(bounds: tuple[float, ...], values: list[float]) -> list[tuple[str, float]]:
    """The cumulative buckets, as Prometheus has them."""
    found, total = [], 0.0
    for bound, number in zip((*bounds, None), values, strict=False):
        total += number
        found.append((_INFINITE if bound is None else repr(float(bound)), total))
    return found
