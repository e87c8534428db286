"""When an algo order fires.

A stop fires when the price has gone against the position it protects: a sell stop at or below its trigger,
a buy stop at or above. A take-profit is the mirror image. A trailing stop carries its trigger along with the
best price since it was placed.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_lab.exchange.model import ZERO, AlgoOrder, OrderType, Side

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["TAKE_PROFITS", "ratchet", "should_trigger"]

TAKE_PROFITS: AbstractSet[OrderType] = {OrderType.TAKE_PROFIT, OrderType.TAKE_PROFIT_MARKET}
_PERCENT = Decimal(100)


def should_trigger(algo: AlgoOrder, price: Decimal) -> bool:
    """Whether ``price`` makes this order fire."""
    if algo.trigger == ZERO:
        return False
    falling = (algo.side is Side.SELL) != (algo.type in TAKE_PROFITS)
    return price <= algo.trigger if falling else price >= algo.trigger


def ratchet(algo: AlgoOrder, price: Decimal) -> AlgoOrder:
    """A trailing stop after the price moved; any other order as it is."""
    if algo.type is not OrderType.TRAILING_STOP_MARKET:
        return algo
    better = max if algo.side is Side.SELL else min
    best = better(algo.best, price)
    share = algo.callback_rate / _PERCENT
    trigger = best * (1 - share) if algo.side is Side.SELL else best * (1 + share)
    return replace(algo, best=best, trigger=trigger)
