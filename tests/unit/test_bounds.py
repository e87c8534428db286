"""What is bounded ends as under ``asyncio.timeout``: each law is held to both."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lockguard._awaiting import Bound, Bounds

SECONDS = 0.05


def ours() -> Callable[[], Any]:
    bounds = Bounds(SECONDS)

    @asynccontextmanager
    async def bounded():
        with Bound(bounds):
            yield

    return bounded


@pytest.fixture(params=["ours", "asyncio's"])
def bounded(request) -> Callable[[], Any]:
    return ours() if request.param == "ours" else lambda: asyncio.timeout(SECONDS)


async def test_a_body_that_takes_too_long_ends_with_timeout_error_and_its_task_is_not_cancelled(
    bounded, request
):
    with pytest.raises(TimeoutError) as told:
        async with bounded():
            await asyncio.Event().wait()
    assert isinstance(told.value.__context__, asyncio.CancelledError)
    # The timeout of Debian 12's Python 3.11.2 names no cause.
    if request.node.callspec.params["bounded"] == "ours" or sys.version_info >= (3, 11, 4):
        assert isinstance(told.value.__cause__, asyncio.CancelledError)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)


async def test_a_body_that_ends_in_time_is_left_alone_and_later_ones_are_bounded(bounded):
    for _ in range(3):
        async with bounded():
            await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with bounded():
            await asyncio.Event().wait()
    assert asyncio.current_task().cancelling() == 0


async def test_a_cancel_from_outside_stays_one(bounded):
    began = asyncio.Event()

    async def body():
        async with bounded():
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await began.wait()
    task.cancel("outside")
    with pytest.raises(asyncio.CancelledError, match="outside"):
        await task


async def test_a_cancel_from_outside_that_meets_the_end_of_the_time_stays_one(bounded):
    async def body():
        async with bounded():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                asyncio.current_task().cancel("outside")  # before ours has left the body
                raise

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(body())


async def test_an_error_of_the_body_wins(bounded):
    with pytest.raises(KeyError):
        async with bounded():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise KeyError from None
    assert asyncio.current_task().cancelling() == 0


async def test_of_two_bodies_each_has_its_own_time(bounded):
    ended, first_began = [], asyncio.Event()

    async def body(name: str):
        if name == "first":
            first_began.set()
        else:
            await first_began.wait()
        began = asyncio.get_running_loop().time()
        try:
            async with bounded():
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append((name, asyncio.get_running_loop().time() - began))

    await asyncio.gather(body("second"), body("first"))
    assert [name for name, _ in ended] == ["first", "second"]
    assert all(took_s > SECONDS - 0.01 for _, took_s in ended)


async def test_a_body_is_still_ended_when_its_bounds_are_closed_and_so_is_a_later_one():
    bounds = Bounds(SECONDS)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            with Bound(bounds):
                bounds.close()
                await asyncio.Event().wait()
        bounds.close()
        assert bounds._timer is None


async def test_a_body_that_nobody_goes_on_with_leaves_nothing_behind():
    bounds = Bounds(SECONDS)

    async def items():
        with Bound(bounds):
            yield 1
            yield 2

    generator = items()
    await anext(generator)
    await generator.aclose()
    assert not bounds._open
    while bounds._timer is not None:
        await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0
