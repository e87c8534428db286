"""Other people's clients run on the local exchange, unmodified but for the address.

Each starts, enters, gets its stop, and leaves. One that is not installed is skipped. freqtrade brings some
hundred packages of its own, so that it is taken from another environment, if there is one:
``LOCKGUARD_FREQTRADE_PYTHON`` names its interpreter, or there is a ``freqtrade`` on the path.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import ccxt.async_support as ccxt
import pytest

from lockguard.errors import ConfigurationError
from lockguard_lab.child_process import signal_child
from lockguard_lab.exchange import AlgoStatus, LocalExchange, ccxt_settings, point_at

APT = "APT/USDT:USDT"
ETH = "ETH/USDT:USDT"


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTCUSDT"]) as server:
        yield server


def refused(call: Callable[[], Any], *, attribute: str) -> int:
    """The code with which a synchronous client's call is refused, as the client tells it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the client's own class
        call()
    return int(getattr(caught.value, attribute))


# --- python-binance ---


def of_python_binance(url: str, exchange: LocalExchange) -> None:
    module = pytest.importorskip("binance.client", reason="python-binance is not installed")

    class Client(module.Client):  # type: ignore[misc,name-defined]
        API_URL = f"{url}/api"
        MARGIN_API_URL = f"{url}/sapi"
        FUTURES_URL = f"{url}/fapi"
        FUTURES_COIN_URL = f"{url}/dapi"

    loop = asyncio.new_event_loop()  # It takes the thread's for its streams, and leaves it open.
    asyncio.set_event_loop(loop)
    client = Client("local-key", "local-secret")
    try:
        assert {row["symbol"] for row in client.futures_exchange_info()["symbols"]} == {"APTUSDT", "BTCUSDT"}
        assert client.futures_get_position_mode() == {"dualSidePosition": False}
        client.futures_change_leverage(symbol="APTUSDT", leverage=5)
        order = {"symbol": "APTUSDT", "quantity": 10}
        entry = client.futures_create_order(
            **order, side="BUY", type="MARKET", newOrderRespType="RESULT", newClientOrderId="mine"
        )
        assert (entry["status"], entry["executedQty"]) == ("FILLED", "10.0")
        assert (
            client.futures_get_order(symbol="APTUSDT", origClientOrderId="mine")["avgPrice"] == "8.50000000"
        )
        stop = {**order, "side": "SELL", "type": "STOP_MARKET", "reduceOnly": "true"}
        assert refused(lambda: client.futures_create_order(**stop, stopPrice="9"), attribute="code") == -2021
        client.futures_create_order(**stop, stopPrice="8")
        (position,) = client.futures_position_information(symbol="APTUSDT")
        assert (position["positionAmt"], len(exchange.record().open_stops(APT))) == ("10.0", 1)
        client.futures_create_order(**order, side="SELL", type="MARKET", reduceOnly="true")
        client.futures_cancel_all_algo_open_orders(symbol="APTUSDT")
    finally:
        client.close_connection()
        loop.close()


async def test_python_binance_enters_gets_its_stop_and_leaves(exchange: LocalExchange) -> None:
    await asyncio.to_thread(of_python_binance, exchange.url, exchange)
    record = exchange.record()
    assert len(record.entries(APT)) == 1
    assert record.positions == ()
    assert [stop.status for stop in record.algo_orders] == [AlgoStatus.CANCELED]


async def test_python_binance_orders_and_hears_of_its_fill_over_websockets(
    exchange: LocalExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip("binance", reason="python-binance is not installed")
    reader = import_module("binance.ws.reconnecting_websocket").ReconnectingWebsocket
    monkeypatch.setattr(reader, "TIMEOUT", 0.2)  # seconds for which it waits before it may be closed
    streams = exchange.url.replace("http", "ws", 1)

    class Client(module.AsyncClient):  # type: ignore[misc,name-defined]
        API_URL = f"{exchange.url}/api"
        FUTURES_URL = f"{exchange.url}/fapi"
        WS_FUTURES_URL = f"{streams}/ws-fapi/v1"

    class Sockets(module.BinanceSocketManager):  # type: ignore[misc,name-defined]
        FSTREAM_URL = f"{streams}/"

    client = await Client.create("local-key", "local-secret")
    sockets = Sockets(client)
    try:
        async with asyncio.timeout(30), sockets.futures_user_socket() as own:
            async with sockets.symbol_mark_price_socket("APTUSDT") as marks:
                assert (await marks.recv())["data"]["p"] == "8.50000000"
            while "main" not in {listener.account for listener in exchange.listeners()}:
                await asyncio.sleep(0.01)
            order = {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": 10}
            await client.ws_futures_create_order(**order)
            told = [(await own.recv())["e"] for _ in range(4)]
        assert told == ["ORDER_TRADE_UPDATE", "ACCOUNT_UPDATE", "ORDER_TRADE_UPDATE", "TRADE_LITE"]
        assert exchange.record().position(APT) == 10
    finally:
        await client.ws_future.close()  # which the next line forgets
        await client.close_connection()


# --- binance-futures-connector ---


def of_connector(url: str, exchange: LocalExchange) -> None:
    module = pytest.importorskip("binance.um_futures", reason="binance-futures-connector is not installed")
    client = module.UMFutures(key="local-key", secret="local-secret", base_url=url)
    try:
        assert {row["symbol"] for row in client.exchange_info()["symbols"]} == {"APTUSDT", "BTCUSDT"}
        assert client.get_position_mode() == {"dualSidePosition": False}
        client.change_leverage(symbol="APTUSDT", leverage=5)
        order = {"symbol": "APTUSDT", "quantity": "10"}
        entry = client.new_order(**order, side="BUY", type="MARKET", newOrderRespType="RESULT")
        assert (entry["status"], entry["executedQty"]) == ("FILLED", "10.0")
        # It is older than the algo orders; Binance refuses its own call too, since December 2025.
        old = {**order, "side": "SELL", "type": "STOP_MARKET", "stopPrice": "8"}
        assert refused(lambda: client.new_order(**old), attribute="error_code") == -4120
        stop = {
            **order,
            "side": "SELL",
            "type": "STOP_MARKET",
            "reduceOnly": "true",
            "algoType": "CONDITIONAL",
        }

        def place(trigger: str) -> Any:
            return client.sign_request("POST", "/fapi/v1/algoOrder", {**stop, "triggerPrice": trigger})

        assert refused(lambda: place("9"), attribute="error_code") == -2021
        place("8")
        held = [row for row in client.get_position_risk() if Decimal(row["positionAmt"])]
        assert [row["symbol"] for row in held] == ["APTUSDT"]
        assert len(client.sign_request("GET", "/fapi/v1/openAlgoOrders")) == 1
        batch = [{**order, "side": "BUY", "type": "LIMIT", "price": "8.1", "timeInForce": "GTC"}]
        assert [row["status"] for row in client.new_batch_order(batch)] == ["NEW"]
        client.cancel_open_orders(symbol="APTUSDT")
        assert len(client.get_income_history()) == 1
    finally:
        client.session.close()


async def test_the_futures_connector_enters_gets_its_stop_and_leaves_by_it(exchange: LocalExchange) -> None:
    await asyncio.to_thread(of_connector, exchange.url, exchange)
    exchange.set_price(APT, Decimal("7.9"))
    record = exchange.record()
    assert len(record.entries(APT)) == 1
    assert record.positions == ()
    assert [order.reduced for order in record.reductions(APT)] == [10]


def of_the_connectors_streams(url: str) -> list[str]:
    """The events that it tells of an order, in their order."""
    module = pytest.importorskip("binance.um_futures", reason="binance-futures-connector is not installed")
    streams = pytest.importorskip("binance.websocket.um_futures.websocket_client")
    heard: queue.Queue[Any] = queue.Queue()

    def next_of(wanted: Callable[[Any], bool]) -> Any:
        while not wanted(message := heard.get(timeout=20)):
            pass
        return message

    trader = module.UMFutures(key="local-key", secret="local-secret", base_url=url)
    listener = streams.UMFuturesWebsocketClient(
        stream_url=url.replace("http", "ws", 1), on_message=lambda _, text: heard.put(json.loads(text))
    )
    try:
        listener.user_data(listen_key=trader.new_listen_key()["listenKey"], id=1)
        next_of(lambda message: message.get("id") == 1)
        listener.book_ticker(symbol="APTUSDT", id=2)
        assert next_of(lambda message: message.get("e") == "bookTicker")["b"] == "8.4999"
        trader.new_order(symbol="APTUSDT", quantity="10", side="BUY", type="MARKET")
        told = [
            next_of(lambda message: "o" in message or message.get("e") == "ACCOUNT_UPDATE") for _ in "123"
        ]
        return [message["o"]["x"] if "o" in message else message["e"] for message in told]
    finally:
        listener.stop()
        listener.socket_manager.ws.shutdown()  # it leaves its socket open
        trader.session.close()


async def test_the_futures_connector_hears_of_its_fill(exchange: LocalExchange) -> None:
    told = await asyncio.to_thread(of_the_connectors_streams, exchange.url)
    assert told == ["NEW", "ACCOUNT_UPDATE", "TRADE"]


# --- ccxt that is only configured ---


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of this machine's own, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("a certificate is made with openssl, which is not installed")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    what = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command = [openssl, "req", *what, "-keyout", str(files[1]), "-out", str(files[0])]
    subprocess.run(command, check=True, capture_output=True)
    return files


async def test_an_unpatched_ccxt_finds_its_errors_by_the_urls_name(certificate: tuple[Path, Path]) -> None:
    async with LocalExchange(symbols=[APT], tls=certificate) as exchange:
        settings = json.loads(json.dumps(ccxt_settings(exchange.url)))
        config = {"apiKey": "local-key", "secret": "local-secret", "enableRateLimit": False, **settings}
        factory: Any = ccxt.binanceusdm
        async with factory(config) as client:
            *rest, streams = (url for name, url in sorted(client.urls["api"].items()))
            assert all("@127.0.0.1:" in url for url in rest)
            assert all("//127.0.0.1:" in url for url in (*streams.pop("ws-api").values(), *streams.values()))
            await client.create_order(APT, "market", "buy", "10")
            params = {"stopLossPrice": "8.6", "reduceOnly": True}
            with pytest.raises(ccxt.OrderImmediatelyFillable, match="-2021"):
                await client.create_order(APT, "market", "sell", "10", None, params)


def addresses(urls: dict[str, Any]) -> list[str]:
    nested = (addresses(url) if isinstance(url, dict) else [url] for url in urls.values())
    return [url for found in nested for url in found]


@pytest.mark.parametrize("module", ["ccxt", "ccxt.async_support", "ccxt.pro"])
@pytest.mark.parametrize("exchange_id", ["binance", "binanceusdm", "binancecoinm"])
def test_no_address_is_left_that_leads_to_binance(module: str, exchange_id: str) -> None:
    client = getattr(import_module(module), exchange_id)()
    point_at(client, "http://127.0.0.1:1")
    assert {url.partition("://")[0] for url in addresses(client.urls["api"])} <= {"http", "ws"}
    assert all("//127.0.0.1:1/" in url for url in addresses(client.urls["api"]))


async def test_a_ccxt_pro_that_is_only_configured_listens_here_too(certificate: tuple[Path, Path]) -> None:
    async with LocalExchange(symbols=[APT], tls=certificate) as exchange:
        config = {"apiKey": "local-key", "secret": "local-secret", "enableRateLimit": False}
        factory: Any = import_module("ccxt.pro").binanceusdm
        async with factory({**config, **ccxt_settings(exchange.url)}) as client, asyncio.timeout(20):
            assert all("127.0.0.1:" in url for url in addresses(client.urls["api"]))
            assert (await client.watch_mark_price(APT))["markPrice"] == 8.5
            watching = asyncio.create_task(client.watch_my_trades(APT))
            while "main" not in {listener.account for listener in exchange.listeners()}:
                await asyncio.sleep(0.01)
            await client.create_order_ws(APT, "market", "buy", 10)
            assert (await watching)[-1]["amount"] == 10


async def test_a_url_by_which_ccxt_finds_no_errors_is_refused(
    exchange: LocalExchange, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="a URL of HTTPS only"):
        ccxt_settings(exchange.url)
    for url in (
        "http://u:hunter2@h",
        "https://u:hunter2@[::1",
        "https://u:hunter2@h:port",
        "https://",
        "u:hunter2",
    ):
        with pytest.raises(ConfigurationError, match="a URL of HTTPS only") as refused:
            ccxt_settings(url)
        assert "hunter2" not in str(refused.value)
    with pytest.raises(ConfigurationError, match=r"nothing\.pem.* cannot be used: No such file"):
        LocalExchange(tls=(tmp_path / "nothing.pem", tmp_path / "nothing.pem"))


# --- freqtrade ---

STRATEGY = """
from freqtrade.strategy import IStrategy

class Always(IStrategy):
    INTERFACE_VERSION = 3
    timeframe = "1h"
    can_short = False
    minimal_roi = {"0": 0.02}
    stoploss = -0.10
    startup_candle_count = 0
    process_only_new_candles = False
    order_types = {"entry": "market", "exit": "market", "stoploss": "market", "stoploss_on_exchange": True,
                   "stoploss_on_exchange_interval": 5}

    def populate_indicators(self, dataframe, metadata):
        return dataframe

    def populate_entry_trend(self, dataframe, metadata):
        dataframe["enter_long"] = 1
        return dataframe

    def populate_exit_trend(self, dataframe, metadata):
        dataframe["exit_long"] = 0
        return dataframe

    def leverage(self, *args, **kwargs):
        return 1.0
"""


def freqtrade_config(url: str) -> dict[str, Any]:
    pricing = {"price_side": "other", "use_order_book": True, "order_book_top": 1}
    return {
        "max_open_trades": 2,
        "stake_currency": "USDT",
        "stake_amount": 200,
        "dry_run": False,
        "trading_mode": "futures",
        "margin_mode": "isolated",
        "entry_pricing": pricing,
        "exit_pricing": pricing,
        "exchange": {
            "name": "binance",
            "key": "local-key",
            "secret": "local-secret",
            "ccxt_config": {**ccxt_settings(url), "enableRateLimit": False},
            "pair_whitelist": [APT, ETH],
            "enable_ws": False,
        },
        "pairlists": [{"method": "StaticPairList"}],
        "bot_name": "on-the-local-exchange",
        "initial_state": "running",
        "internals": {"process_throttle_secs": 1, "heartbeat_interval": 0},
    }


def freqtrade_command() -> list[str]:
    python = os.environ.get("LOCKGUARD_FREQTRADE_PYTHON")
    if python:
        return [python, "-m", "freqtrade"]
    command = shutil.which("freqtrade")
    if command is None:
        pytest.skip("freqtrade is not installed; LOCKGUARD_FREQTRADE_PYTHON names an interpreter that has it")
    return [command]


async def test_freqtrade_enters_gets_its_stops_and_leaves(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    command = freqtrade_command()
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "always.py").write_text(STRATEGY, encoding="utf-8")
    log, database = tmp_path / "output.log", tmp_path / "trades.sqlite"
    async with LocalExchange(symbols=[APT, ETH, "BTCUSDT"], tls=certificate) as exchange:
        (tmp_path / "config.json").write_text(json.dumps(freqtrade_config(exchange.url)), encoding="utf-8")
        options = ["--config", "config.json", "--strategy", "Always", "--strategy-path", "strategies"]
        options += ["--userdir", str(tmp_path), "--db-url", f"sqlite:///{database}"]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, "trade", *options, cwd=tmp_path, stdout=output, stderr=output
            )

        async def until(done: Callable[[], bool], what: str) -> None:
            try:
                async with asyncio.timeout(90):
                    while not done():
                        assert process.returncode is None, f"freqtrade ended: {log.read_text()[-3000:]}"
                        await asyncio.sleep(0.1)
            except TimeoutError:
                pytest.fail(f"freqtrade did not {what}: {log.read_text()[-3000:]}")

        def guarded(symbol: str) -> bool:
            record = exchange.record()
            return bool(record.position(symbol)) and len(record.open_stops(symbol)) == 1

        def closed() -> int:
            with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as trades:
                return int(trades.execute("select count(*) from trades where is_open = 0").fetchone()[0])

        try:
            await until(lambda: guarded(APT) and guarded(ETH), "enter both and place their stops")
            exchange.set_price(APT, exchange.price(APT) * Decimal("1.04"))
            await until(lambda: not exchange.record().position(APT), "take its profit")
            exchange.set_price(ETH, exchange.price(ETH) * Decimal("0.89"))
            assert exchange.record().position(ETH) == 0, "its stop has fired"
            await until(lambda: closed() == 2, "notice that both are closed")
            await until(lambda: not exchange.record().orphan_stops(), "cancel the stop that is left over")
        finally:
            if process.returncode is None:
                signal_child(process, signal.SIGINT)
                try:
                    async with asyncio.timeout(30):
                        await process.wait()
                except TimeoutError:
                    signal_child(process, signal.SIGKILL)
                    await process.wait()
        record = exchange.record()
        assert [len(record.entries(symbol)) for symbol in (APT, ETH)] == [1, 1]
        assert len(record.reductions()) == 2
