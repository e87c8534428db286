"""What each way to lock does when its holder is stopped, cut off or freed: outcomes and counts, no times."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import subprocess
import sys

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard_lab.bench.cli import bench
from lockguard_lab.bench.holders.choose import WAYS, absent
from lockguard_lab.bench.holders.etcd_server import EtcdServer
from lockguard_lab.bench.holders.measure import set_up
from lockguard_lab.bench.holders.results import About, Cut, Found, Freed, Horizon, Pooler, Stopped, WayFound
from lockguard_lab.bench.holders.scenarios import Scenario
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.bench.holders.wording import TABLES, rows
from lockguard_lab.fence_race.pooler import find_pgbouncer

TTL_S, STOP_S = 1, 20
HERE = [name for name in WAYS if name not in absent(list(WAYS))]
UNCHECKED = [
    name
    for name in ("redis-py", "python-redis-lock", "pottery", "coredis", "aioredlock", "lockguard-no-fence")
    if name in HERE
]


@pytest.fixture
async def place(redis_url, database_url):
    made = Place(redis_url, database_url)
    await set_up(made)
    return made


@pytest.mark.parametrize("way", UNCHECKED)
async def test_a_lock_that_nothing_checks_lets_the_late_write_overwrite_its_successors(place, way):
    found = await Scenario(way, place, TTL_S, STOP_S).stopped(1)
    assert (found.during_stop, found.late_write) == ([True], ["overwrote"])
    assert not any("write:" in told for told in found.told)


async def test_postgres_refuses_a_late_write_that_carries_its_token_and_the_holder_is_told(place):
    found = await Scenario("lockguard-raw-sql", place, TTL_S, STOP_S).stopped(1)
    assert (found.during_stop, found.late_write) == ([True], ["refused"])
    assert {"write: UnknownPostgresError LG001", "body: cancelled", "leaving: LeaseLost"} <= set(found.told)


async def test_a_lock_in_a_bounded_transaction_is_as_exact(place):
    found = await Scenario("for-update-bounded", place, TTL_S, STOP_S).stopped(1)
    assert (found.during_stop, found.late_write) == ([True], ["refused"])


async def test_nobody_gets_past_a_stopped_holder_of_an_advisory_lock(place):
    found = await Scenario("advisory-session", place, TTL_S, 2 * TTL_S).stopped(1)
    assert (found.during_stop, found.late_write, found.told) == ([False], ["in order"], [])


async def test_postgres_keeps_the_lock_of_a_client_that_was_cut_off_even_after_its_end(place):
    found = await Scenario("advisory-transaction", place, TTL_S, 2 * TTL_S).cut()
    assert (found.waited_s, found.after_death_s) == (None, None)


async def test_a_session_that_was_ended_frees_its_lock_and_the_pool_writes_on(place):
    on_the_session = await Scenario("advisory-session", place, TTL_S, STOP_S).freed()
    through_the_pool = await Scenario("advisory-session-pool", place, TTL_S, STOP_S).freed()
    assert (on_the_session.late_write, through_the_pool.late_write) == ("refused", "overwrote")


@pytest.mark.parametrize(
    ("setting", "lock", "ends"),
    [
        ("idle_in_transaction_session_timeout", "pg_advisory_xact_lock", True),
        ("idle_session_timeout", "pg_advisory_lock", True),
        ("transaction_timeout", "pg_advisory_xact_lock", True),
        ("idle_in_transaction_session_timeout", "pg_advisory_lock", False),
        ("transaction_timeout", "pg_advisory_lock", False),
    ],
)
async def test_which_timeout_of_postgres_frees_which_lock_of_an_idle_holder(
    database_url, setting, lock, ends
):
    holder, successor = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        if setting == "transaction_timeout" and holder.get_server_version().major < 17:
            pytest.skip("it came with PostgreSQL 17")
        await holder.execute(f"set {setting} = '300ms'")
        if "xact" in lock:
            await holder.execute("begin")
        await holder.execute(f"select {lock}(7)")
        await successor.execute(f"set lock_timeout = '{'30s' if ends else '1s'}'")
        if ends:
            await successor.execute("select pg_advisory_lock(7)")
            # What ended the session says so before the first question, or in answer to it.
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
                await holder.execute("select 1")
        else:
            with pytest.raises(asyncpg.LockNotAvailableError):
                await successor.execute("select pg_advisory_lock(7)")
    finally:
        holder.terminate()
        successor.terminate()


async def test_each_waiter_for_an_advisory_lock_has_a_connection(place):
    assert await Scenario("advisory-session", place, TTL_S, STOP_S).waiting_connections(8) == 8


async def test_a_run_that_is_interrupted_leaves_no_traceback(place, monkeypatch):
    asked, complaints = asyncio.Event(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    asks = Scenario._asks

    async def told(*given):
        entering = await asks(*given)
        asked.set()
        return entering

    monkeypatch.setattr(Scenario, "_asks", told)
    running = asyncio.create_task(Scenario("advisory-session", place, TTL_S, STOP_S).stopped(1))
    await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0)
    gc.collect()  # what was never retrieved is told when it is collected
    assert complaints == []


@pytest.fixture(scope="module")
def run_once(tmp_path_factory):
    """The whole command with one way, and what it printed."""
    file = tmp_path_factory.mktemp("figures") / "figures.json"
    ran = CliRunner().invoke(
        bench, ["--stopped-holder", "--peers", "lockguard", "--rounds", "1", "--json", str(file)]
    )
    assert ran.exit_code == 0, ran.output
    return Found.from_json(json.loads(file.read_text(encoding="utf-8"))), ran.output


def test_the_command_measures_shows_and_writes(run_once):
    found, output = run_once
    lockguard = found.ways["lockguard"]
    assert (lockguard.stopped.during_stop, lockguard.stopped.late_write) == ([True], ["refused"])
    assert {"body: cancelled", "write: LeaseLost", "leaving: LeaseLost"} <= set(lockguard.stopped.told)
    assert (lockguard.freed, lockguard.waiting_connections) == (None, 1)
    assert lockguard.cycle_us > 0
    assert found.about.ttl_s <= lockguard.killed_s + 0.1
    assert all(label in output for label in ("lockguard, pool.execute", "LeaseLost", "VACUUM"))


def test_a_holder_that_is_cut_off_is_told_by_lockguard_and_overwrites_nothing(run_once):
    cut = run_once[0].ways["lockguard"].cut
    assert (cut.late_write, cut.told[0]) == ("refused", "body: cancelled")


def test_a_lease_keeps_nothing_from_vacuum_and_a_transaction_does(run_once):
    kept = {one.label: one.dead_kept for one in run_once[0].horizon}
    assert kept["lockguard, `pool.execute`, after a first write"] == 0
    assert kept["redis-py `Lock`, after a first write"] == 0
    assert kept["`SELECT ... FOR UPDATE`"] == run_once[0].about.updates


@pytest.mark.skipif(find_pgbouncer() is None, reason="PgBouncer is not installed")
def test_a_pooler_gives_a_sessions_lock_to_two_clients_and_keeps_it(run_once):
    found = run_once[0].pooler
    assert (found.session_given_twice, found.session_leaked) == (True, True)
    assert (found.transaction_given_twice, found.lockguard_given_twice) == (False, False)


@pytest.mark.skipif("etcd" not in HERE, reason="etcd is not installed; it was measured once, see docs")
async def test_etcds_lock_alone_overwrites_and_its_revision_refuses(place):
    async with EtcdServer() as etcd:
        where = place.at("etcd", etcd.url)
        plain = await Scenario("etcd", where, 2, STOP_S).stopped(1)
        checked = await Scenario("etcd-revision", where, 2, STOP_S).stopped(1)
    assert (plain.late_write, checked.late_write) == (["overwrote"], ["refused"])


@pytest.mark.skipif(importlib.util.find_spec("distutils") is not None, reason="this Python has distutils")
def test_what_cannot_run_here_is_named_with_its_reason():
    assert "distutils" in absent(["aioredlock"])["aioredlock"]


@pytest.mark.parametrize(
    ("names", "told"), [("redis-py,nobody", "peer 'nobody' is not known"), ("etdc", "etcd")]
)
def test_an_unknown_name_is_told_in_one_line(names, told):
    said = subprocess.run(
        [sys.executable, "-m", "lockguard", "bench", "--stopped-holder", "--peers", names],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode != 0
    assert told in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_the_figures_survive_their_file_and_each_table_has_its_rows():
    found = Found(
        About("c", "2026-01-01", 2, 1.0, "3.11", {}, {}, {"etcd": "no etcd"}, 2, 1, 4.0, 100, 100, 7200),
        {
            "a": WayFound(
                "way a",
                "Redis",
                Stopped(1.04, [True, True], ["overwrote", "refused"], [], None),
                1.1,
                Cut(1.0, 4.0, "overwrote", ["body: cancelled"], 0.94),
                None,
                1,
                250.0,
            ),
            "b": WayFound(
                "way b",
                "Postgres",
                Stopped(4.2, [False, False], ["in order", "in order"], [], None),
                0.007,
                Cut(None, 4.0, "no answer", [], None),
                Freed("overwrote", []),
                100,
                90.0,
            ),
        },
        [Horizon("held", 100, 3)],
        Pooler(
            "1.18",
            session_given_twice=True,
            session_leaked=True,
            transaction_given_twice=False,
            lockguard_given_twice=False,
        ),
    )
    assert Found.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert {table: len(rows(found, table)) for table in TABLES} == {
        "stopped": 2,
        "killed": 2,
        "freed": 1,
        "price": 2,
        "horizon": 1,
    }
    assert all(len(row) == len(TABLES[table]) for table in TABLES for row in rows(found, table))
    assert rows(found, "stopped") == [
        ["way a", "after 1.0 s", "overwrote 1, refused 1", "nothing"],
        ["way b", "only when it goes on: after 4.2 s", "in order", "nothing"],
    ]
