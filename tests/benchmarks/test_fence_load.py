"""What a load measures is what it says; how fast it is depends on the machine and is not tested."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lockguard_asyncpg.cli import fence
from lockguard_asyncpg.load.server import autovacuum_cpu_s

SHORT = ("load", "--processes", "2", "--resources", "10", "--duration", "2s", "--history", "5000")


def test_a_load_tells_what_many_bots_cost_and_leave_behind_and_lets_nothing_stale_in(tmp_path: Path) -> None:
    done = CliRunner().invoke(fence, [*SHORT, "--json", str(tmp_path / "load.json")])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "load.json").read_text())
    failed = told["plain"]["failed"] + told["fenced"]["failed"]
    assert (told["stale_commits"], failed) == (0, 0), told["told"]
    assert told["plain"]["holds"] > 0
    # A seal, a check and a close for each body, and a check for each write that came too late.
    fenced = told["fenced"]
    assert told["calls"] >= 3 * fenced["holds"] > 0
    assert 0 < fenced["p50_ms"] <= fenced["p99_ms"]
    assert 0 < fenced["server_cpu_s"] < 60
    sizes = {size["table"]: size for size in told["after"]}
    assert sizes["fence"]["live"] <= 10
    assert sizes["writer"]["bytes"] > {size["table"]: size for size in told["before"]}["writer"]["bytes"]
    assert "stale commits" in done.stdout
    assert [one["work"].split()[0] for one in told["history"]] == ["hold", "hold", "break"]
    assert all(one["none_us"] > 0 and one["after_us"] > 0 for one in told["history"])


def test_the_share_of_autovacuum_is_read_off_the_servers_log() -> None:
    log = """
    LOG:  automatic vacuum of table "postgres.lockguard.writer": index scans: 1
        pages: 0 removed, 18 remain, 18 scanned (100.00% of total)
        system usage: CPU: user: 0.50 s, system: 0.25 s, elapsed: 1.00 s
    LOG:  automatic analyze of table "postgres.lockguard.writer"
        system usage: CPU: user: 0.01 s, system: 0.00 s, elapsed: 0.02 s
    LOG:  checkpoint complete: CPU: user: 9.00 s, system: 9.00 s
    """
    assert autovacuum_cpu_s(log) == 0.76
