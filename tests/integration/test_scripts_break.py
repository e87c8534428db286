"""A break, and what looks at a lock or changes it while it is held."""

from __future__ import annotations

import pytest
import redis

from tests.integration.scripts_on_a_server import (
    FLOOR,
    INBOXES,
    LOCK,
    NEXT,
    QUEUE,
    SEAL,
    TENURE,
    TTL,
    WAITING,
    YEAR_US,
    A,
    B,
    C,
    Server,
    Told,
    server,
    told,
)

__all__ = ["server", "told"]


# --- break ---


def test_a_break_of_one_grant_leaves_another(server: Server) -> None:
    token = server.acquire(A)[1]
    assert server.break_(grant=B) == [A.encode(), b"h", str(token).encode(), 1]
    assert server.break_(grant="none")[3] == 1
    assert server.client.hget(LOCK, "grant") == A.encode()
    assert server.break_(grant=A)[3] == 0
    assert not server.client.exists(LOCK)


@pytest.mark.parametrize("higher", ["fence", "lock"])
def test_after_a_break_the_floor_is_the_higher_of_the_locks_and_the_fences(
    server: Server, higher: str
) -> None:
    token = int(server.acquire(A)[1])
    ahead = token + 60_000_000
    if higher == "lock":
        server.settle(A, ahead)
    told = server.break_(token=ahead if higher == "fence" else token)
    # No grant has the floor for its token, so a fence that is closed up to it refuses nobody who comes.
    assert int(server.client.get(FLOOR)) == int(told[2]) == (ahead if higher == "fence" else ahead + 1)
    assert int(server.acquire(B)[1]) == int(told[2]) + 1


@pytest.mark.parametrize("older", [False, True], ids=["lost", "older data"])
def test_after_a_break_the_floor_is_above_all_tokens_that_the_server_forgot(
    server: Server, *, older: bool
) -> None:
    old = int(server.acquire(C)[1])
    server.release(C)
    forgotten = int(server.acquire(A)[1])
    server.client.flushall()
    if older:
        server.client.hset(LOCK, mapping={"grant": C, "token": old, "holder": "h"})
        server.client.set(FLOOR, old)
    told = server.break_(token=old)
    assert int(server.client.get(FLOOR)) == int(told[2]) > forgotten
    assert int(server.acquire(B)[1]) > int(told[2])


def test_a_break_begins_the_lock_delay_and_wakes_nobody(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.queue(B, closing="5000")
    server.break_()
    assert 4_000 < server.client.pttl(TENURE) <= 5_000
    assert server.reserved_for() == ""


def test_a_break_without_a_delay_wakes_the_first_waiter(server: Server, told: Told) -> None:
    server.acquire(A)
    server.queue(B)
    server.break_()
    assert server.reserved_for() == B
    assert told() == [B.encode()]


@pytest.mark.parametrize("delay", [0, 5_000])
def test_a_break_does_not_wake_the_grant_that_it_breaks(server: Server, delay: int) -> None:
    """A node that had it queued and is given the lease of others (rejoin.lua) has its place still."""
    server.acquire(C, closing=delay)
    server.queue(A)
    server.queue(B, inbox="in:2")
    server.client.delete(LOCK)
    server.rejoin(A, server.now_us, closing=str(delay))
    server.break_()
    assert server.waiting() == ([B] if delay else [])
    assert server.reserved_for() == ("" if delay else B)
    assert not server.client.hexists(WAITING, A)


def test_a_break_leaves_nothing_of_the_broken_grant(server: Server) -> None:
    server.acquire(C)
    server.queue(A)
    server.client.delete(LOCK)
    server.rejoin(A, server.now_us)
    server.break_()
    assert not server.client.exists(LOCK, QUEUE, INBOXES, WAITING, NEXT)


@pytest.mark.parametrize("held", [False, True])
def test_a_break_takes_back_what_is_reserved_for_the_broken_grant(server: Server, held: bool) -> None:
    """It was woken here, and got its lease from the other nodes."""
    server.acquire(C)
    server.queue(A)
    server.queue(B, inbox="in:2")
    server.release(C)
    assert server.reserved_for() == A
    if held:
        server.rejoin(A, server.now_us)
    server.break_(grant=A)
    assert server.reserved_for() == B
    server.release(B, inbox="in:2")
    assert not server.client.exists(LOCK, QUEUE, INBOXES, WAITING, NEXT)


def test_a_break_that_expects_another_grant_leaves_a_waiter_its_reservation_and_its_place(
    server: Server,
) -> None:
    server.acquire(C)
    server.queue(A)
    server.queue(B, inbox="in:2")
    server.release(C)
    for grant in ("", "none", C):
        server.break_(grant=grant)
        assert server.reserved_for() == A
        assert server.waiting() == [B]


def test_a_break_wakes_nobody_while_the_resource_is_closed(server: Server) -> None:
    server.acquire(C, closing=60_000)
    server.queue(A)
    server.queue(B, inbox="in:2")
    server.break_()
    server.client.set(NEXT, f"{A} 7 in:1")
    server.break_(grant=A)
    assert server.reserved_for() == ""
    assert server.waiting() == [B]


def test_a_break_opens_what_at_least_would_close(server: Server) -> None:
    server.acquire(A, closing="0 90000")
    server.break_()
    assert not server.client.exists(TENURE)


def test_a_second_break_does_not_start_the_lock_delay_again(server: Server) -> None:
    server.acquire(A, closing="5000 90000")
    server.break_()
    server.client.pexpire(TENURE, 1_000)
    server.break_()
    assert server.client.pttl(TENURE) <= 1_000


def test_a_request_for_a_hand_over_is_told_once_and_the_lease_stays(server: Server) -> None:
    server.acquire(A)
    for reason in ("why", "why", "again"):
        server.break_("ask", reason=reason)
    assert server.lines().count("asked") == 2
    assert server.client.hget(LOCK, "wanted") == b"again"
    assert server.extend(A) == 2


# --- extend ---


def test_only_the_grant_that_holds_the_lock_renews_it(server: Server) -> None:
    server.acquire(A, ttl=5_000)
    assert server.extend(B) == 0
    assert server.client.pttl(LOCK) <= 5_000
    assert server.extend(A) == 1
    assert server.client.pttl(LOCK) > 50_000
    assert server.client.hget(LOCK, "renewals") == b"1"


def test_a_renewal_revives_nothing(server: Server) -> None:
    server.acquire(A)
    server.client.delete(LOCK)
    assert server.extend(A) == 0
    assert not server.client.exists(LOCK)


def test_a_renewal_carries_the_lock_delay_along(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.client.pexpire(TENURE, 20_000)
    server.extend(A)
    assert TTL + 4_000 < server.client.pttl(TENURE) <= TTL + 5_000


def test_a_renewal_does_not_shorten_at_least(server: Server) -> None:
    server.acquire(A, closing="5000 900000")
    server.extend(A)
    assert server.client.pttl(TENURE) > 890_000


def test_a_renewal_does_not_lengthen_at_least(server: Server) -> None:
    server.acquire(A, closing="0 90000")
    server.client.pexpire(TENURE, 10_000)
    server.extend(A)
    assert server.client.pttl(TENURE) <= 10_000


@pytest.mark.parametrize("by", ["extend", "release"])
def test_the_seal_is_kept_for_the_next_grant(server: Server, by: str) -> None:
    server.acquire(A)
    server.extend(A, seal="fence 7") if by == "extend" else server.release(A, seal="fence 7")
    assert server.client.get(SEAL) == b"fence 7"
    assert 0 < server.client.pttl(SEAL) <= 604_800_000
    server.extend(A)
    server.release(A)
    assert server.acquire(B)[3] == b"fence 7"


# --- inspect ---


def test_as_many_waiters_are_shown_as_are_asked_for_in_order(server: Server) -> None:
    server.acquire(A)
    for number in range(3):
        server.queue(f"{number}" * 32)
    shown = server.inspect(2)[8]
    assert [shown[0][:1], shown[5][:1]] == [b"0", b"1"]
    assert len(shown) == 10
    assert shown[3] == b"h o"


def test_a_free_lock_shows_its_last_token(server: Server) -> None:
    token = server.acquire(A)[1]
    server.release(A)
    assert server.inspect()[:2] == [b"", str(token).encode()]


def test_what_is_left_of_at_least_shrinks_while_the_lock_is_held(server: Server) -> None:
    server.acquire(A, closing="0 90000")
    server.client.hset(LOCK, "acquired_at_ms", server.now_us // 1000 - 40_000)
    assert 49_000 < server.inspect()[9] <= 50_000


# --- check ---


def test_a_check_tells_who_holds_and_who_is_wanted_and_changes_nothing(server: Server) -> None:
    assert server.check(A) == 0
    server.acquire(A)
    assert (server.check(A), server.check(B)) == (1, 0)
    server.break_("ask")
    before = server.client.dump(LOCK)
    assert (server.check(A), server.check(B)) == (2, 0)
    assert server.client.dump(LOCK) == before


# --- settle ---


def test_only_the_grant_that_holds_the_lock_settles_its_token(server: Server) -> None:
    token = server.acquire(A)[1]
    assert server.settle(B, token + 5) == 0
    assert server.client.hget(LOCK, "token") == str(token).encode()
    assert server.settle(A, token + 5) == 1
    assert server.client.hget(LOCK, "token") == str(token + 5).encode()
    assert int(server.client.get(FLOOR)) == token + 5


def test_a_settled_token_never_lowers_the_floor(server: Server) -> None:
    token = server.acquire(A)[1]
    server.client.set(FLOOR, token + 900)
    server.settle(A, token + 5)
    assert int(server.client.get(FLOOR)) == token + 900


def test_a_settled_token_replaces_a_floor_that_no_lock_can_have_written(server: Server) -> None:
    token = server.acquire(A)[1]
    server.client.set(FLOOR, "9e18")
    server.settle(A, token + 5)
    assert int(server.client.get(FLOOR)) == token + 5


def test_a_token_that_no_lock_would_issue_is_not_settled(server: Server) -> None:
    token = server.acquire(A)[1]
    with pytest.raises(redis.ResponseError, match="more than ten years ahead"):
        server.settle(A, token + 11 * YEAR_US)
    assert server.client.hget(LOCK, "token") == str(token).encode()
