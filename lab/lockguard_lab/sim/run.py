"""Runs one schedule."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from lockguard import LockGuard, _hold
from lockguard._clock import SystemClock
from lockguard.errors import LockguardError, LossReason
from lockguard.events import Event, Lost
from lockguard_lab.sim.faults import Faults
from lockguard_lab.sim.judge import Body, BodyFailed, Judge, Violation
from lockguard_lab.sim.ledger import Ledger, known_grant_id
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.plan import Plan
from lockguard_lab.sim.postgres import CommitLost, Fence, Postgres, Stale, Transaction
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.servers import Servers
from lockguard_lab.sim.steps import CancelledAtStep
from lockguard_lab.sim.store import ReplyError
from lockguard_lab.sim.world import EPOCH_S, Process, Stuck, World

__all__ = ["Outcome", "run", "violations"]

_QUIET_S = 8.0
"""All faults have healed this long after the last hold began; a queue of dead waiters has passed by then."""

_ENDS_S = 0.5
"""The end of a connection has arrived so long after the last fault."""

_QUARANTINE_S = 40.0
_LOOK_S = 0.25
_BEHIND_S = 2.0
_FAILS_WHEN_CUT = 0.1

_version_of = functools.cache(importlib.metadata.version)
"""Redis clients look for their version on the disk for every connection."""


@dataclass(frozen=True)
class Outcome:
    """What a schedule came to.

    Attributes:
        violations: the laws that were broken.
        held: how many bodies ran.
        commits: how many writes were committed.
        commands: how many commands the servers executed.
        virtual_s: how long it took, in its own time.
        trace_hash: of all that happened.
        lines: all that happened, for a person.
        outcomes: how the calls ended.
    """

    violations: tuple[Violation, ...]
    held: int
    commits: int
    commands: int
    virtual_s: float
    trace_hash: str
    lines: tuple[str, ...] = field(repr=False, default=())
    outcomes: dict[str, int] = field(default_factory=dict)

    def without_lines(self) -> Outcome:
        """The same, small enough to be sent to another process."""
        return replace(self, lines=())


def run(plan: Plan) -> Outcome:
    """Run one schedule; the library's clock and dice are the schedule's meanwhile."""
    with thrown_away():
        return _run(plan)


def _run(plan: Plan) -> Outcome:
    world = World(plan.seed)
    with in_world(world):
        return _Schedule(plan, world).run()


def violations(seed: int, topology: str | None) -> tuple[Violation, ...]:
    """The laws that a seed's schedule breaks."""
    return run(Plan.of(seed, topology)).violations


@contextlib.contextmanager
def thrown_away() -> Iterator[None]:
    """Throw away what a schedule leaves behind, once nobody refers to its world any more.

    What was there before is left out: to look through all modules takes longer than many schedules.
    """
    gc.freeze()
    try:
        yield
    finally:
        # Connections of processes that were killed complain when they are thrown away: now, and to nobody.
        with mock.patch.object(sys, "unraisablehook"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        gc.unfreeze()


@contextlib.contextmanager
def in_world(world: World) -> Iterator[None]:
    """Have everything that reads a clock or throws dice read and throw those of the schedule."""
    dice = random.Random(world.dice.random())  # noqa: S311 - a simulation, not a secret
    state, collecting = random.getstate(), gc.isenabled()
    random.seed(dice.random())

    def now() -> float:
        return world.now if world.running is None else world.running.time()

    log, level = logging.getLogger("lockguard"), logging.getLogger("lockguard").level
    log.setLevel(logging.CRITICAL)
    gc.disable()  # a collection at another moment would end generators at another moment
    try:
        with (
            mock.patch.object(SystemClock, "now", staticmethod(now)),
            mock.patch.object(SystemClock, "wall", property(lambda _: lambda: EPOCH_S + world.now)),
            mock.patch.object(os, "urandom", dice.randbytes),
            mock.patch.object(_hold, "new_grant_id", known_grant_id),
            mock.patch.object(importlib.metadata, "version", _version_of),
            mock.patch.object(sys, "unraisablehook"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
            for process in world.processes:
                process.bury()
    finally:
        random.setstate(state)
        log.setLevel(level)
        if collecting:
            gc.enable()


class _Hears:
    """Tells the judge what a guard says of its leases."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def on(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._judge.lost(event)


class _Schedule:
    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.judge = Judge(world, plan)
        self.network = Network(world)
        self.postgres = Postgres(world)
        self.servers = Servers(world, self.network, plan)
        for number in plan.behind:
            self.servers.deciding[number].jumped_s = -_BEHIND_S
        self.processes = [self._process(f"p{number}") for number in range(plan.processes)]
        self.guards = {process: self._guard(process) for process in self.processes}
        self.tasks: list[asyncio.Task[None]] = []
        self.faults = Faults(
            world,
            plan,
            self.judge,
            self.network,
            self.servers,
            self.postgres,
            self.processes,
            cancel=self._cancel_one,
            operate=lambda process: self._start(process, self._operate(self.guards[process]), "operator"),
        )
        self.ledger = Ledger(self.judge, self.faults.happened)
        self.judge.kept_until = self.servers.kept_until
        for server in self.servers.all:
            server.before_command = partial(self.ledger.before, server)
            server.on_command = partial(self._executed, server)
        self._watched: dict[asyncio.Task[None], Process] = {}

    def _executed(
        self, server: RedisServer, name: str, words: Any, reply: Any, before: Any, _: object
    ) -> None:
        if isinstance(reply, ReplyError) and str(reply).startswith("ERR script:"):
            # Of Lua itself and no refusal of a command: the script ends there, half done, each time.
            self.judge.accuse("S8", f"a script of ours failed: {reply}")
        self.ledger.executed(server, name, words, reply, before)

    def _process(self, name: str) -> Process:
        drift = self.world.dice.uniform(-0.0099, 0.0099) if self.plan.drifts else 0.0
        process = Process(self.world, name, drift=drift)
        process.connect = self.network.connect
        return process

    def _guard(self, process: Process) -> LockGuard:
        plan, urls = self.plan, self.servers.urls
        settings: dict[str, Any] = {
            "ttl": timedelta(seconds=plan.ttl_s),
            "max_hold": timedelta(seconds=plan.max_hold_s) if plan.max_hold_s else None,
            "wait": timedelta(seconds=plan.wait_s),
            "lock_delay": timedelta(seconds=plan.lock_delay_s),
            "fence": Fence(self.postgres, process) if plan.fenced else None,
            "fence_within": timedelta(seconds=2),
            "observers": [_Hears(self.judge)],
        }
        one = len(urls) == 1
        guard = LockGuard.from_url(urls[0], **settings) if one else LockGuard.from_urls(urls, **settings)

        def abandon() -> None:
            guard._core.abandon()  # of the loop that it was used in last

        process.on_burial.append(abandon)
        return guard

    def run(self) -> Outcome:
        plan, world = self.plan, self.world
        for process in self.processes:
            for number in range(plan.tasks):
                name = f"{process.name}/{number}"
                self._start(process, self._client(process, name), name)
        if plan.pollers:
            self._poll()
        healed_s = plan.until_s + max((one.at + one.lasts - plan.until_s for one in plan.faults), default=0.0)
        latest = max(plan.until_s, healed_s) + plan.work_s + plan.wait_s + _QUIET_S + 4 * plan.longest_s
        latest += plan.tasks * plan.processes * plan.work_s * (plan.waits == 1.0)
        world.at(_LOOK_S, self._look)
        try:
            world.run(self._over, latest=latest)
            self._judge_what_is_left(latest)
        except Stuck as stuck:
            waiting = ", ".join(sorted(task.get_name() for task in self._unfinished()))
            self.judge.accuse("bounded waits", f"{stuck}; unfinished: {waiting or 'nothing'}")
        for process in self.processes:
            for failure in process.faults:
                self.judge.accuse("nothing is left behind", f"{process.name}: {failure}")
        return Outcome(
            tuple(self.judge.violations),
            self.judge.held,
            len(self.postgres.commits),
            sum(server.executed for server in self.servers.all),
            world.now,
            world.trace_hash,
            tuple(world.lines),
            self.judge.outcomes,
        )

    def _start(self, process: Process, work: Any, name: str) -> None:
        task = process.start(work, name)
        self.tasks.append(task)
        self._watched[task] = process

    def _poll(self) -> None:
        """Begin the callers that ask again and again."""
        process = self._process("poller")
        self.processes.append(process)
        self.guards[process] = self._guard(process)
        for number in range(self.plan.pollers):
            self._start(process, self._poller(process), f"poller/{number}")

    def _look(self) -> None:
        """Now and then: whose locks are held, and who is gone."""
        self.ledger.look(self.servers)
        self.judge.look()
        self.world.after(_LOOK_S, self._look)

    def _unfinished(self) -> list[asyncio.Task[None]]:
        return [task for task in self.tasks if not task.done() and not self._watched[task].dead]

    def _over(self) -> bool:
        tasks = self.tasks
        while tasks and (tasks[-1].done() or self._watched[tasks[-1]].dead):
            tasks.pop()
        return not tasks

    def _cancel_one(self) -> None:
        calls = [task for task in self._watched if not task.done() and task not in self.tasks]
        if calls:
            self.world.dice.choice(calls).cancel()

    # What the processes do.

    async def _client(self, process: Process, name: str) -> None:
        plan, dice = self.plan, self.world.dice
        if plan.one_after_the_other_s:
            after_s = self.processes.index(process) + dice.uniform(0, 0.5)
            await asyncio.sleep(plan.one_after_the_other_s * after_s)
        else:
            await asyncio.sleep(dice.uniform(0, min(0.2, plan.until_s / 4)))
        while self.world.now < plan.until_s:
            resource = f"binance:{dice.choice('ABCDEFG'[: plan.resources])}"
            work: Any = self._hold(process, resource, waits=dice.random() < plan.waits)
            cancel_after = None
            if plan.cancelled_by:
                if dice.random() < 0.7:
                    work = CancelledAtStep(work, dice.randint(1, plan.cancelled_by), late=dice.random() < 0.5)
            elif not plan.aim:
                cancel_after = dice.choice((None, None, None, dice.uniform(0, plan.work_s * 2)))
            call = process.create_task(work, name=name)
            self._watched[call] = process
            if cancel_after is not None:
                process.call_later(cancel_after, call.cancel)
            await asyncio.wait([call])
            error = None if call.cancelled() else call.exception()
            outside = cancel_after is not None or isinstance(work, CancelledAtStep) or "cancel" in plan.kinds
            if call.cancelled() and not outside:
                self.judge.accuse("S10: the caller sees the loss", f"{name} was cancelled by nobody else")
            self.judge.ended(f"{process.name} {resource}", error)
            if process is self.processes[0]:
                await asyncio.sleep(max(0.0, plan.long_from_s - self.world.now))
            await asyncio.sleep(dice.choice((0.0, 0.001, dice.uniform(0, 0.3))))

    async def _poller(self, process: Process) -> None:
        guard, dice = self.guards[process], self.world.dice
        await asyncio.sleep(0.2)
        while self.world.now < self.plan.until_s:
            with contextlib.suppress(LockguardError):
                async with guard.hold("binance:A", on_busy="raise"):
                    await asyncio.sleep(0.01)
            await asyncio.sleep(dice.uniform(0.0, 0.004))

    async def _hold(self, process: Process, resource: str, *, waits: bool) -> None:
        """One call: what it raises, and when, is judged."""
        guard, judge, world, plan = self.guards[process], self.judge, self.world, self.plan
        called_at, body, own = world.now, None, BodyFailed()
        ended_at, loss, raised = 0.0, None, True
        long = process is self.processes[0] and 0.0 < plan.long_from_s <= called_at
        options: dict[str, Any] = {
            "ttl": timedelta(seconds=plan.long_ttl_s) if long else None,
            "at_least": timedelta(seconds=plan.at_least_s) if plan.at_least_s else None,
        }
        try:
            async with guard.hold(resource, on_busy="wait" if waits else "raise", **options) as lease:
                body = Body(process, resource, lease, world.now)
                judge.entered_in_time(process, called_at, "entered")
                judge.entered(body)
                self.faults.happened("held", asyncio.current_task())
                try:
                    await self._work(body, own)
                except asyncio.CancelledError:
                    if world.dice.random() < _FAILS_WHEN_CUT:  # what it does as it is cut fails
                        body.failed = True
                        raise own from None
                    raise
                finally:
                    ended_at, loss, body.over = world.now, lease.loss, True
                    self.faults.happened("left", asyncio.current_task())
            raised = False
        except Exception as error:
            if body is None:
                judge.entered_in_time(process, called_at, type(error).__name__)
            elif body.failed and error is not own:
                judge.accuse("S11: the body's own error wins", f"{error!r} came out")
            raise
        finally:
            if body is not None:
                judge.left(body)
                judge.left_in_time(process, ended_at)
                judge.came_out(body, loss, raised)

    async def _work(self, body: Body, own: BodyFailed) -> None:
        dice, plan = self.world.dice, self.plan
        brief = plan.long_from_s and body.lease.grant.ttl_ms <= plan.ttl_s * 1000
        left_s = dice.uniform(plan.least_work_s, plan.ttl_s / 4 if brief else plan.work_s)
        while left_s > 0:
            step_s = dice.choice((0.0, min(left_s, 0.01), left_s))
            await asyncio.sleep(step_s)
            self.judge.looked_at(body)
            left_s -= step_s + 0.001
            if plan.confirms and dice.random() < plan.confirms:
                held = self.judge.is_kept(body)
                await body.lease.confirm()
                self.judge.confirmed(body, held=held)
            if plan.fenced and dice.random() < 0.4:
                await self._write(body)
                self.judge.looked_at(body)
        if dice.random() < 0.1:
            body.failed = True
            raise own

    async def _write(self, body: Body) -> None:
        lease = body.lease
        lease.ensure()
        transaction = Transaction(
            self.postgres, body.process, body.resource, int(lease.token), str(lease.grant.id)
        )
        try:
            await transaction.present()
            await asyncio.sleep(self.world.dice.choice((0.0, 0.002, 0.05)))
            await transaction.commit()
        except Stale as stale:
            self.judge.refused(body, str(stale))
            lease.end(LossReason.FENCED)
            raise lease.lost_error(LossReason.FENCED) from stale
        except CommitLost:
            return  # unknown: the body goes on, as a bot that asks again would
        finally:
            transaction.abort("left")

    async def _operate(self, guard: LockGuard) -> None:
        try:
            await guard.break_("binance:A", reason="sim")
        except Exception as error:  # noqa: BLE001 - judged
            self.judge.ended("operator", error)

    # What must hold at the end.

    def _judge_what_is_left(self, latest: float) -> None:
        """Every process alive closes; then no lock is held, nobody waits, and each can be had at once."""
        world, plan = self.world, self.plan
        alive = [process for process in self.processes if not process.dead]
        self.ledger.closes()
        closing = [process.start(self.guards[process].aclose(), "close") for process in alive]
        world.run(lambda: all(task.done() for task in closing), latest=latest + _QUIET_S)
        for process in alive:
            left = [task.get_name() for task in process.unfinished()]
            left += [
                f"a connection to {one.server_name}" for one in self.network.open if one.process is process
            ]
            if left:
                self.judge.accuse("S8: nothing is left behind", f"{process.name}: {', '.join(sorted(left))}")
        # A release that was lost with its connection, or with its process, is over with its ttl.
        self._go_on_until(world.now + 2 * plan.longest_s + 2 * plan.lock_delay_s + 3.5)
        if plan.calm:
            self.ledger.nothing_is_left(self.servers.all)
        self._nothing_is_connected([one for server in self.servers.all for one in server.replaced])
        # All processes may have ended before a fault is over, or begins: one that holds back the end of a
        # connection, or keeps everybody from a lock.
        self._go_on_until(self.faults.over_at + _ENDS_S)
        self._nothing_is_connected([one for server in self.servers.all for one in server.connected])
        self._have_each_lock()

    def _nothing_is_connected(self, still: list[str]) -> None:
        if still:
            self.judge.accuse("S8: nothing is left behind", f"connections from {', '.join(still)}")

    def _go_on_until(self, moment: float) -> None:
        done: list[bool] = []
        self.world.at(max(moment, self.world.now), lambda: done.append(True))
        self.world.run(lambda: bool(done), latest=max(moment, self.world.now) + 1)

    def _have_each_lock(self) -> None:
        world, plan = self.world, self.plan
        # A node that came into a quorum, or back, while others did not answer gives no vote for a while.
        patience_s = _QUARANTINE_S if plan.faults and plan.nodes > 1 else 1.5
        if "server clock back" in plan.kinds:  # who asks first has the ttl begin anew
            patience_s += plan.ttl_s
        probe = self._process("probe")
        guard = self._guard(probe)
        tasks = [
            probe.start(self._take(guard, f"binance:{name}", patience_s), "probe")
            for name in "ABCDEFG"[: plan.resources]
        ]
        world.run(lambda: all(task.done() for task in tasks), latest=world.now + patience_s + 20)
        for task in tasks:
            if error := task.exception():
                self.judge.accuse("L1", f"a free lock could not be had: {error!r}")

    async def _take(self, guard: LockGuard, name: str, patience_s: float) -> None:
        began = self.world.now
        async with guard.hold(name, wait=timedelta(seconds=patience_s + 5)):
            took_s = self.world.now - began
            if took_s > patience_s:
                self.judge.accuse("L1", f"{name} is free and was had after {took_s:.2f} s only")
