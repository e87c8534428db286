"""Exchanges that take orders by GET, such as Deribit: their orders pass the same checks as those by POST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

import pytest
from aiohttp import web

from lockguard import LockGuard
from lockguard.errors import LeaseLost, LeaseNotHeld, LossReason
from lockguard_ccxt import GuardedExchange, gate_orders
from lockguard_ccxt._proxy import is_write
from lockguard_ccxt._verbs import changes

SYMBOL = "BTC/USD:BTC"
RESOURCE = "deribit:BTC/USD:BTC"
ORDER: Any = (SYMBOL, "market", "buy", 10, None, {"clientOrderId": "mine"})


@asynccontextmanager
async def server() -> AsyncIterator[tuple[str, list[str]]]:
    """A server that says no to everything, and the requests that it got."""
    received: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        received.append(f"{request.method} {request.path}")
        return web.json_response({"error": {"code": 10009, "message": "not_enough_funds"}}, status=400)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", received
    finally:
        await runner.cleanup()


def deribit(module: str, url: str) -> Any:
    client = import_module(module).deribit({"apiKey": "k", "secret": "s", "enableRateLimit": True})
    client.urls["api"]["rest"] = url
    market = {
        "id": "BTC-PERPETUAL",
        "symbol": SYMBOL,
        "base": "BTC",
        "quote": "USD",
        "settle": "BTC",
        "type": "swap",
        "swap": True,
        "contract": True,
        "linear": False,
        "inverse": True,
        "spot": False,
        "contractSize": 10,
        "precision": {"amount": 10, "price": 0.5},
        "limits": {"amount": {}, "price": {}, "cost": {}, "leverage": {}},
        "info": {},
    }
    client.set_markets([market])
    return client


@pytest.mark.parametrize(
    "send",
    [
        lambda client: client.create_order(*ORDER),
        lambda client: client.cancel_order("1", SYMBOL),
        lambda client: client.privateGetBuy({"instrument_name": "BTC-PERPETUAL", "amount": 10}),
        lambda client: client.fetch2("sell", "private", "GET", {"instrument_name": "BTC-PERPETUAL"}),
    ],
    ids=["create_order", "cancel_order", "generated", "fetch2"],
)
async def test_an_order_by_get_does_not_leave_after_its_lease_was_lost(
    send: Callable[[Any], Awaitable[Any]],
) -> None:
    async with server() as (url, received), LockGuard.in_memory() as guard:
        client = deribit("ccxt.async_support", url)
        guarded = GuardedExchange(client)
        try:
            with pytest.raises(LeaseNotHeld):
                await send(guarded)
            with pytest.raises(LeaseLost):
                async with guard.hold(RESOURCE) as lease:

                    async def throttle(*_: object) -> None:
                        lease.mark_lost(LossReason.EXPIRED)  # while the request waits for its turn

                    client.throttle = throttle
                    await send(guarded)
        finally:
            await client.close()
        assert received == []


async def test_the_gate_of_a_synchronous_exchange_checks_orders_by_get_too() -> None:
    async with server() as (url, received), LockGuard.in_memory() as guard:
        client = deribit("ccxt", url)
        gate_orders(client)
        order = {"instrument_name": "BTC-PERPETUAL", "amount": 10}
        with pytest.raises(Exception, match="no lease on"):
            await asyncio.to_thread(client.privateGetBuy, order)
        with pytest.raises(Exception, match="not_enough_funds"):
            await asyncio.to_thread(client.privateGetGetOpenOrdersByCurrency, {"currency": "BTC"})
        assert received == ["GET /api/v2/private/get_open_orders_by_currency"], "what only reads has left"
        with pytest.raises(LeaseLost):
            async with guard.hold(RESOURCE) as lease:
                client.throttle = lambda *_: lease.mark_lost(LossReason.EXPIRED)
                with pytest.raises(Exception, match="not sent"):
                    await asyncio.to_thread(client.create_order, *ORDER)
        assert len(received) == 1
        client.close()


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/api/v2/private/buy?amount=10", True),
        ("GET", "https://www.deribit.com/api/v2/private/cancel_all_by_instrument?a=b", True),
        ("GET", "/cosmos/broadcast_tx_sync?tx=1", True),
        ("get", "private/get_open_orders_by_currency", False),
        ("GET", "/fapi/v1/openOrders?side=buy", False),
        ("GET", "/sapi/v1/capital/withdraw/history", False),
        ("POST", "/anything", True),
    ],
)
def test_what_changes_something(method: str, path: str, expected: bool) -> None:
    assert changes(method, path) is expected


@pytest.mark.parametrize(
    "called",
    ["privateGetBuy", "private_get_sell", "privateGetEdit", "privateGetCancelAll", "privateGetClosePosition"],
)
def test_a_generated_call_that_orders_by_get_is_a_write(called: str) -> None:
    exchange = import_module("ccxt.async_support").deribit()
    assert is_write(called, getattr(exchange, called))
    assert not is_write("privateGetGetPositions", exchange.privateGetGetPositions)
