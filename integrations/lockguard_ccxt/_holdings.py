"""Open positions, typed."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard.errors import ConfigurationError
from lockguard_ccxt._money import decimal_of
from lockguard_ccxt._outcome import Side, opposite

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["IN_HEDGE_MODE", "Holding", "parse_holdings"]


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


IN_HEDGE_MODE = (
    "{what} is in hedge mode, with a long and a short side of its own; this works in one-way mode only:"
    " close the positions and switch the account over (exchange.set_position_mode(False))"
)


def _is_leg(info: Mapping[str, Any]) -> bool:
    """Whether the exchange says that it is the long or the short one of two (Binance's and Bybit's words)."""
    return info.get("positionSide") in {"LONG", "SHORT"} or str(info.get("positionIdx") or "0") in {"1", "2"}


def parse_holdings(positions: Iterable[Mapping[str, Any]]) -> tuple[Holding, ...]:
    """Ccxt's positions without the flat ones.

    Raises:
        ConfigurationError: one of them is a leg of hedge mode, be it a flat one: an order without a side of
            its own would be refused, or meet the other leg.
    """
    held = []
    for position in positions:
        if _is_leg(position.get("info") or {}):
            raise ConfigurationError(IN_HEDGE_MODE.format(what=f"the position in {position['symbol']}"))
        amount = decimal_of(position.get("contracts"))
        if amount:
            side: Side = "sell" if position.get("side") == "short" else "buy"
            held.append(
                Holding(str(position["symbol"]), side, abs(amount), decimal_of(position.get("entryPrice")))
            )
    return tuple(held)
