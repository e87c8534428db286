"""What a person does beside the bots, and what prices do."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import byhand
from lockguard_lab.exchange.byhand import HandOrder, HandStop
from lockguard_lab.exchange.model import PositionSide, Side

if TYPE_CHECKING:
    from lockguard_lab.exchange.desk import Desk
    from lockguard_lab.sim.flow.judge import FlowJudge

__all__ = ["Person", "jump"]


class Person:
    """Trades by hand in the account of the bots."""

    def __init__(self, judge: FlowJudge) -> None:
        self._judge, self._world = judge, judge.world
        self._desk: Desk = judge.exchange.desk
        self._acts = 0

    def act(self, kind: str, symbol: str, number: int) -> None:
        """Do what a trouble says; nothing, if the exchange refuses it."""
        self._acts += 1
        self._judge.by_hand = True
        try:
            match kind:
                case "person trades":
                    self._trade(symbol, number)
                case "person closes":
                    self._close(symbol)
                case "person moves the stop":
                    self._move(symbol, number)
                case "person takes profit":
                    self._take_profit(symbol)
                case "person cancels the stop":
                    for stop in self._judge.stops(symbol):
                        byhand.cancel(self._desk, stop.id)
        except ConfigurationError as refused:
            self._world.tell(f"the person: {refused}")
        finally:
            self._judge.by_hand = False

    def use_hedge_mode(self, number: int) -> None:
        """Switch the account to hedge mode; the exchange refuses that while anything is open.

        Args:
            number: whether all that is open is closed first, and whether a leg is opened after.
        """
        self._acts += 1
        self._judge.by_hand = True
        try:
            if number % 4:
                self._close_all()
            byhand.set_hedge_mode(self._desk, hedged=True)
            if number % 3 == 0:
                symbol = min(self._desk.venue.markets)
                side, leg = ((Side.BUY, PositionSide.LONG), (Side.SELL, PositionSide.SHORT))[number % 2]
                qty = self._worth(symbol)
                byhand.trade(
                    self._desk, HandOrder(symbol, side, qty, position_side=leg, client_id=self._name())
                )
        except ConfigurationError as refused:
            self._world.tell(f"the person: {refused}")
        finally:
            self._judge.by_hand = False

    def use_one_way_mode(self) -> None:
        """Close the legs of hedge mode, and switch the account back.

        The exchange refuses that while anything is open, such as what an order of the person has left.
        """
        if not self._desk.engine().account.hedged:
            return
        self._acts += 1
        self._judge.by_hand = True
        try:
            self._close_all()
            byhand.set_hedge_mode(self._desk, hedged=False)
        except ConfigurationError as refused:
            self._world.tell(f"the person: {refused}")
        finally:
            self._judge.by_hand = False

    def _close_all(self) -> None:
        """Close all that is held, in either mode, and cancel all orders."""
        engine, desk = self._desk.engine(), self._desk
        for position in engine.account.positions():
            if position.qty:
                side = Side.SELL if position.qty > 0 else Side.BUY
                qty, leg = abs(position.qty), position.side
                byhand.trade(
                    desk, HandOrder(position.symbol, side, qty, position_side=leg, client_id=self._name())
                )
        waiting = [order.id for order in engine.open_orders()]
        for order_id in waiting + [algo.id for algo in engine.open_algo_orders()]:
            byhand.cancel(desk, order_id)

    def _worth(self, symbol: str) -> Decimal:
        spec = self._desk.venue.markets[symbol]
        return 60 / self._desk.venue.prices[symbol] // spec.step * spec.step

    def _name(self) -> str:
        return f"web_{self._acts}_{round(self._world.now * 1000)}"

    def _order(self, symbol: str, side: Side, qty: Decimal) -> None:
        byhand.trade(self._desk, HandOrder(symbol, side, qty, client_id=self._name()))

    def _trade(self, symbol: str, number: int) -> None:
        held = self._desk.engine().account.position(symbol).qty
        side = Side.BUY if number % 2 else Side.SELL
        share = (Decimal("0.5"), Decimal(1), Decimal(2))[number % 3]
        spec = self._desk.venue.markets[symbol]
        worth = 60 / self._desk.venue.prices[symbol]
        qty = max(spec.step, (abs(held) or worth) * share // spec.step * spec.step)
        self._order(symbol, side, qty)

    def _close(self, symbol: str) -> None:
        held = self._desk.engine().account.position(symbol).qty
        if held:
            self._order(symbol, Side.SELL if held > 0 else Side.BUY, abs(held))

    def _take_profit(self, symbol: str) -> None:
        held = self._desk.engine().account.position(symbol).qty
        if held:
            spec, price = self._desk.venue.markets[symbol], self._desk.venue.prices[symbol]
            trigger = price * Decimal("1.04" if held > 0 else "0.96") // spec.tick * spec.tick
            side = Side.SELL if held > 0 else Side.BUY
            byhand.stop(
                self._desk,
                HandStop(symbol, side, trigger, qty=abs(held), take_profit=True, client_id=self._name()),
            )

    def _move(self, symbol: str, number: int) -> None:
        held = self._desk.engine().account.position(symbol).qty
        stops = self._judge.stops(symbol)
        if not held or not stops:
            return
        spec, price = self._desk.venue.markets[symbol], self._desk.venue.prices[symbol]
        share = (Decimal("0.03"), Decimal("0.01"), Decimal("0.06"))[number % 3]
        trigger = price * (1 - share if held > 0 else 1 + share) // spec.tick * spec.tick
        side = Side.SELL if held > 0 else Side.BUY
        byhand.stop(self._desk, HandStop(symbol, side, trigger, qty=abs(held), client_id=self._name()))
        for stop in stops:
            byhand.cancel(self._desk, stop.id)


def jump(desk: Desk, symbol: str, share: Decimal) -> None:
    """Move a price by a share of it."""
    spec = desk.venue.markets[symbol]
    desk.set_price(symbol, desk.venue.prices[symbol] * (1 + share) // spec.tick * spec.tick)
