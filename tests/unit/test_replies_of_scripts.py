"""What a reply of a script means, and what becomes of commands and calls when a connection ends or lags.

Sockets and servers are plain objects here: a test says which byte arrives when, and what was sent before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from lockguard._clock import SYSTEM_CLOCK, SystemClock
from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard._namespace import NAMESPACE, Namespace
from lockguard._nodes.address import Address
from lockguard._nodes.cluster import ClusterNode, seeds_of
from lockguard._nodes.connection import Connection
from lockguard._nodes.member import MemberNode
from lockguard._nodes.releases import KEPT_S, Releases
from lockguard._nodes.scripted import (
    closing_of,
    keys_of,
    parse_acquired,
    parse_asked,
    parse_broken,
    parse_done,
    parse_done_again,
    parse_extended,
    parse_membership,
)
from lockguard._nodes.sentinel import SentinelNode, SentinelUrl, _State
from lockguard._nodes.standalone import StandaloneNode
from lockguard._nodes.wire import PENDING_MAX, Cut, NotSent, Wire
from lockguard._scripts import RELEASE
from lockguard.errors import ConfigurationError, NodeRefused
from lockguard.ports import (
    AcquireRequest,
    Busy,
    Done,
    Extended,
    Granted,
    MaybeExecuted,
    NotExecuted,
    Quarantined,
)

APT = Resource("binance:APTUSDT")
MINE = GrantId("a" * 32)
NOSCRIPT = hiredis.ReplyError("NOSCRIPT No matching script")


def request(**more: Any) -> AcquireRequest:
    return AcquireRequest(APT, MINE, "h", "o", 9_000, **{"queue": True, **more})


# --- what a reply means ---


def test_only_a_grant_is_a_grant() -> None:
    assert parse_acquired([1, b"7", 5, b"f 3", b"ad"]) == Granted(Token(7), 5, "f 3", "ad")
    assert parse_acquired([1, 7, 5, b"", b""]) == Granted(Token(7), 5, "")
    assert parse_acquired([3, 250]) == Quarantined(250)
    busy = parse_acquired([0, b"h", b"o", b"7", 5, 900, b"11", 1, 3])
    assert busy == Busy("h", "o", Token(7), 5, 900, ticket=11, requeued=True, ahead=3)
    assert parse_acquired([0, b"", b"", b"0", 0, -2, b"0", 0]).retry_after_ms == 0  # type: ignore[union-attr]
    full = parse_acquired([2, b"h", b"o", b"7", 5, 900])
    assert isinstance(full, Busy)
    assert full.queue_full
    assert not busy.queue_full


def test_a_renewal_is_held_wanted_or_refused() -> None:
    assert [parse_extended(reply) for reply in (0, 1, 2)] == [
        Extended(held=False),
        Extended(held=True),
        Extended(held=True, wanted=True),
    ]


def test_what_a_release_a_break_and_a_request_found() -> None:
    assert [parse_done(reply).found for reply in (0, 1, 2)] == [False, True, False]
    assert parse_done_again(0) == Done(found=False, repeated=True)
    assert parse_asked([b"a", b"h", b"7", 0]).found
    assert not parse_asked([b"b", b"h", b"7", 1]).found
    assert not parse_asked([b"", b"", b"7", 0]).found
    assert parse_broken([b"b", b"h", b"7", 1]).kept
    assert not parse_broken([b"b", b"h", b"7", 0]).kept


def test_a_node_of_another_run_is_known_and_no_member() -> None:
    replies = ([0, 0, 0, 0, b"r x", b""], [1, 0, 0, 0, b"", b""], [2, 5, 9, 3, b"", b"a"])
    assert [(one.known, one.member, one.loss) for one in map(parse_membership, replies)] == [
        (False, False, "r x"),
        (True, False, ""),
        (True, True, ""),
    ]


def test_at_least_goes_with_the_lock_delay() -> None:
    assert closing_of(request(lock_delay_ms=5)) == 5
    assert closing_of(request(lock_delay_ms=5, at_least_ms=9)) == "5 9"


def test_two_namespaces_have_no_key_in_common() -> None:
    ours, theirs = keys_of(NAMESPACE, APT), keys_of(Namespace("other"), APT)
    assert not set(ours.acquire) & set(theirs.acquire)


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


# --- one server ---


class Link:
    """A connection that keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.ready = True
        self.connected_before = True
        self.comes_back = True
        self.dropped: list[str] = []
        self.address = Address.parse("redis://127.0.0.1:1/0")

    def send_packed(self, on_reply: Any, command: bytes, *, lone: bool = False) -> None:
        self.sent.append((on_reply, command))

    def send(self, on_reply: Any, *command: Any, lone: bool = False) -> None:
        self.sent.append((on_reply, *command))

    def note_ttl(self, ttl_ms: int) -> None: ...

    def allow_silence(self, seconds: float) -> None: ...

    def drop(self, cause: str) -> None:
        self.dropped.append(cause)

    def words(self) -> list[str]:
        """The first word of each command that was sent."""
        return [
            sent[1].split(b"\r\n")[2].decode() if isinstance(sent[1], bytes) else str(sent[1])
            for sent in self.sent
        ]


def server(kind: type[Any] = StandaloneNode, **options: Any) -> tuple[Any, Link]:
    node = kind(Address.parse("redis://127.0.0.1:1/0"), inbox="in", **options)
    node._connection = link = Link()
    return node, link


def args_of(sent: tuple[Any, ...]) -> list[str]:
    """The arguments of a packed call, behind the grant."""
    words = sent[1].decode().split("\r\n")[2::2]
    return list(words[words.index(str(MINE)) + 1 :])


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


PASSING = [
    "BUSY Redis is busy running a script.",
    "READONLY You can't write against a read only replica.",
    "LOADING Redis is loading the dataset in memory",
    "MASTERDOWN Link with MASTER is down",
    "MISCONF Redis is configured to save RDB snapshots",
    "CLUSTERDOWN The cluster is down",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOREPLICAS Not enough good replicas to write.",
    "ERR Error running script (call to f_1): @user_script:1: -OOM command not allowed",
]


def one_shard() -> tuple[Any, Link]:
    node, _ = cluster()
    shard = node._new_shard(Address.parse("redis://first:1/0"))
    shard._connection = link = Link()
    node._closed = True  # it sends nothing on by itself: what it gives up, the shard owes
    return shard, link


def watched() -> tuple[Any, Link]:
    node = sentinel()
    node._connection = link = Link()
    return node, link


def of_several() -> tuple[Any, Link]:
    return member()[:2]


@pytest.fixture
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause ends by itself: on a busy machine two would be over before the test goes on."""
    monkeypatch.setattr("lockguard._nodes.standalone._OWED_PAUSE_S", 3600)


def end_pause(node: Any) -> None:
    """Have the node try once more, if it would."""
    if node._paying is not None:
        node._paying.cancel()
        node._pay_one()


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("kind", [server, one_shard, watched, of_several])
@pytest.mark.parametrize("fault", PASSING)
async def test_a_release_that_is_refused_for_a_moment_is_made_when_that_has_passed(
    fault: str, kind: Callable[[], tuple[Any, Link]]
) -> None:
    """S8; its caller waits no longer for it, and one release tries for all."""
    node, link = kind()
    grants = [GrantId(letter * 32) for letter in "abc"]
    released = [node.release(APT, grant) for grant in grants]
    for sent in link.sent[:3]:
        sent[0](hiredis.ReplyError(fault))
    assert [type(await answer) for answer in released] == [NotExecuted] * 3
    for tries in (1, 2):
        end_pause(node)
        assert len(link.sent) == 3 + tries
        if tries == 1:
            link.sent[-1][0](hiredis.ReplyError(fault))
    link.sent[-1][0](1)
    assert len(link.sent) == 7
    again = [next(grant for grant in grants if grant.encode() in sent[1]) for sent in link.sent[4:]]
    assert sorted(again) == grants
    for sent in link.sent[5:]:
        sent[0](0)
    end_pause(node)
    assert len(link.sent) == 7


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("kind", [server, one_shard, watched, of_several])
async def test_a_release_that_is_refused_for_good_or_could_free_nothing_more_is_not_repeated(
    kind: Callable[[], tuple[Any, Link]], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, link = kind()
    for fault in ("NOPERM this user has no permissions", "ERR Error running script: something else"):
        node.release(APT, MINE)
        link.sent[-1][0](hiredis.ReplyError(fault))
    assert not node._owed_releases
    node.break_(APT, reason="", token=0)
    link.sent[-1][0](hiredis.ReplyError(PASSING[0]))
    assert not node._owed_releases
    now = SYSTEM_CLOCK.now()
    node.extend(APT, MINE, 90_000)
    node.release(APT, MINE)
    link.sent[-1][0](hiredis.ReplyError(PASSING[0]))
    for later_s, owed in ((89, 1), (91, 0)):
        end_pause(node)
        monkeypatch.setattr(SystemClock, "now", lambda _, then=now + later_s: then)
        link.sent[-1][0](hiredis.ReplyError(PASSING[0]))
        assert len(node._owed_releases) == owed


@pytest.mark.usefixtures("by_hand")
async def test_a_release_that_is_refused_for_good_keeps_no_other_from_being_sent_again() -> None:
    node, link = server()
    for _ in range(2):
        node.release(APT, MINE)
    for sent in link.sent[:2]:
        sent[0](hiredis.ReplyError(PASSING[0]))
    end_pause(node)
    link.sent[2][0](hiredis.ReplyError("NOPERM this user has no permissions"))
    end_pause(node)
    assert len(link.sent) == 4


@pytest.mark.usefixtures("by_hand")
@pytest.mark.parametrize("refused_first", [True, False])
async def test_an_undo_that_was_refused_for_a_moment_takes_no_later_vote_away(refused_first: bool) -> None:
    """S1: a caller whose votes were split asks again with the same grant; another's undo is made."""
    node, link, _ = member()
    node.release(APT, MINE)
    undo, other = link.sent[0][0], GrantId("b" * 32)
    if refused_first:
        undo(hiredis.ReplyError(PASSING[0]))
    node.acquire(request())
    if not refused_first:
        undo(hiredis.ReplyError(PASSING[0]))
    node.release(APT, other)
    link.sent[-1][0](hiredis.ReplyError(PASSING[0]))
    end_pause(node)
    assert other.encode() in link.sent[3][1]
    link.sent[3][0](1)
    node._connected(again=True)
    assert not any(RELEASE.sha.encode() in sent[1] and MINE.encode() in sent[1] for sent in link.sent[4:])


async def test_an_undo_whose_script_was_flushed_takes_no_later_vote_away() -> None:
    """The question behind it was asked by the time that the server says so."""
    node, link, _ = member()
    undone = node.release(APT, MINE)
    node.acquire(request())
    sent = len(link.sent)
    link.sent[0][0](hiredis.ReplyError("NOSCRIPT No matching script."))
    assert len(link.sent) == sent
    assert isinstance(await undone, NotExecuted)
    node.release(APT, MINE)
    link.sent[-1][0](hiredis.ReplyError("NOSCRIPT No matching script."))
    assert link.sent[-1][1] == "EVAL"


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


def member() -> tuple[Any, Link, list[bool]]:
    node, link = server(MemberNode, nodes=3)
    told: list[bool] = []
    node.on_admission_needed(lambda: told.append(True))
    return node, link, told


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
    rejoining = node.rejoin(granted)
    link.sent[-1][0](2)
    assert (await rejoining).found
    assert told == [True, True]
    node.rejoin(granted)
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


# --- releases that a failover may have lost ---


async def test_only_releases_of_late_are_sent_to_where_their_lock_is_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    releases = Releases()
    loop = asyncio.get_running_loop()
    releases.note(("a", 1), ("old",), ())
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now + KEPT_S + 1)
    releases.note(("a", 1), ("moved",), ())
    releases.note(("b", 1), ("stayed",), ())
    moved = releases.moved(lambda _: ("b", 1))
    assert [release.keys for release in moved] == [("moved",)]
    assert releases.moved(lambda _: ("b", 1)) == []


# --- a service that Sentinels watch ---


def sentinel(*states: Any) -> Any:
    node = SentinelNode(SentinelUrl.parse("redis+sentinel://a:1,b:1,c:1/main"), inbox="in")

    class Asked:
        def __init__(self, state: Any) -> None:
            self._state = state

        def ask(self) -> asyncio.Future[Any]:
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            if self._state is not None:
                future.set_result(self._state)
            return future

    anything: Any = node
    anything._sentinels = [Asked(state) for state in states]
    return anything


async def test_the_best_informed_sentinel_is_believed_and_a_slow_one_not_waited_for() -> None:
    old, new = _State(3, False, "old", 1), _State(4, False, "new", 2)
    promoting = _State(4, True, "promoted", 3)
    async with asyncio.timeout(5):
        assert (await sentinel(old, new, None)._locate()).host == "new"
        assert (await sentinel(new, old, promoting)._locate()).host == "promoted"
        assert (await sentinel("no answer", old, None)._locate()).host == "old"


async def test_a_release_that_the_old_master_answered_is_made_on_the_new_one() -> None:
    node = sentinel()
    node._connection = link = Link()
    node._said_to = ("127.0.0.1", 9)
    node.release(APT, MINE)
    link.sent[0][0](1)
    node._connected(again=True)
    assert link.words()[1:] == ["EVALSHA"]
    assert RELEASE.sha.encode() in link.sent[1][1]


# --- a cluster ---


class Shard:
    """One server of a cluster, which keeps what it was given."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = Address.parse(f"redis://{name}:1/0")
        self.ready = True
        self.calls: list[Any] = []
        self.taken: list[bool] = []
        self.heard: list[str] = []

    def send_call(self, call: Any, *, lone: bool = False) -> None:
        self.calls.append(call)

    def take_over(self, call: Any, *, asking: bool = False) -> None:
        call.node = self
        self.calls.append(call)
        self.taken.append(asking)

    def listen(self, channel: str) -> None:
        self.heard.append(channel)


class Slots:
    """A slot map of two servers; all slots are on the first."""

    known = True
    unreached = ""

    def __init__(self) -> None:
        self.first, self.second = Shard("first"), Shard("second")
        self.refreshed = 0
        self.heard = 0
        self.owner = ("first", 1)

    def shard_for(self, key: str) -> Shard:
        return self.first

    def shard_at(self, endpoint: Any) -> Shard:
        return self.first if endpoint[0] == "first" else self.second

    def endpoint_of(self, key: str) -> Any:
        return self.owner

    def endpoint_in(self, told: str, *, by: Any) -> Any:
        return (told.partition(":")[0], 1)

    def reach_soon(self, shard: Any) -> None: ...

    def moved(self, slot: int, endpoint: Any) -> None: ...

    def refresh_soon(self, *, heard: bool = False) -> None:
        self.refreshed += 1
        self.heard += heard


def cluster() -> tuple[Any, Slots]:
    node: Any = ClusterNode(seeds_of("redis+cluster://first:1"), inbox="in")
    slots = Slots()
    node._map = slots
    return node, slots


@pytest.mark.parametrize(("kind", "asking"), [("MOVED", False), ("ASK", True)])
async def test_a_slot_that_moved_or_moves_is_followed_a_bounded_number_of_times(
    kind: str, asking: bool
) -> None:
    node, slots = cluster()
    node.acquire(request())
    (call,) = slots.first.calls
    fault = hiredis.ReplyError(f"{kind} 77 second:1")
    for _ in range(3):
        assert node._redirected(fault, call)
    assert slots.second.taken[0] is asking
    for _ in range(10):
        node._redirected(fault, call)
    assert len(slots.second.taken) < 8
    for timer in (*node._waiting.values(), *node._bounds.values()):
        timer.cancel()


@pytest.mark.parametrize("fault", ["TRYAGAIN x", "CLUSTERDOWN x", "LOADING x", "MASTERDOWN x"])
async def test_a_slot_without_an_owner_for_a_while_is_tried_again(fault: str) -> None:
    node, slots = cluster()
    asked = node.acquire(request())
    assert node._redirected(hiredis.ReplyError(fault), slots.first.calls[0])
    assert slots.refreshed == 1
    assert not asked.done()
    for timer in (*node._waiting.values(), *node._bounds.values()):
        timer.cancel()


@pytest.mark.parametrize(
    "fault", [NotSent("x"), Cut("x"), hiredis.ReplyError("CLUSTERDOWN x"), hiredis.ReplyError("TRYAGAIN x")]
)
async def test_a_check_is_not_tried_again_while_nobody_serves_its_slot(fault: Exception) -> None:
    """A guard asks for all its locks every 0.8 s: what nobody can answer must not pile up."""
    node, slots = cluster()
    node.still_holds(APT, MINE)
    assert not node._redirected(fault, slots.first.calls[0])
    assert not node._waiting
    assert slots.refreshed == 1


async def test_a_shard_that_is_back_is_news_about_the_map_and_one_that_is_tried_is_none() -> None:
    """It may have come back as a replica; a shard that stays away is tried again, and asks then."""
    node, slots = cluster()
    await node._located(seeds_of("redis+cluster://first:1")[0])
    assert (slots.refreshed, slots.heard) == (1, 0)
    node._woken(None)
    assert (slots.refreshed, slots.heard) == (2, 1)
    node._woken(MINE)
    assert (slots.refreshed, slots.heard) == (2, 1)


async def test_a_waiter_in_a_cluster_listens_where_its_lock_is() -> None:
    node, slots = cluster()
    node.acquire(request())
    slots.first.calls[0].decode([0, b"h", b"o", b"7", 5, 900, b"11", 0])
    assert slots.first.heard == ["in:{binance:APTUSDT}"]


async def test_a_release_that_a_former_master_answered_is_made_again_where_the_lock_is() -> None:
    node, slots = cluster()
    released = node.release(APT, MINE)
    slots.owner = ("second", 1)
    released.set_result(Done(found=True))
    await asyncio.sleep(0)
    assert [call.script for call in node._waiting] == [RELEASE]
    for timer in node._waiting.values():
        timer.cancel()
