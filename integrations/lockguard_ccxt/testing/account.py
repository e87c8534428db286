"""The account's money and net positions (one-way mode)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import count
from typing import TYPE_CHECKING

from lockguard_ccxt.testing.model import ZERO, Fill, Order, Position, Side
from lockguard_ccxt.testing.rejections import Rejection
from lockguard_ccxt.testing.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Account", "Netted", "net"]

_PRICE_PLACES = Decimal("1e-12")


@dataclass(frozen=True, slots=True)
class Netted:
    """What a fill did to a position.

    Attributes:
        position: afterwards.
        opened: how much of the fill made it larger.
        realized: the profit of the part that made it smaller.
    """

    position: Position
    opened: Decimal
    realized: Decimal


def net(position: Position, side: Side, price: Decimal, qty: Decimal, now_ms: int) -> Netted:
    """Put a fill onto a position: it grows, shrinks, or is closed and opened the other way."""
    signed = qty * side.sign
    if position.qty * signed >= ZERO:
        total = position.qty + signed
        entry = (position.entry_price * abs(position.qty) + price * qty) / abs(total)
        entry = entry.quantize(_PRICE_PLACES, ROUND_HALF_EVEN)
        return Netted(Position(position.symbol, total, entry, now_ms), qty, ZERO)
    closed = min(qty, abs(position.qty))
    direction = 1 if position.qty > ZERO else -1
    realized = (price - position.entry_price) * closed * direction
    opened = qty - closed
    total = position.qty + signed
    entry = price if opened else (position.entry_price if total else ZERO)
    return Netted(Position(position.symbol, total, entry, now_ms), opened, realized)


class Account:
    """Wallet, leverage, net positions and the fills that made them."""

    def __init__(self, symbols: Iterable[str], *, wallet: Decimal, fee_rate: Decimal) -> None:
        self.wallet = wallet
        self.fee_rate = fee_rate
        self.leverage = dict.fromkeys(symbols, 20)
        self.isolated: set[str] = set()
        self.fills: list[Fill] = []
        self._positions = {symbol: Timeline(Position(symbol), 0) for symbol in self.leverage}
        self._fill_ids = count(1)

    def position(self, symbol: str) -> Position:
        """The net position, as it is."""
        return self._positions[symbol].now

    def positions(self, as_of_ms: int | None = None) -> list[Position]:
        """Every contract's net position, flat ones too, as it is or as it was."""
        if as_of_ms is None:
            return [timeline.now for timeline in self._positions.values()]
        return [timeline.as_of(as_of_ms) or Position(symbol) for symbol, timeline in self._positions.items()]

    def apply(self, order: Order, price: Decimal, qty: Decimal, now_ms: int) -> Fill:
        """Fill ``qty`` of an order at ``price``."""
        netted = net(self.position(order.symbol), order.side, price, qty, now_ms)
        commission = price * qty * self.fee_rate
        fill = Fill(
            id=next(self._fill_ids),
            order_id=order.id,
            client_id=order.client_id,
            symbol=order.symbol,
            side=order.side,
            price=price,
            qty=qty,
            opened=netted.opened,
            realized=netted.realized,
            commission=commission,
            at_ms=now_ms,
        )
        self.wallet += netted.realized - commission
        self.fills.append(fill)
        self._positions[order.symbol].put(netted.position, now_ms)
        return fill

    def unrealized(self, marks: Mapping[str, Decimal]) -> Decimal:
        """The profit of the open positions at these prices."""
        return sum(((marks[p.symbol] - p.entry_price) * p.qty for p in self.positions() if p.qty), ZERO)

    def margin(self, position: Position, mark: Decimal) -> Decimal:
        """What a position ties up at this price."""
        return abs(position.qty) * mark / self.leverage[position.symbol]

    def available(self, marks: Mapping[str, Decimal]) -> Decimal:
        """What is left to open positions with."""
        tied = sum((self.margin(p, marks[p.symbol]) for p in self.positions()), ZERO)
        return max(ZERO, self.wallet + self.unrealized(marks) - tied)

    def reducible(self, symbol: str, side: Side) -> Decimal:
        """How much an order of this side can make the position smaller by."""
        qty = self.position(symbol).qty
        return abs(qty) if qty * side.sign < ZERO else ZERO

    def check_margin(
        self, symbol: str, side: Side, qty: Decimal, price: Decimal, marks: Mapping[str, Decimal]
    ) -> None:
        """Refuse an order that there is no margin for."""
        opening = max(ZERO, qty - self.reducible(symbol, side))
        if opening * price / self.leverage[symbol] > self.available(marks):
            raise Rejection(-2019, "Margin is insufficient.")
