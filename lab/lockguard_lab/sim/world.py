"""Virtual time, and the event loops that take turns in it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import heapq
import itertools
import math
import random
import sys
from asyncio import events
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["Process", "Stuck", "World"]

EPOCH_S = 1_700_000_000.0
"""The wall clock at the beginning of each schedule."""

_TURNS_AT_ONE_TIME_MAX = 20_000
_TASKS_KEPT = 256


class Stuck(AssertionError):
    """Nothing is left that could happen, or the same moment does not end."""


class World:
    """One schedule: its time, its dice, its processes and what is about to happen.

    Args:
        seed: decides everything that is left open.

    Attributes:
        dice: the source of every choice.
        now: seconds since the beginning.
        lines: what happened, for a person who reads a failure.
    """

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)  # noqa: S311 - a simulation, not a secret
        self.now = 0.0
        self.lines: list[str] = []
        self._digest = hashlib.sha256()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.processes: list[Process] = []
        self.running: Process | None = None

    def tell(self, line: str) -> None:
        """Record what happened."""
        text = f"{self.now:10.4f} {line}"
        self.lines.append(text)
        self._digest.update(text.encode())

    @property
    def trace_hash(self) -> str:
        """A hash of all that happened: the same for one seed, on every machine."""
        return self._digest.hexdigest()[:16]

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have ``action`` called at a time, outside of every process."""
        heapq.heappush(self._due, (max(when, self.now), next(self._numbers), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have ``action`` called after ``seconds``."""
        self.at(self.now + seconds, action)

    def run(self, until: Callable[[], bool], *, latest: float) -> None:
        """Let time pass until ``until()``.

        Raises:
            Stuck: ``latest`` is reached first, or nothing is left to happen.
        """
        hooks = sys.get_asyncgen_hooks()
        try:
            self._run(until, latest)
        finally:
            sys.set_asyncgen_hooks(*hooks)

    def _run(self, until: Callable[[], bool], latest: float) -> None:
        turns, moment, due, throw = 0, self.now, self._due, self.dice.random
        while not until():
            able = self._pass(latest)
            if not able:
                while due and due[0][0] <= self.now:
                    heapq.heappop(due)[2]()
                continue  # which may be what is waited for
            able[int(throw() * len(able))].turn()
            turns = turns + 1 if moment == self.now else 0
            moment = self.now
            if turns > _TURNS_AT_ONE_TIME_MAX:
                raise Stuck("a moment without an end: something runs without awaiting anything")

    def _pass(self, latest: float) -> list[Process]:
        """Let time pass until something is due; if that is nothing but processes, return those."""
        due, able = self._due, []
        while self.now < latest:
            now = self.now
            soonest = due[0][0] if due else math.inf
            if soonest <= now:
                return []
            for process in self.processes:
                when = process.able_at
                if when <= now:
                    able.append(process)
                elif when < soonest:
                    soonest = when
            if able:
                return able
            if soonest == math.inf:
                raise Stuck("nothing is left that could happen")
            self.now = soonest
        raise Stuck(f"not over at {latest:g} s")


class Process(asyncio.BaseEventLoop):
    """One process of the schedule: an event loop whose turns the world deals.

    Within a process callbacks run in asyncio's own order, which code may rely on; between processes any order
    is possible. A stopped process keeps its timers and what arrives, and has both at once when it goes on.

    Args:
        world: the schedule.
        name: for people.
        drift: how much faster its clock runs than the world's, as a share.
    """

    def __init__(self, world: World, name: str, *, drift: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.stopped = False
        self.dead = False
        self.went_on_at = -1e9
        super().__init__()
        self.arrived: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.connect: Callable[..., Any] | None = None
        self.transports: list[Any] = []
        self._drift = 1.0 + drift
        self._begun = world.now
        self._asyncgens_known: Any = None
        self.set_exception_handler(self._failed)
        self.faults: list[str] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_burial: list[Callable[[], None]] = []
        """What lets go of what would warn that it was not closed."""
        self._stops_within: tuple[int, float] | None = None
        # Generators that nobody finishes are closed in their own process, as asyncio does.
        self._hooks: Any = (self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)  # type: ignore[attr-defined]
        world.processes.append(self)

    def __repr__(self) -> str:
        return f"<Process {self.name}>"

    # What asyncio asks of a loop.

    def time(self) -> float:
        """Seconds on the process's own clock."""
        return self._begun + (self.world.now - self._begun) * self._drift

    def in_the_world(self, when: float) -> float:
        """The world's time of an instant on the process's own clock."""
        return self._begun + (when - self._begun) / self._drift

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call here."""

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        """As every loop, without what helps to debug one."""
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def is_running(self) -> bool:
        """Always: it runs whenever it has a turn."""
        return not self.dead

    async def create_connection(  # type: ignore[override]
        self, factory: Callable[[], Any], host: str = "", port: int = 0, **_: Any
    ) -> Any:
        """Connect to a simulated server."""
        assert self.connect is not None
        return await self.connect(self, factory, host, port)

    def _failed(self, _loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.faults.append(f"{context.get('message')}: {error!r}")

    # What the world asks of it.

    @property
    def able_at(self) -> float:
        """When it has something to do, in the world's time: 0 is now, infinity not by itself."""
        if self.stopped or self.dead:
            return math.inf
        if self._ready or self.arrived:  # type: ignore[attr-defined]
            return 0.0
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not timers:
            return math.inf
        begun: float = self._begun
        when: float = timers[0]._when
        return begun + (when - begun) / self._drift + 1e-9

    def turn(self) -> None:
        """One iteration: what arrived, then the timers that are due, then all that is ready by now."""
        ready: Any = self._ready  # type: ignore[attr-defined]
        arrived, self.arrived = self.arrived, []
        for callback, args in arrived:
            self.call_soon(callback, *args)
        timers: list[Any] = self._scheduled  # type: ignore[attr-defined]
        now = self.time() if timers else 0.0
        while timers and (timers[0]._cancelled or timers[0]._when <= now):
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                ready.append(timer)
        most = len(ready)
        if self._stops_within is not None:
            most, stops_for_s = min(most, self._stops_within[0]), self._stops_within[1]
            self._stops_within = None
            self.stop_for(stops_for_s)
        events._set_running_loop(self)
        sys.set_asyncgen_hooks(*self._hooks)
        self.world.running = self
        try:
            for _ in range(most):
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            events._set_running_loop(None)
            self.world.running = None

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Begin a task in it."""
        return self.create_task(work, name=name)

    def create_task(self, work: Any, **named: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        """As every loop; it also knows its tasks, of which asyncio keeps one set for all loops."""
        task: asyncio.Task[Any] = super().create_task(work, **named)
        self.tasks.append(task)
        if len(self.tasks) > _TASKS_KEPT:
            self.tasks = self.unfinished()
        return task

    def unfinished(self) -> list[asyncio.Task[Any]]:
        """Its tasks that are not done."""
        return [task for task in self.tasks if not task.done()]

    def stop_within(self, calls: int, seconds: float) -> None:
        """Stop it in the middle of its next turn, after so many of the calls that are ready by then.

        What was ready goes on before any timer that has become due meanwhile is looked at.
        """
        self._stops_within = (calls, seconds)

    def stop_for(self, seconds: float) -> None:
        """Stop it, as SIGSTOP does, and let it go on later."""
        if self.stopped or self.dead:
            return
        self.stopped = True
        self.world.tell(f"{self.name} is stopped for {seconds:.3f} s")
        self.world.after(seconds, self._go_on)

    def _go_on(self) -> None:
        if not self.dead:
            self.stopped, self.went_on_at = False, self.world.now
            self.world.tell(f"{self.name} goes on")

    def kill(self) -> None:
        """End it at once, as SIGKILL does: nothing of it runs any more; its kernel closes its connections."""
        if self.dead:
            return
        self.dead = True
        self.world.tell(f"{self.name} is killed")
        for transport in list(self.transports):
            transport.die()

    def bury(self) -> None:
        """Let go of what is left in it, without a word about tasks that never ended."""
        self.dead = True
        events._set_running_loop(self)
        try:
            for transport in list(self.transports):  # or streams over them would warn when they are collected
                transport.die()
            buried: set[int] = set()
            # What is closed may begin tasks as it ends.
            while left := [task for task in self.unfinished() if id(task) not in buried]:
                for task in left:
                    buried.add(id(task))
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as asyncio itself in gather()
                    with contextlib.suppress(
                        BaseException
                    ):  # what its clean-up meets in a process that is gone
                        task.get_coro().close()
        finally:
            events._set_running_loop(None)
        self._ready.clear()  # type: ignore[attr-defined]
        self._scheduled.clear()  # type: ignore[attr-defined]
        with contextlib.suppress(Exception):
            self.close()
        for give_up in self.on_burial:
            with contextlib.suppress(Exception):
                give_up()
