"""A release that a server refuses for a moment is owed to it, and made when that has passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hiredis
import pytest

from lockguard._clock import SYSTEM_CLOCK, SystemClock
from lockguard._lease import GrantId
from lockguard._nodes.address import Address
from lockguard._scripts import RELEASE
from lockguard.ports import NotExecuted
from tests.unit.nodes_by_hand import (
    APT,
    MINE,
    Link,
    cluster,
    member,
    request,
    sentinel,
    server,
)

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
