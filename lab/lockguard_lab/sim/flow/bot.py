"""One bot of a schedule: a process with a guard, ccxt and the manager, all of them as shipped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard import LockGuard
from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange
from lockguard_ccxt._classify import ccxt_errors
from lockguard_lab.exchange import connect
from lockguard_lab.sim.flow.database import Pool
from lockguard_lab.sim.flow.wire import URL, Wire
from lockguard_lab.sim.postgres import Fence
from lockguard_lab.sim.world import EPOCH_S, Process, World
from lockguard_positions import AtomicPositionManager
from lockguard_positions._events import Alert, PositionEvent

if TYPE_CHECKING:
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.sim.flow.scene import Scene

__all__ = ["VENUE", "Bot", "BotProcess"]

VENUE = "binance"
_WORTH = Decimal(60)
_CALLS = ("open",) * 5 + ("close", "close", "move stop", "move stop", "ensure stop", "clean up")
_SHARES = ("0.97", "0.985", "0.99", "1.01", "1.03")
_RESTING_S = 6.0


class BotProcess(Process):
    """A process in which something can be done to it a number of turns after an event."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._coming: list[tuple[int, Callable[[], None]]] = []

    def in_turns(self, turns: int, action: Callable[[], None]) -> None:
        """Have ``action`` called between two turns, ``turns`` later."""
        self._coming.append((turns, action))

    def turn(self) -> None:
        """As every process; then what is to come after it."""
        super().turn()
        coming, self._coming = self._coming, []
        for turns, action in coming:
            if turns:
                self._coming.append((turns - 1, action))
            else:
                action()


class Bot:
    """One bot.

    Args:
        scene: where it lives.
        name: for people.

    Attributes:
        calls: those that are being made.
        quiet: whether it makes no further passes.
        manager: once it has begun.
        client: its ccxt.
        exchange: the same, guarded.
    """

    def __init__(self, scene: Scene, name: str) -> None:
        self._scene, self.name = scene, name
        self._world, self._plan = scene.world, scene.plan
        self.process = BotProcess(self._world, name)
        self.process.connect = scene.network.connect
        self.calls: list[asyncio.Future[Any]] = []
        self.quiet = False
        self.guard = LockGuard.from_urls(
            [f"redis://{scene.redis.name}"],
            ttl=timedelta(seconds=self._plan.ttl_s),
            wait=timedelta(seconds=3),
            fence=Fence(scene.postgres, self.process),
            fence_within=timedelta(seconds=2),
        )
        self.process.on_burial.append(self.guard._core.abandon)
        self.manager: AtomicPositionManager | None = None
        self.client = self._connected()
        self.exchange = GuardedExchange(self.client)
        self.life = self.process.start(self._live(), f"{name} lives")

    def on(self, event: PositionEvent) -> None:
        """Hear what the manager tells."""
        if isinstance(event, Alert):
            self._world.tell(f"{self.name} alert {event.resource} {event.message[:150]}")
            self._scene.judge.alerts.append((self._world.now, event.resource))

    def _connected(self) -> Any:
        wire = Wire(self.process, self._scene.exchange)
        client = connect(URL, config={"session": wire, "verify": False, "asyncio_loop": self.process})
        client.milliseconds = lambda: int((EPOCH_S + self._world.now) * 1000)
        return client

    async def _live(self) -> None:
        scene, plan, dice = self._scene, self._plan, self._world.dice
        while True:
            try:
                await self.exchange.load([spec.id for spec in scene.markets])
                break
            except (ccxt_errors().BaseError, ConfigurationError) as refused:  # the latter in hedge mode
                self._world.tell(f"{self.name} cannot begin: {type(refused).__name__}")
                await asyncio.sleep(1.0)
        pool: Any = Pool(scene.database, self.process)
        self.manager = AtomicPositionManager(
            self.guard, pool, [self.exchange], observers=[self], adopt=plan.adopt
        )
        await self.call("recover", "", self.manager.recover(VENUE))
        tasks = [asyncio.create_task(self._pass(self.manager), name=f"{self.name} passes")]
        while not scene.over:
            await asyncio.sleep(dice.uniform(0, 2 * plan.signals_s))
            if not scene.over:
                tasks.append(asyncio.create_task(self._act(self.manager), name=f"{self.name} acts"))
        await asyncio.gather(*tasks)

    async def _pass(self, manager: AtomicPositionManager) -> None:
        while not self.quiet:
            await self.call("pass", "", manager.sync_exchange_positions(VENUE))
            await asyncio.sleep(_RESTING_S if self._scene.over else self._plan.pass_s)

    async def _act(self, manager: AtomicPositionManager) -> None:
        scene, dice = self._scene, self._world.dice
        spec = dice.choice(scene.markets)
        what, symbol = dice.choice(_CALLS), dice.choice((spec.id, spec.symbol))
        match what:
            case "open":
                await self.open(manager, spec, dice.choice(("long", "short")))
            case "close":
                await self.close(manager, spec)
            case "move stop":
                price = scene.exchange.desk.venue.prices[spec.id] * Decimal(dice.choice(_SHARES))
                await self.call(what, spec.id, manager.move_stop(symbol, VENUE, price))
            case "ensure stop":
                await self.call(what, spec.id, manager.ensure_stop(symbol, VENUE))
            case _:
                await self.call(what, spec.id, manager.clean_up(symbol, VENUE))

    async def open(self, manager: AtomicPositionManager, spec: MarketSpec, side: str) -> object:
        """Open a position at the price of now."""
        price = self._scene.exchange.desk.venue.prices[spec.id]
        signal = f"signal {self._world.now:.4f}"
        call = manager.open_position_atomic(signal, spec.symbol, VENUE, side, _WORTH / price, price, "2")
        return await self.call("open", spec.id, call)

    async def close(self, manager: AtomicPositionManager, spec: MarketSpec) -> object:
        """Close what is open, as a person asks for it."""
        self._scene.judge.asked.add(spec.id)
        return await self.call("close", spec.id, manager.close_position(spec.id, VENUE))

    async def call(self, what: str, symbol: str, call: Awaitable[object]) -> object:
        """Make a call in a task of its own, which may be cancelled; returns its result or its error."""
        world, began = self._world, self._world.now
        world.tell(f"{self.name} {what} {symbol}")
        task = asyncio.ensure_future(call)
        if isinstance(task, asyncio.Task):
            task.set_name(f"{self.name} {what} {symbol}")
        self.calls.append(task)
        await asyncio.wait([task])
        self.calls.remove(task)
        result: object = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()
        self._scene.judge.returned(self.name, what, symbol, result, began)
        return result
