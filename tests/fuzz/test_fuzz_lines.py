"""Whatever names, messages and servers say, a log has one line for it and a terminal shows only text."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockguard import events
from lockguard._cli import app
from lockguard._lease import GrantId, Resource, Token
from lockguard._nodes.address import Address
from lockguard._nodes.login import LogIn
from lockguard._nodes.wire import Wire
from lockguard.errors import LockguardError
from lockguard.observe import LogObserver
from lockguard_bot import _logs
from lockguard_ccxt._masking import masked
from lockguard_positions import _events
from lockguard_positions._events import LogPositions
from tests.fuzz.lines import one_line

HOSTILE = st.text(st.characters(), max_size=12) | st.sampled_from(
    [
        *(
            "a\nERROR lease lost: x",
            "a\r\nb",
            "\x1b]0;owned\x07",
            "\x1b[2J",
            "\x9b31m",
            "\u202eTDSU",
            "\u2028",
            "\x85",
        ),
        *("\ud800", "\0", "\u200b", "%s", "%(message)s", "{0}", "[red]x[/red]", "x" * 1000, ""),
    ]
)


def event_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Events of one kind whose texts are hostile: rows and keys may have been written by any program."""
    hints = get_type_hints(kind)
    return st.builds(kind, **{each.name: _field(hints[each.name]) for each in fields(kind)})


OF_TYPES: dict[Any, st.SearchStrategy[Any]] = {
    Resource: st.just(Resource("binance:APTUSDT")),  # checked when it is made
    Token: st.integers(1, 2**62).map(Token),
    GrantId: st.just(GrantId("0" * 32)),
    str: HOSTILE,
    float: st.floats(0, 1e9),
}


def _field(hint: Any) -> st.SearchStrategy[Any]:
    if hint in OF_TYPES:
        return OF_TYPES[hint]
    if hasattr(hint, "__dataclass_fields__"):
        return event_of(hint)
    args = get_args(hint)
    if Ellipsis in args:
        return st.lists(_field(args[0]), max_size=1).map(tuple)
    if type(None) in args:
        return st.none() | _field(next(arg for arg in args if arg is not type(None)))
    return st.from_type(hint)


LEASES = st.one_of(*(event_of(kind) for kind in get_args(events.Event)))
POSITIONS = st.one_of(*(event_of(kind) for kind in get_args(_events.PositionEvent)))


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("lockguard")
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield records
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates


@given(LEASES, POSITIONS)
def test_no_name_or_message_forges_a_line_of_a_log(lease: Any, position: Any) -> None:
    with logged() as records:
        LogObserver().on(lease)
        LogPositions().on(position)
    assert records
    for record in records:
        assert record.getMessage().isprintable()
        facts = [value for name, value in vars(record).items() if name.startswith("lockguard_")]
        assert all(value.isprintable() for value in facts if isinstance(value, str))


@given(HOSTILE, HOSTILE)
def test_the_bots_log_has_one_line_for_each_record_of_whatever_library(message: str, argument: str) -> None:
    record = logging.LogRecord("ccxt", 40, "x", 1, "%s: %s", (message, argument), None)
    text = _logs._Masking((), "%(levelname)s %(message)s").format(record)
    assert text.isprintable()
    line = _logs._JsonLines(()).format(record)
    assert "\n" not in line
    assert "\x1b" not in line
    assert isinstance(json.loads(line), dict)


@given(
    st.text(st.sampled_from("0123456789@#?%:,[]&=+;!$'()*^`{|}~<>-._"), max_size=8),
    st.sampled_from(["", "u"]),
)
def test_a_log_in_of_a_url_is_masked_whatever_its_password_has(around: str, user: str) -> None:
    for text in ("redis://{}h/0", "cannot reach 'http://{}h:1', again", '{{"url": "postgresql://{}h/d"}}'):
        assert "c4n4ry" not in masked(text.format(f"{user}:{around}c4n4ry{around}@"))


@given(HOSTILE)
def test_what_a_server_refuses_with_is_one_line(said: str) -> None:
    """It stands in errors, and commands print them on a terminal."""
    reply = b"-" + (said.encode("utf-8", "surrogatepass").translate(None, b"\r\n") or b"x") + b"\r\n"
    one_line(asyncio.run(_refused(reply)))


class Refusing(asyncio.Transport):
    """A server that answers each command with one reply."""

    def __init__(self, wire: Wire, reply: bytes) -> None:
        super().__init__()
        self._wire, self._reply = wire, reply

    def write(self, data: Any) -> None:
        """Answer as many commands as came."""
        asyncio.get_running_loop().call_soon(self._wire.data_received, self._reply * bytes(data).count(b"*"))

    def abort(self) -> None:
        """There is no peer."""


async def _refused(reply: bytes) -> Exception:
    wire = Wire(on_push=lambda _: None, on_end=lambda *_: None, reply_timeout_s=60)
    wire.connection_made(Refusing(wire, reply))
    with pytest.raises((LockguardError, OSError)) as refused:
        await LogIn(Address.parse("redis://:secret@h/1"), "").authenticate(wire)
    wire.end("the test is over")
    return refused.value


@given(HOSTILE)
def test_no_error_of_a_command_controls_the_terminal(said: str) -> None:
    err = io.StringIO()
    with redirect_stderr(err):
        app._complain(said, 1)
    told = err.getvalue()
    assert told.removesuffix("\n").isprintable()
    assert told.endswith("\n")
