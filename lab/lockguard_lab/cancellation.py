"""Cancels a coroutine at each of its steps and tells what came out.

A step is one suspension, of the coroutine or of a task that it starts. A cancel that arrives as soon as the
coroutine waits is the one that everybody thinks of. The other kind arrives in the same turn of the event loop
as the answer: the answer is there, the coroutine never sees it, and what the answer granted is left behind
unless somebody gives it back. Both are tried, and a cancel that is followed by another one while the
coroutine tidies up, a time limit that runs out, and a ``TaskGroup`` around it that ends.

What must not be left behind differs from call to call, so the caller judges after each attempt.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["How", "Outcome", "Point", "cancelled_at", "complaints", "points_of"]

Call: TypeAlias = Callable[[], Awaitable[Any]]
"""Makes the awaitable that is cancelled."""

WITHIN_S = 20.0
"""How long a call may take to end after it was cancelled, in seconds."""


class How(StrEnum):
    """How the cancel reaches the coroutine."""

    CANCEL = "cancel"
    """Its task is cancelled as soon as it waits."""
    LATE = "late"
    """Its task is cancelled in the turn in which it is answered, before it has seen the answer."""
    TIMEOUT = "timeout"
    """A time limit around it runs out."""
    GROUP = "group"
    """Another task of the ``TaskGroup`` around it fails."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where a coroutine is cancelled.

    Attributes:
        step: at which step, from 1.
        how: in which way.
        again: after how many further steps it is cancelled once more; 0 for never.
    """

    step: int
    how: How = How.CANCEL
    again: int = 0

    def __str__(self) -> str:
        again = f" and {self.again} steps later" if self.again else ""
        return f"{self.how} at step {self.step}{again}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a coroutine.

    Attributes:
        steps: how many steps it took, with those of the tasks that it started.
        struck: how many cancels reached it before it ended.
        ended: how it ended: ``cancelled``, ``returned`` or ``raised``.
        error: what it raised, if not the cancel.
    """

    steps: int
    struck: int
    ended: str
    error: BaseException | None = None


@dataclass(slots=True)
class _Probe:
    """Counts steps and strikes."""

    point: Point | None
    strike: Callable[[], object] = lambda: None
    main: asyncio.Task[Any] | None = None
    steps: int = 0
    struck: int = 0
    next_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.next_at = self.point.step if self.point else 0

    def stepped(self) -> None:
        """After a task has been suspended."""
        self.steps += 1
        if self.steps == self.next_at and self.point is not None:
            late = self.point.how is How.LATE and not self.struck
            if not late:
                self.hit()

    def answered(self, task: asyncio.Task[Any]) -> None:
        """Before a task that was suspended goes on."""
        point = self.point
        if point is None or self.struck or point.how is not How.LATE or task is not self.main:
            return
        if self.steps >= self.next_at:
            self.hit()

    def hit(self) -> None:
        """Strike, unless it has ended."""
        assert self.point is not None
        if self.main is None or self.main.done():
            return
        self.struck += 1
        self.next_at = self.steps + self.point.again if self.struck == 1 and self.point.again else 0
        if self.struck == 1:
            self.strike()
        else:
            self.main.cancel()


_probe: ContextVar[_Probe | None] = ContextVar("_probe", default=None)

if TYPE_CHECKING:
    _PythonTask: TypeAlias = asyncio.Task[Any]
else:
    # The task of asyncio that is written in Python: the other one cannot be watched.
    _PythonTask = asyncio.tasks._PyTask


class _WatchedTask(_PythonTask):
    """A task that tells a probe of its steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._probe = _probe.get()
        super().__init__(*args, **options)

    def _Task__step(self, *args: Any) -> None:  # noqa: N802 - the name that asyncio calls
        probe = self._probe  # asyncio drops its own reference to the task at the end of a step
        super()._Task__step(*args)  # type: ignore[misc]
        if probe is not None and not self.done():
            probe.stepped()

    def _Task__wakeup(self, future: Any) -> None:  # noqa: N802 - the name that asyncio calls
        if self._probe is not None:
            self._probe.answered(self)
        super()._Task__wakeup(future)  # type: ignore[misc]


def _factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    kind: Any = asyncio.Task if _probe.get() is None else _WatchedTask
    task: asyncio.Task[Any] = kind(coro, loop=loop, **options)
    return task


async def cancelled_at(call: Call, point: Point | None = None) -> Outcome:
    """Run a call, cancelled at a point, or without one to its end.

    Raises:
        TimeoutError: it had not ended some seconds after it was cancelled.
    """
    loop, probe = asyncio.get_running_loop(), _Probe(point)
    before = loop.get_task_factory()
    loop.set_task_factory(_factory)
    try:
        surrounding = _SURROUNDINGS[How.CANCEL if point is None else point.how]
        around = asyncio.Task(surrounding(call, probe), loop=loop)
        ended, _ = await asyncio.wait([around], timeout=WITHIN_S)
        if not ended:
            raise TimeoutError(f"{point}: it did not end within {WITHIN_S:g} s")
        around.exception()
    finally:
        loop.set_task_factory(before)
    assert probe.main is not None
    return _told(probe.main, probe)


def _begin(work: Coroutine[Any, Any, Any], probe: _Probe) -> asyncio.Task[Any]:
    marked = _probe.set(probe)
    try:
        probe.main = asyncio.create_task(work)
    finally:
        _probe.reset(marked)
    return probe.main


async def _awaited(call: Call) -> Any:
    return await call()


async def _alone(call: Call, probe: _Probe) -> None:
    main = _begin(_awaited(call), probe)
    probe.strike = main.cancel
    await asyncio.wait([main])


class _Expired(Exception):
    """The time limit around a call ran out, and nothing else."""


async def _limited(call: Call, probe: _Probe) -> None:
    loop = asyncio.get_running_loop()

    async def within() -> Any:
        limit = asyncio.timeout(None)
        probe.strike = lambda: limit.reschedule(loop.time())
        try:
            async with limit:
                return await call()
        except TimeoutError:
            if limit.expired():
                raise _Expired from None
            raise

    await asyncio.wait([_begin(within(), probe)])


async def _in_a_group(call: Call, probe: _Probe) -> None:
    failing = asyncio.get_running_loop().create_future()

    def fail() -> None:
        if not failing.done():
            failing.set_exception(_Expired())

    probe.strike = fail

    async def other() -> None:
        await failing

    try:
        async with asyncio.TaskGroup() as group:
            main = _begin_in(group, call, probe)
            group.create_task(other())
            main.add_done_callback(lambda _: None if failing.done() else failing.set_result(None))
    except* BaseException:  # noqa: BLE001 - what came of the call is read from its task
        if not failing.cancelled():
            failing.exception()


def _begin_in(group: asyncio.TaskGroup, call: Call, probe: _Probe) -> asyncio.Task[Any]:
    marked = _probe.set(probe)
    try:
        probe.main = group.create_task(_awaited(call))
    finally:
        _probe.reset(marked)
    return probe.main


_SURROUNDINGS = {
    How.CANCEL: _alone,
    How.LATE: _alone,
    How.TIMEOUT: _limited,
    How.GROUP: _in_a_group,
}


def _told(main: asyncio.Task[Any], probe: _Probe) -> Outcome:
    if main.cancelled():
        return Outcome(probe.steps, probe.struck, "cancelled")
    error = main.exception()
    if isinstance(error, _Expired):
        return Outcome(probe.steps, probe.struck, "cancelled")
    return Outcome(probe.steps, probe.struck, "returned" if error is None else "raised", error)


def points_of(steps: int, *, most: int | None = None, seed: int = 0) -> Iterator[Point]:
    """The points of a call that takes so many steps.

    Args:
        steps: how many steps the call took when nobody cancelled it.
        most: how many points at most; chosen by ``seed`` if there are more. ``None``: all of them.
        seed: which are chosen.
    """
    every = [Point(step, how) for how in How for step in range(1, steps + 1)]
    every += [
        Point(step, how, again)
        for how in (How.CANCEL, How.LATE)
        for step in range(1, steps + 1)
        for again in (1, 2, 3)
    ]
    if most is None or len(every) <= most:
        yield from every
        return
    # The ways in turn, so that each is tried however few points there are.
    chosen = random.Random(f"{seed}:{steps}").sample(every, most)  # noqa: S311 - not a secret
    yield from sorted(chosen, key=lambda point: (point.step, point.how, point.again))


@contextmanager
def complaints() -> Iterator[list[str]]:
    """What the event loop and the garbage collector say of errors that nobody retrieved or awaited."""
    told: list[str] = []
    loop = asyncio.get_running_loop()
    handler, hook = loop.get_exception_handler(), sys.unraisablehook
    loop.set_exception_handler(lambda _, said: told.append(f"{said['message']}: {said.get('exception')!r}"))
    sys.unraisablehook = lambda said: told.append(f"{said.err_msg} {said.object!r}: {said.exc_value!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for told_to_the_hook in (RuntimeWarning, ResourceWarning):  # never awaited, never closed
                warnings.simplefilter("error", told_to_the_hook)
            yield told
            gc.collect()
    finally:
        loop.set_exception_handler(handler)
        sys.unraisablehook = hook
