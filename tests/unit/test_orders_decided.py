"""What becomes of an order whose answer is lost, late or a refusal, and what an exchange's answers mean.

The exchange here is a plain object, so that each answer comes when a test wants it: after the lease, twice,
or never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from ccxt.base import errors as ccxt

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld
from lockguard_ccxt import Executed, GuardedExchange, OrderState, PlacedOrder, Refusal, Refused, Step, Unknown
from lockguard_ccxt._gate import Gate, attempt, install
from lockguard_ccxt._ids import client_order_id
from lockguard_ccxt._money import MarketRules, decimal_of, steps_of
from lockguard_ccxt._outcome import opposite
from lockguard_ccxt._placing import Patience, Placer, Plan
from lockguard_ccxt._venues import (
    UNREAD,
    Binance,
    Bybit,
    next_page,
    parse_holdings,
    parse_order,
)
from tests.unit.positions_in_memory import MARKET

MS = timedelta(milliseconds=1)
NAME, SYMBOL = "lgs-1", "APT/USDT:USDT"
PATIENCE = Patience(needed=100 * MS, search=60 * MS, poll=5 * MS)
LOST = ccxt.RequestTimeout("binanceusdm POST https://x/fapi/v1/order?symbol=APT&signature=abc")
NO_MARGIN = ccxt.InsufficientFunds('binanceusdm {"code":-2019,"msg":"Margin"}')
BUSY = ccxt.RateLimitExceeded('binanceusdm {"code":-1003,"msg":"Too many requests"}')
TOO_CLOSE = ccxt.OrderImmediatelyFillable('binanceusdm {"code":-2021,"msg":"x"}')


def lease(seconds: float = 60.0) -> Lease:
    grant = Grant(Resource("binance:APTUSDT"), new_grant_id(), Token(5), "h", "open", 60_000)
    return Lease(grant, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)


def placed(
    state: OrderState = OrderState.OPEN, *, filled: str = "0", trigger: str | None = "98"
) -> PlacedOrder:
    return PlacedOrder(
        *("1", NAME, SYMBOL, "sell", state, Decimal(10), Decimal(filled), None),
        None if trigger is None else Decimal(trigger),
        reduce_only=True,
    )


def answer(status: str = "open", **more: Any) -> dict[str, Any]:
    return {"id": "1", "clientOrderId": NAME, "symbol": SYMBOL, "side": "sell", "status": status, **more}


class Exchange:
    """Gives the answers of a list to what changes something; each request leaves under the caller's lease."""

    id = "binanceusdm"

    def __init__(self, *answers: Any, timeout_ms: int = 10_000) -> None:
        self.answers = list(answers)
        self.sent = 0
        self.timeout = timeout_ms

    async def create_order(self, *_: Any) -> Any:
        return await self._next()

    async def _next(self) -> Any:
        from lockguard_ccxt import _gate

        running = _gate._current.get()
        assert running is not None
        now = self.answers.pop(0)
        if isinstance(now, ccxt.InvalidAddress):  # raised before anything is sent
            raise now
        running.leaves()
        self.sent += 1
        if callable(now):
            now = await now()
        if isinstance(now, BaseException):
            raise now
        return now


class Books:
    """What is found by a client order id: the next of a list, the last one for good."""

    ids_unique_for_good = False

    def __init__(self, *found: Any, unique: bool = False) -> None:
        self.found = list(found) or [None]
        self.ids_unique_for_good = unique
        self.looks = 0

    async def find(self, exchange: Any, symbol: str, client_id: str, *, conditional: bool) -> Any:
        self.looks += 1
        now = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(now, BaseException):
            raise now
        return now

    async def cancel(self, exchange: Any, order: PlacedOrder) -> Any:
        return await exchange._next()


def placer(exchange: Exchange, books: Books) -> Placer:
    venue: Any = books
    return Placer(exchange, venue, PATIENCE, SYSTEM_CLOCK)


def plan(step: Step = Step.STOP) -> Plan:
    return Plan(step, SYMBOL, "sell", Decimal(10), NAME, {"clientOrderId": NAME})


# --- placing ---


@pytest.mark.parametrize(
    ("step", "unique", "sent"),
    [(Step.ENTRY, False, 1), (Step.ENTRY, True, 3), (Step.STOP, False, 3), (Step.CLOSE, False, 3)],
)
async def test_an_order_without_an_answer_is_sent_again_only_where_two_do_no_harm(
    step: Step, unique: bool, sent: int
) -> None:
    exchange, books = Exchange(*[LOST] * 3), Books(unique=unique)
    outcome = await placer(exchange, books).place(plan(step), lease())
    assert isinstance(outcome, Unknown)
    assert exchange.sent == sent


async def test_an_order_whose_answer_was_lost_is_looked_for_for_as_long_as_reads_lag() -> None:
    late = [None, ccxt.RequestTimeout("x"), None, placed()]
    exchange, books = Exchange(LOST), Books(*late)
    outcome = await placer(exchange, books).place(plan(Step.ENTRY), lease())
    assert outcome == Executed(placed(), found=True)
    assert exchange.sent == 1


async def test_a_stop_is_looked_for_once_before_it_is_sent_again_and_longer_afterwards() -> None:
    exchange, books = Exchange(LOST, answer()), Books(None)
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Executed)
    assert (exchange.sent, books.looks) == (2, 1)
    exchange, books = Exchange(LOST, LOST), Books(None, None, None, placed())
    assert await placer(exchange, books).place(plan(), lease()) == Executed(placed(), found=True)
    assert (exchange.sent, books.looks) == (2, 4)


async def test_a_certain_refusal_is_the_answer_and_nothing_is_looked_for() -> None:
    exchange, books = Exchange(TOO_CLOSE), Books(placed())
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.WOULD_TRIGGER
    assert books.looks == 0


async def test_a_second_copy_that_is_refused_says_nothing_while_the_first_may_have_been_taken() -> None:
    exchange, books = Exchange(LOST, TOO_CLOSE), Books(None, placed())
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Executed)
    exchange, books = Exchange(LOST, TOO_CLOSE), Books(None)
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Refused)
    exchange, books = Exchange(LOST, BUSY), Books(None)  # a refusal of the moment: the first may be in flight
    assert isinstance(await placer(exchange, books).place(plan(), lease()), Unknown)


async def test_an_error_after_sending_is_an_outcome_and_one_before_it_is_the_caller_s() -> None:
    exchange, books = Exchange(KeyError("status")), Books(placed())
    assert await placer(exchange, books).place(plan(), lease()) == Executed(placed(), found=True)
    exchange, books = Exchange(ccxt.InvalidAddress("x")), Books()
    outcome = await placer(exchange, books).place(plan(), lease())
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.NOT_SENT


async def test_an_answer_that_names_no_order_leaves_it_in_doubt() -> None:
    exchange, books = Exchange({"id": None}), Books(placed())
    assert await placer(exchange, books).place(plan(Step.ENTRY), lease()) == Executed(placed(), found=True)


async def test_no_request_lasts_longer_than_its_lease_or_the_exchange_s_own_bound() -> None:
    async def hangs() -> Any:
        await asyncio.sleep(30)  # as an exchange that does not answer

    async with asyncio.timeout(5):
        exchange = Exchange(hangs)
        started = SYSTEM_CLOCK.now()
        await placer(exchange, Books(placed())).place(plan(Step.ENTRY), lease(0.3))
        exchange = Exchange(hangs, timeout_ms=200)
        await placer(exchange, Books(placed())).place(plan(Step.ENTRY), lease())
    assert SYSTEM_CLOCK.now() - started < 3


async def test_an_order_that_was_only_accepted_is_told_as_it_ended() -> None:
    filled = placed(OrderState.CLOSED, filled="10", trigger=None)
    exchange, books = Exchange(answer(status="")), Books(filled)
    assert await placer(exchange, books).place(plan(Step.ENTRY), lease()) == Executed(filled)


@pytest.mark.parametrize(("filled", "executed"), [("0", False), ("4", True)])
async def test_an_order_that_ended_is_refused_only_if_nothing_of_it_filled(
    filled: str, executed: bool
) -> None:
    exchange = Exchange(answer("canceled", filled=filled))
    outcome = await placer(exchange, Books()).place(plan(Step.ENTRY), lease())
    assert isinstance(outcome, Executed) is executed


async def test_a_read_is_repeated_while_the_exchange_does_not_answer() -> None:
    books = Books(ccxt.RequestTimeout("x"), ccxt.RequestTimeout("x"), placed())
    assert await placer(Exchange(), books).find(SYMBOL, NAME, conditional=True) == placed()


GONE = ccxt.OrderNotFound('binanceusdm {"code":-2011,"msg":"Unknown order sent."}')


@pytest.mark.parametrize(
    ("shown", "executed"),
    [(placed(OrderState.CANCELED), True), (placed(OrderState.CLOSED), False), (None, False)],
)
async def test_an_order_that_a_cancel_does_not_find_was_cancelled_only_if_it_is_shown_so(
    shown: Any, executed: bool
) -> None:
    outcome = await placer(Exchange(GONE), Books(shown)).cancel(placed(), lease())
    assert isinstance(outcome, Executed) is executed


@pytest.mark.parametrize(
    ("told", "trigger"),
    [(answer(), "98"), (answer(triggerPrice="90"), "90"), ({**answer(), UNREAD: True}, None)],
)
async def test_a_cancelled_stop_is_told_with_the_price_where_it_was_by_then(
    told: Any, trigger: str | None
) -> None:
    outcome = await placer(Exchange(told), Books()).cancel(placed(), lease())
    assert isinstance(outcome, Executed)
    assert outcome.order.trigger == (None if trigger is None else Decimal(trigger))
    assert outcome.order.state is OrderState.CANCELED


# --- what checks the lease ---


async def test_each_lease_is_checked_for_the_time_that_a_request_may_take_when_it_leaves() -> None:
    short = lease(0.2)
    for leases in ((short,), (lease(), short)):
        with pytest.raises(LeaseLost), attempt(leases[0], timedelta(seconds=1), *leases[1:]):
            pytest.fail("it was begun")
    with attempt(short, 10 * MS) as running:
        await asyncio.sleep(0.25)  # until the lease has too little left
        with pytest.raises(LeaseLost):
            running.leaves()
        assert not running.sent
    with attempt(lease(), 10 * MS) as running:
        running.leaves()
        assert running.sent


class Venue:
    """An exchange of ccxt as far as the gate knows it."""

    id = "binanceusdm"

    def __init__(self, send: Callable[..., Any] | None = None) -> None:
        self.options: dict[str, Any] = {}
        self.measured = 0
        self.requests: list[str] = []
        self._send = send

    async def fetch(self, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        self.requests.append(f"{method} {url}")
        if self._send is not None:
            return self._send()
        return {}

    def on_rest_response(self, *_: Any) -> None: ...

    def milliseconds(self) -> int:
        return 1_700_000_000_000

    async def load_time_difference(self) -> None:
        self.measured += 1

    async def load_markets(self, *_: Any, **__: Any) -> None: ...


def closed_s(gate: Gate) -> float:
    return gate.closed_for.total_seconds()


def test_calls_are_closed_for_as_long_as_the_exchange_says() -> None:
    gate = Gate(Venue(), SYSTEM_CLOCK)
    gate.answered(429, {}, "slow down")
    assert closed_s(gate) == 0
    gate.answered(429, {"Retry-After": "30"}, "")
    assert 29 < closed_s(gate) <= 30
    gate.answered(429, {"retry-after": "5"}, "")
    assert 29 < closed_s(gate) <= 30
    gate.answered(418, {}, "banned until 1700000090000")
    assert 89 < closed_s(gate) <= 90
    gate = Gate(Venue(), SYSTEM_CLOCK)
    gate.answered(418, {}, "")
    assert closed_s(gate) > 10


async def test_nothing_is_sent_while_calls_are_closed() -> None:
    venue = Venue()
    gate = install(venue)
    gate.answered(429, {"Retry-After": "30"}, "")
    with pytest.raises(ccxt.DDoSProtection):
        await venue.fetch("https://x/fapi/v1/ticker")
    assert venue.requests == []


async def test_a_request_that_was_not_answered_is_not_repeated_by_ccxt_and_its_error_shows_no_signature() -> (
    None
):
    def lost() -> Any:
        raise ccxt.RequestTimeout("binanceusdm POST https://x/fapi/v1/order?a=1&signature=abcdef")

    venue = Venue(lost)
    install(venue)
    with attempt(lease(), 10 * MS):
        for _ in range(2):
            with pytest.raises(ccxt.RequestTimeout) as caught:
                await venue.fetch("https://x/fapi/v1/order?a=1", "POST")
    assert len(venue.requests) == 1
    assert "abcdef" not in str(caught.value)


async def test_a_read_in_a_call_that_orders_needs_no_time_of_the_lease() -> None:
    venue = Venue()
    install(venue)
    with attempt(lease(0.1), 10 * MS) as running:
        await asyncio.sleep(0.12)  # until the lease has too little left
        await venue.fetch("https://x/fapi/v1/exchangeInfo")
        assert not running.sent
        with pytest.raises(LeaseLost):
            await venue.fetch("https://x/fapi/v1/order", "POST")


async def test_a_clock_that_was_refused_is_measured_again_but_not_with_each_refusal() -> None:
    def refused() -> Any:
        raise ccxt.InvalidNonce('binanceusdm {"code":-1021}')

    venue = Venue(refused)
    install(venue)
    for _ in range(3):
        with pytest.raises(ccxt.InvalidNonce):
            await venue.fetch("https://x/fapi/v1/order", "POST")
    assert venue.measured == 1


async def test_a_message_of_a_websocket_leaves_only_under_the_lease() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    venue: Any = Venue()
    venue.client = lambda url: SimpleNamespace(send=send)
    install(venue)
    client = venue.client("wss://x")
    with attempt(lease(0.1), 10 * MS):
        await client.send("before")
        await asyncio.sleep(0.12)  # until the lease has too little left
        with pytest.raises(LeaseLost):
            await client.send("after")
    assert sent == ["before"]


# --- what an exchange's answers mean ---


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
    passing = {Refusal.RATE_LIMITED, Refusal.BANNED, Refusal.OVERLOADED, Refusal.CLOCK}
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
    assert (found.filled, found.average) == (Decimal(10), Decimal("97.5"))


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


def test_a_position_s_own_stop_is_known_as_one() -> None:
    assert parse_order(answer(info={"stopOrderType": "StopLoss"})).attached
    assert not parse_order(answer(info={"stopOrderType": "StopLoss", "orderLinkId": NAME})).attached
    assert parse_order(answer(info={"closeOnTrigger": "true"})).closes_all


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


# --- a guarded exchange ---


class Futures(Venue):
    """A futures exchange of ccxt that takes every order, and keeps what it was asked."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options
        self.has = {"fetchPositionMode": True}
        self.markets = None
        self.apiKey = "k"
        self.timeout = 10_000
        self.hedged = False
        self.ordered: list[Any] = []
        self.pages: list[list[dict[str, Any]]] = [[]]
        self.loads = 0

    async def fetch2(self, *_: Any) -> None: ...

    async def load_markets(self, *_: Any, **__: Any) -> None:
        self.loads += 1

    async def fetch_position_mode(self) -> Any:
        return {"hedged": self.hedged}

    async def create_order(self, *order: Any) -> Any:
        await self.fetch("https://x/fapi/v1/order", "POST")
        self.ordered.append(order)
        return answer("closed", filled=order[3], side=order[2], clientOrderId=order[5].get("clientOrderId"))

    async def close_all_positions(self) -> None: ...

    async def fetch_order(self, *_: Any) -> Any:
        raise ccxt.OrderNotFound("x")

    async def fetch_open_orders(self, symbol: Any, since: Any, limit: Any, params: Any) -> Any:
        return self.pages[int(params.get("cursor", 0))] if not params.get("trigger") else []


def guarded(**options: Any) -> tuple[Any, Futures]:
    exchange = Futures(**options)
    return GuardedExchange(exchange, patience=PATIENCE), exchange


@contextmanager
def holding(*names: str) -> Iterator[None]:
    """As in the bodies of holds on these symbols."""
    task = asyncio.current_task()
    assert task is not None
    marks = []
    for name in names:
        granted = Grant(Resource(f"binance:{name}"), new_grant_id(), Token(5), "h", "open", 60_000)
        held = Lease(granted, deadline=SYSTEM_CLOCK.now() + 60, clock=SYSTEM_CLOCK)
        marks.append(enter_scope(LeaseScope(held, task, object())))
    try:
        yield
    finally:
        for mark in reversed(marks):
            exit_scope(mark)


async def test_an_account_in_hedge_mode_and_blind_repetitions_are_refused() -> None:
    made, exchange = guarded()
    await made.load()
    exchange.hedged = True
    with pytest.raises(ConfigurationError, match="hedge mode"):
        await made.load()
    with pytest.raises(ConfigurationError, match="maxRetriesOnFailure"):
        guarded(maxRetriesOnFailure=3)


async def test_an_exit_only_reduces_and_has_a_name_of_its_own_and_whole_steps() -> None:
    made, exchange = guarded()
    with holding("APTUSDT"):
        await made.close_position(MARKET, "sell", Decimal("9.99"), intent=7)
        await made.place_entry(MARKET, "buy", Decimal("9.99"), intent=7)
    (_, _, side, amount, _, params), (*_, entry) = exchange.ordered
    assert (side, Decimal(amount), params["reduceOnly"]) == ("sell", Decimal("9.9"), True)
    assert params["clientOrderId"].startswith("lgc-")
    assert entry["clientOrderId"].startswith("lge-")
    assert "reduceOnly" not in entry


async def test_an_order_needs_the_lease_of_its_own_symbol() -> None:
    made, exchange = guarded()
    with holding("BTCUSDT"), pytest.raises(LeaseNotHeld):
        await made.close_position(MARKET, "sell", Decimal(9), intent=7)
    assert exchange.ordered == []
    with holding("APTUSDT", "BTCUSDT"):
        await made.close_position(MARKET, "sell", Decimal(9), intent=7)


async def test_an_intent_that_may_have_been_sent_is_looked_for_before_it_is_sent() -> None:
    made, exchange = guarded()

    async def there(*_: Any) -> Any:
        return answer("open", clientOrderId="x")

    with holding("APTUSDT"):
        exchange.fetch_order = there  # type: ignore[method-assign]
        outcome = await made.place_stop(MARKET, "sell", Decimal(9), trigger=Decimal(98), intent=7, again=True)
    assert isinstance(outcome, Executed)
    assert outcome.found
    assert exchange.ordered == []


async def test_an_order_is_in_doubt_for_its_window_a_clock_s_tolerance_and_the_lag_of_reads() -> None:
    made, _ = guarded()
    assert made.in_doubt_for > timedelta(seconds=10) + PATIENCE.search


async def test_a_call_past_the_intents_needs_a_name_and_one_that_closes_all_is_refused() -> None:
    made, exchange = guarded()
    with holding("APTUSDT"):
        with pytest.raises(ConfigurationError, match="client order id"):
            await made.create_order(SYMBOL, "market", "buy", 1)
        with pytest.raises(ConfigurationError, match="names no market"):
            await made.close_all_positions()
    with pytest.raises((LeaseNotHeld, ConfigurationError)):
        await made.create_order(SYMBOL, "market", "buy", 1, None, {"clientOrderId": "x"})
    assert exchange.ordered == []


async def test_every_page_of_the_open_orders_is_read_and_only_what_is_open_is_told() -> None:
    made, exchange = guarded()
    exchange.pages = [
        [{**answer(), "id": "1", "info": {"nextPageCursor": "1"}}],
        [{**answer("closed"), "id": "2"}, {**answer(), "id": "3"}],
    ]
    assert [one.id for one in await made.open_orders(MARKET)] == ["1", "3"]


async def test_markets_are_not_loaded_anew_with_each_unknown_name() -> None:
    made, exchange = guarded()
    await made.load()
    assert not await made.refresh()
    assert exchange.loads == 1


async def test_a_call_is_begun_early_only_where_it_can_send_by_the_gate_alone() -> None:
    class Other(GuardedExchange):
        """A paper account, say."""

    made = Other(Futures(), patience=PATIENCE)

    async def call() -> None: ...

    assert made.prepare(call, name="x") is None
