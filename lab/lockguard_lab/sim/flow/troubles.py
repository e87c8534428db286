"""What befalls a schedule of the flow: each trouble of its plan, when its time or its event has come."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from lockguard.errors import LockguardError
from lockguard_lab.exchange import byitself
from lockguard_lab.exchange.desk import Visibility
from lockguard_lab.exchange.faults import Execution, Fault, FaultKind, Operation
from lockguard_lab.exchange.model import Side
from lockguard_lab.sim.flow.bot import VENUE, Bot, BotProcess
from lockguard_lab.sim.flow.people import Person, jump

if TYPE_CHECKING:
    from lockguard_lab.sim.flow.plan import Trouble
    from lockguard_lab.sim.flow.scene import Scene
    from lockguard_lab.sim.flow.wire import Request

__all__ = ["Troubles"]

_GOOD_LINK_S = (0.002, 0.05)
_GOOD_DATABASE_S = (0.0003, 0.003)


class Troubles:
    """All that goes wrong in one schedule.

    Args:
        scene: the schedule.
        bots: its bots, also those that were killed.
        begin: begins another one.

    Attributes:
        healed: whether nothing goes wrong any more.
    """

    def __init__(self, scene: Scene, bots: list[Bot], begin: Callable[[], None]) -> None:
        self.healed = False
        self._scene, self._world, self._bots, self._begin = scene, scene.world, bots, begin
        self._desk, self._exchange = scene.exchange.desk, scene.exchange
        self._person = Person(scene.judge)
        self._armed: list[Trouble] = []
        self._hits: list[tuple[Trouble, list[int]]] = []

    # --- when ---

    def arm(self, trouble: Trouble) -> None:
        """The time of a trouble has come: it happens now, or with the next event that it waits for."""
        if self.healed:
            return
        if trouble.on:
            self._armed.append(trouble)
        else:
            self._befall(trouble, None)

    def event(self, name: str, process: Any) -> None:
        """Something happens that a trouble may wait for."""
        for trouble in [one for one in self._armed if one.on == name]:
            self._armed.remove(trouble)
            befall = partial(self._befall, trouble, process)
            if isinstance(process, BotProcess):
                process.in_turns(trouble.turns, befall)
            else:
                self._world.after(0.002 * trouble.turns, befall)

    def request(self, request: Request) -> None:
        """A request reaches the exchange: a fault that is meant for it is armed there."""
        for trouble, left in self._hits:
            if request.step == trouble.detail[0] and left[0]:
                left[0] -= 1
                self._desk.inject(_fault(trouble, request))
                if trouble.kind == "rest ends":
                    self._end_rests_later(
                        trouble, request.params["symbol"], fills=trouble.detail[1] == "fills"
                    )
                self._world.tell(f"{trouble.kind} {' '.join(trouble.detail)} hits {request.client_id}")
                return

    def heal(self) -> None:
        """From here on nothing goes wrong."""
        self._world.tell("all is healed")
        self.healed = True
        self._armed.clear()
        self._hits.clear()
        desk, scene = self._desk, self._scene
        desk.faults.clear()
        desk.visibility = Visibility()
        desk.conditions.maintenance = False
        desk.conditions.lift_ban()
        desk.conditions.allow(None)
        desk.set_clock_offset(0)
        desk.release(None)
        self._person.use_one_way_mode()
        self._exchange.delay_s = _GOOD_LINK_S
        scene.database.up, scene.database.answers_lost = True, 0.0
        scene.postgres.delay_s = _GOOD_DATABASE_S
        for bot in self._bots:
            scene.network.link(bot.name, scene.redis.name).held = (False, False)

    # --- what ---

    def _befall(self, trouble: Trouble, process: Any) -> None:
        alive = [bot for bot in self._bots if not bot.process.dead]
        if self.healed or not alive:
            return
        chosen = alive[trouble.number % len(alive)]
        bot = next((one for one in alive if one.process is process), chosen)
        self._world.tell(f"{trouble.kind} {' '.join(trouble.detail)} {bot.name}")
        _BEFALL[trouble.kind](self, trouble, bot)

    def _symbol(self, trouble: Trouble) -> str:
        markets = self._scene.markets
        return markets[trouble.number % len(markets)].id

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        self._world.after(seconds, action)

    def _hit(self, trouble: Trouble, _: Bot) -> None:
        once = trouble.kind in ("partial", "rest ends")
        self._hits.append((trouble, [1 if once else trouble.number]))

    def _lag(self, trouble: Trouble, _: Bot) -> None:
        which, ms, desk = trouble.detail[0], trouble.number * 1000, self._desk
        desk.visibility = Visibility(
            orders_ms=ms if which != "positions" else 0, positions_ms=ms if which != "orders" else 0
        )
        self._later(trouble.lasts, lambda: setattr(desk, "visibility", Visibility()))

    def _maintain(self, trouble: Trouble, _: Bot) -> None:
        conditions = self._desk.conditions
        conditions.maintenance = True
        self._later(trouble.lasts, lambda: setattr(conditions, "maintenance", False))

    def _ban(self, trouble: Trouble, _: Bot) -> None:
        until_ms = self._desk.now_ms + round(trouble.lasts * 1000)
        self._desk.conditions.ban(until_ms, (418, 429)[trouble.number % 2])

    def _deny(self, trouble: Trouble, _: Bot) -> None:
        self._desk.conditions.deny(None, -2015, None)
        self._later(trouble.lasts, lambda: self._desk.conditions.allow(None))

    def _clock(self, trouble: Trouble, _: Bot) -> None:
        self._desk.set_clock_offset((-20_000, 20_000)[trouble.number % 2])
        self._later(trouble.lasts, lambda: self._desk.set_clock_offset(0))

    def _slow(self, trouble: Trouble, _: Bot) -> None:
        self._exchange.delay_s = (0.2, 2.5)
        self._later(trouble.lasts, lambda: setattr(self._exchange, "delay_s", _GOOD_LINK_S))

    def _price(self, trouble: Trouble, _: Bot) -> None:
        share = Decimal((-5, -3, -2, 2, 3, 5)[trouble.number % 6]) / 100
        jump(self._desk, self._symbol(trouble), share)

    def _kill(self, trouble: Trouble, bot: Bot) -> None:
        bot.process.kill()

        def again() -> None:
            if not self.healed:
                self._begin()

        self._later(trouble.lasts, again)

    def _stop(self, trouble: Trouble, bot: Bot) -> None:
        if trouble.number % 3:
            bot.process.stop_for(trouble.lasts)
        else:  # in the middle of a turn
            bot.process.stop_within(trouble.number % 4, trouble.lasts)

    def _cancel(self, _: Trouble, bot: Bot) -> None:
        if bot.calls:
            bot.calls[-1].cancel()

    def _break(self, trouble: Trouble, bot: Bot) -> None:
        async def broken() -> None:
            with contextlib.suppress(LockguardError):
                await bot.guard.break_(f"{VENUE}:{self._symbol(trouble)}", reason="sim")

        bot.process.start(broken(), "operator")

    def _cut(self, trouble: Trouble, bot: Bot) -> None:
        link = self._scene.network.link(bot.name, self._scene.redis.name)
        link.held = (True, True)
        self._later(trouble.lasts, lambda: setattr(link, "held", (False, False)))

    def _wipe(self, _: Trouble, __: Bot) -> None:
        self._scene.redis.wipe()

    def _down(self, trouble: Trouble, _: Bot) -> None:
        database = self._scene.database
        database.up = False
        self._later(trouble.lasts, lambda: setattr(database, "up", True))

    def _lose_commits(self, trouble: Trouble, _: Bot) -> None:
        database = self._scene.database
        database.answers_lost = 0.5
        self._later(trouble.lasts, lambda: setattr(database, "answers_lost", 0.0))

    def _slow_database(self, trouble: Trouble, _: Bot) -> None:
        postgres = self._scene.postgres
        postgres.delay_s = (0.05, 0.05 + min(trouble.lasts, 1.0))
        self._later(trouble.lasts, lambda: setattr(postgres, "delay_s", _GOOD_DATABASE_S))

    def _drop(self, _: Trouble, __: Bot) -> None:
        """The exchange drops a stop that it has taken."""
        engine = self._desk.engine()
        ours = [algo for algo in engine.open_algo_orders() if algo.client_id.startswith("lgs-")]
        if ours:
            engine.drop_algo(ours[-1].id, self._desk.now_ms)

    def _end_rests_later(self, trouble: Trouble, symbol: str, *, fills: bool) -> None:
        """What a shortage left in the book is filled after a while, or the exchange ends it."""

        def end() -> None:
            if fills:
                self._desk.release(symbol)
            else:
                self._desk.engine().expire_rests(symbol, self._desk.now_ms)

        self._later(trouble.lasts, end)

    def _short_stop(self, trouble: Trouble, _: Bot) -> None:
        """The price reaches the stop that comes first; only a share of it is filled."""
        desk, symbol, (kind, share) = self._desk, self._symbol(trouble), trouble.detail
        stops = self._scene.judge.stops(symbol)
        if not stops:
            return
        desk.inject(Fault(FaultKind(kind), Operation.TRIGGER, symbol=symbol, share=Decimal(share) / 100))
        if kind == "rests":
            self._end_rests_later(trouble, symbol, fills=bool(trouble.number % 2))
        before, sells = desk.venue.prices[symbol], stops[0].side is Side.SELL
        desk.set_price(symbol, (max if sells else min)(stop.trigger for stop in stops))
        if trouble.number % 3:  # it comes back as fast
            desk.set_price(symbol, before)

    def _liquidate(self, trouble: Trouble, _: Bot) -> None:
        byitself.liquidate(self._desk, self._symbol(trouble), Decimal(trouble.detail[0]) / 100)

    def _deleverage(self, trouble: Trouble, _: Bot) -> None:
        byitself.deleverage(self._desk, self._symbol(trouble), Decimal(trouble.detail[0]) / 100)

    def _hedge(self, trouble: Trouble, _: Bot) -> None:
        self._person.use_hedge_mode(trouble.number)
        self._later(trouble.lasts, self._person.use_one_way_mode)

    def _act(self, trouble: Trouble, _: Bot) -> None:
        self._person.act(trouble.kind, self._symbol(trouble), trouble.number)


_BEFALL: dict[str, Callable[[Troubles, Trouble, Bot], None]] = {
    "ban": Troubles._ban,
    "break": Troubles._break,
    "cancel": Troubles._cancel,
    "clock": Troubles._clock,
    "cut redis": Troubles._cut,
    "database down": Troubles._down,
    "deleveraging": Troubles._deleverage,
    "deny": Troubles._deny,
    "drop": Troubles._drop,
    "fail reads": Troubles._hit,
    "hedge mode": Troubles._hedge,
    "kill": Troubles._kill,
    "lag": Troubles._lag,
    "liquidation": Troubles._liquidate,
    "lose": Troubles._hit,
    "lose commit answers": Troubles._lose_commits,
    "maintenance": Troubles._maintain,
    "partial": Troubles._hit,
    "person cancels the stop": Troubles._act,
    "person closes": Troubles._act,
    "person moves the stop": Troubles._act,
    "person takes profit": Troubles._act,
    "person trades": Troubles._act,
    "price": Troubles._price,
    "refuse final": Troubles._hit,
    "refuse passing": Troubles._hit,
    "rest ends": Troubles._hit,
    "resting stop": Troubles._short_stop,
    "short stop": Troubles._short_stop,
    "slow database": Troubles._slow_database,
    "slow exchange": Troubles._slow,
    "stop": Troubles._stop,
    "wipe redis": Troubles._wipe,
}


def _fault(trouble: Trouble, request: Request) -> Fault:
    operation = request.route.operation
    if trouble.kind.startswith("refuse"):
        return Fault(FaultKind.REJECTED, operation, code=int(trouble.detail[1]), message="refused")
    if trouble.kind == "partial":
        return Fault(FaultKind(trouble.detail[1]), operation, share=Decimal(trouble.number) / 100)
    if trouble.kind == "rest ends":
        return Fault(FaultKind.RESTS, operation, share=Decimal(trouble.number) / 100)
    kind, execution = FaultKind(trouble.detail[1]), Execution(trouble.detail[2])
    return Fault(kind, operation, execution, hold_ms=round(trouble.lasts * 1000))
