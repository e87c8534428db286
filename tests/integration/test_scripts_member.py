"""One of several nodes: when it votes, how it is admitted, and how it is given a lease back."""

from __future__ import annotations

import pytest

from tests.integration.scripts_on_a_server import (
    FLOOR,
    LOCK,
    MEMBER,
    NODE,
    OTHER_RUN,
    QUEUE,
    RUN,
    TENURE,
    TTL,
    UNKNOWN,
    A,
    B,
    C,
    Server,
    server,
)

__all__ = ["server"]


# --- acquire: one of several nodes ---


def as_member(server: Server, *, quiet_until_ms: int = 0, ttl_max_ms: int = TTL, run: str = RUN) -> None:
    facts = {"run": run, "quiet_until_ms": quiet_until_ms, "ttl_max_ms": ttl_max_ms, "nodes": 3}
    server.client.hset(MEMBER, mapping=facts)


def test_a_node_that_was_never_admitted_or_has_restarted_gives_no_vote(server: Server) -> None:
    assert server.acquire(A, run=RUN, nodes=3) == [3, 0]
    as_member(server)
    assert server.acquire(A, run=OTHER_RUN, nodes=3) == [3, 0]
    assert server.acquire(A, run=RUN, nodes=3)[0] == 1


def test_a_node_in_quarantine_gives_no_vote_and_says_for_how_long(server: Server) -> None:
    as_member(server, quiet_until_ms=server.now_us // 1000 + 5_000)
    state, left_ms = server.acquire(A, run=RUN, nodes=3)
    assert state == 3
    assert 4_000 < left_ms <= 5_000
    assert not server.client.exists(LOCK)


def test_a_quarantine_lasts_no_longer_than_the_longest_lease_though_the_clock_was_set_back(
    server: Server,
) -> None:
    as_member(server, quiet_until_ms=server.now_us // 1000 + 86_400_000, ttl_max_ms=5_000)
    assert server.acquire(A, run=RUN, nodes=3)[1] <= 5_000
    assert int(server.client.hget(MEMBER, "quiet_until_ms")) <= server.now_us // 1000 + 5_000


def test_a_quarantine_that_is_over_does_not_come_back_with_the_clock(server: Server) -> None:
    as_member(server, quiet_until_ms=server.now_us // 1000 - 5)
    assert server.acquire(A, run=RUN, nodes=3)[0] == 1
    assert server.client.hget(MEMBER, "quiet_until_ms") == b"0"


def test_a_node_remembers_the_longest_lease_that_it_granted(server: Server) -> None:
    as_member(server, ttl_max_ms=5_000)
    server.acquire(A, run=RUN, nodes=3, ttl=9_000)
    server.release(A)
    server.acquire(A, run=RUN, nodes=3, ttl=7_000)
    assert server.client.hget(MEMBER, "ttl_max_ms") == b"9000"


def test_a_node_remembers_how_many_decide_together(server: Server) -> None:
    as_member(server)
    server.acquire(A, run=RUN, nodes=5)
    assert server.client.hget(MEMBER, "nodes") == b"5"


def test_a_ticket_is_the_one_that_all_nodes_were_asked_to_give(server: Server) -> None:
    as_member(server)
    server.acquire(A, run=RUN, nodes=3)
    proposal = server.now_us - 5_000_000
    assert server.queue(B, run=RUN, nodes=3, proposal=proposal)[6] == str(proposal).encode()


def test_the_ticket_that_the_nodes_agreed_on_replaces_a_nodes_own(server: Server) -> None:
    as_member(server)
    server.acquire(A, run=RUN, nodes=3)
    ticket = int(server.queue(B, run=RUN, nodes=3)[6]) + 7
    assert server.queue(B, run=RUN, nodes=3, ticket=ticket)[6] == str(ticket).encode()
    assert server.client.zscore(QUEUE, f"{B} in:1") == ticket


def test_of_two_waiters_the_earlier_one_takes_a_nodes_reservation_and_the_other_waits_on(
    server: Server,
) -> None:
    as_member(server)
    server.acquire(A, run=RUN, nodes=3)
    later = int(server.queue(C, "in:2", run=RUN, nodes=3)[6])
    server.release(A)
    assert server.reserved_for() == C
    assert server.queue(B, run=RUN, nodes=3, ticket=later + 1)[0] == 0
    assert server.queue(B, run=RUN, nodes=3, ticket=later - 1)[0] == 1
    assert server.waiting() == [C]
    assert server.client.zscore(QUEUE, f"{C} in:2") == later
    server.release(B)
    assert server.reserved_for() == C


# --- admit ---


def test_a_node_is_told_as_new_then_as_member_then_as_one_of_another_run(server: Server) -> None:
    assert server.look() == [0, 0, 0, 0, b"", b""]
    assert not server.client.exists(MEMBER)
    loss = server.look("1")[4]
    assert server.admit(5_000, 4_000, loss=loss)[0] == 0
    state, left_ms, longest_ms, *_ = server.look()
    assert (state, longest_ms) == (2, 4_000)
    assert 4_000 < left_ms <= 5_000
    assert server.look(run=OTHER_RUN)[0] == 1


def test_an_admission_forgets_no_longer_lease(server: Server) -> None:
    as_member(server, ttl_max_ms=9_000)
    server.admit(1_000, 4_000, run=OTHER_RUN, loss=server.look("1", run=OTHER_RUN)[4])
    assert server.client.hget(MEMBER, "ttl_max_ms") == b"9000"
    server.admit(1_000, 12_000, run=RUN, loss=server.look("2")[4])
    assert server.client.hget(MEMBER, "ttl_max_ms") == b"12000"


def test_a_member_is_not_admitted_again(server: Server) -> None:
    as_member(server)
    assert server.admit(5_000, 9_000, loss=server.look("1")[4])[:2] == [2, 0]
    assert server.client.hget(MEMBER, "quiet_until_ms") == b"0"


def test_a_node_tells_with_each_grant_which_admission_asked_or_admitted_it_last(server: Server) -> None:
    server.admit(0, loss=server.look("1")[4])
    assert server.acquire(A, run=RUN, nodes=3)[4] == b"ad"
    assert server.ask("2", after=server.look("1")[5])[0] == 2
    assert server.acquire(A, run=RUN, nodes=3)[4] == b"2"  # the same grant, asked for again
    server.release(A)
    server.look()
    assert server.acquire(B, run=RUN, nodes=3)[4] == b"2"


def test_a_question_that_another_admission_overtook_leaves_an_id_that_no_other_node_has(
    server: Server,
) -> None:
    """Or two nodes, one asked before a loss and one after the admission for it, would tell the same."""
    as_member(server)
    seen = server.look("1")[5]
    server.ask("2", after=server.look("1")[5])
    server.ask("3", after=seen)
    assert server.acquire(A, run=RUN, nodes=3)[4] == f"3 {NODE}".encode()


def test_the_first_question_of_an_admission_leaves_no_id_on_a_member(server: Server) -> None:
    """A caller that was told it could count a vote from before a loss with one that comes after."""
    as_member(server)
    before = server.acquire(A, run=RUN, nodes=3)[4]
    server.look("9")
    assert server.acquire(A, run=RUN, nodes=3)[4] == before


def test_a_loss_has_one_id_for_all_admissions_that_ask_and_the_next_loss_another(server: Server) -> None:
    first = server.look("1")[4]
    assert server.look("2")[4] == first == server.look()[4] != b""
    server.client.flushall()
    assert server.look("3")[4] != first
    server.admit(0, loss=server.look("4")[4])
    assert server.look("5", run=OTHER_RUN)[4] not in (b"", first)


def test_a_caller_that_may_not_know_the_run_takes_a_member_of_any_run_for_one_and_leaves_it(
    server: Server,
) -> None:
    """It cannot tell a restart, so it must not report one: others would give no vote for a quarantine."""
    assert server.acquire(A, run=UNKNOWN, nodes=3) == [3, 0]  # no member at all
    as_member(server)
    before = server.client.hgetall(MEMBER)
    assert server.acquire(A, run=UNKNOWN, nodes=3)[0] == 1
    assert server.release(A) == 1
    assert server.rejoin(B, server.now_us, UNKNOWN) == 1
    assert server.look("1", UNKNOWN)[::4] == [2, b""]
    assert server.admit(5_000, 9_000, UNKNOWN, loss=b"")[:2] == [2, 0]
    assert server.client.hgetall(MEMBER) == before
    assert server.ask("2", after=b"", run=UNKNOWN)[0] == 2
    assert server.client.hgetall(MEMBER) == {**before, b"admission": b"2"}


def test_a_question_of_a_caller_that_may_not_know_the_run_leaves_an_id_of_one_node_as_well(
    server: Server,
) -> None:
    as_member(server)
    server.ask("2", after=b"")
    server.ask("3", after=b"", run=UNKNOWN)
    assert server.acquire(A, run=RUN, nodes=3)[4] == f"3 {NODE}".encode()


def test_a_member_without_a_run_is_none_for_callers_that_know_it_until_one_of_them_admits_it(
    server: Server,
) -> None:
    """A run that a vote recorded would be forgotten with it, and the next caller would record another."""
    loss = server.look("1", UNKNOWN)[4]
    assert server.admit(0, run=UNKNOWN, loss=loss)[0] == 0
    assert server.acquire(A, run=UNKNOWN, nodes=3)[0] == 1
    server.release(A)
    assert server.acquire(B, run=RUN, nodes=3) == [3, 0]
    assert server.rejoin(B, server.now_us) == 2
    state, _, _, _, loss, _ = server.look("2")
    assert state == 1
    assert server.client.hget(MEMBER, "run") == b""
    server.admit(0, loss=loss)
    server.admit(0, run=UNKNOWN, loss=loss)  # which changes nothing any more
    assert server.client.hget(MEMBER, "run") == RUN.encode()
    assert [server.look("3", run)[0] for run in (RUN, UNKNOWN, OTHER_RUN)] == [2, 2, 1]


@pytest.mark.parametrize("admitted", [UNKNOWN, OTHER_RUN])
def test_a_question_leaves_its_id_also_on_a_node_that_votes_only_for_callers_without_a_run(
    server: Server, admitted: str
) -> None:
    """Or a vote of a node that has lost its data since would count with one from after the question."""
    loss = server.look("1", admitted)[4]
    server.admit(0, run=admitted, loss=loss)
    before = server.acquire(A, run=UNKNOWN, nodes=3)
    server.release(A)
    server.look("2")
    server.ask("2", after=b"")
    after = server.acquire(B, run=UNKNOWN, nodes=3)
    assert (before[0], after[0]) == (1, 1)
    assert before[-1] == b"ad"
    assert after[-1] == f"2 {NODE}".encode()


def test_callers_that_know_the_run_and_callers_that_may_not_give_a_loss_one_id(server: Server) -> None:
    """Or each would give the loss another id before the other has admitted the node for it."""
    unnamed = server.look("1", UNKNOWN)[4]
    named = server.look("2")[4]
    assert named not in (b"", unnamed)  # the run is known from here on
    assert server.look("3", UNKNOWN)[4] == server.look("4")[4] == named
    server.admit(0, loss=named)
    assert server.look()[0] == 2


@pytest.mark.parametrize("how", ["flushed", "another run", "never asked"])
def test_an_admission_of_an_earlier_loss_admits_nobody(server: Server, how: str) -> None:
    loss = b"" if how == "never asked" else server.look("1")[4]
    if how == "flushed":
        server.client.flushall()
        server.look("2")
    run = OTHER_RUN if how == "another run" else RUN
    server.admit(0, run=run, loss=loss)
    assert server.acquire(A, run=run, nodes=3) == [3, 0]


# --- rejoin ---


def test_a_lease_is_given_back_only_where_nobody_holds_the_lock(server: Server) -> None:
    server.acquire(B)
    assert server.rejoin(A, 5) == 0
    assert server.client.hget(LOCK, "grant") == B.encode()
    assert server.rejoin(B, 5) == 1


def test_a_lease_that_is_given_back_ends_by_itself_and_raises_the_floor(server: Server) -> None:
    token = server.now_us
    assert server.rejoin(A, token) == 2
    assert TTL - 1_000 < server.client.pttl(LOCK) <= TTL
    assert int(server.client.get(FLOOR)) == token
    server.client.delete(LOCK)
    server.rejoin(A, token - 1_000)
    assert int(server.client.get(FLOOR)) == token


@pytest.mark.parametrize(
    ("closing", "age_ms", "lasts"),
    [
        ("0", 0, -2),
        ("5000", 0, TTL + 5_000),
        ("5000", 90_000, TTL + 5_000),
        ("0 90000", 0, 90_000),
        ("0 90000", 50_000, 40_000),
        ("0 90000", 90_001, -2),
        ("5000 90000", 0, 90_000),
        ("5000 90000", 80_000, TTL + 5_000),
    ],
)
def test_a_node_that_is_given_a_lease_back_stays_closed_after_it(
    server: Server, closing: str, age_ms: int, lasts: int
) -> None:
    """Or those that were given the lease later are a majority that gives the resource away too early."""
    server.client.set(TENURE, "70000", px=70_000)  # of a grant that a majority has found over
    server.rejoin(A, server.now_us, closing=closing, age_ms=age_ms)
    assert lasts - 1_000 < server.client.pttl(TENURE) <= lasts
    assert server.client.get(TENURE) == (None if lasts < 0 else closing.encode())


def test_at_least_counts_from_the_grant_where_a_lease_was_given_back_later(server: Server) -> None:
    server.rejoin(A, server.now_us, closing="0 90000", age_ms=50_000)
    assert 50_000 <= server.acquire(B)[4] < 51_000
    server.release(A, at_least=90_000)
    assert 39_000 < server.client.pttl(TENURE) <= 40_000


def test_a_node_that_is_given_a_lease_back_says_whether_it_must_be_admitted(server: Server) -> None:
    assert server.rejoin(A, server.now_us) == 2
    server.client.delete(LOCK)
    as_member(server)
    assert server.rejoin(A, server.now_us) == 1


@pytest.mark.parametrize("known_ms", [None, 1_000, TTL, 10 * TTL])
def test_a_node_that_is_given_a_lease_back_tells_an_admission_how_long_it_is(
    server: Server, known_ms: int | None
) -> None:
    """Those who granted it may forget it: what this node tells then bounds how long they give no vote."""
    if known_ms is not None:
        server.client.hset(MEMBER, mapping={"run": RUN, "quiet_until_ms": 0, "ttl_max_ms": known_ms})
    assert server.rejoin(A, server.now_us) == (2 if known_ms is None else 1)
    state, _, ttl_max_ms, *_ = server.look()
    assert state == (0 if known_ms is None else 2)
    assert ttl_max_ms == max(known_ms or 0, TTL)
    server.rejoin(A, server.now_us)
    assert server.look()[2] == ttl_max_ms
