"""A lease on one market does not let out an order for another one, however the call names its market."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import ccxt
import ccxt.async_support
import pytest

from lockguard import LockGuard
from lockguard.errors import ConfigurationError, LeaseNotHeld
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect

APT, BTC = "APT/USDT:USDT", "BTC/USDT:USDT"
RAW = {"symbol": "BTCUSDT", "side": "BUY", "type": "MARKET", "quantity": "1", "newClientOrderId": "mine"}
NAMED = {"clientOrderId": "mine"}

Call = Callable[[Any], Awaitable[Any]]


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, BTC]) as server:
        yield server


def several(*symbols: str) -> list[dict[str, Any]]:
    return [{"symbol": s, "type": "market", "side": "buy", "amount": 1, "params": NAMED} for s in symbols]


OTHERS: dict[str, Call] = {
    "several": lambda g: g.create_orders(several(BTC)),
    "the second of several": lambda g: g.create_orders(several(APT, BTC)),
    "over the arguments": lambda g: g.create_order(
        APT, "market", "buy", 1, None, {"symbol": "BTCUSDT", **NAMED}
    ),
    "generated": lambda g: g.fapiPrivatePostOrder(RAW),
    "generated batch": lambda g: g.fapiPrivatePostBatchOrders({"batchOrders": json.dumps([RAW])}),
    "request": lambda g: g.request("order", "fapiPrivate", "POST", RAW),
    "body": lambda g: g.fetch("https://localhost/order", "POST", None, json.dumps(RAW)),
}


@pytest.mark.parametrize("call", OTHERS.values(), ids=OTHERS)
async def test_a_lease_on_one_market_sends_no_order_for_another(
    exchange: LocalExchange, redis_url: str, call: Call
) -> None:
    async with connect(exchange.url) as client, LockGuard.from_url(redis_url) as guard:
        guarded = GuardedExchange(client)
        await guarded.load()
        async with guard.hold(guarded.resource(APT)):
            before = len(exchange.record().requests)
            with pytest.raises(LeaseNotHeld, match="binance:BTCUSDT"):
                await call(guarded)
            assert len(exchange.record().requests) == before


async def test_a_call_for_two_markets_is_sent_under_both_leases(
    exchange: LocalExchange, redis_url: str
) -> None:
    async with connect(exchange.url) as client, LockGuard.from_url(redis_url) as guard:
        guarded = GuardedExchange(client)
        await guarded.load()
        async with guard.hold(guarded.resource(APT)), guard.hold(guarded.resource(BTC)):
            await guarded.create_orders(several(APT, BTC))
            await guarded.fapiPrivatePostOrder({**RAW, "newClientOrderId": "raw"})
        assert exchange.record().position("BTCUSDT") == 2


async def test_all_positions_of_the_account_are_not_closed_under_one_lease(redis_url: str) -> None:
    client = ccxt.async_support.bitget({"apiKey": "k", "secret": "s", "password": "p"})
    try:
        async with LockGuard.from_url(redis_url) as guard, guard.hold("bitget:BTCUSDT"):
            with pytest.raises(ConfigurationError, match="close each"):
                await GuardedExchange(client).close_all_positions()
    finally:
        await client.close()


async def test_ccxts_own_repetition_by_a_parameter_sends_no_second_order(
    exchange: LocalExchange, redis_url: str
) -> None:
    async with connect(exchange.url) as client, LockGuard.from_url(redis_url) as guard:
        guarded = GuardedExchange(client)
        await guarded.load()
        exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, Execution.FIRST, times=9))
        async with guard.hold(guarded.resource(APT)):
            with pytest.raises(ccxt.OperationFailed):
                await guarded.create_order(APT, "market", "buy", 1, None, {"maxRetriesOnFailure": 3, **NAMED})
        assert exchange.record().position("APTUSDT") == 1
