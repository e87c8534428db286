"""A release, a waiter that gives up, and who is woken."""

from __future__ import annotations

import pytest

from tests.integration.scripts_on_a_server import (
    INBOXES,
    LOCK,
    NEXT,
    QUEUE,
    TENURE,
    WAITING,
    A,
    B,
    C,
    Server,
    Told,
    server,
    told,
)

__all__ = ["server", "told"]


# --- release ---


def test_only_the_grant_that_holds_the_lock_frees_it(server: Server) -> None:
    server.acquire(A)
    assert server.release(B) == 0
    assert server.client.hget(LOCK, "grant") == A.encode()
    assert server.release(A) == 1
    assert not server.client.exists(LOCK)


def test_a_release_opens_the_resource_at_once(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.release(A)
    assert not server.client.exists(TENURE)


def test_a_release_with_waiters_opens_the_resource_at_once(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.queue(B, closing="5000")
    server.release(A)
    assert not server.client.exists(TENURE)


def test_a_lease_that_was_lost_begins_its_lock_delay_at_its_release(server: Server) -> None:
    server.acquire(A, closing="5000")
    server.queue(B, closing="5000")
    server.release(A, lost=1)
    assert 4_000 < server.client.pttl(TENURE) <= 5_000
    assert server.reserved_for() == ""


@pytest.mark.parametrize("lost", [0, 1])
def test_at_least_counts_from_the_grant_and_not_from_the_release(server: Server, lost: int) -> None:
    server.acquire(A, closing="0 90000")
    server.client.hset(LOCK, "acquired_at_ms", server.now_us // 1000 - 40_000)
    server.release(A, lost=lost, at_least=90_000)
    assert 49_000 < server.client.pttl(TENURE) <= 50_000


def test_at_least_is_no_longer_than_it_is_though_the_clock_was_set_back(server: Server) -> None:
    server.acquire(A, closing="0 90000")
    server.client.hset(LOCK, "acquired_at_ms", server.now_us // 1000 + 40_000)
    server.release(A, at_least=90_000)
    assert server.client.pttl(TENURE) <= 90_000


def test_a_node_that_has_no_tenure_is_closed_all_the_same(server: Server) -> None:
    server.acquire(A, closing="0 90000")
    server.client.delete(TENURE)
    server.release(A, at_least=90_000)
    assert server.acquire(B, closing="0 90000")[0] == 0
    assert 80_000 < server.client.pttl(TENURE) <= 90_000


@pytest.mark.parametrize("lost", [0, 1])
def test_a_release_does_not_wake_the_grant_that_it_releases(server: Server, lost: int) -> None:
    """A node that had it queued and is given the lease of others (rejoin.lua) has its place still."""
    server.acquire(C)
    server.queue(A)
    server.queue(B, inbox="in:2")
    server.client.delete(LOCK)
    server.rejoin(A, server.now_us)
    server.release(A, inbox="in:1", lost=lost)
    assert server.reserved_for() == B


def test_a_release_leaves_nothing_of_a_place_of_its_own(server: Server) -> None:
    server.acquire(C)
    server.queue(A)
    server.client.delete(LOCK)
    server.rejoin(A, server.now_us)
    server.release(A, inbox="in:1")
    assert not server.client.exists(LOCK, QUEUE, INBOXES, WAITING, NEXT)


@pytest.mark.parametrize("another", [False, True])
def test_a_release_takes_back_what_is_reserved_for_the_grant_itself(server: Server, another: bool) -> None:
    """It was woken here, and was given the lease that it got from the other nodes."""
    server.acquire(C)
    server.queue(A)
    if another:
        server.queue(B, inbox="in:2")
    server.release(C)
    assert server.reserved_for() == A
    server.rejoin(A, server.now_us)
    server.release(A, inbox="in:1")
    assert server.reserved_for() == (B if another else "")


def test_a_release_leaves_another_s_reservation(server: Server) -> None:
    server.acquire(C)
    server.queue(B, inbox="in:2")
    server.release(C)
    server.rejoin(A, server.now_us)
    server.release(A)
    assert server.reserved_for() == B


def test_a_release_that_keeps_the_resource_closed_leaves_nothing_of_who_waited(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.release(A)
    server.acquire(B, inbox="in:1")
    server.release(B, inbox="in:1", at_least=90_000)
    assert not server.client.exists(LOCK, QUEUE, INBOXES, WAITING, NEXT)


def test_a_waiter_that_gives_up_leaves_nothing(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.release(B, inbox="in:1")
    assert not server.client.exists(QUEUE, INBOXES, WAITING, NEXT)
    assert server.client.exists(LOCK)


def test_a_woken_waiter_that_gives_up_wakes_the_next_of_its_process(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C)
    server.release(A)
    server.release(B, inbox="in:1")
    assert server.reserved_for() == C


def test_a_waiter_that_gives_up_leaves_another_s_reservation(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C, "in:2")
    server.release(A)
    server.release(C, inbox="in:2")
    assert server.reserved_for() == B


def test_a_reservation_that_is_given_up_while_the_lock_is_held_wakes_nobody(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C, "in:2")
    server.client.set(NEXT, f"{B} 1 in:1")
    server.release(B, inbox="in:1")
    assert server.reserved_for() == ""
    assert server.waiting() == [C]


def test_the_end_of_a_grant_is_a_line_of_a_history_that_is_kept(server: Server) -> None:
    server.acquire(A, history=3)
    server.release(A)
    assert server.lines() == ["released", "granted"]
    server.acquire(A, history=0)
    server.release(A)
    assert server.lines() == []


# --- wake ---


def test_the_first_waiter_is_woken_and_the_lock_kept_for_it_for_half_a_second(
    server: Server, told: Told
) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C, "in:2")
    server.release(A)
    assert told() == [B.encode()]
    assert server.reserved_for() == B
    assert 0 < server.client.pttl(NEXT) <= 500
    assert server.waiting() == [C]


def test_a_dead_process_costs_one_reservation_for_all_of_its_waiters(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C)
    server.queue("d" * 32, "in:2")
    server.release(A)
    assert server.reserved_for() == B
    server.client.delete(NEXT)  # it did not come
    assert server.acquire("e" * 32)[0] == 0
    assert server.reserved_for() == "d" * 32


def test_silent_processes_at_the_head_do_not_keep_the_others_waiting(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.queue(C, "in:2")
    server.client.zadd(INBOXES, {"in:1": 0})
    server.release(A)
    assert server.reserved_for() == C


def test_a_queue_of_silent_processes_leaves_nothing(server: Server) -> None:
    server.acquire(A)
    server.queue(B)
    server.client.zadd(INBOXES, {"in:1": 0})
    server.release(A)
    assert not server.client.exists(QUEUE, INBOXES, WAITING, NEXT)
