"""What several nodes decide, however their votes come: late, split, from old runs, with clocks apart.

The nodes are plain objects whose votes a test gives one by one, on a clock that a test moves.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from lockguard._lease import Grant, GrantId, Lease, LeaseState, Resource, Token
from lockguard._locks import Contended, Found, NoQuorum, Won
from lockguard._membership import QUARANTINE_UNKNOWN_MS, Members, quarantine_for
from lockguard._quorum import Renewal, drift_ms, found, majority, tally, trusted_s
from lockguard._renewal import Keeper
from lockguard._single_node import SingleNode
from lockguard._waiting import Queue
from lockguard.errors import (
    ConfigurationError,
    LeaseLost,
    LeaseNotHeld,
    LossReason,
    NodeRefused,
    NodeUnknown,
    QueueFull,
    ResourceBusy,
    StaleToken,
)
from lockguard.ports import (
    AcquireRequest,
    Busy,
    Done,
    Extended,
    Granted,
    MaybeExecuted,
    Membership,
    NotExecuted,
    Quarantined,
)
from lockguard.redlock import Proposals, Redlock
from lockguard.testing import FakeClock

APT = Resource("binance:APTUSDT")
MINE, OTHER = GrantId("a" * 32), GrantId("b" * 32)
TTL_MS = 60_000
SILENT = object()
"""A node that does not answer."""


def request(**more: Any) -> AcquireRequest:
    return AcquireRequest(APT, MINE, "h", "o", TTL_MS, **{"queue": True, **more})


def grant(seal: str = "") -> Grant:
    return Grant(APT, MINE, Token(7), "h", "o", TTL_MS, seal)


def busy(ticket: int = 0, *, token: int = 3, retry_ms: int = 1_000, **more: Any) -> Busy:
    return Busy("other", "op", Token(token), age_ms=5, retry_after_ms=retry_ms, ticket=ticket, **more)


def unknown() -> MaybeExecuted:
    return MaybeExecuted(NodeUnknown("lost", node="n"))


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
        self.told_to_admit: Callable[[], None] = lambda: None
        self.member = Membership(known=True, member=True, quarantine_ms=0, ttl_max_ms=TTL_MS)
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

    def rejoin(self, granted: Grant) -> asyncio.Future[Any]:
        self.sent.append(("rejoin",))
        return self._answer(Done(found=True))

    def membership(self) -> asyncio.Future[Any]:
        return self._answer(self.member)

    def admit(self, *, quarantine_ms: int, ttl_max_ms: int) -> asyncio.Future[Any]:
        self.sent.append(("admit", quarantine_ms, ttl_max_ms))
        return self._answer(self.member)

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


def granted(token: int = 7, **more: Any) -> Granted:
    return Granted(Token(token), **more)


# --- arithmetic ---


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


HELD, WANTED, NOT_HELD = Extended(held=True), Extended(held=True, wanted=True), Extended(held=False)


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


# --- asking ---


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


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_node_that_lost_the_lease_gets_it_back_once_a_majority_has_renewed_it(over: Made) -> None:
    locks, nodes, _ = over(granted(), granted(), granted())
    nodes[0].extends = NOT_HELD
    locks.extend(grant("f 3"))
    await turns()
    assert [len(node.did("rejoin")) for node in nodes] == [1, 0, 0]
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


def test_one_clock_that_is_far_ahead_does_not_pull_the_tokens_along() -> None:
    clock = FakeClock()
    proposals = Proposals(clock, quorum=2)
    assert proposals.next() == 0
    now_us = int(clock.now() * 1e6)
    ahead = [granted(server_us=now_us + lead) for lead in (1_000, 2_000, 3_600_000_000)]
    proposals.note(ahead, sent_at=clock.now())
    assert now_us + 2_000 <= proposals.next() < now_us + 100_000


# --- who may vote ---


def member(*, member: bool = True, ttl_max_ms: int = 0) -> Membership:
    return Membership(known=True, member=member, quarantine_ms=0, ttl_max_ms=ttl_max_ms)


@pytest.mark.parametrize(
    ("told", "own_ttl_ms", "lasts_ms"),
    [
        ([member(member=False)] * 3, 30_000, 0),
        ([member(ttl_max_ms=9_000), member(ttl_max_ms=9_000), member(member=False)], 3_000, 9_000),
        ([member(ttl_max_ms=3_000), member(ttl_max_ms=3_000), member(member=False)], 9_000, 9_000),
        ([member(), member(), None], 9_000, QUARANTINE_UNKNOWN_MS),
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


async def test_only_who_is_no_member_is_admitted() -> None:
    nodes = [Node("a", granted()), Node("b", granted()), Node("c", granted())]
    nodes[2].member = member(member=False)
    anything: Any = nodes
    members = Members(anything)
    members._tried.update(members.nodes)
    nodes[2].told_to_admit()
    await members.admitted(within_s=math.inf)
    assert [len(node.did("admit")) for node in nodes] == [0, 0, 1]
    assert nodes[2].did("admit") == [("admit", TTL_MS, TTL_MS)]
    await members.aclose()


# --- one node ---


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


# --- the lease ---


def leased(clock: FakeClock, seconds: float = 10.0) -> Lease:
    return Lease(grant(), deadline=clock.now() + seconds, clock=clock)


def test_a_lease_is_good_until_its_deadline_and_for_what_an_effect_needs() -> None:
    clock = FakeClock()
    lease = leased(clock, 3.0)
    lease.ensure(timedelta(seconds=2.9))
    for needed in (timedelta(seconds=3.1), timedelta(seconds=4), timedelta(minutes=1)):
        with pytest.raises(LeaseLost):
            lease.ensure(needed)
    clock.advance(timedelta(seconds=3))
    assert lease.state is LeaseState.LOST
    with pytest.raises(LeaseLost):
        lease.ensure()


def test_a_renewal_neither_shortens_a_lease_nor_brings_it_back() -> None:
    clock = FakeClock()
    lease = leased(clock)
    lease.mark_renewed(clock.now() + 20, wanted=True)
    lease.mark_renewed(clock.now() + 15, wanted=False)
    assert lease.deadline == clock.now() + 20
    assert lease.wanted
    clock.advance(timedelta(seconds=20))
    lease.mark_renewed(clock.now() + 60, wanted=False)
    assert lease.state is LeaseState.LOST
    released = leased(clock)
    released.mark_released()
    released.mark_renewed(clock.now() + 60, wanted=False)
    assert released.state is LeaseState.RELEASED
    released.mark_lost(LossReason.REFUSED)
    assert released.loss is None
    with pytest.raises(LeaseNotHeld):
        released.ensure()


def test_no_forked_process_trusts_the_lease_of_its_parent() -> None:
    lease = leased(FakeClock())
    lease._process = -1  # as a child sees it
    assert lease.loss is LossReason.FORKED
    with pytest.raises(LeaseLost):
        lease.ensure()


def test_only_a_refusal_of_this_lease_ends_it() -> None:
    lease = leased(FakeClock())
    for resource, presented in ((str(APT), 6), ("binance:OTHER", 7)):
        lease.lost_to_fence(StaleToken("x", resource=resource, presented=presented, current=9))
        lease.ensure()
    lease.lost_to_fence(StaleToken("x", resource=str(APT), presented=7, current=9))
    assert lease.loss is LossReason.FENCED


# --- renewing ---


class Renewing:
    """Locks whose renewals a test answers."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[Any]] = []

    def extend(self, granted: Grant) -> list[asyncio.Future[Any]]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return [self.asked[-1]]


class Fence:
    """A fence that answers what a test says."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.accepts = accepts

    async def confirm(self, granted: Grant, *, within: timedelta) -> bool:
        return self.accepts


def keeping(*, fence: Any = None) -> tuple[Keeper, Renewing, FakeClock, list[Any]]:
    locks, clock, events = Renewing(), FakeClock(), list[Any]()
    anything: Any = locks
    return Keeper(anything, clock=clock, emit=events.append, fence=fence), locks, clock, events


async def test_a_lease_is_renewed_after_a_third_of_its_ttl_counted_from_its_request() -> None:
    keeper, locks, clock, _ = keeping()
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    clock.advance(timedelta(seconds=14))
    keeper._look()
    assert locks.asked == []
    clock.advance(timedelta(seconds=6.5))
    keeper._look()
    assert len(locks.asked) == 1
    keeper.close()
    slow, locks, clock, _ = keeping()
    behind = Lease(grant(), deadline=clock.now() + 45, clock=clock)  # the answer took a quarter of the ttl
    slow.keep(behind, lambda _: None)
    clock.advance(timedelta(seconds=5.5))
    slow._look()
    assert len(locks.asked) == 1
    slow.close()


async def test_a_renewal_without_an_answer_is_sent_again_and_ends_nothing() -> None:
    keeper, locks, clock, events = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lost.append)
    clock.advance(timedelta(seconds=21))
    keeper._look()
    locks.asked[0].set_result(unknown())
    await turns()
    assert lost == []
    assert lease.state is LeaseState.UNKNOWN
    clock.advance(timedelta(seconds=7))
    keeper._look()
    assert len(locks.asked) == 2
    clock.advance(timedelta(seconds=7))
    keeper._look()
    assert len(locks.asked) == 3
    assert [type(event).__name__ for event in events].count("RenewalUnanswered") >= 1
    keeper.close()


async def test_a_body_is_told_at_the_deadline_itself_however_many_renewals_are_unanswered() -> None:
    keeper, _locks, clock, _ = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + trusted_s(TTL_MS), clock=clock)
    keeper.keep(lease, lost.append)
    while lease.deadline - clock.now() > 1:
        clock.advance(timedelta(seconds=1))
        await turns()
    clock.advance(timedelta(seconds=lease.deadline - clock.now() - 0.001))
    await turns()
    assert lost == []
    clock.advance(timedelta(milliseconds=2))
    await until(lambda: lost)
    assert lost == [LossReason.EXPIRED]
    assert clock.now() < lease.deadline + 0.01


async def test_a_refusal_ends_the_lease_and_tells_its_body() -> None:
    keeper, locks, clock, _ = keeping()
    lost: list[LossReason] = []
    keeper.keep(Lease(grant(), deadline=clock.now() + 60, clock=clock), lost.append)
    keeper.renew_now()
    locks.asked[0].set_result(NOT_HELD)
    await turns()
    assert lost == [LossReason.REFUSED]
    assert len(keeper) == 0


async def test_the_longest_hold_ends_a_lease_however_often_it_was_renewed() -> None:
    keeper, locks, clock, _ = keeping()
    lost: list[LossReason] = []
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lost.append, max_hold_s=30)
    assert lease.deadline == clock.now() + 30
    keeper.renew_now()
    locks.asked[0].set_result(HELD)
    await turns()
    clock.advance(timedelta(seconds=30))
    keeper._look()
    assert lost == [LossReason.MAX_HOLD]


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_lease_is_confirmed_by_the_servers_and_the_fence(accepts: bool) -> None:
    keeper, locks, clock, _ = keeping(fence=Fence(accepts=accepts))
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    confirming = asyncio.create_task(keeper.confirm(lease, 5.0))
    await turns()
    assert not confirming.done()
    assert len(locks.asked) == 1
    locks.asked[0].set_result(HELD)
    if accepts:
        await confirming
    else:
        with pytest.raises(LeaseLost):
            await confirming
        assert lease.loss is LossReason.FENCED
    keeper.close()


async def test_a_lease_that_is_not_confirmed_in_time_goes_on_but_is_not_confirmed() -> None:
    keeper, _locks, clock, _ = keeping()
    lease = Lease(grant(), deadline=clock.now() + 60, clock=clock)
    keeper.keep(lease, lambda _: None)
    confirming = asyncio.create_task(keeper.confirm(lease, 2.0))
    await turns()
    clock.advance(timedelta(seconds=2))
    await turns()
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLost) as caught:
            await confirming
    assert caught.value.reason is LossReason.UNCONFIRMED
    lease.ensure()
    keeper.close()


# --- waiting ---


class Line:
    """A lock that is busy until a test frees it."""

    ready = True

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.tickets: list[int] = []
        self.released: list[Any] = []

    async def acquire(self, asked: AcquireRequest, *, give_up_at: float) -> Any:
        self.tickets.append(asked.ticket)
        now = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(now, asyncio.Future):
            return await now
        return now

    def release(self, resource: Any, grant_id: Any) -> None:
        self.released.append(grant_id)

    def ask_again_s(self) -> float:
        return 0.9


def queueing(*answers: Any) -> tuple[Queue, Line, FakeClock]:
    line, clock = Line(*answers), FakeClock()
    anything: Any = line
    return Queue(anything, clock=clock, emit=lambda _: None), line, clock


def contended(ticket: int = 5, **more: Any) -> Contended:
    return Contended(busy(ticket, retry_ms=more.pop("retry_ms", 60_000), **more))


WON = Won(Token(9), math.inf)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("how", ["it gives up", "it is full", "it does not wait"])
async def test_whoever_gives_up_leaves_no_place(how: str) -> None:
    queue, line, clock = queueing(contended(queue_full=how == "it is full"))
    asked = request(queue=how != "it does not wait")
    give_up_at = clock.now() + (2 if how == "it gives up" else 30)
    asking = asyncio.create_task(queue.acquire(asked, give_up_at=give_up_at))
    await turns()
    if how == "it gives up":
        clock.advance(timedelta(seconds=2))
    async with asyncio.timeout(5):
        with pytest.raises(QueueFull if how == "it is full" else ResourceBusy):
            await asking
    assert line.released == ([] if how == "it does not wait" else [MINE])
    assert len(queue) == 0


async def test_a_waiter_asks_with_its_ticket_soon_again_and_when_it_is_woken() -> None:
    queue, line, clock = queueing(contended(5), contended(5), WON)
    asking = asyncio.create_task(queue.acquire(request(), give_up_at=clock.now() + 30))
    await until(lambda: len(queue) == 1)
    clock.advance(timedelta(seconds=0.95))
    await until(lambda: len(line.tickets) == 2)
    queue.wake(MINE)
    assert await asking is WON
    assert line.tickets == [0, 5, 5]


async def test_a_short_reservation_is_waited_for_no_longer_than_it_lasts() -> None:
    queue, _line, clock = queueing(contended(5, retry_ms=100), WON)
    asking = asyncio.create_task(queue.acquire(request(), give_up_at=clock.now() + 30))
    await until(lambda: len(queue) == 1)
    clock.advance(timedelta(milliseconds=150))
    async with asyncio.timeout(5):
        assert await asking is WON


async def test_only_the_first_of_a_process_asks_by_itself_and_the_next_follows_it() -> None:
    queue, line, clock = queueing(contended(5))
    give_up_at = clock.now() + 300
    first = asyncio.create_task(queue.acquire(request(), give_up_at=give_up_at))
    await until(lambda: len(queue) == 1)
    other = AcquireRequest(APT, OTHER, "h", "o", TTL_MS, queue=True)
    second = asyncio.create_task(queue.acquire(other, give_up_at=give_up_at))
    await until(lambda: len(queue) == 2)
    asked = len(line.tickets)
    clock.advance(timedelta(seconds=1))
    await until(lambda: len(line.tickets) == asked + 1)
    await turns()
    assert len(line.tickets) == asked + 1
    line.answers = [WON]
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert line.released == [MINE]
    await turns()
    assert len(line.tickets) == asked + 1  # it rests anew, as the first of its process now
    clock.advance(timedelta(seconds=1))
    async with asyncio.timeout(5):
        assert await second is WON


async def test_a_release_has_the_next_of_this_process_ask_only_if_nobody_else_is_ahead() -> None:
    for ahead, follows in ((0, True), (1, False), (None, False)):
        queue, line, clock = queueing(contended(5, ahead=ahead))
        asking = asyncio.create_task(queue.acquire(request(), give_up_at=clock.now() + 30))
        await until(lambda queue=queue: len(queue) == 1)  # type: ignore[misc]
        await turns()
        line.answers = [WON]
        assert (queue.follow(APT) == MINE) is follows
        queue.wake(MINE)
        await asking


async def test_places_that_vanished_are_taken_again_by_all_of_the_process() -> None:
    queue, line, clock = queueing(contended(5))
    give_up_at = clock.now() + 300
    first = asyncio.create_task(queue.acquire(request(), give_up_at=give_up_at))
    await until(lambda: len(queue) == 1)
    other = AcquireRequest(APT, OTHER, "h", "o", TTL_MS, queue=True)
    second = asyncio.create_task(queue.acquire(other, give_up_at=give_up_at))
    await until(lambda: len(queue) == 2)
    asked = len(line.tickets)
    line.answers = [contended(5, requeued=True), contended(5), contended(5)]
    queue.wake(MINE)
    await until(lambda: len(line.tickets) == asked + 2)
    for task in (first, second):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_guard_that_closes_ends_the_wait_of_all_and_gives_their_places_back() -> None:
    queue, line, clock = queueing(contended(5))
    asking = asyncio.create_task(queue.acquire(request(), give_up_at=clock.now() + 300))
    await until(lambda: len(queue) == 1)
    queue.close()
    assert line.released == [MINE]
    async with asyncio.timeout(5):
        with pytest.raises(ConfigurationError, match="was closed"):
            await asking


async def test_a_wake_up_during_a_request_is_kept_for_the_next_rest() -> None:
    queue, line, clock = queueing(contended(5))
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    line.answers = [contended(5), answer, WON]
    asking = asyncio.create_task(queue.acquire(request(), give_up_at=clock.now() + 300))
    await until(lambda: len(queue) == 1)
    queue.wake(MINE)
    await until(lambda: len(line.tickets) == 2)
    queue.wake(MINE)  # while the request is under way
    answer.set_result(contended(5))
    async with asyncio.timeout(5):
        assert await asking is WON
