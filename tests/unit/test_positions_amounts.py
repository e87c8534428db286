"""Positions that no single order can close: an exchange changes the steps and limits of its contracts."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockguard_ccxt import OrderState, Step
from lockguard_ccxt._money import MarketRules
from lockguard_positions import PositionStatus, SyncAction
from lockguard_positions._model import IntentOutcome
from tests.unit.positions_in_memory import DOUBT_MS, Desk, held, order, own_stop, position

STEPS = [Decimal("0.001"), Decimal("0.1"), Decimal(1), Decimal(10)]


def rules(*, step: str = "0.1", least: str = "0.1", most: str | None = None) -> MarketRules:
    largest = None if most is None else Decimal(most)
    return MarketRules("APT/USDT:USDT", Decimal(step), Decimal("0.01"), Decimal(least), largest, None)


def market_has(patch: pytest.MonkeyPatch, **now: Any) -> None:
    """From now on the market has other steps and limits."""
    patch.setattr("tests.unit.positions_in_memory.RULES", rules(**now))


def standing(desk: Desk, *, stop: bool = True) -> Desk:
    """What the row says is held, with its stop or without."""
    desk.venue.holdings = [held(str(desk.row.quantity))]
    if stop:
        desk.venue.waiting = [own_stop(amount=desk.row.quantity)]
        desk.venue.orders["lgs-1"] = desk.venue.waiting[0]
    return desk


def sent(desk: Desk) -> list[str]:
    return [what for what in desk.venue.ordered() if what != "write"]


@given(
    held=st.decimals("0.001", "5000", places=3),
    step=st.sampled_from(STEPS),
    least=st.integers(1, 30),
    most=st.none() | st.integers(100, 2000),
)
def test_orders_close_all_but_what_is_below_the_smallest(
    held: Decimal, step: Decimal, least: int, most: int | None
) -> None:
    smallest = step * least
    largest = None if most is None else step * most
    given_rules = MarketRules("A", step, Decimal("0.01"), smallest, largest, Decimal(5))
    whole, left = held - held % step, held
    while (part := given_rules.reduction(left)) is not None:
        assert smallest <= part <= left
        assert largest is None or part <= largest
        assert part % step == 0
        left -= part
    assert left < smallest
    assert left == held - whole or whole < smallest


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("now", [{"step": "100"}, {"least": "11"}])
async def test_an_exit_below_the_smallest_order_is_not_in_doubt_and_leaves_the_stop(
    monkeypatch: pytest.MonkeyPatch, now: dict[str, str], asked_before: bool
) -> None:
    desk = standing(Desk(position(exit_reason="exit" if asked_before else None)))
    market_has(monkeypatch, **now)
    if asked_before:
        intent = desk.doubt(Step.CLOSE, asked=True, age_ms=DOUBT_MS)
        row = await desk.flow.resume(desk.row)
        assert desk.store.settled == [(intent.client_id, IntentOutcome.ABSENT)]
    else:
        row = await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))
    assert sent(desk) == []
    assert (row.status, row.exit_reason) == (PositionStatus.ACTIVE, None)
    assert any("cannot be closed by an order" in told and "button" in told for told in desk.alerts)
    assert not any("ask for more" in told or "may still arrive" in told for told in desk.alerts)
    assert "not closed" in str(desk.row.error_details)


async def test_what_no_order_can_close_is_told_by_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = standing(Desk(position()))
    market_has(monkeypatch, step="100")
    for _ in range(2):
        desk.events.clear()
        outcome = await desk.reconciler.reconcile()
        assert outcome.action is SyncAction.MISMATCH
        assert any("cannot be closed by an order" in told for told in desk.alerts)
    assert sent(desk) == []


@pytest.mark.parametrize("status", ["active", "entry_placed", "pending_sl"])
async def test_what_is_too_small_for_a_stop_is_told_as_unprotected_and_not_sold(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    desk = standing(Desk(position(status)), stop=False)
    market_has(monkeypatch, step="100")
    for _ in range(2):
        desk.events.clear()
        assert (await desk.reconciler.reconcile()).action is SyncAction.UNPROTECTED
        assert any("too small for an order" in told for told in desk.alerts)
    assert sent(desk) == []
    desk.venue.waiting = [order("by hand", trigger="97", closes_all=True)]
    await desk.reconciler.reconcile()
    assert (desk.row.status, desk.row.stop_order_id) == (PositionStatus.ACTIVE, "by hand")


async def test_a_position_larger_than_the_largest_order_is_closed_by_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = standing(Desk(position()))
    market_has(monkeypatch, most="4")
    desk.venue.holdings = [held("6"), held("2"), held("2")]
    row = await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))
    assert (row.status, row.quantity) == (PositionStatus.CLOSED, Decimal(10))
    assert sent(desk) == ["close", "close", "close", "cancel"]
    assert desk.venue.waiting == []


async def test_an_order_that_the_exchange_made_smaller_has_closed_all_there_was() -> None:
    desk = standing(Desk(position()))
    desk.venue.holdings = [None]
    smaller = order("lgc-101", state=OrderState.CLOSED, amount=Decimal(3), filled=Decimal(3))
    desk.venue.becomes = replace(smaller, average=Decimal(99))
    row = await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))
    assert row.status is PositionStatus.CLOSED
    assert sent(desk).count("close") == 1


async def test_a_stop_of_a_position_larger_than_the_largest_order_covers_what_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = standing(Desk(position("entry_placed")), stop=False)
    market_has(monkeypatch, most="4")
    await desk.reconciler.reconcile()
    assert [stop.amount for stop in desk.venue.waiting] == [Decimal(4)]
    assert "its stops cover only a part of it: 4.0 of 10" in desk.alerts
