"""Runs one schedule of the flow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from lockguard_lab.exchange.markets import MarketSpec
from lockguard_lab.sim.flow.bot import VENUE, Bot
from lockguard_lab.sim.flow.database import Database, SimTransaction, fenced_fetchrow, give_back, resolve
from lockguard_lab.sim.flow.judge import FlowJudge
from lockguard_lab.sim.flow.people import jump
from lockguard_lab.sim.flow.plan import FlowPlan
from lockguard_lab.sim.flow.rest import judge_rest
from lockguard_lab.sim.flow.scene import Scene
from lockguard_lab.sim.flow.troubles import Troubles
from lockguard_lab.sim.flow.wire import SimExchange
from lockguard_lab.sim.judge import Violation
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.postgres import Postgres
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.run import in_world, thrown_away
from lockguard_lab.sim.world import Stuck, World
from lockguard_positions import AtomicPositionManager, Opened, SyncAction, SyncOutcome
from lockguard_positions import _fenced_writes as writes

__all__ = ["FlowOutcome", "FlowPlan", "Schedule", "run", "violations"]

_PORT = 6379
_MARKETS = (
    MarketSpec("AAA", price=Decimal(10), tick=Decimal("0.001"), step=Decimal("0.1")),
    MarketSpec("BBB", price=Decimal(250), tick=Decimal("0.01"), step=Decimal("0.01")),
)
_CALL_S_MAX = 150.0
"""The longest call: it waits, settles and looks for orders, each within its bound."""
_SETTLE_S = 120.0
_DOUBT_S = 18.0
"""Longer than an order without an answer may still appear, a copy of a stop arrive, and lists lag."""
_FAILED = "a schedule runs to its end"
"""What an error of the simulation itself is told as, so that it ends its own schedule only."""


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
    with thrown_away():
        return _run(plan)


def _run(plan: FlowPlan) -> FlowOutcome:
    world = World(plan.seed)
    with in_world(world), _in_the_model():
        schedule = Schedule(plan, world)
        try:
            return schedule.run()
        finally:
            for bot in schedule.bots:
                bot.client.session = None  # or ccxt would say that it was left open


def violations(seed: int, topology: str | None = None) -> tuple[Violation, ...]:
    """The laws that the schedule of a seed breaks; a topology is the theme of its troubles here.

    Raises:
        RuntimeError: the schedule itself failed before any was broken, which convicts no mistake.
    """
    found = run(FlowPlan.of(seed, topology)).violations
    if found and found[0].law == _FAILED:
        raise RuntimeError(f"seed {seed}: {found[0].told}")
    return found


@contextlib.contextmanager
def _in_the_model() -> Iterator[None]:
    """Have the store write to the model of its tables, and nobody log what went wrong on purpose."""
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


class Schedule:
    """One schedule: its bots, and what befalls them."""

    def __init__(self, plan: FlowPlan, world: World) -> None:
        markets, postgres, network = list(_MARKETS[: plan.symbols]), Postgres(world), Network(world)
        database, exchange = Database(postgres), SimExchange(world, markets)
        redis = RedisServer(world, f"127.0.0.1:{_PORT}", 0)
        network.servers[redis.name] = redis
        self.judge = FlowJudge(world, plan, exchange, database)
        self.plan, self.world, self.markets = plan, world, markets
        self.scene = Scene(plan, world, markets, network, redis, postgres, database, exchange, self.judge)
        self.bots: list[Bot] = []
        self.troubles = Troubles(self.scene, self.bots, self.begin)
        self.judge.on_event = self.troubles.event
        self.judge.on_request = self.troubles.request

    def run(self) -> FlowOutcome:
        """Run it, and judge what is left."""
        plan, world = self.plan, self.world
        for trouble in plan.troubles:
            world.at(trouble.at, partial(self.troubles.arm, trouble))
        for _ in range(plan.processes):
            self.begin()
        world.after(0.7, self._walk)
        try:
            self._pass_time(plan.until_s)
            self.scene.over = True
            self.troubles.heal()
            self._pass_time(_DOUBT_S)
            self._end_calls()
            self._judge_rest()
        except Stuck as stuck:
            tasks = [task.get_name() for bot in self.alive for task in asyncio.all_tasks(bot.process)]
            waiting = ", ".join(sorted(name for name in tasks if not name.startswith("Task")))
            self.judge.accuse("bounded waits", f"{stuck}; unfinished: {waiting}")
        except Exception as failure:  # noqa: BLE001 - told
            at = traceback.extract_tb(failure.__traceback__)[-1]
            self.judge.accuse(_FAILED, f"{failure!r} at {Path(at.filename).name}:{at.lineno} in {at.name}")
        for bot in self.bots:
            for fault in bot.process.faults:
                self.judge.accuse("nothing is left behind", f"{bot.name}: {fault}")
            if bot.life.done() and not bot.process.dead and (error := bot.life.exception()):
                self.judge.accuse("S12: the outcome of every call", f"{bot.name}: {error!r}")
        return FlowOutcome(
            tuple(self.judge.violations),
            sum(self.judge.outcomes.values()),
            self.scene.exchange.requests,
            self.scene.database.statements,
            world.now,
            world.trace_hash,
            tuple(world.lines),
            self.judge.outcomes,
        )

    def begin(self) -> None:
        """Begin a bot, also in place of one that was killed."""
        self.bots.append(Bot(self.scene, f"b{len(self.bots)}"))

    @property
    def alive(self) -> list[Bot]:
        """The bots that run."""
        return [bot for bot in self.bots if not bot.process.dead]

    def _pass_time(self, seconds: float) -> None:
        done: list[bool] = []
        self.world.after(seconds, lambda: done.append(True))
        self.world.run(lambda: bool(done), latest=self.world.now + seconds + 1)

    def _walk(self) -> None:
        """Prices move a little."""
        if not self.scene.over:
            for spec in self.markets:
                jump(self.scene.exchange.desk, spec.id, Decimal(self.world.dice.randint(-6, 6)) / 10_000)
            self.world.after(self.world.dice.uniform(0.5, 2.0), self._walk)

    # --- at rest ---

    def _end_calls(self) -> None:
        """Every call ends in time; then the passes stop."""
        if not self.alive:
            self.begin()
        for bot in self.alive:
            bot.quiet = True
        self.world.run(
            lambda: all(bot.life.done() for bot in self.alive), latest=self.world.now + _CALL_S_MAX
        )

    def _judge_rest(self) -> None:
        bot = self.alive[0]
        if bot.manager is None:
            return  # its life ended before it began, which is told
        for work in (self._settle, self._probe):
            task: asyncio.Task[Any] = bot.process.start(work(bot, bot.manager), "rest")
            self.world.run(task.done, latest=self.world.now + _SETTLE_S)
            if error := task.exception():
                self.judge.accuse("S12: the outcome of every call", f"at rest: {error!r}")
            else:
                judge_rest(self.judge)
            if self.judge.violations:
                return

    async def _settle(self, bot: Bot, manager: AtomicPositionManager) -> None:
        """Make passes until one leaves nothing open."""
        outcomes: tuple[SyncOutcome, ...] = ()
        for _ in range(20):
            # A ban that was told while the exchange's clock was wrong is waited for longer than it lasts.
            await asyncio.sleep(bot.exchange.closed_for.total_seconds())
            report: Any = await bot.call("pass", "", manager.sync_exchange_positions(VENUE))
            if isinstance(report, BaseException):
                raise report
            outcomes = report.outcomes
            if all(one.action.settled or self._left_to_a_person(one) for one in outcomes):
                return
            await asyncio.sleep(4.0)
        told = "; ".join(f"{one.symbol} {one.action.value} {one.details}" for one in outcomes)
        self.judge.accuse("P: what is left is settled", told)

    def _left_to_a_person(self, outcome: SyncOutcome) -> bool:
        """Whether an outcome stays until a person acts: what is not held any more is settled by passes."""
        lasting = outcome.action in (SyncAction.MISMATCH, SyncAction.UNPROTECTED)
        return self.plan.has_others and lasting and self.judge.book(outcome.symbol).qty != 0

    async def _probe(self, bot: Bot, manager: AtomicPositionManager) -> None:
        """Close what is open, then open and close anew: each does what it says, at once."""
        await asyncio.sleep(_DOUBT_S)
        for spec in self.markets:
            touched = self.judge.book(spec.id).touched
            await bot.close(manager, spec)
            if self.judge.book(spec.id).qty:
                if not touched:
                    self.judge.accuse("P: a close closes", f"{spec.id} is held after it")
                continue
            result = await bot.open(manager, spec, "short")
            if not isinstance(result, Opened):
                self.judge.accuse("P4: a signal on a flat symbol opens", f"{spec.id}: {result!r:.200}")
                continue
            if not self.judge.covered(spec.id):
                self.judge.accuse("P: a position has its stop at once", f"{spec.id} was opened without")
            await bot.close(manager, spec)
            if self.judge.book(spec.id).qty:
                self.judge.accuse("P: a close closes", f"{spec.id} is held after it")
