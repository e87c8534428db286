"""ccxt under a lease: guarded calls, orders that can be found again, one name for each position.

Needs ``pip install 'lockguard[ccxt]'``. A local exchange for tests is in :mod:`lockguard_lab.exchange`.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("ccxt") is None:
    raise ImportError("lockguard_ccxt needs ccxt; pip install 'lockguard[ccxt]'")

from lockguard_ccxt._classify import Doubt, Verdict, ccxt_errors, classify, exchange_code
from lockguard_ccxt._guarded import GuardedExchange
from lockguard_ccxt._ids import Step, client_order_id
from lockguard_ccxt._keys import resource_key, resource_keys, unified_symbol
from lockguard_ccxt._markets import Market, UnknownMarket
from lockguard_ccxt._money import MarketRules, decimal_of, rules_of
from lockguard_ccxt._outcome import (
    Executed,
    OrderAnswered,
    OrderResult,
    OrderState,
    Outcome,
    PlacedOrder,
    Refusal,
    Refused,
    Side,
    Unknown,
    opposite,
)
from lockguard_ccxt._placing import Patience
from lockguard_ccxt._sync_gate import OrderGate, gate_orders
from lockguard_ccxt._venues import Fill, Holding

__all__ = [
    "Doubt",
    "Executed",
    "Fill",
    "GuardedExchange",
    "Holding",
    "Market",
    "MarketRules",
    "OrderAnswered",
    "OrderGate",
    "OrderResult",
    "OrderState",
    "Outcome",
    "Patience",
    "PlacedOrder",
    "Refusal",
    "Refused",
    "Side",
    "Step",
    "Unknown",
    "UnknownMarket",
    "Verdict",
    "ccxt_errors",
    "classify",
    "client_order_id",
    "decimal_of",
    "exchange_code",
    "gate_orders",
    "opposite",
    "resource_key",
    "resource_keys",
    "rules_of",
    "unified_symbol",
]
