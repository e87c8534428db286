"""The local exchange's arithmetic, without a network."""

from __future__ import annotations

from decimal import Decimal
from itertools import product

import pytest

from lockguard_lab.exchange import AlgoStatus, MarketSpec, OrderStatus, OrderType, Position, Side, market_for
from lockguard_lab.exchange.account import net
from lockguard_lab.exchange.engine import Engine
from lockguard_lab.exchange.faults import Execution, Fault, FaultKind, FaultPlan, Operation
from lockguard_lab.exchange.model import NewAlgoOrder, NewOrder
from lockguard_lab.exchange.record import decode, encode
from lockguard_lab.exchange.rejections import Rejection
from lockguard_lab.exchange.timeline import Timeline
from lockguard_lab.exchange.venue import MarketData

SPEC = MarketSpec("APT", price=Decimal(8), tick=Decimal("0.01"), step=Decimal("0.1"))


@pytest.fixture
def engine() -> Engine:
    return Engine(MarketData([SPEC]), wallet=Decimal(10_000), fee_rate=Decimal("0.001"))


def move(engine: Engine, price: Decimal, now_ms: int) -> None:
    engine.venue.prices["APTUSDT"] = engine.venue.marks["APTUSDT"] = price
    engine.price_moved("APTUSDT", now_ms)


def order(side: Side, qty: str, *, reduce_only: bool = False, price: str | None = None) -> NewOrder:
    kind = OrderType.MARKET if price is None else OrderType.LIMIT
    return NewOrder(
        "APTUSDT", side, kind, Decimal(qty), "id", None if price is None else Decimal(price), reduce_only
    )


def stop(side: Side, trigger: str, *, qty: str = "10", client_id: str = "stop") -> NewAlgoOrder:
    return NewAlgoOrder(
        "APTUSDT", side, OrderType.STOP_MARKET, Decimal(qty), client_id, Decimal(trigger), reduce_only=True
    )


QUANTITIES = [Decimal(n) for n in (-3, -1, 0, 1, 3)]


@pytest.mark.parametrize(
    ("held", "side", "qty"), list(product(QUANTITIES, Side, [Decimal(1), Decimal(2), Decimal(5)]))
)
def test_netting_adds_up(held: Decimal, side: Side, qty: Decimal) -> None:
    before = Position("X", held, Decimal(10) if held else Decimal(0))
    after = net(SPEC, before, side, Decimal(12), qty, 1)
    signed = qty * side.sign
    assert after.position.qty == held + signed
    assert after.opened == max(
        Decimal(0), abs(held + signed) - abs(held) if held * signed >= 0 else qty - abs(held)
    )
    closed = qty - after.opened
    assert after.realized == closed * 2 * (1 if held > 0 else -1)
    assert (after.position.entry_price == 0) == (after.position.qty == 0)


def test_the_entry_price_is_the_average() -> None:
    first = net(SPEC, Position("X"), Side.BUY, Decimal(10), Decimal(1), 0).position
    second = net(SPEC, first, Side.BUY, Decimal(13), Decimal(2), 0).position
    assert second.entry_price == 12
    assert net(SPEC, second, Side.SELL, Decimal(20), Decimal(1), 0).position.entry_price == 12
    assert net(SPEC, second, Side.SELL, Decimal(20), Decimal(5), 0).position.entry_price == 20


def test_profit_and_fees_reach_the_wallet(engine: Engine) -> None:
    engine.place(order(Side.BUY, "10"), 0)
    move(engine, Decimal(9), 1)
    engine.place(order(Side.SELL, "10", reduce_only=True), 2)
    assert engine.account.wallet("USDT") == 10_000 + 10 - Decimal("0.08") - Decimal("0.09")


def test_reduce_only_is_cut_to_the_position(engine: Engine) -> None:
    engine.place(order(Side.BUY, "3"), 0)
    closed = engine.place(order(Side.SELL, "10", reduce_only=True), 1)
    assert (closed.status, closed.executed) == (OrderStatus.FILLED, 3)
    assert engine.account.position("APTUSDT").qty == 0


def test_a_resting_reduce_only_order_expires_when_nothing_is_left(engine: Engine) -> None:
    engine.place(order(Side.BUY, "3"), 0)
    resting = engine.place(order(Side.SELL, "3", reduce_only=True, price="9"), 1)
    engine.place(NewOrder("APTUSDT", Side.SELL, OrderType.MARKET, Decimal(3), "other", reduce_only=True), 2)
    move(engine, Decimal(10), 3)
    assert engine.order("APTUSDT", resting.id, None).status is OrderStatus.EXPIRED
    assert engine.account.position("APTUSDT").qty == 0


def test_an_unfilled_immediate_order_expires(engine: Engine) -> None:
    new = NewOrder("APTUSDT", Side.BUY, OrderType.LIMIT, Decimal(3), "ioc", Decimal(7), time_in_force="IOC")
    assert engine.place(new, 0).status is OrderStatus.EXPIRED


def test_two_stops_fire_in_order_and_the_second_finds_nothing(engine: Engine) -> None:
    engine.place(order(Side.BUY, "10"), 0)
    first = engine.place_algo(stop(Side.SELL, "7.5", client_id="a"), 1)
    second = engine.place_algo(stop(Side.SELL, "7.4", client_id="b"), 1)
    move(engine, Decimal(7), 2)
    assert engine.algo_order(first.id, None).status is AlgoStatus.FINISHED
    assert engine.algo_order(second.id, None).status is AlgoStatus.REJECTED
    assert engine.account.position("APTUSDT").qty == 0


@pytest.mark.parametrize(
    ("opening", "side", "trigger"), [(Side.BUY, Side.SELL, "8"), (Side.SELL, Side.BUY, "8")]
)
def test_a_stop_at_the_price_would_trigger_at_once(
    engine: Engine, opening: Side, side: Side, trigger: str
) -> None:
    engine.place(order(opening, "10"), 0)
    with pytest.raises(Rejection, match="-2021"):
        engine.place_algo(stop(side, trigger), 1)


def test_the_newest_of_equal_client_ids_is_found(engine: Engine) -> None:
    engine.place(order(Side.BUY, "1"), 0)
    newest = engine.place(order(Side.BUY, "2"), 1)
    assert engine.order("APTUSDT", None, "id") == newest


def test_an_order_is_seen_as_it_was(engine: Engine) -> None:
    resting = engine.place(order(Side.BUY, "3", price="7"), 100)
    move(engine, Decimal(6), 200)
    with pytest.raises(Rejection, match="-2013"):
        engine.order("APTUSDT", resting.id, None, 99)
    assert engine.order("APTUSDT", resting.id, None, 150).status is OrderStatus.NEW
    assert engine.order("APTUSDT", resting.id, None, 200).status is OrderStatus.FILLED


def test_a_timeline_forgets_what_is_long_past() -> None:
    timeline = Timeline(0, 0)
    for instant in range(1, 2000):
        timeline.put(instant, instant)
    assert timeline.now == 1999
    assert timeline.as_of(1998) == 1998
    assert timeline.as_of(0) is None


def test_rows_survive_json(engine: Engine) -> None:
    placed = engine.place(order(Side.BUY, "10"), 0)
    algo = engine.place_algo(stop(Side.SELL, "7"), 1)
    for row in (placed, algo, engine.account.fills[0], engine.account.position("APTUSDT")):
        assert decode(type(row), encode(row)) == row
    fault = Fault(FaultKind.HANG, Operation.CREATE_ALGO, Execution.LATE, symbol="APTUSDT", skip=2)
    assert decode(Fault, encode(fault)) == fault


@pytest.mark.parametrize(
    "row",
    [
        {"kind": "nope"},
        {"kind": "hang", "skip": -1},
        {},
        {"kind": "hang", "x": 1},
        {"kind": "hang", "operation": "trigger"},
        {"kind": "expires", "operation": "get_order"},
        {"kind": "rests", "share": "1"},
    ],
)
def test_rows_that_are_no_fault_are_refused(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(Fault, row)


def test_a_fault_counts_only_what_it_matches() -> None:
    plan = FaultPlan()
    fault = Fault(FaultKind.HANG, Operation.CREATE_ORDER, symbol="A", skip=1, times=2)
    plan.add(fault)
    assert plan.take(Operation.CREATE_ORDER, "B") is None
    assert plan.take(Operation.GET_ORDER, "A") is None
    assert [plan.take(Operation.CREATE_ORDER, "A") for _ in range(4)] == [None, fault, fault, None]
    assert plan.waiting == ()


def test_known_contracts_have_their_own_steps() -> None:
    assert market_for("btc/usdt:usdt").step == Decimal("0.001")
    assert market_for("BTCUSDT_270326").tick == Decimal("0.10")
    assert market_for("BTCUSDT_270326").symbol == "BTC/USDT:USDT-270326"
