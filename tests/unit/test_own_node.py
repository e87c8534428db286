"""A node of the user's own: written before the protocol grew arguments with defaults, or with mistakes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from lockguard import LeaseLost, LockGuard, LossReason
from lockguard._nodes.memory import MemoryNode, MemoryStore
from lockguard.testing import FakeClock

NAME, OTHER = "binance:APTUSDT", "binance:BTCUSDT"
TTL_S = 6.0


class OwnNode(MemoryNode):
    """Knows neither ``at_least_ms`` nor ``grant``."""

    def release(self, resource, grant, *, lost=False, seal=""):
        return super().release(resource, grant, lost=lost, seal=seal)

    def break_(self, resource, *, reason, token):
        return super().break_(resource, reason=reason, token=token)

    def request_handover(self, resource, *, reason):
        return super().request_handover(resource, reason=reason)


def new_guard(store: MemoryStore, inbox: str) -> LockGuard:
    return LockGuard([OwnNode(store, inbox=inbox)], observers=[])


async def test_a_node_without_the_later_arguments_locks_releases_and_hands_over():
    store = MemoryStore()
    async with new_guard(store, "a") as guard, new_guard(store, "b") as other:
        async with guard.hold(NAME) as lease:
            assert await other.request_handover(NAME, reason="a test")
        async with other.hold(NAME) as later:
            assert later.token > lease.token


async def test_a_node_without_the_later_arguments_is_broken():
    store = MemoryStore()
    async with new_guard(store, "a") as guard, new_guard(store, "b") as other:
        with pytest.raises(LeaseLost):
            async with guard.hold(NAME):
                await other.break_(NAME, reason="a test")


def raises() -> Any:
    raise RuntimeError("boom")


def is_cancelled() -> Any:
    raise asyncio.CancelledError


def later(do: Callable[[asyncio.Future[Any]], None]) -> Callable[[], Any]:
    def ask() -> Any:
        asked = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(do, asked)
        return asked

    return ask


async def _nothing() -> None: ...


def coroutine() -> Coroutine[Any, Any, None]:
    return _nothing()


MISTAKES: dict[str, Callable[[], Any]] = {
    "raises": raises,
    "raises a cancel": is_cancelled,
    "gives nothing": lambda: None,
    "gives an answer and no future of one": lambda: True,
    "is an async def": coroutine,
    "raises later": later(lambda asked: asked.set_exception(RuntimeError("boom"))),
    "gives no vote": later(lambda asked: asked.set_result(True)),
}


class Mistaken(OwnNode):
    """Makes a mistake each time that it is asked about ``NAME``."""

    def __init__(self, store: MemoryStore, *, method: str, mistake: Callable[[], Any]) -> None:
        super().__init__(store, inbox="a")
        self.method, self.mistake = method, mistake
        self.made = 0

    def still_holds(self, resource, grant):
        if self.method == "still_holds" and resource == NAME:
            self.made += 1
            return self.mistake()
        return super().still_holds(resource, grant)

    def extend(self, resource, grant, ttl_ms, *, seal=""):
        if self.method == "extend" and resource == NAME:
            self.made += 1
            return self.mistake()
        return super().extend(resource, grant, ttl_ms, seal=seal)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("method", ["extend", "still_holds"])
async def test_a_mistake_of_a_node_is_no_answer_and_ends_no_other_lease(method, mistake, caplog):
    """Of the lease that it concerns the deadline stands: the body is cut when it passes, and not before."""
    clock = FakeClock()
    node = Mistaken(MemoryStore(clock), method=method, mistake=MISTAKES[mistake])
    ended: dict[str, float | LossReason] = {}

    async def body(name: str, held_s: float) -> None:
        try:
            async with guard.hold(name):
                await clock.sleep(held_s)  # on the clock of the test
                ended[name] = held_s
        except LeaseLost as lost:
            ended[name] = lost.reason

    guard = LockGuard([node], observers=[], ttl=timedelta(seconds=TTL_S), clock=clock)
    with caplog.at_level(logging.ERROR):
        async with guard:
            bodies = [asyncio.create_task(body(name, 3 * TTL_S)) for name in (NAME, OTHER)]
            await clock.run_for(timedelta(seconds=TTL_S - 0.2))
            assert ended == {}
            await clock.run_for(timedelta(seconds=0.2))
            assert ended == ({NAME: LossReason.EXPIRED} if method == "extend" else {})
            await clock.run_for(timedelta(seconds=2 * TTL_S + 1))
            await asyncio.gather(*bodies)
    assert ended[OTHER] == 3 * TTL_S
    assert ended[NAME] == (LossReason.EXPIRED if method == "extend" else 3 * TTL_S)
    assert node.made > 2
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.args for record in told] == [(method, "memory")]


async def test_a_health_check_of_a_node_is_not_asked_about_locks():
    """A node of before may have had any method but those of the protocol."""

    class WithHealth(OwnNode):
        def check(self) -> bool:
            return self.ready

    clock = FakeClock()
    node = WithHealth(MemoryStore(clock), inbox="a")
    async with LockGuard([node], observers=[], ttl=timedelta(seconds=TTL_S), clock=clock) as guard:

        async def body() -> None:
            async with guard.hold(NAME):
                await clock.sleep(2 * TTL_S)  # on the clock of the test

        holding = asyncio.create_task(body())
        await clock.run_for(timedelta(seconds=2 * TTL_S + 1))
        await holding
