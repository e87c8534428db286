"""The local exchange answers the original ccxt as Binance does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

import aiohttp
import ccxt.async_support as ccxt
import pytest
from ccxt.base.decimal_to_precision import TICK_SIZE

from lockguard.errors import ConfigurationError
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import (
    ControlClient,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    connect,
    point_at,
)

BTC = "BTC/USDT:USDT"
APT = "APT/USDT:USDT"


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange() as server:
        yield server


@pytest.fixture
async def client(exchange: LocalExchange) -> AsyncIterator[Any]:
    async with connect(exchange.url) as ccxt_client:
        yield ccxt_client


async def stop_order(client: Any, trigger: str, *, client_id: str = "stop", amount: str = "10") -> Any:
    params = {"stopLossPrice": trigger, "reduceOnly": True, "clientOrderId": client_id}
    return await client.create_order(APT, "market", "sell", amount, None, params)


# --- markets ---


async def test_precision_is_the_step_itself(client: Any) -> None:
    await client.load_markets()
    market = client.market(BTC)
    assert client.precisionMode == TICK_SIZE
    assert Decimal(str(market["precision"]["amount"])) == Decimal("0.001")
    assert Decimal(str(market["precision"]["price"])) == Decimal("0.1")


async def test_binance_with_all_its_markets_loads_unpatched(exchange: LocalExchange) -> None:
    config = {"options": {"defaultType": "swap"}}
    async with connect(exchange.url, exchange_id="binance", config=config) as client:
        await client.load_markets()
        kinds = {(market["type"], market["subType"]) for market in client.markets.values()}
        assert {("spot", None), ("swap", "linear"), ("swap", "inverse")} <= kinds
        order = await client.create_order(APT, "market", "buy", "10")
        assert order["status"] == "closed"
        assert [p["symbol"] for p in await client.fetch_positions()] == [APT]


async def test_dated_future_is_not_the_perpetual() -> None:
    async with (
        LocalExchange(symbols=[BTC, "BTC/USDT:USDT-270326"]) as exchange,
        connect(exchange.url) as client,
    ):
        await client.create_order("BTC/USDT:USDT-270326", "market", "buy", "0.01")
        assert [p["symbol"] for p in await client.fetch_positions()] == ["BTC/USDT:USDT-270326"]
        assert exchange.record().position(BTC) == 0


async def test_unknown_symbols_get_usual_steps() -> None:
    names = [f"COIN{number}/USDT:USDT" for number in range(40)]
    async with LocalExchange(symbols=names) as exchange, connect(exchange.url) as client:
        await client.create_order("COIN39/USDT:USDT", "market", "buy", "1.5")
        assert len(exchange.record().entries("COIN39USDT")) == 1


# --- orders ---


async def test_entry_is_filled_at_once_and_seen_everywhere(client: Any) -> None:
    order = await client.create_order(BTC, "market", "buy", "0.0579", None, {"clientOrderId": "mine"})
    assert (order["clientOrderId"], order["status"], order["filled"]) == ("mine", "closed", 0.057)
    found = await client.fetch_order(None, BTC, {"clientOrderId": "mine"})
    assert found["id"] == order["id"]
    for params in ({}, {"useV2": True}):
        (position,) = await client.fetch_positions([BTC], params)
        assert (position["contracts"], position["side"], position["entryPrice"]) == (0.057, "long", 62000.0)
    (trade,) = await client.fetch_my_trades(BTC)
    assert (trade["order"], trade["amount"]) == (order["id"], 0.057)
    assert (await client.fetch_balance())["USDT"]["used"] > 0


async def test_a_trigger_sends_the_order_to_the_second_book(client: Any) -> None:
    await client.create_order(APT, "market", "buy", "10")
    stop = await stop_order(client, "8.0")
    assert (stop["type"], stop["triggerPrice"], stop["reduceOnly"]) == ("market", 8.0, True)
    assert await client.fetch_open_orders(APT) == []
    assert [o["id"] for o in await client.fetch_open_orders(APT, None, None, {"trigger": True})] == [
        stop["id"]
    ]
    with pytest.raises(ccxt.OrderNotFound):
        await client.fetch_order(stop["id"], APT)
    with pytest.raises(ccxt.OrderNotFound):
        await client.cancel_order(stop["id"], APT)
    await client.cancel_order(stop["id"], APT, {"trigger": True})
    assert await client.fetch_open_orders(APT, None, None, {"trigger": True}) == []


async def test_a_trigger_order_at_the_ordinary_endpoint_is_refused(client: Any) -> None:
    await client.load_markets()
    with pytest.raises(ccxt.InvalidOrder, match="-4120"):
        await client.fapiPrivatePostOrder(
            {"symbol": "APTUSDT", "side": "SELL", "type": "STOP_MARKET", "quantity": "1", "stopPrice": "8"}
        )


async def test_client_ids_are_unique_among_open_orders_only(client: Any, exchange: LocalExchange) -> None:
    for _ in range(2):
        await client.create_order(APT, "market", "buy", "10", None, {"clientOrderId": "again"})
    assert exchange.record().position(APT) == 20
    await stop_order(client, "8.0", client_id="open")
    with pytest.raises(ccxt.InvalidOrder, match="-4116"):
        await stop_order(client, "7.9", client_id="open")


async def test_client_ids_have_at_most_36_legal_characters(client: Any) -> None:
    await client.create_order(APT, "market", "buy", "10", None, {"clientOrderId": "x" * 36})
    for bad in ("x" * 37, "with blank", "ümlaut"):
        with pytest.raises(ccxt.ExchangeError, match=r"-4015|-1100"):
            await client.create_order(APT, "market", "buy", "10", None, {"clientOrderId": bad})


async def test_reduce_only_never_opens_nor_turns(client: Any, exchange: LocalExchange) -> None:
    with pytest.raises(ccxt.InvalidOrder, match="-2022"):
        await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    await client.create_order(APT, "market", "buy", "10")
    await client.create_order(APT, "market", "sell", "25", None, {"reduceOnly": True})
    assert exchange.record().position(APT) == 0


async def test_opposite_orders_net_and_turn_the_position(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "10")
    await client.create_order(APT, "market", "sell", "25")
    assert exchange.record().position(APT) == -15
    (position,) = await client.fetch_positions([APT])
    assert position["side"] == "short"
    assert len(exchange.record().entries(APT)) == 2


async def test_steps_and_minimum_worth_are_enforced(client: Any) -> None:
    await client.load_markets()
    with pytest.raises(ccxt.InvalidOrder, match="-4164"):
        await client.create_order(APT, "market", "buy", "0.5")
    with pytest.raises(ccxt.InvalidOrder, match="minimum amount precision"):
        await client.create_order(BTC, "market", "buy", "0.0009")
    order = {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET"}
    for quantity, code in (("0.05", "-1111"), ("0", "-4003"), ("90000", "-4005"), ("1e3", "-1100")):
        with pytest.raises(ccxt.ExchangeError, match=code):
            await client.fapiPrivatePostOrder({**order, "quantity": quantity})
    limit = {**order, "type": "LIMIT", "quantity": "10", "price": "8.00005", "timeInForce": "GTC"}
    with pytest.raises(ccxt.ExchangeError, match="-4014"):
        await client.fapiPrivatePostOrder(limit)
    with pytest.raises(ccxt.BadSymbol, match="-1121"):
        await client.fapiPrivatePostOrder({**order, "symbol": "NONEUSDT", "quantity": "1"})


async def test_margin_runs_out(client: Any) -> None:
    for _ in range(20):
        await client.create_order(BTC, "market", "buy", "120")
    with pytest.raises(ccxt.InsufficientFunds, match="-2019"):
        for _ in range(20):
            await client.create_order(BTC, "market", "buy", "120")


async def test_limit_orders_rest_until_the_price_comes(client: Any, exchange: LocalExchange) -> None:
    order = await client.create_order(APT, "limit", "buy", "10", "8.0")
    assert [o["id"] for o in await client.fetch_open_orders(APT)] == [order["id"]]
    exchange.set_price(APT, Decimal("7.95"))
    assert (await client.fetch_order(order["id"], APT))["status"] == "closed"
    other = await client.create_order(APT, "limit", "buy", "10", "7.0")
    assert (await client.cancel_order(other["id"], APT))["status"] == "canceled"


# --- algo orders and prices ---


async def test_a_stop_fires_when_the_price_crosses_it(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "10")
    await stop_order(client, "8.0")
    exchange.set_price(APT, Decimal("8.0001"))
    assert exchange.record().position(APT) == 10
    exchange.set_price(APT, Decimal("7.9"))
    assert exchange.record().position(APT) == 0
    stop = await client.fetch_order(None, APT, {"clientOrderId": "stop", "trigger": True})
    assert stop["status"] == "closed"
    filled = await client.fetch_order(stop["info"]["actualOrderId"], APT)
    assert (filled["filled"], filled["average"]) == (10.0, 7.9)


async def test_a_stop_already_passed_is_refused(client: Any) -> None:
    await client.create_order(APT, "market", "buy", "10")
    with pytest.raises(ccxt.OrderImmediatelyFillable, match="-2021"):
        await stop_order(client, "8.6")


async def test_without_the_error_table_a_passed_stop_is_a_bare_error(exchange: LocalExchange) -> None:
    async with connect(exchange.url) as client:
        del client.get_exceptions_by_url
        await client.create_order(APT, "market", "buy", "10")
        with pytest.raises(ccxt.ExchangeError) as caught:
            await stop_order(client, "8.6")
        assert type(caught.value) is ccxt.ExchangeError


async def test_an_orphan_stop_without_reduce_only_opens_the_reverse(
    client: Any, exchange: LocalExchange
) -> None:
    await client.create_order(APT, "market", "buy", "10")
    await client.create_order(APT, "market", "sell", "10", None, {"stopLossPrice": "8.0"})
    await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    assert len(exchange.record().orphan_stops()) == 1
    exchange.set_price(APT, Decimal("7.9"))
    assert exchange.record().position(APT) == -10


async def test_an_orphan_stop_with_reduce_only_is_rejected_when_it_fires(
    client: Any, exchange: LocalExchange
) -> None:
    await client.create_order(APT, "market", "buy", "10")
    stop = await stop_order(client, "8.0")
    await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    exchange.set_price(APT, Decimal("7.9"))
    assert exchange.record().position(APT) == 0
    fired = await client.fetch_order(stop["id"], APT, {"trigger": True})
    assert fired["status"] == "rejected"


async def test_take_profit_trailing_and_close_position_fire(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "30")
    take = {"takeProfitPrice": "9.0", "reduceOnly": True}
    await client.create_order(APT, "market", "sell", "10", None, take)
    await client.create_order(APT, "market", "sell", "10", None, {"trailingPercent": "1", "reduceOnly": True})
    await client.create_order(
        APT, "market", "sell", 0.1, None, {"stopLossPrice": "7.0", "closePosition": True}
    )
    exchange.set_price(APT, Decimal("9.5"))
    assert exchange.record().position(APT) == 20
    exchange.set_price(APT, Decimal("9.4"))
    assert exchange.record().position(APT) == 10
    exchange.set_price(APT, Decimal("6.9"))
    assert exchange.record().position(APT) == 0


async def test_mark_price_stops_watch_the_mark_price(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "10")
    params = {"stopLossPrice": "8.0", "reduceOnly": True, "workingType": "MARK_PRICE"}
    await client.create_order(APT, "market", "sell", "10", None, params)
    exchange.set_price(APT, Decimal("7.5"), mark=Decimal("8.2"))
    assert exchange.record().position(APT) == 10
    exchange.set_price(APT, Decimal("8.1"), mark=Decimal("7.9"))
    assert exchange.record().position(APT) == 0
    assert (await client.fetch_mark_price(APT))["markPrice"] == 7.9


async def test_a_price_path_is_walked(client: Any, exchange: LocalExchange) -> None:
    path = [Decimal(8), Decimal(7), Decimal(9)]
    walk = exchange.walk_price(APT, path, every=timedelta(milliseconds=5))
    assert (await client.fetch_ticker(APT))["last"] in {8.0, 7.0, 9.0}
    await walk
    assert exchange.price(APT) == 9


# --- leverage and the rest of the account ---


async def test_leverage_margin_mode_and_brackets(client: Any) -> None:
    await client.set_leverage(5, APT)
    await client.set_margin_mode("isolated", APT)
    with pytest.raises(ccxt.MarginModeAlreadySet):
        await client.set_margin_mode("isolated", APT)
    await client.create_order(APT, "market", "buy", "10")
    (position,) = await client.fetch_positions([APT], {"useV2": True})
    assert (position["leverage"], position["marginMode"]) == (5.0, "isolated")
    with pytest.raises(ccxt.ExchangeError, match="-4048"):
        await client.set_margin_mode("cross", APT)
    tiers = await client.fetch_leverage_tiers([APT])
    assert tiers[APT][0]["maxLeverage"] == 125
    assert (await client.fetch_position_mode())["hedged"] is False
    assert len((await client.fetch_order_book(APT))["bids"]) == 5


async def test_candles_are_there_for_bots_that_want_them(client: Any) -> None:
    candles = await client.fetch_ohlcv(APT, "5m", None, 20)
    assert len(candles) == 20
    assert {later[0] - earlier[0] for earlier, later in pairwise(candles)} == {300_000}
    assert candles[-1][4] == 8.5
    since = candles[10][0]
    assert [candle[0] for candle in await client.fetch_ohlcv(APT, "5m", since, 3)] == [
        candle[0] for candle in candles[10:13]
    ]
    assert (await client.fetch_trading_fee(APT))["taker"] == 0.0004


# --- keys ---


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"secret": "wrong"}, ccxt.AuthenticationError, "-1022"),
        ({"api_key": "wrong"}, ccxt.AuthenticationError, "-2015"),
        ({"config": {"options": {"timeDifference": 60_000}}}, ccxt.InvalidNonce, "-1021"),
        ({"config": {"options": {"timeDifference": -60_000}}}, ccxt.InvalidNonce, "-1021"),
    ],
)
async def test_who_signs_badly_is_refused(
    exchange: LocalExchange, change: dict[str, Any], error: type[Exception], code: str
) -> None:
    async with connect(exchange.url, **change) as client:
        with pytest.raises(error, match=code):
            await client.create_order(APT, "market", "buy", "10")
    assert exchange.record().orders == ()


async def test_requests_without_signature_or_key_are_refused(exchange: LocalExchange) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{exchange.url}/fapi/v3/account") as response:
            assert (response.status, (await response.json())["code"]) == (401, -2014)
        headers = {"X-MBX-APIKEY": "local-key"}
        async with session.get(f"{exchange.url}/fapi/v3/account", headers=headers) as response:
            assert (response.status, (await response.json())["code"]) == (400, -1102)
        async with session.get(f"{exchange.url}/fapi/v1/nonsense") as response:
            assert "does not serve GET /fapi/v1/nonsense" in (await response.json())["msg"]


# --- slowness, lag and faults ---


async def test_latency_lies_around_the_execution(client: Any, exchange: LocalExchange) -> None:
    await client.load_markets()
    exchange.set_latency(timedelta(milliseconds=300), Operation.CREATE_ORDER)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await client.create_order(APT, "market", "buy", "10")
    assert 0.29 <= loop.time() - started < 2
    started = loop.time()
    await client.fetch_time()
    assert loop.time() - started < 0.25


async def test_reads_lag_behind_what_was_done(client: Any, exchange: LocalExchange) -> None:
    await client.load_markets()
    lag = timedelta(minutes=5)
    exchange.set_visibility(orders=lag, positions=lag, trades=lag)
    order = await client.create_order(APT, "market", "buy", "10")
    assert order["filled"] == 10.0
    assert await client.fetch_positions([APT]) == []
    assert await client.fetch_my_trades(APT) == []
    with pytest.raises(ccxt.OrderNotFound):
        await client.fetch_order(order["id"], APT)
    exchange.set_visibility()
    assert len(await client.fetch_positions([APT])) == 1


FAULTS = [
    (FaultKind.RATE_LIMITED, Execution.NEVER, ccxt.DDoSProtection),
    (FaultKind.CLOCK, Execution.NEVER, ccxt.InvalidNonce),
    (FaultKind.OVERLOADED, Execution.NEVER, ccxt.OperationFailed),
    (FaultKind.UNAVAILABLE, Execution.NEVER, ccxt.ExchangeNotAvailable),
    (FaultKind.UNAVAILABLE, Execution.FIRST, ccxt.ExchangeNotAvailable),
    (FaultKind.TIMEOUT, Execution.NEVER, ccxt.RequestTimeout),
    (FaultKind.TIMEOUT, Execution.FIRST, ccxt.RequestTimeout),
    (FaultKind.HANG, Execution.NEVER, ccxt.RequestTimeout),
    (FaultKind.HANG, Execution.FIRST, ccxt.RequestTimeout),
    (FaultKind.DISCONNECT, Execution.NEVER, ccxt.ExchangeNotAvailable),
    (FaultKind.DISCONNECT, Execution.FIRST, ccxt.ExchangeNotAvailable),
    (FaultKind.TRUNCATED, Execution.FIRST, ccxt.ExchangeError),
    (FaultKind.REJECTED, Execution.NEVER, ccxt.OperationFailed),
]


@pytest.mark.parametrize(("kind", "execution", "error"), FAULTS)
async def test_faults_arrive_as_ccxt_has_them(
    exchange: LocalExchange, kind: FaultKind, execution: Execution, error: type[Exception]
) -> None:
    async with connect(exchange.url) as client:
        await client.load_markets()
        client.timeout = 400
        exchange.inject(Fault(kind, Operation.CREATE_ORDER, execution, hold_ms=30_000))
        with pytest.raises(error) as caught:
            await client.create_order(APT, "market", "buy", "10", None, {"clientOrderId": "fault"})
        if kind is FaultKind.TRUNCATED:
            assert type(caught.value) is ccxt.ExchangeError
        executed = execution is Execution.FIRST
        assert len(exchange.record().entries(APT)) == executed
        await client.create_order(APT, "market", "buy", "10")
        assert len(exchange.record().entries(APT)) == executed + 1


async def test_a_request_may_be_carried_out_after_its_client_gave_up(exchange: LocalExchange) -> None:
    async with connect(exchange.url) as client:
        await client.load_markets()
        client.timeout = 200
        exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, Execution.LATE, hold_ms=800))
        with pytest.raises(ccxt.RequestTimeout):
            await client.create_order(APT, "market", "buy", "10")
        assert exchange.record().entries(APT) == ()
        async with asyncio.timeout(5):
            while not exchange.record().entries(APT):
                await asyncio.sleep(0.01)


async def test_faults_wait_for_their_symbol_and_their_turn(client: Any, exchange: LocalExchange) -> None:
    await client.load_markets()
    exchange.inject(Fault(FaultKind.RATE_LIMITED, Operation.CREATE_ORDER, symbol="APTUSDT", skip=1, times=2))
    await client.create_order(BTC, "market", "buy", "0.01")
    await client.create_order(APT, "market", "buy", "10")
    for _ in range(2):
        with pytest.raises(ccxt.DDoSProtection):
            await client.create_order(APT, "market", "buy", "10")
    await client.create_order(APT, "market", "buy", "10")
    outcomes = [r.outcome for r in exchange.record().requests if r.operation is Operation.CREATE_ORDER]
    assert outcomes == ["ok", "ok", "rate_limited/never", "rate_limited/never", "ok"]


async def test_a_hanging_request_ends_with_the_server() -> None:
    exchange = LocalExchange(symbols=[APT])
    await exchange.start()
    exchange.inject(Fault(FaultKind.HANG, Operation.TICKER, hold_ms=60_000))
    async with connect(exchange.url) as client:
        await client.load_markets()
        waiting = asyncio.create_task(client.fetch_ticker(APT))
        async with asyncio.timeout(5):
            while exchange.record().requests[-1].operation is not Operation.TICKER:
                await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await exchange.close()
            with pytest.raises(ccxt.NetworkError):
                await waiting


# --- control ---


async def test_another_process_steers_and_reads_the_record(client: Any, exchange: LocalExchange) -> None:
    async with ControlClient(exchange.url) as control:
        assert "APTUSDT" in await control.symbols()
        await control.inject(Fault(FaultKind.RATE_LIMITED, Operation.CREATE_ORDER))
        with pytest.raises(ccxt.DDoSProtection):
            await client.create_order(APT, "market", "buy", "10")
        await control.set_latency(timedelta(milliseconds=1))
        await control.set_visibility(positions=timedelta(milliseconds=1))
        await client.create_order(APT, "market", "buy", "10", None, {"clientOrderId": "a"})
        await stop_order(client, "8.0")
        record = await control.record()
        assert record == exchange.record()
        assert [order.client_id for order in record.entries(APT)] == ["a"]
        assert record.without_stop() == ()
        await control.walk_price(APT, [Decimal("8.1"), Decimal("7.9")], every=timedelta(milliseconds=1))
        async with asyncio.timeout(5):
            while (await control.record()).position(APT):
                await asyncio.sleep(0.01)
        await control.reset()
        assert (await control.record()).orders == ()
        assert exchange.price(APT) == Decimal("8.5")


async def test_control_refuses_nonsense_in_one_line(exchange: LocalExchange) -> None:
    async with ControlClient(exchange.url) as control:
        with pytest.raises(ConfigurationError, match="'NONEUSDT' is not listed"):
            await control.set_price("NONEUSDT", Decimal(1))
        with pytest.raises(ConfigurationError, match="above zero"):
            await control.set_price(APT, Decimal(0))
        with pytest.raises(ConfigurationError, match="from 0 to 60000"):
            await control.set_latency(timedelta(hours=1))
    async with aiohttp.ClientSession() as session:
        for body in ({"symbol": APT}, {"symbol": APT, "price": "x"}, [1]):
            async with session.post(f"{exchange.url}/_control/price", json=body) as response:
                assert response.status == 400
        async with session.post(
            f"{exchange.url}/_control/faults", json={"kind": "hang", "nope": 1}
        ) as response:
            assert "unknown field 'nope'" in (await response.json())["error"]


async def test_control_of_nobody_says_where_it_looked() -> None:
    async with LocalExchange(symbols=[APT]) as gone:
        url = gone.url
    async with ControlClient(url) as control:
        with pytest.raises(ConfigurationError, match=f"no local exchange answers at {url}"):
            await control.record()


async def test_only_binance_can_be_pointed_here(exchange: LocalExchange) -> None:
    with pytest.raises(ConfigurationError, match="'bybit' cannot talk"):
        point_at(ccxt.bybit(), exchange.url)
    with pytest.raises(ConfigurationError, match="no exchange 'nope'"):
        connect(exchange.url, exchange_id="nope")


@pytest.mark.parametrize("symbols", [["BTC"], [], ["BTC/USDT:USDT-991399"]])
def test_contracts_that_cannot_be_are_refused(symbols: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        LocalExchange(symbols=symbols)


async def test_a_taken_port_is_named(exchange: LocalExchange) -> None:
    port = int(exchange.url.rsplit(":", 1)[1])
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
        await LocalExchange(port=port).start()


# --- the command ---


async def test_the_command_serves_until_it_is_told_to_stop() -> None:
    arguments = ["serve", "--port", "0", "--symbols", "APTUSDT"]
    code = f"from lockguard_lab.exchange.cli import exchange; exchange({arguments})"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            url = (await process.stdout.readline()).decode().split()[-1]
            async with ControlClient(url) as control:
                assert await control.symbols() == ("APTUSDT",)
            signal_child(process, signal.SIGTERM)
            _, errors = await process.communicate()
        assert (process.returncode, errors) == (0, b"")
    finally:
        signal_child(process, signal.SIGKILL)
        await process.wait()


async def test_the_command_tells_a_mistake_in_one_line() -> None:
    code = "from lockguard_lab.exchange.cli import exchange; exchange(['serve', '--symbols', 'nope'])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        _, errors = await process.communicate()
    assert process.returncode == 2
    assert errors.decode().splitlines() == [
        (
            "Error: symbol 'nope' is not a USD-M contract; write it as BTCUSDT or BTC/USDT:USDT"
            " (COIN-M: BTCUSD_PERP or BTC/USD:BTC)"
        )
    ]
