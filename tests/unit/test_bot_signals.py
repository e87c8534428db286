"""What a signal says; one that cannot be read is refused by place, field, value and remedy, in one line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from lockguard_bot._signals import (
    LINE_BYTES_MAX,
    BadSignal,
    CloseSignal,
    OpenSignal,
    Stop,
    read_fields,
    read_line,
)
from lockguard_positions._model import PositionSide

GOOD = {"id": "s1", "action": "open", "symbol": "APTUSDT", "side": "long", "quantity": "10", "stop": "2%"}
AT = datetime(2026, 1, 31, 8, tzinfo=UTC)


def line(**changed: Any) -> bytes:
    signal = {**GOOD, **changed}
    return json.dumps({name: value for name, value in signal.items() if value is not None}).encode()


def fields(**changed: str) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in {**GOOD, **changed}.items()}


def test_an_open_says_it_all() -> None:
    signal = read_line(line(), where="f line 1")
    assert signal == OpenSignal(
        "s1", "APTUSDT", None, PositionSide.LONG, Decimal(10), Stop(Decimal(2), is_percent=True)
    )


def test_a_close_needs_no_more_than_a_symbol_and_may_name_the_side() -> None:
    assert read_line(b'{"id": 7, "action": "close", "symbol": "BTCUSDT"}', where="") == CloseSignal(
        "7", "BTCUSDT", None, None
    )
    signal = read_line(line(action="close", side="sell"), where="")
    assert isinstance(signal, CloseSignal)
    assert signal.side is PositionSide.SHORT


@pytest.mark.parametrize("quantity", ["0.1", 0.1, " 0.1 ", "1e-1"])
def test_a_number_is_the_text_that_was_written_and_never_a_float(quantity: Any) -> None:
    signal = read_line(line(quantity=quantity), where="")
    assert isinstance(signal, OpenSignal)
    assert str(signal.quantity.normalize()) == "0.1"


@pytest.mark.parametrize(
    ("given", "at"),
    [
        (1769846400000, AT),
        ("1769846400000", AT),
        ("2026-01-31T08:00:00Z", AT),
        ("2026-01-31T09:00+01:00", AT),
    ],
)
def test_an_instant_is_milliseconds_or_has_a_zone(given: Any, at: datetime) -> None:
    assert read_line(line(at=given), where="").at == at


def test_an_entry_of_a_stream_is_as_old_as_its_id_unless_it_says_otherwise() -> None:
    assert read_fields(fields(), where="", at_ms=1769846400000).at == AT
    assert read_fields(fields(at="2026-01-31T08:00:00Z"), where="", at_ms=5).at == AT
    second = read_fields(fields(), where="", at_ms=1769846400000, number=1)
    last = read_fields(fields(), where="", at_ms=1769846400000, number=2**64 - 1)
    following = read_fields(fields(), where="", at_ms=1769846400001)
    assert second.at is not None
    assert last.at is not None
    assert following.at is not None
    assert AT < second.at < last.at < following.at


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"id": None}, "f line 3: id is missing; give each signal an id of its own"),
        ({"id": ""}, "id='' is empty"),
        ({"id": "a\nb"}, "id='a\\nb' is empty, too long or not plain text"),
        ({"id": "x" * 201}, "too long"),
        ({"id": "\ud800"}, "not plain text"),
        ({"symbol": None}, "f line 3: signal s1: symbol is missing; write it as APTUSDT"),
        ({"action": None}, "action is missing; write 'open' or 'close'"),
        ({"action": "buy"}, "action='buy' is not known; write 'open' or 'close'"),
        ({"side": None}, "side is missing; write 'long' or 'short'"),
        ({"side": "up"}, "side 'up' is not known; write 'long' or 'short'"),
        ({"quantity": None}, "quantity is missing; say how much"),
        ({"quantity": "much"}, "quantity='much' is not a number"),
        ({"quantity": "1_0"}, "quantity='1_0' is not a number"),
        ({"quantity": "\u0661\u0660"}, "quantity='\u0661\u0660' is not a number"),
        ({"quantity": "-1"}, "quantity=-1 must be above zero"),
        ({"quantity": "NaN"}, "quantity=NaN must be above zero"),
        ({"quantity": True}, "quantity=true is empty, too long or not plain text"),
        ({"quantity": [1]}, 'quantity=["1"] is empty'),
        ({"quantity": "1e400"}, "quantity='1e400' is out of all bounds; check the unit"),
        ({"quantity": "1e999999999"}, "out of all bounds"),
        ({"stop": None}, "stop is missing; write a price such as '8.50', or a percentage such as '2%'"),
        ({"stop": "100%"}, "stop=100 must be above 0 and below 100"),
        ({"stop": "2%%"}, "stop='2%%' is not a stop"),
        ({"stop": "0"}, "stop=0 must be above zero"),
        ({"at": "yesterday"}, "at='yesterday' is no instant; write milliseconds since 1970"),
        ({"at": "2026-01-31T08:00:00"}, "is no instant"),
        ({"at": "1_769_846_400_000"}, "is no instant"),
        ({"at": 10**30}, "is no instant"),
    ],
)
def test_a_bad_signal_is_refused_by_place_field_value_and_remedy(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(BadSignal) as caught:
        read_line(line(**changed), where="f line 3")
    message = str(caught.value)
    assert told in message
    assert message.startswith("f line 3: ")
    assert message.isprintable()
    assert len(message) < 250


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"garbage\n", "'garbage' is not JSON; write one object a line"),
        (b'{"id": "s1"', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "is not an object"),
        (b'"s1"', "is not an object"),
        (b'{"id": NaN}', "is empty, too long or not plain text"),
        (b"[" * 10_000, "is not JSON"),
        (b'{"quantity": 1' + b"0" * 10_000 + b"}", "id is missing"),
        (b"x" * LINE_BYTES_MAX, f"longer than {LINE_BYTES_MAX} bytes"),
    ],
)
def test_what_is_no_signal_at_all_is_refused_in_one_line(text: bytes, told: str) -> None:
    with pytest.raises(BadSignal) as caught:
        read_line(text, where="f line 3")
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", ["quantity", "stop", "id", "action"])
def test_a_field_that_is_given_twice_is_refused_and_not_read_as_its_last(key: str) -> None:
    for given in (line(), line(action="close")):
        twice = given.strip().removesuffix(b"}") + f', "{key}": "7"}}\n'.encode()
        if f'"{key}"'.encode() not in given:
            continue
        with pytest.raises(BadSignal) as caught:
            read_line(twice, where="f line 3")
        assert str(caught.value) == f"f line 3: the field {key!r} stands in it twice; give each field once"
        assert caught.value.closes == (b"close" in given)


def test_what_stands_twice_within_a_field_that_no_order_is_made_of_costs_no_close() -> None:
    text = b'{"id": "s1", "action": "close", "symbol": "APTUSDT", "meta": {"bar": 1, "bar": 2}}'
    assert read_line(text, where="") == CloseSignal("s1", "APTUSDT", None, None)


def test_fields_that_are_no_text_and_ids_that_are_no_time_are_refused() -> None:
    with pytest.raises(BadSignal, match="not UTF-8 text"):
        read_fields({b"id": b"\xff"}, where="e", at_ms=0)
    with pytest.raises(BadSignal, match="its id is no time"):
        read_fields(fields(), where="e", at_ms=2**64 - 1)
    with pytest.raises(BadSignal, match="id is missing"):
        read_fields({}, where="e", at_ms=0)


@pytest.mark.parametrize(
    ("side", "stop", "percent"),
    [(PositionSide.LONG, "98", "2"), (PositionSide.SHORT, "105", "5"), (PositionSide.LONG, "0.5", "99.5")],
)
def test_a_stop_price_is_a_share_of_the_price(side: PositionSide, stop: str, percent: str) -> None:
    assert Stop(Decimal(stop), is_percent=False).percent_at(Decimal(100), side) == Decimal(percent)
    assert Stop(Decimal(7), is_percent=True).percent_at(Decimal(100), side) == 7


@pytest.mark.parametrize(
    ("side", "stop"),
    [
        (PositionSide.LONG, "100"),
        (PositionSide.LONG, "101"),
        (PositionSide.SHORT, "99"),
        (PositionSide.SHORT, "200"),
    ],
)
def test_a_stop_on_the_wrong_side_is_refused(side: PositionSide, stop: str) -> None:
    with pytest.raises(BadSignal, match=f"stop='{stop}' is on the wrong side"):
        Stop(Decimal(stop), is_percent=False).percent_at(Decimal(100), side)


@pytest.mark.parametrize(
    ("at", "told"),
    [
        ("1769846400", "would be in the year 1970 (it looks like seconds since 1970); write milliseconds"),
        (1769846400, "it looks like seconds"),
        ("1769846400.25", "is no instant (it looks like seconds since 1970)"),
        ("1769846400000000", "it looks like microseconds"),
        ("1769846400000000000", "is no instant (it looks like nanoseconds since 1970)"),
        ("0", "would be in the year 1970; write milliseconds"),
        ("-1", "would be in the year 1969"),
        ("1970-01-01T00:00:00Z", "would be in the year 1970"),
        ("9998-01-01T00:00:00Z", "would be in the year 9998"),
        ("1e999999999", "is no instant"),
        ("Infinity", "is no instant"),
    ],
)
def test_an_instant_that_cannot_be_is_refused_by_its_likely_unit(at: Any, told: str) -> None:
    with pytest.raises(BadSignal) as caught:
        read_line(line(action="close", at=at), where="f line 3")
    assert told in str(caught.value)
    assert caught.value.closes


def test_an_id_that_somebody_made_up_is_no_instant() -> None:
    assert read_fields(fields(), where="", at_ms=5).at is None
