"""What checks the lease of an order before it leaves, and what a guarded exchange refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from ccxt.async_support import binanceusdm
from ccxt.base import errors as ccxt

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Resource, Token, new_grant_id
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld
from lockguard_ccxt import Executed, GuardedExchange
from lockguard_ccxt._gate import Gate, attempt, install
from lockguard_ccxt._own_calls import under_lease
from tests.unit.exchanges_in_memory import MS, PATIENCE, SYMBOL, answer, lease
from tests.unit.positions_in_memory import MARKET


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
def holding(*names: str, seconds: float = 60.0) -> Iterator[None]:
    """As in the bodies of holds on these symbols, whose leases have so many seconds left."""
    task = asyncio.current_task()
    assert task is not None
    marks = []
    for name in names:
        granted = Grant(Resource(f"binance:{name}"), new_grant_id(), Token(5), "h", "open", 60_000)
        held = Lease(granted, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)
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

    async def call() -> None: ...

    begun = GuardedExchange(binanceusdm(), patience=PATIENCE).prepare(call, name="x")
    assert begun is not None
    await begun.drop()
    assert GuardedExchange(Futures(), patience=PATIENCE).prepare(call, name="x") is None
    assert Other(binanceusdm(), patience=PATIENCE).prepare(call, name="x") is None
    replaced: Any = GuardedExchange(binanceusdm(), patience=PATIENCE)
    replaced.place_entry = call
    assert replaced.prepare(call, name="x") is None


async def test_a_call_of_the_exchange_s_own_lasts_no_longer_than_the_shortest_of_its_leases() -> None:
    async def hangs(symbol: str, params: Any) -> None:
        await asyncio.Event().wait()

    call = under_lease(
        *("set_margin_mode", hangs, SimpleNamespace(id="binanceusdm", timeout=1_000)),
        lambda symbol: Resource(f"binance:{symbol}"),
        account="main",
        needed=MS,
    )
    with holding("APTUSDT"), holding("BTCUSDT", seconds=0.2):
        with pytest.raises(ccxt.RequestTimeout, match=r"no answer in 0\.[012]"):
            await call("APTUSDT", {"orders": [{"symbol": "BTCUSDT"}]})
