"""The logs of bots that many people use are understood, and what is not understood is not called clean.

The logs of freqtrade were written by two processes of it (2026.9) on one account of the local exchange, one
of them as in a container, where its lines are broken at 80 characters. The others follow what those programs
write.
"""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from lockguard._cli.app import run as command
from lockguard.errors import ConfigurationError
from lockguard_logs import FindingKind, _records, analyze, read_log
from lockguard_logs._symbols import find_symbol, plain_symbol

LOGS = Path(__file__).parent / "logs_of_bots"
TWICE, ENTERED = FindingKind.CREATED_TWICE, FindingKind.ENTERED_TWICE
VIOLATED = FindingKind.UNIQUE_VIOLATION

UNDERSTOOD = [
    (("freqtrade.log", "freqtrade-in-a-container.log"), [(ENTERED, "APTUSDT"), (ENTERED, "ETHUSDT")]),
    (("hummingbot.log",), [(ENTERED, "SOLUSDT")]),
    (("nautilus.log", "nautilus-second-node.log"), [(ENTERED, "binance:CTKUSDT")]),
    (("okx.log",), [(TWICE, "BTCUSDT")]),
    (("structlog.jsonl",), [(TWICE, "okx:APTUSDT")]),
    (("structlog-for-people.log",), [(TWICE, "binance:APTUSDT")]),
    (("docker-json-file.log",), [(TWICE, "APTUSDT"), (VIOLATED, "binance:APTUSDT")]),
    (("docker-json-file-without-instants.log",), [(TWICE, "APTUSDT")]),
    (("docker-json-file-of-structlog.log",), [(TWICE, "APTUSDT")]),
    (("docker-json-file-in-parts.log",), [(TWICE, "APTUSDT")]),
    (("kubernetes.log",), [(TWICE, "APTUSDT"), (VIOLATED, "binance:APTUSDT")]),
]


@dataclass(frozen=True, slots=True)
class Ended:
    exit_code: int
    stdout: str
    stderr: str


def run(*arguments: str | Path) -> Ended:
    """``lockguard logs analyze`` as it is called."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command(["logs", "analyze", *map(str, arguments)])
        except SystemExit as ended:
            code = int(str(ended.code))
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(("names", "findings"), UNDERSTOOD, ids=lambda value: str(value[0]))
def test_a_double_entry_is_found_in_the_logs_that_bots_write(
    names: tuple[str, ...], findings: list[tuple[FindingKind, str]]
) -> None:
    found = analyze(record for name in names for record in read_log(LOGS / name))
    assert [(one.kind, one.resource) for one in found.findings] == findings
    assert run(*(LOGS / name for name in names)).exit_code == 1


@pytest.mark.parametrize("name", ["freqtrade.log", "freqtrade-in-a-container.log", "nautilus.log"])
def test_the_log_of_one_bot_that_entered_once_is_clean(name: str) -> None:
    result = run(LOGS / name)
    assert (result.exit_code, "No duplicates, no races." in result.stdout, result.stderr) == (0, True, "")


@pytest.mark.parametrize(
    "line",
    [
        "INFO bot gone long APTUSDT",
        "INFO bot position created",  # of which symbol?
        "INFO lockguard lease lost elsewhere",
        "ERROR bot could not create a position of APTUSDT",
    ],
)
def test_a_log_in_which_no_new_position_was_recognised_is_not_called_clean(tmp_path: Path, line: str) -> None:
    log = tmp_path / "bot.log"
    log.write_text(f"2026-11-21 05:09:54,123 {line}\n2026-11-21 05:09:54,423 {line}\n", encoding="utf-8")
    result = run(log)
    assert result.exit_code == 3
    assert "No duplicates" not in result.stdout
    assert "no message of a new position was recognised" in result.stderr
    assert "--created '" in result.stderr
    told = json.loads(run(log, "--export", "-").stdout)
    assert (told["understood"], told["not_understood"]) == (False, [str(log)])


def test_the_words_that_the_note_asks_for_are_taken(tmp_path: Path) -> None:
    log = tmp_path / "bot.log"
    line = "INFO bot NEW APT-USDT-SWAP"
    log.write_text(f"2026-11-21 05:09:54 {line} #1\n2026-11-21 05:09:55 {line} #2\n", encoding="utf-8")
    assert run(log).exit_code == 3
    result = run(log, "--created", r"NEW (?P<symbol>\S+) #(?P<id>\d+)")
    assert (result.exit_code, "created twice" in result.stdout, result.stderr) == (1, True, "")


def test_one_log_that_is_understood_does_not_speak_for_another(tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    other.write_text("2026-11-21 05:09:54,123 INFO bot gone long APTUSDT\n", encoding="utf-8")
    result = run(LOGS / "nautilus.log", other)
    assert result.exit_code == 0
    assert f"{other}: no message of a new position was recognised" in result.stderr


def test_an_interval_without_a_new_position_is_clean_in_a_log_that_has_some() -> None:
    result = run(LOGS / "hummingbot.log", "--from", "05:10:30", "--to", "05:10:31")
    assert (result.exit_code, result.stderr) == (0, "")


# --- files that are no logs ---


def test_an_empty_file_among_several_is_noted_and_the_rest_is_read(tmp_path: Path) -> None:
    empty, blank = tmp_path / "empty.log", tmp_path / "blank.log"
    empty.touch()
    blank.write_text("no instant here\n", encoding="utf-8")
    result = run(empty, LOGS / "okx.log", blank)
    assert (result.exit_code, "created twice" in result.stdout) == (1, True)
    assert [line.partition(";")[0] for line in result.stderr.splitlines()] == [
        f"Note: {empty} is empty",
        f"Note: {blank} has no timestamp in any of its 1 lines",
    ]
    result = run(empty, blank)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_packed_log_is_known_by_what_it_is(tmp_path: Path) -> None:
    rotated = tmp_path / "bot.log.1"
    rotated.write_bytes(gzip.compress((LOGS / "okx.log").read_bytes()))
    assert len(list(read_log(rotated))) == 3


def zeros(path: Path, mebibytes: int) -> Path:
    """A small file that unpacks to a large one."""
    path.write_bytes(gzip.compress(bytes(1 << 20)) * mebibytes)
    return path


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_in_little_memory(tmp_path: Path) -> None:
    bomb = zeros(tmp_path / "bomb.gz", 200)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError, match=r"unpacks to more than \d+ times its size"):
            list(read_log(bomb))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    result = run(bomb)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_packed_log_is_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tmp_path / "bot.log.gz"
    lines = [f"2026-11-21 05:09:{n % 60:02d},{n:06d} INFO {n * 7919 % 999983}\n" for n in range(5_000)]
    packed.write_bytes(gzip.compress("".join(lines).encode()))
    assert len(list(read_log(packed))) == 5_000
    monkeypatch.setattr(_records, "_RATIO_FROM_BYTES", 50_000)
    assert len(list(read_log(packed))) == 5_000
    monkeypatch.setattr(_records, "_UNPACKED_BYTES_MAX", 100_000)
    with pytest.raises(ConfigurationError, match="give a part of it: zcat"):
        list(read_log(packed))


def test_a_line_that_never_ends_is_cut_and_the_next_one_is_read(tmp_path: Path) -> None:
    log = tmp_path / "bot.log"
    with log.open("wb") as file:
        file.write(b"2026-11-21 05:09:54,123 INFO ")
        for _ in range(64):
            file.write(b"x" * (1 << 20))
        file.write(b"\n2026-11-21 05:09:55,123 INFO bot position 1 created APTUSDT\n")
    tracemalloc.start()
    try:
        first, second = read_log(log)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert len(first.text) <= 20_000
    assert (second.first_line, second.line) == ("INFO bot position 1 created APTUSDT", 2)


# --- symbols ---


@pytest.mark.parametrize(
    ("text", "symbol", "exchange"),
    [
        ("to OPEN a SOL-USDT position.", "SOLUSDT", None),
        ("instrument_id=CTKUSDT-PERP.BINANCE, x", "CTKUSDT", "binance"),
        ("position_id=CTKUSDT-PERP.BINANCE-EMACross-000", "CTKUSDT", "binance"),
        ("filled BTC-USDT-SWAP on okx", "BTCUSDT", "okx"),
        ("filled BTC-USD-SWAP", "BTC-USD-SWAP", None),
        ("filled BTC-USDT-251226", "BTC-USDT-251226", None),
        ("filled BTC_USDT", "BTCUSDT", None),
        ("filled XBTUSDTM", "XBTUSDT", None),
        ("filled BTCUSD_PERP", "BTCUSD_PERP", None),
        ("filled BTCPERP", "BTCPERP", None),
        ("filled APTUSDT.", "APTUSDT", None),
        ("risk MIN_USD=5 of APTUSDT", "APTUSDT", None),
    ],
)
def test_symbols_are_found_as_each_platform_spells_them(text: str, symbol: str, exchange: str | None) -> None:
    named = find_symbol(text)
    assert named is not None
    assert (named.symbol, named.exchange) == (symbol, exchange)
    assert plain_symbol(symbol) == symbol


@pytest.mark.parametrize(
    "spelling", ["SOL-USDT", "SOLUSDT", "SOL/USDT:USDT", "sol-usdt-swap", "SOLUSDT-PERP"]
)
def test_a_symbols_story_is_told_whatever_the_spelling(spelling: str) -> None:
    found = analyze(read_log(LOGS / "hummingbot.log"), symbol=spelling)
    assert [one.kind for one in found.findings] == [ENTERED]
    assert len(found.timeline) == 4
