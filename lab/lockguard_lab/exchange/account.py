"""One account's money and positions.

In one-way mode a contract has one net position, ``BOTH``, which an order may reverse. In hedge mode it has
two, ``LONG`` and ``SHORT``, each opened by one side, closed by the other, and never reversed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal
from typing import TYPE_CHECKING

from lockguard_lab.exchange.model import ZERO, Fill, Order, Position, PositionSide, Side
from lockguard_lab.exchange.rejections import Rejection
from lockguard_lab.exchange.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.venue import MarketData

__all__ = ["Account", "Netted", "net"]

_PRICE_PLACES = Decimal("1e-12")
_LEVERAGE_DEFAULT = 20
_COINS = Decimal(10_000)
"""How much an account has of each coin in which inverse contracts are margined."""


@dataclass(frozen=True, slots=True)
class Netted:
    """The effect of a fill on a position.

    Attributes:
        position: the position after the fill.
        opened: how much of the fill made the position larger.
        realized: the profit of the part that made the position smaller.
    """

    position: Position
    opened: Decimal
    realized: Decimal


def net(
    spec: MarketSpec, position: Position, side: Side, price: Decimal, qty: Decimal, now_ms: int
) -> Netted:
    """Apply a fill to a position: it grows, shrinks, or is closed and opened the other way."""
    signed = qty * side.sign
    total = position.qty + signed
    if position.qty * signed >= ZERO:
        entry = spec.average(abs(position.qty), position.entry_price, qty, price)
        entry = entry.quantize(_PRICE_PLACES, ROUND_HALF_EVEN)
        return Netted(replace(position, qty=total, entry_price=entry, updated_ms=now_ms), qty, ZERO)
    closed = min(qty, abs(position.qty))
    direction = 1 if position.qty > ZERO else -1
    realized = spec.profit(closed * direction, position.entry_price, price)
    opened = qty - closed
    entry = price if opened else (position.entry_price if total else ZERO)
    return Netted(replace(position, qty=total, entry_price=entry, updated_ms=now_ms), opened, realized)


class Account:
    """The wallets, leverage and positions of one account, and the fills that made the positions."""

    def __init__(self, venue: MarketData, *, name: str, wallet: Decimal, fee_rate: Decimal) -> None:
        self.venue = venue
        self.name = name
        self.fee_rate = fee_rate
        self.hedged = False
        self.may_withdraw = False
        self.may_trade_futures = True
        self.multi_assets = False
        self.isolated: set[str] = set()
        self.added_margin: dict[str, Decimal] = {}
        self.fills: list[Fill] = []
        self._wallet = wallet
        self._wallets: dict[str, Decimal] = {}
        self._leverage: dict[str, int] = {}
        self._positions: dict[tuple[str, PositionSide], Timeline[Position]] = {}
        self._realized: dict[tuple[str, PositionSide], Decimal] = {}

    # --- money ---

    def wallet(self, asset: str) -> Decimal:
        """The wallet balance in ``asset``."""
        coin = asset not in {"USDT", "USDC"}
        return self._wallets.get(asset, _COINS if coin else self._wallet)

    def assets(self, *, inverse: bool) -> list[str]:
        """The assets that the listed contracts of USD-M or COIN-M are settled in."""
        usual = [] if inverse else ["USDT"]
        return list(dict.fromkeys(usual + [spec.settle for spec in self.venue.listed(inverse=inverse)]))

    def leverage(self, symbol: str) -> int:
        """The leverage of a contract; the default unless it was changed."""
        return self._leverage.get(symbol, _LEVERAGE_DEFAULT)

    def set_leverage(self, symbol: str, leverage: int) -> None:
        """Change a contract's leverage."""
        self._leverage[symbol] = leverage

    def unrealized(self, asset: str) -> Decimal:
        """The profit of the open positions that are settled in ``asset``."""
        return sum((self.profit(position) for position in self._held(asset)), ZERO)

    def profit(self, position: Position) -> Decimal:
        """A position's profit at the mark price, in the contract's settlement asset."""
        spec = self.venue.markets[position.symbol]
        return spec.profit(position.qty, position.entry_price, self.venue.marks[spec.id])

    def margin(self, position: Position) -> Decimal:
        """The margin that a position ties up at the mark price."""
        spec = self.venue.markets[position.symbol]
        return spec.worth(abs(position.qty), self.venue.marks[spec.id]) / self.leverage(spec.id)

    def available(self, asset: str) -> Decimal:
        """How much of ``asset`` is free to open positions with."""
        tied = sum((self.margin(position) for position in self._held(asset)), ZERO)
        return max(ZERO, self.wallet(asset) + self.unrealized(asset) - tied)

    def _held(self, asset: str) -> Iterator[Position]:
        for timeline in self._positions.values():
            position = timeline.now
            if position.qty and self.venue.markets[position.symbol].settle == asset:
                yield position

    def check_margin(self, spec: MarketSpec, opening: Decimal, price: Decimal) -> None:
        """Refuse an opening for which there is not enough margin."""
        if spec.worth(opening, price) / self.leverage(spec.id) > self.available(spec.settle):
            raise Rejection(-2019, "Margin is insufficient.")

    # --- positions ---

    def position(self, symbol: str, side: PositionSide = PositionSide.BOTH) -> Position:
        """The current state of a position."""
        timeline = self._positions.get((symbol, side))
        return self._flat(symbol, side) if timeline is None else timeline.now

    def realized(self, symbol: str, side: PositionSide) -> Decimal:
        """All profit that was realized in a position so far, before fees."""
        return self._realized.get((symbol, side), ZERO)

    def sides(self) -> tuple[PositionSide, ...]:
        """Which positions a contract has in the account's mode."""
        return (PositionSide.LONG, PositionSide.SHORT) if self.hedged else (PositionSide.BOTH,)

    def positions(self, as_of_ms: int | None = None) -> list[Position]:
        """All positions, including flat ones, as they are now or as they were at ``as_of_ms``."""
        if as_of_ms is None:
            return [timeline.now for timeline in self._positions.values()]
        return [
            timeline.as_of(as_of_ms) or self._flat(symbol, side)
            for (symbol, side), timeline in self._positions.items()
        ]

    def step_clock(self, by_ms: int) -> None:
        """See :meth:`Timeline.shift`."""
        for timeline in self._positions.values():
            timeline.shift(by_ms)

    def _flat(self, symbol: str, side: PositionSide) -> Position:
        return Position(symbol, side=side, account=self.name)

    def reducible(self, symbol: str, side: Side, position_side: PositionSide) -> Decimal:
        """By how much an order of this side can make the position smaller."""
        qty = self.position(symbol, position_side).qty
        return abs(qty) if qty * side.sign < ZERO else ZERO

    def apply(self, order: Order, price: Decimal, qty: Decimal, now_ms: int) -> Fill:
        """Fill ``qty`` of an order at ``price``."""
        spec = self.venue.markets[order.symbol]
        before = self.position(order.symbol, order.position_side)
        netted = net(spec, before, order.side, price, qty, now_ms)
        commission = spec.worth(qty, price) * self.fee_rate
        fill = Fill(
            id=next(self.venue.fill_ids),
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
            position_side=order.position_side,
            account=self.name,
        )
        self._wallets[spec.settle] = self.wallet(spec.settle) + netted.realized - commission
        self.fills.append(fill)
        key = (order.symbol, order.position_side)
        self._realized[key] = self.realized(*key) + netted.realized
        if key not in self._positions:
            self._positions[key] = Timeline(self._flat(*key), 0)
        self._positions[key].put(netted.position, now_ms)
        return fill
