"""The data model of the local exchange: orders, algo orders, fills and positions, all frozen.

A change makes a new value, so that an earlier state can still be shown: that is how reads lag behind writes
on purpose (see :mod:`lockguard_lab.exchange.timeline`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import TypeAlias

__all__ = [
    "MAIN",
    "ZERO",
    "AlgoChange",
    "AlgoOrder",
    "AlgoStatus",
    "Change",
    "Fill",
    "LeverageChange",
    "NewAlgoOrder",
    "NewOrder",
    "Order",
    "OrderChange",
    "OrderStatus",
    "OrderType",
    "Origin",
    "Position",
    "PositionSide",
    "Side",
]

ZERO = Decimal(0)
MAIN = "main"
"""The account that exists from the start."""


class Side(StrEnum):
    """The side of an order."""

    BUY = "BUY"
    SELL = "SELL"

    @property
    def sign(self) -> int:
        """1 for a buy, -1 for a sell."""
        return 1 if self is Side.BUY else -1


class PositionSide(StrEnum):
    """The position of a contract that an order is for: ``BOTH`` is the only one in one-way mode."""

    BOTH = "BOTH"
    LONG = "LONG"
    SHORT = "SHORT"


class Origin(StrEnum):
    """Who asked for an order."""

    API = "api"
    """A program, with the account's key."""
    PERSON = "person"
    """A person, by hand: a control call, such as ``trade_by_hand``."""
    EXCHANGE = "exchange"
    """The exchange of its own accord: a liquidation, or an auto-deleveraging."""


class OrderType(StrEnum):
    """The type of an order; all but the first two go through the algo order API."""

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP = "STOP"
    STOP_MARKET = "STOP_MARKET"
    TAKE_PROFIT = "TAKE_PROFIT"
    TAKE_PROFIT_MARKET = "TAKE_PROFIT_MARKET"
    TRAILING_STOP_MARKET = "TRAILING_STOP_MARKET"

    @property
    def conditional(self) -> bool:
        """Whether an order of this type waits for a price before it enters the ordinary book."""
        return self not in {OrderType.MARKET, OrderType.LIMIT}


class OrderStatus(StrEnum):
    """The status of an order."""

    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"

    @property
    def open(self) -> bool:
        """Whether the order is still in the book."""
        return self in {OrderStatus.NEW, OrderStatus.PARTIALLY_FILLED}


class AlgoStatus(StrEnum):
    """The status of an algo order."""

    NEW = "NEW"
    TRIGGERING = "TRIGGERING"
    """Told on streams only: the price was reached, and the order is about to be placed."""
    TRIGGERED = "TRIGGERED"
    FINISHED = "FINISHED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class NewOrder:
    """A request for an order in the ordinary book."""

    symbol: str
    side: Side
    type: OrderType
    qty: Decimal
    client_id: str
    price: Decimal | None = None
    reduce_only: bool = False
    time_in_force: str = "GTC"
    position_side: PositionSide = PositionSide.BOTH


@dataclass(frozen=True, slots=True)
class NewAlgoOrder:
    """A request for an order that waits for a price.

    Attributes:
        qty: zero with ``close_position``.
        trigger: the price waited for.
        price: the limit of ``STOP`` and ``TAKE_PROFIT``.
        callback_rate: percent that a trailing stop trails by.
        working_type: ``CONTRACT_PRICE`` (the last price) or ``MARK_PRICE``.
    """

    symbol: str
    side: Side
    type: OrderType
    qty: Decimal
    client_id: str
    trigger: Decimal
    price: Decimal | None = None
    reduce_only: bool = False
    close_position: bool = False
    working_type: str = "CONTRACT_PRICE"
    callback_rate: Decimal | None = None
    position_side: PositionSide = PositionSide.BOTH


@dataclass(frozen=True, slots=True)
class Order:
    """An order in the ordinary book.

    Attributes:
        avg_price: the average price of its fills; zero when unfilled.
        algo_id: the algo order that it came from, or ``None``.
        account: whose order it is.
        origin: who asked for it; of an order that came from an algo order, who asked for that.
        reduced: how much of ``executed`` made a position smaller.
    """

    id: int
    client_id: str
    symbol: str
    side: Side
    type: OrderType
    qty: Decimal
    price: Decimal
    avg_price: Decimal
    executed: Decimal
    reduce_only: bool
    time_in_force: str
    status: OrderStatus
    created_ms: int
    updated_ms: int
    algo_id: int | None = None
    position_side: PositionSide = PositionSide.BOTH
    account: str = MAIN
    origin: Origin = Origin.API
    reduced: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class AlgoOrder:
    """An order that waits for a price.

    Attributes:
        best: the best price since it was placed, which a trailing stop trails.
        order_id: the ordinary order it became; ``None`` until then.
        account: whose order it is.
        origin: who asked for it.
    """

    id: int
    client_id: str
    symbol: str
    side: Side
    type: OrderType
    qty: Decimal
    trigger: Decimal
    price: Decimal
    reduce_only: bool
    close_position: bool
    working_type: str
    status: AlgoStatus
    created_ms: int
    updated_ms: int
    callback_rate: Decimal = ZERO
    best: Decimal = ZERO
    triggered_ms: int = 0
    order_id: int | None = None
    position_side: PositionSide = PositionSide.BOTH
    account: str = MAIN
    origin: Origin = Origin.API


@dataclass(frozen=True, slots=True)
class Fill:
    """One trade of the account.

    Attributes:
        opened: how much of ``qty`` made the position larger; the rest made it smaller.
    """

    id: int
    order_id: int
    client_id: str
    symbol: str
    side: Side
    price: Decimal
    qty: Decimal
    opened: Decimal
    realized: Decimal
    commission: Decimal
    at_ms: int
    position_side: PositionSide = PositionSide.BOTH
    account: str = MAIN


@dataclass(frozen=True, slots=True)
class Position:
    """An account's position in one contract.

    Attributes:
        qty: above zero long, below zero short.
        entry_price: average; zero when flat.
        side: ``BOTH`` in one-way mode; in hedge mode ``LONG`` or ``SHORT``, each a position of its own.
        account: whose position it is.
    """

    symbol: str
    qty: Decimal = ZERO
    entry_price: Decimal = ZERO
    updated_ms: int = 0
    side: PositionSide = PositionSide.BOTH
    account: str = MAIN


@dataclass(frozen=True, slots=True)
class OrderChange:
    """What a stream tells of an order.

    Attributes:
        order: the order after the change.
        kind: ``NEW``, ``AMENDMENT``, ``TRADE``, ``CANCELED`` or ``EXPIRED``.
        fill: the trade, when ``kind`` is ``TRADE``.
    """

    order: Order
    kind: str
    fill: Fill | None = None

    @property
    def symbol(self) -> str:
        """The contract's id."""
        return self.order.symbol


@dataclass(frozen=True, slots=True)
class AlgoChange:
    """What a stream tells of an algo order: its state after the change."""

    algo: AlgoOrder

    @property
    def symbol(self) -> str:
        """The contract's id."""
        return self.algo.symbol


@dataclass(frozen=True, slots=True)
class LeverageChange:
    """What a stream tells of a contract's leverage."""

    symbol: str
    leverage: int


Change: TypeAlias = OrderChange | AlgoChange | LeverageChange
