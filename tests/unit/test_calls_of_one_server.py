"""What becomes of calls of one server, and of one of several that decide together, whatever it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from lockguard._lease import Grant, Token
from lockguard._nodes.wire import Cut, NotSent
from lockguard._scripts import RELEASE
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.ports import (
    Granted,
    MaybeExecuted,
    NotExecuted,
)
from tests.unit.nodes_by_hand import (
    APT,
    MINE,
    NOSCRIPT,
    args_of,
    member,
    request,
    server,
)


async def test_a_caller_that_does_not_wait_gives_no_inbox_and_one_that_does_gives_its_ticket() -> None:
    node, link = server()
    node.acquire(request(queue=False))
    node.acquire(request(ticket=11))
    assert args_of(link.sent[0])[3:5] == ["", "0"]
    assert args_of(link.sent[1])[3:5] == ["in", "11"]


async def test_a_release_tells_that_the_lease_was_lost_its_seal_and_at_least() -> None:
    node, link = server()
    node.release(APT, MINE, lost=True, seal="f 3", at_least_ms=9)
    node.release(APT, MINE, lost=True, seal="f 3")
    node.extend(APT, MINE, 9_000, seal="f 3")
    assert args_of(link.sent[0]) == ["in", "1", "f 3", "9"]
    assert args_of(link.sent[1]) == ["in", "1", "f 3"]
    assert args_of(link.sent[2]) == ["9000", "f 3"]


async def test_a_break_of_a_free_lock_names_no_grant_but_that_there_is_none() -> None:
    node, link = server()
    for grant in (None, "", str(MINE)):
        node.break_(APT, reason="why", token=Token(0), grant=grant)
    last = [sent[1].decode().split("\r\n")[2::2][-1] for sent in link.sent]
    assert last == ["", "none", str(MINE)]


async def test_a_script_that_the_server_forgot_is_sent_as_text_unless_nobody_waits() -> None:
    node, link = server()
    waited = node.acquire(request())
    link.sent[0][0](NOSCRIPT)
    assert link.words()[1:] == ["EVAL"]
    cancelled = node.acquire(request())
    cancelled.cancel()
    link.sent[2][0](NOSCRIPT)
    assert len(link.sent) == 3
    released = node.release(APT, MINE)
    released.cancel()
    link.sent[3][0](NOSCRIPT)
    assert link.words()[4:] == ["EVAL"]
    assert not waited.done()


async def test_a_lost_call_that_does_no_harm_is_sent_once_more_behind_the_releases() -> None:
    node, link = server()
    asked, given_up = node.acquire(request()), node.acquire(request())
    broken = node.break_(APT, reason="", token=0)
    released = node.release(APT, MINE)
    for sent in list(link.sent):
        sent[0](Cut("reset"))
    given_up.cancel()
    assert isinstance(await broken, MaybeExecuted)
    assert isinstance(await released, MaybeExecuted)
    woken: list[Any] = []
    node.on_wake(woken.append)
    before = len(link.sent)
    node._connected(again=True)
    assert link.words()[before:] == ["EVALSHA", "EVAL"]
    assert RELEASE.sha.encode() in link.sent[before][1]
    assert woken == [None]
    link.sent[-1][0](Cut("reset again"))
    assert isinstance(await asked, MaybeExecuted)


async def test_lost_calls_are_answered_when_the_server_stays_away() -> None:
    node, link = server()
    asked = node.acquire(request())
    link.sent[0][0](Cut("reset"))
    assert not asked.done()
    node._give_up()
    assert isinstance(await asked, MaybeExecuted)


async def test_a_call_that_never_left_was_not_executed() -> None:
    node, link = server()
    asked = node.acquire(request())
    link.sent[0][0](NotSent("not connected"))
    assert isinstance(await asked, NotExecuted)


async def test_a_server_that_is_the_master_no_more_is_left() -> None:
    node, link = server()
    node.acquire(request())
    link.sent[0][0](hiredis.ReplyError("READONLY You can't write against a read only replica."))
    assert link.dropped


@pytest.mark.parametrize("reply", [[1], [1, b"x", 0, b""], 7, [0, b"h"], None])
async def test_a_reply_that_cannot_be_read_is_unknown_and_raises_nothing(reply: Any) -> None:
    node, link = server()
    asked = node.acquire(request())
    link.sent[0][0](reply)
    assert isinstance(await asked, MaybeExecuted)


@pytest.mark.parametrize(
    ("have_it", "granted"), [(0, False), (1, False), (2, True), (hiredis.ReplyError("ERR"), False)]
)
async def test_a_grant_counts_once_enough_replicas_have_it(have_it: Any, granted: bool) -> None:
    node, link = server(min_replicas=2)
    asked = node.acquire(request())
    link.sent[0][0]([1, 7, 5, b"", b""])
    await asyncio.sleep(0)
    assert link.sent[1][1:] == ("WAIT", 2, 1_000)
    assert not asked.done()
    link.sent[1][0](have_it)
    assert isinstance(await asked, Granted if granted else MaybeExecuted)


class LoggingIn:
    """A wire on which a server answers INFO, and how many decide together."""

    open = True

    def __init__(self, info: bytes | Exception, nodes: bytes | Exception) -> None:
        self._replies = [info, nodes]

    def send(self, on_reply: Callable[[Any], None], *_: Any, **__: Any) -> None:
        on_reply(self._replies.pop(0))


INFO = b"redis_version:8.0.0\r\nredis_mode:standalone\r\nrun_id:" + b"1" * 40 + b"\r\nrole:master\r\n"


async def test_one_of_several_servers_does_not_decide_alone() -> None:
    node, _ = server()
    wire: Any = LoggingIn(INFO, b"3")
    with pytest.raises(ConfigurationError, match="one of the 3 servers"):
        await node._examine(wire, node.address)


@pytest.mark.parametrize(
    ("info", "nodes"),
    [
        (hiredis.ReplyError("NOPERM info"), hiredis.ReplyError("LOADING Redis is loading the dataset")),
        (hiredis.ReplyError("NOPERM info"), hiredis.ReplyError("BUSY Redis is busy")),
        (hiredis.ReplyError("BUSY Redis is busy"), b"3"),
        (INFO, hiredis.ReplyError("BUSY Redis is busy")),
    ],
)
async def test_a_server_that_cannot_say_now_whether_it_decides_alone_is_refused(
    info: Any, nodes: Any
) -> None:
    """Nobody asks again on that connection: one of several would give the lock by itself."""
    node, _ = server()
    wire: Any = LoggingIn(info, nodes)
    with pytest.raises(NodeRefused, match="is not ready"):
        await node._examine(wire, node.address)


async def test_a_key_of_several_servers_without_an_owner_in_a_cluster_is_no_matter() -> None:
    node, _ = server()
    wire: Any = LoggingIn(INFO, hiredis.ReplyError("CLUSTERDOWN Hash slot not served"))
    await node._examine(wire, node.address)


# --- one of several servers ---


async def test_a_member_is_asked_with_the_proposal_and_says_when_it_has_to_be_admitted() -> None:
    node, link, told = member()
    answer = asyncio.get_running_loop().create_future()
    node.acquire_into(request(), 77, answer)
    assert args_of(link.sent[0])[7:] == ["77", "", "3"]
    link.sent[0][0]([3, 500])
    assert told == []
    node.acquire_into(request(), 77, asyncio.get_running_loop().create_future())
    link.sent[1][0]([3, 0])
    assert told == [True]


async def test_a_member_is_admitted_when_it_came_back_or_got_a_lease_back() -> None:
    node, link, told = member()
    node._connected(again=False)
    assert told == []
    node._connected(again=True)
    assert told == [True]
    granted = Grant(APT, MINE, Token(7), "h", "o", 9_000)
    rejoining = node.rejoin(granted, age_ms=5)
    link.sent[-1][0](2)
    assert (await rejoining).found
    assert told == [True, True]
    node.rejoin(granted, age_ms=5)
    link.sent[-1][0](1)
    assert told == [True, True]


async def test_a_look_at_a_member_admits_it_not() -> None:
    node, link, _ = member()
    node.membership()
    assert link.sent[0][1].decode().split("\r\n")[2::2][-5:-1] == ["-1", "0", "", ""]


async def test_a_copy_of_a_server_is_not_independent_of_it() -> None:
    node, _, _ = member()
    info = b"redis_version:8.0.0\r\nrun_id:" + b"1" * 40 + b"\r\nmaster_replid:" + b"2" * 40 + b"\r\n"
    node._facts = type(node._facts).parse(info)
    assert node.server_ids == {"1" * 40, "2" * 40}
