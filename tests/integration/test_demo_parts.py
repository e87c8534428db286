"""The demo's parts: what it reads, what it concludes, what it draws, and what it refuses before it starts."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lockguard import LockGuard
from lockguard._cli import app
from lockguard._private_files import write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.demo import cli, serverlog
from lockguard_lab.demo.history import HistoryLine, lock_key, overlaps, peek, tenures
from lockguard_lab.demo.paused import CommittedWrite, PausedResult, Round, Watch
from lockguard_lab.demo.picture import page
from lockguard_lab.demo.report import Claim, DemoResult, Servers, claims
from lockguard_lab.race.settings import RaceResult, RaceSettings, StaleWrites
from lockguard_lab.servers import ServerBinary

RESOURCE = "binance:APTUSDT"
FIRST, SECOND = 1_000, 2_000


def entry(at_ms: int, **fields: str) -> HistoryLine:
    return HistoryLine(RESOURCE, at_ms, fields)


HISTORY = (
    entry(10_000, event="granted", grant="a", token=str(FIRST), holder="h:11/Task-1", operation="open long"),
    entry(
        11_500, event="granted", grant="b", token=str(SECOND), holder="h:12/Task-1", operation="ensure stop"
    ),
    entry(11_900, event="released", grant="b"),
)
REFUSAL = serverlog.RefusedWrite(12_200.0, RESOURCE, FIRST, SECOND, "LG001", "stale token for <b>x</b>")


def paused_round() -> Round:
    return Round(
        symbol="APTUSDT",
        resource=RESOURCE,
        watch=Watch(lock_key(RESOURCE), {"grant": "a"}, 1_400),
        first_token=FIRST,
        stopped_at_ms=10_100.0,
        resumed_at_ms=12_150.0,
        action="recovered",
        would_overwrite=True,
        sqlstate="LG001",
        row_status="active",
        row_token=SECOND,
        exit_code=3,
        last_line="LeaseLost: gone",
        entries=1,
        stops=1,
        rows=1,
    )


def race(*, guard: bool, duplicates: int) -> RaceResult:
    values = dict.fromkeys(RaceResult.__slots__, 0)
    settings = RaceSettings("redis://r", "postgresql://p", "http://x", guard=guard)
    return RaceResult(
        **{
            **values,
            "settings": settings,
            "opens": 25,
            "duplicates": duplicates,
            "stale_writes": StaleWrites(),
            "errors": (),
            "open_ms_median": 180.0,
            "seconds": 5.0,
            "database": None,
        }
    )


@pytest.fixture
def result() -> DemoResult:
    binary = ServerBinary("Valkey", "9.1.2", Path("/bin/valkey"), "wheel")
    paused = PausedResult(
        rounds=(paused_round(),),
        attempted=1,
        refusals=(REFUSAL,),
        committed=0,
        writes=(
            CommittedWrite("APTUSDT", "entry_placed", FIRST, "", 10_050.0),
            CommittedWrite("APTUSDT", "active", SECOND, "", 11_800.0),
        ),
        history=HISTORY,
        seconds=3.0,
    )
    return DemoResult(
        unguarded=race(guard=False, duplicates=25),
        guarded=race(guard=True, duplicates=0),
        guarded_history=HISTORY,
        paused=paused,
        servers=Servers(binary, binary),
        seconds=20.0,
    )


# --- what it concludes ---


def test_a_good_run_bears_out_every_claim(result):
    assert [claim.text for claim in claims(result) if not claim.held] == []


@pytest.mark.parametrize(
    "change",
    [
        {"attempted": 0},
        {"attempted": 2},
        {"refusals": ()},
        {"committed": 1},
        {"rounds": ()},
        {"rounds": (replace(paused_round(), row_token=FIRST),)},
        {"rounds": (replace(paused_round(), row_status="pending_sl"),)},
        {"rounds": (replace(paused_round(), exit_code=1),)},
        {"rounds": (replace(paused_round(), last_line="Traceback"),)},
        {"rounds": (replace(paused_round(), entries=2),)},
        {"rounds": (replace(paused_round(), stops=0),)},
        {"rounds": (replace(paused_round(), rows=2),)},
        {"rounds": (replace(paused_round(), would_overwrite=False),)},
    ],
    ids=str,
)
def test_a_paused_holder_that_ends_otherwise_breaks_a_claim(result, change):
    broken = replace(result, paused=replace(result.paused, **change))
    assert not all(claim.held for claim in claims(broken))


@pytest.mark.parametrize("field", ["duplicates", "double_entries", "without_stop", "rolled_back"])
def test_a_guarded_race_that_goes_wrong_breaks_a_claim(result, field):
    broken = replace(result, guarded=replace(result.guarded, **{field: 1}))
    assert not all(claim.held for claim in claims(broken))


def test_an_unguarded_race_without_duplicates_shows_nothing(result):
    broken = replace(result, unguarded=race(guard=False, duplicates=0))
    assert not all(claim.held for claim in claims(broken))


def test_a_broken_claim_is_one_line_and_exit_code_1(monkeypatch, tmp_path, capsys):
    async def broken(*_):
        return [Claim("the sky is green", False, "0 of 3")]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_demo", broken)
    assert app.run(["demo"]) == 1
    assert capsys.readouterr().err == "lockguard: not borne out: the sky is green (0 of 3)\n"


# --- what it reads ---


async def test_it_reads_a_held_lock_as_redis_cli_would(redis_url):
    async with (
        LockGuard.from_url(redis_url) as guard,
        guard.hold(RESOURCE, operation="a\r\nb") as lease,
        peek(redis_url) as looking,
    ):
        fields = await looking.hash(lock_key(RESOURCE))
        assert fields["token"] == str(lease.token)
        assert fields["operation"] == r"a\r\nb"
        assert 0 < await looking.remaining_ms(lock_key(RESOURCE)) <= 10_000
        assert await looking.hash("absent") == {}
        assert await looking.remaining_ms("absent") == 0


async def test_it_finds_every_tenure_in_redis_s_own_history(redis_url):
    async with LockGuard.from_url(redis_url) as guard:
        tokens = []
        for number in range(3):
            async with guard.hold(f"binance:S{number}", operation="open long") as lease:
                tokens.append(lease.token)
    async with peek(redis_url) as looking:
        found = tenures(await looking.histories())
    assert [tenure.token for tenure in found] == tokens
    assert all(tenure.ending == "released" and tenure.pid == str(os.getpid()) for tenure in found)
    assert overlaps(found) == 0


def test_overlapping_tenures_are_counted():
    again = entry(11_800, event="granted", grant="c", token="3000", holder="h:13/x", operation="sync")
    assert overlaps(tenures(HISTORY)) == 0
    assert overlaps(tenures([*HISTORY[:2], again, HISTORY[2]])) == 1


def test_only_the_stopped_holder_s_lines_of_the_server_log_count():
    app_name = serverlog.APPLICATION
    sent = (
        "LOG:  statement: begin; select lockguard.check('x',1,'g'); update monitoring.positions set a; commit"
    )
    stale = "ERROR:  stale token for binance:APTUSDT: presented 5, current 7 (me, open)"
    log = "\n".join(
        [
            f"1795237391.940|{app_name}|00000|{sent}",
            f"1795237391.941|{app_name}|LG001|{stale}",
            f"1795237391.941|{app_name}|LG001|STATEMENT:  {sent.partition('statement: ')[2]}",
            f"1795237391.942|somebody else|LG001|{stale}",
            f"1795237391.943|{app_name}|23505|ERROR:  duplicate key",
            "no prefix at all",
        ]
    )
    assert [write.at_ms for write in serverlog.arrived(log)] == [1795237391940.0]
    (refusal,) = serverlog.refused(log)
    assert (refusal.presented, refusal.current, refusal.sqlstate) == (5, 7, "LG001")


# --- what it draws ---


def test_the_page_shows_both_tokens_and_escapes_what_it_is_given(result):
    text = page(result)
    assert str(FIRST) in text
    assert str(SECOND) in text
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert "no bars overlap another" in text


def test_the_page_can_be_drawn_of_a_run_that_went_wrong(result):
    nothing = replace(result.paused, rounds=(), refusals=(), writes=(), history=())
    assert "0 of 1" in page(replace(result, paused=nothing, guarded_history=()))
    unrefused = replace(result.paused, refusals=(), history=HISTORY[:1])
    assert "nothing was refused" in page(replace(result, paused=unrefused))


# --- what it refuses before it starts ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--picture", "absent/x.html"], "there is no directory"),
        (["--picture", "."], "is a directory"),
        (["--json", "absent/x.json"], "there is no directory"),
        (["--opens", "0"], "--opens"),
        (["--time-scale", "0"], "--time-scale"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(arguments, told, monkeypatch, tmp_path, capsys):
    async def never(*_):
        raise AssertionError("it started")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_demo", never)
    assert app.run(["demo", *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "x.html"
    target.write_text("old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            write_private(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
    write_private(target, "new")
    assert target.read_text() == "new"
