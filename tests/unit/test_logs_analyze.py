"""Logs of real runs: what asyncpg, Postgres and lockguard write is made here, not invented."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from lockguard import LeaseLost, LockGuard, ResourceBusy, StaleToken
from lockguard._cli import app
from lockguard_asyncpg import PostgresFence, fenced_transaction, install, protect
from lockguard_logs import FindingKind, SightingKind, analyze, read_log
from lockguard_logs._cli import logs
from lockguard_logs._picture import draw
from lockguard_logs._records import Record
from lockguard_positions import LogPositions, Moved, PositionStatus, migrate
from lockguard_positions._schema import migrate as migrate_to

START = datetime(2026, 11, 21, 5, 0, tzinfo=UTC)

FORMATS = {
    "asctime": logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"),
    "iso": logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    ),
    "epoch": logging.Formatter("%(created).6f %(levelname)s %(name)s %(message)s"),
    "loguru": logging.Formatter(
        "%(asctime)s.%(msecs)03d | %(levelname)-8s | bot:open:12 - %(message)s", "%Y-%m-%d %H:%M:%S"
    ),
}


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": record.created,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


FORMATS["json"] = JsonLines()


@contextmanager
def logged(path: Path, form: logging.Formatter, *names: str) -> Iterator[None]:
    handler = logging.FileHandler(path)
    handler.setFormatter(form)
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
        handler.close()


async def race_to_active(database_url: str, symbols: list[str]) -> None:
    """What an unguarded bot does: a signal and a sync pass make a row each, and both want to be active."""
    log = logging.getLogger("some_bot")
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=2)
    async with pool:
        async with pool.acquire() as conn:
            await migrate_to(conn, to=1)
        insert = (
            "insert into monitoring.positions (exchange, symbol, side, quantity, status)"
            " values ('binance', $1, 'long', 1, $2) returning id"
        )
        for symbol in symbols:
            first = await pool.fetchval(insert, symbol, "pending_entry")
            log.info("Position created: id=%d %s on binance", first, symbol)
            second = await pool.fetchval(insert, symbol, "active")
            log.info("Position created by sync: id=%d %s on binance", second, symbol)
            try:
                await pool.execute("update monitoring.positions set status = 'active' where id = $1", first)
            except asyncpg.PostgresError:
                log.exception("could not activate the position")


@pytest.mark.parametrize("form", list(FORMATS))
async def test_violations_are_found_in_real_tracebacks_of_several_lines(
    tmp_path: Path, database_url: str, form: str
) -> None:
    path = tmp_path / "bot.log"
    with logged(path, FORMATS[form], "some_bot"):
        await race_to_active(database_url, ["APTUSDT", "SUIUSDT", "BTC/USDT:USDT-270326"])
    text = path.read_text()
    assert "asyncpg.exceptions.UniqueViolationError: duplicate key value" in text
    if form != "json":
        assert "\nDETAIL:  Key (symbol, exchange)=(APTUSDT, binance) already exists." in text
    found = analyze(read_log(path))
    violations = found.of(FindingKind.UNIQUE_VIOLATION)
    assert [(one.symbol, one.exchange) for one in violations] == [
        ("APTUSDT", "binance"),
        ("SUIUSDT", "binance"),
        ("BTC/USDT:USDT-270326", "binance"),
    ]
    assert "idx_unique_active_position" in violations[0].details
    twice = found.of(FindingKind.CREATED_TWICE)
    assert [one.symbol for one in twice] == ["APTUSDT", "SUIUSDT", "BTC/USDT:USDT-270326"]
    assert [sighting.position_id for sighting in twice[0].sightings] == [1, 2]
    assert len(found.findings) == 6


async def test_a_violation_is_found_in_the_log_of_the_server_itself(
    tmp_path: Path, postgres_server: Any, database_url: str
) -> None:
    before = len(postgres_server.log)  # other tests use the server too
    logging.getLogger("some_bot").disabled = True
    try:
        await race_to_active(database_url, ["APTUSDT"])
    finally:
        logging.getLogger("some_bot").disabled = False
    path = tmp_path / "postgres.log"
    path.write_text(postgres_server.log[before:])
    found = analyze(read_log(path), symbol="APT/USDT:USDT")
    assert {one.resource for one in found.of(FindingKind.UNIQUE_VIOLATION)} == {"binance:APTUSDT"}


BREAK = """
import asyncio, sys
import asyncpg
from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence

async def main(redis_url, database_url, resource):
    async with asyncpg.create_pool(database_url, min_size=1, max_size=1) as pool:
        async with LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as guard:
            await guard.break_(resource, reason="test")

asyncio.run(main(*sys.argv[1:]))
"""


async def break_elsewhere(redis_url: str, database_url: str, resource: str) -> None:
    """Another process breaks the lease: this one learns of it when it writes."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BREAK, redis_url, database_url, resource
    )
    assert await process.wait() == 0


async def test_what_lockguard_and_its_fence_write_is_found(
    tmp_path: Path, redis_url: str, database_url: str, unchecked: None
) -> None:
    log, path = logging.getLogger("some_bot"), tmp_path / "bot.log"
    pool = await asyncpg.create_pool(database_url, min_size=1, max_size=4)
    with logged(path, FORMATS["asctime"], "some_bot", "lockguard"):
        async with pool:
            async with pool.acquire() as conn:
                await install(conn)
                await migrate(conn)
                await protect(conn, "monitoring.positions", resource="{exchange}:{symbol}")
            ttl = timedelta(minutes=1)  # It is not renewed before it is broken and writes.
            async with (
                LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=ttl) as guard,
                LockGuard.from_url(redis_url, fence=PostgresFence(pool)) as other,
            ):
                async with guard.hold("binance:SUIUSDT", operation="open long"):
                    try:
                        async with other.hold("binance:SUIUSDT", on_busy="raise"):
                            pass
                    except ResourceBusy as busy:
                        log.warning("skipped: %s", busy)
                try:
                    async with guard.hold("binance:APTUSDT", operation="open long"):
                        await break_elsewhere(redis_url, database_url, "binance:APTUSDT")
                        try:
                            async with fenced_transaction(pool):
                                pass
                        except StaleToken:
                            log.exception("the write came too late")
                        await asyncio.Event().wait()
                except LeaseLost:
                    log.exception("APTUSDT was not opened")
                with suppress(asyncpg.PostgresError):
                    try:
                        await pool.execute(
                            "insert into monitoring.positions (exchange, symbol, side, quantity, status)"
                            " values ('binance', 'ARBUSDT', 'long', 1, 'pending_entry')"
                        )
                    except asyncpg.PostgresError:
                        log.exception("by hand")
                        raise
    found = analyze(read_log(path))
    assert [(one.kind, one.resource) for one in found.findings] == [
        (FindingKind.LEASE_LOST, "binance:APTUSDT"),  # the refusal ends it, and then the body tells of it
        (FindingKind.STALE_WRITE, "binance:APTUSDT"),
        (FindingKind.UNGUARDED_WRITE, "binance:ARBUSDT"),
    ]
    lost = found.of(FindingKind.LEASE_LOST)[0]
    assert len(lost.sightings) == 2, "the observer's line and the traceback tell of one loss"
    assert found.busy == {"binance:SUIUSDT": 1}


def test_what_the_log_of_positions_writes_is_found(tmp_path: Path) -> None:
    from lockguard_positions._model import Position, PositionSide

    def moved(row: int, status: PositionStatus, before: PositionStatus | None) -> Moved:
        values: dict[str, Any] = dict.fromkeys(Position.__dataclass_fields__)
        values |= {"id": row, "exchange": "binance", "symbol": "APTUSDT", "side": PositionSide.LONG}
        return Moved(Position(**{**values, "status": status, "token": 7, "age_ms": 0}), before, "open long")

    path = tmp_path / "bot.log"
    with logged(path, FORMATS["asctime"], "lockguard.positions"):
        observer = LogPositions()
        observer.on(moved(1, PositionStatus.PENDING_ENTRY, None))
        observer.on(moved(1, PositionStatus.ENTRY_PLACED, PositionStatus.PENDING_ENTRY))
        observer.on(moved(1, PositionStatus.CLOSED, PositionStatus.ACTIVE))
        observer.on(moved(2, PositionStatus.PENDING_ENTRY, None))
    found = analyze(read_log(path), symbol="APTUSDT")
    assert found.findings == ()
    kinds = [told.what for told in found.timeline]
    assert kinds == [
        (SightingKind.CREATED,),
        (SightingKind.MOVED,),
        (SightingKind.ENDED,),
        (SightingKind.CREATED,),
    ]
    with logged(path, FORMATS["asctime"], "lockguard.positions"):
        LogPositions().on(moved(3, PositionStatus.PENDING_ENTRY, None))
    (twice,) = analyze(read_log(path)).findings
    assert (twice.kind, [s.position_id for s in twice.sightings]) == (FindingKind.CREATED_TWICE, [2, 3])


# --- rows that were made twice, in a bot's own words ---


def said(*lines: tuple[float, str]) -> list[Record]:
    return [
        Record(START + timedelta(seconds=at), "INFO", text, "bot.log", number)
        for number, (at, text) in enumerate(lines, 1)
    ]


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        ([(0, "Position created for APTUSDT"), (4.7, "Adopted position APT/USDT:USDT from exchange")], 1),
        ([(0, "position 5 created for APTUSDT"), (4.7, "position #5 created for APTUSDT")], 0),
        ([(0, "position 5 created for APTUSDT"), (61, "position 6 created for APTUSDT")], 0),
        ([(0, "position created for APTUSDT"), (1, "position created for SUIUSDT")], 0),
        ([(0, "position created: APTUSDT binance"), (1, "position created: APTUSDT bybit")], 0),
        (
            [
                (0, "position created: APTUSDT"),
                (1, "position closed: APTUSDT"),
                (2, "position created: APTUSDT"),
            ],
            0,
        ),
        (
            [
                (0, "position 1 created: APTUSDT"),
                (1, "position 9 closed: APTUSDT"),
                (2, "position 2 created: APTUSDT"),
            ],
            1,
        ),
        ([(0, "position created: APTUSDT"), (1, "position not created: APTUSDT")], 0),
        ([(0, "position created: APTUSDT"), (1, "failed: no position created for APTUSDT")], 0),
        ([(0, "created position 1 APTUSDT"), (1, "opened position 1 APTUSDT")], 0),
        ([(0, "Position opened APTUSDT"), (1, "Position opened APTUSDT")], 1),
        ([(0, "Position created BTC/USDT:USDT"), (1, "Position created BTC/USDT:USDT-270326")], 0),
        ([(5, "position 6 created for APTUSDT"), (1, "position 5 created for APTUSDT")], 1),
    ],
)
def test_a_second_row_is_a_duplicate_while_the_first_has_not_ended(lines: Any, count: int) -> None:
    assert len(analyze(said(*lines)).of(FindingKind.CREATED_TWICE)) == count


def test_a_bots_own_words_can_be_given() -> None:
    words = re.compile(r"NEW (?P<symbol>\w+) #(?P<id>\d+)")
    (found,) = analyze(said((0, "NEW APTUSDT #1"), (1, "NEW APTUSDT #2")), created=words).findings
    assert (found.symbol, found.details) == ("APTUSDT", "1.000 s apart, rows 1 and 2")


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (["entry order 71 placed for APTUSDT", "entry order 72 placed for APTUSDT"], 1),
        (["entry order 71 placed for APTUSDT", "entry order 71 filled for APTUSDT"], 0),
        (["entry placed for APTUSDT, order_id=71", "entry filled for APT/USDT:USDT, order_id=9c-2"], 1),
        (["entry placed for APTUSDT", "entry filled for APTUSDT"], 0),
        (["entry order 71 placed for APTUSDT", "entry order 72 not placed for APTUSDT"], 0),
        (["entry order 71 placed for APTUSDT", "entry order 72 placed for SUIUSDT"], 0),
        (
            [
                "entry order 71 placed for APTUSDT",
                "position closed: APTUSDT",
                "entry order 72 placed APTUSDT",
            ],
            0,
        ),
    ],
)
def test_a_second_entry_order_is_a_duplicate_and_the_same_told_twice_is_not(
    lines: list[str], count: int
) -> None:
    found = analyze(said(*enumerate(lines)))
    assert len(found.of(FindingKind.ENTERED_TWICE)) == len(found.findings) == count


def test_errors_of_two_rows_are_two_though_their_words_are_the_same() -> None:
    error = '\nasyncpg.exceptions.UniqueViolationError: duplicate key value violates unique constraint "one"'
    found = analyze(
        said(
            (0, f"writing failed{error}"),
            (0.01, f"position 7 of APTUSDT failed{error}"),
            (0.02, f"position 8 of APTUSDT failed{error}"),
            (0.03, f"position 7 of APTUSDT failed{error}"),
            (0.04, f"a signal of APTUSDT was not carried out{error}"),
            (5, f"position 7 of APTUSDT failed{error}"),
        )
    )
    told = [[s.line for s in one.sightings] for one in found.findings if one.symbol == "APTUSDT"]
    assert told == [[2, 4], [3, 5], [6]]


# --- the command ---


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(logs, ["analyze", *arguments])
    return done.exit_code, done.output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "bot.log"
    path.write_text(
        "2026-11-21 05:09:50,000 INFO bot: position 1 created for APTUSDT <b>\n"
        "2026-11-21 05:09:54,740 INFO bot: position 2 created for APT/USDT:USDT\n"
        "2026-11-21 05:10:00,000 INFO bot: position 3 created for SUIUSDT\n"
    )
    return path


def test_the_command_tells_what_it_found_and_how(log: Path, tmp_path: Path) -> None:
    exported, page = tmp_path / "found.json", tmp_path / "found.html"
    code, output = run(str(log), "--symbol", "APTUSDT", "--export", str(exported), "--html", str(page))
    assert code == 1
    assert "created twice" in output
    assert "The story of APTUSDT" in output
    assert "+4.740 s" in output
    found = json.loads(exported.read_text())
    assert [one["kind"] for one in found["findings"]] == ["created twice"]
    assert [one["line"] for one in found["findings"][0]["told"]] == [1, 2]
    assert len(found["timeline"]) == 2
    drawn = page.read_text()
    assert "4.740 s apart, rows 1 and 2" in drawn
    assert "&lt;b&gt;" in drawn
    assert not re.search(r"""(src|href)=|@import|url\(""", drawn), "the page needs nothing else"


def test_memory_is_bounded_and_what_was_not_judged_is_told(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockguard_logs._analysis._SIGHTINGS_MAX", 2)
    page = tmp_path / "found.html"
    code, output = run(str(log), "--html", str(page))
    told = "There is more: judged are the first 2 events that were read, to 2026-11-21 05:09:54"
    assert (code, told in " ".join(output.split())) == (1, True)
    assert told in page.read_text()
    assert json.loads(run(str(log), "--export", "-")[1])["complete"] is False


def test_what_is_late_is_not_drawn_as_a_race() -> None:
    late = said((0, "renewal not answered: binance:APTUSDT token=7 after 300 ms"))
    page = draw(analyze(late), files=["bot.log"], symbol=None)
    assert 'class="busy"' in page
    assert 'class="stopped"' not in page.partition("<svg")[2]


@pytest.mark.parametrize("option", ["--export", "--html"])
def test_a_report_never_takes_the_place_of_a_log_that_it_is_about(
    log: Path, tmp_path: Path, option: str
) -> None:
    was, other = log.read_text(), tmp_path / "other.log"
    other.write_text(was)
    (tmp_path / "link.log").symlink_to(log)
    for name in (log, tmp_path / "link.log", tmp_path / ".." / tmp_path.name / "bot.log"):
        done = CliRunner().invoke(logs, ["analyze", str(other), str(log), option, str(name)])
        assert "is the log" in str(done.exception)
        assert log.read_text() == was


def test_an_interval_and_a_symbol_leave_the_rest_out(log: Path) -> None:
    assert run(str(log), "--from", "05:09:52")[0] == 0
    assert run(str(log), "--to", "2026-11-21 05:09:52")[0] == 0
    assert run(str(log), "--symbol", "SUIUSDT")[0] == 0
    assert run(str(log), "--window", "2")[0] == 0
    assert "NOPEUSDT is not mentioned" in run(str(log), "--symbol", "NOPEUSDT")[1]


def test_json_can_be_printed_alone(log: Path) -> None:
    code, output = run(str(log), "--export", "-")
    assert code == 1
    assert json.loads(output)["records"] == 3


def test_the_logs_of_several_processes_are_taken_together(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text("2026-11-21T05:10:02Z position 4 created for SUIUSDT\n")
    output = run(str(log), str(other), "--symbol", "SUIUSDT", "--export", "-")[1]
    (found,) = json.loads(output)["findings"]
    assert {Path(told["file"]).name for told in found["told"]} == {"bot.log", "other.log"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nope.log"], "nope.log cannot be read: No such file"),
        (["LOG", "--from", "05:10", "--to", "05:09"], "--from 05:10 is after --to 05:09"),
        (["LOG", "--from", "soon"], "--from 'soon' is no time"),
        (["LOG", "--from", "06:00"], "the log goes from 2026-11-21 05:09:50 to 2026-11-21 05:10:00"),
        (["LOG", "--created", "("], "--created '(' is no regular expression"),
        (["LOG", "--html", "nowhere/x.html"], "nowhere/x.html cannot be written"),
        (["LOG", "--window", "0"], "--window"),
        ([], "FILE..."),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    log: Path,
    arguments: list[str],
    told: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(log.parent)
    argv = [str(log) if argument == "LOG" else argument for argument in arguments]
    # Not by main(): its signal handlers would stay in this process.
    assert app.run(["logs", "analyze", *argv]) == 2
    complaint = capfd.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1
