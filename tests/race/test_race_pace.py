"""The time to open: what is counted is tested here; what is timed is for ``lockguard race --compare``."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lockguard_positions.cli import race
from lockguard_positions.race import RaceSettings
from lockguard_positions.race_pace import compare

REQUESTS = ("positions", "create_order", "create_algo")


async def test_the_guard_asks_for_the_price_and_nothing_else_more(urls: dict[str, str]) -> None:
    seen: list[tuple[int, int]] = []
    result = await compare(
        RaceSettings(**urls, opens=5, latency_ms=5),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert result.unguarded.requests == REQUESTS
    assert sorted(result.guarded.requests) == sorted((*REQUESTS, "ticker"))
    assert result.unguarded.median_ms >= 3 * 5
    assert seen[-1] == (5, 5)


def test_the_comparison_writes_what_it_shows(tmp_path: Path) -> None:
    file = tmp_path / "pace.json"
    arguments = ["--compare", "--opens", "3", "--latency-ms", "5", "--json", str(file)]
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(file.read_text())
    assert (told["topology"], told["opens"], told["latency_ms"]) == ("single", 3, 5)
    assert told["ratio"] > 0
    assert told["unguarded"]["requests"] == list(REQUESTS)
    assert set(told["unguarded"]) == {"median_ms", "p90_ms", "requests"}


def test_what_belongs_to_a_race_is_refused() -> None:
    done = CliRunner().invoke(race, ["--compare", "--no-guard"])
    assert done.exit_code == 2
    assert done.output.strip() == (
        "Error: --compare opens undisturbed with the guard and without; leave --no-guard out"
    )
