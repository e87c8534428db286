"""Every call of ccxt that changes something is known as one, and looks at the lease before it is sent."""

from __future__ import annotations

import asyncio
import inspect
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from aiohttp import web

from lockguard import LockGuard
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason
from lockguard_ccxt import GuardedExchange, Step, client_order_id
from lockguard_ccxt._proxy import has_client_id, is_write, symbols_of

READS = ("fetch", "watch", "load", "un_watch", "unWatch", "get_", "get", "is_", "is", "handle", "ensure")
NEITHER = frozenset(
    {
        "authenticate",
        "close",
        "keep_alive_listen_key",
        "renew_listen_token",
        "safe_deterministic_call",
        "sign_in",
        "sleep",
        "subscribe",
        "subscribe_multiple",
        "throttle",
    }
)
"""Of the connection itself, and of ccxt's inside."""


@pytest.mark.parametrize("name", ["binance", "binanceusdm", "bybit", "okx", "bitget"])
def test_a_coroutine_of_ccxt_that_is_no_read_is_a_write(name: str) -> None:
    """Also those over websockets, in batches, and whatever the next version of ccxt adds."""
    exchange = getattr(import_module("ccxt.pro"), name)()
    unknown = [
        called
        for called in dir(exchange)
        if called.islower()
        and not called.startswith(("_", *READS))
        and called not in NEITHER
        and inspect.iscoroutinefunction(call := getattr(exchange, called))
        and not is_write(called, call)
    ]
    assert unknown == []


@pytest.mark.parametrize(
    "called",
    [
        "create_order_ws",
        "createOrderWs",
        "create_orders",
        "create_orders_ws",
        "edit_order",
        "edit_order_ws",
        "cancel_order_ws",
        "cancel_all_orders_ws",
        "cancel_all_orders_after",
        "close_position",
        "create_order_with_take_profit_and_stop_loss",
        "fapiPrivatePostOrder",
        "fapiPrivatePutOrder",
        "fapiPrivateDeleteAllOpenOrders",
        "fapiPrivatePostBatchOrders",
        "set_leverage",
        "request",
        "verify_gift_code",
        "watch",
    ],
)
def test_each_way_to_write_an_order_is_a_write(called: str) -> None:
    exchange = import_module("ccxt.pro").binanceusdm()
    assert is_write(called, getattr(exchange, called))


@pytest.mark.parametrize(
    ("exchange", "called"),
    [
        ("coinbaseinternational", "request_ws"),
        ("hitbtc", "trade_request"),
        ("lighter", "sign_and_create_order"),
    ],
)
def test_a_coroutine_whose_name_says_nothing_counts_as_a_write(exchange: str, called: str) -> None:
    assert is_write(called, getattr(getattr(import_module("ccxt.pro"), exchange)(), called))


def _called(*args: Any) -> inspect.BoundArguments:
    def create_orders(orders: Any, params: Any = None) -> None: ...

    return inspect.signature(create_orders).bind(*args)


def test_each_of_several_orders_needs_a_name_of_its_own() -> None:
    named, nameless = {"params": {"clientOrderId": "x"}}, {"symbol": "BTC/USDT:USDT"}
    assert has_client_id(_called([named, {"params": {"orderLinkId": "y"}}]))
    assert not has_client_id(_called([named, nameless]))
    assert not has_client_id(_called([nameless, nameless], {"clientOrderId": "x"}))


def test_the_markets_of_a_batch_are_seen_also_where_it_is_sent_as_json() -> None:
    batch = '[{"symbol": "BTCUSDT"}, {"symbol": "APTUSDT", "more": {"instId": "ETH-USDT"}}]'
    assert symbols_of(_called(None, {"batchOrders": batch})) == ["BTCUSDT", "APTUSDT", "ETH-USDT"]
    assert symbols_of(_called([{"symbol": "A"}, {"symbol": "B"}], {"symbol": "C"})) == ["C", "A", "B"]
    assert symbols_of(_called(None, {"text": "[no JSON"})) == []


async def test_a_message_of_ones_own_over_a_websocket_needs_a_lease() -> None:
    client: Any = import_module("ccxt.pro").binanceusdm({"apiKey": "k", "secret": "s"})
    guarded = GuardedExchange(client)
    url = "ws://127.0.0.1:9/ws"
    with pytest.raises(LeaseNotHeld, match="watch needs a lease"):
        await guarded.watch(url, "1", {"id": "1", "method": "order.place", "params": {}}, "1")
    with pytest.raises(LeaseNotHeld, match="watch_multiple needs a lease"):
        await guarded.watch_multiple(url, ["1"], {"id": "1", "method": "order.place", "params": {}}, ["1"])
    with pytest.raises(import_module("ccxt").NetworkError):
        await guarded.watch(url, "trades")  # it sends nothing, and needs none; nobody listens there
    await client.close()


async def test_an_order_over_a_websocket_is_not_sent_when_the_lease_has_ended_meanwhile() -> None:
    """The connection takes its time; the order would leave long after the check at the start of the call."""
    received: list[str] = []
    may_connect = asyncio.Event()

    async def serve(request: web.Request) -> web.WebSocketResponse:
        await may_connect.wait()
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            received.append(str(message.data))
            await socket.close()  # the answer is not what this is about
        return socket

    app = web.Application()
    app.router.add_get("/{path:.*}", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    client: Any = import_module("ccxt.pro").binanceusdm({"apiKey": "k", "secret": "s"})
    client.urls["api"]["ws"]["ws-api"]["linear"] = f"ws://127.0.0.1:{port}/ws"
    client.set_markets([market()])
    guarded = GuardedExchange(client)
    try:
        async with LockGuard.in_memory() as guard:
            with pytest.raises(LeaseLost):
                async with guard.hold("binance:APTUSDT") as lease:
                    name = client_order_id(lease.resource, 1, Step.ENTRY)
                    calling = asyncio.create_task(
                        guarded.create_order_ws(
                            "APT/USDT:USDT", "market", "buy", 1, None, {"clientOrderId": name}
                        )
                    )
                    async with asyncio.timeout(5):
                        while not client.clients:
                            await asyncio.sleep(0.01)
                    lease.mark_lost(LossReason.EXPIRED)
                    may_connect.set()
                    with pytest.raises(LeaseLost):
                        await calling
    finally:
        await client.close()
        await runner.cleanup()  # it waits for what was sent to be read
    assert received == []


def market() -> dict[str, Any]:
    return {
        "id": "APTUSDT",
        "symbol": "APT/USDT:USDT",
        "base": "APT",
        "quote": "USDT",
        "settle": "USDT",
        "type": "swap",
        "swap": True,
        "contract": True,
        "linear": True,
        "inverse": False,
        "spot": False,
        "contractSize": 1,
        "precision": {"amount": 0.1, "price": 0.001},
        "limits": {"amount": {}, "price": {}, "cost": {}, "leverage": {}},
        "info": {"orderTypes": ["MARKET"]},
    }


def test_a_synchronous_exchange_is_refused_in_one_line_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match=r"from ccxt[.]async_support"):
        GuardedExchange(import_module("ccxt").binanceusdm())


def test_a_portfolio_margin_account_is_refused() -> None:
    exchange = import_module("ccxt.async_support").binanceusdm({"options": {"portfolioMargin": True}})
    with pytest.raises(ConfigurationError, match="classic futures account"):
        GuardedExchange(exchange)


async def test_a_call_of_any_path_that_only_reads_needs_no_lease() -> None:
    exchange = import_module("ccxt.async_support").binanceusdm()
    asked: list[str] = []

    async def request(path: str, api: str = "public", method: str = "GET", *rest: Any) -> str:
        asked.append(path)
        return "answer"

    exchange.request = request
    guarded = GuardedExchange(exchange)
    assert await guarded.request("ping", "fapiPublic", "GET") == "answer"
    with pytest.raises(Exception, match="needs a lease"):
        await guarded.request("order", "fapiPrivate", "POST")
    assert asked == ["ping"]
    assert guarded.closed_for == timedelta(0)
    await exchange.close()
