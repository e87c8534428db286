"""The contracts that the local exchange lists, and the steps in which each is traded.

The numbers are roughly Binance's. What matters is that they differ from contract to contract: code that uses
one contract's step for another is refused here as it would be on Binance.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal

from lockguard.errors import ConfigurationError

__all__ = ["COIN_MARKETS", "DEFAULT_MARKETS", "MarketSpec", "market_for", "parse_markets", "plain_id"]

_QUOTES = ("USDT", "USDC")
_UNIFIED = re.compile(r"^(?P<base>[A-Z0-9]+)/(?P<quote>[A-Z]+)(?::(?P=quote)(?:-(?P<delivery>\d{6}))?)?$")
_INVERSE = re.compile(r"^(?P<base>[A-Z0-9]+)/USD:(?P=base)(?:-(?P<delivery>\d{6}))?$")
_PLAIN_INVERSE = re.compile(r"^(?P<base>[A-Z0-9]+?)USD_(?:PERP|(?P<delivery>\d{6}))$")
_PLAIN = re.compile(rf"^(?P<base>[A-Z0-9]+?)(?P<quote>{'|'.join(_QUOTES)})(?:_(?P<delivery>\d{{6}}))?$")
_DELIVERY_HOUR = 8
"""Dated contracts are settled at 08:00 UTC."""


@dataclass(frozen=True, slots=True)
class MarketSpec:
    """One contract: of USD-M, or, when ``inverse``, of COIN-M.

    Attributes:
        base: the coin, such as ``BTC``.
        quote: the asset in which it is priced and margined.
        price: the price it opens at, in ``quote``.
        tick: the step of prices.
        step: the step of quantities, and the smallest one.
        max_qty: the largest quantity of one market order.
        min_notional: the smallest price times quantity of an order that is not reduce-only.
        delivery: the day it is settled; ``None`` for a perpetual.
        contract_size: what one contract stands for: coins, or dollars when ``inverse``. Quantities are
            numbers of contracts. It is always 1 on Binance's USD-M, but not on other exchanges.
        inverse: priced in dollars, margined and settled in ``base``.
    """

    base: str
    quote: str = "USDT"
    price: Decimal = Decimal(10)
    tick: Decimal = Decimal("0.001")
    step: Decimal = Decimal("0.1")
    max_qty: Decimal = Decimal(1_000_000)
    min_notional: Decimal = Decimal(5)
    delivery: date | None = None
    contract_size: Decimal = Decimal(1)
    inverse: bool = False

    @property
    def id(self) -> str:
        """The exchange's own name: ``BTCUSDT``, ``BTCUSDT_250926``, ``BTCUSD_PERP``."""
        perpetual = "_PERP" if self.inverse else ""
        return f"{self.pair}{f'_{self.delivery:%y%m%d}' if self.delivery else perpetual}"

    @property
    def pair(self) -> str:
        """The pair on which it is a contract: ``BTCUSDT``."""
        return f"{self.base}{self.quote}"

    @property
    def settle(self) -> str:
        """The asset in which margin, profit and fees are paid."""
        return self.base if self.inverse else self.quote

    @property
    def symbol(self) -> str:
        """The unified name: ``BTC/USDT:USDT``, ``BTC/USDT:USDT-250926``, ``BTC/USD:BTC``."""
        suffix = f"-{self.delivery:%y%m%d}" if self.delivery else ""
        return f"{self.base}/{self.quote}:{self.settle}{suffix}"

    def worth(self, qty: Decimal, price: Decimal) -> Decimal:
        """The worth of ``qty`` contracts at ``price``, in the settlement asset."""
        if self.inverse:
            return qty * self.contract_size / price
        return qty * self.contract_size * price

    def profit(self, qty: Decimal, entry: Decimal, price: Decimal) -> Decimal:
        """The profit of ``qty`` contracts (below zero: short) from ``entry`` on, in the settlement asset."""
        if not qty:
            return Decimal(0)
        won = self.worth(qty, price) - self.worth(qty, entry)
        return -won if self.inverse else won

    def average(self, qty: Decimal, price: Decimal, more: Decimal, at: Decimal) -> Decimal:
        """The average entry price of ``qty`` contracts at ``price`` and ``more`` contracts at ``at``."""
        if not qty:
            return at
        if self.inverse:
            return (qty + more) / (qty / price + more / at)
        return (qty * price + more * at) / (qty + more)

    @property
    def delivery_ms(self) -> int | None:
        """The instant of settlement, in milliseconds since 1970; ``None`` for a perpetual."""
        if self.delivery is None:
            return None
        day = self.delivery
        return int(datetime(day.year, day.month, day.day, _DELIVERY_HOUR, tzinfo=UTC).timestamp() * 1000)


def _spec(
    base: str, price: str, tick: str, step: str, max_qty: str = "1000000", notional: str = "5"
) -> MarketSpec:
    return MarketSpec(
        base=base,
        price=Decimal(price),
        tick=Decimal(tick),
        step=Decimal(step),
        max_qty=Decimal(max_qty),
        min_notional=Decimal(notional),
    )


DEFAULT_MARKETS: tuple[MarketSpec, ...] = (
    _spec("BTC", "62000.0", "0.10", "0.001", "120", "100"),
    _spec("ETH", "2500.00", "0.01", "0.001", "2000", "20"),
    _spec("APT", "8.5000", "0.0001", "0.1", "80000"),
    _spec("SOL", "150.0000", "0.0100", "0.01", "40000"),
    _spec("BNB", "580.00", "0.010", "0.01", "2000"),
    _spec("XRP", "0.6000", "0.0001", "0.1", "2000000"),
    _spec("DOGE", "0.120000", "0.000010", "1", "30000000"),
    _spec("ADA", "0.45000", "0.00010", "1", "300000"),
    _spec("AVAX", "27.0000", "0.0010", "1", "5000"),
    _spec("LINK", "11.000", "0.001", "0.01", "60000", "20"),
    _spec("DOT", "4.500", "0.001", "0.1", "50000"),
    _spec("LTC", "70.00", "0.01", "0.001", "5000", "20"),
    _spec("TRX", "0.15000", "0.00001", "1", "5000000"),
    _spec("ATOM", "4.800", "0.001", "0.01", "10000"),
    _spec("NEAR", "4.900", "0.0010", "1", "20000"),
    _spec("ARB", "0.600000", "0.000100", "0.1", "130000"),
    _spec("OP", "1.7000000", "0.0001000", "0.1", "400000"),
    _spec("SUI", "1.800000", "0.000100", "0.1", "200000"),
    _spec("INJ", "20.000000", "0.001000", "0.1", "20000"),
    _spec("FIL", "3.800", "0.001", "0.1", "50000"),
    _spec("AAVE", "150.000", "0.010", "0.1", "1500"),
    _spec("UNI", "7.0000", "0.0010", "1", "20000"),
    _spec("RUNE", "5.0000", "0.0010", "1", "20000"),
    _spec("SEI", "0.4000000", "0.0001000", "1", "1200000"),
    _spec("TIA", "5.5000000", "0.0001000", "1", "50000"),
    _spec("WLD", "2.0000000", "0.0001000", "1", "300000"),
    _spec("1000PEPE", "0.0100000", "0.0000001", "1", "80000000"),
    _spec("CRV", "0.300", "0.001", "0.1", "500000"),
    _spec("GALA", "0.02200", "0.00001", "1", "14000000"),
    _spec("LDO", "1.100000", "0.000100", "1", "300000"),
)
"""Thirty perpetuals, margined in USDT."""


def _inverse(base: str, price: str, tick: str, size: str) -> MarketSpec:
    return MarketSpec(
        base=base,
        quote="USD",
        price=Decimal(price),
        tick=Decimal(tick),
        step=Decimal(1),
        max_qty=Decimal(100_000),
        min_notional=Decimal(0),
        contract_size=Decimal(size),
        inverse=True,
    )


COIN_MARKETS: tuple[MarketSpec, ...] = (
    _inverse("BTC", "62000.0", "0.1", "100"),
    _inverse("ETH", "2500.00", "0.01", "10"),
)
"""Two inverse perpetuals, margined in their own coins."""

_KNOWN = {spec.id: spec for spec in (*DEFAULT_MARKETS, *COIN_MARKETS)}


def plain_id(symbol: str) -> str:
    """The exchange's own name for a symbol in either spelling: ``BTC/USDT:USDT`` gives ``BTCUSDT``."""
    text = symbol.strip().upper()
    if match := _INVERSE.match(text):
        return f"{match['base']}USD_{match['delivery'] or 'PERP'}"
    if match := _UNIFIED.match(text):
        delivery = match["delivery"]
        return f"{match['base']}{match['quote']}{'_' + delivery if delivery else ''}"
    return text


def market_for(symbol: str) -> MarketSpec:
    """The contract called ``symbol``, with its own steps if the contract is known, otherwise with usual ones.

    Args:
        symbol: ``BTCUSDT``, ``BTC/USDT``, ``BTC/USDT:USDT``, ``BTCUSDC``, dated ``BTCUSDT_250926`` or
            ``BTC/USDT:USDT-250926``, inverse ``BTCUSD_PERP`` or ``BTC/USD:BTC``.

    Raises:
        ConfigurationError: ``symbol`` is not a contract margined in USDT, in USDC or in its coin.
    """
    market_id = plain_id(symbol)
    if known := _KNOWN.get(market_id):
        return known
    if match := _PLAIN_INVERSE.match(market_id):
        known = _KNOWN.get(f"{match['base']}USD_PERP")
        perpetual = known or replace(COIN_MARKETS[1], base=match["base"], price=Decimal(10))
    elif match := _PLAIN.match(market_id):
        known = _KNOWN.get(f"{match['base']}{match['quote']}") or _KNOWN.get(f"{match['base']}USDT")
        perpetual = replace(known or MarketSpec(match["base"]), quote=match["quote"])
    else:
        raise ConfigurationError(
            f"symbol {symbol!r} is not a USD-M contract; write it as BTCUSDT or BTC/USDT:USDT"
            " (COIN-M: BTCUSD_PERP or BTC/USD:BTC)"
        )
    return replace(perpetual, delivery=_delivery(match["delivery"], symbol) if match["delivery"] else None)


def _delivery(text: str, symbol: str) -> date:
    try:
        return datetime.strptime(text, "%y%m%d").replace(tzinfo=UTC).date()
    except ValueError:
        raise ConfigurationError(
            f"symbol {symbol!r} ends in {text!r}, which is not a day as yymmdd"
        ) from None


def parse_markets(text: str) -> tuple[MarketSpec, ...]:
    """The contracts of a comma-separated list; an empty text gives the default ones.

    Raises:
        ConfigurationError: an item is not the name of a contract.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    return tuple(market_for(name) for name in dict.fromkeys(names)) or (*DEFAULT_MARKETS, *COIN_MARKETS)
