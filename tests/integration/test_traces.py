"""Spans and metrics arrive at a receiver of OTLP: with the right parents, times and facts."""

from __future__ import annotations

import asyncio
import inspect
import logging
from contextlib import suppress
from contextvars import Context
from datetime import timedelta

import asyncpg
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Meter
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from lockguard import LeaseLost, LockGuard, ResourceBusy, current_lease
from lockguard_asyncpg import PostgresFence, install
from lockguard_lab.servers import RedisServer
from lockguard_metrics import OpenTelemetryObserver
from tests.integration.otlp import Receiver, attributes

NAME = "binance:APTUSDT"
MS = timedelta(milliseconds=1)


class Tracing:
    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.traces = TracerProvider()
        self.traces.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces"))
        )
        reader = PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint=f"{receiver.url}/v1/metrics"), export_interval_millis=3_600_000
        )
        self.meters = MeterProvider([reader])
        self.observer = OpenTelemetryObserver(tracer_provider=self.traces, meter_provider=self.meters)
        self.tracer = self.traces.get_tracer("the bot")

    async def received(self) -> Receiver:
        await asyncio.to_thread(self.traces.force_flush)
        await asyncio.to_thread(self.meters.force_flush)
        return self.receiver

    def close(self) -> None:
        self.traces.shutdown()
        self.meters.shutdown()


@pytest.fixture
async def tracing():
    async with Receiver() as receiver:
        made = Tracing(receiver)
        yield made
        await asyncio.to_thread(made.close)


@pytest.fixture
async def guard(redis_url, tracing):
    async with LockGuard.from_url(redis_url, observers=[tracing.observer]) as made:
        yield made


@pytest.fixture(autouse=True)
def no_complaint(caplog):
    """The API logs an error when a context is detached that is not the current one."""
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_hold_is_four_spans_below_the_callers_with_token_and_holder(tracing, redis_url, database_url):
    async with asyncpg.create_pool(database_url) as pool:
        async with pool.acquire() as connection:
            await install(connection)
        fence = PostgresFence(pool)
        async with LockGuard.from_url(redis_url, fence=fence, observers=[tracing.observer]) as guard:
            with tracing.tracer.start_as_current_span("signal") as around:
                async with guard.hold(NAME, operation="open long") as lease:
                    with tracing.tracer.start_as_current_span("order"):
                        await asyncio.sleep(0.01)  # longer than the spans' clocks differ
                assert trace.get_current_span() is around
    received = await tracing.received()
    (signal,) = received.named("signal")
    (acquire,) = received.named("lockguard acquire")
    (seal,) = received.named("lockguard seal")
    (body,) = received.named("lockguard body")
    (release,) = received.named("lockguard release")
    (order,) = received.named("order")
    assert {span.trace_id for span in received.spans} == {signal.trace_id}
    assert {acquire.parent_span_id, body.parent_span_id, release.parent_span_id} == {signal.span_id}
    assert seal.parent_span_id == acquire.span_id
    assert order.parent_span_id == body.span_id
    for span in (acquire, seal, body, release):
        assert attributes(span) == {
            "lockguard.resource": NAME,
            "lockguard.token": lease.token,
            "lockguard.holder": lease.grant.holder,
            "lockguard.operation": "open long",
        }
        assert span.status.code == Status.STATUS_CODE_UNSET
    slack_ns = 5_000_000  # the spans of the SDK are timed by another clock
    assert acquire.start_time_unix_nano <= seal.start_time_unix_nano < seal.end_time_unix_nano
    assert acquire.end_time_unix_nano == seal.end_time_unix_nano == body.start_time_unix_nano
    assert body.start_time_unix_nano - slack_ns < order.start_time_unix_nano
    assert order.end_time_unix_nano < body.end_time_unix_nano + slack_ns
    assert body.end_time_unix_nano == release.start_time_unix_nano <= release.end_time_unix_nano


async def test_concurrent_tasks_and_the_decorator_keep_their_own_parents(tracing, guard):
    @guard.exclusive("binance:{symbol}")
    async def work(symbol):
        assert current_lease() is not None
        with tracing.tracer.start_as_current_span(f"in {symbol}"):
            await asyncio.sleep(0.01)  # so that all of them are in their bodies at once

    async def one(symbol):
        with tracing.tracer.start_as_current_span(f"around {symbol}"):
            await work(symbol)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(one(f"S{number}"))
    received = await tracing.received()
    bodies = {attributes(span)["lockguard.resource"]: span for span in received.named("lockguard body")}
    for number in range(20):
        (around,), (inside,) = received.named(f"around S{number}"), received.named(f"in S{number}")
        body = bodies[f"binance:S{number}"]
        assert (body.parent_span_id, inside.parent_span_id) == (around.span_id, body.span_id)


async def test_a_hold_within_a_hold_is_its_child_and_each_gives_back_what_was_current(tracing, guard):
    async with guard.hold("binance:A"):
        outer = trace.get_current_span()
        async with guard.hold("binance:B"):
            assert trace.get_current_span() is not outer
        assert trace.get_current_span() is outer
    assert not trace.get_current_span().get_span_context().is_valid
    received = await tracing.received()
    inner, outer = received.named("lockguard body")
    assert inner.parent_span_id == outer.span_id
    assert outer.parent_span_id == b""


async def test_holds_that_are_left_in_another_order_leave_no_ended_span_current(tracing, guard):
    with tracing.tracer.start_as_current_span("around") as around:
        first, second = guard.hold("binance:A"), guard.hold("binance:B")
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        await second.__aexit__(None, None, None)
        assert trace.get_current_span() is around


async def test_a_caller_without_a_lease_has_a_span_with_the_reason(tracing, guard):
    async def other(**options):
        with suppress(ResourceBusy):
            async with guard.hold(NAME, **options):
                pass

    async with guard.hold(NAME):
        for options in ({"wait": 20 * MS}, {"on_busy": "raise"}):
            await asyncio.create_task(other(**options), context=Context())
    received = await tracing.received()
    _, gave_up, skipped = received.named("lockguard acquire")
    assert attributes(gave_up)["lockguard.reason"] == "gave_up"
    assert gave_up.status.code == Status.STATUS_CODE_ERROR
    assert gave_up.end_time_unix_nano - gave_up.start_time_unix_nano >= 20_000_000
    assert attributes(skipped)["lockguard.reason"] == "skipped"
    assert skipped.status.code == Status.STATUS_CODE_UNSET


async def test_a_loss_is_an_error_of_the_body_whose_span_ends_with_it(tracing):
    with RedisServer() as server:
        async with LockGuard.from_url(server.url, ttl=300 * MS, observers=[tracing.observer]) as guard:
            with tracing.tracer.start_as_current_span("signal") as around:
                with pytest.raises(LeaseLost):
                    async with guard.hold(NAME):
                        server.pause()
                        try:
                            await asyncio.Event().wait()
                        finally:
                            server.resume()
                assert trace.get_current_span() is around
    received = await tracing.received()
    (body,) = received.named("lockguard body")
    assert body.status.code == Status.STATUS_CODE_ERROR
    assert body.status.message == "lease lost: expired"
    names = [event.name for event in body.events]
    assert names[-1] == "lease lost"
    assert set(names[:-1]) == {"renewal not answered"}
    assert received.named("lockguard release") == []
    assert tracing.observer._spans._open == {}


async def test_a_hold_that_is_left_in_another_task_disturbs_no_context(tracing, guard):
    hold = guard.hold(NAME)
    entered, leave = asyncio.Event(), asyncio.Event()

    async def enter():
        await hold.__aenter__()
        entered.set()
        await leave.wait()

    task = asyncio.create_task(enter(), context=Context())
    await entered.wait()
    with tracing.tracer.start_as_current_span("elsewhere") as elsewhere:
        await hold.__aexit__(None, None, None)
        assert trace.get_current_span() is elsewhere
    leave.set()
    await task
    received = await tracing.received()
    assert len(received.named("lockguard body")) == 1
    assert tracing.observer._spans._open == {}


async def test_a_body_whose_task_ends_without_leaving_it_has_its_span_ended(tracing, guard, caplog):
    hold = guard.hold(NAME)
    await asyncio.create_task(hold.__aenter__(), context=Context())
    await asyncio.sleep(0)  # the callback of the ended task
    received = await tracing.received()
    (body,) = received.named("lockguard body")
    assert body.status.message == "lease lost: abandoned"
    assert tracing.observer._spans._open == {}


async def test_metrics_arrive_by_their_names_with_their_units_and_labels(tracing, guard):
    for _ in range(3):
        async with guard.hold(NAME):
            pass
    async with guard.hold(NAME):
        received = await tracing.received()
    wait = received.metrics["lockguard.wait"]
    assert wait.unit == "s"
    (point,) = wait.histogram.data_points
    assert (point.count, attributes(point)) == (4, {"group": "binance"})
    (held,) = received.metrics["lockguard.leases_held"].gauge.data_points
    assert held.as_double == 1
    assert received.metrics["lockguard.release_margin"].histogram.data_points[0].count == 3
    if "explicit_bucket_boundaries_advisory" in inspect.signature(Meter.create_histogram).parameters:
        assert list(point.explicit_bounds)[:2] == [0.0005, 0.001]


async def test_one_of_both_can_be_left_out(tracing, redis_url):
    only_traces = OpenTelemetryObserver(tracer_provider=tracing.traces, meters=False)
    async with LockGuard.from_url(redis_url, observers=[only_traces]) as guard, guard.hold(NAME):
        pass
    received = await tracing.received()
    assert len(received.named("lockguard body")) == 1
    assert received.metrics == {}
