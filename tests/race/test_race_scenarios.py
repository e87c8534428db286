"""The race kit in real processes: without the guard it loses, with it nothing happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import redis
from click.testing import CliRunner

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_lab.race.cli import race
from lockguard_lab.race.run import RaceSettings, Scenario, run_race
from lockguard_lab.race.servers import reach_redis
from lockguard_lab.servers import PostgresServer
from lockguard_positions._errors import ServerUnreachable

OPENS = 12
TOPOLOGIES = "use single, redlock:N with N from 1 to 15, sentinel or cluster"


async def test_a_pass_in_the_window_duplicates_most_unguarded_opens(urls: dict[str, str]) -> None:
    result = await run_race(RaceSettings(**urls, scenario="B", guard=False, opens=OPENS))
    assert result.duplicates > OPENS / 2
    assert result.unique_violations > 0
    assert result.errors == ()
    assert not result.clean


@pytest.mark.parametrize("scenario", ["A", "B", "C", "D", "stress"])
async def test_nothing_happens_under_the_guard(urls: dict[str, str], scenario: Scenario) -> None:
    seen: list[tuple[int, int]] = []
    result = await run_race(
        RaceSettings(**urls, scenario=scenario, guard=True, opens=OPENS, processes=3),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert result.clean, result.as_json()
    assert (result.duplicates, result.double_entries, result.without_stop, result.orphan_stops) == (
        0,
        0,
        0,
        0,
    )
    assert result.stale_writes.committed == 0
    assert seen[-1] == (OPENS, OPENS)


async def test_leases_that_are_taken_away_in_mid_flow_cost_nothing(urls: dict[str, str]) -> None:
    """What their holders still write is refused, and recovery finishes what they began."""
    result = await run_race(
        RaceSettings(**urls, scenario="stress", opens=25, threads=2, expire_leases=True, ttl_ms=2_000)
    )
    assert result.clean, result.as_json()
    assert result.leases_expired > 0
    assert (result.duplicates, result.double_entries, result.without_stop, result.orphan_stops) == (
        0,
        0,
        0,
        0,
    )
    stale = result.stale_writes
    assert (stale.attempted, stale.committed) == (stale.refused, 0)


async def test_under_mixed_faults_the_guard_rolls_hardly_anything_back(urls: dict[str, str]) -> None:
    """The same faults, by the same seed; the unguarded flow rolls back whatever it does not understand."""
    settings = RaceSettings(**urls, scenario="B", opens=60, faults=0.3, stagger_ms=60)
    guarded = await run_race(settings)
    assert guarded.clean, guarded.as_json()
    assert guarded.orphan_stops == 0
    assert guarded.rolled_back / guarded.opens < 0.05
    naive = await run_race(replace(settings, guard=False))
    assert naive.rolled_back / naive.opens > 0.1
    assert naive.orphan_stops + naive.reversed_positions + naive.without_stop > 0


async def test_twenty_five_symbols_at_once_in_four_processes_all_open_once(urls: dict[str, str]) -> None:
    result = await run_race(RaceSettings(**urls, scenario="A", opens=25, processes=4, stagger_ms=0))
    assert result.clean, result.as_json()
    assert (result.opens, result.rolled_back, result.double_entries) == (25, 0, 0)


async def test_a_race_of_a_given_duration_goes_on_for_so_long(urls: dict[str, str]) -> None:
    settings = RaceSettings(**urls, scenario="B", opens=3, symbols=3, threads=3, latency_ms=5, stagger_ms=10)
    one_round = await run_race(settings)
    # Longer than a round takes here now, however busy the machine is.
    duration_s = 2 * one_round.seconds
    result = await run_race(replace(settings, duration_s=duration_s))
    assert result.clean, result.as_json()
    assert result.seconds > duration_s
    assert result.opens > one_round.opens == 3


async def test_opens_beyond_the_symbols_make_further_rounds(urls: dict[str, str]) -> None:
    result = await run_race(
        RaceSettings(**urls, scenario="A", opens=5, symbols=2, latency_ms=5, stagger_ms=10)
    )
    assert result.clean
    assert result.opens == 5


async def test_a_race_leaves_no_process_and_no_database(
    urls: dict[str, str], postgres_server: PostgresServer
) -> None:
    import asyncpg

    await run_race(RaceSettings(**urls, opens=2, latency_ms=5))
    running = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie among them, which has ended
            running.append(" ".join(process.cmdline()))
    assert not [line for line in running if "race_worker" in line]
    conn = await asyncpg.connect(postgres_server.url)
    names = await conn.fetch("select datname from pg_database where datname like 'lockguard_race_%'")
    await conn.close()
    assert names == []


async def test_a_worker_ends_with_its_parent() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lockguard_lab.race.worker", stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 20) == 3


async def test_an_exchange_that_is_not_there_is_named(urls: dict[str, str]) -> None:
    wrong = {**urls, "exchange_url": "http://127.0.0.1:9"}
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9"):
        await run_race(RaceSettings(**wrong, connect_s=0.2))


async def test_a_password_is_not_told(urls: dict[str, str]) -> None:
    wrong = {**urls, "database_url": "postgresql://bot:secret@127.0.0.1:9/x"}
    with pytest.raises(ServerUnreachable) as caught:
        await run_race(RaceSettings(**wrong, connect_s=0.2))
    assert "secret" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


def test_the_command_writes_its_result_and_its_exit_code(tmp_path: Path) -> None:
    file = tmp_path / "race.json"
    done = CliRunner().invoke(race, ["--opens", "4", "--latency-ms", "10", "--json", str(file)])
    assert done.exit_code == 0, done.output
    told = json.loads(file.read_text())
    assert {
        "scenario",
        "guard",
        "opens",
        "duplicates",
        "double_entries",
        "without_stop",
        "stale_writes",
    } <= set(told)
    assert set(told["stale_writes"]) == {"attempted", "refused", "committed"}
    assert (told["scenario"], told["guard"], told["opens"], told["duplicates"]) == ("B", True, 4, 0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "0"], "processes=0 must be from 1 to 32"),
        (
            ["--processes", "1", "--scenario", "A"],
            "one process with one thread races nobody in scenario A; set threads to 2",
        ),
        (
            ["--processes", "1", "--phase", "after-order"],
            "phase=after-order: one process opens and another makes the pass; set processes to 2",
        ),
        (["--faults", "2"], "faults=2 must be from 0 to 1"),
        (["--threads", "0"], "threads=0 must be from 1 to 100"),
        (["--duration", "-1"], "duration=-1 s must be above 0 and at most a day"),
        (["--symbols", "0"], "symbols=0 must be at least 1"),
        (["--ttl-ms", "99"], "ttl_ms=99 must be at least 100"),
        (["--latency-ms", "-1"], "latency_ms=-1 must be at least 0"),
        (["--stagger-ms", "-1"], "stagger_ms=-1 must be at least 0"),
        (
            ["--scenario", "A", "--phase", "after-order"],
            "phase=after-order: passes meet opens at a phase in scenario B only, not in A",
        ),
        (
            ["--topology", "redlock:0"],
            f"topology 'redlock:0' is not known; {TOPOLOGIES}",
        ),
        (
            ["--topology", "ring"],
            f"topology 'ring' is not known; {TOPOLOGIES}",
        ),
        (
            ["--topology", "redlock:3", "--redis", "redis://127.0.0.1:9"],
            "--topology starts servers, and --redis or LOCKGUARD_RACE_REDIS_URL names others; leave one out",
        ),
        (
            ["--no-guard", "--expire-leases"],
            "without the guard there are no leases to expire; leave one of them out",
        ),
    ],
)
def test_a_mistake_is_one_line_and_two(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(race, arguments)
    assert done.exit_code == 2
    assert done.output.strip() == f"Error: {told}"


async def test_a_race_leaves_the_servers_of_the_bots_own_variables_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It resets the exchange, and takes and breaks leases of the very names that a bot takes."""
    for name in ("REDIS", "DATABASE", "EXCHANGE"):
        monkeypatch.setenv(f"LOCKGUARD_{name}_URL", f"{name.lower()}://bots.example")
    seen: list[tuple[str, str, str]] = []

    async def record(settings: RaceSettings, *_: object, **__: object) -> None:
        seen.append((settings.redis_url, settings.database_url, settings.exchange_url))
        raise ConfigurationError("stopped")

    monkeypatch.setattr("lockguard_lab.race.cli._run", record)
    result = await asyncio.to_thread(CliRunner().invoke, race, ["--opens", "1"])
    assert "stopped" in result.output
    assert seen == [("", "", "")]


async def test_a_race_refuses_a_redis_with_locks_that_no_race_has_made(redis_url: str) -> None:
    settings = RaceSettings(redis_url=redis_url, database_url="", exchange_url="")
    symbols = ("APT/USDT:USDT", "SUI/USDT:USDT")
    async with LockGuard.from_url(redis_url) as bot:
        async with bot.hold("binance:SUIUSDT"):
            pass
        with pytest.raises(ConfigurationError, match="locks that no race has made, such as binance:SUIUSDT"):
            await reach_redis(settings, symbols)
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        await reach_redis(settings, symbols)
        async with bot.hold("binance:SUIUSDT"):  # now it is a race's own
            pass
        await reach_redis(settings, symbols)
