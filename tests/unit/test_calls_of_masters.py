"""What becomes of calls whose master changes: behind Sentinels, and in a cluster."""

from __future__ import annotations

import asyncio

import hiredis
import pytest

from lockguard._nodes.cluster import seeds_of
from lockguard._nodes.releases import KEPT_S, Releases
from lockguard._nodes.sentinel import _State
from lockguard._nodes.wire import Cut, NotSent
from lockguard._scripts import RELEASE
from lockguard.ports import Done
from tests.unit.nodes_by_hand import (
    APT,
    MINE,
    Link,
    cluster,
    request,
    sentinel,
)

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
