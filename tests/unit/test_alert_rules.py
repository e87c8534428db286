"""Each alert fires on what it is for, and is silent on what looks like it: by Prometheus's own rule tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lockguard_ops
from lockguard_metrics._catalog import OBSERVED
from lockguard_ops._exporter_catalog import EXPORTED

RULES = Path(lockguard_ops.__file__).parent / "monitoring/rules.yml"
ALERTS = re.findall(r"- alert: (\w+)", RULES.read_text(encoding="utf-8"))
B = 'group="binance"'

# Of each alert: series on which it fires and their labels, series on which it is silent. A value each 15 s,
# looked at after ten minutes: 41 values.
CASES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "LockguardDown": ({"lockguard_up": "0x40"}, {}, {"lockguard_up": "1x37 0x2"}),
    "LockguardExporterGone": ({}, {}, {"lockguard_up": "0x40"}),
    "LockguardServerDown": (
        {'lockguard_server_up{server="a:1"}': "0x40", 'lockguard_server_up{server="b:1"}': "1x40"},
        {"server": "a:1"},
        {'lockguard_server_up{server="a:1"}': "1x38 0x2"},
    ),
    "LockguardLockHeldLong": (
        {f"lockguard_oldest_lock_seconds{{{B}}}": "0+15x40"},
        {"group": "binance"},
        {f"lockguard_oldest_lock_seconds{{{B}}}": "0+7x40"},
    ),
    "LockguardWaitsLong": (
        {f"lockguard_longest_queued_seconds{{{B}}}": "0+15x40"},
        {"group": "binance"},
        {f"lockguard_longest_queued_seconds{{{B}}}": "50x40"},
    ),
    "LockguardRenewalsOverdue": (
        {f"lockguard_locks_late{{{B}}}": "0x35 2x6"},
        {"group": "binance"},
        {f"lockguard_locks_late{{{B}}}": "0x38 2x1"},
    ),
    "LockguardFenceAhead": (
        {f'lockguard_locks_by_fence{{{B},fence="ahead"}}': "1x40"},
        {"group": "binance", "fence": "ahead"},
        {f'lockguard_locks_by_fence{{{B},fence="open"}}': "5x40"},
    ),
    "LockguardFenceLeftOpen": (
        {f"lockguard_fences_left_open{{{B}}}": "1x40"},
        {"group": "binance"},
        {f"lockguard_fences_left_open{{{B}}}": "0x30 1x10"},
    ),
    "LockguardStaleWriteRefused": (
        {f'lockguard_writes_refused_total{{{B},reason="closed"}}': "0x36 1x4"},
        {"group": "binance"},
        {f'lockguard_writes_refused_total{{{B},reason="closed"}}': "7x40"},
    ),
    "LockguardPositionWithoutStop": (
        {f"lockguard_table_longest_without_stop_seconds{{{B}}}": "0x38 11x2"},
        {"group": "binance"},
        {
            f"lockguard_table_longest_without_stop_seconds{{{B}}}": "9x40",
            f"lockguard_longest_without_stop_seconds{{{B}}}": "9x40",
        },
    ),
    "LockguardEntryInDoubt": (
        {f"lockguard_table_entries_in_doubt{{{B}}}": "1x40"},
        {"group": "binance"},
        {f"lockguard_table_entries_in_doubt{{{B}}}": "0x38 1x2"},
    ),
    "LockguardLeaseLost": (
        {f'lockguard_leases_lost_total{{{B},reason="expired"}}': "0x36 1x4"},
        {"group": "binance", "reason": "expired"},
        {
            f'lockguard_leases_lost_total{{{B},reason="closed"}}': "0x36 5x4",
            f'lockguard_leases_lost_total{{{B},reason="broken"}}': "3x40",
        },
    ),
    "LockguardBodyDoesNotEnd": (
        {
            f"lockguard_unwind_seconds_count{{{B}}}": "0x30 2x10",
            f'lockguard_unwind_seconds_bucket{{{B},le="5.0"}}': "0x30 1x10",
        },
        {"group": "binance"},
        {
            f"lockguard_unwind_seconds_count{{{B}}}": "0x30 2x10",
            f'lockguard_unwind_seconds_bucket{{{B},le="5.0"}}': "0x30 2x10",
        },
    ),
    "LockguardMarginsSmall": (
        {
            f"lockguard_release_margin_seconds_count{{{B}}}": "0+100x40",
            f'lockguard_release_margin_seconds_bucket{{{B},le="1.0"}}': "0+10x40",
        },
        {"group": "binance"},
        {
            f"lockguard_release_margin_seconds_count{{{B}}}": "0+100x40",
            f'lockguard_release_margin_seconds_bucket{{{B},le="1.0"}}': "0+1x40",
        },
    ),
    "LockguardOrderMarginSmall": (
        {f'lockguard_order_margin_seconds_bucket{{{B},step="stop",le="1.0"}}': "0x30 1x10"},
        {"group": "binance", "step": "stop"},
        {f'lockguard_order_margin_seconds_bucket{{{B},step="stop",le="1.0"}}': "1x40"},
    ),
    "LockguardRenewalsLate": (
        {
            f"lockguard_renewals_total{{{B}}}": "0+10x40",
            f"lockguard_renewals_late_total{{{B}}}": "0+5x40",
        },
        {"group": "binance"},
        {
            f"lockguard_renewals_total{{{B}}}": "0+100x40",
            f"lockguard_renewals_late_total{{{B}}}": "0+1x40",
        },
    ),
    "LockguardQueueFull": (
        {f'lockguard_not_acquired_total{{{B},reason="queue_full"}}': "0x36 1x4"},
        {"group": "binance"},
        {f'lockguard_not_acquired_total{{{B},reason="skipped"}}': "0+9x40"},
    ),
    "LockguardNotAcquired": (
        {f'lockguard_not_acquired_total{{{B},reason="no_quorum"}}': "0x36 1x4"},
        {"group": "binance", "reason": "no_quorum"},
        {f'lockguard_not_acquired_total{{{B},reason="gave_up"}}': "0+9x40"},
    ),
    "LockguardFenceCloseFailed": (
        {f"lockguard_fence_close_failures_total{{{B}}}": "0x36 1x4"},
        {"group": "binance"},
        {f"lockguard_fence_close_failures_total{{{B}}}": "4x40"},
    ),
    "LockguardOrderUnknown": (
        {f'lockguard_orders_total{{{B},step="entry",result="unknown"}}': "0x36 1x4"},
        {"group": "binance", "step": "entry"},
        {f'lockguard_orders_total{{{B},step="entry",result="found"}}': "0+1x40"},
    ),
    "LockguardCommitUnknown": (
        {f'lockguard_commits_in_doubt_total{{{B},outcome="unknown"}}': "0x36 1x4"},
        {"group": "binance"},
        {f'lockguard_commits_in_doubt_total{{{B},outcome="committed"}}': "0+1x40"},
    ),
    "LockguardPositionAlert": (
        {f"lockguard_alerts_total{{{B}}}": "0x36 1x4"},
        {"group": "binance"},
        {f"lockguard_alerts_total{{{B}}}": "3x40"},
    ),
    "LockguardPassesGone": (
        {
            f'lockguard_pass_seconds_count{{{B},kind="pass"}}': "9x80",
            f"lockguard_positions_open{{{B}}}": "2x80",
        },
        {"group": "binance"},
        {
            f'lockguard_pass_seconds_count{{{B},kind="pass"}}': "9x80",
            f"lockguard_positions_open{{{B}}}": "0x80",
        },
    ),
    "LockguardObserverFails": (
        {'lockguard_observer_failures_total{observer="Mine"}': "_x36 1x4"},
        {"observer": "Mine"},
        {'lockguard_observer_failures_total{observer="Mine"}': "5x40"},
    ),
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed (Debian's package prometheus), so no alert is tried",
)


def expected(alert: str, labels: dict[str, str] | None) -> dict:
    labels_of_all = "alertname, group, server, fence, step, reason, observer"
    query = f'count by ({labels_of_all}) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    if labels is None:
        return {"expr": query, "eval_time": "10m"}
    told = ",".join(f'{name}="{value}"' for name, value in {"alertname": alert, **labels}.items())
    return {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": f"{{{told}}}", "value": 1}]}


def test_every_alert_is_tried() -> None:
    assert list(CASES) == ALERTS


def test_every_metric_in_a_rule_is_one_that_there_is() -> None:
    rules = "\n".join(
        line for line in RULES.read_text(encoding="utf-8").splitlines() if "description:" not in line
    )
    used = set(re.findall(r"lockguard_\w+", rules))
    known = {
        name
        for metric in (*OBSERVED, *EXPORTED)
        for name in (metric.name, f"{metric.name}_count", f"{metric.name}_bucket")
    }
    assert used - known == set()


@needs_promtool
def test_the_rules_are_what_prometheus_takes() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@needs_promtool
def test_each_alert_fires_and_is_silent_as_it_should(tmp_path: Path) -> None:
    tests = []
    for alert, (firing, labels, silent) in CASES.items():
        for series, told in ((firing, labels), (silent, None)):
            tests.append(
                {
                    "name": f"{alert} {'is silent' if told is None else 'fires'}",
                    "interval": "15s",
                    "input_series": [{"series": one, "values": values} for one, values in series.items()],
                    "promql_expr_test": [expected(alert, told)],
                }
            )
    file = tmp_path / "tests.yml"
    content = {"rule_files": [str(RULES)], "evaluation_interval": "15s", "tests": tests}
    file.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
