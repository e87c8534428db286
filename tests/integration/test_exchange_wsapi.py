"""The local exchange's websocket API, asked by a client that shares no code with its server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed

from lockguard_lab.exchange import (
    LOCAL_API_KEY,
    LOCAL_SECRET,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
)

ORDER = {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": "10"}


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=["APTUSDT", "BTCUSD_PERP"]) as server:
        yield server


def signed(params: dict[str, Any], secret: str = LOCAL_SECRET) -> dict[str, Any]:
    """As Binance documents it: the parameters in the order of their names."""
    known = {**params, "apiKey": LOCAL_API_KEY, "timestamp": int(time.time() * 1000)}
    payload = "&".join(f"{name}={known[name]}" for name in sorted(known))
    return {**known, "signature": hmac.new(secret.encode(), payload.encode(), hashlib.sha256).hexdigest()}


def api(exchange: LocalExchange, name: str = "fapi") -> Any:
    return dial(f"{exchange.url.replace('http', 'ws', 1)}/ws-{name}/v1")


async def answer(stream: Any, message: Any) -> Any:
    await stream.send(message if isinstance(message, str) else json.dumps(message))
    async with asyncio.timeout(20):
        return json.loads(await stream.recv())


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", -1100),
        ("[" * 100_000, -1100),
        ({"id": 1, "method": "order.place", "params": []}, -1100),
        ({"id": 1, "method": "session.logon", "params": {}}, -1100),
        ({"id": 1, "method": "order.place", "params": ORDER}, -2014),
        ({"id": 1, "method": "order.place", "params": {**ORDER, "apiKey": "other"}}, -2015),
        (lambda: {"id": 1, "method": "order.place", "params": signed(ORDER, "wrong")}, -1022),
        (lambda: {"id": 1, "method": "order.place", "params": signed({**ORDER, "symbol": "NONE"})}, -1121),
    ],
)
async def test_what_is_refused_over_http_is_refused_here(
    exchange: LocalExchange, message: Any, code: int
) -> None:
    async with api(exchange) as stream:
        said = await answer(stream, message() if callable(message) else message)  # signed now, not earlier
    assert said["status"] >= 400
    assert said["error"]["code"] == code
    assert exchange.record().orders == ()


async def test_the_requests_of_a_connection_do_not_wait_for_each_other(exchange: LocalExchange) -> None:
    exchange.set_latency(timedelta(milliseconds=500), Operation.CREATE_ORDER)
    async with api(exchange) as stream, asyncio.timeout(20):
        placing = {"method": "order.place", "params": signed(ORDER)}
        await stream.send(json.dumps({"id": "slow", **placing}))
        quick = await answer(
            stream, {"id": "quick", "method": "ticker.price", "params": {"symbol": "APTUSDT"}}
        )
        assert (quick["id"], quick["status"], quick["result"]["price"]) == ("quick", 200, "8.5000")
        slow = json.loads(await stream.recv())
    assert (slow["id"], slow["result"]["symbol"]) == ("slow", "APTUSDT")


async def test_an_order_whose_sender_hangs_up_is_executed(exchange: LocalExchange) -> None:
    exchange.set_latency(timedelta(milliseconds=300), Operation.CREATE_ORDER)
    async with api(exchange) as stream:
        await stream.send(json.dumps({"id": 1, "method": "order.place", "params": signed(ORDER)}))
        await answer(stream, {"id": 2, "method": "depth", "params": {"symbol": "APTUSDT"}})
    async with asyncio.timeout(20):
        while not exchange.record().fills:
            await asyncio.sleep(0.01)


async def test_a_fault_that_loses_an_answer_cuts_the_connection(exchange: LocalExchange) -> None:
    exchange.inject(Fault(FaultKind.TRUNCATED, Operation.CREATE_ORDER, Execution.FIRST))
    async with api(exchange) as stream:
        with pytest.raises(ConnectionClosed):
            await answer(stream, {"id": 1, "method": "order.place", "params": signed(ORDER)})
    assert len(exchange.record().fills) == 1


async def test_coin_margined_contracts_have_an_api_of_their_own(exchange: LocalExchange) -> None:
    order = {**ORDER, "symbol": "BTCUSD_PERP"}
    async with api(exchange) as usd, api(exchange, "dapi") as coin:
        refused = await answer(usd, {"id": 1, "method": "order.place", "params": signed(order)})
        placed = await answer(coin, {"id": 1, "method": "order.place", "params": signed(order)})
        held = await answer(coin, {"id": 2, "method": "account.position", "params": signed({})})
    assert refused["error"]["code"] == -1121
    assert placed["status"] == 200
    assert [row["positionAmt"] for row in held["result"] if float(row["positionAmt"])] == ["10"]
