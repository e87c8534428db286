"""Lines of logs as records: where an instant stands, what belongs to it, how a symbol is spelt."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from datetime import UTC, datetime, timedelta, timezone

import pytest

from lockguard.errors import ConfigurationError
from lockguard_logs import LogFile, read_log
from lockguard_logs._stamps import find_stamp, read_typed
from lockguard_logs._symbols import Spelling, find_symbol, plain_symbol

AT = datetime(2026, 11, 21, 5, 9, 54, 123_000, tzinfo=UTC)
LINE = b"2026-11-21 05:09:54,123 INFO created position 7 for APTUSDT\n"


@pytest.mark.parametrize(
    "line",
    [
        "2026-11-21 05:09:54,123 ERROR bot: no",
        "2026-11-21T05:09:54.123Z error no",
        "2026-11-21T05:09:54.123456789+00:00 no",
        "2026/11/21 05:09:54.123 no",
        "[2026-11-21 05:09:54,123] ERROR in bot: no",
        "ERROR    2026-11-21 05:09:54,123 bot:12 no",
        "2026-11-21 05:09:54.123 | ERROR    | bot:open:12 - no",
        "2026-11-21 05:09:54.123 UTC [812] ERROR:  no",
        "2026-11-21 07:09:54.123 +0200 no",
        "1795237794.123 no",
        "1795237794123 no",
        "1795237794123000 no",
        "[1795237794.123] no",
        "Nov 21 2026 05:09:54.123 host bot[12]: no",
    ],
)
def test_the_usual_instants_are_read(line: str) -> None:
    found = find_stamp(line)
    assert found is not None
    assert found[0].replace(microsecond=found[0].microsecond // 1000 * 1000) == AT


def test_an_access_logs_instant_is_read() -> None:
    found = find_stamp('127.0.0.1 - - [21/Nov/2026:05:09:54 +0000] "POST /order"')
    assert found is not None
    assert found[0] == AT.replace(microsecond=0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no instant at all",
        '  File "/bot/open.py", line 12, in open_position',
        "    raise ValueError('2026-11-21 05:09:54')",
        "asyncpg.exceptions.UniqueViolationError: duplicate key",
        "2026-13-41 05:09:54 is no date",
        "order 1795237794 is no instant",
        "11/10/2026 05:09:54 is October or November",
        "1795237794.1.2 no",
    ],
)
def test_what_is_no_instant_is_not_taken_for_one(line: str) -> None:
    assert find_stamp(line) is None


def test_what_a_person_types_is_on_the_logs_day_and_in_its_zone() -> None:
    east = timezone(timedelta(hours=2))
    first = datetime(2026, 11, 21, 7, 9, 54, 5, tzinfo=east)
    assert read_typed("07:10", first) == datetime(2026, 11, 21, 7, 10, tzinfo=east)
    assert read_typed("2026-11-22", first) == datetime(2026, 11, 22, tzinfo=east)
    assert read_typed("22 Nov 2026 08:00", first) == datetime(2026, 11, 22, 8, tzinfo=east)
    assert read_typed("2026-11-21T05:09:54.123Z", first) == AT
    assert read_typed("1795237794.123", first) == AT
    with pytest.raises(ValueError, match="soon"):
        read_typed("soon", first)


def records_of(text: str) -> list[tuple[str, int]]:
    return [(record.text, record.line) for record in LogFile("bot.log").records(io.StringIO(text))]


def test_a_traceback_belongs_to_the_message_before_it() -> None:
    found = records_of(
        "leftover\n"
        "2026-11-21 05:09:54,123 ERROR failed\n"
        "Traceback (most recent call last):\n"
        '  File "bot.py", line 1, in x\n'
        "\n"
        "Boom: at 2026\n"
        "2026-11-21 05:09:55,000 INFO on\n"
    )
    traceback = (
        'ERROR failed\nTraceback (most recent call last):\n  File "bot.py", line 1, in x\n\nBoom: at 2026'
    )
    assert found == [(traceback, 2), ("INFO on", 7)]


def test_postgres_own_log_keeps_a_messages_parts_together() -> None:
    ((text, _),) = records_of(
        '2026-11-21 05:09:54.123 UTC [8] ERROR:  duplicate key value violates unique constraint "one"\n'
        "2026-11-21 05:09:54.123 UTC [8] DETAIL:  Key (symbol)=(APTUSDT) already exists.\n"
    )
    assert "Key (symbol)=(APTUSDT)" in text


def test_what_a_runtime_puts_before_each_line_and_colours_are_taken_off() -> None:
    ((text, _),) = records_of(
        "bot-1  | \x1b[31m2026-11-21 05:09:54,123\x1b[0m ERROR failed\n"
        "bot-1  | Traceback (most recent call last):\n"
    )
    assert text == "ERROR failed\nTraceback (most recent call last):"


@pytest.mark.parametrize("key", ["timestamp", "time", "ts", "@timestamp", "created"])
@pytest.mark.parametrize("value", [1795237794.123, 1795237794123, "2026-11-21T05:09:54.123Z"])
def test_json_lines_are_read_with_their_traceback(key: str, value: object) -> None:
    line = json.dumps(
        {key: value, "level": "error", "msg": "failed", "exc_info": "Traceback\nBoom", "symbol": "X"}
    )
    (record,) = LogFile("bot.log").records([line])
    assert (record.at, record.level, record.text) == (AT, "ERROR", "failed symbol=X\nTraceback\nBoom")


def test_packed_logs_are_read(tmp_path) -> None:
    path = tmp_path / "bot.log.gz"
    path.write_bytes(gzip.compress(b"2026-11-21 05:09:54,123 INFO on\n"))
    assert [record.text for record in read_log(path)] == ["INFO on"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is empty"),
        (b"a\nb\n", "no timestamp in any of its 2 lines"),
    ],
)
def test_a_log_that_cannot_be_used_is_told_in_one_line(tmp_path, content, told) -> None:
    path = tmp_path / "bot.log"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=told):
        list(read_log(path))


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        # As zstd leaves it: what was not said before stands there as it is, and reads like a log.
        (b"\x28\xb5\x2f\xfd\x24\x82\x7d\x02\x004\x042" + LINE, "zstdcat"),
        (lzma.compress(LINE), "xzcat"),
        (bz2.compress(LINE), "bzcat"),
        (b"\x04\x22\x4d\x18\x64@\xa7" + LINE, "lz4cat"),
        (b"PK\x03\x04\x0a\x00bot.log\n" + LINE, "unzip -p"),
        (gzip.compress(gzip.compress(LINE)), "zcat"),
    ],
)
def test_a_log_that_is_packed_in_another_way_is_refused_with_what_unpacks_it(tmp_path, packed, told) -> None:
    path = tmp_path / "bot.log"
    path.write_bytes(packed)
    with pytest.raises(ConfigurationError, match=rf"is packed; unpack it first: {told} FILE"):
        list(read_log(path))


def test_a_packed_log_on_the_standard_input_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(LINE))))
    with pytest.raises(ConfigurationError, match="log - is packed; unpack it first: zcat"):
        list(read_log("-"))


def test_a_broken_packed_log_is_told(tmp_path) -> None:
    path = tmp_path / "bot.log.gz"
    path.write_bytes(b"2026-11-21 05:09:54,123 INFO not packed\n")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        list(read_log(path))


def test_a_packed_log_that_is_cut_off_is_told(tmp_path) -> None:
    path = tmp_path / "bot.log.gz"
    path.write_bytes(gzip.compress(b"2026-11-21 05:09:54,123 INFO on\n" * 1000)[:-20])
    with pytest.raises(ConfigurationError, match=r"cut off or damaged.*copy it again"):
        list(read_log(path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("opened APTUSDT", "APTUSDT"),
        ("opened APT/USDT:USDT now", "APTUSDT"),
        ("opened APT/USDT", "APTUSDT"),
        ("binance:APTUSDT position 5", "binance:APTUSDT"),
        ("1000PEPEUSDT on Bybit", "bybit:1000PEPEUSDT"),
        ("symbol=APTUSDT exchange=binance", "binance:APTUSDT"),
        ("BTC/USDT:USDT-250926 rolled", "BTC/USDT:USDT-250926"),
        ("binance:BTC/USDT:USDT-250926: presented 1", "binance:BTC/USDT:USDT-250926"),
        ("BTC/USD:BTC margin", "BTC/USD:BTC"),
        ("nothing here", "None"),
    ],
)
def test_a_symbol_is_found_however_it_is_spelt(text: str, found: str) -> None:
    assert str(find_symbol(text)) == found


@pytest.mark.parametrize("asked", ["BTCUSDT", "btcusdt", "BTC/USDT:USDT", "binance:BTCUSDT", "BTC/USDT"])
def test_all_spellings_of_a_perpetual_are_one_and_a_dated_contract_is_another(asked: str) -> None:
    spelling = Spelling(asked)
    assert all(
        spelling.in_text(f"a {name} b")
        for name in ("BTCUSDT", "BTC/USDT", "BTC/USDT:USDT", "binance:BTCUSDT")
    )
    others = ("BTC/USDT:USDT-250926", "WBTCUSDT", "BTCUSDT_250926", "BTCUSDC", "XBTC/USDT")
    assert not any(spelling.in_text(f"a {name} b") for name in others)


def test_a_dated_contract_is_asked_for_by_its_name() -> None:
    spelling = Spelling("BTC/USDT:USDT-250926")
    assert spelling.in_text("x BTC/USDT:USDT-250926 y")
    assert not spelling.in_text("x BTC/USDT:USDT y")
    assert plain_symbol("btc/usdt:usdt-250926") == "BTC/USDT:USDT-250926"
