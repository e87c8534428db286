"""What acquire.lua grants, whom it has wait, and what it takes for closed."""

from __future__ import annotations

import pytest

from tests.integration.scripts_on_a_server import (
    FLOOR,
    INBOXES,
    LINES,
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


# --- acquire: what is granted ---


def test_asking_again_renews_and_tells_the_same_token_and_the_seal(server: Server) -> None:
    _, token, *_ = server.acquire(A, ttl=5_000)
    server.client.set(SEAL, "fence 7")
    assert server.acquire(A, ttl=TTL) == [1, str(token).encode(), 0, b"fence 7", b""]
    assert server.client.pttl(LOCK) > 50_000


def test_a_grant_ends_by_itself_after_its_ttl(server: Server) -> None:
    server.acquire(A, ttl=5_000)
    assert 4_000 < server.client.pttl(LOCK) <= 5_000


def test_a_token_is_higher_than_any_before_though_the_clock_is_behind(server: Server) -> None:
    ahead = server.now_us + YEAR_US
    server.client.set(FLOOR, ahead)
    assert server.acquire(A)[1] == ahead + 1
    server.release(A)
    assert server.acquire(B)[1] == ahead + 2
    assert int(server.client.get(FLOOR)) == ahead + 2


def test_a_token_is_not_below_what_the_nodes_were_asked_to_give(server: Server) -> None:
    proposal = server.now_us + YEAR_US
    assert server.acquire(A, proposal=proposal)[1] == proposal


@pytest.mark.parametrize("floor", ["9e18", "1e400", "nan", "-5", "text", "1.5"])
def test_a_floor_that_no_lock_can_have_written_is_ignored(server: Server, floor: str) -> None:
    server.client.set(FLOOR, floor)
    before = server.now_us
    assert before <= server.acquire(A)[1] <= server.now_us


def test_a_granted_waiter_is_in_no_queue_and_has_no_reservation(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.release(A)
    assert server.reserved_for() == B
    assert server.queue(B)[0] == 1
    assert server.reserved_for() == ""
    assert server.waiting() == []
    assert server.client.hget(WAITING, B) is None


def test_a_waiter_that_asks_when_the_lock_is_free_leaves_the_queue(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.client.delete(LOCK)
    assert server.queue(B)[0] == 1
    assert server.waiting() == []
    assert server.client.hget(WAITING, B) is None


def test_a_process_that_was_granted_is_alive_for_its_other_waiters(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C)
    server.release(A)
    assert server.queue(B)[0] == 1
    server.release(B, inbox="in:1")
    assert server.reserved_for() == C


# --- acquire: who waits ---


def test_who_gives_no_inbox_is_not_queued(server: Server) -> None:
    server.acquire(A)
    assert server.acquire(B)[6:8] == [b"0", 0]
    assert not server.client.exists(QUEUE, INBOXES, WAITING)


def test_a_waiter_keeps_its_ticket_and_place_however_often_it_asks(server: Server) -> None:
    server.acquire(A)
    first = server.queue(B)
    server.queue(C)
    again = server.queue(B, ticket=first[6].decode())
    assert again[6:9] == [first[6], 0, 0]
    assert server.waiting() == [B, C]


def test_a_waiter_that_asks_without_its_ticket_keeps_its_place(server: Server) -> None:
    server.acquire(A)
    first = server.queue(B)
    server.queue(C)
    assert server.queue(B)[6] == first[6]
    assert server.waiting() == [B, C]


def test_a_waiter_whose_place_was_lost_gets_it_back_and_is_told(server: Server) -> None:
    server.acquire(A)
    ticket = server.queue(B)[6]
    server.client.delete(QUEUE)
    server.queue(C)
    assert server.queue(B, ticket=ticket.decode())[6:9] == [ticket, 1, 0]
    assert server.waiting() == [B, C]


def test_tickets_grow_though_the_clock_was_set_back(server: Server) -> None:
    server.acquire(A)
    ahead = server.now_us + YEAR_US
    server.client.zadd(QUEUE, {f"{B} in:1": ahead})
    assert int(server.queue(C)[6]) == ahead + 1


def test_a_queue_that_is_full_takes_nobody(server: Server) -> None:
    server.acquire(A)
    server.client.zadd(QUEUE, {f"{number:032x} in:9": number for number in range(10_000)})
    assert server.queue(B)[0] == 2
    assert server.client.zcard(QUEUE) == 10_000


def test_the_keys_of_a_queue_end_by_themselves(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    for key in (QUEUE, INBOXES, WAITING):
        assert 0 < server.client.pttl(key) <= 60_000


def test_a_lock_that_would_outlast_its_ttl_after_the_clock_was_set_back_is_shortened(server: Server) -> None:
    server.acquire(A)
    server.client.pexpire(LOCK, 86_400_000)
    assert server.acquire(B)[5] == TTL
    assert server.client.pttl(LOCK) <= TTL


# --- acquire: a free lock that others have a claim to ---


def test_a_free_lock_goes_to_the_first_waiter_and_not_to_a_newcomer(server: Server, told: Told) -> None:
    server.acquire(A)
    server.queue(B)
    server.client.delete(LOCK)
    assert server.acquire(C)[0] == 0
    assert server.reserved_for() == B
    assert told() == [B.encode()]
    assert server.queue(B)[0] == 1


def test_a_reserved_lock_is_busy_for_everybody_else(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.release(A)
    busy = server.acquire(C)
    assert busy[0] == 0
    assert 0 < busy[5] <= 500
    assert 0 < server.client.pttl(NEXT) <= 500


def test_a_process_that_was_silent_for_long_is_passed_over(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C, "in:2")
    server.client.zadd(INBOXES, {"in:1": server.now_us // 1000 - 2_600})
    server.client.delete(LOCK)
    assert server.acquire("d" * 32)[0] == 0
    assert server.reserved_for() == C


def test_a_process_that_was_silent_for_less_is_woken(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.client.zadd(INBOXES, {"in:1": server.now_us // 1000 - 2_000})
    server.release(A)
    assert server.reserved_for() == B


def test_who_had_a_place_before_the_first_is_granted_at_once(server: Server) -> None:
    server.acquire(A)
    ticket = server.queue(B)[6].decode()
    server.queue(C, "in:2")
    server.client.zrem(QUEUE, f"{B} in:1")
    server.client.delete(LOCK)
    assert server.queue(B, ticket=ticket)[0] == 1


def test_a_free_queue_of_one_s_own_is_no_claim(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.client.delete(LOCK)
    assert server.queue(B)[0] == 1


# --- acquire: what closes a resource ---


def test_a_lock_delay_lasts_beyond_the_ttl(server: Server) -> None:
    server.acquire(A, closing="5000")
    assert TTL + 4_000 < server.client.pttl(TENURE) <= TTL + 5_000


@pytest.mark.parametrize(
    ("closing", "lasts"), [("0 90000", 90_000), ("5000 1000", 65_000), ("5000 90000", 90_000)]
)
def test_of_a_lock_delay_and_at_least_the_longer_one_holds(server: Server, closing: str, lasts: int) -> None:
    server.acquire(A, closing=closing)
    assert lasts - 1_000 < server.client.pttl(TENURE) <= lasts


@pytest.mark.parametrize(
    ("closing", "left", "lasts"),
    [
        ("5000", 20_000, TTL + 5_000),
        ("5000 90000", 80_000, 80_000),
        ("5000 90000", 20_000, TTL + 5_000),
        ("0 90000", 20_000, 20_000),
    ],
)
def test_a_lock_delay_begins_at_the_end_of_a_lease_that_was_asked_for_again(
    server: Server, closing: str, left: int, lasts: int
) -> None:
    """The answer to the first request was late: the second one starts the ttl again."""
    server.acquire(A, closing=closing)
    server.client.pexpire(TENURE, left)
    assert server.acquire(A, closing=closing)[2] == 0
    assert lasts - 1_000 < server.client.pttl(TENURE) <= lasts


def test_a_closed_resource_is_busy_until_it_opens(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.client.delete(LOCK)
    busy = server.acquire(B, closing="5000")
    assert busy[0] == 0
    assert 0 < busy[5] <= 5_000


# --- acquire: the history ---


def test_a_history_keeps_as_many_grants_as_it_is_told(server: Server) -> None:
    for _ in range(12):
        server.acquire(A, history=3)
        server.release(A)
    assert len(server.lines()) in (6, 7)  # a grant and its end are two, and some are spare
    assert server.lines().count("granted") >= 3
    assert 0 < server.client.pttl(LINES) <= 604_800_000


def test_a_history_that_nobody_keeps_any_more_goes(server: Server) -> None:
    server.acquire(A, history=3)
    server.release(A)
    server.acquire(B, history=0)
    assert not server.client.exists(LINES)
