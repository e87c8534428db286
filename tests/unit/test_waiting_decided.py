"""A waiter: when it asks, when it rests, and what it leaves when it gives up."""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from typing import Any

import pytest

from lockguard._lease import Token
from lockguard._locks import Contended, Won
from lockguard._waiting import Queue
from lockguard.errors import (
    ConfigurationError,
    QueueFull,
    ResourceBusy,
)
from lockguard.ports import (
    AcquireRequest,
)
from lockguard.testing import FakeClock
from tests.unit.nodes_in_memory import APT, MINE, OTHER, TTL_MS, busy, request, turns, until


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
