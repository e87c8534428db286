"""Prices and amounts as ``Decimal``, in the exchange's own steps.

ccxt gives a market's precision in one of three ways. Nearly every exchange uses the step itself (0.001);
some give the number of digits (3). Code that mistook one for the other turned 0.057 BTC into nothing. ccxt
also returns numbers as floats: their shortest text is the number that the exchange sent, and that text is
parsed here, once.

ccxt's own rounding changes the rounding mode of the current decimal context as a side effect, so every
rounding here names its mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from lockguard.errors import ConfigurationError

__all__ = ["MarketRules", "decimal_of", "rules_of", "steps_of"]

_DECIMAL_PLACES = 2
_TICK_SIZE = 4
_ZERO = Decimal(0)


def decimal_of(value: object) -> Decimal | None:
    """A number from ccxt, as the exchange sent it; ``None`` if it is not a finite number."""
    if value is None or value == "":
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


@dataclass(frozen=True, slots=True)
class MarketRules:
    """The steps and limits in which a market is traded.

    Attributes:
        symbol: the unified symbol.
        amount_step: quantities are whole multiples of it.
        price_tick: prices are whole multiples of it.
        amount_min: the smallest quantity.
        amount_max: the largest quantity of a market order; ``None`` without limit.
        cost_min: the smallest price times quantity of an opening order; ``None`` without limit.
    """

    symbol: str
    amount_step: Decimal
    price_tick: Decimal
    amount_min: Decimal
    amount_max: Decimal | None
    cost_min: Decimal | None

    def amount(self, wanted: Decimal) -> Decimal:
        """``wanted`` rounded down to whole steps.

        Raises:
            ConfigurationError: the amount is not above zero, below the smallest or above the largest.
        """
        if not wanted.is_finite() or wanted <= _ZERO:
            raise ConfigurationError(f"an amount of {self.symbol} must be above zero, got {wanted}")
        rounded = wanted - wanted % self.amount_step
        if rounded < max(self.amount_min, self.amount_step):
            raise ConfigurationError(
                f"an amount of {wanted} {self.symbol} is below the smallest, "
                f"{max(self.amount_min, self.amount_step)}; ask for more"
            )
        if self.amount_max is not None and rounded > self.amount_max:
            raise ConfigurationError(
                f"an amount of {wanted} {self.symbol} is above the largest, {self.amount_max}; ask for less"
            )
        return rounded

    def reduction(self, held: Decimal) -> Decimal | None:
        """How much of ``held`` one order that only reduces can close; ``None`` if no order can.

        More than the largest order is closed by several, none of which leaves less than the smallest. What
        the order is worth is no limit: exchanges exempt orders that only reduce.
        """
        smallest = max(self.amount_min, self.amount_step)
        whole = held - held % self.amount_step
        if whole < smallest:
            return None
        if self.amount_max is None or whole <= self.amount_max:
            return whole
        part = min(self.amount_max, whole - smallest)
        part -= part % self.amount_step
        return part if part >= smallest else None

    def price(self, wanted: Decimal) -> Decimal:
        """``wanted`` rounded to the nearest tick.

        Raises:
            ConfigurationError: the price is not above zero, or rounds to zero.
        """
        if not wanted.is_finite() or wanted <= _ZERO:
            raise ConfigurationError(f"a price of {self.symbol} must be above zero, got {wanted}")
        rounded = (wanted / self.price_tick).to_integral_value(ROUND_HALF_EVEN) * self.price_tick
        if rounded == _ZERO:
            raise ConfigurationError(
                f"a price of {wanted} {self.symbol} is below one tick, {self.price_tick}"
            )
        return rounded


def rules_of(exchange: Any, market: Any) -> MarketRules:
    """A market's steps and limits, in either form in which an exchange gives the steps.

    Raises:
        ConfigurationError: the exchange counts significant digits, or gives no step.
    """
    return steps_of(str(exchange.id), exchange.precisionMode, market)


def steps_of(exchange_id: str, mode: object, market: Any) -> MarketRules:
    """The same as :func:`rules_of`, from the exchange's id and ccxt's precision mode."""
    limits = market["limits"]
    amount, cost = limits.get("amount") or {}, limits.get("cost") or {}
    of_market_orders = limits.get("market") or {}
    return MarketRules(
        symbol=str(market["symbol"]),
        amount_step=_step(exchange_id, mode, market, "amount"),
        price_tick=_step(exchange_id, mode, market, "price"),
        amount_min=decimal_of(amount.get("min")) or _ZERO,
        amount_max=decimal_of(of_market_orders.get("max")) or decimal_of(amount.get("max")),
        cost_min=decimal_of(cost.get("min")),
    )


def _step(exchange_id: str, mode: object, market: Any, what: str) -> Decimal:
    value = decimal_of(market["precision"].get(what))
    if value is None:
        raise ConfigurationError(f"{exchange_id} gives no {what} precision for {market['symbol']}")
    if mode == _TICK_SIZE and value > _ZERO:
        return value
    if mode == _DECIMAL_PLACES and value == value.to_integral_value():
        return Decimal(1).scaleb(-int(value))
    raise ConfigurationError(
        f"{exchange_id} gives the {what} precision of {market['symbol']} as {value} in mode {mode};"
        " only steps (mode 4) and decimal places (mode 2) are understood"
    )
