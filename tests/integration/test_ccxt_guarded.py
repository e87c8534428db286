"""The guard around ccxt, on the local exchange: nothing without a lease, nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import ccxt.async_support as ccxt
import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard._context import LeaseScope, enter_scope, exit_scope
from lockguard._lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard.errors import ConfigurationError, LeaseLost, LeaseNotHeld, LossReason
from lockguard_ccxt import (
    Executed,
    GuardedExchange,
    Holding,
    OrderState,
    Patience,
    Refusal,
    Refused,
    Step,
    Unknown,
)
from lockguard_lab.exchange import Execution, Fault, FaultKind, LocalExchange, Operation, connect

APT = "APT/USDT:USDT"
TEN = Decimal(10)
QUICK = Patience(search=timedelta(milliseconds=400), poll=timedelta(milliseconds=20))


@contextmanager
def lease(resource: str = "binance:APTUSDT", seconds: float = 30) -> Iterator[Lease]:
    grant = Grant(parse_resource(resource), new_grant_id(), Token(1), "test", "", 30_000)
    held = Lease(grant, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)
    task = asyncio.current_task()
    assert task is not None
    token = enter_scope(LeaseScope(held, task, None))
    try:
        yield held
    finally:
        exit_scope(token)


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTC/USDT:USDT"]) as server:
        yield server


@pytest.fixture
async def guarded(exchange: LocalExchange) -> AsyncIterator[GuardedExchange]:
    async with connect(exchange.url, config={"timeout": 1500}) as client:
        guard = GuardedExchange(client, patience=QUICK)
        await guard.load()
        yield guard


async def test_a_ban_is_kept_to_though_the_user_put_a_hook_of_his_own_into_the_exchange(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    """As is done to read the headers that say how much of a rate limit is used."""
    client, seen = guarded.exchange, []

    def hook(code: int, *_: Any) -> str:
        seen.append(code)
        return str(_[4]).strip()

    client.on_rest_response = hook
    exchange.ban(timedelta(hours=1))
    for _ in range(3):
        with pytest.raises(ccxt.DDoSProtection):
            await client.fetch_ticker(APT)
    assert (len(exchange.record().banned_requests()), seen) == (1, [418])
    assert guarded.closed_for > timedelta(minutes=59)


@pytest.mark.parametrize("seconds", [-30, 30])
async def test_markets_are_loaded_on_a_machine_whose_clock_is_wrong(
    exchange: LocalExchange, seconds: int
) -> None:
    """Of ccxt's requests for them some are signed, and are refused until the exchange's clock is known."""
    exchange.set_clock_offset(timedelta(seconds=seconds))
    async with connect(exchange.url) as client:
        guard = GuardedExchange(client, patience=QUICK)
        await guard.load([APT])
        assert await guard.holding(APT) is None


# --- the lease ---


async def test_nothing_is_sent_without_a_lease(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    with pytest.raises(LeaseNotHeld, match="binance:APTUSDT"):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


async def test_a_lease_on_another_resource_is_no_lease(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease("binance:BTCUSDT"), pytest.raises(LeaseNotHeld):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


async def test_a_lease_with_too_little_left_sends_nothing(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease(seconds=0.3), pytest.raises(LeaseLost):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", ["APTUSDT", APT, "NONE", "NONEUSDT"])
async def test_a_lost_lease_is_told_before_anything_about_the_symbol_of_an_order(
    exchange: LocalExchange, name: str, loaded: bool
) -> None:
    async with connect(exchange.url) as client:
        guard = GuardedExchange(client, patience=QUICK)
        if loaded:
            await guard.load()
        before = len(exchange.record().requests)
        with lease(seconds=-1), pytest.raises(LeaseLost):
            await guard.create_order(name, "market", "buy", 10, None, {"clientOrderId": "lost"})
        assert len(exchange.record().requests) == before, "and nothing is sent, not even for the markets"


async def test_an_order_by_the_exchange_s_own_name_has_the_markets_loaded_first(
    exchange: LocalExchange,
) -> None:
    """As ccxt itself does; only they tell which lease the order needs."""
    async with connect(exchange.url) as client:
        guard = GuardedExchange(client, patience=QUICK)
        order = ("APTUSDT", "market", "buy", 10, None, {"clientOrderId": "first"})
        with pytest.raises(LeaseNotHeld):
            await guard.create_order(*order)
        assert exchange.record().requests == ()
        with lease("binance:BTCUSDT"), pytest.raises(LeaseNotHeld, match="binance:APTUSDT"):
            await guard.create_order(*order)
        assert exchange.record().orders == ()
    async with connect(exchange.url) as client:
        with lease():
            await GuardedExchange(client, patience=QUICK).create_order(*order)
    assert exchange.record().position(APT) == TEN


async def test_entry_stop_and_close_do_what_they_say(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        entry = await guarded.place_entry(APT, "buy", Decimal("10.07"), intent=1)
        assert isinstance(entry, Executed)
        assert (entry.order.filled, entry.order.average) == (Decimal("10.0"), Decimal("8.5"))
        stop = await guarded.place_stop(APT, "sell", entry.order.filled, trigger=Decimal("8.00004"), intent=1)
        assert isinstance(stop, Executed)
        assert stop.order.trigger == Decimal("8.0000")
        assert await guarded.holding(APT) == Holding(APT, "buy", TEN, Decimal("8.5"))
        assert [order.client_id for order in await guarded.open_orders(APT)] == [
            guarded.client_id(APT, 1, Step.STOP)
        ]
        cancelled = await guarded.cancel(stop.order)
        assert isinstance(cancelled, Executed)
        closed = await guarded.close_position(APT, "sell", TEN, intent=1)
        assert isinstance(closed, Executed)
        assert await guarded.holding(APT) is None
    assert exchange.record().position(APT) == 0
    assert exchange.record().orphan_stops() == ()


async def test_a_lease_that_ends_in_ccxts_own_queue_sends_nothing(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease() as held:
        sign = guarded.exchange.sign

        def sign_after_a_stall(*args: Any, **kwargs: Any) -> Any:
            held.mark_lost(LossReason.EXPIRED)
            return sign(*args, **kwargs)

        guarded.exchange.sign = sign_after_a_stall
        with pytest.raises(LeaseLost):
            await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()
    assert Operation.CREATE_ORDER not in [request.operation for request in exchange.record().requests]


async def test_no_call_outlives_its_lease(exchange: LocalExchange) -> None:
    async with connect(exchange.url, config={"timeout": 60_000}) as client:
        guarded = GuardedExchange(client, patience=QUICK)
        await guarded.load()
        exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, hold_ms=60_000))
        with lease(seconds=0.8):
            async with asyncio.timeout(5):
                outcome = await guarded.place_entry(APT, "buy", TEN, intent=1)
        assert isinstance(outcome, Unknown)
        assert "no answer in time" in outcome.message
        requests = [request.operation for request in exchange.record().requests]
        assert requests.count(Operation.CREATE_ORDER) == 1


async def test_a_symbol_may_be_spelt_in_any_way(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    with lease():
        assert isinstance(await guarded.place_entry("APTUSDT", "buy", TEN, intent=1), Executed)
        stop = await guarded.place_stop("APTUSDT", "sell", TEN, trigger=Decimal(8), intent=1)
        assert isinstance(stop, Executed)
        assert stop.order.symbol == APT
        assert await guarded.find_order("APTUSDT", stop.order.client_id) == stop.order
        assert await guarded.open_orders() == await guarded.open_orders("APTUSDT") == (stop.order,)
        assert (await guarded.holding("APTUSDT")) == (await guarded.holding(APT)) is not None
    assert len(exchange.record().entries(APT)) == 1


# --- faults ---

WRITES = {
    Step.ENTRY: Operation.CREATE_ORDER,
    Step.STOP: Operation.CREATE_ALGO,
    Step.CLOSE: Operation.CREATE_ORDER,
}
BEFORE, FIRST, LATE = Execution.NEVER, Execution.FIRST, Execution.LATE
FAULTS = [
    (FaultKind.RATE_LIMITED, BEFORE),
    (FaultKind.CLOCK, BEFORE),
    (FaultKind.OVERLOADED, BEFORE),
    (FaultKind.UNAVAILABLE, BEFORE),
    (FaultKind.UNAVAILABLE, FIRST),
    (FaultKind.TIMEOUT, BEFORE),
    (FaultKind.TIMEOUT, FIRST),
    (FaultKind.HANG, BEFORE),
    (FaultKind.HANG, FIRST),
    (FaultKind.DISCONNECT, BEFORE),
    (FaultKind.DISCONNECT, FIRST),
    (FaultKind.DISCONNECT, LATE),
    (FaultKind.TRUNCATED, FIRST),
]
SURELY_NOT = {FaultKind.RATE_LIMITED, FaultKind.CLOCK, FaultKind.OVERLOADED}


async def act(guarded: GuardedExchange, step: Step, *, again: bool = False) -> Any:
    match step:
        case Step.ENTRY:
            return await guarded.place_entry(APT, "buy", TEN, intent=7, again=again)
        case Step.STOP:
            return await guarded.place_stop(APT, "sell", TEN, trigger=Decimal(8), intent=7, again=again)
        case Step.CLOSE:
            return await guarded.close_position(APT, "sell", TEN, intent=7, again=again)


def done(exchange: LocalExchange, step: Step) -> int:
    record = exchange.record()
    match step:
        case Step.ENTRY:
            return len(record.entries(APT))
        case Step.STOP:
            return len(record.open_stops(APT))
        case Step.CLOSE:
            return len([fill for fill in record.fills if not fill.opened])


async def open_a_position(guarded: GuardedExchange) -> None:
    await guarded.place_entry(APT, "buy", TEN, intent=1)


@pytest.mark.parametrize("lag_ms", [0, 200])
@pytest.mark.parametrize("step", list(Step))
@pytest.mark.parametrize(("kind", "execution"), FAULTS)
async def test_no_fault_doubles_an_order_or_tells_an_untruth(
    exchange: LocalExchange,
    guarded: GuardedExchange,
    kind: FaultKind,
    execution: Execution,
    step: Step,
    lag_ms: int,
) -> None:
    with lease():
        if step is not Step.ENTRY:
            await open_a_position(guarded)
        exchange.set_visibility(
            orders=timedelta(milliseconds=lag_ms), positions=timedelta(milliseconds=lag_ms)
        )
        exchange.inject(
            Fault(kind, WRITES[step], execution, hold_ms=2_000 if kind is FaultKind.HANG else 150)
        )
        outcome = await act(guarded, step)
        match outcome:
            case Executed(order=order):
                assert order.client_id == guarded.client_id(APT, 7, step)
                assert done(exchange, step) == 1
            case Refused(refusal=refusal):
                assert kind in SURELY_NOT
                assert refusal in {Refusal.RATE_LIMITED, Refusal.CLOCK, Refusal.OVERLOADED}
                assert done(exchange, step) == 0
            case Unknown():
                assert step is not Step.STOP  # alone sent again within one call: a second copy could fill too
                assert execution is BEFORE
                assert done(exchange, step) == 0
        # whoever goes on with the same intent ends with one order
        if not isinstance(outcome, Executed):
            assert isinstance(await act(guarded, step, again=True), Executed)
        assert done(exchange, step) == 1
        if step is Step.CLOSE:
            assert exchange.record().position(APT) == 0


async def test_a_successor_finds_what_its_predecessor_ordered(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        await open_a_position(guarded)
        await act(guarded, Step.STOP)
    async with connect(exchange.url) as other:
        successor = GuardedExchange(other, patience=QUICK)
        await successor.load()
        stop = await successor.find_order(APT, successor.client_id(APT, 7, Step.STOP))
        assert stop is not None
        assert (stop.conditional, stop.live, stop.amount) == (True, True, TEN)
        with lease():
            again = await act(successor, Step.STOP, again=True)
            assert isinstance(again, Executed)
            assert again.found
    assert done(exchange, Step.STOP) == 1


async def test_not_visible_yet_is_found_in_the_end(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    exchange.set_visibility(orders=timedelta(milliseconds=250))
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, FIRST))
    with lease():
        outcome = await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert isinstance(outcome, Executed)
    assert outcome.found
    assert outcome.order.filled == TEN


async def test_an_entry_is_not_sent_again_on_binance(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    exchange.set_visibility(orders=timedelta(minutes=5))
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, FIRST))
    with lease():
        outcome = await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert isinstance(outcome, Unknown)
    assert outcome.searched >= QUICK.search
    assert len(exchange.record().entries(APT)) == 1
    assert guarded.in_doubt_for > timedelta(seconds=10)


async def test_a_refused_second_copy_says_nothing_about_the_first(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        await open_a_position(guarded)
        exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CREATE_ALGO, LATE, hold_ms=1_500))
        exchange.inject(Fault(FaultKind.RATE_LIMITED, Operation.CREATE_ALGO))
        outcome = await act(guarded, Step.STOP)
        assert isinstance(outcome, Unknown)
        async with asyncio.timeout(5):
            while not exchange.record().open_stops(APT):
                await asyncio.sleep(0.01)
        assert await guarded.find_order(APT, outcome.client_id, conditional=True) is not None


async def test_a_stop_that_has_fired_tells_its_fill(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        await open_a_position(guarded)
        stop = await act(guarded, Step.STOP)
    exchange.set_price(APT, Decimal("7.9"))
    fired = await guarded.find_order(APT, stop.order.client_id, conditional=True)
    assert fired is not None
    assert (fired.state, fired.filled, fired.average) == (OrderState.CLOSED, TEN, Decimal("7.9"))


async def test_what_is_told_of_an_error_holds_no_signature(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        await open_a_position(guarded)
        stop = await act(guarded, Step.STOP)
        exchange.inject(Fault(FaultKind.DISCONNECT, Operation.CANCEL_ALGO, times=20))
        outcome = await guarded.cancel(stop.order)
    assert isinstance(outcome, Unknown)
    assert "algoOrder?..." in outcome.message
    assert "signature" not in outcome.message


async def test_reads_that_fail_are_not_answers(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    with lease():
        await open_a_position(guarded)
    exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=2))
    assert await guarded.holding(APT) is not None
    exchange.inject(Fault(FaultKind.UNAVAILABLE, Operation.POSITIONS, times=3))
    with pytest.raises(ccxt.ExchangeNotAvailable):
        await guarded.holding(APT)
    exchange.inject(Fault(FaultKind.DISCONNECT, Operation.GET_ORDER, times=20))
    with pytest.raises(ccxt.ExchangeNotAvailable):
        await guarded.find_order(APT, "nobody")
    exchange.clear_faults()
    assert await guarded.find_order(APT, "nobody") is None


# --- refusals ---


async def test_a_stop_already_passed_says_so(guarded: GuardedExchange) -> None:
    with lease():
        await open_a_position(guarded)
        outcome = await guarded.place_stop(APT, "sell", TEN, trigger=Decimal(9), intent=1)
    assert isinstance(outcome, Refused)
    assert (outcome.refusal, outcome.code, outcome.passing) == (Refusal.WOULD_TRIGGER, "-2021", False)


async def test_closing_nothing_says_so(guarded: GuardedExchange) -> None:
    with lease():
        outcome = await guarded.close_position(APT, "sell", TEN, intent=1)
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.REDUCE_ONLY


async def test_bad_input_is_refused_before_any_order(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        for symbol, amount in (("NO/USDT:USDT", "10"), (APT, "0.05"), (APT, "0"), (APT, "1000000")):
            with pytest.raises(ConfigurationError):
                await guarded.place_entry(symbol, "buy", Decimal(amount), intent=1)
        with pytest.raises(ConfigurationError, match="price"):
            await guarded.place_stop(APT, "sell", TEN, trigger=Decimal(0), intent=1)
    assert not [request for request in exchange.record().requests if request.operation.writes]


async def test_keys_that_are_missing_are_a_refusal_and_nothing_is_sent(exchange: LocalExchange) -> None:
    async with connect(exchange.url, config={"apiKey": "", "secret": ""}) as client:
        guarded = GuardedExchange(client, patience=QUICK)
        await guarded.load()
        with lease():
            outcome = await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.NOT_SENT
    assert "apiKey" in outcome.message


async def test_ccxts_blind_retries_are_refused(exchange: LocalExchange) -> None:
    async with connect(exchange.url, config={"options": {"maxRetriesOnFailure": 3}}) as client:
        with pytest.raises(ConfigurationError, match="set it to 0"):
            GuardedExchange(client)


# --- cancelling ---


@pytest.mark.parametrize(("kind", "execution"), FAULTS)
async def test_a_cancelled_stop_is_gone_whatever_the_answer(
    exchange: LocalExchange, guarded: GuardedExchange, kind: FaultKind, execution: Execution
) -> None:
    with lease():
        await open_a_position(guarded)
        stop = await act(guarded, Step.STOP)
        exchange.inject(
            Fault(kind, Operation.CANCEL_ALGO, execution, hold_ms=2_000 if kind is FaultKind.HANG else 1)
        )
        outcome = await guarded.cancel(stop.order)
    if kind in SURELY_NOT:
        assert isinstance(outcome, Refused)
        assert outcome.passing
    else:
        assert isinstance(outcome, Executed)
        assert outcome.order.state is OrderState.CANCELED
        assert done(exchange, Step.STOP) == 0


async def test_somebody_elses_order_can_be_cancelled(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        await open_a_position(guarded)
        params = {"stopLossPrice": "8", "reduceOnly": True, "clientOrderId": "by-hand"}
        await guarded.create_order(APT, "market", "sell", "10", None, params)
        (order,) = await guarded.open_orders(APT)
        assert isinstance(await guarded.cancel(replace(order, client_id="")), Executed)
        again = await guarded.cancel(order)
        assert isinstance(again, Executed)
        gone = await guarded.cancel(replace(order, client_id="never-was", id=""))
        assert isinstance(gone, Refused)
        assert gone.refusal is Refusal.NOT_FOUND


# --- the exchange's own calls ---


async def test_reads_need_no_lease(guarded: GuardedExchange) -> None:
    assert (await guarded.fetch_ticker(APT))["last"] == 8.5
    assert guarded.amount_to_precision(APT, "1.23") == "1.2"
    assert await guarded.fapiPublicGetTime()


async def test_own_calls_that_change_something_need_the_lease(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    for call in (
        lambda: guarded.create_order(APT, "market", "buy", 10, None, {"clientOrderId": "a"}),
        lambda: guarded.createOrder(APT, "market", "buy", 10, None, {"clientOrderId": "a"}),
        lambda: guarded.create_market_buy_order(APT, 10, {"clientOrderId": "a"}),
        lambda: guarded.cancel_all_orders(APT),
        lambda: guarded.set_leverage(3, APT),
        lambda: guarded.set_position_mode(False),
        lambda: guarded.fapiPrivatePostOrder({"symbol": "APTUSDT"}),
        lambda: guarded.fapiprivate_post_order({"symbol": "APTUSDT"}),
    ):
        with pytest.raises(LeaseNotHeld):
            await call()
    assert not [request for request in exchange.record().requests if request.operation.writes]
    with lease():
        await guarded.create_order(APT, "market", "buy", 10, None, {"clientOrderId": "a"})
        await guarded.set_leverage(3, APT)
    assert exchange.record().position(APT) == 10


async def test_an_order_without_a_name_is_refused(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    with lease():
        with pytest.raises(ConfigurationError, match="clientOrderId"):
            await guarded.create_order(APT, "market", "buy", 10)
        orders = [{"symbol": APT, "type": "market", "side": "buy", "amount": 10, "params": {}}]
        with pytest.raises(ConfigurationError, match="clientOrderId"):
            await guarded.create_orders(orders)
    assert exchange.record().orders == ()


async def test_an_own_call_cut_short_by_its_lease_is_ccxts_timeout(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    exchange.inject(Fault(FaultKind.HANG, Operation.CREATE_ORDER, hold_ms=30_000))
    with lease(seconds=0.7), pytest.raises(ccxt.RequestTimeout, match="outcome is unknown"):
        await guarded.create_order(APT, "market", "buy", 10, None, {"clientOrderId": "a"})
