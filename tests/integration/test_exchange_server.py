"""The local exchange answers the original ccxt as Binance does."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import ccxt.async_support as ccxt
import pytest
from ccxt.base.decimal_to_precision import TICK_SIZE

from lockguard.errors import ConfigurationError
from lockguard_ccxt.testing import (
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
    async with LocalExchange(symbols=[BTC, "BTC/USDT:USDT-270326"]) as exchange, connect(exchange.url) as client:
        await client.create_order("BTC/USDT:USDT-270326", "market", "buy", "0.01")
        assert [p["symbol"] for p in await client.fetch_positions()] == ["BTC/USDT:USDT-270326"]
        assert exchange.record().position(BTC) == 0


async def test_unknown_symbols_get_usual_steps() -> None:
    names = [f"COIN{number}/USDT:USDT" for number in range(40)]
    async with LocalExchange(symbols=names) as exchange, connect(exchange.url) as client:
        await client.create_order("COIN39/USDT:USDT", "market", "buy", "1.5")
        assert len(exchange.record().entries("COIN39USDT")) == 1
