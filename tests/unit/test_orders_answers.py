"""What an exchange's answers about orders and positions mean."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from ccxt.base import errors as ccxt

from lockguard.errors import ConfigurationError
from lockguard_ccxt import OrderState, Refusal, Refused, Step
from lockguard_ccxt._ids import client_order_id
from lockguard_ccxt._money import MarketRules, decimal_of, steps_of
from lockguard_ccxt._outcome import opposite
from lockguard_ccxt._venues import (
    Binance,
    Bybit,
    next_page,
    parse_holdings,
    parse_order,
)
from tests.unit.exchanges_in_memory import GONE, NAME, SYMBOL, answer, placed


def test_an_order_is_live_until_the_exchange_says_that_it_has_ended() -> None:
    for status, live in (
        ("open", True),
        ("", True),
        ("new one", True),
        ("closed", False),
        ("canceled", False),
    ):
        assert parse_order(answer(status)).live is live
    assert opposite("buy") == "sell"
    assert opposite("sell") == "buy"


def test_only_what_is_known_to_pass_or_to_be_about_the_order_counts_as_such() -> None:
    passing = {Refusal.PRICE, Refusal.RATE_LIMITED, Refusal.BANNED, Refusal.OVERLOADED, Refusal.CLOCK}
    final = {Refusal.WOULD_TRIGGER, Refusal.REDUCE_ONLY, Refusal.NOT_FOUND, Refusal.INVALID, Refusal.UNFILLED}
    for refusal in Refusal:
        refused = Refused(refusal, None, "", NAME)
        assert refused.passing is (refusal in passing)
        assert refused.final is (refusal in final)


def test_a_stop_of_either_venue_only_reduces_and_waits_for_a_worse_price() -> None:
    for venue in (Binance(), Bybit()):
        assert venue.stop_params("98", NAME) == {
            "stopLossPrice": "98",
            "reduceOnly": True,
            "clientOrderId": NAME,
        }
    assert not Binance().ids_unique_for_good
    assert Bybit().ids_unique_for_good


class Shelf:
    """An exchange that has orders in one book or another."""

    def __init__(self, **books: Any) -> None:
        self.books = books
        self.asked: list[Any] = []

    async def fetch_order(self, order_id: Any, symbol: str, params: Any = None) -> Any:
        self.asked.append(params)
        found = self.books.get(order_id) or self.books.get(
            "trigger" if (params or {}).get("trigger") else "plain"
        )
        if found is None:
            raise ccxt.OrderNotFound("x")
        return found

    async def fetch_open_orders(self, symbol: str, since: Any, limit: Any, params: Any) -> Any:
        return self.books.get("trigger" if params.get("trigger") else "plain") or []

    async def fetch_canceled_and_closed_orders(self, symbol: str, since: Any, limit: Any, params: Any) -> Any:
        return self.books.get("history") or []


async def test_an_order_is_looked_for_in_every_book() -> None:
    for book in ("plain", "trigger"):
        for conditional in (True, False):
            assert await Binance().find(Shelf(**{book: answer()}), SYMBOL, NAME, conditional=conditional)
            assert await Bybit().find(Shelf(**{book: [answer()]}), SYMBOL, NAME, conditional=conditional)
    assert await Bybit().find(Shelf(history=[answer("closed")]), SYMBOL, NAME, conditional=True)
    assert await Binance().find(Shelf(), SYMBOL, NAME, conditional=True) is None


async def test_a_fired_stop_is_told_with_the_fill_of_the_order_that_it_became() -> None:
    fired = answer("closed", triggerPrice="98", info={"actualOrderId": "77"})
    shelf = Shelf(**{"trigger": fired, "77": answer("closed", filled="10", average="97.5")})
    found = await Binance().find(shelf, SYMBOL, NAME, conditional=True)
    assert found is not None
    assert (found.filled, found.average, found.filling) == (Decimal(10), Decimal("97.5"), False)


class Fires(Shelf):
    """An exchange whose stop has fired, or is not there, before it is cancelled."""

    def __init__(self, **books: Any) -> None:
        super().__init__(**books)
        self.cancelled: list[Any] = []

    async def cancel_order(self, order_id: Any, symbol: str, params: Any = None) -> Any:
        self.cancelled.append(order_id)
        if order_id not in self.books:
            raise GONE
        return answer("canceled")


async def test_what_is_left_of_a_stop_that_fires_before_it_is_cancelled_is_cancelled() -> None:
    fired = answer("closed", triggerPrice="98", info={"actualOrderId": "77"})
    shelf = Fires(**{"trigger": fired, "77": answer("open", filled="4")})
    await Binance().cancel(shelf, placed())
    assert shelf.cancelled == [placed().id, "77"]
    waits = answer("open", triggerPrice="98", info={"actualOrderId": ""})
    for gone, stop in ((Fires(trigger=waits), placed()), (Fires(), placed(trigger=None))):
        with pytest.raises(ccxt.OrderNotFound):
            await Binance().cancel(gone, stop)
        assert gone.cancelled == [stop.id]


async def test_a_fired_stop_whose_order_is_still_open_may_be_filled_further() -> None:
    fired = answer("closed", triggerPrice="98", info={"actualOrderId": "77"})
    shelf = Shelf(**{"trigger": fired, "77": answer("open", filled="4", average="97.5")})
    found = await Binance().find(shelf, SYMBOL, NAME, conditional=True)
    assert found is not None
    assert (found.state, found.filled, found.filling) == (OrderState.CLOSED, Decimal(4), True)


@pytest.mark.parametrize(
    ("info", "takes_profit"),
    [
        ({"orderType": "TAKE_PROFIT_MARKET"}, True),
        ({"stopOrderType": "TakeProfit"}, True),
        ({"orderType": "STOP_MARKET"}, False),
        ({"reduceOnly": True, "triggerDirection": 1}, True),
        ({"reduceOnly": True, "triggerDirection": 2}, False),
    ],
)
def test_what_waits_for_a_better_price_protects_nothing(info: dict[str, Any], takes_profit: bool) -> None:
    assert parse_order(answer(info=info)).takes_profit is takes_profit


@pytest.mark.parametrize(
    ("side", "kind", "limit", "waits"),
    [
        ("sell", "limit", 9.0, True),
        ("sell", "limit", 6.9, False),
        ("sell", "limit", 6.5, False),
        ("sell", "limit", None, False),
        ("sell", "market", 9.0, False),
        ("buy", "limit", 6.5, True),
        ("buy", "limit", 6.9, False),
        ("buy", "limit", 9.0, False),
        ("buy", "market", 6.5, False),
    ],
)
def test_a_stop_whose_limit_is_on_the_wrong_side_of_its_trigger_protects_nothing(
    side: str, kind: str, limit: float | None, waits: bool
) -> None:
    stop = {**answer(info={}), "side": side, "type": kind, "price": limit, "triggerPrice": 6.9}
    assert parse_order(stop).takes_profit is waits


def test_a_position_s_own_stop_is_known_as_one() -> None:
    assert parse_order(answer(info={"stopOrderType": "StopLoss"})).attached
    assert not parse_order(answer(info={"stopOrderType": "StopLoss", "orderLinkId": NAME})).attached


@pytest.mark.parametrize(
    ("info", "amount", "closes_all"),
    [
        ({"closePosition": "true"}, 0, True),
        ({"closeOnTrigger": "true"}, 0, True),
        ({"closeOnTrigger": "true", "stopOrderType": "StopLoss"}, 10, True),
        ({"closeOnTrigger": "true", "stopOrderType": "PartialStopLoss"}, 1, False),
        ({"closeOnTrigger": "true", "stopOrderType": "Stop", "orderLinkId": NAME}, 1, False),
        ({}, 10, False),
    ],
)
def test_a_stop_for_a_part_that_can_only_close_is_not_taken_for_one_that_closes_all(
    info: dict[str, str], amount: float, *, closes_all: bool
) -> None:
    stop = parse_order({**answer(info=info), "amount": amount})
    assert (stop.closes_all, stop.reduce_only or not info) == (closes_all, True)


def test_every_page_of_a_list_is_asked_for_once() -> None:
    asked = next_page({"limit": 2}, [{"info": {"nextPageCursor": "c1"}}])
    assert asked == {"limit": 2, "cursor": "c1"}
    assert next_page(asked, [{"info": {"nextPageCursor": "c1"}}]) is None
    assert next_page(asked, [{"info": {}}]) is None


def test_a_position_is_read_with_its_side_and_no_leg_of_hedge_mode_is_one() -> None:
    short = {"symbol": SYMBOL, "side": "short", "contracts": "3", "entryPrice": "100", "info": {}}
    flat = {"symbol": SYMBOL, "contracts": "0", "info": {}}
    (found,) = parse_holdings([short, flat])
    assert (found.side, found.amount, found.closing_side) == ("sell", Decimal(3), "buy")
    for info in ({"positionSide": "LONG"}, {"positionIdx": "2"}):
        with pytest.raises(ConfigurationError, match="hedge mode"):
            parse_holdings([{**flat, "info": info}])


def test_an_amount_is_rounded_down_and_within_the_market_s_limits() -> None:
    rules = MarketRules(SYMBOL, Decimal("0.1"), Decimal("0.01"), Decimal("0.5"), Decimal(100), None)
    assert rules.amount(Decimal("1.19")) == Decimal("1.1")
    for wrong in ("0.4", "100.1", "0", "-1", "NaN"):
        with pytest.raises(ConfigurationError):
            rules.amount(Decimal(wrong))
    assert rules.price(Decimal("1.006")) == Decimal("1.01")
    assert decimal_of("nan") is None
    assert decimal_of("inf") is None


def test_the_largest_market_order_is_not_the_largest_order() -> None:
    market = {
        "symbol": SYMBOL,
        "precision": {"amount": 0.1, "price": 0.01},
        "limits": {"amount": {"min": 0.5, "max": 1000}, "market": {"max": 100}, "cost": {"min": 5}},
    }
    assert steps_of("binanceusdm", 4, market).amount_max == Decimal(100)
    market["limits"] = {"amount": {"min": 0.5, "max": 1000}}
    assert steps_of("binanceusdm", 4, market).amount_max == Decimal(1000)


def test_each_step_of_each_intent_of_each_resource_has_a_name_of_its_own() -> None:
    names = {
        client_order_id(resource, intent, step)
        for resource in ("binance:A", "binance:B")
        for intent in (1, 2)
        for step in Step
    }
    assert len(names) == 2 * 2 * len(Step)
    digests = {name.rpartition("-")[2] for name in names}
    assert len(digests) == len(names)
