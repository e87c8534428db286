"""Whatever a server answers, no reply but the script's own says that a lock is held (S12)."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockguard._lease import Resource
from lockguard._nodes import scripted
from lockguard._nodes.scripted import UNREADABLE
from lockguard._nodes.wire import Cut, NotSent, Wire
from lockguard.ports import Busy, Extended, Granted, MaybeExecuted, Quarantined

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**63 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.sampled_from([b"1", b"0", b"-1", b"nan", b"1e400", b"\x01", b"9" * 40])
)
REPLIES = st.recursive(
    SCALARS | st.dictionaries(st.integers(0, 3) | st.binary(max_size=4), SCALARS, max_size=3),
    lambda inner: st.lists(inner, max_size=10) | st.tuples(st.integers(0, 3), inner, inner, inner).map(list),
    max_leaves=12,
)


def decoded(decode: Any, reply: Any) -> Any:
    """What the node makes of a reply: a vote of its own, or that it cannot know."""
    try:
        return decode(reply)
    except UNREADABLE:
        return MaybeExecuted


@given(REPLIES)
def test_only_the_scripts_own_reply_is_a_grant(reply: Any) -> None:
    vote = decoded(scripted.parse_acquired, reply)
    if isinstance(vote, Granted):
        assert type(reply) is list
        assert type(reply[0]) is int
        assert reply[0] == 1
        assert 0 < vote.token < 2**63
    elif isinstance(vote, Busy):
        assert vote.retry_after_ms >= 0
        assert [type(each) for each in (vote.age_ms, vote.token, vote.ticket)] == [int] * 3
    else:
        assert vote is MaybeExecuted or isinstance(vote, Quarantined)


@given(REPLIES)
def test_only_a_number_of_the_script_says_that_a_lease_is_renewed(reply: Any) -> None:
    vote = decoded(scripted.parse_extended, reply)
    if isinstance(vote, Extended) and vote.held:
        assert type(reply) is int
        assert reply in (1, 2)
    done = decoded(scripted.parse_done, reply)
    if done is not MaybeExecuted and done.found:
        assert type(reply) is int
        assert reply == 1


@given(REPLIES)
def test_no_reply_raises_what_the_node_does_not_expect(reply: Any) -> None:
    name = Resource("binance:APTUSDT")
    for decode in (
        scripted.parse_broken,
        scripted.parse_asked,
        scripted.parse_lines,
        scripted.parse_membership,
        lambda told: scripted.parse_inspected(name, told),
    ):
        decoded(decode, reply)


PIECES = (
    *(b"*3\r\n", b"*-1\r\n", b"$-1\r\n", b":1\r\n", b"+OK\r\n", b"-ERR no\r\n", b"-", b"*4\r\n:1\r\n"),
    *(b"#t\r\n", b"$99999999999\r\n", b"*99999\r\n", b"%1\r\n*0\r\n", b">3\r\n", b">2\r\n$7\r\nmessage\r\n"),
    *(
        b"*99999999\r\n",
        b">99999999\r\n",
        b"~1000000\r\n",
        b"\xff\x1b[2J\r\n",
        b"-ERR \x1b]0;owned\x07 \xff\r\n",
    ),
    *(b",inf\r\n", b"(123456789012345678901234567890\r\n", b"_\r\n", b"$3\r\nabc\r\n", b">0\r\n", b"~2\r\n"),
)
"""Of the protocol, with headers for which hiredis would take memory as soon as it reads them."""
RESP = st.lists(st.sampled_from(PIECES) | st.binary(max_size=12), max_size=12).map(b"".join)


class Socket(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: Any) -> None:
        """Nobody reads it."""

    def abort(self) -> None:
        """There is no peer."""


@given(RESP, st.lists(st.integers(0, 60), max_size=6))
def test_each_caller_is_answered_once_whatever_bytes_come_and_however_they_are_cut(
    stream: bytes, cuts: list[int]
) -> None:
    async def feed() -> None:
        told: list[list[Any]] = [[] for _ in range(3)]
        ended: list[str] = []
        wire = Wire(
            on_push=lambda message: bytes(message[2]).decode(),
            on_end=lambda _, cause: ended.append(cause),
            reply_timeout_s=60,
        )
        wire.connection_made(Socket())
        for answers in told:
            wire.send(answers.append, "PING")
        wire.flush()
        places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        for begin, end in itertools.pairwise(places):
            wire.data_received(stream[begin:end])
        wire.end("the test is over")
        assert [len(answers) for answers in told] == [1, 1, 1]
        assert len(ended) == 1
        for (answer,) in told:
            raised = isinstance(answer, Exception)
            assert not raised or isinstance(
                answer, Cut | NotSent | hiredis.ReplyError | hiredis.ProtocolError
            )
            assert not raised or str(answer).isprintable()  # it goes on to logs and terminals

    asyncio.run(feed())


@pytest.mark.parametrize("reply", [None, b"OK", [], 3, True, -1, {}, 1.0])
def test_a_renewal_is_unknown_when_its_reply_is_not_the_scripts(reply: Any) -> None:
    """Each of these was taken for a lease that is held. What is raised becomes an unknown outcome."""
    with pytest.raises(UNREADABLE):
        scripted.parse_extended(reply)


HUGE = (b"*1000000\r\n", b">99999999\r\n", b"~4294967295\r\n", b"%1000000\r\n", b":1\r\n*2\r\n*99999999\r\n")


@pytest.mark.parametrize("header", HUGE)
def test_no_header_takes_memory_for_members_that_have_not_come(header: bytes) -> None:
    """Twelve bytes of a push of 99,999,999 members took 760 MB; wherever they are cut, they take none."""

    async def feed(cut: int) -> list[str]:
        ended: list[str] = []
        wire = Wire(on_push=ended.append, on_end=lambda _, cause: ended.append(cause), reply_timeout_s=60)
        wire.connection_made(Socket())
        wire.send(lambda _: None, "PING")
        wire.send(lambda _: None, "PING")
        wire.data_received(header[:cut])
        wire.data_received(header[cut:])
        return ended

    for cut in range(len(header)):
        tracemalloc.start()
        assert asyncio.run(feed(cut)) == ["a reply that is too long: this is no server of locks"]
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < 1_000_000


def test_a_reply_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockguard._nodes.wire.REPLY_BYTES_MAX", 1000)

    async def feed() -> list[str]:
        ended: list[str] = []
        wire = Wire(on_push=lambda _: None, on_end=lambda _, cause: ended.append(cause), reply_timeout_s=60)
        wire.connection_made(Socket())
        for _ in range(100):
            wire.send(lambda _: None, "PING")
            wire.data_received(b"$20\r\n" + b"a" * 20 + b"\r\n")  # those that end count for nothing
        assert not ended
        wire.send(lambda _: None, "PING")
        wire.data_received(b"$2000000000\r\n")
        for _ in range(20):
            wire.data_received(b"a" * 100)
        return ended

    assert asyncio.run(feed()) == ["a reply that is too long: this is no server of locks"]
