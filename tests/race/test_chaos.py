"""Processes are stopped, killed and robbed of their Redis while they write in every documented way."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import psutil
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Token
from lockguard_asyncpg import CommitUnknown, PostgresFence, install
from lockguard_lab.chaos import ChaosPlan, RoundReport
from lockguard_lab.chaos.disturbing import break_and_read
from lockguard_lab.chaos.plan import TOPOLOGIES
from lockguard_lab.chaos.recording import lines_of
from lockguard_lab.chaos.running import run_round
from lockguard_lab.chaos.tables import judge
from lockguard_lab.chaos.worker import guard_over
from lockguard_lab.fence_race import WAYS
from lockguard_lab.fence_race.operate import operate
from lockguard_lab.fence_race.plan import WriteAttempt
from lockguard_lab.fence_race.running import SET_UP, TEAR_DOWN
from lockguard_lab.servers import IndependentRedis, PostgresServer
from lockguard_lab.servers.supervision import wait_until


@pytest.fixture(scope="module")
def own_redis() -> Iterator[IndependentRedis]:
    """It is emptied and restarted."""
    with IndependentRedis(1) as servers:
        yield servers


@pytest.fixture
async def fenced_server(postgres_server: PostgresServer) -> PostgresServer:
    conn = await asyncpg.connect(postgres_server.url)
    await install(conn)
    await conn.close()
    return postgres_server


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_breaks_a_law_while_processes_and_servers_of_every_topology_are_disturbed(
    tmp_path: Path,
) -> None:
    told = tmp_path / "told.json"
    command = [*CHAOS, "--minutes", "0.34", "--processes", "2", "--seed", "3", "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(told.read_text())
    assert facts["violations"] == []
    assert {name for name in facts["counts"] if name.startswith("operations, ")} == {
        f"operations, {topology}" for topology in TOPOLOGIES
    }
    assert all(facts["counts"][f"operations, {topology}"] > 10 for topology in TOPOLOGIES)
    assert facts["counts"]["faults"] > 10
    assert all(checked["convicted"] for checked in facts["self_check"].values())


@pytest.mark.timeout(300)
def test_an_interruption_ends_all_processes_and_judges_what_was_recorded(tmp_path: Path) -> None:
    history = tmp_path / "history"
    command = [*CHAOS, "--topology", "single", "--minutes", "60", "--history", str(history)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        started = psutil.Process(running.pid)
        assert wait_until(lambda: faults(history) != [], 120), "nothing was disturbed"
        processes = started.children(recursive=True)
        running.send_signal(signal.SIGINT)
        said, complained = running.communicate(timeout=120)
    assert running.returncode == 130, said + complained
    assert "round-0001-single" in said
    assert "violations" in said
    assert (history / "round-0001-single" / "tables.json").exists()
    assert not psutil.wait_procs(processes, timeout=20)[1]


CHAOS = [sys.executable, "-m", "lockguard", "chaos"]


def faults(history: Path) -> list[dict[str, Any]]:
    return [line for path in history.glob("*/conductor.jsonl") for line in lines_of(path) if "fault" in line]


async def test_nothing_stale_twice_or_lost_while_postgres_is_killed_at_work_too(
    own_redis: IndependentRedis, tmp_path: Path
) -> None:
    # Closes that nobody waits for reach the disk late, so that a crash loses some.
    with PostgresServer(max_connections=200, settings={"wal_writer_delay": "2s"}) as server:
        conn = await asyncpg.connect(server.url)
        await install(conn)
        await conn.close()
        plan = ChaosPlan(ways=tuple(way.name for way in WAYS), length=timedelta(seconds=8), crashes=True)
        report = await run_round(
            replace(plan, protects=True), redis=own_redis, postgres=server, directory=tmp_path
        )
    assert report.violations == 0, report.told
    assert report.unresolved == 0, report.counts
    assert report.counts["processes that failed"] == 0, report.told
    assert report.faults["Postgres crashed"] >= 1
    assert sum(tally.committed for tally in report.ways.values()) > 20


async def test_a_crash_convicts_a_server_that_acknowledges_what_it_has_not_written(
    own_redis: IndependentRedis, tmp_path: Path
) -> None:
    hasty = {"synchronous_commit": "off", "wal_writer_delay": "10s"}
    with PostgresServer(max_connections=200, settings=hasty) as server:
        conn = await asyncpg.connect(server.url)
        await install(conn)
        await conn.execute("checkpoint")
        await conn.close()
        for seed in range(1, 6):
            plan = ChaosPlan(
                ways=("statement",), length=timedelta(seconds=4), seed=seed, crashes=True, stalls=0
            )
            try:
                report = await run_round(plan, redis=own_redis, postgres=server, directory=tmp_path)
            except asyncpg.UndefinedTableError:  # the tables of the race are lost as well
                continue
            if any(tally.lost_writes for tally in report.ways.values()):
                return
    pytest.fail("not one lost write was seen")


async def test_processes_convict_a_check_that_is_made_once_per_connection(
    own_redis: IndependentRedis, fenced_server: PostgresServer, tmp_path: Path
) -> None:
    for seed in range(1, 6):
        plan = ChaosPlan(
            ways=("checked once per connection",),
            length=timedelta(seconds=4),
            resources=2,
            seed=seed,
            blind=1.0,
            stalls=0.1,
        )
        if (await run_round(plan, redis=own_redis, postgres=fenced_server, directory=tmp_path)).stale_commits:
            return
    pytest.fail("not one stale commit was seen")


async def test_what_a_break_made_final_is_what_the_fence_says_also_while_redis_is_ahead_of_it(
    own_redis: IndependentRedis, fenced_server: PostgresServer, tmp_path: Path
) -> None:
    # As a grant leaves it that came after the fence was broken, and has not been sealed.
    ahead = int(SYSTEM_CLOCK.wall() * 1_000_000) + 3_600_000_000
    own_redis.servers[0].command("SET", "lockguard:{chaos:ahead}:token", str(ahead))
    async with asyncpg.create_pool(fenced_server.url, min_size=0, max_size=3) as pool:
        await pool.execute(SET_UP)
        async with guard_over(tuple(own_redis.urls), fence=PostgresFence(pool)) as guard:
            line = await break_and_read(guard, pool, "chaos:ahead")
        token = await pool.fetchval("select token from lockguard.status('chaos:ahead')")
        await pool.execute(TEAR_DOWN)
    assert line == {"read": "chaos:ahead", "token": token, "updates": 0, "entries": 0, "broken": ""}
    assert token > ahead  # the break raised the fence beyond what Redis remembers


async def test_an_outcome_is_looked_up_to_the_end_also_when_its_holder_is_cut(
    fenced_server: PostgresServer,
) -> None:
    counts, late = Counter[str](), set[asyncio.Task[Any]]()
    attempt: Any = object
    async with asyncpg.create_pool(fenced_server.url, min_size=0, max_size=3) as pool, pool.acquire() as conn:
        grant = uuid4()
        sealed = await conn.fetchval("select lockguard.seal('chaos:cut', 7, $1, 'a', 'b', 1000)", grant)
        assert sealed[0]
        writing = conn.transaction()
        await writing.start()
        sequence = 2**62 + 1024
        await conn.fetchval("select lockguard.check('chaos:cut', 7, $1, $2)", grant, sequence)

        async def write(_: WriteAttempt) -> None:
            raise CommitUnknown(resource="chaos:cut", token=Token(7), sequence=sequence)

        trying = asyncio.create_task(
            operate(write, attempt, pool=pool, within=timedelta(seconds=5), counts=counts, late=late)
        )
        while not late:
            await asyncio.sleep(0)
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
        await writing.commit()
        await asyncio.gather(*late)
    assert counts["unknown, had committed"] == counts["unknown"] == 1


# The judge, on histories that break one law each.

BEGUN = [{"begin": op, "call": "write", "way": "w", "resource": "r", "token": op} for op in (1, 2)]
TOLD = [{"end": op, "how": "committed"} for op in (1, 2)]
Tables = dict[str, list[dict[str, Any]]]


def rows(updates: list[tuple[int, int, int]], entries: list[tuple[int, int]]) -> Tables:
    """What the judge reads: (n, token, op) of updates, (token, op) of inserted rows."""
    return {
        "ledger": [
            {"resource": "r", "n": n, "token": token, "op": op, "at": float(n)} for n, token, op in updates
        ],
        "entries": [{"resource": "r", "token": token, "op": op, "at": 0.0} for token, op in entries],
    }


def judged(tables: Tables, lines: list[dict[str, Any]]) -> RoundReport:
    report = RoundReport()
    judge(tables, lines, report)
    return report


def test_a_sound_history_passes() -> None:
    tables = rows([(1, 1, 1), (2, 2, 2)], [])
    read = {"read": "r", "token": 2, "updates": 1, "entries": 0}
    closed = {"closed": "r", "token": 1, "updates": 1, "entries": 0}
    report = judged(tables, [*BEGUN, *TOLD, read, closed])
    assert report.violations == 0, report.told
    assert report.ways["w"].committed == 2


@pytest.mark.parametrize(
    ("tables", "lines", "law"),
    [
        pytest.param(rows([(1, 2, 2), (2, 1, 1)], []), [], "stale_commits", id="tokens go back"),
        pytest.param(rows([(1, 1, 1), (3, 2, 2)], []), [], "stale_commits", id="a number is missing"),
        pytest.param(
            rows([(1, 1, 1), (2, 2, 2)], []),
            [{"read": "r", "token": 2, "updates": 0, "entries": 0}],
            "stale_commits",
            id="an update after the successor's seal",
        ),
        pytest.param(
            rows([], [(1, 1), (2, 2)]),
            [{"read": "r", "token": 2, "updates": 0, "entries": 0}],
            "stale_commits",
            id="a row after the successor's seal",
        ),
        pytest.param(
            rows([(1, 1, 1), (2, 2, 2)], []),
            [{"closed": "r", "token": 2, "updates": 0, "entries": 0}],
            "stale_commits",
            id="a write after its own close",
        ),
        pytest.param(rows([(1, 1, 1), (2, 2, 2)], [(1, 1)]), [], "duplicates", id="twice"),
        pytest.param(rows([(1, 1, 1)], []), [], "lost_writes", id="reported and not there"),
        pytest.param(rows([(1, 1, 1), (2, 2, 2)], [(2, -2)]), [], "lost_writes", id="rolled back and there"),
    ],
)
def test_a_history_that_breaks_a_law_is_convicted(
    tables: Tables, lines: list[dict[str, Any]], law: str
) -> None:
    report = judged(tables, [*BEGUN, *TOLD, *lines])
    assert getattr(report.ways["w"], law) == 1, report
    assert report.violations == 1


@pytest.mark.parametrize(
    ("lines", "convicted"),
    [
        pytest.param([{"crash": 99, "at": 1.5}], 0, id="the log ends before the close"),
        pytest.param([{"crash": 100, "at": 1.5}], 1, id="the log has the close"),
        pytest.param([{"crash": 99, "at": 2.5}], 1, id="the write came before the crash"),
        pytest.param([{"crash": 99, "at": 0.5}], 1, id="the close came after the crash"),
        pytest.param(
            [{"crash": 100, "at": 1.4}, {"crash": 99, "at": 1.5}], 1, id="an earlier crash had kept it"
        ),
        pytest.param([], 1, id="nothing has crashed"),
    ],
)
@pytest.mark.parametrize("lazy", [True, False])
def test_only_a_crash_that_lost_a_close_which_did_not_wait_lets_its_holder_write_again(
    lines: list[dict[str, Any]], convicted: int, lazy: bool
) -> None:
    closed = {"closed": "r", "token": 2, "updates": 0, "entries": 0}
    lazily = {"lazy": 100, "at": 1.0} if lazy else {}
    tables = rows([(1, 1, 1), (2, 2, 2)], [])  # the second at the time 2.0
    report = judged(tables, [*BEGUN, *TOLD, {**closed, **lazily}, *lines])
    assert report.stale_commits == (convicted if lazy else 1), report.told


def test_what_was_refused_and_is_there_is_convicted() -> None:
    report = judged(rows([(1, 1, 1)], []), [BEGUN[0], {"end": 1, "how": "refused"}])
    assert report.ways["w"].lost_writes == 1
