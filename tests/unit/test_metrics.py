"""What events come to as metrics: names, labels that stay bounded, figures, and what they cost."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

import lockguard_ops
from lockguard import ConfigurationError, LossReason
from lockguard._lease import Grant, GrantId, Resource, Token, new_grant_id
from lockguard.events import (
    Acquired,
    FenceCloseFailed,
    Lost,
    NotAcquired,
    NotAcquiredReason,
    ObserverFailed,
    Released,
    RenewalUnanswered,
    Renewed,
    StaleWrite,
    Unwound,
    Waited,
)
from lockguard.testing import FakeClock
from lockguard_ccxt import OrderAnswered, OrderResult, Refusal
from lockguard_metrics import PrometheusObserver
from lockguard_metrics._catalog import OBSERVED
from lockguard_ops._exporter_catalog import EXPORTED
from lockguard_positions import (
    Alert,
    CommitResolved,
    DoubtResolved,
    IntentOutcome,
    Looked,
    Moved,
    PositionStatus,
    SyncAction,
    SyncOutcome,
)
from tests.unit.test_positions_telling import POSITION

S = timedelta(seconds=1)


def grant(resource: str = "binance:A") -> Grant:
    return Grant(Resource(resource), new_grant_id(), Token(41), "h:1/T", "open", 10_000)


class Scraped:
    def __init__(self, **options):
        self.registry = CollectorRegistry()
        self.clock = FakeClock()
        self.observer = PrometheusObserver(self.registry, clock=self.clock, **options)
        self.on = self.observer.on

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def one(self, name: str) -> float | None:
        return self.value(name, group="binance")


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_a_hold_is_counted_with_its_wait_its_length_and_its_margin(scraped):
    held = grant()
    scraped.on(Acquired(held, 20.0, 5.0))
    scraped.clock.advance(2 * S)
    assert scraped.one("lockguard_leases_held") == 1
    assert scraped.one("lockguard_oldest_hold_seconds") == 2
    scraped.on(Released(held, 2_000.0, True, 7_500.0, 0.5))
    assert scraped.one("lockguard_leases_held") == 0
    assert scraped.one("lockguard_wait_seconds_sum") == 0.02
    assert scraped.one("lockguard_seal_seconds_sum") == 0.005
    assert scraped.one("lockguard_hold_seconds_sum") == 2
    assert scraped.one("lockguard_release_margin_seconds_sum") == 7.5
    assert scraped.value("lockguard_release_margin_seconds_bucket", group="binance", le="7.0") == 0
    assert scraped.value("lockguard_release_margin_seconds_bucket", group="binance", le="8.0") == 1
    assert scraped.value("lockguard_wait_seconds_bucket", group="binance", le="+Inf") == 1
    assert scraped.value("lockguard_releases_unconfirmed_total", group="binance", reason="expired") == 0


@pytest.mark.parametrize(("found", "reason"), [(None, "unanswered"), (False, "expired")])
def test_a_release_that_nothing_confirmed_is_counted_with_its_reason(scraped, found, reason):
    scraped.on(Released(grant(), 1.0, found))
    assert scraped.value("lockguard_releases_unconfirmed_total", group="binance", reason=reason) == 1


def test_a_release_whose_task_was_cancelled_meanwhile_is_no_failure(scraped):
    scraped.on(Released(grant(), 1.0, None, cancelled=True))
    assert not scraped.value("lockguard_releases_unconfirmed_total", group="binance", reason="unanswered")


def test_a_waiter_is_counted_while_it_waits_and_busy_once(scraped):
    first, second = grant(), grant()
    scraped.on(Waited(first.resource, "h", "sync", gave_up=False, grant=first.id, ahead=0))
    scraped.clock.advance(S)
    scraped.on(Waited(second.resource, "h", "sync", gave_up=False, grant=second.id, ahead=1))
    scraped.clock.advance(S)
    assert (scraped.one("lockguard_waiters"), scraped.one("lockguard_longest_wait_seconds")) == (2, 2)
    assert scraped.one("lockguard_waiters_ahead_sum") == 1
    scraped.on(Acquired(first, 2_000.0))
    scraped.on(Waited(second.resource, "h", "sync", gave_up=True, grant=second.id))
    scraped.on(NotAcquired(second.resource, second.id, NotAcquiredReason.GAVE_UP, 1_000.0))
    assert (scraped.one("lockguard_waiters"), scraped.one("lockguard_longest_wait_seconds")) == (0, 0)
    assert scraped.one("lockguard_busy_total") == 2
    assert scraped.value("lockguard_not_acquired_total", group="binance", reason="gave_up") == 1


def test_a_skipped_caller_is_busy_and_not_acquired_and_never_waits(scraped):
    one = grant()
    scraped.on(Waited(one.resource, "h", "sync", gave_up=True, grant=one.id))
    scraped.on(NotAcquired(one.resource, one.id, NotAcquiredReason.SKIPPED, 1.0))
    assert scraped.one("lockguard_busy_total") == 1
    assert scraped.value("lockguard_not_acquired_total", group="binance", reason="skipped") == 1
    assert not scraped.one("lockguard_waiters")


def test_a_loss_is_counted_by_reason_and_the_time_until_its_body_has_ended(scraped):
    held = grant()
    scraped.on(Acquired(held, 1.0))
    scraped.on(Lost(held, LossReason.EXPIRED))
    assert scraped.one("lockguard_leases_held") == 0
    scraped.clock.advance(3 * S)
    scraped.on(Unwound(held, LossReason.EXPIRED, 5_000.0))
    assert scraped.value("lockguard_leases_lost_total", group="binance", reason="expired") == 1
    assert scraped.one("lockguard_unwind_seconds_sum") == 3


def test_what_goes_wrong_is_counted(scraped):
    held = grant()
    for event in (
        Renewed(held),
        RenewalUnanswered(held, 900.0, "hangs"),
        StaleWrite(held, Token(42)),
        FenceCloseFailed(held, "session 7"),
    ):
        scraped.on(event)
    for name in ("renewals", "renewals_late", "stale_writes_refused", "fence_close_failures"):
        assert scraped.one(f"lockguard_{name}_total") == 1, name
    scraped.on(ObserverFailed("Mine", "OSError", 1))
    assert scraped.value("lockguard_observer_failures_total", observer="Mine") == 1


def test_orders_are_counted_with_their_margin_and_how_doubts_were_resolved(scraped):
    name = "binance:APTUSDT"
    scraped.on(OrderAnswered(name, 4, "entry", "lge-1", OrderResult.UNKNOWN, None, 4_000.0, 30.0))
    scraped.on(OrderAnswered(name, 4, "stop", "lgs-1", OrderResult.REFUSED, Refusal.FUNDS, None, 3.0))
    scraped.on(DoubtResolved(name, 7, "entry", "lge-1", IntentOutcome.EXECUTED, 900))
    scraped.on(CommitResolved(name, 4, committed=None))
    assert scraped.value("lockguard_orders_total", group="binance", step="entry", result="unknown") == 1
    assert scraped.value("lockguard_order_margin_seconds_sum", group="binance", step="entry") == 4
    assert scraped.value("lockguard_order_margin_seconds_sum", group="binance", step="stop") is None
    refused = {"group": "binance", "step": "stop", "reason": "funds"}
    assert scraped.value("lockguard_orders_refused_total", **refused) == 1
    resolved = {"group": "binance", "step": "entry", "outcome": "executed"}
    assert scraped.value("lockguard_order_doubts_resolved_total", **resolved) == 1
    assert scraped.value("lockguard_commits_in_doubt_total", group="binance", outcome="unknown") == 1


def test_a_position_without_a_stop_is_a_gauge_until_it_has_one(scraped):
    entered = replace(POSITION, status=PositionStatus.ENTRY_PLACED)
    scraped.on(Moved(entered, PositionStatus.PENDING_ENTRY, "open"))
    scraped.clock.advance(2 * S)
    scraped.on(Moved(replace(entered, status=PositionStatus.PENDING_SL), entered.status, "open"))
    scraped.clock.advance(2 * S)
    assert scraped.one("lockguard_positions_without_stop") == 1
    assert scraped.one("lockguard_longest_without_stop_seconds") == 4
    active = replace(entered, status=PositionStatus.ACTIVE)
    scraped.on(Moved(active, PositionStatus.PENDING_SL, "open", 4_000.0))
    assert scraped.one("lockguard_positions_without_stop") == 0
    assert scraped.one("lockguard_longest_without_stop_seconds") == 0
    assert scraped.one("lockguard_positions_open") == 1
    assert scraped.one("lockguard_stop_seconds_sum") == 4
    scraped.on(Moved(replace(entered, status=PositionStatus.CLOSED), PositionStatus.ACTIVE, "close"))
    assert scraped.one("lockguard_positions_open") == 0


def test_a_pass_tells_the_rows_of_other_processes_and_those_that_are_gone(scraped):
    mine = replace(POSITION, id=1, status=PositionStatus.ACTIVE)
    scraped.on(Moved(mine, PositionStatus.PENDING_SL, "open"))
    scraped.clock.advance(10 * S)
    other = replace(POSITION, id=2, status=PositionStatus.PENDING_SL, age_ms=7_000)
    outcomes = (SyncOutcome("APTUSDT", SyncAction.STOP_PLACED),)
    scraped.on(Looked("binance", "pass", 1_000.0, outcomes, (other,)))
    assert scraped.one("lockguard_positions_open") == 1
    assert scraped.one("lockguard_longest_without_stop_seconds") == 7
    assert scraped.value("lockguard_pass_seconds_sum", group="binance", kind="pass") == 1
    assert scraped.value("lockguard_symbols_looked_at_total", group="binance", action="stop_placed") == 1


def test_a_position_that_was_written_during_a_pass_is_not_taken_back_by_what_it_had_read(scraped):
    mine = replace(POSITION, id=1, status=PositionStatus.ACTIVE)
    scraped.on(Moved(mine, PositionStatus.PENDING_SL, "open"))
    scraped.clock.advance(S)
    scraped.on(Looked("binance", "pass", 5_000.0, (), ()))
    assert scraped.one("lockguard_positions_open") == 1


def test_an_alert_is_counted_and_its_end_is_not(scraped):
    scraped.on(Alert("binance:A", 7, "without a stop"))
    scraped.on(Alert("binance", None, "not read for longer than 30 s"))
    scraped.on(Alert("binance:A", 7, "over: without a stop"))
    assert scraped.one("lockguard_alerts_total") == 2


def test_what_is_expected_begins_at_zero_before_anything_happens(scraped):
    """The first failure after a start is an increase too: Redis may be down, and no pass complete."""
    scraped.observer.expect("binance:", "bybit:")
    for group in ("binance", "bybit"):
        assert scraped.value("lockguard_alerts_total", group=group) == 0
        assert scraped.value("lockguard_not_acquired_total", group=group, reason="no_quorum") == 0
    assert scraped.one("lockguard_positions_open") is None  # not known yet
    scraped.on(Alert("binance", None, "not read for longer than 30 s"))
    assert scraped.value("lockguard_alerts_total", group="binance") == 1
    scraped.observer.expect("binance:")
    assert scraped.value("lockguard_alerts_total", group="binance") == 1


# --- labels ---


def test_what_is_counted_begins_at_zero_with_its_group_so_that_the_first_one_is_an_increase(scraped):
    scraped.on(Acquired(grant(), 1.0))
    for reason in ("expired", "refused", "broken", "fenced", "max_hold", "abandoned", "closed", "forked"):
        assert scraped.value("lockguard_leases_lost_total", group="binance", reason=reason) == 0
    assert scraped.one("lockguard_stale_writes_refused_total") == 0
    assert scraped.one("lockguard_unwind_seconds_count") == 0
    assert scraped.one("lockguard_alerts_total") is None
    scraped.on(Looked("binance", "pass", 1.0, (), ()))
    assert scraped.one("lockguard_alerts_total") == 0
    assert scraped.value("lockguard_orders_total", group="binance", step="stop", result="unknown") == 0
    margin = {"group": "binance", "step": "stop", "le": "1.0"}
    assert scraped.value("lockguard_order_margin_seconds_bucket", **margin) == 0


def test_a_resource_is_never_a_label_by_default_and_groups_are_capped():
    scraped = Scraped(groups_max=3)
    for number in range(50):
        scraped.on(Acquired(grant(f"x{number}:SECRET"), 1.0))
        scraped.on(Acquired(grant(f"order-{number}"), 1.0))
    text = generate_latest(scraped.registry).decode()
    assert "SECRET" not in text
    assert set(re.findall(r'lockguard_wait_seconds_count\{group="(.*?)"\}', text)) == {"x0", "other", "x1"}
    assert scraped.value("lockguard_wait_seconds_count", group="other") == 98


def test_a_label_of_the_users_own_counts_and_one_that_fails_gives_other(caplog):
    def strategy(resource):
        if resource == "binance:B":
            raise KeyError(resource)
        return 'a"\n\x1b[31m' + resource[-1]

    scraped = Scraped(label=strategy)
    for name in ("binance:A", "binance:B", "binance:B"):
        scraped.on(Acquired(grant(name), 1.0))
    text = generate_latest(scraped.registry).decode()
    assert "\x1b" not in text
    assert scraped.value("lockguard_wait_seconds_count", group="other") == 2
    assert caplog.text.count("label= failed") == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"label": "exchange"}, "label= is a str; give a function of a resource's name"),
        ({"groups_max": 0}, "groups_max=0 cannot work"),
        ({"groups_max": True}, "groups_max=True cannot work"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(options, told):
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        PrometheusObserver(CollectorRegistry(), **options)


def test_a_second_observer_of_one_registry_is_refused_with_the_remedy(scraped):
    with pytest.raises(ConfigurationError, match="has a PrometheusObserver already"):
        PrometheusObserver(scraped.registry)


def test_an_observer_name_is_capped_too(scraped):
    for number in range(200):
        scraped.on(ObserverFailed(f"O{number}", "x", 1))
    text = generate_latest(scraped.registry).decode()
    assert text.count("lockguard_observer_failures_total{") == 51


# --- names ---


def test_names_and_units_are_as_prometheus_has_them():
    for metric in OBSERVED:
        assert re.fullmatch(r"lockguard_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.name.endswith("_seconds") == (metric.unit == "seconds")
        assert metric.meaning.endswith(".")
        assert list(metric.bounds) == sorted(set(metric.bounds))
        assert bool(metric.bounds) == (metric.kind == "histogram")
    assert len({metric.name for metric in OBSERVED}) == len(OBSERVED)


def test_the_names_in_opentelemetry_lead_back_to_those_in_prometheus():
    for metric in OBSERVED:
        name = metric.otel_name.replace(".", "_")
        name += "_seconds" if metric.otel_unit == "s" else ""
        name += "_total" if metric.kind == "counter" else ""
        assert name == metric.name


def test_the_exposition_is_read_by_openmetrics_too(scraped):
    scraped.on(Acquired(grant(), 1.0))
    scraped.on(Lost(grant(), LossReason.EXPIRED))
    text = openmetrics(scraped.registry).decode()
    assert "# UNIT lockguard_wait_seconds seconds" in text
    assert text.endswith("# EOF\n")


# --- what it needs and costs ---


def test_it_is_imported_and_used_without_asyncpg_and_ccxt():
    code = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("asyncpg", "ccxt", "tenacity", "click", "rich"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
import lockguard_metrics
from prometheus_client import CollectorRegistry
lockguard_metrics.PrometheusObserver(CollectorRegistry()).on(object())
assert "lockguard_positions" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def calls_in(work) -> int:
    """How many functions, in Python or C, are called."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count - 1  # the call of setprofile


def test_a_lock_costs_an_observer_few_calls(scraped):
    """Three microseconds: `lockguard_lab` measures them, and a call is about a tenth of one."""
    held = grant()
    acquired, released = Acquired(held, 1.0, 0.5), Released(held, 2.0, True, 9_000.0, 0.5)

    def a_lock():
        scraped.on(acquired)
        scraped.on(released)

    a_lock()
    assert calls_in(a_lock) <= 40


def test_a_lock_leaves_nothing_behind_in_the_observer(scraped):
    for _ in range(1_000):
        held = grant()
        scraped.on(Waited(held.resource, "h", "x", gave_up=False, grant=held.id))
        scraped.on(Acquired(held, 1.0))
        scraped.on(Lost(held, LossReason.EXPIRED))
        scraped.on(Unwound(held, LossReason.EXPIRED, 1.0))
    tally = scraped.observer._tally
    assert (tally._held, tally._waiting, tally._lost) == ({}, {}, {})


PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"


def test_the_page_has_each_metric_as_the_code_has_it():
    rows = re.findall(
        r"^\| `(lockguard_\w+)` \| (\w+) \| (.*?) \| (.*?) \| `(lockguard\.\w+)` \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert sorted(rows) == sorted(
        (
            metric.name,
            metric.kind,
            ", ".join(f"`{label}`" for label in metric.labels),
            metric.meaning,
            metric.otel_name,
        )
        for metric in OBSERVED
    )


def test_the_page_has_each_metric_of_the_exporter_and_each_alert():
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(lockguard_\w+)` \| (\w+) \|([^|]*?)\| ([^|]*?) \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted(
        (metric.name, metric.kind, f" {', '.join(f'`{label}`' for label in metric.labels)} ", metric.meaning)
        for metric in EXPORTED
    )
    assert not {metric.name for metric in EXPORTED} & {metric.name for metric in OBSERVED}
    rules = (Path(lockguard_ops.__file__).parent / "monitoring/rules.yml").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(Lockguard\w+)` \|", page, re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


def test_an_unknown_event_is_ignored(scraped):
    scraped.on(object())
    scraped.on(GrantId("x"))
