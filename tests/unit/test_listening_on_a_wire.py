"""A subscription is refused, or the PING behind it is: each later reply stays with the caller whose it is."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from lockguard._nodes import wire as wires
from lockguard._nodes.wire import Wire

MISCONF = b"-MISCONF Redis is configured to save RDB snapshots\r\n"
NOPERM = b"-NOPERM User bot has no permissions\r\n"
MOVED = b"-MOVED 7 127.0.0.1:7001\r\n"
PONG = b"+PONG\r\n"


class Socket:
    """The other side of a wire: what was written, and whether it was closed."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self) -> None:
        self.closed = True


class Line:
    """A wire, with what came of it."""

    def __init__(self) -> None:
        self.pushed: list[Any] = []
        self.refused: list[str] = []
        self.got: list[tuple[str, str]] = []
        self.causes: list[str] = []
        self.wire = Wire(
            on_push=self.pushed.append,
            on_end=lambda _, cause: self.causes.append(cause),
            reply_timeout_s=5,
        )
        socket: Any = Socket()
        self.socket = socket
        self.wire.connection_made(socket)

    def listen(self, channel: str = "one", command: str = "SSUBSCRIBE") -> None:
        self.wire.send_listening(lambda fault: self.refused.append(str(fault).split()[0]), command, channel)

    def ask(self, name: str) -> None:
        self.wire.send(lambda reply: self.got.append((name, text(reply))), "GET", name)

    def answers(self, *replies: bytes) -> None:
        self.wire.data_received(b"".join(replies))


def text(reply: Any) -> str:
    return str(reply).split()[0] if isinstance(reply, Exception) else reply.decode()


def confirmed(channel: str = "one", command: str = "ssubscribe") -> bytes:
    return b">3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n:1\r\n" % (
        len(command),
        command.encode(),
        len(channel),
        channel.encode(),
    )


@pytest.fixture
async def line() -> Any:
    made = Line()
    yield made
    made.wire.end("the test is done")


@pytest.mark.parametrize(
    ("replies", "refused"),
    [
        ([confirmed(), PONG], []),
        ([confirmed(), MISCONF], []),
        ([confirmed(), NOPERM], []),
        ([NOPERM, PONG], ["NOPERM"]),
        ([NOPERM, NOPERM], ["NOPERM"]),
        ([MOVED, MISCONF], ["MOVED"]),
    ],
    ids=["both", "no ping now", "no ping", "no subscription", "neither", "moved, and no ping now"],
)
async def test_each_reply_goes_to_its_caller_whichever_of_a_subscription_and_its_ping_is_refused(
    line: Line, replies: list[bytes], refused: list[str]
) -> None:
    line.ask("a")
    line.listen()
    line.ask("b")
    line.ask("c")
    line.answers(b"+A\r\n", *replies, b"+B\r\n", b"+C\r\n")
    assert line.got == [("a", "A"), ("b", "B"), ("c", "C")]
    assert line.refused == refused
    assert line.causes == []
    assert line.wire.owed == 0


async def test_a_confirmation_is_that_of_one_subscription_only(line: Line) -> None:
    """The first was refused as the slot moved; of the second, on the same channel, only the PING."""
    line.listen()
    line.listen()
    line.listen("two")
    line.ask("a")
    line.answers(MOVED, PONG, confirmed(), MISCONF, confirmed("two"), MISCONF, b"+A\r\n")
    assert (line.refused, line.got) == (["MOVED"], [("a", "A")])


async def test_a_wire_ends_where_nobody_can_tell_which_of_two_commands_a_server_refused(line: Line) -> None:
    """The server ended the subscription as the slot moved, and the client did at that moment."""
    line.listen(command="SUNSUBSCRIBE")
    line.ask("a")
    await asyncio.sleep(0)  # written
    line.answers(confirmed(command="sunsubscribe"), MOVED, PONG, b"+A\r\n")
    assert line.got == [("a", "a")]  # the cause: its own reply never came
    assert line.causes == ["a reply that may be that to either of two commands"]
    assert line.socket.closed


async def test_no_subscription_is_sent_whose_refusal_would_have_no_place(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "PENDING_MAX", 2)
    line.ask("a")
    line.ask("b")
    line.listen()
    line.wire.flush()
    assert not any(b"SSUBSCRIBE" in data for data in line.socket.written)
    line.answers(b"+A\r\n", b"+B\r\n")
    assert line.got == [("a", "A"), ("b", "B")]
