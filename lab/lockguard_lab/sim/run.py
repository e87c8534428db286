"""Runs one schedule."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from lockguard import LockGuard, _hold
from lockguard._clock import SystemClock
from lockguard.errors import LossReason
from lockguard.events import Event, Lost
from lockguard_lab.sim.judge import Body, Judge, Violation
from lockguard_lab.sim.ledger import Ledger, known_grant_id
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.plan import Fault, Plan
from lockguard_lab.sim.postgres import CommitLost, Fence, Postgres, Stale, Transaction
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.world import EPOCH_S, Process, Stuck, World

__all__ = ["Outcome", "run", "violations"]

_PORT = 6379
_QUIET_S = 8.0
"""All faults have healed this long after the last hold began; a queue of dead waiters has passed by then."""

_WAIT_S = 3.0
_QUARANTINE_S = 40.0
_LOOK_S = 0.25


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
    world = World(plan.seed)
    with _in(world):
        return _Schedule(plan, world).run()


def violations(seed: int, topology: str | None) -> tuple[Violation, ...]:
    """The laws that a seed's schedule breaks."""
    return run(Plan.of(seed, topology)).violations


@contextlib.contextmanager
def _in(world: World) -> Iterator[None]:
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
        self.servers = [
            RedisServer(world, f"127.0.0.{number + 1}:{_PORT}", number) for number in range(plan.nodes)
        ]
        for server in self.servers:
            self.network.servers[server.name] = server
        self.processes = [self._process(f"p{number}") for number in range(plan.processes)]
        self.guards = {process: self._guard(process) for process in self.processes}
        self.tasks: list[asyncio.Task[None]] = []
        self.ledger = Ledger(self.judge)
        self.judge.keeps = self._keeps
        for server in self.servers:
            server.on_command = partial(self.ledger.executed, server)
        self._watched: dict[asyncio.Task[None], Process] = {}

    def _process(self, name: str) -> Process:
        process = Process(self.world, name)
        process.connect = self.network.connect
        return process

    def _guard(self, process: Process) -> LockGuard:
        plan = self.plan
        urls = [f"redis://{server.name}" for server in self.servers]
        return LockGuard.from_urls(
            urls,
            ttl=timedelta(seconds=plan.ttl_s),
            wait=timedelta(seconds=_WAIT_S),
            lock_delay=timedelta(seconds=plan.lock_delay_s),
            fence=Fence(self.postgres, process),
            fence_within=timedelta(seconds=2),
            observers=[_Hears(self.judge)],
        )

    def run(self) -> Outcome:
        plan, world = self.plan, self.world
        for fault in plan.faults:
            world.at(fault.at, partial(self._befall, fault))
        for process in self.processes:
            for number in range(plan.tasks):
                name = f"{process.name}/{number}"
                self._start(process, self._client(process, name), name)
        healed_s = plan.until_s + max((one.at + one.lasts - plan.until_s for one in plan.faults), default=0.0)
        latest = max(plan.until_s, healed_s) + plan.work_s + _WAIT_S + _QUIET_S + 4 * plan.ttl_s
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
            sum(server.executed for server in self.servers),
            world.now,
            world.trace_hash,
            tuple(world.lines),
            self.judge.outcomes,
        )

    def _start(self, process: Process, work: Any, name: str) -> None:
        task = process.start(work, name)
        self.tasks.append(task)
        self._watched[task] = process

    def _keeps(self, resource: str, grant: str) -> bool:
        lock = b"lockguard:{%b}" % resource.encode()
        kept: int = sum(server.store.do(b"HGET", lock, b"grant") == grant.encode() for server in self.servers)
        return kept > len(self.servers) // 2

    def _look(self) -> None:
        """Now and then: whose locks are held, and who is gone."""
        self.ledger.look(self.servers)
        self.world.after(_LOOK_S, self._look)

    def _unfinished(self) -> list[asyncio.Task[None]]:
        return [task for task in self.tasks if not task.done() and not self._watched[task].dead]

    def _over(self) -> bool:
        return not self._unfinished()

    # What the processes do.

    async def _client(self, process: Process, name: str) -> None:
        plan, dice = self.plan, self.world.dice
        guard = self.guards[process]
        await asyncio.sleep(dice.uniform(0, 0.2))
        while self.world.now < plan.until_s:
            resource = f"binance:{dice.choice('ABCDEFG'[: plan.resources])}"
            call = asyncio.create_task(self._hold(process, guard, resource), name=name)
            self._watched[call] = process
            cancel_after = dice.choice((None, None, None, dice.uniform(0, plan.work_s * 2)))
            if cancel_after is not None:
                process.call_later(cancel_after, call.cancel)
            await asyncio.wait([call])
            error = None if call.cancelled() else call.exception()
            self.judge.ended(f"{process.name} {resource}", error)
            await asyncio.sleep(dice.choice((0.0, 0.001, dice.uniform(0, 0.3))))

    async def _hold(self, process: Process, guard: LockGuard, resource: str) -> None:
        dice = self.world.dice
        body: Body | None = None
        try:
            async with guard.hold(resource, on_busy=dice.choice(("wait", "wait", "wait", "raise"))) as lease:
                body = Body(process, resource, lease, self.world.now)
                self.judge.entered(body)
                left_s = dice.uniform(0, self.plan.work_s)
                while left_s > 0:
                    step_s = dice.choice((0.0, min(left_s, 0.01), left_s))
                    await asyncio.sleep(step_s)
                    self.judge.looked_at(body)
                    left_s -= step_s + 0.001
                    if dice.random() < 0.4:
                        await self._write(body)
                        self.judge.looked_at(body)
        finally:
            if body is not None:
                self.judge.left(body)

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

    # What befalls them.

    def _befall(self, fault: Fault) -> None:
        process = self.processes[fault.where[0] % len(self.processes)]
        server = self.servers[fault.where[1] % len(self.servers)]
        self.world.tell(f"{fault.kind}: {process.name}, {server.name}")
        _BEFALL[fault.kind.partition(" ")[0]](self, fault, process, server)

    def _later(self, fault: Fault, thing: object, name: str, value: object) -> None:
        """Give a thing an attribute back when the fault is over."""
        self.world.after(fault.lasts, lambda: setattr(thing, name, value))

    def _cut(self, _: Fault, process: Process, server: RedisServer) -> None:
        self.network.cut(process=process.name, server=server.name)

    def _stall(self, fault: Fault, process: Process, server: RedisServer) -> None:
        for transport in self.network.between(process.name, server.name):
            transport.stall_for(fault.lasts)

    def _slow(self, fault: Fault, process: Process, server: RedisServer) -> None:
        if fault.kind == "slow database":
            self._later(fault, self.postgres, "delay_s", self.postgres.delay_s)
            self.postgres.delay_s = (0.05, 0.05 + fault.lasts)
        else:
            link = self.network.link(process.name, server.name)
            self._later(fault, link, "delay_s", link.delay_s)
            link.delay_s = (0.02, 0.02 + fault.lasts / 5)

    def _hold_back(self, fault: Fault, process: Process, server: RedisServer) -> None:
        link = self.network.link(process.name, server.name)
        self._later(fault, link, "held", (False, False))
        link.held = (fault.kind != "hold replies", fault.kind != "hold requests")

    def _stop(self, fault: Fault, process: Process, server: RedisServer) -> None:
        (server if fault.kind == "stop server" else process).stop_for(fault.lasts)

    def _kill(self, _: Fault, process: Process, __: RedisServer) -> None:
        process.kill()

    def _cancel(self, *_: object) -> None:
        calls = [task for task in self._watched if not task.done() and task not in self.tasks]
        if calls:
            self.world.dice.choice(calls).cancel()

    def _lose(self, fault: Fault, *_: object) -> None:
        self._later(fault, self.postgres, "answers_lost", 0.0)
        self.postgres.answers_lost = 0.5

    def _wipe(self, _: Fault, __: Process, server: RedisServer) -> None:
        server.wipe()

    def _server(self, fault: Fault, _: Process, server: RedisServer) -> None:
        server.jumped_s += -fault.lasts if fault.kind == "server clock back" else fault.lasts

    def _break(self, _: Fault, process: Process, __: RedisServer) -> None:
        if not process.dead:
            self._start(process, self._operate(self.guards[process]), "operator")

    def _crash(self, fault: Fault, _: Process, server: RedisServer) -> None:
        kept = None if fault.kind == "crash empty" else server.store.snapshot()
        late_s = 0.3 if fault.kind == "crash old" else 0.0
        self.world.after(late_s, lambda: server.crash(fault.lasts, kept))

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
        closing = [process.start(self.guards[process].aclose(), "close") for process in alive]
        world.run(lambda: all(task.done() for task in closing), latest=latest + _QUIET_S)
        for process in alive:
            left = [task.get_name() for task in asyncio.all_tasks(process)]
            if left:
                self.judge.accuse(
                    "nothing is left behind", f"tasks of {process.name}: {', '.join(sorted(left))}"
                )
        # A release that was lost with its connection, or with its process, is over with its ttl.
        settled = world.now + 2 * plan.ttl_s + 2 * plan.lock_delay_s + 3.5
        # Who restarted into a quorum is admitted when it is asked, and gives no vote for a while.
        patience_s = _QUARANTINE_S if plan.restarts and len(self.servers) > 1 else 1.5
        done: list[bool] = []
        world.at(settled, lambda: done.append(True))
        world.run(lambda: bool(done), latest=settled + 1)
        probe = self._process("probe")
        guard = self._guard(probe)
        had: list[str] = []

        async def take(name: str) -> None:
            began = world.now
            async with guard.hold(name, wait=timedelta(seconds=patience_s + 5)):
                if world.now - began > patience_s:
                    self.judge.accuse(
                        "L1", f"{name} is free and was had after {world.now - began:.2f} s only"
                    )
                had.append(name)

        tasks = [probe.start(take(f"binance:{name}"), "probe") for name in "ABCDEFG"[: plan.resources]]
        world.run(lambda: all(task.done() for task in tasks), latest=world.now + patience_s + 20)
        for task in tasks:
            if error := task.exception():
                self.judge.accuse("L1", f"a free lock could not be had: {error!r}")


_BEFALL: dict[str, Callable[[_Schedule, Fault, Process, RedisServer], None]] = {
    "break": _Schedule._break,
    "cancel": _Schedule._cancel,
    "crash": _Schedule._crash,
    "cut": _Schedule._cut,
    "erode": _Schedule._wipe,
    "hold": _Schedule._hold_back,
    "kill": _Schedule._kill,
    "lose": _Schedule._lose,
    "server": _Schedule._server,
    "slow": _Schedule._slow,
    "stall": _Schedule._stall,
    "stop": _Schedule._stop,
    "wipe": _Schedule._wipe,
}
