"""What a load measures is what it says; how fast it is depends on the machine and is not tested."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lockguard_asyncpg._cli import fence
from lockguard_lab.fence_load.history import measure_history
from lockguard_lab.fence_load.server import autovacuum_cpu_s
from lockguard_lab.servers import PostgresServer, RedisServer

SHORT = ("load", "--processes", "2", "--resources", "10", "--duration", "1s")


def test_a_load_tells_what_many_bots_cost_and_leave_behind_and_lets_nothing_stale_in(tmp_path: Path) -> None:
    done = CliRunner().invoke(fence, [*SHORT, "--json", str(tmp_path / "load.json")])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "load.json").read_text())
    failed = told["plain"]["failed"] + told["fenced"]["failed"]
    assert (told["stale_commits"], failed) == (0, 0), told["told"]
    assert told["plain"]["holds"] > 0
    # A seal and a check for each body at least, and a close where the write did not bring it.
    fenced = told["fenced"]
    assert told["calls"] >= 2 * fenced["holds"] > 0
    assert 0 < fenced["p50_ms"] <= fenced["p99_ms"]
    assert 0 < fenced["server_cpu_s"] < 60
    sizes = {size["table"]: size for size in told["after"]}
    assert sizes["fence"]["live"] <= 10
    assert sizes["writer"]["bytes"] > {size["table"]: size for size in told["before"]}["writer"]["bytes"]
    assert "stale commits" in done.stdout


async def test_holds_and_breaks_are_measured_after_earlier_writes_beside_the_same_after_none(
    redis_server: RedisServer, postgres_server: PostgresServer
) -> None:
    told: list[str] = []
    found = await measure_history(redis_server, postgres_server, 1_001, progress=told.append, calls=1)
    assert [one.work.split()[0] for one in found] == ["hold", "hold", "break"]
    assert all(one.none_us > 0 and one.after_us > 0 for one in found)
    assert [line for line in told if "records" in line] == ["1 of 501 records", "1 of 500 records"]


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
