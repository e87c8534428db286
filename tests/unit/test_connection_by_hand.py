"""What becomes of commands when their connection ends or lags, and how long its silence is trusted.

Sockets are plain objects here: a test says which byte arrives when, and what was sent before it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lockguard._clock import SYSTEM_CLOCK, SystemClock
from lockguard._nodes.address import Address
from lockguard._nodes.connection import Connection
from lockguard._nodes.wire import PENDING_MAX, Cut, NotSent, Wire

# --- one connection ---


class Socket:
    """The transport of a wire."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.aborted = True


class Line:
    """A wire over such a socket, and what was told of it."""

    def __init__(self, *, reply_timeout_s: float = 60.0, open_: bool = True) -> None:
        self.ended: list[str] = []
        self.doubted: list[Any] = []
        self.replies: dict[str, Any] = {}
        self.socket = Socket()
        self.wire = Wire(
            on_push=lambda _: None,
            on_end=lambda _, cause: self.ended.append(cause),
            on_doubt=self.doubted.append,
            reply_timeout_s=reply_timeout_s,
        )
        if open_:
            transport: Any = self.socket
            self.wire.connection_made(transport)

    def ask(self, name: str, *, lone: bool = False) -> None:
        self.wire.send(lambda reply: self.replies.__setitem__(name, reply), "ECHO", name, lone=lone)


async def test_replies_come_in_the_order_of_their_commands() -> None:
    line = Line()
    for name in ("a", "b", "c"):
        line.ask(name)
    await asyncio.sleep(0)
    line.wire.data_received(b"+1\r\n+2\r\n")
    assert line.replies == {"a": b"1", "b": b"2"}
    line.wire.end("x")


async def test_what_was_sent_is_cut_and_what_was_not_never_left() -> None:
    line = Line()
    line.ask("sent")
    await asyncio.sleep(0)
    line.ask("queued")
    line.wire.connection_lost(None)
    assert isinstance(line.replies["sent"], Cut)
    assert isinstance(line.replies["queued"], NotSent)
    line.ask("after")
    assert isinstance(line.replies["after"], NotSent)
    assert line.socket.aborted
    assert len(line.ended) == 1


async def test_a_reply_that_nobody_asked_for_ends_the_connection() -> None:
    line = Line()
    line.wire.data_received(b"+1\r\n")
    assert "nobody asked" in line.ended[0]


async def test_only_so_many_commands_may_be_unanswered() -> None:
    line = Line()
    for _ in range(PENDING_MAX):
        line.wire._waiting.append(lambda _: None)
    line.ask("one too many")
    assert isinstance(line.replies["one too many"], NotSent)
    line.wire.end("x")


async def ended(line: Line) -> None:
    async with asyncio.timeout(5):
        while not line.ended:
            await asyncio.sleep(0.005)


async def test_a_server_that_does_not_answer_is_doubted_and_then_left() -> None:
    line = Line(reply_timeout_s=0.15)
    line.wire.doubt_s = 0.05
    await asyncio.sleep(0.2)  # idle for longer than a reply may take
    line.ask("a")
    await asyncio.sleep(0.02)  # less than makes it doubtful
    assert (line.doubted, line.ended) == ([], [])
    await ended(line)
    assert len(line.doubted) == 1
    assert isinstance(line.replies["a"], Cut)


async def test_bytes_that_came_while_the_process_was_stopped_are_read_before_it_judges() -> None:
    line = Line(reply_timeout_s=0.1)
    line.ask("a")
    line.wire._silent_since -= 60  # as after a minute in which nothing ran
    line.wire._check_progress()
    assert line.ended == []
    line.wire.data_received(b"+1\r\n")
    assert line.replies == {"a": b"1"}
    line.wire.end("x")


async def test_silence_that_a_command_asked_for_is_not_doubted() -> None:
    line = Line(reply_timeout_s=0.05)
    line.ask("WAIT")
    line.wire.allow_silence(60)
    line.wire._silent_since -= 1
    for _ in range(3):
        line.wire._check_progress()
    assert line.ended == []
    line.wire.end("x")


# --- connecting again ---


def connection() -> tuple[Connection, list[str]]:
    told: list[str] = []

    async def nothing(wire: Any) -> None: ...

    made = Connection(
        Address.parse("redis://127.0.0.1:1/0"),
        inbox="in",
        on_message=lambda _: told.append("message"),
        on_login=nothing,
        on_connect=lambda *, again: told.append("again" if again else "first"),
        on_refused=lambda: told.append("refused"),
        on_wiped=lambda: told.append("wiped"),
        connect_timeout_s=0.5,
        reply_timeout_s=2.0,
    )
    return made, told


async def test_a_message_and_a_wipe_are_told() -> None:
    made, told = connection()
    made._pushed([b"message", b"in", b"grant"])
    made._pushed([b"invalidate", None])
    assert told == ["message", "wiped"]


async def test_a_lease_with_a_short_ttl_has_a_dead_connection_noticed_sooner() -> None:
    made, _ = connection()
    before = made._doubt_s
    made.note_ttl(60_000)
    assert made._doubt_s == before
    made.note_ttl(600)
    assert made._doubt_s == pytest.approx(0.12)
    made.note_ttl(100)
    assert made._doubt_s == pytest.approx(0.1)


async def test_a_server_that_was_only_slow_gets_more_time_and_no_second_connection() -> None:
    made, _ = connection()
    line = Line(reply_timeout_s=2.0)
    made._wire = line.wire
    line.wire.doubt_s = 0.2
    made._attempt = asyncio.create_task(asyncio.Event().wait())  # type: ignore[arg-type]
    made._trusted(line.wire)
    assert line.wire.doubt_s == pytest.approx(0.4)
    await asyncio.wait([made._attempt])
    assert made._attempt.cancelled()
    line.wire.end("x")


async def test_a_few_slow_replies_do_not_have_a_dead_connection_noticed_late_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = connection()
    line = Line(reply_timeout_s=2.0)
    made._wire = line.wire
    line.wire.doubt_s = 0.2
    for _ in range(4):
        made._trusted(line.wire)
    assert line.wire.doubt_s == pytest.approx(2.0)  # never more than the time limit for replies
    later = SYSTEM_CLOCK.now() + 31
    monkeypatch.setattr(SystemClock, "now", lambda _: later)
    assert line.wire.doubt_s == pytest.approx(0.2)
    line.wire.end("x")


async def test_a_connection_that_dies_behind_a_slow_reply_is_doubted_after_its_new_patience() -> None:
    made, _ = connection()
    line = Line(reply_timeout_s=5.0)
    made._wire = line.wire
    line.wire.doubt_s = 0.1
    for times in (1, 2):  # the second reply never comes
        line.ask("x")
        async with asyncio.timeout(2.0):
            while len(line.doubted) < times:
                await asyncio.sleep(0.005)
        if times == 1:
            line.wire.data_received(b"+1\r\n")
            made._trusted(line.wire)
    line.wire.end("x")


async def test_a_failed_attempt_to_come_back_is_told_and_a_caller_that_is_cancelled_ends_none() -> None:
    made, told = connection()
    asking = asyncio.create_task(made.connect())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert made._attempt is not None
    assert not made._attempt.cancelled()
    coming = asyncio.create_task(made._come_back())
    async with asyncio.timeout(5):
        while "refused" not in told:
            await asyncio.sleep(0.01)
    coming.cancel()
    await made.aclose()
