"""The exchange without the network: its venue, accounts, latency, faults and record."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_lab.exchange.conditions import Conditions
from lockguard_lab.exchange.engine import Engine, Shortage
from lockguard_lab.exchange.faults import Fault, FaultKind, FaultPlan, Operation
from lockguard_lab.exchange.listenkeys import ListenKeys
from lockguard_lab.exchange.markets import plain_id
from lockguard_lab.exchange.model import MAIN
from lockguard_lab.exchange.record import ExchangeRecord, Request
from lockguard_lab.exchange.signature import Credentials
from lockguard_lab.exchange.venue import Listing, MarketData

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockguard._clock import Clock
    from lockguard_lab.exchange.account import Account
    from lockguard_lab.exchange.markets import MarketSpec
    from lockguard_lab.exchange.model import Change

__all__ = ["Desk", "RequestContext", "Visibility"]

_REQUESTS_MAX = 100_000
_LATENCY_MS_MAX = 60_000
_OFFSET_MS_MAX = 86_400_000
_FEE_RATE = Decimal("0.0004")


def _to_nobody(*told: object) -> None:
    pass


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
    """The whole of one local exchange except its sockets.

    Attributes:
        on_change: called with an account's name and a change of its orders or settings, right after it.
        on_price: called with a contract's id after its price was set, before orders are filled by it.
    """

    def __init__(
        self,
        markets: Sequence[MarketSpec],
        *,
        wallet: Decimal,
        credentials: Credentials,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not markets:
            raise ConfigurationError("an exchange needs at least one contract; name some, such as BTCUSDT")
        self._markets = tuple(markets)
        self._clock = clock
        self._latency_ms: dict[Operation | None, int] = {None: 0}
        self._members = {MAIN: (credentials, wallet)}
        self.listen_keys = ListenKeys()
        self.on_change: Callable[[str, Change], None] = _to_nobody
        self.on_price: Callable[[str], None] = _to_nobody
        self._offset_ms = 0
        self._start_over()

    def _start_over(self) -> None:
        self._offset_ms = 0
        self.venue = MarketData(self._markets, now_ms=self.now_ms)
        self.faults = FaultPlan()
        self.conditions = Conditions()
        self.visibility = Visibility()
        self._requests: deque[Request] = deque(maxlen=_REQUESTS_MAX)
        self._engines = {name: self._open(name, wallet) for name, (_, wallet) in self._members.items()}

    def _open(self, name: str, wallet: Decimal) -> Engine:
        def shortage(symbol: str, triggered: bool) -> Shortage | None:  # noqa: FBT001 - a signature
            operation = Operation.TRIGGER if triggered else Operation.CREATE_ORDER
            fault = self.faults.take_shortage(operation, symbol, name)
            return None if fault is None else Shortage(fault.share, fault.kind is FaultKind.RESTS)

        def tell(change: Change) -> None:
            self.on_change(name, change)

        return Engine(self.venue, name=name, wallet=wallet, fee_rate=_FEE_RATE, shortage=shortage, tell=tell)

    @property
    def now_ms(self) -> int:
        """The time by the exchange's clock, in milliseconds since 1970."""
        return int(self._clock.wall() * 1000) + self._offset_ms

    def set_clock_offset(self, offset_ms: int) -> None:
        """Set how far the exchange's clock is ahead of the machine's, in milliseconds.

        Raises:
            ConfigurationError: the offset is more than a day.
        """
        if abs(offset_ms) > _OFFSET_MS_MAX:
            raise ConfigurationError(f"a clock may be a day off at most, got {offset_ms} ms")
        for engine in self._engines.values():
            engine.step_clock(offset_ms - self._offset_ms)
        self._offset_ms = offset_ms

    def reset(self) -> None:
        """Forget every order, position, fault, condition and lag, and the contracts listed since the start.

        Prices return to their initial values; the latency, the accounts and their listen keys stay.
        """
        self._start_over()

    # --- accounts ---

    def add_account(self, name: str, credentials: Credentials, wallet: Decimal) -> None:
        """Add an account with a key, positions and orders of its own.

        Raises:
            ConfigurationError: another account has that name or that key.
        """
        if not name or name in self._members:
            raise ConfigurationError(f"an account {name!r} cannot be added: it needs a name of its own")
        if any(credentials.api_key == known.api_key for known, _ in self._members.values()):
            raise ConfigurationError(f"account {name!r} needs an API key of its own")
        self._members[name] = (credentials, wallet)
        self._engines[name] = self._open(name, wallet)

    def engine(self, account: str = MAIN) -> Engine:
        """The engine that keeps an account's books.

        Raises:
            ConfigurationError: there is no such account.
        """
        try:
            return self._engines[account]
        except KeyError:
            raise ConfigurationError(
                f"there is no account {account!r}; there are {', '.join(self._engines)}"
            ) from None

    def member(self, api_key: str) -> tuple[str, Credentials] | None:
        """The name and credentials of the account that has this key; ``None`` if no account has it."""
        for name, (credentials, _) in self._members.items():
            if secrets.compare_digest(credentials.api_key.encode(), api_key.encode()):
                return name, credentials
        return None

    def pass_time(self) -> None:
        """Carry out what is due by now, in every account."""
        for engine in self._engines.values():
            engine.pass_time(self.now_ms)

    # --- contracts and prices ---

    def listed_id(self, symbol: str) -> str:
        """A contract's id.

        Raises:
            ConfigurationError: there is no such contract.
        """
        market_id = plain_id(symbol)
        if market_id not in self.venue.markets:
            raise ConfigurationError(
                f"symbol {symbol!r} is not listed here; start the exchange with it among its symbols"
            )
        return market_id

    def set_price(self, symbol: str, price: Decimal, mark: Decimal | None = None) -> None:
        """Set a contract's last price, and fill or trigger the orders that it reaches.

        Raises:
            ConfigurationError: an unknown contract, or a price that is not above zero.
        """
        market_id = self.listed_id(symbol)
        if not price.is_finite() or price <= 0 or (mark is not None and (not mark.is_finite() or mark <= 0)):
            raise ConfigurationError(f"a price must be above zero, got {price}")
        self.pass_time()
        self.venue.set_price(market_id, price, price if mark is None else mark)
        self.on_price(market_id)
        for engine in self._engines.values():
            engine.price_moved(market_id, self.now_ms)

    def list_contract(self, spec: MarketSpec) -> None:
        """Open a contract to trading."""
        self.venue.list(spec)

    def delist_contract(self, symbol: str, listing: Listing) -> None:
        """Close a contract to orders; its open orders expire, its positions stay."""
        market_id = self.listed_id(symbol)
        if listing is Listing.TRADING:
            raise ConfigurationError(f"a contract that is taken off the list is not {listing}")
        self.venue.delist(market_id, listing)
        for engine in self._engines.values():
            engine.expire_all(market_id, self.now_ms)

    def release(self, symbol: str | None) -> None:
        """Fill the orders that a fault left in the book."""
        market_id = None if symbol is None else self.listed_id(symbol)
        for engine in self._engines.values():
            engine.release(market_id, self.now_ms)

    # --- slowness and faults ---

    def set_latency(self, latency_ms: int, operation: Operation | None = None) -> None:
        """Set how long a request takes; half of the time passes before it is carried out.

        Args:
            latency_ms: from 0 to 60,000.
            operation: only for these requests; ``None`` for all that have no latency of their own. An event
                on a stream has only one of its own, and all of it passes after the fact.

        Raises:
            ConfigurationError: the latency is out of range.
        """
        if not 0 <= latency_ms <= _LATENCY_MS_MAX:
            raise ConfigurationError(f"latency must be from 0 to {_LATENCY_MS_MAX} ms, got {latency_ms}")
        self._latency_ms[operation] = latency_ms

    def latency_ms(self, operation: Operation) -> int:
        """How long a request of this kind takes, or how late such an event is sent, in milliseconds."""
        return self._latency_ms.get(operation, 0 if operation.of_a_stream else self._latency_ms[None])

    def inject(self, fault: Fault) -> None:
        """Arm a fault for the requests that it hits."""
        self.faults.add(fault)

    # --- the record ---

    def log(self, request: Request) -> None:
        """Add a request to the record."""
        self._requests.append(request)

    def record(self) -> ExchangeRecord:
        """What the exchange has done since the start or the last reset."""
        self.pass_time()
        engines = self._engines.values()
        return ExchangeRecord(
            orders=tuple(sorted((o for e in engines for o in e.orders()), key=lambda o: o.id)),
            algo_orders=tuple(sorted((a for e in engines for a in e.algo_orders()), key=lambda a: a.id)),
            fills=tuple(sorted((f for e in engines for f in e.account.fills), key=lambda f: f.id)),
            positions=tuple(p for e in engines for p in e.account.positions() if p.qty),
            requests=tuple(self._requests),
        )


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The account and the futures market to which one request belongs.

    Attributes:
        name: the account's name.
        inverse: COIN-M (``dapi``) rather than USD-M (``fapi``).
    """

    desk: Desk
    name: str
    inverse: bool

    @property
    def engine(self) -> Engine:
        """The engine that keeps the account's books."""
        return self.desk.engine(self.name)

    @property
    def now_ms(self) -> int:
        """The time by the exchange's clock, in milliseconds since 1970."""
        return self.desk.now_ms

    @property
    def venue(self) -> MarketData:
        """The contracts and prices."""
        return self.desk.venue

    @property
    def account(self) -> Account:
        """The money and positions of the requesting account."""
        return self.engine.account

    @property
    def visibility(self) -> Visibility:
        """How far the answers lag behind what the exchange has done."""
        return self.desk.visibility

    def market(self, symbol: str) -> MarketSpec:
        """A contract of this market; raises the exchange's refusal if there is none of that name."""
        return self.desk.venue.market(symbol, inverse=self.inverse)

    def listed(self) -> Sequence[MarketSpec]:
        """The contracts of this market."""
        return list(self.desk.venue.listed(inverse=self.inverse))
