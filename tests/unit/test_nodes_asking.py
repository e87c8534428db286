"""What several nodes are asked, what their answers add up to, and who of them may vote."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from lockguard._lease import Grant, Token
from lockguard._locks import Contended, Found, NoQuorum, Won
from lockguard._membership import QUARANTINE_UNKNOWN_MS, Members, quarantine_for
from lockguard._quorum import Renewal, drift_ms, found, majority, tally, trusted_s
from lockguard._single_node import SingleNode
from lockguard.errors import (
    ConfigurationError,
    NodeRefused,
)
from lockguard.ports import (
    AcquireRequest,
    Busy,
    Done,
    Extended,
    Membership,
    NotExecuted,
    Quarantined,
)
from lockguard.redlock import Proposals, Redlock
from lockguard.testing import FakeClock
from tests.unit.nodes_in_memory import (
    APT,
    HELD,
    MINE,
    NOT_HELD,
    TTL_MS,
    WANTED,
    busy,
    grant,
    granted,
    request,
    turns,
    unknown,
)

SILENT = object()
"""A node that does not answer."""


class Node:
    """One of several nodes; ``votes`` are its next answers to acquire, the last one for good."""

    def __init__(self, name: str, *votes: Any) -> None:
        self.name = name
        self.votes = list(votes)
        self.ready = True
        self.sent: list[tuple[Any, ...]] = []
        self.server_ids = frozenset({name})
        self.settles: Any = Done(found=True)
        self.releases: Any = Done(found=True)
        self.extends: Any = Extended(held=True)
        self.rejoins: Any = Done(found=True)
        self.ages_ms: list[int] = []
        self.told_to_admit: Callable[[], None] = lambda: None
        self.members = [Membership(known=True, member=True, quarantine_ms=0, ttl_max_ms=TTL_MS)]
        self.woken: Callable[[Any], None] = lambda _: None

    def _answer(self, vote: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if vote is not SILENT:
            future.set_result(vote)
        return future

    def on_wake(self, callback: Callable[[Any], None]) -> None:
        self.woken = callback

    def on_admission_needed(self, callback: Callable[[], None]) -> None:
        self.told_to_admit = callback

    async def connect(self) -> None: ...

    async def aclose(self) -> None: ...

    def abandon(self) -> None: ...

    def acquire_into(self, asked: AcquireRequest, proposal: int, answer: Any) -> None:
        self.sent.append(("acquire", asked.ticket, proposal))
        vote = self.votes.pop(0) if len(self.votes) > 1 else self.votes[0]
        if vote is not SILENT:
            answer.set_result(vote)

    def acquire(self, asked: AcquireRequest) -> asyncio.Future[Any]:
        self.sent.append(("acquire", asked.ticket, 0))
        return self._answer(self.votes.pop(0) if len(self.votes) > 1 else self.votes[0])

    def release_into(self, resource: Any, grant_id: Any, answer: Any, **more: Any) -> None:
        self.sent.append(("release", more))
        if self.releases is not SILENT:
            answer.set_result(self.releases)

    def release(self, resource: Any, grant_id: Any, **more: Any) -> asyncio.Future[Any]:
        self.sent.append(("undo",) if not more else ("release", more))
        return self._answer(self.releases)

    def settle(self, resource: Any, grant_id: Any, token: int) -> asyncio.Future[Any]:
        self.sent.append(("settle", token))
        return self._answer(self.settles)

    def extend(self, resource: Any, grant_id: Any, ttl_ms: int, *, seal: str = "") -> asyncio.Future[Any]:
        self.sent.append(("extend", seal))
        return self._answer(self.extends)

    def rejoin(self, granted: Grant, *, age_ms: int) -> asyncio.Future[Any]:
        self.sent.append(("rejoin",))
        self.ages_ms.append(age_ms)
        self.rejoining = self._answer(self.rejoins)
        return self.rejoining

    def membership(self, *, admission: str = "", after: str | None = None) -> asyncio.Future[Any]:
        self.sent.append(("membership", admission, after))
        return self._answer(self.members.pop(0) if len(self.members) > 1 else self.members[0])

    def admit(self, *, quarantine_ms: int, ttl_max_ms: int, admission: str, loss: str) -> asyncio.Future[Any]:
        self.sent.append(("admit", quarantine_ms, ttl_max_ms, admission, loss))
        return self._answer(self.members[-1])

    def inspect(self, resource: Any) -> asyncio.Future[Any]:
        return self._answer(SILENT)

    def break_(self, *_: Any, **__: Any) -> asyncio.Future[Any]:
        return self._answer(SILENT)

    request_handover = history = break_

    def did(self, what: str) -> list[tuple[Any, ...]]:
        return [one for one in self.sent if one[0] == what]


Made = Callable[..., tuple[Redlock, list[Node], FakeClock]]


@pytest.fixture
async def over() -> AsyncIterator[Made]:
    """Redlock over nodes with these votes."""
    made: list[Redlock] = []

    def make(*votes: Any) -> tuple[Redlock, list[Node], FakeClock]:
        nodes = [
            Node(f"n{at}", *(vote if isinstance(vote, list) else [vote])) for at, vote in enumerate(votes)
        ]
        clock = FakeClock()
        anything: Any = nodes
        made.append(Redlock(anything, clock=clock, node_timeout_s=0.05))
        return made[-1], nodes, clock

    yield make
    for one in made:
        await one.aclose()


@pytest.mark.parametrize(("nodes", "least"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_any_two_majorities_have_a_node_in_common(nodes: int, least: int) -> None:
    assert majority(nodes) == least
    assert 2 * least > nodes


def test_a_grant_is_trusted_for_its_ttl_less_a_hundredth_and_two_milliseconds() -> None:
    assert drift_ms(10_000) == pytest.approx(102.0)
    assert trusted_s(10_000) == pytest.approx(9.898)


def votes_of(*votes: Any) -> list[asyncio.Future[Any]]:
    loop = asyncio.get_running_loop()
    futures: list[asyncio.Future[Any]] = [loop.create_future() for _ in votes]
    for future, vote in zip(futures, votes, strict=True):
        if vote is not SILENT:
            future.set_result(vote)
    return futures


@pytest.mark.parametrize(
    ("votes", "renewal"),
    [
        ((HELD, HELD, SILENT), Renewal.RENEWED),
        ((HELD, SILENT, SILENT), Renewal.UNANSWERED),
        ((HELD, NOT_HELD, SILENT), Renewal.UNANSWERED),
        ((NOT_HELD, SILENT, SILENT), Renewal.UNANSWERED),
        ((NOT_HELD, NOT_HELD, SILENT), Renewal.REFUSED),
        ((HELD, NOT_HELD, NOT_HELD), Renewal.REFUSED),
        ((SILENT, SILENT, SILENT), Renewal.UNANSWERED),
    ],
)
async def test_a_renewal_is_granted_and_refused_by_majorities_only(votes: Any, renewal: Renewal) -> None:
    extension = tally(votes_of(*votes), sent_at=100.0, ttl_ms=10_000)
    assert extension.renewal is renewal
    if renewal is Renewal.RENEWED:
        assert extension.deadline == pytest.approx(109.898)


async def test_a_hand_over_that_one_node_was_asked_for_is_told() -> None:
    assert tally(votes_of(HELD, WANTED, HELD), sent_at=0, ttl_ms=10_000).wanted


def test_a_release_that_was_sent_twice_and_finds_nothing_says_nothing() -> None:
    assert found(Done(found=False)) is False
    assert found(Done(found=False, repeated=True)) is None
    assert found(Done(found=True, repeated=True)) is True
    assert found(unknown()) is None


async def test_a_majority_that_agrees_grants_and_the_deadline_counts_from_before_it_was_asked(
    over: Made,
) -> None:
    locks, nodes, clock = over(granted(), granted(), SILENT)
    began = clock.now()
    won = await locks.acquire(request())
    assert isinstance(won, Won)
    assert (won.token, won.deadline) == (7, pytest.approx(began + trusted_s(TTL_MS)))
    assert nodes[0].did("settle") == []


async def test_tokens_that_differ_are_settled_at_the_highest_on_a_majority(over: Made) -> None:
    locks, nodes, _ = over(granted(7), granted(8), granted(9))
    won = await locks.acquire(request())
    assert isinstance(won, Won)
    assert won.token == 8  # of the two that decided
    assert all(node.did("settle") == [("settle", 8)] for node in nodes)


async def test_tokens_that_cannot_be_settled_are_no_grant_and_are_undone(over: Made) -> None:
    locks, nodes, _ = over(granted(7), granted(8), granted(9))
    for node in nodes[:2]:
        node.settles = Done(found=False)
    assert isinstance(await locks.acquire(request()), NoQuorum)
    assert all(node.did("undo") for node in nodes[:2])


async def test_an_answer_that_took_longer_than_the_lease_is_no_grant(over: Made) -> None:
    locks, nodes, clock = over(granted(), granted(), granted())

    def late(asked: Any, proposal: int, answer: Any) -> None:
        clock.advance(timedelta(milliseconds=TTL_MS))
        answer.set_result(granted())

    nodes[0].acquire_into = late  # type: ignore[method-assign]
    assert isinstance(await locks.acquire(request()), NoQuorum)


async def test_a_minority_that_granted_is_undone_and_the_others_keep_the_caller_s_place(over: Made) -> None:
    refused = NotExecuted(NodeRefused("x", node="n"))
    locks, nodes, _ = over(granted(), busy(5), busy(5), refused, SILENT)
    await locks.acquire(request())
    assert [bool(node.did("undo")) for node in nodes] == [True, False, False, False, True]


async def test_one_busy_node_of_several_does_not_tell_that_the_lock_is_busy(over: Made) -> None:
    locks, _, _ = over(busy(5), unknown(), unknown())
    assert isinstance(await locks.acquire(request()), NoQuorum)


async def test_a_busy_lock_is_told_as_most_nodes_show_it_with_the_latest_ticket(over: Made) -> None:
    locks, nodes, _ = over(busy(5, token=4), busy(9, token=3), busy(7, token=4))
    outcome = await locks.acquire(request())
    assert isinstance(outcome, Contended)
    assert outcome.busy.token == 4
    assert [one[1] for one in nodes[0].did("acquire")] == [0, 9]


async def test_places_that_agree_are_not_asked_for_again(over: Made) -> None:
    locks, nodes, _ = over(busy(5), busy(5), busy(5))
    await locks.acquire(request())
    assert len(nodes[0].did("acquire")) == 1


async def test_of_the_seals_that_the_nodes_remember_the_newest_is_told(over: Made) -> None:
    locks, _, _ = over(granted(seal="f 9"), granted(seal="f 10"), SILENT)
    won = await locks.acquire(request())
    assert isinstance(won, Won)
    assert won.seal == "f 10"


async def test_a_waiter_is_woken_by_a_majority_and_not_by_the_first_node(over: Made) -> None:
    locks, nodes, _ = over(granted(), granted(), granted())
    told: list[Any] = []
    locks.on_wake(told.append)
    nodes[0].woken(MINE)
    nodes[0].woken(MINE)
    assert told == []
    nodes[1].woken(MINE)
    assert told == [MINE]
    nodes[2].woken(None)
    assert told == [MINE, None]


async def test_a_node_that_lost_the_lease_gets_it_back_once_a_majority_has_renewed_it(over: Made) -> None:
    locks, nodes, clock = over(granted(), granted(), granted())
    nodes[0].extends = NOT_HELD
    locks.extend(replace(grant("f 3"), acquired_at=clock.now() - 2.5))
    await turns()
    assert [node.ages_ms for node in nodes] == [[2500], [], []]
    assert nodes[0].did("extend") == [("extend", "f 3")]


@pytest.mark.parametrize("why", ["a minority", "released", "too late", "renewed since"])
async def test_no_node_gets_a_lease_back_that_may_have_ended(over: Made, why: str) -> None:
    locks, nodes, clock = over(granted(), granted(), granted())
    waiting = [node._answer(SILENT) for node in nodes]
    nodes[0].extends = NOT_HELD
    for node, future in zip(nodes[1:], waiting[1:], strict=True):
        node.extend = lambda *_, future=future, **__: future  # type: ignore[method-assign, misc]
    locks.extend(grant())
    match why:
        case "a minority":
            waiting[1].set_result(NOT_HELD)
        case "released":
            locks.release(APT, MINE)
        case "too late":
            clock.advance(timedelta(milliseconds=TTL_MS))
        case _:
            for node in nodes:
                node.extend = Node.extend.__get__(node)  # type: ignore[method-assign]
            nodes[0].extends = HELD
            locks.extend(grant())
    for future in waiting[1:]:
        if not future.done():
            future.set_result(HELD)
    await turns()
    assert nodes[0].did("rejoin") == []


@pytest.mark.parametrize(
    ("answers", "found_"),
    [
        ((True, True, SILENT), Found.YES),
        ((False, False, True), Found.NO),
        ((False, SILENT, SILENT), Found.UNKNOWN),
        ((SILENT, SILENT, SILENT), Found.UNKNOWN),
    ],
)
async def test_that_a_lock_was_gone_is_said_by_a_majority_too(
    over: Made, answers: Any, found_: Found
) -> None:
    locks, nodes, _ = over(granted(), granted(), granted())
    for node, answer in zip(nodes, answers, strict=True):
        node.releases = answer if answer is SILENT else Done(found=answer)
    releasing = locks.release(APT, MINE, lost=True, seal="f 3", at_least_ms=9)
    assert await releasing() is found_
    assert nodes[0].did("release") == [("release", {"lost": True, "seal": "f 3", "at_least_ms": 9})]


async def test_nodes_are_asked_again_when_new_ones_have_been_admitted(over: Made) -> None:
    locks, nodes, _ = over([Quarantined(0), granted()], [Quarantined(0), granted()], granted())
    locks._members._tried.update(locks._members.nodes)
    first = nodes[0].acquire_into

    def asks(asked: Any, proposal: int, answer: Any) -> None:
        if len(nodes[0].did("acquire")) == 0:
            nodes[0].told_to_admit()
        first(asked, proposal, answer)

    nodes[0].acquire_into = asks  # type: ignore[method-assign]
    assert isinstance(await locks.acquire(request()), Won)


@pytest.mark.parametrize("ids", ["", "1"])
async def test_a_lease_is_asked_for_once_where_no_admission_came_between(over: Made, ids: str) -> None:
    vote = granted(admission=ids)
    locks, nodes, _ = over(vote, vote, SILENT)
    assert isinstance(await locks.acquire(request()), Won)
    assert [len(node.did("acquire")) for node in nodes] == [1, 1, 1]


async def test_votes_from_before_and_after_an_admission_do_not_count_together(over: Made) -> None:
    """The node that tells of a new admission had not granted when it was asked how long leases are."""
    old, new = granted(admission="1"), granted(admission="2")
    locks, nodes, _ = over([old, old, Busy("x", "y", Token(9), 1, 1)], [old, new, new, new], SILENT)
    assert isinstance(await locks.acquire(request()), Won)
    assert [len(node.did("acquire")) for node in nodes[:2]] == [1, 1]
    assert isinstance(await locks.acquire(request()), NoQuorum)  # asked again, and the first has forgotten
    assert [len(node.did("acquire")) for node in nodes[:2]] == [3, 3]


async def test_a_release_keeps_a_node_from_being_given_the_lease_back_behind_it(over: Made) -> None:
    """A node that has forgotten the script, or whose connection ends, is sent again what still waits."""
    locks, nodes, _ = over(granted(), granted(), granted())
    nodes[2].extends, nodes[2].rejoins = Extended(held=False), SILENT
    await asyncio.wait(locks.extend(grant()))
    await asyncio.sleep(0)
    assert nodes[2].did("rejoin")
    assert not nodes[2].rejoining.done()
    locks.release(APT, MINE)
    assert nodes[2].rejoining.cancelled()


async def test_nodes_of_two_admissions_are_asked_again_and_keep_what_they_granted(over: Made) -> None:
    locks, nodes, _ = over(granted(admission="1"), granted(admission="2"), SILENT)
    assert isinstance(await locks.acquire(request()), Won)
    assert [len(node.did("acquire")) for node in nodes[:2]] == [2, 2]
    assert not any(node.did("undo") for node in nodes)
    assert isinstance(await locks.acquire(request()), Won)
    assert [len(node.did("acquire")) for node in nodes[:2]] == [3, 3]


async def test_votes_between_which_admissions_come_again_and_again_are_no_grant_and_are_undone(
    over: Made,
) -> None:
    new = [granted(admission=str(number)) for number in range(9)]
    locks, nodes, _ = over(granted(admission="a"), new, SILENT)
    assert isinstance(await locks.acquire(request()), NoQuorum)
    assert [len(node.did("undo")) for node in nodes[:2]] == [1, 1]
    assert len(nodes[0].did("acquire")) == 3


def test_one_clock_that_is_far_ahead_does_not_pull_the_tokens_along() -> None:
    clock = FakeClock()
    proposals = Proposals(clock, quorum=2)
    assert proposals.next() == 0
    now_us = int(clock.now() * 1e6)
    ahead = [granted(server_us=now_us + lead) for lead in (1_000, 2_000, 3_600_000_000)]
    proposals.note(ahead, sent_at=clock.now())
    assert now_us + 2_000 <= proposals.next() < now_us + 100_000


def member(*, member: bool = True, ttl_max_ms: int = 0, loss: str = "") -> Membership:
    return Membership(known=True, member=member, quarantine_ms=0, ttl_max_ms=ttl_max_ms, loss=loss)


@pytest.mark.parametrize(
    ("told", "own_ttl_ms", "lasts_ms"),
    [
        ([member(member=False)] * 3, 30_000, 0),
        ([member(ttl_max_ms=9_000), member(ttl_max_ms=9_000), member(member=False)], 3_000, 9_000),
        ([member(ttl_max_ms=3_000), member(ttl_max_ms=3_000), member(member=False)], 9_000, 9_000),
        ([member(), member(), None], 9_000, QUARANTINE_UNKNOWN_MS),
        ([member(member=False), member(member=False), None], 9_000, QUARANTINE_UNKNOWN_MS),
        ([member(), member(), member(member=False)], 60_000, 60_000),
    ],
)
def test_a_node_that_may_have_forgotten_keeps_silent_for_the_longest_lease(
    told: Any, own_ttl_ms: int, lasts_ms: int
) -> None:
    assert quarantine_for(told, ttl_max_ms=own_ttl_ms).lasts_ms == lasts_ms


def test_where_most_have_forgotten_nobody_knows_the_longest_lease() -> None:
    told = [member(ttl_max_ms=3_000), member(member=False), member(member=False)]
    assert quarantine_for(told, ttl_max_ms=3_000).lasts_ms == QUARANTINE_UNKNOWN_MS


def test_one_server_does_not_count_as_two_nodes() -> None:
    nodes: Any = [Node("a", granted()), Node("b", granted()), Node("a", granted())]
    with pytest.raises(ConfigurationError, match="same server"):
        Members(nodes).check_independence()


async def admit(*nodes: Node) -> None:
    """Have the last of the nodes admitted."""
    anything: Any = nodes
    members = Members(anything)
    members._tried.update(members.nodes)
    nodes[-1].told_to_admit()
    await members.admitted(within_s=math.inf)
    await members.aclose()


async def test_only_who_is_no_member_is_admitted() -> None:
    nodes = [Node("a", granted()), Node("b", granted()), Node("c", granted())]
    nodes[2].members = [member(member=False, loss="r x")]
    await admit(*nodes)
    assert [len(node.did("admit")) for node in nodes] == [0, 0, 1]
    ((_, *times, admission, loss),) = nodes[2].did("admit")
    assert times == [TTL_MS, TTL_MS]
    assert loss == "r x"
    for node in nodes:
        (_, first, after), second = node.did("membership")
        assert after is None
        assert second == ("membership", admission, "")
        assert admission
        assert admission != first  # which callers may have been told before the loss


async def test_how_long_leases_are_is_asked_once_it_is_known_who_has_lost_its_data() -> None:
    """Or a lease that was granted between the answer and the loss would be longer than the quarantine."""
    nodes = [Node("a", granted()), Node("b", granted()), Node("c", granted())]
    for node in nodes[:2]:
        node.members = [member(ttl_max_ms=1_000), member(ttl_max_ms=9_000)]
    nodes[2].members = [member(member=False, loss="r x")]
    await admit(*nodes)
    assert nodes[2].did("admit")[0][1:3] == (9_000, 9_000)


async def test_a_node_that_forgets_once_more_is_not_admitted_by_what_was_known_before() -> None:
    nodes = [Node("a", granted()), Node("b", granted()), Node("c", granted())]
    nodes[2].members = [member(member=False, loss="r x"), member(member=False, loss="r y")]
    await admit(*nodes)
    assert not nodes[2].did("admit")


async def test_each_admission_has_an_id_of_its_own() -> None:
    ids = set()
    for _ in range(3):
        nodes = [Node("a", granted()), Node("b", granted()), Node("c", granted())]
        nodes[2].members = [member(member=False, loss="r x")]
        await admit(*nodes)
        ids.add(nodes[2].did("admit")[0][3])
    assert len(ids) == 3


def single(*votes: Any) -> tuple[SingleNode, Node, FakeClock]:
    node, clock = Node("n", *votes), FakeClock()
    anything: Any = node
    return SingleNode(anything, clock=clock), node, clock


async def test_a_grant_of_one_node_counts_from_before_it_was_asked_and_not_when_it_is_over() -> None:
    locks, node, clock = single(granted())
    began = clock.now()

    def after(seconds: float) -> Any:
        def acquire(asked: AcquireRequest) -> asyncio.Future[Any]:
            clock.advance(timedelta(seconds=seconds))
            return node._answer(granted())

        return acquire

    node.acquire = after(1)  # type: ignore[method-assign]
    won = await locks.acquire(request())
    assert isinstance(won, Won)
    assert won.deadline == pytest.approx(began + trusted_s(TTL_MS))
    node.acquire = after(60)  # type: ignore[method-assign]
    assert isinstance(await locks.acquire(request()), NoQuorum)


@pytest.mark.parametrize(
    ("answer", "found_", "settled"),
    [
        (Done(found=True), Found.YES, True),
        (Done(found=False), Found.NO, False),
        (unknown(), Found.UNKNOWN, False),
    ],
)
async def test_what_one_node_did_not_say_is_unknown(answer: Any, found_: Found, settled: bool) -> None:
    locks, node, _ = single(granted())
    node.settles = node.releases = answer
    assert await locks.release(APT, MINE)() is found_
    assert await locks.settle(request(), Token(9)) is settled
    assert locks.ask_again_s() < 1  # a key that vanished is noticed within a second
