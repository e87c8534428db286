"""What an order says of itself is not what it does: the gate takes nothing for harmless that may open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ccxt
import pytest

from lockguard import LeaseLost, LeaseNotHeld, ResourceBusy
from lockguard.sync import LockGuard
from lockguard_ccxt import gate_orders

SWAP, SPOT = "BTC/USDT:USDT", "BTC/USDT"
Call = Callable[[Any], Any]


class Recorder:
    """A server that answers ``{}`` to everything, and the requests that it got."""

    def __init__(self) -> None:
        self.received: list[str] = []
        received = self.received

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                received.append(f"{self.command} {self.path} {body.decode()}")
                self.send_response(200)
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            do_GET = do_PUT = do_DELETE = do_POST  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.close()


def _moved(urls: Any, to: str) -> Any:
    if isinstance(urls, dict):
        return {name: _moved(url, to) for name, url in urls.items()}
    return to + "/" + urls.partition("://")[2]


def client_of(exchange_id: str, url: str) -> Any:
    keys = {"apiKey": "k", "secret": "c2VjcmV0", "password": "p", "walletAddress": "0x" + "1" * 40}
    client = getattr(ccxt, exchange_id)({**keys, "privateKey": "0x" + "2" * 64, "enableRateLimit": False})
    client.urls["api"] = _moved(client.urls["api"], url)
    known = {
        "id": "BTCUSDT",
        "base": "BTC",
        "quote": "USDT",
        "baseId": "0" if exchange_id == "hyperliquid" else "BTC",
        "quoteId": "USDT",
        "precision": {"amount": 0.001, "price": 0.01},
        "limits": {name: {"min": None, "max": None} for name in ("leverage", "amount", "price", "cost")},
        "info": {"orderTypes": ["STOP_MARKET"]},
    }
    swap = {"type": "swap", "swap": True, "spot": False, "contract": True, "linear": True, "inverse": False}
    spot = {"type": "spot", "swap": False, "spot": True, "contract": False}
    client.set_markets(
        [
            {**known, **swap, "symbol": SWAP, "settle": "USDT", "settleId": "USDT", "contractSize": 1.0},
            {**known, **spot, "symbol": SPOT},
        ]
    )
    return client


def order(symbol: str, side: str, **params: Any) -> Call:
    return lambda client: client.create_order(symbol, "limit", side, 1, 30000, params)


CLAIMS: dict[str, tuple[str, Call]] = {
    "another exchange's words": ("okx", order(SWAP, "buy", closePosition=True)),
    "words that ccxt drops": ("hyperliquid", order(SWAP, "buy", closePosition=True)),
    "a text for a truth": ("hyperliquid", order(SWAP, "buy", reduceOnly="true")),
    "a number for a truth": ("bitget", order(SWAP, "buy", reduceOnly=1)),
    "contradicted by the exchange's own": ("gate", order(SWAP, "buy", reduceOnly=True, reduce_only=False)),
    "opening in hedge mode": ("okx", order(SWAP, "buy", reduceOnly=True, hedged=True, posSide="long")),
    "on the spot market": ("gate", order(SPOT, "buy", reduceOnly=True)),
    "an id of the spot market": ("bybit", order(SPOT, "buy", reduceOnly=True)),
    "a loan for a sale, by leverage": ("kraken", order(SPOT, "sell", leverage=2)),
    "a loan for a sale, by its flag": ("bybit", order(SPOT, "sell", isLeverage=1)),
    "a loan for a sale, by its mode": ("okx", order(SPOT, "sell", tdMode="cross")),
    "an edit": (
        "bybit",
        lambda c: c.edit_order("7", SWAP, "limit", "buy", 9, 30000, {"reduceOnly": True}),
    ),
    "a generated no": (
        "bitget",
        lambda c: c.privateMixPostV2MixOrderPlaceOrder({"symbol": "BTCUSDT", "reduceOnly": "NO"}),
    ),
    "a generated cancel that replaces": (
        "binanceusdm",
        lambda c: c.privatePostOrderCancelReplace({"symbol": "BTCUSDT", "side": "BUY"}),
    ),
    "a generated call to the one path of all orders": (
        "hyperliquid",
        lambda c: c.privatePostExchange({"action": {"type": "order"}}),
    ),
    "a generated call that buys": (
        "bitstamp",
        lambda c: c.privatePostBuyPair({"pair": "BTCUSDT", "amount": 1}),
    ),
    "a generated call that closes": (
        "okx",
        lambda c: c.privatePostTradeClosePosition({"instId": "BTCUSDT"}),
    ),
    "a generated call that buys on credit": (
        "okx",
        lambda c: c.request("marginBuy", "private", "POST", {}),
    ),
    "a request past all calls": (
        "okx",
        lambda c: c.fetch(c.urls["api"]["rest"] + "/api/v5/fiat", "POST", {}, "{}"),
    ),
    "a generated batch": (
        "binanceusdm",
        lambda c: c.fapiPrivatePostBatchOrders({"reduceOnly": "true", "batchOrders": '[{"side":"BUY"}]'}),
    ),
}


@pytest.mark.parametrize(("exchange_id", "call"), CLAIMS.values(), ids=CLAIMS)
def test_an_order_that_only_claims_to_open_nothing_needs_a_lease(
    recorder: Recorder, exchange_id: str, call: Call
) -> None:
    client = client_of(exchange_id, recorder.url)
    gate_orders(client)
    with pytest.raises(ccxt.ExchangeError, match="not sent") as caught:
        call(client)
    assert isinstance(caught.value.__cause__, LeaseNotHeld)
    assert recorder.received == []


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {"defaultMarginMode": "cross"},
    "general": {"marginMode": "isolated"},
    "of orders": {"createOrder": {"marginMode": "isolated"}},
    "type": {"defaultType": "margin"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_sale_on_credit_by_an_option_needs_a_lease(recorder: Recorder, options: dict[str, Any]) -> None:
    client = client_of("gate", recorder.url)
    client.options.update(options)
    gate_orders(client)
    with pytest.raises(ccxt.ExchangeError, match="not sent"):
        client.create_order(SPOT, "limit", "sell", 1, 30000)
    assert recorder.received == []


TRUE: dict[str, tuple[str, Call]] = {
    "okx": ("okx", order(SWAP, "sell", reduceOnly=True)),
    "hyperliquid": ("hyperliquid", order(SWAP, "sell", reduceOnly=True)),
    "bitget": ("bitget", order(SWAP, "sell", reduceOnly=True)),
    "gate": ("gate", order(SWAP, "sell", reduceOnly=True)),
    "hedge mode": ("okx", order(SWAP, "sell", reduceOnly=True, hedged=True)),
    "whole position": (
        "binanceusdm",
        lambda c: c.create_order(
            SWAP, "STOP_MARKET", "sell", 1, None, {"closePosition": True, "stopPrice": 29000}
        ),
    ),
    "a sale of coins": ("kraken", order(SPOT, "sell")),
    "a close": ("okx", lambda c: c.close_position(SWAP, "long")),
}


@pytest.mark.parametrize(("exchange_id", "call"), TRUE.values(), ids=TRUE)
def test_an_order_that_says_so_in_ccxts_words_is_sent_without_a_lease(
    recorder: Recorder, exchange_id: str, call: Call
) -> None:
    client = client_of(exchange_id, recorder.url)
    gate_orders(client)
    with suppress(ccxt.ExchangeError, TypeError):  # ccxt makes nothing of "{}"
        call(client)
    assert any(request.startswith("POST") for request in recorder.received)


def test_an_order_for_another_market_by_its_parameters_needs_that_markets_lease(
    recorder: Recorder, redis_url: str
) -> None:
    client = client_of("binanceusdm", recorder.url)
    with LockGuard.from_url(redis_url) as guard:
        gate_orders(client, guard)
        with guard.hold("binance:BTCUSDT"), pytest.raises(ccxt.ExchangeError, match="not sent"):
            client.create_order(SWAP, "market", "buy", 1, None, {"symbol": "APTUSDT"})
    assert recorder.received == []


CLOSING: dict[str, tuple[str, Call]] = {
    "one": ("okx", lambda c: c.close_position(SWAP, "long")),
    "all": ("bitget", lambda c: c.close_all_positions()),
}


@pytest.mark.parametrize(("exchange_id", "call"), CLOSING.values(), ids=CLOSING)
def test_a_position_that_somebody_else_may_have_opened_is_not_closed(
    recorder: Recorder, redis_url: str, exchange_id: str, call: Call
) -> None:
    client = client_of(exchange_id, recorder.url)
    with LockGuard.from_url(redis_url) as guard, LockGuard.from_url(redis_url) as other:
        resource = gate_orders(client, guard).resource(SWAP)
        with ThreadPoolExecutor(1) as elsewhere:
            held = elsewhere.submit(other.acquire, resource).result()
        with pytest.raises(ccxt.ExchangeError, match="not sent") as caught:
            call(client)
        held.release()
    assert isinstance(caught.value.__cause__, (ResourceBusy, LeaseNotHeld))
    assert recorder.received == []


UNNAMED: dict[str, Call] = {
    "several cancels": lambda c: c.cancel_orders_for_symbols([{"symbol": SWAP, "id": "7"}]),
    "a cancel of all, later": lambda c: c.cancel_all_orders_after(1000),
    "mode": lambda c: c.set_position_mode(hedged=True),
}


@pytest.mark.parametrize("call", UNNAMED.values(), ids=UNNAMED)
def test_a_change_that_names_no_market_is_refused_after_a_lease_was_lost(
    recorder: Recorder, redis_url: str, call: Call
) -> None:
    client = client_of("okx", recorder.url)
    with LockGuard.from_url(redis_url) as guard:
        held = guard.acquire(gate_orders(client, guard).resource(SWAP))
        guard.break_(held.resource, reason="for the test")
        with pytest.raises(LeaseLost):
            held.confirm_now()
        with pytest.raises(ccxt.ExchangeError, match="not sent"):
            call(client)
        with pytest.raises(LeaseLost):
            held.release()
    assert recorder.received == []


def test_a_lease_that_was_given_back_keeps_no_order_from_leaving_that_needs_none(
    recorder: Recorder, redis_url: str
) -> None:
    """A bot that keeps a collection of its leases may not have taken it out of there yet."""
    client = client_of("okx", recorder.url)
    kept = []
    with LockGuard.from_url(redis_url) as guard:
        gate = gate_orders(client, leases=lambda: tuple(kept))
        with guard.hold(gate.resource(SWAP)) as lease:
            kept.append(lease)
        with pytest.raises(ccxt.ExchangeError, match="not sent"):
            order(SWAP, "buy")(client)
        assert recorder.received == []
        with suppress(ccxt.ExchangeError, TypeError):  # ccxt makes nothing of "{}"
            order(SWAP, "sell", reduceOnly=True)(client)
    assert any(request.startswith("POST") for request in recorder.received)


HARMLESS: dict[str, tuple[str, Call]] = {
    "the leverage": (
        "binanceusdm",
        lambda c: c.fapiPrivatePostLeverage({"symbol": "BTCUSDT", "leverage": 3}),
    ),
    "the position's mode": (
        "binanceusdm",
        lambda c: c.fapiPrivatePostPositionSideDual({"dualSidePosition": "true"}),
    ),
    "a listen key": ("binanceusdm", lambda c: c.fapiPrivatePostListenKey()),
    "a cancel": ("okx", lambda c: c.privatePostTradeCancelOrder({"instId": "BTC-USDT-SWAP", "ordId": "7"})),
    "a stop of the whole position": (
        "bybit",
        lambda c: c.privatePostV5PositionTradingStop({"symbol": "BTCUSDT", "stopLoss": "1"}),
    ),
    "a read by POST": ("kraken", lambda c: c.privatePostOpenPositions()),
    "a public read by POST": ("hyperliquid", lambda c: c.publicPostInfo({"type": "meta"})),
}


@pytest.mark.parametrize(("exchange_id", "call"), HARMLESS.values(), ids=HARMLESS)
def test_a_generated_change_that_places_no_order_needs_no_lease(
    recorder: Recorder, exchange_id: str, call: Call
) -> None:
    client = client_of(exchange_id, recorder.url)
    gate_orders(client)
    with suppress(ccxt.ExchangeError):
        call(client)
    assert any(request.startswith("POST") for request in recorder.received)


READS: dict[str, tuple[str, Call]] = {
    "kraken": ("kraken", lambda c: c.fetch_open_orders(SPOT)),
    "hyperliquid": ("hyperliquid", lambda c: c.fetch_open_orders(SWAP)),
}


@pytest.mark.parametrize(("exchange_id", "call"), READS.values(), ids=READS)
def test_a_read_by_post_is_no_order(recorder: Recorder, exchange_id: str, call: Call) -> None:
    client = client_of(exchange_id, recorder.url)
    gate_orders(client)
    with suppress(ccxt.ExchangeError):
        call(client)
    assert any(request.startswith("POST") for request in recorder.received)
