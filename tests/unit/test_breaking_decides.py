"""What a break ends, in which order, and what it may say that it did."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from lockguard._breaking import break_lock, token_of
from lockguard._lease import Grant, GrantId, Lease, Resource, Token
from lockguard._renewal import Keeper
from lockguard._rounds import Rounds
from lockguard.errors import ChangedHands, LossReason, NodeRefused, QuorumUnavailable
from lockguard.ports import Broken, Inspection, NotExecuted, Outrun, Sealed
from lockguard.testing import FakeClock, MemoryFence

APT = Resource("binance:APTUSDT")
MINE, OTHER = GrantId("a" * 32), GrantId("b" * 32)
SILENT = None
GONE, FREE = Broken(MINE, "h", Token(7)), Broken("", "", Token(7))
KEPT = Broken(OTHER, "i", Token(8), kept=True)
NEVER_LEFT = NotExecuted(NodeRefused("x", node="n"))


class Node:
    """One of several nodes, which answers each break with the same."""

    def __init__(self, name: str, vote: Any, done: list[Any]) -> None:
        self.name = name
        self._vote = vote
        self._done = done
        self.asked: list[dict[str, Any]] = []

    def break_(self, resource: Resource, *, reason: str, **asked: Any) -> asyncio.Future[Any]:
        self._done.append("node")
        self.asked.append(asked)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._vote is not SILENT:
            future.set_result(self._vote)
        return future

    def inspect(self, resource: Resource) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()


class Fence:
    """A fence that has answers, and keeps what it was asked."""

    def __init__(self, done: list[Any], *answers: Any) -> None:
        self._done = done
        self._answers = list(answers)
        self.broken: list[tuple[str, int]] = []
        self.closed: list[tuple[str, int]] = []

    def start(self) -> None: ...

    async def aclose(self) -> None: ...

    async def seal(self, grant: Grant, *, within: timedelta) -> Any: ...

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        self.closed.append((grant.id, grant.token))

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        self._done.append("fence")
        return Token(self._answers.pop(0))

    async def break_grant(self, grant: Grant, *, reason: str, within: timedelta) -> Any:
        self._done.append("fence")
        self.broken.append((grant.id, grant.token))
        return self._answers.pop(0)


class Guard:
    """The parts of a guard that a break needs, with a lease of each grant."""

    def __init__(self, *votes: Any, fence: tuple[Any, ...] | None = None) -> None:
        self.done: list[Any] = []
        self.nodes: list[Any] = [Node(str(number), vote, self.done) for number, vote in enumerate(votes)]
        self.fence = None if fence is None else Fence(self.done, *fence)
        self._rounds = Rounds(self.nodes, patience_s=0.02)
        clock = FakeClock()
        self.lost: dict[GrantId, LossReason] = {}
        anything: Any = self
        self.keeper = Keeper(anything, clock=clock, emit=lambda _: None, fence=None)
        for number, grant in enumerate((MINE, OTHER), 7):
            lease = Lease(
                Grant(APT, grant, Token(number), "h", "o", 60_000), deadline=clock.now() + 60, clock=clock
            )
            self.keeper.keep(lease, lambda reason, grant=grant: self.lost.update({grant: reason}))

    async def ask_all(self, ask: Any) -> Any:
        return await self._rounds.collect([ask(node) for node in self.nodes])

    async def break_(self, grant: str | None = None, token: int = 0) -> Broken:
        core: Any = SimpleNamespace(
            keeper=self.keeper, fence=self.fence, locks=self, fence_within=timedelta(seconds=1)
        )
        try:
            return await break_lock(core, APT, "for the test", grant, Token(token))
        finally:
            self._rounds.close()
            self.keeper.close()


async def test_the_fence_is_broken_before_any_node_and_the_lease_here_ends() -> None:
    guard = Guard(GONE, GONE, GONE, fence=(Token(8),))
    assert await guard.break_(MINE, 7) == GONE
    assert guard.done == ["fence", "node", "node", "node"]
    assert guard.fence is not None
    assert guard.fence.broken == [(MINE, 7)]
    assert guard.lost == {MINE: LossReason.BROKEN}
    assert [node.asked for node in guard.nodes] == [[{"token": 10, "grant": MINE}]] * 3


async def test_a_break_is_made_by_a_majority() -> None:
    assert await Guard(GONE, FREE, SILENT).break_() == GONE
    with pytest.raises(QuorumUnavailable):
        await Guard(GONE, SILENT, NEVER_LEFT).break_()


@pytest.mark.parametrize(("vote", "ends"), [(SILENT, True), (NEVER_LEFT, False)])
async def test_a_lease_here_ends_if_its_break_may_have_arrived(vote: Any, *, ends: bool) -> None:
    guard = Guard(vote, NEVER_LEFT, NEVER_LEFT)
    with pytest.raises(QuorumUnavailable):
        await guard.break_(MINE, 7)
    assert (MINE in guard.lost) is ends
    assert OTHER not in guard.lost


@pytest.mark.parametrize("votes", [(KEPT, KEPT, GONE), (KEPT, KEPT, SILENT), (KEPT, FREE, SILENT)])
async def test_a_lock_that_another_grant_holds_is_not_said_to_be_broken_and_that_one_goes_on(
    votes: Any,
) -> None:
    guard = Guard(*votes)
    with pytest.raises(ChangedHands) as caught:
        await guard.break_(MINE, 7)
    assert caught.value.grant == OTHER
    assert OTHER not in guard.lost


async def test_what_redis_gave_beyond_the_fence_is_broken_there_too_and_the_next_token_is_higher() -> None:
    late = Broken(MINE, "h", Token(9))
    guard = Guard(late, late, late, fence=(5, Token(10)))
    assert (await guard.break_()).grant == MINE
    assert guard.fence is not None
    assert [token for _, token in guard.fence.broken] == [9]
    # Only a lock that is free: the floor rises, and whoever has it by now keeps it.
    assert [node.asked for node in guard.nodes] == [[{"token": 7}, {"token": 10, "grant": ""}]] * 3


async def test_of_an_expected_grant_that_redis_gave_beyond_the_fence_the_fence_is_closed() -> None:
    late = Broken(MINE, "h", Token(9))
    guard = Guard(late, late, late, fence=(Token(8),))
    await guard.break_(MINE, 7)
    assert guard.fence is not None
    assert guard.fence.closed == [(MINE, 9)]


@pytest.mark.parametrize(
    ("floors", "bounds"),
    [
        ((5, 6, 900), [6]),  # a successor needs two of the nodes, so it is above 6, and may be below 900
        ((900, 5, 6), [6]),
        ((5, 900, None), [5]),  # it may have the first and the silent one
        ((5, None, None), []),  # it may have the two silent ones
        ((5, 6, 7, 800, 900), [7]),
        ((5, 6, 900, None, None), [5]),
    ],
)
async def test_who_has_sealed_is_thrown_out_late_only_below_any_token_that_a_successor_can_have(
    floors: tuple[int | None, ...], bounds: list[int]
) -> None:
    votes = [SILENT if floor is None else Broken(MINE, "h", Token(floor)) for floor in floors]
    guard = Guard(*votes, fence=(4, Outrun(Token(1_000))))
    with contextlib.suppress(QuorumUnavailable):
        await guard.break_()
    assert guard.fence is not None
    assert [token for _, token in guard.fence.broken] == bounds
    # Who has not sealed would be let in up to the highest.
    assert [token for _, token in guard.fence.closed] == [max(floor for floor in floors if floor)]
    assert [len(node.asked) for node in guard.nodes] == [1] * len(floors)


@pytest.mark.parametrize(("votes", "closes"), [((GONE, GONE, FREE), True), ((GONE, FREE, FREE), False)])
async def test_a_grant_that_only_a_minority_showed_may_hold_the_lock_and_is_not_closed_by_its_id(
    votes: Any, *, closes: bool
) -> None:
    guard = Guard(*votes, fence=(4, Outrun(Token(9))))
    await guard.break_()
    assert guard.fence is not None
    assert ([grant for grant, _ in guard.fence.closed] == [MINE]) is closes


@pytest.mark.parametrize("sealed", [False, True], ids=["seals later", "has sealed"])
async def test_a_successor_that_got_in_on_other_nodes_than_the_one_ahead_is_left_alone(
    *, sealed: bool
) -> None:
    second = timedelta(seconds=1)
    fence, old = MemoryFence(), Grant(APT, MINE, Token(7), "h", "o", 60_000)
    await fence.seal(old, within=second)
    now = round(time.time() * 1e6) + 60_000_000
    guard = Guard(*(Broken(MINE, "h", Token(now + ahead)) for ahead in (0, 1, 3_600_000_000)), fence=())
    guard.fence = fence  # type: ignore[assignment]
    successor = Grant(APT, OTHER, Token(now + 2), "i", "o", 60_000)

    async def ask_all(ask: Any, *, collect: Any = guard.ask_all) -> Any:
        votes = await collect(ask)
        if sealed:
            assert await fence.seal(successor, within=second) == Sealed(successor.token)
        return votes

    guard.ask_all = ask_all  # type: ignore[method-assign]
    await guard.break_()
    if not sealed:
        answer = await fence.seal(successor, within=second)
        assert isinstance(answer, Outrun)  # so it settles a higher one: the lock is its own
        successor = replace(successor, token=Token(answer.current + 1))
        assert await fence.seal(successor, within=second) == Sealed(successor.token)
    assert await fence.confirm(successor, within=second)
    assert isinstance(await fence.seal(old, within=second), Outrun)


async def test_a_fence_that_was_outrun_still_has_the_lock_asked_for_the_grant() -> None:
    guard = Guard(FREE, FREE, FREE, fence=(Outrun(Token(9)),))
    assert not (await guard.break_(MINE, 7)).grant
    assert [node.asked for node in guard.nodes] == [[{"token": 11, "grant": MINE}]] * 3
    assert guard.lost == {MINE: LossReason.BROKEN}


def seen(*, held: bool = True, grant: str = MINE) -> Inspection:
    return Inspection(
        *(APT, held, grant, 7, "h", "o"), age_ms=1, remaining_ms=1, ttl_ms=1, renewals=0, waiters=()
    )


def test_the_token_of_a_grant_is_told_only_while_that_grant_holds_the_lock() -> None:
    assert token_of(seen(), MINE) == 7
    assert token_of(seen(held=False), MINE) == 0
    with pytest.raises(ChangedHands):
        token_of(seen(grant=OTHER), MINE)
