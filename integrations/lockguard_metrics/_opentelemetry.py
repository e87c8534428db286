"""Traces and metrics by the API of OpenTelemetry. Which SDK records them, and where to, is the user's choice.

A lease is told when it has been handed out and when it has been released, so its spans are made then, with
the times at which they began. Events are told in the caller's own task: the caller's current span is the
parent, and the body's span is the current one while the body runs, so that spans made in it are its children.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode

from lockguard import __version__
from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard.errors import LossReason
from lockguard.events import (
    Acquired,
    Lost,
    NotAcquired,
    NotAcquiredReason,
    Released,
    RenewalUnanswered,
    StaleWrite,
    Unwound,
)
from lockguard.text import printable
from lockguard_metrics._catalog import OBSERVED, Metric
from lockguard_metrics._groups import Groups, Label, exchange_of
from lockguard_metrics._tally import Tally

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Span, Tracer, TracerProvider

    from lockguard._lease import Grant

__all__ = ["OpenTelemetryObserver"]

_SCOPE = "lockguard"
_OPEN_MAX = 100_000


class OpenTelemetryObserver:
    """Gives spans and metrics of leases to OpenTelemetry.

    The spans are ``lockguard acquire`` (with ``lockguard seal`` in it, where there is a fence), ``lockguard
    body`` and ``lockguard release``; their parent is the span that was current at the hold.

    Args:
        tracer_provider: makes the spans; by default the one that is set for the process.
        meter_provider: makes the metrics; by default the one that is set for the process.
        traces: whether to make spans.
        meters: whether to make metrics.
        label: as of :class:`~lockguard_metrics.PrometheusObserver`.
        groups_max: as there.
        clock: gives the times of spans; for tests.

    Raises:
        ConfigurationError: a value cannot work.
    """

    def __init__(
        self,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        traces: bool = True,
        meters: bool = True,
        label: Label = exchange_of,
        groups_max: int = 50,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        groups = Groups(label, groups_max)
        self._spans: _Spans | None = None
        self._tally: Tally | None = None
        if traces:
            self._spans = _Spans(trace.get_tracer(_SCOPE, __version__, tracer_provider), clock)
        if meters:
            meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
            self._tally = Tally(_Sink(meter), groups, clock)
            _observe_gauges(meter, self._tally)

    def on(self, event: object) -> None:
        """Take one event of a guard, of a manager of positions or of a guarded exchange."""
        if self._spans is not None:
            self._spans.on(event)
        if self._tally is not None:
            self._tally.on(event)


# --- metrics ---


@dataclass(frozen=True, slots=True)
class _Instrument:
    """A counter or a histogram of OpenTelemetry, with the names of its attributes."""

    record: Callable[[float, dict[str, str]], None]
    names: tuple[str, ...]

    def add(self, *labels: str) -> None:
        """Count one more."""
        self.record(1, dict(zip(self.names, labels, strict=True)))

    def begin(self, *labels: str) -> None:
        """Be at 0, unless it was counted before."""
        self.record(0, dict(zip(self.names, labels, strict=True)))

    def observe(self, value: float, *labels: str) -> None:
        """Record a value."""
        self.record(value, dict(zip(self.names, labels, strict=True)))


class _Histogram(_Instrument):
    """A histogram: OpenTelemetry has no empty one, and a recorded 0 would be a value."""

    def begin(self, *labels: str) -> None:
        """Nothing: it begins with its first value."""


class _Sink:
    """Makes the instruments."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def counter(self, metric: Metric) -> _Instrument:
        """The counter of a metric."""
        made = self._meter.create_counter(metric.otel_name, metric.otel_unit, metric.meaning)
        return _Instrument(made.add, metric.labels)

    def histogram(self, metric: Metric) -> _Instrument:
        """The histogram of a metric."""
        more: dict[str, Any] = {}
        name = "explicit_bucket_boundaries_advisory"
        if name in inspect.signature(self._meter.create_histogram).parameters:  # not in old versions
            more[name] = metric.bounds
        made = self._meter.create_histogram(metric.otel_name, metric.otel_unit, metric.meaning, **more)
        return _Histogram(made.record, metric.labels)


def _observe_gauges(meter: Meter, tally: Tally) -> None:
    def reader(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            values = dict(tally.gauges())[metric]
            return [
                Observation(value, dict(zip(metric.labels, labels, strict=True)))
                for labels, value in values.items()
            ]

        return read

    for metric in OBSERVED:
        if metric.kind == "gauge":
            meter.create_observable_gauge(
                metric.otel_name, [reader(metric)], metric.otel_unit, metric.meaning
            )


# --- traces ---


@dataclass(slots=True)
class _Open:
    """The body's span of one lease.

    Attributes:
        around: the caller's context.
        inside: the context of the body, in which the span is the current one.
    """

    span: Span
    around: Context
    inside: Context


class _Spans:
    """Makes the spans of leases."""

    def __init__(self, tracer: Tracer, clock: Clock) -> None:
        self._tracer = tracer
        self._clock = clock
        self._open: dict[str, _Open] = {}

    def on(self, event: object) -> None:
        """Take one event."""
        match event:
            case Acquired():
                self._acquired(event)
            case Released(grant, released_ms=released_ms):
                self._released(event, self._now_ns() - round(released_ms * 1e6))
            case NotAcquired():
                self._not_acquired(event)
            case Lost(grant, reason):
                self._lost(grant, reason)
            case Unwound(grant):
                self._end(grant, self._now_ns())
            case RenewalUnanswered(grant, remaining_ms):
                self._note(grant, "renewal not answered", {"lockguard.remaining_ms": round(remaining_ms)})
            case StaleWrite(grant):
                self._note(grant, "stale write refused", {})
            case _:
                pass

    def _now_ns(self) -> int:
        return round(self._clock.wall() * 1e9)

    def _acquired(self, event: Acquired) -> None:
        grant, now = event.grant, self._now_ns()
        around = context.get_current()
        facts = _facts_of(grant)
        acquire = self._span("lockguard acquire", around, now - round(event.waited_ms * 1e6), facts)
        if event.sealed_ms:
            within = trace.set_span_in_context(acquire, around)
            self._span("lockguard seal", within, now - round(event.sealed_ms * 1e6), facts).end(now)
        acquire.end(now)
        body = self._span("lockguard body", around, now, facts)
        inside = trace.set_span_in_context(body, around)
        if len(self._open) < _OPEN_MAX:
            self._open[grant.id] = _Open(body, around, inside)
            context.attach(inside)

    def _not_acquired(self, event: NotAcquired) -> None:
        now = self._now_ns()
        facts = {"lockguard.resource": str(event.resource), "lockguard.reason": event.reason.value}
        span = self._span(
            "lockguard acquire", context.get_current(), now - round(event.waited_ms * 1e6), facts
        )
        if event.reason is not NotAcquiredReason.SKIPPED:  # which is what that caller asked for
            span.set_status(Status(StatusCode.ERROR, event.reason.value))
        span.end(now)

    def _released(self, event: Released, ended_ns: int) -> None:
        around = self._end(event.grant, ended_ns)
        span = self._span("lockguard release", around, ended_ns, _facts_of(event.grant))
        if event.found is not True and not event.cancelled:
            span.set_status(
                Status(StatusCode.ERROR, "not answered" if event.found is None else "it had expired")
            )
        span.end(self._now_ns())

    def _lost(self, grant: Grant, reason: LossReason) -> None:
        found = self._open.get(grant.id)
        if found is not None:
            found.span.add_event("lease lost", {"lockguard.reason": reason.value})
            found.span.set_status(Status(StatusCode.ERROR, f"lease lost: {reason.value}"))
        if reason is LossReason.ABANDONED:  # nothing is told of the end of its body
            self._end(grant, self._now_ns())

    def _note(self, grant: Grant, name: str, facts: Mapping[str, int]) -> None:
        if (found := self._open.get(grant.id)) is not None:
            found.span.add_event(name, facts)

    def _end(self, grant: Grant, at_ns: int) -> Context:
        """End the body's span, and make the caller's context current again; returns that."""
        found = self._open.pop(grant.id, None)
        if found is None:
            return context.get_current()
        found.span.end(at_ns)
        # Not by the token of attach(): a hold may be left in another context than it was entered in.
        if context.get_current() is found.inside:
            context.attach(found.around)
        else:  # left before a hold inside it, whose end must not make this ended span current again
            for other in self._open.values():
                if other.around is found.inside:
                    other.around = found.around
        return found.around

    def _span(self, name: str, parent: Context, start_ns: int, facts: Mapping[str, str | int]) -> Span:
        return self._tracer.start_span(
            name, parent, SpanKind.INTERNAL, facts, start_time=start_ns, record_exception=False
        )


def _facts_of(grant: Grant) -> dict[str, str | int]:
    return {
        "lockguard.resource": str(grant.resource),
        "lockguard.token": int(grant.token),
        "lockguard.holder": printable(grant.holder),
        "lockguard.operation": printable(grant.operation),
    }
