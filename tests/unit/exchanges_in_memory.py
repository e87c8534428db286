"""Exchanges that answer as they are told, for what is decided over their answers."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

from ccxt.base import errors as ccxt

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard_ccxt import OrderState, PlacedOrder
from lockguard_ccxt._placing import Patience

MS = timedelta(milliseconds=1)
NAME, SYMBOL = "lgs-1", "APT/USDT:USDT"
PATIENCE = Patience(needed=100 * MS, search=60 * MS, poll=5 * MS)


def lease(seconds: float = 60.0) -> Lease:
    grant = Grant(Resource("binance:APTUSDT"), new_grant_id(), Token(5), "h", "open", 60_000)
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)


def placed(
    state: OrderState = OrderState.OPEN, *, filled: str = "0", trigger: str | None = "98"
) -> PlacedOrder:
    return PlacedOrder(
        *("1", NAME, SYMBOL, "sell", state, Decimal(10), Decimal(filled), None),
        None if trigger is None else Decimal(trigger),
        reduce_only=True,
    )


def answer(status: str = "open", **more: Any) -> dict[str, Any]:
    return {"id": "1", "clientOrderId": NAME, "symbol": SYMBOL, "side": "sell", "status": status, **more}


GONE = ccxt.OrderNotFound('binanceusdm {"code":-2011,"msg":"Unknown order sent."}')
