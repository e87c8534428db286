"""Open positions, typed."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard_ccxt.money import decimal_of
from lockguard_ccxt.outcome import Side, opposite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Holding", "parse_holdings"]


@dataclass(frozen=True, slots=True)
class Holding:
    """An open position.

    Attributes:
        symbol: the unified symbol.
        side: ``buy`` when it is long, ``sell`` when it is short.
        amount: above zero.
        entry_price: average; ``None`` when the exchange does not say.
    """

    symbol: str
    side: Side
    amount: Decimal
    entry_price: Decimal | None

    @property
    def closing_side(self) -> Side:
        """The side of an order that makes it smaller."""
        return opposite(self.side)


def parse_holdings(positions: Iterable[Mapping[str, Any]]) -> tuple[Holding, ...]:
    """Ccxt's positions without the flat ones."""
    held = []
    for position in positions:
        amount = decimal_of(position.get("contracts"))
        if amount:
            side: Side = "sell" if position.get("side") == "short" else "buy"
            held.append(
                Holding(str(position["symbol"]), side, abs(amount), decimal_of(position.get("entryPrice")))
            )
    return tuple(held)
