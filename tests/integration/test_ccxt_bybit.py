"""Bybit: the original ccxt over HTTP, against a small server that answers as the v5 documentation says.

The server knows what the guard relies on: signatures, ids that are taken for good, conditional orders that
are listed with ``orderFilter=StopOrder``, answers that only say that an order was taken, an order history
apart from the open orders, and answers that get lost. Nothing here has met the live venue.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import ccxt.async_support as ccxt
import pytest
from aiohttp import web

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard_ccxt import (
    Executed,
    GuardedExchange,
    Holding,
    OrderState,
    Outcome,
    Patience,
    PlacedOrder,
    Refusal,
    Refused,
    Side,
    Step,
    Unknown,
)

Json: TypeAlias = dict[str, Any]
Setting: TypeAlias = tuple["Bybit", GuardedExchange]

APT = "APT/USDT:USDT"
KEY, SECRET = "key", "secret"
PRICE = Decimal("8.5")
SEARCH = timedelta(milliseconds=200)
_ID = re.compile(r"[A-Za-z0-9_-]{1,36}")
_OPEN = frozenset({"New", "Untriggered"})

CONTRACT: Json = {
    "symbol": "APTUSDT",
    "contractType": "LinearPerpetual",
    "status": "Trading",
    "baseCoin": "APT",
    "quoteCoin": "USDT",
    "settleCoin": "USDT",
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
CONTRACTS: Json = {
    "APTUSDT": CONTRACT,
    "BTCPERP": CONTRACT | {"symbol": "BTCPERP", "baseCoin": "BTC", "quoteCoin": "USDC", "settleCoin": "USDC"},
}
BTC = "BTC/USDC:USDC"


class Lost(Enum):
    """What becomes of the answer to a request that was carried out."""

    CUT = "the connection ends without an answer"
    BROKEN = "the answer breaks off inside its JSON"


class Rejection(Exception):
    """What Bybit says with a ``retCode`` and status 200."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Bybit:
    """One account in one-way mode, with a linear contract of each coin of settlement."""

    def __init__(self) -> None:
        self.orders: list[Json] = []
        self.created: list[Json] = []
        self.nets = dict.fromkeys(CONTRACTS, Decimal(0))
        self.lose: Lost | None = None
        self.say: Rejection | None = None
        self.refuse: Rejection | None = None
        """What every private request is answered with."""
        self.refuse_create: Rejection | None = None
        self.refuse_cancel: Rejection | None = None
        self.hedged: frozenset[str] = frozenset()
        """The contracts in hedge mode."""
        self.keeps_ids = False
        """Whether a stop of the position that is moved stays the same order; Bybit does not say."""
        self.drop_created = False
        """Whether an order is taken and gone a moment later."""
        self.clock_ms = 0
        self.fills: list[Json] = []
        self.filled_ago_ms = 0
        self.asked: list[str] = []
        self.page_max = 50
        self._answers = {
            "/v5/market/instruments-info": self.instruments,
            "/v5/market/tickers": lambda q: {"list": [{"symbol": q["symbol"], "lastPrice": str(PRICE)}]},
            "/v5/market/time": lambda _: {"timeSecond": str(self._now_ms() // 1000)},
            "/v5/asset/coin/query-info": lambda _: {"rows": []},
            "/v5/user/query-api": lambda _: {"unified": 0, "uta": 1},
            "/v5/account/info": lambda _: {"unifiedMarginStatus": 6},
            "/v5/order/create": self.create,
            "/v5/order/cancel": self.cancel,
            "/v5/order/realtime": self.realtime,
            "/v5/order/history": self.history,
            "/v5/execution/list": self.executions,
            "/v5/position/list": self.positions,
            "/v5/position/trading-stop": self.trading_stop,
        }

    @property
    def net(self) -> Decimal:
        return self.nets["APTUSDT"]

    def _now_ms(self) -> int:
        return now_ms() + self.clock_ms

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.text()
        query = dict(parse_qsl(request.rel_url.raw_query_string))
        writing = request.method == "POST"
        try:
            if not request.path.startswith("/v5/market/"):
                self.asked.append(request.path)
                verify(request, body if writing else request.rel_url.raw_query_string, self._now_ms())
                if (
                    no := self.refuse or (self.refuse_create if request.path.endswith("create") else None)
                ) is not None:
                    raise no
            result = self._answers[request.path](json.loads(body) if writing else query)
            answer: Json = {"retCode": 0, "retMsg": "OK", "result": result}
        except Rejection as no:
            answer = {"retCode": no.code, "retMsg": str(no), "result": {}}
        text = json.dumps({**answer, "retExtInfo": {}, "time": self._now_ms()})
        lost, self.lose = (self.lose, None) if writing else (None, self.lose)
        if lost is Lost.CUT and request.transport is not None:
            request.transport.close()
        return web.Response(
            text=text[: len(text) // 2] if lost is Lost.BROKEN else text, content_type="application/json"
        )

    def instruments(self, query: Json) -> Json:
        wanted = query["category"] == "linear" and query.get("status", "Trading") == "Trading"
        return {
            "category": query["category"],
            "list": list(CONTRACTS.values()) if wanted else [],
            "nextPageCursor": "",
        }

    # --- orders ---

    def create(self, body: Json) -> Json:
        """Market orders, conditional ones with a ``triggerPrice``."""
        self.created.append(body)
        if self.say is not None:
            raise self.say
        name, quantity, trigger = body["orderLinkId"], Decimal(body["qty"]), body.get("triggerPrice", "")
        need(body["category"] == "linear" and body["symbol"] in CONTRACTS, 10001, "symbol invalid")
        need(body["orderType"] == "Market" and body["side"] in {"Buy", "Sell"}, 10001, "order invalid")
        need(bool(_ID.fullmatch(name)), 10001, "orderLinkId invalid")
        need(quantity > 0 and not quantity % Decimal("0.01"), 10001, "Qty invalid")
        need(all(order["orderLinkId"] != name for order in self.orders), 110072, "OrderLinkedID is duplicate")
        order = {
            "orderId": f"{len(self.orders) + 1:08d}-0000",
            "orderLinkId": name,
            "symbol": body["symbol"],
            "side": body["side"],
            "orderType": "Market",
            "qty": body["qty"],
            "reduceOnly": body.get("reduceOnly", False),
            "createdTime": str(now_ms()),
            "updatedTime": str(now_ms()),
            "stopLoss": body.get("stopLoss", ""),
            "triggerPrice": trigger,
            "triggerDirection": body.get("triggerDirection", 0),
        }
        self._wait(order) if trigger else self._fill(order, quantity)
        self.orders.append(order)
        if order["stopLoss"]:
            self._attach(order)
        if self.drop_created:
            order["orderStatus"] = "Cancelled"
        return {"orderId": order["orderId"], "orderLinkId": name}

    def _wait(self, order: Json) -> None:
        price, direction = Decimal(order["triggerPrice"]), order["triggerDirection"]
        need(direction in {1, 2}, 10001, "TriggerDirection invalid")
        need(direction == 2 or price > PRICE, 110092, "expect Rising, but trigger_price <= current")
        need(direction == 1 or price < PRICE, 110093, "expect Falling, but trigger_price >= current")
        order |= {"orderStatus": "Untriggered", "cumExecQty": "0", "cumExecValue": "0", "avgPrice": ""}

    def _attach(self, entry: Json) -> None:
        """A stop of the position itself: of no name, as large as the position, and gone with it."""
        rises = entry["side"] == "Sell"
        order = entry | {
            "orderId": f"{len(self.orders) + 1:08d}-0000",
            "orderLinkId": "",
            "side": "Buy" if rises else "Sell",
            "reduceOnly": True,
            "closeOnTrigger": True,
            "stopOrderType": "StopLoss",
            "stopLoss": "",
            "triggerPrice": entry["stopLoss"],
            "triggerDirection": 1 if rises else 2,
        }
        self._wait(order)
        self.orders.append(order)

    def trading_stop(self, body: Json) -> Json:
        """The stop of the position itself; ``0`` takes it back."""
        need(body["category"] == "linear" and body["symbol"] in CONTRACTS, 10001, "symbol invalid")
        need(body["tpslMode"] == "Full" and body["positionIdx"] == 0, 10001, "position idx not match")
        net, stop = self.nets[body["symbol"]], Decimal(body["stopLoss"])
        need(bool(net), 10001, "can not set tp/sl/ts for zero position")
        attached = [o for o in self.orders if o["symbol"] == body["symbol"] and o.get("stopOrderType")]
        live = [o for o in attached if o["orderStatus"] in _OPEN]
        need(bool(live) or bool(stop), 34040, "not modified")
        if live and stop and self.keeps_ids:
            live[0]["triggerPrice"] = str(stop)
            return {}
        for order in live:
            order["orderStatus"] = "Deactivated"
        if stop:
            side = "Buy" if net > 0 else "Sell"
            self._attach({**attached[-1], "side": side, "stopLoss": str(stop)} if attached else {})
        return {}

    def pass_price(self, symbol: str, price: Decimal, *, most: Decimal | None = None) -> list[str]:
        """The price falls to this: every stop of a long position that it reaches fires, the first one first.

        Args:
            symbol: the contract.
            price: the price.
            most: for how much there are buyers; the rest of a stop is cancelled.

        Returns:
            The prices of those that sold something.
        """
        fired = []
        waiting = [o for o in self.orders if o["symbol"] == symbol and o["orderStatus"] == "Untriggered"]
        for order in sorted(waiting, key=lambda o: -Decimal(o["triggerPrice"])):
            if Decimal(order["triggerPrice"]) >= price and order["orderStatus"] == "Untriggered":
                held = self.nets[symbol]
                if not held:
                    order["orderStatus"] = "Rejected"
                    continue
                quantity = held if order.get("stopOrderType") else Decimal(order["qty"])
                self._fill(order, quantity if most is None else min(quantity, most))
                if most is not None and quantity > most:
                    order |= {"orderStatus": "Cancelled", "leavesQty": "0"}
                fired.append(order["triggerPrice"])
        return fired

    def take_stops_back(self) -> None:
        """By hand."""
        for order in self.orders:
            if order["orderStatus"] == "Untriggered":
                order["orderStatus"] = "Deactivated"

    def flat(self, symbol: str) -> None:
        """By hand, or as a close was filled: what is the position's own goes with it."""
        self.nets[symbol] = Decimal(0)
        for order in self.orders:
            if order["symbol"] == symbol and order.get("stopOrderType") and order["orderStatus"] in _OPEN:
                order["orderStatus"] = "Deactivated"

    def _fill(self, order: Json, quantity: Decimal) -> None:
        sign = 1 if order["side"] == "Buy" else -1
        if order["reduceOnly"]:
            net = self.nets[order["symbol"]]
            need(net * sign < 0, 110017, "current position is zero, cannot fix reduce-only order qty")
            quantity = min(quantity, abs(net))
        self.nets[order["symbol"]] += sign * quantity
        if not self.nets[order["symbol"]]:
            self.flat(order["symbol"])
        worth = str(quantity * PRICE)
        order |= {
            "orderStatus": "Filled",
            "cumExecQty": str(quantity),
            "cumExecValue": worth,
            "avgPrice": str(PRICE),
        }
        self.fills.append(
            {
                "symbol": order["symbol"],
                "side": order["side"],
                "orderId": order["orderId"],
                "orderLinkId": order["orderLinkId"],
                "execId": f"x{len(self.fills)}",
                "execType": "Trade",
                "execQty": str(quantity),
                "execPrice": str(PRICE),
                "execValue": worth,
                "execTime": str(self._now_ms() - self.filled_ago_ms),
            }
        )

    def cancel(self, body: Json) -> Json:
        if self.refuse_cancel is not None:
            raise self.refuse_cancel
        for order in self.orders:
            if order["orderStatus"] in _OPEN and (
                order["orderId"] == body["orderId"]
                if "orderId" in body
                else order["orderLinkId"] == body["orderLinkId"]
            ):
                order["orderStatus"] = "Deactivated" if order["triggerPrice"] else "Cancelled"
                return {"orderId": order["orderId"], "orderLinkId": order["orderLinkId"]}
        raise Rejection(110001, "order not exists or too late to cancel")

    def realtime(self, query: Json) -> Json:
        """Without ``orderFilter``, open orders of every kind."""
        kind = query.get("orderFilter")
        wanted = [
            order
            for order in self._asked_for(query)
            if order["orderStatus"] in _OPEN
            and (kind is None or (kind == "StopOrder") == bool(order["triggerPrice"]))
        ]
        size, begin = min(int(query.get("limit", 20)), self.page_max), int(query.get("cursor") or 0)
        page = wanted[begin : begin + size]
        return {"category": "linear", "list": page, "nextPageCursor": str(begin + size) if page else ""}

    def history(self, query: Json) -> Json:
        wanted = [order for order in self._asked_for(query) if order["orderStatus"] not in _OPEN]
        return {"category": "linear", "list": wanted, "nextPageCursor": ""}

    def executions(self, query: Json) -> Json:
        """The fills of the last seven days, the latest first."""
        need(query["category"] == "linear" and query["symbol"] in CONTRACTS, 10001, "symbol invalid")
        size, begin = min(int(query.get("limit", 50)), self.page_max), int(query.get("cursor") or 0)
        wanted = [
            fill
            for fill in reversed(self.fills)
            if fill["symbol"] == query["symbol"]
            and query.get("orderId") in {None, fill["orderId"]}
            and int(fill["execTime"]) >= int(query.get("startTime", 0))
        ]
        page = wanted[begin : begin + size]
        return {"category": "linear", "list": page, "nextPageCursor": str(begin + size) if page else ""}

    def _asked_for(self, query: Json) -> list[Json]:
        need(query["category"] == "linear", 10001, "category invalid")
        need("symbol" in query or "settleCoin" in query, 10001, "Missing some parameters: symbol, settleCoin")
        return [
            order
            for order in self.orders
            if query.get("orderLinkId") in {None, order["orderLinkId"]}
            and query.get("orderId") in {None, order["orderId"]}
            and self._is_of(CONTRACTS[order["symbol"]], query)
        ]

    def _is_of(self, contract: Json, query: Json) -> bool:
        """By symbol, else by the coin of settlement."""
        if "symbol" in query:
            return bool(contract["symbol"] == query["symbol"])
        return bool(contract["settleCoin"] == query["settleCoin"])

    def positions(self, query: Json) -> Json:
        """Asked for by symbol, a position is listed also when it is flat."""
        need("symbol" in query or "settleCoin" in query, 10001, "Missing some parameters: symbol, settleCoin")
        listed = [
            {
                "positionIdx": index,
                "symbol": name,
                "side": "Buy" if net > 0 else "Sell" if net < 0 else "",
                "size": str(abs(net)),
                "avgPrice": str(PRICE) if net else "0",
                "positionValue": str(abs(net) * PRICE),
                "leverage": "10",
                "markPrice": str(PRICE),
                "updatedTime": str(now_ms()),
            }
            for name, net in self.nets.items()
            for index in ((1, 2) if name in self.hedged else (0,))
            if self._is_of(CONTRACTS[name], query) and (net or "symbol" in query)
        ]
        return {"category": "linear", "list": listed, "nextPageCursor": ""}


def need(met: bool, code: int, message: str) -> None:
    if not met:
        raise Rejection(code, message)


def now_ms() -> int:
    return int(time.time() * 1000)


def verify(request: web.Request, payload: str, there_ms: int) -> None:
    """The headers that every private request carries."""
    stamp, window = request.headers["X-BAPI-TIMESTAMP"], request.headers["X-BAPI-RECV-WINDOW"]
    signed = hmac.new(SECRET.encode(), f"{stamp}{KEY}{window}{payload}".encode(), "sha256").hexdigest()
    need(request.headers["X-BAPI-API-KEY"] == KEY, 10003, "API key is invalid.")
    need(abs(there_ms - int(stamp)) <= int(window), 10002, "invalid request, please check your timestamp")
    need(request.headers["X-BAPI-SIGN"] == signed, 10004, "error sign!")


@asynccontextmanager
async def connected(server: Bybit) -> AsyncIterator[GuardedExchange]:
    """The original ccxt, talking to the server, under the guard."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = ccxt.bybit({"apiKey": KEY, "secret": SECRET, "enableRateLimit": False})
    client.urls["api"] = dict.fromkeys(client.urls["api"], f"http://127.0.0.1:{runner.addresses[0][1]}")
    exchange = GuardedExchange(client, patience=Patience(search=SEARCH, poll=SEARCH / 10))
    try:
        await exchange.load()
        yield exchange
    finally:
        await client.close()
        await runner.cleanup()


@pytest.fixture
async def bybit() -> AsyncIterator[Setting]:
    server = Bybit()
    async with connected(server) as exchange:
        grant = Grant(parse_resource("bybit:APTUSDT"), new_grant_id(), Token(1), "test", "", 60_000)
        task = asyncio.current_task()
        assert task is not None
        lease = Lease(grant, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        held = enter_scope(LeaseScope(lease, task, None))
        yield server, exchange
        exit_scope(held)


async def enter(exchange: GuardedExchange, *, stop_price: Decimal | None = None) -> Outcome:
    return await exchange.place_entry(APT, "buy", Decimal("10.009"), intent=1, stop_price=stop_price)


async def stop(exchange: GuardedExchange, *, trigger: str = "8") -> Outcome:
    return await exchange.place_stop(APT, "sell", Decimal(10), trigger=Decimal(trigger), intent=1)


def order_of(outcome: Outcome) -> PlacedOrder:
    assert isinstance(outcome, Executed), outcome
    return outcome.order


async def test_an_entry_carries_its_stop_and_its_fill_is_looked_up(
    bybit: Setting,
) -> None:
    server, exchange = bybit
    order = order_of(await enter(exchange, stop_price=Decimal("8.0003")))
    assert (order.state, order.filled, order.average) == (OrderState.CLOSED, Decimal(10), PRICE)
    (body,) = server.created
    assert (body["qty"], body["stopLoss"]) == ("10", "8.0005")
    assert body["orderLinkId"] == exchange.client_id(APT, 1, Step.ENTRY)


async def test_the_fills_since_an_entry_are_those_of_every_page_and_of_nothing_before_it(
    bybit: Setting,
) -> None:
    server, exchange = bybit
    server.page_max = 2
    server.filled_ago_ms = 3000
    for name in ("before", "before too"):
        person(server, "Buy", name)
    server.filled_ago_ms = 0
    entry = order_of(await enter(exchange))
    for name, side in (("a", "Sell"), ("b", "Buy"), ("c", "Buy")):
        person(server, side, name)
    since = await exchange.fills_since(APT, entry.id)
    assert since is not None
    assert sorted((fill.side, fill.amount, fill.order_id == entry.id) for fill in since) == [
        ("buy", Decimal(4), False),
        ("buy", Decimal(4), False),
        ("buy", Decimal(10), True),
        ("sell", Decimal(4), False),
    ]


async def test_the_fills_since_an_entry_that_is_not_shown_or_too_old_are_not_known(bybit: Setting) -> None:
    server, exchange = bybit
    assert await exchange.fills_since(APT, "00000001-0000") is None
    server.filled_ago_ms = 7 * 24 * 3600 * 1000 - 60_000  # shown for one more minute
    entry = order_of(await enter(exchange))
    assert await exchange.fills_since(APT, entry.id) is None


@pytest.mark.parametrize("whose", ["the entry's own", "a person's"])
async def test_no_more_fills_are_read_than_are_judged_however_many_there_are(
    bybit: Setting, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """A position without a stop waits for them. What is not read could name a person: it is not known."""
    monkeypatch.setattr("lockguard_ccxt._guarded.FILLS_MAX", 6)
    server, exchange = bybit
    server.page_max = 2
    entry = order_of(await enter(exchange))
    if whose == "a person's":
        for number in range(40):
            person(server, "Sell", f"n{number}")
    else:
        server.fills *= 40
    server.asked.clear()
    assert await exchange.fills_since(APT, entry.id) is None
    assert server.asked.count("/v5/execution/list") <= 6


def person(server: Bybit, side: str, name: str) -> None:
    """An order of four by hand."""
    order = {"category": "linear", "symbol": "APTUSDT", "orderType": "Market", "side": side}
    server.create({**order, "qty": "4", "orderLinkId": name.replace(" ", "-")})


async def test_positions_are_what_was_filled_and_flat_ones_are_none(
    bybit: Setting,
) -> None:
    _, exchange = bybit
    assert await exchange.holding(APT) is None
    order_of(await enter(exchange))
    held = Holding(APT, "buy", Decimal(10), PRICE)
    assert await exchange.holding("APTUSDT") == held
    assert await exchange.holdings() == (held,)
    assert (await exchange.fetch_ticker(APT))["last"] == float(PRICE)


async def test_a_stop_is_conditional_reduces_only_and_is_listed(bybit: Setting) -> None:
    server, exchange = bybit
    order_of(await enter(exchange))
    placed = order_of(await stop(exchange))
    body = server.created[-1]
    assert (body["triggerPrice"], body["triggerDirection"], body["reduceOnly"]) == ("8", 2, True)
    for listed in (await exchange.open_orders(APT), await exchange.open_orders()):
        (order,) = listed
        assert (order.id, order.client_id) == (placed.id, exchange.client_id(APT, 1, Step.STOP))
        assert (order.state, order.trigger, order.reduce_only) == (OrderState.OPEN, Decimal(8), True)


@pytest.mark.parametrize(("side", "trigger"), [("sell", "8"), ("buy", "9")])
async def test_what_the_answer_leaves_out_of_a_stop_is_as_it_was_asked_for(
    bybit: Setting, side: Side, trigger: str
) -> None:
    """The answer has the ids only; a stop that is told as one of nothing would count as no protection."""
    _, exchange = bybit
    await exchange.place_entry(APT, "buy" if side == "sell" else "sell", Decimal(10), intent=1)
    placed = order_of(await exchange.place_stop(APT, side, Decimal(10), trigger=Decimal(trigger), intent=2))
    shown = await exchange.find_order(APT, placed.client_id, conditional=True)
    assert shown is not None
    assert replace(placed, state=shown.state) == shown


async def test_every_open_order_is_listed_in_whatever_coin_and_on_whatever_page(bybit: Setting) -> None:
    server, exchange = bybit
    server.page_max = 2
    for number in range(1, 4):
        await exchange.place_stop(APT, "sell", Decimal(10), trigger=Decimal(8), intent=number)
    usdc = server.orders[0] | {"symbol": "BTCPERP", "orderId": "usdc", "orderLinkId": "by-hand"}
    server.orders.append(usdc)
    server.nets["BTCPERP"] = Decimal(1)
    for only in (False, True):
        listed = await exchange.open_orders(conditional_only=only)
        assert sorted(order.symbol for order in listed) == [APT, APT, APT, BTC]
    assert {order.id for order in await exchange.open_orders("BTCPERP")} == {"usdc"}
    assert await exchange.holdings() == (Holding(BTC, "buy", Decimal(1), PRICE),)


async def test_a_stop_beyond_the_price_is_refused(bybit: Setting) -> None:
    _, exchange = bybit
    outcome = await stop(exchange, trigger="8.6")
    assert isinstance(outcome, Refused)
    assert (outcome.refusal, outcome.code) == (Refusal.WOULD_TRIGGER, "110093")


@pytest.mark.parametrize("lost", list(Lost))
async def test_an_order_whose_answer_is_lost_is_found_in_either_book(bybit: Setting, lost: Lost) -> None:
    server, exchange = bybit
    server.lose = lost
    entry = order_of(await enter(exchange))
    assert (entry.client_id, entry.filled) == (exchange.client_id(APT, 1, Step.ENTRY), Decimal(10))
    server.lose = lost
    waiting = order_of(await stop(exchange))
    assert (waiting.client_id, waiting.trigger) == (exchange.client_id(APT, 1, Step.STOP), Decimal(8))
    assert waiting.id == server.orders[-1]["orderId"]
    assert len(server.created) == 2


async def test_a_successor_finds_both_orders_by_their_names(bybit: Setting) -> None:
    _, exchange = bybit
    order_of(await enter(exchange))
    order_of(await stop(exchange))
    for step, state in ((Step.ENTRY, OrderState.CLOSED), (Step.STOP, OrderState.OPEN)):
        for conditional in (False, True):
            found = await exchange.find_order(APT, exchange.client_id(APT, 1, step), conditional=conditional)
            assert found is not None
            assert found.state is state
    assert await exchange.find_order(APT, exchange.client_id(APT, 2, Step.ENTRY)) is None


async def test_an_id_used_before_leads_to_its_order(bybit: Setting) -> None:
    server, exchange = bybit
    for place in (enter, enter, stop, stop):
        order_of(await place(exchange))
    assert len(server.created) == 4
    assert [order["orderStatus"] for order in server.orders] == ["Filled", "Untriggered"]
    assert server.net == 10


@pytest.mark.parametrize("lost", [None, *Lost])
async def test_a_stop_is_cancelled_also_when_the_answer_is_lost(bybit: Setting, lost: Lost | None) -> None:
    server, exchange = bybit
    placed = order_of(await stop(exchange))
    server.lose = lost
    assert order_of(await exchange.cancel(placed)).state is OrderState.CANCELED
    assert await exchange.open_orders(APT) == ()
    found = await exchange.find_order(APT, exchange.client_id(APT, 1, Step.STOP), conditional=True)
    assert found is not None
    assert found.state is OrderState.CANCELED


async def test_a_close_never_turns_the_position_round(bybit: Setting) -> None:
    server, exchange = bybit
    order_of(await enter(exchange))
    closed = order_of(await exchange.close_position(APT, "sell", Decimal(25), intent=1))
    assert (closed.filled, server.net) == (Decimal(10), Decimal(0))
    again = await exchange.close_position(APT, "sell", Decimal(10), intent=2)
    assert isinstance(again, Refused)
    assert (again.refusal, again.code) == (Refusal.REDUCE_ONLY, "110017")


async def test_an_entry_that_never_shows_stays_unknown(bybit: Setting) -> None:
    server, exchange = bybit
    server.say = Rejection(10016, "Internal server error.")
    assert isinstance(await enter(exchange), Unknown)
    assert {body["orderLinkId"] for body in server.created} == {exchange.client_id(APT, 1, Step.ENTRY)}
