"""The scoreboard on real servers: two of its cases, for lockguard and for a peer whose answer is known."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lockguard_lab.bench.holders.measure import set_up
from lockguard_lab.bench.holders.ways import Place
from lockguard_lab.scoreboard import measure
from lockguard_lab.scoreboard.cases import CASES, Trial
from lockguard_lab.scoreboard.cli import scoreboard
from lockguard_lab.scoreboard.found import Found
from lockguard_lab.scoreboard.measure import WAYS, Board

TTL_S = 1


@pytest.fixture
async def place(redis_url, database_url):
    made = Place(redis_url, database_url)
    await set_up(made)
    return made


@pytest.mark.parametrize(
    ("way", "case", "verdict"),
    [
        ("lockguard-no-fence", "cancel", "yes"),
        ("lockguard-no-fence", "lost-reply", "yes"),
        ("redis-py", "cancel", "no"),
        ("redis-py", "lost-reply", "late"),  # its retries ask again until its own forgotten lock has run out
    ],
)
async def test_a_case_of_the_board_tells_what_a_way_does(place, way, case, verdict):
    found = await CASES[case].run(Trial(way, place, TTL_S, rounds=1))
    assert (found.way, found.case, found.verdict) == (way, case, verdict), found.told


def test_a_case_that_lockguard_fails_is_a_violation_and_one_that_a_peer_fails_is_none():
    cells = [
        Found("lockguard", "lockguard", "cancel", "no", "left behind"),
        Found("lockguard", "lockguard", "killed", "late", "after 2 s"),
        Found("redis-py", "redis-py", "cancel", "no", "left behind", 2.00004),
    ]
    told = Board(cells, {"Valkey": "9"}, {"etcd": "not installed"}, 2).to_json()
    assert told["violations"] == ["lockguard, cancel: left behind"]
    assert told["counts"] == {"cases": 3, "verdict_yes": 0, "verdict_late": 1, "verdict_no": 2}
    assert [row["seconds"] for row in told["rows"]] == [None, None, 2.0]
    assert json.dumps(told["notes"]).count("etcd") == 1


def test_what_is_not_on_the_board_is_refused_by_name():
    for option, names in (("--way", WAYS), ("--case", CASES)):
        done = CliRunner().invoke(scoreboard, [option, "unknown"])
        assert done.exit_code == 2
        assert all(name in done.output for name in names)


class _Nothing:
    """In place of a server, for a case that asks none."""

    url = version = ""

    def __init__(self, **_):
        self.binary = self

    product = "Valkey"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    def create_database(self, _):
        return ""


async def test_a_case_that_fails_or_an_interrupt_loses_none_of_what_was_found(monkeypatch):
    trying = asyncio.Event()

    async def fine(trial):
        return trial.found("fine", "yes", "it holds")

    async def fails(_):
        raise RuntimeError("a peer's own")

    async def lasts(_):
        trying.set()
        await asyncio.Event().wait()

    async def set_up_nothing(_):
        return None

    cases = {"fine": fine, "fails": fails, "lasts": lasts}
    monkeypatch.setattr(measure, "CASES", {name: SimpleNamespace(run=run) for name, run in cases.items()})
    monkeypatch.setattr(measure, "RedisServer", _Nothing)
    monkeypatch.setattr(measure, "PostgresServer", _Nothing)
    monkeypatch.setattr(measure, "set_up", set_up_nothing)
    task = asyncio.create_task(measure.measure(["lockguard-no-fence"], list(cases), progress=lambda _: None))
    await trying.wait()
    task.cancel()
    board = await task
    assert [(one.case, one.verdict, one.told) for one in board.cells] == [
        ("fine", "yes", "it holds"),
        ("fails", "-", "not tried: RuntimeError: a peer's own"),
    ]
    assert board.to_json()["notes"][-1] == "Interrupted at lockguard-no-fence: lasts: all that follows lacks."
