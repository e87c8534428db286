"""The local exchange refuses what Binance refuses, in its words, and has the endpoints that bots use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import ccxt.async_support as ccxt
import pytest

from lockguard_lab.exchange import LocalExchange, connect

APT = "APT/USDT:USDT"


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTCUSDT"]) as server:
        yield server


@pytest.fixture
async def client(exchange: LocalExchange) -> AsyncIterator[Any]:
    async with connect(exchange.url) as ccxt_client:
        await ccxt_client.load_markets()
        yield ccxt_client


async def told(request: Any) -> dict[str, Any]:
    """What the exchange says when it refuses."""
    with pytest.raises(ccxt.BaseError) as caught:
        await request
    answer: dict[str, Any] = json.loads(str(caught.value).partition(" ")[2])
    return answer


LIMIT = {"symbol": "APTUSDT", "side": "BUY", "type": "LIMIT", "quantity": "10", "timeInForce": "GTC"}
MARKET = {"symbol": "APTUSDT", "side": "BUY", "type": "MARKET", "quantity": "10"}


@pytest.mark.parametrize(
    ("order", "code", "message"),
    [
        (MARKET | {"positionSide": "LONG"}, -4061, "Order's position side does not match user's setting."),
        (MARKET | {"positionSide": "SHORT"}, -4061, "Order's position side does not match user's setting."),
        (MARKET | {"positionSide": "UP"}, -4060, "Invalid position side."),
        (
            LIMIT | {"price": "8.6", "timeInForce": "GTX"},
            -5022,
            (
                "Due to the order could not be executed as maker, the Post Only order will be rejected."
                " The order will not be recorded in the order history"
            ),
        ),
        (LIMIT | {"price": "8.0", "timeInForce": "SOON"}, -1115, "Invalid timeInForce."),
        (
            LIMIT | {"price": "8.0", "timeInForce": ""},
            -1102,
            "Mandatory parameter 'timeinforce' was not sent, was empty/null, or malformed.",
        ),
        (MARKET | {"timeInForce": "GTC"}, -1106, "Parameter 'timeinforce' sent when not required."),
        (LIMIT | {"price": "8.9251"}, -4016, "Limit price can't be higher than 8.9250."),
        (LIMIT | {"side": "SELL", "price": "8.0749"}, -4024, "Limit price can't be lower than 8.0750."),
    ],
)
async def test_what_binance_refuses_is_refused_in_its_words(
    client: Any, exchange: LocalExchange, order: dict[str, str], code: int, message: str
) -> None:
    assert await told(client.fapiPrivatePostOrder(order)) == {"code": code, "msg": message}
    assert await told(client.fapiPrivatePostOrderTest(order)) == {"code": code, "msg": message}
    assert exchange.record().orders == ()


async def test_a_limit_at_the_edge_of_its_band_and_a_post_only_order_that_rests_are_taken(
    client: Any, exchange: LocalExchange
) -> None:
    for order in (
        LIMIT | {"price": "8.9250"},
        LIMIT | {"side": "SELL", "price": "8.0750"},
        LIMIT | {"price": "8.4", "timeInForce": "GTX"},
        LIMIT | {"price": "2.0"},  # A buy far below the price is no mistake, and Binance takes it.
        LIMIT | {"price": "8.0", "timeInForce": "GTD", "goodTillDate": "9999999999000"},
    ):
        await client.fapiPrivatePostOrder(order)
    assert len(exchange.record().orders) == 5


STOP = {"symbol": "APTUSDT", "side": "SELL", "type": "STOP_MARKET", "algoType": "CONDITIONAL"}


async def test_one_stop_and_one_take_profit_may_close_a_position(client: Any) -> None:
    await client.create_order(APT, "market", "buy", "10")
    closing = STOP | {"closePosition": "true"}
    await client.fapiPrivatePostAlgoOrder(closing | {"triggerPrice": "8.0"})
    await client.fapiPrivatePostAlgoOrder(closing | {"type": "TAKE_PROFIT_MARKET", "triggerPrice": "9"})
    assert await told(client.fapiPrivatePostAlgoOrder(closing | {"triggerPrice": "7.9"})) == {
        "code": -4130,
        "msg": "An open stop or take profit order with GTE and closePosition in the direction is existing.",
    }
    await client.fapiPrivatePostAlgoOrder(closing | {"side": "BUY", "triggerPrice": "9"})


async def test_no_more_algo_orders_wait_than_the_contract_lists(client: Any, exchange: LocalExchange) -> None:
    filters = client.market(APT)["info"]["filters"]
    (most,) = [int(row["limit"]) for row in filters if row["filterType"] == "MAX_NUM_ALGO_ORDERS"]
    await client.create_order(APT, "market", "buy", "10")
    stop = STOP | {"quantity": "1", "reduceOnly": "true"}
    for number in range(most):
        await client.fapiPrivatePostAlgoOrder(stop | {"triggerPrice": f"8.0{number}"})
    refused = await told(client.fapiPrivatePostAlgoOrder(stop | {"triggerPrice": "7.9"}))
    assert refused == {"code": -4045, "msg": "Reach max stop order limit."}
    assert len(exchange.record().open_stops(APT)) == most


async def test_a_stop_for_one_side_is_refused_in_one_way_mode(client: Any) -> None:
    await client.create_order(APT, "market", "buy", "10")
    stop = STOP | {"quantity": "1", "triggerPrice": "8", "positionSide": "LONG"}
    assert (await told(client.fapiPrivatePostAlgoOrder(stop)))["code"] == -4061


async def test_the_price_bands_decimals_are_told_as_text(client: Any) -> None:
    (band,) = [f for f in client.market(APT)["info"]["filters"] if f["filterType"] == "PERCENT_PRICE"]
    assert band == {
        "filterType": "PERCENT_PRICE",
        "multiplierUp": "1.0500",
        "multiplierDown": "0.9500",
        "multiplierDecimal": "4",
    }


# --- endpoints ---


async def test_an_order_in_the_book_can_be_amended(client: Any, exchange: LocalExchange) -> None:
    order = await client.create_order(APT, "limit", "buy", "10", "8.0")
    await client.edit_order(order["id"], APT, "limit", "buy", "12", "7.9")
    found = await client.fetch_order(order["id"], APT)
    assert (found["amount"], found["price"], found["status"]) == (12.0, 7.9, "open")
    same = {"symbol": "APTUSDT", "side": "BUY", "quantity": "12", "price": "7.9", "orderId": order["id"]}
    assert (await told(client.fapiPrivatePutOrder(same)))["code"] == -5027
    await client.fapiPrivatePutOrder(same | {"price": "8.5"})
    assert exchange.record().position(APT) == 12
    assert (await told(client.fapiPrivatePutOrder(same)))["code"] == -2013


async def test_each_order_of_a_batch_stands_for_itself(client: Any, exchange: LocalExchange) -> None:
    orders = [
        {"symbol": APT, "type": "limit", "side": "buy", "amount": 10, "price": 8.0},
        {"symbol": APT, "type": "market", "side": "buy", "amount": 10},
    ]
    first, second = await client.create_orders(orders)
    assert (first["status"], second["status"]) == ("open", "closed")
    rows = [LIMIT | {"price": "7.5"}, LIMIT | {"price": "7.00001"}]
    taken, refused = await client.fapiPrivatePostBatchOrders({"batchOrders": rows})
    assert (taken["status"], refused["code"]) == ("NEW", -4014)
    kept = await client.create_order(APT, "limit", "buy", "10", "7.0")
    answers = await client.fapiPrivateDeleteBatchOrders(
        {"symbol": "APTUSDT", "orderidlist": [first["id"], str(taken["orderId"]), "1"]}
    )
    assert [row.get("status", row.get("code")) for row in answers] == ["CANCELED", "CANCELED", -2011]
    assert [order["id"] for order in await client.fetch_open_orders(APT)] == [kept["id"]]
    assert exchange.record().position(APT) == 10
    six = {"batchOrders": [LIMIT | {"price": "7.5"}] * 6}
    assert (await told(client.fapiPrivatePostBatchOrders(six)))["code"] == -4082


async def test_a_countdown_cancels_a_contracts_orders_unless_it_is_renewed(
    client: Any, exchange: LocalExchange
) -> None:
    await client.create_order(APT, "limit", "buy", "10", "8.0")
    await client.fapiPrivatePostCountdownCancelAll({"symbol": "APTUSDT", "countdownTime": "60000"})
    await client.fapiPrivatePostCountdownCancelAll({"symbol": "APTUSDT", "countdownTime": "0"})
    assert len(await client.fetch_open_orders(APT)) == 1
    await client.fapiPrivatePostCountdownCancelAll({"symbol": "APTUSDT", "countdownTime": "20"})
    async with asyncio.timeout(5):
        while await client.fetch_open_orders(APT):
            await asyncio.sleep(0.01)
    assert [order.status.value for order in exchange.record().orders] == ["CANCELED"]


async def test_margin_of_an_isolated_position_can_be_changed(client: Any) -> None:
    await client.set_margin_mode("isolated", APT)
    refused = await told(client.add_margin(APT, 5))
    assert (refused["code"], refused["msg"]) == (-4054, "Cannot add position margin: position is 0.")
    await client.create_order(APT, "market", "buy", "10")
    (before,) = await client.fetch_positions([APT])
    await client.add_margin(APT, 5)
    (after,) = await client.fetch_positions([APT])
    assert float(after["info"]["isolatedMargin"]) == float(before["info"]["isolatedMargin"]) + 5
    await client.reduce_margin(APT, 5)
    assert (await told(client.reduce_margin(APT, 1)))["code"] == -4051


async def test_income_is_the_profit_and_the_fees(client: Any, exchange: LocalExchange) -> None:
    await client.create_order(APT, "market", "buy", "10")
    exchange.set_price(APT, Decimal("9.5"))
    await client.create_order(APT, "market", "sell", "10", None, {"reduceOnly": True})
    rows = await client.fapiPrivateGetIncome({"symbol": "APTUSDT"})
    assert [(row["incomeType"], row["income"]) for row in rows] == [
        ("COMMISSION", "-0.03400000"),
        ("REALIZED_PNL", "10.00000000"),
        ("COMMISSION", "-0.03800000"),
    ]
    assert await client.fapiPrivateGetIncome({"incomeType": "FUNDING_FEE"}) == []


async def test_what_bots_ask_for_before_they_trade_is_there(client: Any) -> None:
    assert await client.fapiPrivateGetMultiAssetsMargin() == {"multiAssetsMargin": False}
    refused = await told(client.fapiPrivatePostMultiAssetsMargin({"multiAssetsMargin": "false"}))
    assert refused["code"] == -4171
    assert (await client.fapiPrivateGetAccountConfig())["dualSidePosition"] is False
    (config,) = await client.fapiPrivateGetSymbolConfig({"symbol": "APTUSDT"})
    assert (config["marginType"], config["leverage"]) == ("CROSSED", 20)
    assert await client.publicGetPing() == {}
    await client.create_order(APT, "market", "buy", "10")
    quantiles = await client.fapiPrivateGetAdlQuantile()
    assert quantiles == [{"symbol": "APTUSDT", "adlQuantile": {"BOTH": 0}}]
    assert (await client.fetch_open_interest(APT))["openInterestAmount"] == 1_000_000
    assert len(await client.fetch_trades(APT, None, 10)) == 10
    assert len(await client.fetch_trades(APT, None, 10, {"fetchTradesMethod": "fapiPublicGetTrades"})) == 10
    history = await client.fetch_funding_rate_history(APT, None, 5)
    assert [row["fundingRate"] for row in history] == [0.0001] * 5
    assert (await client.fetch_funding_rate(APT))["fundingRate"] == 0.0001
    assert len(await client.fetch_funding_intervals()) == 2
