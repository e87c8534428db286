"""Each record of an observer has its facts as attributes, which a plain JSON formatter writes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import get_args

import pytest

from lockguard import LossReason
from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.events import (
    Acquired,
    Event,
    FenceCloseFailed,
    Lost,
    NotAcquired,
    NotAcquiredReason,
    ObserverFailed,
    Released,
    RenewalUnanswered,
    Renewed,
    StaleWrite,
    Unwound,
    Waited,
)
from lockguard.observe import LogObserver
from lockguard_bot._logs import _JsonLines
from lockguard_ccxt import OrderAnswered, OrderResult, Refusal
from lockguard_positions import (
    Alert,
    CommitResolved,
    DoubtResolved,
    IntentOutcome,
    LogPositions,
    Looked,
    Moved,
    PositionEvent,
    PositionStatus,
    WriteRefused,
)
from lockguard_positions._cli import _logged
from tests.unit.test_positions_telling import POSITION

NAME, ID = Resource("binance:A"), GrantId("0" * 32)
GRANT = Grant(NAME, ID, Token(41), "h:1/Task-1", "open \x1b[31mlong", 10_000)
OF_LEASES = [
    Acquired(GRANT, 1.5, 0.5),
    NotAcquired(NAME, ID, NotAcquiredReason.GAVE_UP, 10.0),
    Waited(NAME, "h:1/T", "sync", gave_up=False, grant=ID, ahead=3),
    Renewed(GRANT),
    RenewalUnanswered(GRANT, 900.0, "no\nanswer"),
    Lost(GRANT, LossReason.EXPIRED),
    Unwound(GRANT, LossReason.EXPIRED, 12_000.0),
    Released(GRANT, 12.0, True, 9_000.0, 0.4),
    Released(GRANT, 12.0, False, 9_000.0, 0.4),
    Released(GRANT, 12.0, None, 9_000.0, 0.4),
    StaleWrite(GRANT, Token(42)),
    FenceCloseFailed(GRANT, "session 7"),
    ObserverFailed("Mine", "OSError", 2),
]
OF_POSITIONS = [
    Moved(POSITION, PositionStatus.PENDING_SL, "open", 120.0),
    Alert("binance:A", 7, "without a stop\nfor long"),
    WriteRefused("binance:A", 4, 5),
    OrderAnswered("binance:A", 4, "stop", "lgs-1", OrderResult.REFUSED, Refusal.FUNDS, 900.0, 30.0),
    DoubtResolved("binance:A", 7, "entry", "lge-1", IntentOutcome.ABSENT, 9_000),
    CommitResolved("binance:A", 4, True),
    Looked("binance", "pass", 30.0, (), (POSITION,)),
]


class PlainJson(logging.Formatter):
    """What python-json-logger and structlog's bridge do: every attribute that LogRecord has not itself."""

    OWN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in vars(record).items() if name not in self.OWN}
        return json.dumps({"message": record.getMessage(), **extra})  # raises for what is not plain


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    caplog.set_level(logging.DEBUG, logger="lockguard")
    kept, logger = Kept(), logging.getLogger("lockguard")
    logger.addHandler(kept)
    yield kept.records
    logger.removeHandler(kept)


def test_no_kind_of_event_is_forgotten_here() -> None:
    assert {type(event) for event in OF_LEASES} == set(get_args(Event))
    assert {type(event) for event in OF_POSITIONS} == set(get_args(PositionEvent)) - {ObserverFailed}


@pytest.mark.parametrize(
    ("observer", "event"),
    [(LogObserver(), one) for one in OF_LEASES] + [(LogPositions(), one) for one in OF_POSITIONS],
    ids=lambda one: type(one).__name__,
)
def test_each_event_is_one_record_with_its_facts(observer, event, records) -> None:
    observer.on(event)
    (record,) = records
    line = json.loads(PlainJson().format(record))
    assert line["lockguard_event"] == type(event).__name__
    extras = {name for name in line if name != "message"}
    assert all(name.startswith("lockguard_") for name in extras)
    assert not any(ID in str(value) for name, value in line.items() if name != "message")
    if hasattr(event, "grant") and isinstance(event.grant, Grant):
        assert (line["lockguard_resource"], line["lockguard_token"]) == ("binance:A", 41)
    for value in line.values():
        assert "\x1b" not in str(value)
    assert "\n" not in "".join(str(line[name]) for name in extras)


def test_the_facts_are_those_of_the_event(records) -> None:
    LogObserver().on(Lost(GRANT, LossReason.EXPIRED))
    facts = {name: value for name, value in vars(records[0]).items() if name.startswith("lockguard_")}
    assert facts == {
        "lockguard_event": "Lost",
        "lockguard_resource": "binance:A",
        "lockguard_token": 41,
        "lockguard_holder": "h:1/Task-1",
        "lockguard_operation": "open \\x1b[31mlong",
        "lockguard_ttl_ms": 10_000,
        "lockguard_reason": "expired",
    }


def test_the_bots_own_json_has_them_too(records) -> None:
    LogPositions().on(WriteRefused("binance:A", 4, 5))
    line = json.loads(_JsonLines(()).format(records[0]))
    assert line["level"] == "WARNING"
    assert line["lockguard_event"] == "WriteRefused"
    assert (line["lockguard_presented"], line["lockguard_current"]) == (4, 5)


def test_what_is_only_for_debugging_costs_nothing_when_it_is_off(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO, logger="lockguard")
    called = []
    monkeypatch.setattr("lockguard.observe._log.facts_of", lambda event: called.append(event) or {})
    for event in (Acquired(GRANT, 1.5), Released(GRANT, 12.0, True), Renewed(GRANT)):
        LogObserver().on(event)
    assert called == []
    LogObserver().on(Lost(GRANT, LossReason.EXPIRED))
    assert len(called) == 1


def test_an_event_of_positions_that_no_logger_wants_costs_nothing(monkeypatch, caplog) -> None:
    caplog.set_level(logging.CRITICAL, logger="lockguard")
    called = []
    monkeypatch.setattr("lockguard_positions._events.facts_of", lambda event, **_: called.append(event) or {})
    for event in OF_POSITIONS:
        LogPositions().on(event)
    assert called == []


def test_a_command_that_logs_its_steps_leaves_the_level_as_it_was(caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="lockguard.positions")
    with _logged():
        logging.getLogger("lockguard.positions").info("a step")
    assert logging.getLogger("lockguard.positions").level == logging.DEBUG


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (Released(GRANT, 12.0, None), "release not answered: binance:A token=41: free when its ttl is over"),
        (Released(GRANT, 12.0, False), "released late: binance:A token=41: Redis had dropped it"),
        (
            Waited(NAME, "", "", gave_up=False, cause="redis\n7: no connection"),
            "waiting for binance:A: its servers cannot be reached: redis",
        ),
    ],
)
def test_a_warning_says_what_it_is_of(event, told, caplog):
    LogObserver().on(event)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(told)
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize(
    "event",
    [
        Released(GRANT, 12.0, True),
        Released(GRANT, 12.0, None, cancelled=True),
        Waited(NAME, "h:1/T", "sync", gave_up=False),
        Waited(NAME, "", "", gave_up=True, cause="the error says it"),
    ],
)
def test_what_an_operator_need_not_know_is_no_warning(event, caplog):
    LogObserver().on(event)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
