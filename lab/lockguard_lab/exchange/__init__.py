"""A local exchange that the original ccxt talks to, for tests and demonstrations.

It serves the REST API and the streams of Binance's futures, with signatures, filters, netting and conditional
orders that fire when the price moves. A test can make it slow, make its reads lag behind its writes, and make
it fail in every way that leaves an order in doubt. Its own record says what it really did.

Needs ``pip install 'lockguard[testing]'``; a client also needs ``'lockguard[ccxt]'``.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("aiohttp") is None:
    raise ImportError("the local exchange needs aiohttp; pip install 'lockguard[testing]'")

from lockguard_ccxt._by_url import LOCAL_API_KEY, LOCAL_SECRET, ccxt_settings, connect, point_at
from lockguard_lab.exchange.desk import Visibility
from lockguard_lab.exchange.faults import Execution, Fault, FaultKind, Operation
from lockguard_lab.exchange.markets import (
    COIN_MARKETS,
    DEFAULT_MARKETS,
    MarketSpec,
    market_for,
    parse_markets,
)
from lockguard_lab.exchange.model import (
    AlgoOrder,
    AlgoStatus,
    Fill,
    Order,
    OrderStatus,
    OrderType,
    Origin,
    Position,
    PositionSide,
    Side,
)
from lockguard_lab.exchange.record import ExchangeRecord, Request
from lockguard_lab.exchange.remote import ControlClient
from lockguard_lab.exchange.server import LocalExchange
from lockguard_lab.exchange.streams import Listener
from lockguard_lab.exchange.venue import Listing

__all__ = [
    "COIN_MARKETS",
    "DEFAULT_MARKETS",
    "LOCAL_API_KEY",
    "LOCAL_SECRET",
    "AlgoOrder",
    "AlgoStatus",
    "ControlClient",
    "ExchangeRecord",
    "Execution",
    "Fault",
    "FaultKind",
    "Fill",
    "Listener",
    "Listing",
    "LocalExchange",
    "MarketSpec",
    "Operation",
    "Order",
    "OrderStatus",
    "OrderType",
    "Origin",
    "Position",
    "PositionSide",
    "Request",
    "Side",
    "Visibility",
    "ccxt_settings",
    "connect",
    "market_for",
    "parse_markets",
    "point_at",
]
