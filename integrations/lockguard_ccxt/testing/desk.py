"""The exchange without the network: the engine, what is slow or broken about it, and its record."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard.clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_ccxt.testing.engine import Engine
from lockguard_ccxt.testing.faults import Fault, FaultPlan, Operation
from lockguard_ccxt.testing.markets import plain_id
from lockguard_ccxt.testing.record import ExchangeRecord, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard.clock import Clock
    from lockguard_ccxt.testing.markets import MarketSpec

__all__ = ["Desk", "Visibility"]

_REQUESTS_MAX = 100_000
_LATENCY_MS_MAX = 60_000
_FEE_RATE = Decimal("0.0004")


@dataclass(frozen=True, slots=True)
class Visibility:
    """How far the exchange's answers lag behind what it has done, in milliseconds.

    Attributes:
        orders_ms: orders and algo orders, one by one and in lists.
        positions_ms: positions, account and balance.
        trades_ms: the account's trades.
    """

    orders_ms: int = 0
    positions_ms: int = 0
    trades_ms: int = 0

    def __post_init__(self) -> None:
        if min(self.orders_ms, self.positions_ms, self.trades_ms) < 0:
            raise ConfigurationError(f"a visibility lag must not be below zero, got {self}")


class Desk:
    """Everything about one local exchange that does not need a socket."""

    def __init__(
        self, markets: Sequence[MarketSpec], *, wallet: Decimal, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        if not markets:
            raise ConfigurationError("an exchange needs at least one contract; name some, such as BTCUSDT")
        self._markets = tuple(markets)
        self._wallet = wallet
        self._clock = clock
        self._latency_ms: dict[Operation | None, int] = {None: 0}
        self._start_over()

    def _start_over(self) -> None:
        self.engine = Engine(self._markets, wallet=self._wallet, fee_rate=_FEE_RATE)
        self.faults = FaultPlan()
        self.visibility = Visibility()
        self._requests: deque[Request] = deque(maxlen=_REQUESTS_MAX)

    @property
    def now_ms(self) -> int:
        """The exchange's clock: milliseconds since 1970."""
        return int(self._clock.wall() * 1000)

    def reset(self) -> None:
        """Forget every order, position, fault and lag; prices start over. The latency stays."""
        self._start_over()

    def set_price(self, symbol: str, price: Decimal, mark: Decimal | None = None) -> None:
        """Move a contract's last price; orders that it reaches are filled or triggered.

        Raises:
            ConfigurationError: an unknown contract, or a price that is not above zero.
        """
        market_id = plain_id(symbol)
        if market_id not in self.engine.markets:
            raise ConfigurationError(
                f"symbol {symbol!r} is not listed here; start the exchange with it among its symbols"
            )
        if not price.is_finite() or price <= 0 or (mark is not None and (not mark.is_finite() or mark <= 0)):
            raise ConfigurationError(f"a price must be above zero, got {price}")
        self.engine.set_price(market_id, price, self.now_ms, mark)

    def set_latency(self, latency_ms: int, operation: Operation | None = None) -> None:
        """How long a request takes, half of it before it is carried out.

        Args:
            latency_ms: from 0 to 60,000.
            operation: only for these requests; ``None`` for all that have none of their own.

        Raises:
            ConfigurationError: out of range.
        """
        if not 0 <= latency_ms <= _LATENCY_MS_MAX:
            raise ConfigurationError(f"latency must be from 0 to {_LATENCY_MS_MAX} ms, got {latency_ms}")
        self._latency_ms[operation] = latency_ms

    def latency_ms(self, operation: Operation) -> int:
        """How long a request of this kind takes."""
        return self._latency_ms.get(operation, self._latency_ms[None])

    def inject(self, fault: Fault) -> None:
        """Let a fault wait for the requests it hits."""
        self.faults.add(fault)

    def log(self, operation: Operation, symbol: str | None, client_id: str | None, outcome: str) -> None:
        """Note a request in the record."""
        self._requests.append(Request(self.now_ms, operation, symbol, client_id, outcome))

    def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        return ExchangeRecord(
            orders=tuple(self.engine.orders()),
            algo_orders=tuple(self.engine.algo_orders()),
            fills=tuple(self.engine.account.fills),
            positions=tuple(p for p in self.engine.account.positions() if p.qty),
            requests=tuple(self._requests),
        )
