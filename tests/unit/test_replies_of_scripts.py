"""What a reply of a script means."""

from __future__ import annotations

from lockguard._lease import Token
from lockguard._namespace import NAMESPACE, Namespace
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
from lockguard.ports import (
    Busy,
    Done,
    Extended,
    Granted,
    Quarantined,
)
from tests.unit.nodes_by_hand import (
    APT,
    request,
)


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
