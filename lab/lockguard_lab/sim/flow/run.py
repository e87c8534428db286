"""Runs one schedule of the flow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from unittest import mock

from lockguard import LockGuard
from lockguard.errors import LockguardError
from lockguard_ccxt import GuardedExchange
from lockguard_ccxt._classify import ccxt_errors
from lockguard_lab.exchange import connect
from lockguard_lab.exchange.desk import Visibility
from lockguard_lab.exchange.faults import Execution, Fault, FaultKind
from lockguard_lab.exchange.markets import MarketSpec
from lockguard_lab.sim.flow.database import (
    Database,
    Pool,
    SimTransaction,
    fenced_fetchrow,
    give_back,
    resolve,
)
from lockguard_lab.sim.flow.judge import FlowJudge
from lockguard_lab.sim.flow.people import Person, jump
from lockguard_lab.sim.flow.plan import FlowPlan, Trouble
from lockguard_lab.sim.flow.wire import URL, Request, SimExchange, Wire
from lockguard_lab.sim.judge import Violation
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.postgres import Fence, Postgres
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.run import _in
from lockguard_lab.sim.world import EPOCH_S, Process, Stuck, World
from lockguard_positions import AtomicPositionManager, NotOpened, Opened
from lockguard_positions import _fenced_writes as writes
from lockguard_positions._events import Alert, PositionEvent

__all__ = ["FlowOutcome", "run", "violations"]

_VENUE = "binance"
_PORT = 6379
_MARKETS = (
    MarketSpec("AAA", price=Decimal(10), tick=Decimal("0.001"), step=Decimal("0.1")),
    MarketSpec("BBB", price=Decimal(250), tick=Decimal("0.01"), step=Decimal("0.01")),
)
_WORTH = Decimal(60)
_CALL_S_MAX = 150.0
"""The longest call: it waits, settles and looks for orders, each within its bound."""
_SETTLE_S = 120.0
_DOUBT_S = 18.0
"""Longer than an order without an answer may still appear."""


@dataclass(frozen=True)
class FlowOutcome:
    """What a schedule of the flow came to.

    Attributes:
        violations: the laws that were broken.
        calls: how many calls of the manager ended.
        requests: how many requests the exchange had.
        statements: how many statements the database had.
        virtual_s: how long it took, in its own time.
        trace_hash: of all that happened.
        lines: all that happened, for a person.
        outcomes: how the calls ended.
    """

    violations: tuple[Violation, ...]
    calls: int
    requests: int
    statements: int
    virtual_s: float
    trace_hash: str
    lines: tuple[str, ...] = field(repr=False, default=())
    outcomes: dict[str, int] = field(default_factory=dict)

    def without_lines(self) -> FlowOutcome:
        """The same, small enough to be sent to another process."""
        return replace(self, lines=())


def run(plan: FlowPlan) -> FlowOutcome:
    """Run one schedule; clocks, dice and the store's connections are the schedule's meanwhile."""
    world = World(plan.seed)
    with _in(world), _in_the_model():
        schedule = _Schedule(plan, world)
        try:
            return schedule.run()
        finally:
            for client in schedule.clients:
                client.session = None  # or ccxt would say that it was left open


def violations(seed: int, topology: str | None = None) -> tuple[Violation, ...]:
    """The laws that the schedule of a seed breaks."""
    del topology
    return run(FlowPlan.of(seed)).violations


@contextlib.contextmanager
def _in_the_model() -> Iterator[None]:
    quiet = [logging.getLogger(name) for name in ("lockguard", "asyncio", "ccxt")]
    levels = [log.level for log in quiet]
    for log in quiet:
        log.setLevel(logging.CRITICAL)
    try:
        with (
            mock.patch.object(writes, "FencedTransaction", SimTransaction),
            mock.patch.object(writes, "fenced_fetchrow", fenced_fetchrow),
            mock.patch.object(writes, "resolve", resolve),
            mock.patch.object(writes, "give_back", give_back),
        ):
            yield
    finally:
        for log, level in zip(quiet, levels, strict=True):
            log.setLevel(level)


class _BotProcess(Process):
    """A process in which something can be done to it a number of turns after an event."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._coming: list[tuple[int, Callable[[], None]]] = []

    def in_turns(self, turns: int, action: Callable[[], None]) -> None:
        """Have ``action`` called between two turns, ``turns`` later."""
        self._coming.append((turns, action))

    def turn(self) -> None:
        super().turn()
        coming, self._coming = self._coming, []
        for turns, action in coming:
            if turns:
                self._coming.append((turns - 1, action))
            else:
                action()


class _Bot:
    """One bot: a process with a guard, ccxt and the manager."""

    def __init__(self, schedule: _Schedule, name: str) -> None:
        self.schedule, self.name = schedule, name
        world = schedule.world
        self.process = _BotProcess(world, name)
        self.process.connect = schedule.network.connect
        self.calls: list[asyncio.Task[Any]] = []
        self.quiet = False
        self.guard = LockGuard.from_urls(
            [f"redis://{schedule.redis.name}"],
            ttl=timedelta(seconds=schedule.plan.ttl_s),
            wait=timedelta(seconds=3),
            fence=Fence(schedule.postgres, self.process),
            fence_within=timedelta(seconds=2),
        )
        self.manager: AtomicPositionManager | None = None
        self.life = self.process.start(self._live(), f"{name} lives")

    def on(self, event: PositionEvent) -> None:
        """Hear what the manager tells."""
        if isinstance(event, Alert):
            self.schedule.world.tell(f"{self.name} alert {event.resource} {event.message[:150]}")
            self.schedule.judge.alerts.append((self.schedule.world.now, event.resource))

    def _connect(self) -> Any:
        process, world = self.process, self.schedule.world
        wire = Wire(process, self.schedule.exchange)
        client = connect(URL, config={"session": wire, "verify": False, "asyncio_loop": process})
        client.milliseconds = lambda: int((EPOCH_S + world.now) * 1000)
        self.schedule.clients.append(client)
        return client

    async def _live(self) -> None:
        schedule, plan = self.schedule, self.schedule.plan
        exchange = GuardedExchange(self._connect())
        while True:
            try:
                await exchange.load([spec.id for spec in schedule.markets])
                break
            except ccxt_errors().BaseError as refused:
                schedule.world.tell(f"{self.name} cannot begin: {type(refused).__name__}")
                await asyncio.sleep(1.0)
        pool: Any = Pool(schedule.database, self.process)
        self.manager = AtomicPositionManager(
            self.guard, pool, [exchange], observers=[self], adopt=plan.adopt
        )
        await self._call("recover", "", self.manager.recover(_VENUE))
        passes = asyncio.create_task(self._pass(self.manager), name=f"{self.name} passes")
        dice = schedule.world.dice
        while not schedule.over:
            await asyncio.sleep(dice.uniform(0, 2 * plan.signals_s))
            if not schedule.over:
                asyncio.create_task(self._act(self.manager), name=f"{self.name} acts")  # noqa: RUF006 - the loop has it
        await passes

    async def _pass(self, manager: AtomicPositionManager) -> None:
        while not self.quiet:
            await self._call("pass", "", manager.sync_exchange_positions(_VENUE))
            await asyncio.sleep(self.schedule.plan.pass_s)

    async def _act(self, manager: AtomicPositionManager) -> None:
        schedule, dice = self.schedule, self.schedule.world.dice
        spec = dice.choice(schedule.markets)
        what = dice.choice(("open",) * 5 + ("close", "close", "move stop", "move stop", "ensure stop", "clean up"))
        symbol = dice.choice((spec.id, spec.symbol))
        match what:
            case "open":
                await self.open(manager, spec, dice.choice(("long", "short")))
            case "close":
                schedule.judge.asked.add(spec.id)
                await self._call(what, spec.id, manager.close_position(symbol, _VENUE))
            case "move stop":
                price = schedule.exchange.desk.venue.prices[spec.id]
                share = dice.choice(("0.97", "0.985", "0.99", "1.01", "1.03"))
                await self._call(what, spec.id, manager.move_stop(symbol, _VENUE, price * Decimal(share)))
            case "ensure stop":
                await self._call(what, spec.id, manager.ensure_stop(symbol, _VENUE))
            case _:
                await self._call(what, spec.id, manager.clean_up(symbol, _VENUE))

    async def open(self, manager: AtomicPositionManager, spec: MarketSpec, side: str) -> object:
        """Open a position at the price of now."""
        price = self.schedule.exchange.desk.venue.prices[spec.id]
        call = manager.open_position_atomic(
            f"signal {self.schedule.world.now:.4f}", spec.symbol, _VENUE, side, _WORTH / price, price, "2"
        )
        return await self._call("open", spec.id, call)

    async def _call(self, what: str, symbol: str, call: Awaitable[object]) -> object:
        """Make a call in a task of its own, which may be cancelled."""
        world, began = self.schedule.world, self.schedule.world.now
        world.tell(f"{self.name} {what} {symbol}")
        task = asyncio.ensure_future(call)
        task.set_name(f"{self.name} {what} {symbol}")  # type: ignore[union-attr]
        self.calls.append(task)
        await asyncio.wait([task])
        self.calls.remove(task)
        result: object = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        self.schedule.judge.returned(self.name, what, symbol, result, began)
        return result

    call = _call


class _Schedule:
    def __init__(self, plan: FlowPlan, world: World) -> None:
        self.plan, self.world = plan, world
        self.markets = list(_MARKETS[: plan.symbols])
        self.network = Network(world)
        self.redis = RedisServer(world, f"127.0.0.1:{_PORT}", 0)
        self.network.servers[self.redis.name] = self.redis
        self.postgres = Postgres(world)
        self.database = Database(self.postgres)
        self.exchange = SimExchange(world, self.markets)
        self.judge = FlowJudge(world, plan, self.exchange, self.database)
        self.judge.on_event = self._event
        self.person = Person(self.judge)
        self.over = False
        self.healed = False
        self._armed: list[Trouble] = []
        self._hits: list[list[Any]] = []
        self.exchange.on_arrival = partial(self._arrived, self.exchange.on_arrival)
        self.bots: list[_Bot] = []
        self.clients: list[Any] = []
        self._born = 0

    def run(self) -> FlowOutcome:
        plan, world = self.plan, self.world
        for trouble in plan.troubles:
            world.at(trouble.at, partial(self._arm, trouble))
        for _ in range(plan.processes):
            self._start()
        world.after(0.7, self._walk)
        try:
            self._pass_time(plan.until_s)
            self.over = True
            self._heal()
            self._pass_time(_DOUBT_S)
            self._end_calls()
            self._judge_rest()
        except Stuck as stuck:
            tasks = [task for bot in self.alive for task in asyncio.all_tasks(bot.process)]
            waiting = ", ".join(sorted(task.get_name() for task in tasks if not task.get_name().startswith("Task")))
            self.judge.accuse("bounded waits", f"{stuck}; unfinished: {waiting}")
        for bot in self.bots:
            for fault in bot.process.faults:
                self.judge.accuse("nothing is left behind", f"{bot.name}: {fault}")
            if bot.life.done() and not bot.process.dead and (error := bot.life.exception()):
                self.judge.accuse("S12: the outcome of every call", f"{bot.name}: {error!r}")
        return FlowOutcome(
            tuple(self.judge.violations),
            sum(self.judge.outcomes.values()),
            self.exchange.requests,
            self.database.statements,
            world.now,
            world.trace_hash,
            tuple(world.lines),
            self.judge.outcomes,
        )

    def _start(self) -> _Bot:
        bot = _Bot(self, f"b{self._born}")
        self._born += 1
        self.bots.append(bot)
        return bot

    def _pass_time(self, seconds: float) -> None:
        done: list[bool] = []
        self.world.after(seconds, lambda: done.append(True))
        self.world.run(lambda: bool(done), latest=self.world.now + seconds + 1)

    def _walk(self) -> None:
        """Prices move a little."""
        if not self.over:
            for spec in self.markets:
                jump(self.exchange.desk, spec.id, Decimal(self.world.dice.randint(-6, 6)) / 10_000)
            self.world.after(self.world.dice.uniform(0.5, 2.0), self._walk)

    @property
    def alive(self) -> list[_Bot]:
        """The bots that run."""
        return [bot for bot in self.bots if not bot.process.dead]

    # --- troubles ---

    def _arm(self, trouble: Trouble) -> None:
        if self.healed:
            return
        if trouble.on:
            self._armed.append(trouble)
        else:
            self._befall(trouble, None)

    def _event(self, name: str, process: Any) -> None:
        for trouble in [one for one in self._armed if one.on == name]:
            self._armed.remove(trouble)
            if isinstance(process, _BotProcess) and process is self.world.running:
                process.in_turns(trouble.turns, partial(self._befall, trouble, process))
            else:
                self.world.after(0.002 * trouble.turns, partial(self._befall, trouble, process))

    def _befall(self, trouble: Trouble, process: Any) -> None:
        if self.healed:
            return
        bot = next((one for one in self.alive if one.process is process), None)
        if bot is None and self.alive:
            bot = self.alive[trouble.number % len(self.alive)]
        self.world.tell(f"{trouble.kind} {' '.join(trouble.detail)} {'' if bot is None else bot.name}")
        spec = self.markets[trouble.number % len(self.markets)]
        desk, lasts = self.exchange.desk, trouble.lasts
        match trouble.kind:
            case "lose" | "fail reads" | "refuse passing" | "refuse final" | "partial":
                times = 1 if trouble.kind == "partial" else trouble.number
                self._hits.append([trouble, times])
            case "lag":
                which, ms = trouble.detail[0], trouble.number * 1000
                desk.visibility = Visibility(
                    orders_ms=ms if which != "positions" else 0, positions_ms=ms if which != "orders" else 0
                )
                self._later(lasts, lambda: setattr(desk, "visibility", Visibility()))
            case "maintenance":
                desk.conditions.maintenance = True
                self._later(lasts, lambda: setattr(desk.conditions, "maintenance", False))
            case "ban":
                desk.conditions.ban(desk.now_ms + round(lasts * 1000), (418, 429)[trouble.number % 2])
            case "deny":
                desk.conditions.deny(None, -2015, None)
                self._later(lasts, lambda: desk.conditions.allow(None))
            case "clock":
                desk.set_clock_offset((-20_000, 20_000)[trouble.number % 2])
                self._later(lasts, lambda: desk.set_clock_offset(0))
            case "slow exchange":
                self.exchange.delay_s = (0.2, 2.5)
                self._later(lasts, lambda: setattr(self.exchange, "delay_s", (0.002, 0.05)))
            case "price":
                jump(desk, spec.id, Decimal((-5, -3, -2, 2, 3, 5)[trouble.number % 6]) / 100)
            case "kill" if bot is not None:
                bot.process.kill()
                self._later(lasts, lambda: self._start() if not self.healed else None)
            case "stop" if bot is not None:
                bot.process.stop_for(lasts)
            case "cancel" if bot is not None and bot.calls:
                bot.calls[-1].cancel()
            case "break" if bot is not None:
                bot.process.start(self._break(bot.guard, spec.id), "operator")
            case "cut redis" if bot is not None:
                link = self.network.link(bot.name, self.redis.name)
                link.held = (True, True)
                self._later(lasts, lambda: setattr(link, "held", (False, False)))
            case "wipe redis":
                self.redis.wipe()
            case "database down":
                self.database.up = False
                self._later(lasts, lambda: setattr(self.database, "up", True))
            case "lose commit answers":
                self.database.answers_lost = 0.5
                self._later(lasts, lambda: setattr(self.database, "answers_lost", 0.0))
            case "slow database":
                self.postgres.delay_s = (0.05, 0.05 + min(lasts, 1.0))
                self._later(lasts, lambda: setattr(self.postgres, "delay_s", (0.0003, 0.003)))
            case kind if kind.startswith("person"):
                self.person.act(kind, spec.id, trouble.number)
            case _:
                pass

    def _later(self, seconds: float, action: Callable[[], object]) -> None:
        self.world.after(seconds, lambda: action())

    async def _break(self, guard: LockGuard, symbol: str) -> None:
        with contextlib.suppress(LockguardError):
            await guard.break_(f"{_VENUE}:{symbol}", reason="sim")

    def _arrived(self, judge: Callable[[Request], None], request: Request) -> None:
        judge(request)
        for hit in self._hits:
            trouble, left = hit
            if request.step == trouble.detail[0] and left:
                hit[1] -= 1
                self.exchange.desk.inject(_fault(trouble, request))
                self.world.tell(f"{trouble.kind} {' '.join(trouble.detail)} hits {request.client_id}")
                return

    def _heal(self) -> None:
        """From here on nothing goes wrong."""
        desk = self.exchange.desk
        self.world.tell("all is healed")
        self.healed = True
        self._armed.clear()
        self._hits.clear()
        desk.faults.clear()
        desk.visibility = Visibility()
        desk.conditions.maintenance = False
        desk.conditions.lift_ban()
        desk.conditions.allow(None)
        desk.set_clock_offset(0)
        desk.release(None)
        self.exchange.delay_s = (0.002, 0.05)
        self.database.up, self.database.answers_lost = True, 0.0
        self.postgres.delay_s = (0.0003, 0.003)
        for bot in self.bots:
            self.network.link(bot.name, self.redis.name).held = (False, False)

    # --- at rest ---

    def _end_calls(self) -> None:
        """Every call ends in time; then the passes stop."""
        for bot in self.alive:
            bot.quiet = True
        if not self.alive:
            self._start()
        self.world.run(
            lambda: all(bot.life.done() for bot in self.alive), latest=self.world.now + _CALL_S_MAX
        )

    def _judge_rest(self) -> None:
        bot = self.alive[0]
        assert bot.manager is not None
        done = bot.process.start(self._settle(bot, bot.manager), "settle")
        self.world.run(done.done, latest=self.world.now + _SETTLE_S)
        if error := done.exception():
            self.judge.accuse("S12: the outcome of every call", f"at rest: {error!r}")
            return
        self.judge.judge_rest()
        if self.judge.violations:
            return
        probe = bot.process.start(self._probe(bot, bot.manager), "probe")
        self.world.run(probe.done, latest=self.world.now + _SETTLE_S)
        if error := probe.exception():
            self.judge.accuse("S12: the outcome of every call", f"at rest: {error!r}")

    async def _settle(self, bot: _Bot, manager: AtomicPositionManager) -> None:
        """Make passes until one leaves nothing open."""
        outcomes: tuple[Any, ...] = ()
        for _ in range(20):
            report: Any = await bot.call("pass", "", manager.sync_exchange_positions(_VENUE))
            if isinstance(report, BaseException):
                raise report
            outcomes = report.outcomes
            allowed = {"mismatch"} if self.plan.has_people else set()
            if all(one.action.settled or one.action.value in allowed for one in outcomes):
                return
            await asyncio.sleep(4.0)
        told = "; ".join(f"{one.symbol} {one.action.value} {one.details}" for one in outcomes)
        self.judge.accuse("P: what is left is settled", told)

    async def _probe(self, bot: _Bot, manager: AtomicPositionManager) -> None:
        """Close what is open, then open and close anew: each does what it says, at once."""
        await asyncio.sleep(11.0)
        for spec in self.markets:
            book = self.judge.book(spec.id)
            self.judge.asked.add(spec.id)
            await bot.call("close", spec.id, manager.close_position(spec.id, _VENUE))
            if self.judge.book(spec.id).qty:
                if not book.touched:
                    self.judge.accuse("P: a close closes", f"{spec.id} is held after it")
                continue
            result = await bot.open(manager, spec, "short")
            if not isinstance(result, Opened):
                told = f"{spec.id}: {result!r:.200}"
                self.judge.accuse("P4: a signal on a flat symbol opens", told)
                continue
            if isinstance(result, NotOpened) or not self.judge.covered(spec.id):
                self.judge.accuse("P: a position has its stop at once", f"{spec.id} was opened without")
            await bot.call("close", spec.id, manager.close_position(spec.id, _VENUE))
            if self.judge.book(spec.id).qty:
                self.judge.accuse("P: a close closes", f"{spec.id} is held after it")
        self.judge.judge_rest()


def _fault(trouble: Trouble, request: Request) -> Fault:
    operation = request.route.operation
    if trouble.kind.startswith("refuse"):
        return Fault(FaultKind.REJECTED, operation, code=int(trouble.detail[1]), message="refused")
    if trouble.kind == "partial":
        return Fault(FaultKind(trouble.detail[1]), operation, share=Decimal(trouble.number) / 100)
    kind, execution = FaultKind(trouble.detail[1]), Execution(trouble.detail[2])
    return Fault(kind, operation, execution, hold_ms=round(trouble.lasts * 1000))
