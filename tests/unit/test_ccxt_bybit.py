"""Bybit: the original ccxt's requests, answered from a small table instead of the network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ccxt.async_support as ccxt
import pytest

from lockguard.clock import SYSTEM_CLOCK
from lockguard.context import Entry, pop_entry, push_entry
from lockguard.lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard_ccxt import Executed, GuardedExchange, OrderState, Patience, Refusal, Refused, Step, Unknown

APT = "APT/USDT:USDT"

CONTRACT = {
    "symbol": "APTUSDT",
    "contractType": "LinearPerpetual",
    "status": "Trading",
    "baseCoin": "APT",
    "quoteCoin": "USDT",
    "settleCoin": "USDT",
    "launchTime": "1585526400000",
    "deliveryTime": "0",
    "priceScale": "4",
    "leverageFilter": {"minLeverage": "1", "maxLeverage": "50.00", "leverageStep": "0.01"},
    "priceFilter": {"minPrice": "0.0005", "maxPrice": "1999.99", "tickSize": "0.0005"},
    "lotSizeFilter": {
        "maxOrderQty": "100000",
        "minOrderQty": "0.01",
        "qtyStep": "0.01",
        "minNotionalValue": "5",
    },
}


class Bybit:
    """Takes orders by ``orderLinkId`` and refuses each id for ever after its first use."""

    def __init__(self, exchange: Any) -> None:
        self.exchange = exchange
        self.orders: dict[str, dict[str, str]] = {}
        self.sent: list[dict[str, Any]] = []
        self.lose_answers = 0
        self.say: dict[str, Any] | None = None
        exchange.fetch = self.fetch

    async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        split = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        answer = self.answer(split.path, query, json.loads(body) if body else {})
        text = json.dumps(answer)
        self.exchange.handle_errors(200, "OK", url, method, {}, text, answer, headers, body)
        if method == "POST" and self.lose_answers:
            self.lose_answers -= 1
            raise ccxt.RequestTimeout("bybit POST")
        return answer

    def answer(self, path: str, query: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        match path:
            case "/v5/market/instruments-info":
                wanted = query.get("category") == "linear" and "status" not in query
                return ok({"list": [CONTRACT] if wanted else [], "nextPageCursor": None})
            case "/v5/order/create":
                self.sent.append(body)
                return self.create(body)
            case "/v5/order/realtime" | "/v5/order/history":
                rows = [row for name, row in self.orders.items() if query.get("orderLinkId") in {None, name}]
                stops = query.get("orderFilter") == "StopOrder"
                closed = path.endswith("history")
                return ok(
                    {
                        "list": [
                            row
                            for row in rows
                            if closed == (row["orderStatus"] == "Filled")
                            and (closed or stops == bool(row["triggerPrice"]))
                        ]
                    }
                )
            case _:
                raise AssertionError(path)

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.say is not None:
            return self.say
        name = body["orderLinkId"]
        if name in self.orders:
            return {"retCode": 110072, "retMsg": "OrderLinkedID is duplicate", "result": {}}
        trigger = body.get("triggerPrice", "")
        self.orders[name] = {
            "orderId": str(len(self.orders) + 1),
            "orderLinkId": name,
            "symbol": "APTUSDT",
            "side": body["side"],
            "orderType": "Market",
            "orderStatus": "Untriggered" if trigger else "Filled",
            "qty": body["qty"],
            "cumExecQty": "0" if trigger else body["qty"],
            "cumExecValue": "0" if trigger else "85",
            "avgPrice": "" if trigger else "8.5",
            "triggerPrice": trigger,
            "reduceOnly": body.get("reduceOnly", False),
            "createdTime": "1700000000000",
            "updatedTime": "1700000000000",
        }
        return ok({"orderId": self.orders[name]["orderId"], "orderLinkId": name})


def ok(result: dict[str, Any]) -> dict[str, Any]:
    return {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": 1}


@pytest.fixture
async def setting() -> AsyncIterator[tuple[Bybit, GuardedExchange]]:
    options = {
        "enableUnifiedMargin": False,
        "enableUnifiedAccount": True,
        "fetchMarkets": {"types": ["linear"]},
        "fetchCurrencies": False,
    }
    exchange = ccxt.bybit({"apiKey": "k", "secret": "s", "enableRateLimit": False, "options": options})
    exchange.has["fetchCurrencies"] = False
    server = Bybit(exchange)
    guarded = GuardedExchange(
        exchange, patience=Patience(search=timedelta(milliseconds=100), poll=timedelta(milliseconds=10))
    )
    await guarded.load()
    grant = Grant(parse_resource("bybit:APTUSDT"), new_grant_id(), Token(1), "test", "", 30_000)
    task = asyncio.current_task()
    assert task is not None
    token = push_entry(Entry(Lease(grant, deadline=SYSTEM_CLOCK.now() + 30, clock=SYSTEM_CLOCK), task, None))
    try:
        yield server, guarded
    finally:
        pop_entry(token)
        await exchange.close()


async def test_an_entry_carries_its_stop_and_its_fill_is_looked_up(
    setting: tuple[Bybit, GuardedExchange],
) -> None:
    server, guarded = setting
    outcome = await guarded.place_entry(APT, "buy", Decimal("10.009"), intent=1, stop_price=Decimal("8.0003"))
    assert isinstance(outcome, Executed)
    assert (outcome.order.filled, outcome.order.average) == (Decimal("10.00"), Decimal("8.5"))
    (body,) = server.sent
    assert (body["qty"], body["stopLoss"]) == ("10", "8.0005")
    assert body["orderLinkId"] == guarded.client_id(APT, 1, Step.ENTRY)


async def test_an_entry_without_an_answer_is_found(setting: tuple[Bybit, GuardedExchange]) -> None:
    server, guarded = setting
    server.lose_answers = 1
    outcome = await guarded.place_entry(APT, "buy", Decimal(10), intent=1)
    assert isinstance(outcome, Executed)
    assert outcome.found
    assert len(server.sent) == 1


async def test_an_id_used_before_leads_to_its_order(setting: tuple[Bybit, GuardedExchange]) -> None:
    server, guarded = setting
    for _ in range(2):
        assert isinstance(await guarded.place_entry(APT, "buy", Decimal(10), intent=1), Executed)
    assert (len(server.sent), len(server.orders)) == (2, 1)


async def test_a_stop_is_conditional_and_reduces_only(setting: tuple[Bybit, GuardedExchange]) -> None:
    server, guarded = setting
    outcome = await guarded.place_stop(APT, "sell", Decimal(10), trigger=Decimal(8), intent=1)
    assert isinstance(outcome, Executed)
    (body,) = server.sent
    assert (body["triggerPrice"], body["triggerDirection"], body["reduceOnly"]) == ("8", 2, True)
    (order,) = await guarded.open_orders(APT)
    assert (order.state, order.trigger, order.reduce_only) == (OrderState.OPEN, Decimal(8), True)


async def test_refusals_carry_bybits_code(setting: tuple[Bybit, GuardedExchange]) -> None:
    server, guarded = setting
    server.say = {"retCode": 110017, "retMsg": "Reduce-only rule not satisfied", "result": {}}
    outcome = await guarded.close_position(APT, "sell", Decimal(10), intent=1)
    assert isinstance(outcome, Refused)
    assert (outcome.refusal, outcome.code) == (Refusal.REDUCE_ONLY, "110017")


async def test_an_entry_that_never_shows_stays_unknown(setting: tuple[Bybit, GuardedExchange]) -> None:
    server, guarded = setting
    server.say = {"retCode": 10016, "retMsg": "System error", "result": {}}
    outcome = await guarded.place_entry(APT, "buy", Decimal(10), intent=1)
    assert isinstance(outcome, Unknown)
    assert {body["orderLinkId"] for body in server.sent} == {guarded.client_id(APT, 1, Step.ENTRY)}
