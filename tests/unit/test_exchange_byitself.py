"""What the local exchange does by itself: liquidation, auto-deleveraging, the end of an order's rest."""

from __future__ import annotations

from decimal import Decimal

import pytest

from lockguard_lab.exchange import byhand, byitself
from lockguard_lab.exchange.byhand import HandOrder, HandStop
from lockguard_lab.exchange.control import WALLET
from lockguard_lab.exchange.desk import Desk
from lockguard_lab.exchange.faults import Fault, FaultKind, Operation
from lockguard_lab.exchange.markets import MarketSpec
from lockguard_lab.exchange.model import AlgoStatus, OrderStatus, Origin, Side
from lockguard_lab.exchange.signature import Credentials

ID = "AAAUSDT"


@pytest.fixture
def desk() -> Desk:
    spec = MarketSpec("AAA", price=Decimal(10), tick=Decimal("0.001"), step=Decimal("0.1"))
    desk = Desk([spec], wallet=WALLET, credentials=Credentials("key", "secret"))
    byhand.trade(desk, HandOrder(ID, Side.BUY, Decimal(6)))
    byhand.stop(desk, HandStop(ID, Side.SELL, Decimal(9), qty=Decimal(6)))
    return desk


def held(desk: Desk) -> Decimal:
    return desk.engine().account.position(ID).qty


def test_a_liquidation_ends_the_orders_and_closes_a_share_without_an_order_of_the_account(desk: Desk) -> None:
    order = byitself.liquidate(desk, ID, Decimal("0.33"))
    assert order is not None
    assert (order.origin, order.executed, held(desk)) == (Origin.EXCHANGE, Decimal("1.9"), Decimal("4.1"))
    assert [algo.status for algo in desk.engine().algo_orders()] == [AlgoStatus.EXPIRED]
    byitself.liquidate(desk, ID, Decimal(1))
    assert held(desk) == 0
    assert byitself.liquidate(desk, ID, Decimal(1)) is None


def test_a_deleveraging_leaves_the_orders_and_takes_at_least_one_step(desk: Desk) -> None:
    order = byitself.deleverage(desk, ID, Decimal("0.001"))
    assert order is not None
    assert (order.client_id, order.executed, held(desk)) == ("adl_autoclose", Decimal("0.1"), Decimal("5.9"))
    assert [algo.status for algo in desk.engine().algo_orders()] == [AlgoStatus.NEW]


def test_the_rest_of_an_order_that_was_filled_in_part_is_ended_by_the_exchange(desk: Desk) -> None:
    desk.inject(Fault(FaultKind.RESTS, Operation.TRIGGER, share=Decimal("0.5")))
    desk.set_price(ID, Decimal("8.9"))
    (order,) = desk.engine().open_orders()
    assert (order.status, order.executed) == (OrderStatus.PARTIALLY_FILLED, Decimal(3))
    desk.engine().expire_rests(ID, desk.now_ms)
    assert not list(desk.engine().open_orders())
    ended = desk.engine().order(ID, order.id, None)
    assert (ended.status, ended.executed, held(desk)) == (OrderStatus.EXPIRED, Decimal(3), Decimal(3))
