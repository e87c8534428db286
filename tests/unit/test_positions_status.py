"""The status machine, and the small values around it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from lockguard.errors import ConfigurationError
from lockguard_lab.race.settings import RaceSettings, Report, WorkerSpec
from lockguard_positions import OPEN, TERMINAL, TRANSITIONS, IllegalTransition, PositionSide, PositionStatus
from lockguard_positions._flow import STAGES
from lockguard_positions._model import money, stop_price_of
from lockguard_positions._rows import statements
from lockguard_positions._status import INITIAL, check_transition

S = PositionStatus


def test_every_status_has_its_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(PositionStatus)


def test_the_last_statuses_are_never_left() -> None:
    assert all(not TRANSITIONS[status] for status in TERMINAL)
    assert all(TRANSITIONS[status] for status in OPEN)


def test_every_status_can_be_reached_and_every_open_one_can_end() -> None:
    reached, todo = set(INITIAL), list(INITIAL)
    while todo:
        for status in TRANSITIONS[todo.pop()] - reached:
            reached.add(status)
            todo.append(status)
    assert reached == set(PositionStatus)
    for status in OPEN:
        assert TRANSITIONS[status] & TERMINAL


def test_what_is_done_next_is_said_for_each_open_status_and_for_no_other() -> None:
    assert list(STAGES) == [status for status in PositionStatus if status in OPEN]
    assert [status for status, stage in STAGES.items() if stage.rests] == [S.ACTIVE]
    assert all(bool(stage.intents) == (stage.go_on is not None) for stage in STAGES.values())


def test_the_reference_says_what_is_done_next_as_the_flow_does_it() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/positions.md").read_text(encoding="utf-8")
    _, _, table = page.partition("| status | what is done next |\n|---|---|\n")
    told = table.partition("\n\n")[0].splitlines()
    assert told == [f"| `{status.value}` | {stage.told} |" for status, stage in STAGES.items()]


def test_an_illegal_change_names_both_ends() -> None:
    check_transition(S.PENDING_SL, S.ACTIVE)
    with pytest.raises(IllegalTransition, match="from closed to active") as caught:
        check_transition(S.CLOSED, S.ACTIVE)
    assert (caught.value.old, caught.value.new) == ("closed", "active")
    with pytest.raises(IllegalTransition, match="begin as active"):
        check_transition(None, S.ACTIVE)


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("long", PositionSide.LONG),
        ("BUY", PositionSide.LONG),
        ("Short", PositionSide.SHORT),
        ("sell", "short"),
    ],
)
def test_sides_are_read_in_both_tongues(text: str, side: PositionSide) -> None:
    assert PositionSide.read(text) == side


def test_an_unknown_side_is_named() -> None:
    with pytest.raises(ConfigurationError, match="'up'"):
        PositionSide.read("up")


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1,5", ""])
def test_what_is_no_amount_of_money_is_named(value: str) -> None:
    with pytest.raises(ConfigurationError, match="quantity="):
        money(value, name="quantity")


def test_a_float_is_read_as_it_is_shown() -> None:
    assert money(0.1, name="quantity") == Decimal("0.1")


def test_a_stop_lies_below_a_long_and_above_a_short_position() -> None:
    assert stop_price_of(PositionSide.LONG, Decimal(100), Decimal(2)) == Decimal(98)
    assert stop_price_of(PositionSide.SHORT, Decimal(100), Decimal(2)) == Decimal(102)


def test_every_statement_has_its_columns_filled_in() -> None:
    for file, package in (
        ("positions.sql", "lockguard_positions"),
        ("naive.sql", "lockguard_lab"),
        ("race.sql", "lockguard_lab"),
    ):
        for name, sql in statements(file, package).items():
            assert sql, name
            # The one number that depends on the table's version is filled in with the arguments.
            left = sql.replace("{last}", "$13") if name == "intend_entry" else sql
            assert "{" not in left, name


def test_a_worker_spec_survives_the_wire_and_reports_add_up() -> None:
    settings = RaceSettings("redis://r", "postgres://p", "http://e", scenario="D", processes=3)
    spec = WorkerSpec(settings, "cleaner", 2)
    assert WorkerSpec.decode(spec.encode()) == spec
    total = Report(opened=1, violations=["A"])
    total.add(Report(opened=2, violations=["B"], open_ms=[3.0]))
    assert total == Report(opened=3, violations=["A", "B"], open_ms=[3.0])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"processes": 0}, "processes=0"), ({"opens": 0}, "opens=0"), ({"time_scale": 0.0}, "time_scale=0.0")],
)
def test_a_race_that_cannot_be_run_is_refused_by_name(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        RaceSettings("r", "d", "e", **wrong)
