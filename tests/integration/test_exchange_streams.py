"""The local exchange's websockets, read by a client that shares no code with their server, and by ccxt.pro.

Orders are placed by another client. What the streams say is compared with what the REST API says.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import ccxt
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus

from lockguard_lab.exchange import (
    ControlClient,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    connect,
)

APT = "APT/USDT:USDT"
BTC_COIN = "BTC/USD:BTC"
WITHIN_S = 20

T = TypeVar("T")


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTCUSDT", BTC_COIN]) as server:
        yield server


@pytest.fixture
async def trader(exchange: LocalExchange) -> AsyncIterator[Any]:
    """Another client than the one that listens."""
    async with connect(exchange.url) as client:
        await client.load_markets()
        yield client


async def soon(waited: Awaitable[T]) -> T:
    async with asyncio.timeout(WITHIN_S):
        return await waited


async def listening(exchange: LocalExchange, account: str | None, count: int = 1) -> None:
    """Wait until so many connections listen to an account, or to market streams only."""

    async def counted() -> None:
        while [one.account for one in exchange.listeners()].count(account) != count:
            await asyncio.sleep(0.01)

    await soon(counted())


def streams(exchange: LocalExchange, path: str, **options: Any) -> Any:
    return dial(exchange.url.replace("http", "ws", 1) + path, **options)


async def event(stream: ClientConnection, wanted: Callable[[Any], bool] = bool) -> Any:
    """The next message that is wanted."""

    async def found() -> Any:
        async for text in stream:
            message = json.loads(text)
            if wanted(message):
                return message
        raise AssertionError("the connection was closed")

    return await soon(found())


def kinds(messages: list[Any]) -> list[str]:
    return [
        message["o"]["x"] if message["e"] == "ORDER_TRADE_UPDATE" else message["e"] for message in messages
    ]


@asynccontextmanager
async def account_stream(exchange: LocalExchange, client: Any) -> AsyncIterator[ClientConnection]:
    key = (await client.fapiPrivatePostListenKey())["listenKey"]
    async with streams(exchange, f"/private/ws?listenKey={key}") as stream:
        await listening(exchange, "main")
        yield stream


# --- an account's stream ---


async def test_an_order_is_told_from_its_acceptance_to_its_fill(exchange: LocalExchange, trader: Any) -> None:
    async with account_stream(exchange, trader) as stream:
        await trader.create_order(APT, "market", "buy", 10, None, {"clientOrderId": "mine"})
        told = [await event(stream) for _ in range(4)]
    assert kinds(told) == ["NEW", "ACCOUNT_UPDATE", "TRADE", "TRADE_LITE"]
    (fill,) = exchange.record().fills
    balance = next(row for row in await trader.fapiPrivateV3GetBalance() if row["asset"] == "USDT")
    (position,) = await trader.fapiPrivateV3GetPositionRisk()
    new, account, trade, _ = told
    assert [(message["o"]["X"], message["o"]["z"]) for message in (new, trade)] == [
        ("NEW", "0.0"),
        ("FILLED", "10.0"),
    ]
    assert trade["o"]["c"] == "mine"
    assert (trade["o"]["t"], Decimal(trade["o"]["n"])) == (fill.id, fill.commission)
    assert account["a"]["B"] == [{"a": "USDT", "wb": balance["balance"], "cw": balance["balance"], "bc": "0"}]
    assert account["a"]["P"][0]["pa"] == position["positionAmt"] == "10.0"
    assert account["a"]["P"][0]["ep"] == position["entryPrice"]


# --- ccxt.pro ---


async def test_ccxt_pro_watches_what_another_client_does(exchange: LocalExchange, trader: Any) -> None:
    async with connect(exchange.url, streams=True) as pro:
        await pro.load_markets()
        assert await soon(pro.watch_positions([APT])) == []
        watched = {
            asyncio.create_task(call, name=name)
            for name, call in {
                "orders": pro.watch_orders(APT),
                "trades": pro.watch_my_trades(APT),
                "balance": pro.watch_balance(),
                "positions": pro.watch_positions([APT]),
            }.items()
        }
        await listening(exchange, "main")
        await trader.create_order(APT, "market", "buy", 10, None, {"clientOrderId": "mine"})
        done = {task.get_name(): task.result() for task in (await asyncio.wait(watched, timeout=WITHIN_S))[0]}
        (order,) = done["orders"]
        while order["filled"] != 10:
            (order,) = await soon(pro.watch_orders(APT))
        assert (order["clientOrderId"], order["status"]) == ("mine", "closed")
        assert [(trade["amount"], trade["price"]) for trade in done["trades"]] == [(10, 8.5)]
        assert [(held["contracts"], held["side"]) for held in done["positions"]] == [(10, "long")]
        assert done["balance"]["USDT"]["total"] == (await trader.fetch_balance())["USDT"]["total"]


async def test_ccxt_pro_watches_the_market(exchange: LocalExchange) -> None:
    async with connect(exchange.url, streams=True) as pro:
        mark, quote = await soon(pro.watch_mark_price(APT)), await soon(pro.watch_bids_asks([APT]))
        assert (mark["markPrice"], quote[APT]["bid"], quote[APT]["ask"]) == (8.5, 8.4999, 8.5001)
        assert (await soon(pro.watch_ticker(APT)))["last"] == 8.5
        assert (await soon(pro.watch_trades(APT)))[-1]["price"] == 8.5
        assert (await soon(pro.watch_ohlcv(APT)))[-1][1:5] == [8.5] * 4
        book = await soon(pro.watch_order_book(APT))
        exchange.set_price(APT, Decimal("8.6"))
        while book["bids"][0][0] != 8.5999:
            book = await soon(pro.watch_order_book(APT))
        top = await pro.fetch_order_book(APT)
        assert (book["bids"], book["asks"]) == (top["bids"], top["asks"]), "no level was left behind"


# --- the rest of an account's stream ---


async def test_each_change_of_an_order_is_told(exchange: LocalExchange, trader: Any) -> None:
    async with account_stream(exchange, trader) as stream:
        resting = {"timeInForce": "GTC", "clientOrderId": "limit"}
        order = await trader.create_order(APT, "limit", "buy", 10, 8.4, resting)
        await trader.edit_order(order["id"], APT, "limit", "buy", 12, 8.41)
        await trader.cancel_order(order["id"], APT)
        await trader.create_order(
            APT, "limit", "buy", 10, 8.4, {"timeInForce": "IOC", "clientOrderId": "ioc"}
        )
        await trader.set_leverage(7, APT)
        told = [await event(stream) for _ in range(6)]
    assert kinds(told) == ["NEW", "AMENDMENT", "CANCELED", "NEW", "EXPIRED", "ACCOUNT_CONFIG_UPDATE"]
    assert [message["o"]["q"] for message in told[:3]] == ["10.0", "12.0", "12.0"]
    assert told[-1]["ac"] == {"s": "APTUSDT", "l": 7}


async def test_a_stop_is_told_from_its_placing_to_its_fill(exchange: LocalExchange, trader: Any) -> None:
    await trader.create_order(APT, "market", "buy", 10)
    async with account_stream(exchange, trader) as stream:
        stop = {"stopLossPrice": 8, "reduceOnly": True, "clientOrderId": "stop"}
        await trader.create_order(APT, "market", "sell", 10, None, stop)
        exchange.set_price(APT, Decimal("7.9"))
        told = [await event(stream) for _ in range(7)]
    assert kinds(told) == [
        *("ALGO_UPDATE", "ALGO_UPDATE", "NEW", "ACCOUNT_UPDATE", "TRADE", "TRADE_LITE", "ALGO_UPDATE")
    ]
    algo = [message["o"] for message in told if message["e"] == "ALGO_UPDATE"]
    assert [row["X"] for row in algo] == ["NEW", "TRIGGERING", "FINISHED"]
    assert {row["caid"] for row in algo} == {"stop"}
    assert algo[-1]["ai"] == str(told[4]["o"]["i"]), "it names the order that it became"
    assert told[3]["a"]["P"][0]["pa"] == "0.0"
    assert Decimal(told[3]["a"]["P"][0]["cr"]) == Decimal(told[4]["o"]["rp"]) == -6


async def test_a_partial_fill_is_told_as_one_before_the_rest_expires(
    exchange: LocalExchange, trader: Any
) -> None:
    exchange.inject(Fault(FaultKind.EXPIRES, share=Decimal("0.4")))
    async with account_stream(exchange, trader) as stream:
        await trader.create_order(APT, "market", "buy", 10)
        told = [message for message in [await event(stream) for _ in range(5)] if "o" in message]
    assert [(m["o"]["x"], m["o"]["X"], m["o"]["z"]) for m in told] == [
        ("NEW", "NEW", "0.0"),
        ("TRADE", "PARTIALLY_FILLED", "4.0"),
        ("EXPIRED", "EXPIRED", "4.0"),
    ]


async def test_an_account_hears_only_its_own_and_only_what_it_asked_for(
    exchange: LocalExchange, trader: Any
) -> None:
    exchange.add_account("other", api_key="k", secret="s")
    async with connect(exchange.url, api_key="k", secret="s") as other:
        key = (await other.fapiPrivatePostListenKey())["listenKey"]
        path = f"/private/stream?listenKey={key}&events=ORDER_TRADE_UPDATE"
        async with streams(exchange, path) as stream:
            await listening(exchange, "other")
            await trader.create_order(APT, "market", "buy", 10)
            await other.create_order(APT, "market", "sell", 4)
            new, trade = await event(stream), await event(stream)
    assert (new["stream"], kinds([new["data"], trade["data"]])) == (key, ["NEW", "TRADE"])
    assert trade["data"]["o"]["l"] == "4.0"


async def test_coin_margined_contracts_have_streams_of_their_own(exchange: LocalExchange) -> None:
    async with connect(exchange.url, exchange_id="binancecoinm", streams=True) as pro:
        watching = asyncio.create_task(pro.watch_orders())
        balance = asyncio.create_task(pro.watch_balance())
        await listening(exchange, "main")
        await pro.create_order(BTC_COIN, "market", "buy", 3, None, {"clientOrderId": "mine"})
        (order,) = await soon(asyncio.shield(watching))
        while order["filled"] != 3:
            (order,) = await soon(pro.watch_orders())
        assert (order["symbol"], order["clientOrderId"], order["status"]) == (BTC_COIN, "mine", "closed")
        assert (await soon(asyncio.shield(balance)))["BTC"]["total"] < 10_000
        price = float(exchange.price(BTC_COIN))
        assert (await soon(pro.watch_mark_price(BTC_COIN)))["markPrice"] == price
        assert (await soon(pro.watch_order_book(BTC_COIN)))["bids"][0][0] < price


# --- listen keys ---


async def test_a_listen_key_lives_as_its_requests_say(exchange: LocalExchange, trader: Any) -> None:
    with pytest.raises(ccxt.AuthenticationError, match="-1125"):
        await trader.fapiPrivatePutListenKey()
    key = (await trader.fapiPrivatePostListenKey())["listenKey"]
    assert (await trader.fapiPrivatePostListenKey())["listenKey"] == key
    assert (await trader.fapiPrivatePutListenKey())["listenKey"] == key
    assert (await trader.dapiPrivatePostListenKey())["listenKey"] != key
    await trader.fapiPrivateDeleteListenKey()
    with pytest.raises(ccxt.AuthenticationError, match="-1125"):
        await trader.fapiPrivatePutListenKey()


async def test_after_its_hour_a_listen_key_is_silent(exchange: LocalExchange, trader: Any) -> None:
    """The connection stays, so that a bot which does not know the event believes that nothing happens."""
    async with account_stream(exchange, trader) as stream:
        exchange.set_clock_offset(timedelta(minutes=61))
        assert (await event(stream))["e"] == "listenKeyExpired"
        await trader.load_time_difference()
        await trader.create_order(APT, "market", "buy", 10)
        await stream.send('{"method": "LIST_SUBSCRIPTIONS", "id": 1}')
        assert (await event(stream))["id"] == 1, "of the order it hears nothing"


# --- faults ---


@pytest.mark.parametrize("execution", [Execution.NEVER, Execution.FIRST])
async def test_a_connection_is_cut_in_the_moment_of_a_fill(
    exchange: LocalExchange, trader: Any, execution: Execution
) -> None:
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.STREAM_FILL, execution))
    seen = []
    async with account_stream(exchange, trader) as stream:
        await trader.create_order(APT, "market", "buy", 10)
        with pytest.raises(ConnectionClosed):
            async with asyncio.timeout(WITHIN_S):
                while True:
                    seen.append(json.loads(await stream.recv()))
    assert kinds(seen) == ["NEW", "ACCOUNT_UPDATE", *(["TRADE"] if execution is Execution.FIRST else [])]
    assert exchange.record().position(APT) == 10
    await listening(exchange, "main", 0)


async def test_events_are_lost_doubled_and_late(exchange: LocalExchange, trader: Any) -> None:
    exchange.inject(Fault(FaultKind.LOST, Operation.STREAM_ACCOUNT))
    exchange.inject(Fault(FaultKind.TWICE, Operation.STREAM_FILL))
    exchange.inject(Fault(FaultKind.DELAY, Operation.STREAM_ORDER, hold_ms=300))
    loop = asyncio.get_running_loop()
    async with account_stream(exchange, trader) as stream:
        began = loop.time()
        await trader.create_order(APT, "market", "buy", 10)
        first = await event(stream)
        assert loop.time() - began >= 0.3
        told = [first, *[await event(stream) for _ in range(4)]]
        assert kinds(told) == ["NEW", "TRADE", "TRADE", "TRADE_LITE", "TRADE_LITE"], (
            "in their order, although the first is late"
        )
        exchange.set_latency(timedelta(milliseconds=200), Operation.STREAM_FILL)
        began = loop.time()
        await trader.create_order(APT, "market", "sell", 10)
        await event(
            stream, lambda message: message["e"] == "ORDER_TRADE_UPDATE" and message["o"]["x"] == "TRADE"
        )
        assert loop.time() - began >= 0.2


async def test_of_a_fill_that_is_lost_no_event_tells(exchange: LocalExchange, trader: Any) -> None:
    exchange.inject(Fault(FaultKind.LOST, Operation.STREAM_FILL, symbol="APTUSDT", account="main"))
    async with account_stream(exchange, trader) as stream:
        await trader.create_order(APT, "market", "buy", 10)
        await trader.create_order(APT, "market", "sell", 10)
        told = [await event(stream) for _ in range(6)]
    assert kinds(told) == ["NEW", "ACCOUNT_UPDATE", "NEW", "ACCOUNT_UPDATE", "TRADE", "TRADE_LITE"]


def test_a_fault_that_cannot_happen_to_an_event_is_refused() -> None:
    with pytest.raises(ValueError, match="happens to a request"):
        Fault(FaultKind.OVERLOADED, Operation.STREAM_FILL)
    with pytest.raises(ValueError, match="happens to events on streams only"):
        Fault(FaultKind.LOST, Operation.CREATE_ORDER)
    with pytest.raises(ValueError, match="or is lost with it"):
        Fault(FaultKind.DISCONNECT, Operation.STREAM_FILL, Execution.LATE)
    anything = Fault(FaultKind.HANG)
    assert not anything.matches(Operation.STREAM_FILL, "APTUSDT"), "a fault of any request hits no event"


async def test_a_slow_reader_is_disconnected_and_nobody_waits_for_it(
    exchange: LocalExchange, trader: Any
) -> None:
    quick = streams(exchange, "/ws/aptusdt@bookTicker")
    small = socket.create_connection(("127.0.0.1", urlsplit(exchange.url).port or 0))
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    names = [f"aptusdt@depth{levels}@{speed}ms" for levels in (5, 10, 20) for speed in (100, 250, 500)]
    slow = streams(exchange, f"/ws/{'/'.join(names)}", sock=small, close_timeout=0.1)
    async with quick as reader, slow as sleeper:
        await listening(exchange, None, 2)
        sleeper.transport.pause_reading()  # the machine's own buffers fill up, then the exchange's queue
        heard = asyncio.create_task(event(reader, lambda message: message["b"] == "11.9999"))
        for step in range(20_000):
            exchange.set_price(APT, Decimal(9) + Decimal(step % 100) / 1000)
            if step % 10 == 0:
                await asyncio.sleep(0)
            if len(exchange.listeners()) == 1:
                break
        await listening(exchange, None, 1)
        exchange.set_price(APT, Decimal(12))
        await soon(asyncio.shield(heard))
    assert (await trader.fetch_ticker(APT))["last"] == 12


# --- the protocol ---


async def test_streams_are_added_listed_and_taken_away(exchange: LocalExchange) -> None:
    async with streams(exchange, "/stream?streams=aptusdt@markPrice@1s") as stream:
        first = await event(stream)
        assert (first["stream"], first["data"]["e"]) == ("aptusdt@markPrice@1s", "markPriceUpdate")
        asked = {"method": "SUBSCRIBE", "params": ["btcusdt@bookTicker", "!markPrice@arr@1s"], "id": 5}
        await stream.send(json.dumps(asked))
        assert await event(stream, lambda m: "id" in m) == {"result": None, "id": 5}
        everything = await event(stream, lambda m: m.get("stream") == "!markPrice@arr@1s")
        assert {row["s"] for row in everything["data"]} == {"APTUSDT", "BTCUSDT"}, "those of USD-M"
        await stream.send('{"method": "UNSUBSCRIBE", "params": ["btcusdt@bookTicker"], "id": 6}')
        await event(stream, lambda m: m.get("id") == 6)
        await stream.send('{"method": "LIST_SUBSCRIPTIONS", "id": "x"}')
        listed = await event(stream, lambda m: "id" in m)
        assert listed == {"result": ["aptusdt@markPrice@1s", "!markPrice@arr@1s"], "id": "x"}
        pong = await stream.ping()
        await soon(asyncio.wait_for(pong, WITHIN_S))


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ("{", {"error": {"code": 3, "msg": "Invalid JSON"}, "id": None}),
        ("[]", {"error": {"code": 2, "msg": "Invalid request: not an object"}, "id": None}),
        (
            '{"method": "SUBSCRIBE", "params": ["xusdt@trade"], "id": 1}',
            {
                "error": {
                    "code": 2,
                    "msg": "Invalid request: the local exchange has no stream 'xusdt@trade'",
                },
                "id": 1,
            },
        ),
        (
            '{"method": "SUBSCRIBE", "params": "x", "id": 1}',
            {"error": {"code": 2, "msg": "Invalid request: params must be a list of streams"}, "id": 1},
        ),
        ('{"method": "HELLO"}', {"error": {"code": 2, "msg": "Invalid request: unknown method"}, "id": None}),
    ],
)
async def test_what_cannot_be_done_is_answered(exchange: LocalExchange, sent: str, answer: Any) -> None:
    async with streams(exchange, "/ws") as stream:
        await stream.send(sent)
        assert await event(stream) == answer


async def test_a_stream_that_is_not_there_is_refused_at_the_door(exchange: LocalExchange) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with streams(exchange, "/ws/aptusdt@nothing"):
            pass
    assert refused.value.response.status_code == 400
    assert b"has no stream 'aptusdt@nothing'" in (refused.value.response.body or b"")


async def test_a_request_that_is_no_websocket_leaves_nothing_behind(exchange: LocalExchange) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{exchange.url}/ws/aptusdt@depth@100ms") as response:
            assert response.status == 400
    assert exchange.listeners() == ()
    before = exchange._desk.venue.book_id("APTUSDT")
    await asyncio.sleep(0.3)  # three events of that stream
    assert exchange._desk.venue.book_id("APTUSDT") == before, "nobody makes its events"


@pytest.mark.parametrize("path", ["/ws/btcusdt@trade", "/ws-fapi/v1"])
async def test_a_client_that_is_gone_before_the_handshake_leaves_no_traceback(
    exchange: LocalExchange, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    asked = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    address = urlsplit(exchange.url)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port)) as gone:
            gone.sendall(asked.encode() + b"\xff" * 6)
    async with connect(exchange.url) as after:
        await after.fetch_time()
    await soon(none_left(exchange))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("aiohttp")] == []


async def none_left(exchange: LocalExchange) -> None:
    while exchange.listeners():
        await asyncio.sleep(0.01)


async def test_streams_are_controlled_over_http(exchange: LocalExchange, trader: Any) -> None:
    async with ControlClient(exchange.url) as control, account_stream(exchange, trader) as stream:
        assert [listener.account for listener in await control.listeners()] == ["main"]
        await control.inject(Fault(FaultKind.TWICE, Operation.STREAM_ORDER))
        await trader.create_order(APT, "limit", "buy", 10, 8)
        assert kinds([await event(stream), await event(stream)]) == ["NEW", "NEW"]
        await control.expire_listen_keys()
        assert (await event(stream))["e"] == "listenKeyExpired"
        await control.cut_streams("main")
        assert await control.listeners() != (), "it listens to no account any more"
        await control.cut_streams()
        with pytest.raises(ConnectionClosed):
            await soon(stream.recv())
