"""The exporter shows a whole installation, in time, whatever its servers do."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families

from lockguard import LeaseLost, LockGuard, StaleToken
from lockguard._records import FenceState, Refusal
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence, fenced_transaction, install
from lockguard_lab.servers import RedisServer
from lockguard_metrics._groups import Groups, exchange_of
from lockguard_ops import _exporter_catalog as the
from lockguard_ops._collector import InstallationCollector
from lockguard_ops._exporter_catalog import EXPORTED
from lockguard_ops._figures import Figures, Reading, _Book, _note_fences
from lockguard_ops._installation import OpenFences, Snapshot
from lockguard_ops._refused import RefusedWrites
from lockguard_positions import migrate
from tests.integration.test_bot_least_privilege import with_user
from tests.integration.test_operators_least_privilege import PAGE, given, owner, role

__all__ = ["owner", "role"]

NAME = "binance:APTUSDT"
S = timedelta(seconds=1)
MS = timedelta(milliseconds=1)


class Exporter:
    """`lockguard exporter` as a process; its figures by name and labels."""

    def __init__(self, process, url):
        self.process = process
        self.url = url

    async def text(self):
        def get():
            with urllib.request.urlopen(self.url, timeout=30) as answer:
                return answer.read().decode()

        return await asyncio.to_thread(get)

    async def figures(self):
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(await self.text())
            for sample in family.samples
        }

    async def until(self, name, value, **labels):
        key = (f"lockguard_{name}", *sorted(labels.items()))
        async with asyncio.timeout(60):
            while True:
                figures = await self.figures()
                if figures.get(key) == value:
                    return figures
                await asyncio.sleep(0.1)


def command(*arguments, **environ):
    own = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGUARD_")}
    return {"args": [sys.executable, "-m", "lockguard", "exporter", *arguments], "env": {**own, **environ}}


@asynccontextmanager
async def running(*arguments):
    process = await asyncio.to_thread(begun, *arguments)
    try:
        line = await asyncio.to_thread(process.stdout.readline)
        yield Exporter(process, line.split()[-1])
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


def begun(*arguments):
    words = command("--listen", "0", "--every", "1s", *arguments)
    return subprocess.Popen(**words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def refused(*arguments, cwd=None):
    return subprocess.run(
        **command(*arguments), capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )


@pytest.fixture
async def database(database_url):
    connection = await asyncpg.connect(database_url)
    await install(connection)
    await migrate(connection)
    yield connection
    await connection.close()


async def test_it_shows_locks_waiters_fences_and_positions_and_no_name_of_any(
    redis_url, database_url, database
):
    await database.execute(
        "insert into monitoring.positions (exchange, symbol, side, quantity, status, opened_at) values"
        " ('binance', 'SECRETCOIN', 'long', 1, 'entry_placed', clock_timestamp() - interval '40 s'),"
        " ('bybit', 'SECRETCOIN', 'long', 1, 'pending_entry', clock_timestamp() - interval '90 s')"
    )
    async with (
        asyncpg.create_pool(database_url) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[]) as guard,
        LockGuard.from_url(redis_url, observers=[]) as other,
        guard.hold(NAME, operation="open SECRETCOIN"),
    ):
        waiter = asyncio.create_task(other.hold(NAME, wait=60 * S).__aenter__())
        async with running("--redis", redis_url, "--database", database_url) as exporter:
            figures = await exporter.until("queued", 1, group="binance")
            text = await exporter.text()
        waiter.cancel()
        await asyncio.wait([waiter])

    def of(name, **labels):
        return figures[f"lockguard_{name}", *sorted({"group": "binance", **labels}.items())]

    assert figures["lockguard_up",] == 1
    assert (of("locks_held"), of("locks_late"), of("locks_closed")) == (1, 0, 0)
    assert of("oldest_lock_seconds") > of("longest_queued_seconds") > 0
    assert of("locks_by_fence", fence="open") == of("fences_open") == 1
    assert of("table_positions_open") == of("table_positions_without_stop") == 1
    assert 40 <= of("table_longest_without_stop_seconds") < 100
    assert of("table_entries_in_doubt", group="bybit") == 1
    assert "SECRET" not in text
    assert "APTUSDT" not in text
    assert {family.name for family in text_string_to_metric_families(text)} == {
        metric.name.removesuffix("_total") for metric in EXPORTED
    }


async def test_the_rights_of_a_viewer_as_the_page_prints_them_are_enough(
    redis_url, database_url, owner, role
):
    await given(owner, "watcher", role)
    acl = re.search(r"^ACL (SETUSER viewer .*)$", PAGE, re.MULTILINE)[1].split()
    async with (
        redis.asyncio.Redis.from_url(redis_url) as client,
        asyncpg.create_pool(database_url) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[]) as guard,
    ):
        await client.execute_command("ACL", *acl)
        viewer = re.sub(r"//.*@", "//viewer:SECRET@", redis_url)
        try:
            async with guard.hold(NAME):
                arguments = ("--redis", viewer, "--database", with_user(database_url, role, "secret"))
                async with running(*arguments) as exporter:
                    figures = await exporter.until("locks_held", 1, group="binance")
        finally:
            await client.execute_command("ACL", "DELUSER", "viewer")
    assert figures["lockguard_up",] == 1
    assert figures["lockguard_locks_by_fence", ("fence", "open"), ("group", "binance")] == 1


async def test_a_redis_that_hangs_and_one_that_dies_are_told_in_time_and_the_database_still_is(
    database_url, database
):
    with RedisServer() as server:
        async with running("--redis", server.url, "--database", database_url) as exporter:
            await exporter.until("up", 1)
            server.pause()
            figures = await exporter.until("up", 0)
            assert figures["lockguard_source_up", ("source", "redis")] == 0
            assert figures["lockguard_source_up", ("source", "database")] == 1
            assert not [key for key in figures if key[0] == "lockguard_locks_held"]
            server.resume()
            await exporter.until("up", 1)
            server.kill()
            await exporter.until("up", 0)
            server.start()
            await exporter.until("up", 1)
            exporter.process.send_signal(signal.SIGTERM)
            _, told = await asyncio.to_thread(exporter.process.communicate, timeout=30)
            assert exporter.process.returncode == 0
    lines = told.splitlines()
    assert len(lines) == 4  # a line for each change, and not for each scrape
    assert all(line.startswith("lockguard exporter: redis can") for line in lines)


async def test_it_ends_when_it_is_asked_though_a_scrape_waits_for_a_server_that_hangs():
    with RedisServer() as server:
        async with running("--redis", server.url) as exporter:
            await exporter.until("up", 1)
            server.pause()
            await exporter.until("up", 0)
            scrape = asyncio.create_task(exporter.text())
            exporter.process.terminate()
            assert await asyncio.to_thread(exporter.process.wait, 60) == 0
            server.resume()
            await asyncio.wait([scrape])
            scrape.exception()  # it was answered or cut off


async def test_it_starts_before_its_servers_do(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    database = f"postgresql://nobody:SECRET@127.0.0.1:{port}/x"
    async with running("--redis", f"redis://:SECRET@127.0.0.1:{port}", "--database", database) as exporter:
        figures = await exporter.until("up", 0)
        text = await exporter.text()
        exporter.process.terminate()
        _, told = await asyncio.to_thread(exporter.process.communicate, timeout=30)
    assert figures["lockguard_source_up", ("source", "database")] == 0
    assert "SECRET" not in text + told
    assert told.count("cannot be read") == 2


async def test_of_a_quorum_each_server_is_told_by_itself():
    with RedisServer() as one, RedisServer() as two, RedisServer() as three:
        urls = [server.url for server in (one, two, three)]
        async with LockGuard.from_urls(urls, observers=[]) as guard, guard.hold(NAME):
            arguments = [word for url in urls for word in ("--redis", url)]
            async with running(*arguments) as exporter:
                await exporter.until("locks_held", 1, group="binance")
                three.kill()
                name = three.url.rpartition("@")[2].partition("/")[0]
                figures = await exporter.until("server_up", 0, server=name)
                assert figures["lockguard_up",] == 1
                assert figures["lockguard_locks_held", ("group", "binance")] == 1
                assert sum(value for key, value in figures.items() if key[0] == "lockguard_server_up") == 2
            named_in_part = await asyncio.to_thread(refused, "--redis", urls[0], "--listen", "0")
    assert named_in_part.returncode == 2
    assert "decide together" in named_in_part.stderr


async def test_refused_writes_are_counted_from_the_first_look_on(redis_url, database_url, database):
    async with (
        asyncpg.create_pool(database_url) as pool,
        LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[]) as guard,
    ):

        async def stale():
            with pytest.raises((StaleToken, LeaseLost)):
                async with guard.hold(NAME) as lease:
                    await PostgresFence(pool).break_(lease.resource, reason="test", within=S)
                    async with fenced_transaction(pool) as connection:
                        await connection.execute("select 1")

        await stale()
        async with running("--redis", redis_url, "--database", database_url) as exporter:
            figures = await exporter.until("up", 1)
            counted = [value for key, value in figures.items() if key[0] == "lockguard_writes_refused_total"]
            assert counted
            assert not any(counted)
            await stale()
            async with asyncio.timeout(60):
                while True:
                    figures = await exporter.figures()
                    found = {k: v for k, v in figures.items() if k[0] == "lockguard_writes_refused_total"}
                    if any(found.values()):
                        break
                    await asyncio.sleep(0.1)
    assert sum(found.values()) == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--listen", "nowhere:99999"), "--listen is no [HOST:]PORT; write a port such as 9464"),
        (("--listen", "redis://:SECRET@x"), "--listen is no [HOST:]PORT"),
        (("--listen", "1.2.3.4.5:80"), "cannot be used"),
        (("--every", "soon"), "write seconds, such as 5s"),
        (("--print-rules", "--print-dashboard"), "print a file each; give one of them"),
        (("--every", "0s"), "write seconds, such as 5s"),
        (("--redis", "http://:SECRET@x"), "begins with http://"),
        (("--redis", "redis://127.0.0.1:1", "--database", "mysql://:SECRET@x"), "postgresql"),
    ],
)
def test_a_mistake_is_one_line_and_code_2_and_no_secret(arguments, told, tmp_path):
    done = refused(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert "SECRET" not in done.stderr


def test_a_port_that_is_taken_is_told_with_the_remedy(redis_url):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = refused("--listen", port, "--redis", redis_url)
    assert done.returncode == 2
    assert f"--listen 127.0.0.1:{port} cannot be used: Address already in use" in done.stderr


@pytest.mark.parametrize(("option", "begins"), [("--print-rules", "# Alert"), ("--print-dashboard", "{")])
def test_its_files_are_printed_without_any_server(option, begins):
    done = refused(option)
    assert done.stdout.startswith(begins)
    assert done.stdout.endswith("\n")


# --- one reading for all ---


class Servers:
    """Readings that end when a test says so."""

    def __init__(self):
        self.reads = 0
        self.answer = asyncio.Event()

    async def read(self):
        self.reads += 1
        await self.answer.wait()
        return Reading(1_000.0, {the.UP: {(): 1.0}}, {})


class StoppedClock:
    now_s = 1_000.0

    def now(self):
        return self.now_s

    def wall(self):
        return self.now_s


async def scraped(collector):
    found = await asyncio.to_thread(lambda: list(collector.collect()))
    return {family.name: [sample.value for sample in family.samples] for family in found}


async def test_scrapes_at_once_and_soon_after_are_one_reading():
    servers, clock = Servers(), StoppedClock()
    collector = InstallationCollector(servers, every=5 * S, within=60 * S, tell=print, clock=clock)
    scrapes = [asyncio.create_task(scraped(collector)) for _ in range(5)]
    while not servers.reads:
        await asyncio.sleep(0.005)
    servers.answer.set()
    assert [one["lockguard_up"] for one in await asyncio.gather(*scrapes)] == [[1.0]] * 5
    clock.now_s += 4.9
    assert (await scraped(collector))["lockguard_reading_age_seconds"] == [pytest.approx(4.9)]
    assert servers.reads == 1
    clock.now_s += 0.2
    await scraped(collector)
    assert servers.reads == 2


async def test_a_reading_that_does_not_end_is_told_as_down_and_goes_on_for_the_next_scrape():
    servers, clock = Servers(), StoppedClock()
    collector = InstallationCollector(servers, every=5 * S, within=50 * MS, tell=print, clock=clock)
    for _ in range(3):
        assert (await scraped(collector))["lockguard_up"] == [0.0]
    assert servers.reads == 1
    servers.answer.set()
    while (await scraped(collector))["lockguard_up"] != [1.0]:
        await asyncio.sleep(0.005)
    assert servers.reads == 1
    servers.answer.clear()
    clock.now_s += 6
    late = await scraped(collector)  # what was read last is shown while it is not old, as down
    assert (late["lockguard_up"], late["lockguard_reading_age_seconds"]) == ([0.0], [6.0])
    clock.now_s += 60
    assert (await scraped(collector))["lockguard_reading_age_seconds"] == []
    await collector.aclose()


def test_a_collector_keeps_no_thread():
    assert not [thread for thread in threading.enumerate() if "lockguard" in thread.name]


# --- figures ---


def refusal(times, *, resource=NAME, reason="closed"):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Refusal(resource, 4, 5, "LG001", reason, "h:1/T", "open", "bot", "", times, at, at)


class Readings:
    """An installation that shows each of these in turn; an error is raised."""

    has_database = True

    def __init__(self, *shown):
        self._shown = iter(shown)

    async def snapshot(self, *, refusals):
        found = next(self._shown)
        if isinstance(found, Exception):
            raise found
        return Snapshot(datetime.now(UTC), refusals=tuple(found))

    async def answering(self):
        return {}

    async def open_fences(self):
        return OpenFences()


async def test_old_refusals_are_not_new_ones_where_a_reading_failed_altogether():
    denied = ConfigurationError("NOPERM this user has no permissions to run the 'scan' command")
    shown = (denied, [refusal(7)], denied, [refusal(9)])
    figures, counts = Figures(Readings(*shown)), []
    for _ in shown:
        reading = await figures.read()
        counts.append(sum(reading.values.get(the.REFUSED, {"unread": -1}).values()))
    assert counts == [-1, 0, -1, 2]


def test_what_has_been_refused_again_is_counted_and_what_is_removed_is_not_counted_back():
    counted = RefusedWrites()
    assert list(counted.grown([refusal(7)])) == []
    assert [more for _, more in counted.grown([refusal(9)])] == [2]
    assert list(counted.grown([refusal(9)])) == []
    assert list(counted.grown([])) == []  # removed as old
    assert [more for _, more in counted.grown([refusal(9), refusal(3, resource="binance:B")])] == [3]


def test_only_a_fence_that_nobody_has_held_for_a_minute_is_left_open():
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def state(resource, age_s):
        at = now - age_s * S
        return FenceState(
            resource, 4, "0" * 32, "h:1/T", "open", is_open=True, sealed_at=at, released_at=None
        )

    book = _Book(set(), Groups(exchange_of, 50))
    fences = OpenFences(now, (state("binance:A", 90), state("binance:B", 90), state("binance:C", 30)))
    _note_fences(fences, now, {"binance:A"}, book)
    assert book.values[the.FENCES_OPEN] == {("binance",): 3}
    assert book.values[the.FENCES_LEFT_OPEN] == {("binance",): 1}


def test_names_are_as_prometheus_has_them():
    for metric in EXPORTED:
        assert re.fullmatch(r"lockguard_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
