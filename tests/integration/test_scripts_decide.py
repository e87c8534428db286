"""What each script decides on a real server, case by case as its header states it.

The contract runs the same scripts through a guard, which hides some of them: what a guard asks again, what
it gives back in time, and what only happens after long waits, over several nodes or with a clock that was
set back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from lockguard._lease import parse_resource
from lockguard._namespace import NAMESPACE
from lockguard._nodes.scripted import keys_of
from lockguard._scripts import (
    ACQUIRE,
    ADMIT,
    BREAK,
    EXTEND,
    INSPECT,
    REJOIN,
    RELEASE,
    SETTLE,
    Script,
)

A, B, C = ("a" * 32, "b" * 32, "c" * 32)
KEYS = keys_of(NAMESPACE, parse_resource("binance:APTUSDT"))
LOCK, FLOOR, QUEUE, INBOXES, NEXT, TENURE, LINES, SEAL, WAITING = KEYS.acquire
MEMBER = f"{NAMESPACE}:member"
RUN, OTHER_RUN = "1" * 40, "2" * 40
TTL = 60_000
YEAR_US = 365 * 86_400 * 1_000_000


_PLAIN: dict[str, Any] = {
    "ttl": TTL,
    "holder": "h",
    "operation": "o",
    "inbox": "",
    "ticket": 0,
    "closing": "0",
    "history": 3,
    "proposal": 0,
    "run": "",
    "nodes": "",
}
"""The arguments of acquire.lua, in order, of a caller that does not queue."""


@dataclass
class Server:
    client: redis.Redis

    def run(self, script: Script, keys: tuple[str, ...], *args: object) -> Any:
        return self.client.eval(script.source, len(keys), *keys, *map(str, args))

    def acquire(self, grant: str, **options: Any) -> Any:
        """By default of a caller that does not queue; ``member`` is asked as one of several nodes."""
        given = {
            **_PLAIN,
            **options,
        }
        keys = (*KEYS.acquire, MEMBER) if given["run"] else KEYS.acquire
        return self.run(ACQUIRE, keys, grant, *given.values())

    def queue(self, grant: str, inbox: str = "in:1", **options: Any) -> Any:
        return self.acquire(grant, inbox=inbox, **options)

    def release(self, grant: str, *, inbox: str = "", lost: int = 0, seal: str = "", **options: int) -> int:
        return int(self.run(RELEASE, KEYS.release, grant, inbox, lost, seal, *options.values()))

    def extend(self, grant: str, *, ttl: int = TTL, seal: str = "") -> int:
        return int(self.run(EXTEND, KEYS.extend, grant, ttl, seal))

    def break_(self, how: str = "force", *, reason: str = "why", token: int = 0, grant: str = "") -> Any:
        return self.run(BREAK, KEYS.break_, how, reason, token, grant)

    def inspect(self, waiters: int = 10) -> Any:
        return self.run(INSPECT, KEYS.inspect, waiters)

    def settle(self, grant: str, token: int) -> int:
        return int(self.run(SETTLE, KEYS.settle, grant, token))

    def rejoin(self, grant: str, token: int) -> int:
        keys = (*KEYS.rejoin, MEMBER)
        return int(self.run(REJOIN, keys, grant, token, "h", "o", TTL, RUN))

    def admit(self, quarantine_ms: int, ttl_max_ms: int = 0, run: str = RUN) -> list[int]:
        return list(self.run(ADMIT, (MEMBER,), run, quarantine_ms, ttl_max_ms))

    @property
    def now_us(self) -> int:
        seconds, us = self.client.time()
        return int(seconds * 1_000_000 + us)

    def waiting(self) -> list[str]:
        """The grants in the queue, in order."""
        return [member.decode().partition(" ")[0] for member in self.client.zrange(QUEUE, 0, -1)]

    def reserved_for(self) -> str:
        return (self.client.get(NEXT) or b"").decode().partition(" ")[0]

    def lines(self) -> list[str]:
        return [line.decode().split()[1] for line in self.client.lrange(LINES, 0, -1)]


@pytest.fixture
def server(redis_url: str) -> Server:
    return Server(redis.Redis.from_url(redis_url, protocol=2))


Told = Callable[[], list[bytes]]


@pytest.fixture
def told(server: Server) -> Told:
    """The grants that were published to a waiter's channel."""
    listener = server.client.pubsub()
    listener.subscribe("in:1", "in:2")
    for _ in range(2):
        assert listener.get_message(timeout=5)["type"] == "subscribe"

    def messages() -> list[bytes]:
        found = []
        while (message := listener.get_message(timeout=0.2)) is not None:
            found.append(message["data"])
        return found

    return messages


# --- acquire: what is granted ---


def test_asking_again_renews_and_tells_the_same_token_and_the_seal(server: Server) -> None:
    _, token, _, _ = server.acquire(A, ttl=5_000)
    server.client.set(SEAL, "fence 7")
    assert server.acquire(A, ttl=TTL) == [1, str(token).encode(), 0, b"fence 7"]
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


# --- acquire: one of several nodes ---


def as_member(server: Server, *, quiet_until_ms: int = 0, ttl_max_ms: int = TTL) -> None:
    facts = {"run": RUN, "quiet_until_ms": quiet_until_ms, "ttl_max_ms": ttl_max_ms, "nodes": 3}
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
    assert server.admit(-1) == [0, 0, 0, 0]
    assert not server.client.exists(MEMBER)
    assert server.admit(5_000, 4_000)[0] == 0
    state, left_ms, longest_ms, _ = server.admit(-1)
    assert (state, longest_ms) == (2, 4_000)
    assert 4_000 < left_ms <= 5_000
    assert server.admit(-1, run=OTHER_RUN)[0] == 1


def test_an_admission_forgets_no_longer_lease(server: Server) -> None:
    as_member(server, ttl_max_ms=9_000)
    server.admit(1_000, 4_000, run=OTHER_RUN)
    assert server.client.hget(MEMBER, "ttl_max_ms") == b"9000"
    server.admit(1_000, 12_000, run=RUN)
    assert server.client.hget(MEMBER, "ttl_max_ms") == b"12000"


def test_a_member_is_not_admitted_again(server: Server) -> None:
    as_member(server)
    assert server.admit(5_000, 9_000)[:2] == [2, 0]
    assert server.client.hget(MEMBER, "quiet_until_ms") == b"0"


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
    token = server.acquire(A)[1]
    given = token + 1_000 if higher == "fence" else token - 1_000
    server.break_(token=given)
    assert int(server.client.get(FLOOR)) == max(token, given)


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


def test_a_node_that_is_given_a_lease_back_says_whether_it_must_be_admitted(server: Server) -> None:
    assert server.rejoin(A, server.now_us) == 2
    server.client.delete(LOCK)
    as_member(server)
    assert server.rejoin(A, server.now_us) == 1


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
