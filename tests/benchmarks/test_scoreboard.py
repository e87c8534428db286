"""The scoreboard on real servers: two of its cases, for lockguard and for a peer whose answer is known."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from lockguard_lab.bench.holders.measure import set_up
from lockguard_lab.bench.holders.ways import Place
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


@pytest.mark.parametrize("case", ["cancel", "lost-reply"])
@pytest.mark.parametrize(("way", "verdict"), [("lockguard-no-fence", "yes"), ("redis-py", "no")])
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
