"""What a hold decides on its way in and out, with a fence that answers what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest
import redis

from lockguard import ConfigurationError, LeaseLost, LockGuard, LossReason, ResourceBusy, SelfDeadlock
from lockguard._lease import Grant, Resource, Token
from lockguard._locks import Found
from lockguard.errors import FenceUnavailable
from lockguard.events import Lost, NotAcquired, Released, Unwound
from lockguard.ports import Outrun, Sealed

NAME = "binance:APTUSDT"
LOCK = "lockguard:{binance:APTUSDT}"
SECOND = timedelta(seconds=1)


class Fence:
    """Seals with the answers of a list; notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[tuple[str, int]] = []
        self.hangs = False

    async def seal(self, grant: Grant, *, within: timedelta) -> Sealed | Outrun:
        self.asked.append(("seal", grant.token))
        if self.hangs:
            await asyncio.Event().wait()
        answer = self.answers.pop(0) if self.answers else Sealed(grant.token, f"f {grant.token}")
        if callable(answer):
            answer = answer(grant)
        if isinstance(answer, BaseException):
            raise answer
        found: Sealed | Outrun = answer
        return found

    async def close(self, grant: Grant, *, within: timedelta) -> None:
        self.asked.append(("close", grant.token))

    async def break_(self, resource: Resource, *, reason: str, within: timedelta) -> Token:
        return Token(1)

    def closed(self) -> list[int]:
        return [token for what, token in self.asked if what == "close"]


class Watch:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Desk:
    def __init__(self, url: str, **options: Any) -> None:
        self.fence = Fence()
        self.watch = Watch()
        self.client = redis.Redis.from_url(url, decode_responses=True)
        options = {"fence": self.fence, "observers": [self.watch], "fence_within": SECOND, **options}
        self.guard = LockGuard.from_url(url, **options)

    @property
    def held(self) -> bool:
        return bool(self.client.exists(LOCK))


@pytest.fixture
async def desk(redis_url: str) -> AsyncIterator[Desk]:
    made = Desk(redis_url)
    async with made.guard:
        yield made
    made.client.close()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


# --- in ---


async def test_a_hold_is_entered_once(desk: Desk) -> None:
    hold = desk.guard.hold(NAME)
    async with hold:
        pass
    with pytest.raises(ConfigurationError, match="entered before"):
        async with hold:
            pytest.fail("it was entered")


async def test_an_inner_hold_leaves_the_lock_to_the_outer_one_and_is_not_entered_under_a_lost_lease(
    desk: Desk,
) -> None:
    with pytest.raises(LeaseLost):
        async with desk.guard.hold(NAME) as lease:
            async with desk.guard.hold(NAME) as inner:
                assert inner is lease
            assert desk.held
            assert desk.fence.closed() == []
            lease.mark_lost(LossReason.REFUSED)
            async with desk.guard.hold(NAME):
                pytest.fail("it was entered")


async def test_another_task_s_hold_is_not_this_one_s(desk: Desk) -> None:
    async with desk.guard.hold(NAME):

        async def child() -> None:
            async with desk.guard.hold(NAME, on_busy="raise"):
                pytest.fail("both hold it")

        with pytest.raises(ResourceBusy):
            await asyncio.create_task(child())


async def test_a_child_that_its_parent_waits_for_is_told_that_it_would_wait_for_ever(desk: Desk) -> None:
    async def child() -> None:
        async with desk.guard.hold(NAME, wait=timedelta(minutes=5)):
            pytest.fail("both hold it")

    async with desk.guard.hold(NAME):
        async with asyncio.timeout(3):
            with pytest.raises(SelfDeadlock):
                await asyncio.create_task(child())


async def test_a_seal_that_is_outrun_goes_on_with_a_higher_token_while_the_lock_is_held(desk: Desk) -> None:
    desk.fence.answers = [lambda grant: Outrun(Token(grant.token + 50))]
    async with desk.guard.hold(NAME) as lease:
        first, second = (token for what, token in desk.fence.asked if what == "seal")
        assert second == first + 51
        assert lease.token == second
        assert int(desk.client.hget(LOCK, "token")) == second  # type: ignore[arg-type]


async def test_a_seal_that_is_outrun_by_a_successor_is_no_lease(desk: Desk) -> None:
    def succeeded(grant: Grant) -> Outrun:
        desk.client.hset(LOCK, "grant", "b" * 32)
        return Outrun(Token(grant.token + 50))

    desk.fence.answers = [succeeded]
    with pytest.raises(ResourceBusy, match="passed to somebody else"):
        async with desk.guard.hold(NAME):
            pytest.fail("it was entered")
    assert desk.client.hget(LOCK, "grant") == "b" * 32


@pytest.mark.parametrize("how", ["it fails", "it hangs", "it is set up wrong"])
async def test_a_seal_that_was_not_made_leaves_neither_lock_nor_grant(desk: Desk, how: str) -> None:
    failure: Exception = FenceUnavailable("no answer", resource=NAME)
    if how == "it is set up wrong":
        failure = ConfigurationError("no schema")
    desk.fence.answers = [failure]
    desk.fence.hangs = how == "it hangs"
    async with asyncio.timeout(5):
        with pytest.raises(type(failure)):
            async with desk.guard.hold(NAME):
                pytest.fail("it was entered")
    await until(lambda: not desk.held)
    await until(lambda: how == "it is set up wrong" or desk.fence.closed())
    assert len(desk.watch.of(NotAcquired)) == 1


async def test_a_lease_that_ended_while_it_was_sealed_is_not_entered(desk: Desk) -> None:
    def slowly(grant: Grant) -> Sealed:
        core: Any = desk.guard
        keeper = core._binding.core.keeper
        keeper.end(grant.id, LossReason.REFUSED)
        return Sealed(grant.token)

    desk.fence.answers = [slowly]
    with pytest.raises(LeaseLost):
        async with desk.guard.hold(NAME):
            pytest.fail("it was entered")


async def test_many_are_taken_in_one_order_and_within_one_patience(desk: Desk) -> None:
    async with desk.guard.hold_many(["b", "a"]) as leases:
        assert [lease.resource for lease in leases] == ["b", "a"]
        assert leases[1].token <= leases[0].token
    desk.client.hset("lockguard:{a}", mapping={"grant": "x", "token": 1})
    desk.client.pexpire("lockguard:{a}", 400)
    desk.client.hset("lockguard:{b}", mapping={"grant": "x", "token": 1})
    desk.client.pexpire("lockguard:{b}", 60_000)
    began = asyncio.get_running_loop().time()
    with pytest.raises(ResourceBusy):
        async with desk.guard.hold_many(["b", "a"], wait=SECOND):
            pytest.fail("b is held")
    assert asyncio.get_running_loop().time() - began < 1.35


# --- out ---


async def test_the_end_of_a_body_closes_the_fence_and_keeps_its_seal(desk: Desk) -> None:
    async with desk.guard.hold(NAME) as lease:
        token = lease.token
    assert desk.fence.closed() == [token]
    assert desk.client.get(f"{LOCK}:seal") == f"f {token}"
    assert not desk.held
    assert desk.watch.of(Released)[0].found


async def test_at_least_closes_the_resource_after_its_body(desk: Desk) -> None:
    async with desk.guard.hold(NAME, at_least=timedelta(seconds=30)):
        pass
    assert 20_000 < int(desk.client.pttl(f"{LOCK}:tenure")) <= 30_000  # type: ignore[arg-type]


async def test_a_lock_that_was_gone_at_its_release_was_lost(desk: Desk) -> None:
    with pytest.raises(LeaseLost):
        async with desk.guard.hold(NAME):
            desk.client.delete(LOCK)
    assert [event.reason for event in desk.watch.of(Lost)] == [LossReason.REFUSED]
    assert len(desk.watch.of(Unwound)) == 1


async def test_the_body_s_own_error_is_not_replaced_by_the_loss(desk: Desk) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        async with desk.guard.hold(NAME):
            desk.client.delete(LOCK)
            raise ValueError("mine")
    assert "was lost" in caught.value.__notes__[0]


async def lose(desk: Desk, lease: Any) -> None:
    """The lock is taken, and the next renewal learns of it."""
    desk.client.hset(LOCK, "grant", "b" * 32)
    core: Any = desk.guard
    core._binding.core.keeper.renew_now()


async def test_a_body_whose_lease_is_lost_is_cancelled_and_its_caller_sees_the_loss(desk: Desk) -> None:
    task = asyncio.current_task()
    assert task is not None
    async with asyncio.timeout(5):
        with pytest.raises(LeaseLost):
            async with desk.guard.hold(NAME) as lease:
                await lose(desk, lease)
                await asyncio.Event().wait()
    assert task.cancelling() == 0
    await asyncio.sleep(0)
    await until(lambda: len(desk.fence.closed()) == 1)


@pytest.mark.parametrize("busy", [True, False])
async def test_a_cancel_from_outside_stays_one_whichever_came_first(desk: Desk, busy: bool) -> None:
    for first in ("outside", "loss"):
        desk.client.delete(LOCK)
        entered = asyncio.Event()

        async def body(entered: asyncio.Event = entered) -> None:
            async with desk.guard.hold(NAME):
                entered.set()
                while busy:  # a task that waits for nothing when it is cancelled
                    await asyncio.sleep(0)
                await asyncio.Event().wait()

        task = asyncio.create_task(body())
        await entered.wait()
        core: Any = desk.guard
        keeper = core._binding.core.keeper
        (grant,) = keeper.grants_on(NAME)
        if first == "outside":
            task.cancel()
            keeper.end(grant, LossReason.REFUSED)
        else:
            keeper.end(grant, LossReason.REFUSED)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not desk.held)


async def test_a_lost_lease_s_release_begins_the_lock_delay(redis_url: str) -> None:
    desk = Desk(redis_url, lock_delay=timedelta(seconds=20))
    async with desk.guard:
        with pytest.raises(LeaseLost):
            async with desk.guard.hold(NAME) as lease:
                lease.end(LossReason.FENCED)
                await asyncio.Event().wait()
        await until(lambda: not desk.held)
        assert 0 < int(desk.client.pttl(f"{LOCK}:tenure")) <= 20_000  # type: ignore[arg-type]
    desk.client.close()


async def test_a_task_that_ends_with_its_hold_open_gives_the_lock_and_the_fence_back(desk: Desk) -> None:
    hold = desk.guard.hold(NAME)

    async def enters_only() -> None:
        await hold.__aenter__()

    await asyncio.create_task(enters_only())
    await until(lambda: not desk.held)
    await until(lambda: len(desk.fence.closed()) == 1)
    with pytest.raises(LeaseLost):
        await hold.__aexit__(None, None, None)


async def test_a_lock_that_ran_out_before_its_release_is_not_one_that_was_taken(redis_url: str) -> None:
    desk = Desk(redis_url, max_hold=timedelta(milliseconds=300))
    async with desk.guard:
        with pytest.raises(LeaseLost) as caught:
            async with desk.guard.hold(NAME):
                await asyncio.Event().wait()
        assert caught.value.reason is LossReason.MAX_HOLD
    desk.client.close()


async def test_a_lock_that_ran_out_while_its_release_was_under_way_is_no_loss(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: Any = desk.guard
    async with desk.guard.hold(NAME) as lease:
        locks = inside._binding.core.locks

        def release(*_: Any, **__: Any) -> Any:
            async def late() -> Found:
                lease._deadline = 0.0  # the answer came after it
                return Found.NO

            return late

        monkeypatch.setattr(locks, "release", release)
    assert desk.watch.of(Lost) == []
    assert [event.found for event in desk.watch.of(Released)] == [False]
    monkeypatch.undo()
    desk.client.delete(LOCK)
