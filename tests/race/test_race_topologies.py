"""The guarded flow on each kind of Redis, also while that fails over or is resharded in mid-flow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from redis.crc import key_slot

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.race.cli import race
from lockguard_lab.race.run import RaceResult, RaceSettings, run_race
from lockguard_lab.servers import ClusterRedis, IndependentRedis, SentinelRedis, TopologyName

OPENS = 16
SYMBOLS = 8


@pytest.mark.parametrize("name", ["single", "redlock:3", "sentinel", "cluster"])
def test_a_race_runs_on_embedded_servers_of_each_topology(name: str, tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    arguments = ["--topology", name, "--opens", "4", "--latency-ms", "10", "--json", str(file)]
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code == 0, done.output
    told = json.loads(file.read_text())
    assert (told["topology"], told["opens"], told["duplicates"]) == (name, 4, 0)


def test_an_even_number_of_nodes_is_warned_of_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    arguments = ["--topology", "redlock:2", "--opens", "1", "--latency-ms", "5", "--json", str(file)]
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code == 0, done.output
    warnings = [line for line in done.output.splitlines() if line.startswith("warning: ")]
    assert warnings == ["warning: 2 nodes survive the loss of no more than 1 would: use an odd number"]
    assert json.loads(file.read_text())["topology"] == "redlock:2"


def test_without_the_guard_nobody_locks_and_nothing_is_started_for_it(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    arguments = ["--topology", "cluster", "--no-guard", "--opens", "1", "--json", str(file)]
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code in (0, 1), done.output  # one open may meet a pass or not
    assert "Redis" not in done.output
    assert json.loads(file.read_text())["topology"] is None


@pytest.mark.parametrize(
    "text", ["", "redlock", "redlock:", "redlock:0", "redlock:16", "redlock:-1", "single:1", "x"]
)
def test_a_topology_that_is_none_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match="use single, redlock:N"):
        TopologyName.parse(text)


@pytest.mark.parametrize("text", ["single", "redlock:1", "redlock:15", "sentinel", "cluster"])
def test_a_topology_is_written_as_it_is_read(text: str) -> None:
    assert str(TopologyName.parse(text)) == text


async def race_with(urls: dict[str, str], redis_urls: list[str], incident: Callable[[], None]) -> RaceResult:
    """A race in whose middle something befalls the servers."""
    begun = asyncio.Event()
    settings = RaceSettings(
        **{**urls, "redis_url": redis_urls[0]},
        more_redis_urls=tuple(redis_urls[1:]),
        scenario="B",
        opens=OPENS,
        symbols=SYMBOLS,
        processes=3,
        stagger_ms=500,
    )

    async def befall() -> None:
        await begun.wait()
        await asyncio.to_thread(incident)

    async with asyncio.TaskGroup() as group:
        group.create_task(befall())
        racing = group.create_task(
            run_race(settings, on_progress=lambda done, _: begun.set() if done else None)
        )
    result = racing.result()
    assert (result.duplicates, result.double_entries, result.reversed_positions) == (0, 0, 0), (
        result.as_json()
    )
    assert (result.without_stop, result.orphan_stops, result.stale_writes.committed) == (0, 0, 0)
    assert result.errors == ()
    return result


async def test_a_node_of_three_that_dies_in_mid_flow_costs_nothing(urls: dict[str, str]) -> None:
    async with IndependentRedis(3) as redis:
        result = await race_with(urls, redis.urls, redis.servers[0].kill)
    assert (result.rolled_back, result.not_opened) == (0, 0)


async def test_a_failover_in_mid_flow_doubles_and_loses_nothing(urls: dict[str, str]) -> None:
    async with SentinelRedis() as redis:
        old = redis.master
        await race_with(urls, [redis.url], redis.failover)
        assert redis.master is not old


async def test_slots_that_move_in_mid_flow_cost_nothing(
    urls: dict[str, str], exchange: LocalExchange
) -> None:
    names = [symbol.partition(":")[0].replace("/", "") for symbol in exchange.symbols[:SYMBOLS]]
    async with ClusterRedis() as redis:

        def move_all() -> None:
            for name in names:
                redis.move_slot(key_slot(f"binance:{name}".encode()), redis.servers[-1])

        result = await race_with(urls, [redis.url], move_all)
    assert (result.rolled_back, result.not_opened) == (0, 0)
