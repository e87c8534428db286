"""Runs one schedule of the fence."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

from lockguard._renewal import Keeper
from lockguard.events import Event, Lost
from lockguard_lab.sim.fault import Fault
from lockguard_lab.sim.fenced.bot import Bot
from lockguard_lab.sim.fenced.database import Session
from lockguard_lab.sim.fenced.judge import FenceJudge
from lockguard_lab.sim.fenced.plan import FencedPlan
from lockguard_lab.sim.fenced.server import Backend, PostgresServer
from lockguard_lab.sim.judge import Violation
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.run import Outcome, in_world, thrown_away
from lockguard_lab.sim.world import Process, Stuck, World
from lockguard_postgres import _numbers
from lockguard_postgres._presented import CLOSED
from lockguard_postgres._unsealed import UNSEALED

__all__ = ["run_fenced", "violations"]

_REDIS, _HOST, _PORT = "127.0.0.1:6379", "10.0.0.9", 5432
_WAIT_S = 3.0
_QUIET_S = 9.0
_LOOK_S = 0.25
_TAKEN_OVER_S = 1.0
_FAR_FROM_S = 0.5
_LEFT_OPEN = "Resetting connection with an active transaction"


def run_fenced(plan: FencedPlan) -> Outcome:
    """Run one schedule."""
    with thrown_away():
        return _run(plan)


def _run(plan: FencedPlan) -> Outcome:
    world = World(plan.seed)
    with in_world(world), _separate(world):
        return _Schedule(plan, world).run()


def violations(seed: int, topology: str | None) -> tuple[Violation, ...]:
    """The laws that a seed's schedule breaks."""
    del topology
    return run_fenced(FencedPlan.of(seed)).violations


@contextlib.contextmanager
def _separate(world: World) -> Iterator[None]:
    """Have what a real process has to itself be each simulated one's own, or begin anew."""
    end, numbers = Keeper.end, itertools.count()

    def end_in_own_process(keeper: Keeper, grant: Any, reason: Any) -> None:
        if keeper._loop is world.running:
            end(keeper, grant, reason)

    UNSEALED.forget_all()
    CLOSED.__init__()  # type: ignore[misc]
    with (
        mock.patch.object(Keeper, "end", end_in_own_process),
        mock.patch("time.monotonic", lambda: world.now),  # noqa: PT008
        mock.patch.object(secrets, "randbelow", lambda _: next(numbers)),  # noqa: PT008
    ):
        _numbers.NUMBERS.begin()
        yield
    _numbers.NUMBERS.begin()


class _Hears:
    def __init__(self, judge: FenceJudge) -> None:
        self._judge = judge

    def on(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._judge.lost(event)


class _Foreign:
    """A transport that is of no class of asyncio's."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Abroad:
    """A protocol that is given such a transport."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol

    def connection_made(self, transport: Any) -> None:
        self._protocol.connection_made(_Foreign(transport))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._protocol, name)


class _Schedule:
    def __init__(self, plan: FencedPlan, world: World) -> None:
        self.plan, self.world = plan, world
        self.judge = FenceJudge(world, plan)
        self.network = Network(world)
        self.redis = RedisServer(world, _REDIS, 0)
        self.database = PostgresServer(world, f"{_HOST}:{_PORT}")
        self.network.servers |= {_REDIS: self.redis, self.database.name: self.database}
        self.judge.database = self.database.database
        self.database.database.committed = self.judge.committed
        self.judge.keeps = self._keeps
        self.judge.happened = self._happened
        self.database.parsed = self._parsed
        self._times: Counter[str] = Counter()
        self.processes: list[Process] = []
        self.bots: dict[Process, Bot] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self._calls: dict[asyncio.Task[None], Process] = {}
        for number in range(plan.processes):
            self._process(f"p{number}")

    def _process(self, name: str) -> Process:
        process = Process(self.world, name)
        process.connect = self._connect_abroad if self.plan.foreign else self.network.connect
        self.processes.append(process)
        self.bots[process] = Bot(
            process,
            self.plan,
            self.judge,
            urls=[f"redis://{_REDIS}"],
            database=_HOST,
            observers=[_Hears(self.judge)],
        )
        return process

    async def _connect_abroad(
        self, process: Process, factory: Callable[[], Any], host: str, port: int
    ) -> tuple[Any, Any]:
        """Connect as another event loop does, such as uvloop: its transports are of no class of asyncio's."""
        made: list[Any] = []

        def wrapped() -> Any:
            made.append(factory())
            return _Abroad(made[0])

        transport, _ = await self.network.connect(process, wrapped, host, port)
        return _Foreign(transport), made[0]

    def _keeps(self, resource: str, grant: str) -> bool:
        held = self.redis.store.do(b"HGET", b"lockguard:{%b}" % resource.encode(), b"grant")
        return bool(held == grant.encode())

    def run(self) -> Outcome:
        plan, world = self.plan, self.world
        for fault in plan.faults:
            if not fault.upon:
                process = self.processes[fault.where[0] % plan.processes]
                world.at(fault.at, partial(self._befall, fault, process, None))
        if plan.latency_s:
            world.at(_FAR_FROM_S, self._go_far)
        for process in list(self.processes):
            for number in range(plan.tasks):
                self._start(process, self._work(process, number), f"{process.name}/{number}")
        healed_s = max((one.at + one.lasts for one in plan.faults), default=0.0)
        latest = max(plan.until_s, healed_s) + 2 * plan.work_s + 2 * _WAIT_S + _QUIET_S + 4 * plan.ttl_s + 5
        world.after(_LOOK_S, self._look)
        try:
            world.run(self._over, latest=latest)
            self._judge_what_is_left(max(world.now, healed_s))
        except Stuck as stuck:
            waiting = ", ".join(sorted(task.get_name() for task in self._unfinished()))
            self.judge.accuse("bounded waits", f"{stuck}; unfinished: {waiting or 'nothing'}")
        for process in self.processes:
            told = [one for one in process.faults if _LEFT_OPEN not in str(one)]
            if len(process.faults) - len(told) > self.judge.open_transactions[process.name]:
                told = process.faults
            for failure in told:
                self.judge.accuse("S8: nothing is left behind", f"{process.name}: {failure}")
        return Outcome(
            tuple(self.judge.violations),
            self.judge.held,
            self.judge.writes,
            self.redis.executed + self.database.executed,
            world.now,
            world.trace_hash,
            tuple(world.lines),
            self.judge.outcomes,
        )

    async def _work(self, process: Process, number: int) -> None:
        bot = self.bots[process]
        await bot.start()
        await bot.run(f"{process.name}/{number}", self._watch)

    def _watch(self, call: asyncio.Task[None], process: Process) -> None:
        self._calls[call] = process

    def _start(self, process: Process, work: Any, name: str) -> None:
        self.tasks.append(process.start(work, name))

    def _over(self) -> bool:
        return all(task.done() or _process_of(task).dead for task in self.tasks)

    def _unfinished(self) -> list[asyncio.Task[None]]:
        return [task for task in self.tasks if not task.done() and not _process_of(task).dead]

    # What befalls them

    def _go_far(self) -> None:
        """All links become long ones, when they are connected."""
        for process in self.processes:
            self.network.link(process.name, _REDIS).delay_s = (
                self.plan.latency_s,
                1.02 * self.plan.latency_s,
            )

    def _happened(self, what: str, process: Process) -> None:
        """What faults wait for has happened to a process."""
        self._times[what] += 1
        call = asyncio.current_task() if self.world.running is process else None
        for fault in self.plan.faults:
            if (fault.upon, fault.nth) == (what, self._times[what]):
                self.world.after(fault.at, partial(self._befall, fault, process, call))

    def _parsed(self, session: Session) -> None:
        """A session has parsed a statement; in a transaction under a lease its holder may stop there."""
        transaction = session.transaction
        if transaction is None or transaction.implicit:
            return
        if any(key[0] == "gate" for level in transaction.levels for key, _ in level.locks):
            process = self._processes_of_sessions().get(session)
            if process is not None:
                self._happened("parsed", process)

    def _processes_of_sessions(self) -> dict[Session, Process]:
        return {
            transport.peer.session: transport.process
            for transport in self.network.open
            if transport.server_name == self.database.name and isinstance(transport.peer, Backend)
            if transport.peer.session is not None
        }

    def _befall(  # noqa: C901 - one branch for each kind of fault
        self, fault: Fault, process: Process, call: asyncio.Task[Any] | None
    ) -> None:
        server = self.redis.name if fault.kind.endswith("redis") else self.database.name
        link = self.network.link(process.name, server)
        world, kind = self.world, fault.kind
        world.tell(f"{kind}: {process.name}")
        match kind.split()[0]:
            case "cut":
                self.network.cut(process=process.name, server=server)
            case "slow":
                self._later(fault, link, "delay_s", link.delay_s)
                link.delay_s = (0.02, 0.02 + fault.lasts / 5)
            case "far":
                link.delay_s = (0.05, 0.1)
            case "hold":
                self._later(fault, link, "held", (False, False))
                link.held = ((True, True), (True, False), (False, True))[fault.where[1] % 3]
            case "stop":
                calls = None if fault.upon else world.dice.choice((None, 0, 1, 1, 2, 3))
                if calls is None:
                    process.stop_for(fault.lasts)
                else:
                    process.stop_within(calls, fault.lasts)
            case "kill" if kind == "kill session":
                self.database.kill_one()
            case "kill":
                process.kill()
            case "freeze":
                self.database.freeze_one(fault.lasts)
            case "crash":
                self.database.crash(fault.lasts)
            case "lose" if kind == "lose eviction":
                self.database.evictions_to_lose = 1
            case "lose" if kind == "lose answers":
                self._later(fault, self.database, "lose_answers", 0.0)
                self.database.lose_answers = 0.5
            case "cancel" if kind == "cancel twice":
                if call is not None:
                    call.cancel()
                    world.after(fault.lasts, partial(_cancel, call))
            case "cancel":
                under_way = [task for task in self._calls if not task.done()]
                if under_way:
                    world.dice.choice(under_way).cancel()
            case "wipe":
                self.redis.wipe()
            case "lose" if kind == "lose grant":
                # As after a failover that lost it: nobody is told.
                self.redis.store.do(b"DEL", b"lockguard:{binance:A}")
            case "break":
                if fault.upon:  # by an operator in another process, of which the holder is not told
                    others = [one for one in self.processes if one is not process]
                    process = world.dice.choice(others)
                if not process.dead:
                    self._start(process, self._break(process), "operator")

    def _later(self, fault: Fault, thing: object, name: str, value: object) -> None:
        self.world.after(fault.lasts, lambda: setattr(thing, name, value))

    async def _break(self, process: Process) -> None:
        with contextlib.suppress(AttributeError):  # its pools are not there yet
            try:
                await self.bots[process].guard.break_("binance:A", reason="sim")
            except Exception as error:  # noqa: BLE001 - judged
                self.judge.ended("operator", error)

    # What must hold

    def _look(self) -> None:
        """Now and then: who is kept out, by whom."""
        self._look_who_waits()
        self.world.after(_LOOK_S, self._look)

    def _look_who_waits(self) -> None:
        database, now = self.database.database, self.world.now
        if self.plan.kinds & {"freeze session", "hold database", "slow database", "crash database"}:
            return
        processes = self._processes_of_sessions()
        for session in database.sessions:
            process = processes.get(session)
            wait = session.waits_for
            if (
                process is None
                or process.stopped
                or wait is None
                or wait.mode != "alone"
                or wait.key[0] != "gate"
            ):
                continue
            if now - process.went_on_at < self.plan.ttl_s + _TAKEN_OVER_S:
                continue
            waited_s = now - session.changed_at
            if waited_s > self.plan.ttl_s + _TAKEN_OVER_S:
                told = f"{wait.key[1]}: kept out for {waited_s:.2f} s"
                self.judge.accuse("L6: nobody in a transaction keeps a successor out", told)

    def _judge_what_is_left(self, latest: float) -> None:
        world = self.world
        settled = latest + _QUIET_S
        self._pass_until(settled)
        self.judge.judge_what_is_left()
        alive = [process for process in self.processes if not process.dead]
        closing = [process.start(self.bots[process].close(), "close") for process in alive]
        world.run(lambda: all(task.done() for task in closing), latest=world.now + 2 * _QUIET_S)
        for task in closing:
            if error := task.exception():
                self.judge.accuse("S8: nothing is left behind", f"closing raised {error!r}")
        self._pass_until(world.now + 1)
        for process in alive:
            left = [task.get_name() for task in asyncio.all_tasks(process)]
            if left:
                self.judge.accuse(
                    "S8: nothing is left behind", f"tasks of {process.name}: {', '.join(sorted(left))}"
                )
        self._pass_until(world.now + 2 * self.plan.ttl_s + 3.5)
        self._probe()

    def _pass_until(self, when: float) -> None:
        passed: list[bool] = []
        self.world.at(when, lambda: passed.append(True))
        self.world.run(lambda: bool(passed), latest=when + 1)

    def _probe(self) -> None:
        probe = self._process("probe")
        bot = self.bots[probe]

        async def take() -> None:
            await bot.start()
            for name in "AB"[: self.plan.resources]:
                began = self.world.now
                async with bot.guard.hold(f"binance:{name}"):
                    if self.world.now - began > 1.5 + 10 * self.plan.latency_s:
                        told = f"{name} is free and was had after {self.world.now - began:.2f} s only"
                        self.judge.accuse("L1", told)
            await bot.close()

        task = probe.start(take(), "probe")
        self.world.run(task.done, latest=self.world.now + 20)
        if error := task.exception():
            self.judge.accuse("L1", f"a free lock could not be had: {error!r}")


def _process_of(task: asyncio.Task[None]) -> Process:
    loop = task.get_loop()
    assert isinstance(loop, Process)
    return loop


def _cancel(call: asyncio.Task[Any]) -> None:
    call.cancel()
