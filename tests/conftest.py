"""Fixtures shared by all tests: real servers, started once per test process."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis

from lockguard_lab.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TESTS = Path(__file__).parent

hypothesis.settings.register_profile("ci", derandomize=True, max_examples=100, deadline=None, database=None)
hypothesis.settings.register_profile("long", max_examples=20_000, deadline=None, database=None)
hypothesis.settings.load_profile("ci")  # --hypothesis-profile=long for hours instead of seconds

ON_EACH_LOOP = (
    "cancellation/",
    "chaos/test_topology_links.py",
    "contract/",
    "integration/test_cancellation.py",
    "integration/test_fence.py",
    "integration/test_fence_breakage.py",
    "integration/test_fence_cancelled_writes.py",
    "integration/test_fence_cancels.py",
    "integration/test_fence_connections.py",
    "integration/test_fence_copies.py",
    "integration/test_fence_dropin.py",
    "integration/test_fenced_loss.py",
    "integration/test_hold_left_elsewhere.py",
    "integration/test_hold_use.py",
    "integration/test_loss.py",
    "integration/test_renewal_links.py",
    "integration/test_loops.py",
    "integration/test_fence_refusal_records.py",
)
"""What runs on asyncio's own event loop and on uvloop, which users of ccxt and uvicorn have."""


ON_EACH_POSTGRES = (
    # what a write leaves behind, and the rows that change in place
    "test_fence_bounded.py::test_only_what_is_old_enough_goes",
    "test_fence_bounded.py::test_the_rows_of_the_fence_change_in_place",
    # the role's or the database's own isolation
    "test_fence_bounded.py::test_the_fences_own_calls_are_read_committed",
    # logical replication, the life of a protected table, migrations
    "test_fence_subscribers.py::test_a_table_that_a_subscription_fills",
    "test_fence_subscribers.py::test_the_workers_of_a_subscription_fill",
    "test_fence_ddl.py::test_writes_go_on_and_stay_fenced_through_ddl",
    "test_fence_ddl.py::test_what_was_a_partition_after_protect",
    "test_fence_ddl.py::test_triggers_that_are_off_gone_or_ordinary",
    "test_fence_ddl.py::test_an_inheriting_table_that_nothing_guards",
    "test_fence_protect.py::test_partitions_and_odd_names_are_protected",
    "test_fence_protect.py::test_an_exempt_column_is_changed_many_times",
    # a watch has the text of a guard, and its records lean on ON CONFLICT and predicate locks
    "test_fence_watch_law.py::",
    "test_fence_watch.py::test_writers_of_one_kind",
    "test_fence_watch.py::test_a_snapshot_older_than_the_record",
    "test_fence_watch.py::test_many_writes_of_a_transaction",
    "test_fence_migrations.py::test_the_script_is_one_statement",
    "test_fence_migrations.py::test_the_script_applied_again",
    "test_fence_schema.py::test_the_fence_goes_forward_only",
    "test_fence_refusal_records.py::test_the_lines_are_bounded",
    "test_fence_refusal_records.py::test_what_a_role_sends_is_cut",
    "test_breaking.py::test_the_fence_breaks_the_grant_that_is_in_force",
    # a recovery, poolers, many leases, what is long gone, a write and its check in one message
    "test_fence_recover.py::test_nobody_of_before_writes",
    "test_fence_recover.py::test_a_seal_that_waits_for_a_synchronous_standby",
    "test_fence_poolers.py::",
    "test_fence_many_leases.py::test_each_of_300_leases",
    "test_fence_pruned.py::test_no_token_of_a_pruned_resource",
    "test_fence_pruned.py::test_a_snapshot_of_before_the_pruning",
    "test_fence_pruned.py::test_pruning_waits_for_nobody",
    "test_fence_pipelined.py::test_a_lone_write_gives_and_raises",
    "test_fence.py::test_seal_waits_for_an_open_transaction",
)
"""What leans on the version of Postgres, for scripts/postgres-versions."""

QUICK = (
    "unit/",
    "tidy/",
    "contract/test_coverage.py",
    "contract/test_lock.py::",  # on one node only, see below
    "integration/test_exclusive.py::",
    "integration/test_hold_use.py::",
    "integration/test_loss.py::test_the_body_is_cancelled",
    "integration/test_sync.py::",
    "integration/test_fence.py::",
    "integration/test_fence_transactions.py::",
    "integration/test_fence_redis.py::",
    "integration/test_fence_protect.py::",
    "integration/test_ccxt_guarded.py::",
    "integration/test_positions_flow.py::",
    "sim/test_sim_store.py::",
    "cancellation/test_explorer.py::",
    "fuzz/test_fuzz_replies.py::",
    # one of each level that is long as a whole
    "benchmarks/test_calls.py::",
    "chaos/test_topology_quorum.py::test_it_works_with_two_of_five_gone",
    "models/test_models.py::test_the_shortest_way",
    "packaging/test_distribution.py::test_the_wheel_holds_the_packages_whole",
    "race/test_race_scenarios.py::test_nothing_happens_under_the_guard[stress]",
)
"""What every change should see, on asyncio's own loop: for scripts/test --quick, and for coverage in CI."""

COVERED = (
    *QUICK,
    "integration/test_doctor_",
    "integration/test_exporter.py::",
    "integration/test_installation.py::",
    "integration/test_ls.py::",
    "integration/test_sync_guard.py::",
    "integration/test_top.py::",
    "integration/test_web_access.py::",
    "integration/test_web_feed.py::",
)
"""What counts for coverage: the operators' commands are tried in the tests' own processes here."""

_ONE_NODE = "one-node-valkey"

_ON_ITS_OWN_SERVER = ("oldest", "15", "uvloop", "uncached")


COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""What was collected, also what ``-m`` or ``-k`` leaves out of the run."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is quick, and what runs on each Postgres.

    Of the latter, cases that choose their server are left out, and those that are like another.
    """
    config.stash[COLLECTED] = list(items)
    for item in items:
        _, _, name = item.nodeid.partition("tests/")
        case = name.partition("[")[2].rstrip("]")
        if name.removeprefix("integration/").startswith(ON_EACH_POSTGRES) and not any(
            case == own or case.startswith(f"{own}-") or case.endswith(f"-{own}") or f"-{own}-" in case
            for own in _ON_ITS_OWN_SERVER
        ):
            item.add_marker("postgres")
        elsewhere = "topology" in getattr(item, "fixturenames", ()) and _ONE_NODE not in case
        here = "uvloop" not in case and not elsewhere
        if name.startswith(QUICK) and here:
            item.add_marker("quick")
        if not (name.startswith(COVERED) and here):
            item.add_marker("no_cover")  # to measure all of them would take a quarter more of the processor


def pytest_collection_finish() -> None:
    """Leave the modules and tests, which live to the end, out of every later search for garbage.

    There are 600,000 such objects, and going through them took a seventh of the time of a whole run.
    """
    gc.collect()
    gc.freeze()


def _uvloop() -> asyncio.AbstractEventLoop:
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed, so nothing is tried on it here")
    return uvloop.new_event_loop()


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """On which event loops a test runs."""
    factories = {"asyncio": asyncio.new_event_loop}
    if item.path.relative_to(TESTS).as_posix().startswith(ON_EACH_LOOP):
        factories["uvloop"] = _uvloop
    return factories


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of what can be tried without end is tried."""
    parser.addoption(
        "--cancellation",
        default="sample",
        help="tests/cancellation: 'sample', 'all', or a piece of a row's name to try all points of that row",
    )


@pytest.fixture
def cancellation(request: pytest.FixtureRequest) -> str:
    """What ``--cancellation`` says."""
    return str(request.config.getoption("--cancellation"))


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C and SIGHUP reach what the tests start, also where they are ignored, as in the background."""
    config.addinivalue_line("markers", "postgres: leans on the version of Postgres, see ON_EACH_POSTGRES")
    config.addinivalue_line("markers", "quick: what every change should see, see QUICK")
    config.addinivalue_line("markers", "no_cover: of pytest-cov, which need not be there")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests of this process. A test that pauses or kills one starts its own."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests of this process. A test that pauses or kills one starts its own."""
    with PostgresServer(max_connections=200) as server:
        yield server


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders of this process ask about their locks only with their renewals: Postgres speaks first."""
    monkeypatch.setattr("lockguard._renewal._CHECKED_EVERY_S", 3600.0)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of a server without keys and without cached scripts."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)
