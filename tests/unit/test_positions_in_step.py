"""Row and exchange compared, and what the manager makes of it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard.errors import LossReason, ResourceBusy, StaleToken
from lockguard_ccxt import Executed, Fill, OrderState, Refusal, Step
from lockguard_positions import Adopt, AlreadyOpen, NotOpened, SyncAction
from lockguard_positions._model import NewPosition
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import (
    LONG,
    LOST,
    SHORT,
    Desk,
    held,
    managed,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import FIRED_IN_PART, NO_ORDER, NoQuote, orders


async def test_a_young_row_is_not_decided_on_by_lists_that_may_lag() -> None:
    for shown, action in ((None, SyncAction.SETTLING), (held(side="sell"), SyncAction.MISMATCH)):
        desk = Desk(position(age_ms=9_999))
        desk.venue.waiting = [own_stop()]
        desk.venue.holdings = [shown]
        outcome = await desk.reconciler.reconcile()
        assert (outcome.action, desk.row.status) == (action, PositionStatus.ACTIVE)
        assert orders(desk) == NO_ORDER
    desk = Desk(position(age_ms=9_999))
    desk.venue.holdings = [held()]
    assert (await desk.reconciler.reconcile()).action is SyncAction.SETTLING
    assert orders(desk) == NO_ORDER


@pytest.mark.parametrize("shown", [None, held(side="sell")], ids=["gone", "turned"])
async def test_a_row_whose_position_is_gone_for_longer_than_the_grace_ends_with_its_stop(shown: Any) -> None:
    desk = Desk(position(age_ms=10_000))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    assert (await desk.reconciler.reconcile()).action is SyncAction.CLOSED
    assert orders(desk) == ["cancel"]


async def test_a_fired_stop_is_proof_however_young_the_row() -> None:
    desk = Desk(position(age_ms=5))
    fired = own_stop(state=OrderState.CLOSED, filled=Decimal(10), average=Decimal("97.9"))
    desk.venue.orders["lgs-1"] = fired
    assert (await desk.reconciler.reconcile()).action is SyncAction.CLOSED
    assert (desk.row.exit_reason, desk.row.exit_price) == ("stop", Decimal("97.9"))


async def test_another_amount_than_the_row_s_is_a_mismatch_and_nothing_is_ordered() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held("7")]
    assert (await desk.reconciler.reconcile()).action is SyncAction.MISMATCH
    assert orders(desk) == NO_ORDER


async def test_a_stop_that_is_not_listed_yet_is_not_placed_twice() -> None:
    desk = Desk(position())
    desk.venue.holdings = [held()]
    desk.venue.orders["lgs-1"] = own_stop()
    assert (await desk.reconciler.reconcile()).action is SyncAction.SETTLING
    assert orders(desk) == NO_ORDER


@pytest.mark.parametrize(("filled", "ends"), [("10", True), ("4", False)])
async def test_a_stop_that_filled_ends_the_row_and_one_that_filled_in_part_is_replaced(
    filled: str, ends: bool
) -> None:
    desk = Desk(position())
    desk.venue.holdings = [held()]
    desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(filled))
    outcome = await desk.reconciler.reconcile()
    assert outcome.action is (SyncAction.CLOSED if ends else SyncAction.STOP_PLACED)
    assert ("stop" in orders(desk)) is not ends


@pytest.mark.parametrize("age_ms", [5, 60_000])
async def test_a_row_has_what_its_own_stop_has_left_and_its_next_stop_is_for_that(age_ms: int) -> None:
    desk = Desk(position(age_ms=age_ms))
    desk.venue.holdings = [held("6")]
    desk.venue.orders["lgs-1"] = own_stop(**FIRED_IN_PART)
    assert (await desk.reconciler.reconcile()).action is SyncAction.STOP_PLACED
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.ACTIVE, Decimal(6))
    assert desk.venue.intent("stop").amount == Decimal(6)
    assert any("filled 4 of 10" in told for told in desk.alerts)


@pytest.mark.parametrize("state", [OrderState.CLOSED, OrderState.CANCELED, OrderState.EXPIRED])
async def test_what_its_stop_has_left_of_our_own_position_does_not_stay_beyond_its_stop(
    state: OrderState,
) -> None:
    """Exchanges call an order whose rest they have ended by several names."""
    desk = Desk(position())
    desk.venue.holdings = [held("6")]
    desk.venue.fills = (Fill("e1", "buy", Decimal(10), 0), Fill("s1", "sell", Decimal(4), 9))
    desk.venue.orders["lgs-1"] = own_stop(state=state, filled=Decimal(4))
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)]
    await desk.reconciler.reconcile()
    assert desk.row.status is PositionStatus.ROLLED_BACK
    assert desk.venue.intent("close").amount == Decimal(6)


@pytest.mark.parametrize("state", [OrderState.CANCELED, OrderState.EXPIRED])
@pytest.mark.parametrize(("filled", "left"), [(4, 6), (10, 0)])
async def test_a_first_stop_counts_by_what_it_has_filled_whatever_its_state_is_called(
    state: OrderState, filled: int, left: int
) -> None:
    desk = Desk(position("pending_sl", stop_client_id="lgs-41"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [held(str(left)) if left else None]
    desk.venue.orders["lgs-41"] = order("lgs-41", trigger="98", state=state, filled=Decimal(filled))
    row = await desk.flow.resume(desk.row)
    assert ("stop" in orders(desk)) is bool(left)
    if left:
        assert (row.status, row.quantity) == (PositionStatus.ACTIVE, Decimal(left))
    else:  # it ends when no copy of the stop can arrive any more
        assert row.exit_reason == "stop"


@pytest.mark.parametrize("state", [OrderState.CLOSED, OrderState.CANCELED])
async def test_an_exit_asked_for_before_its_stop_sold_a_part_is_not_sent_for_all_that_is_held_since(
    state: OrderState,
) -> None:
    """A person has bought as much as the stop has sold: the amount is what it was."""
    desk = Desk(position())
    desk.doubt(Step.CLOSE, asked=True, age_ms=60_000)
    desk.venue.holdings = [held("10")]
    desk.venue.orders["lgs-1"] = own_stop(state=state, filled=Decimal(4))
    await desk.flow.resume(desk.row)
    assert "close" not in orders(desk)


async def test_what_the_stop_before_has_filled_counts_with_that_of_the_next() -> None:
    desk = Desk(position())
    old = desk.doubt(Step.STOP, trigger="97")
    desk.store.doubts, desk.store.may_stand = [], [old]
    desk.venue.holdings = [held("2")]
    desk.venue.orders = {
        "lgs-1": own_stop(**FIRED_IN_PART),
        old.client_id: order(old.client_id, trigger="97", **FIRED_IN_PART),
    }
    assert (await desk.reconciler.reconcile()).action is SyncAction.STOP_PLACED
    assert desk.row.quantity == Decimal(2)


async def test_nothing_is_decided_while_a_stop_that_has_fired_may_be_filled_further() -> None:
    for holding in (held("6"), None):
        desk = Desk(position())
        desk.venue.holdings = [holding]
        desk.venue.orders["lgs-1"] = own_stop(**FIRED_IN_PART, filling=True)
        assert (await desk.reconciler.reconcile()).action is SyncAction.SETTLING
        assert (desk.row.quantity, orders(desk)) == (Decimal(10), NO_ORDER)


async def test_a_stop_that_fired_in_part_is_no_proof_that_a_young_position_is_gone() -> None:
    desk = Desk(position(age_ms=5))
    desk.venue.orders["lgs-1"] = own_stop(**FIRED_IN_PART)
    assert (await desk.reconciler.reconcile()).action is SyncAction.SETTLING
    assert desk.row.status is PositionStatus.ACTIVE


async def test_what_a_first_stop_has_filled_counts_once_for_a_row_that_another_holder_takes_up() -> None:
    desk = Desk(position("pending_sl", stop_client_id="lgs-41"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [held("6")]
    desk.venue.orders["lgs-41"] = order("lgs-41", trigger="98", **FIRED_IN_PART)
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.quantity) == (PositionStatus.ACTIVE, Decimal(6))
    assert desk.venue.intent("stop").amount == Decimal(6)


@pytest.mark.parametrize(("filled", "left"), [(4, 6), (0, 10)])
async def test_a_first_stop_that_fired_in_part_ends_no_row(filled: int, left: int) -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [held(str(left))]
    fired = order("lgs-1", trigger="98", state=OrderState.CLOSED, filled=Decimal(filled))
    desk.venue.answers = [Executed(fired, found=True)]
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.quantity) == (PositionStatus.ACTIVE, Decimal(left))
    assert desk.venue.intent("stop").amount == Decimal(left)


async def test_a_moved_stop_that_fired_in_part_makes_its_row_smaller() -> None:
    desk = Desk(position())
    intent = desk.doubt(Step.STOP, trigger="99")
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held("6")]
    desk.venue.orders = {
        "lgs-1": own_stop(),
        intent.client_id: order(intent.client_id, trigger="99", **FIRED_IN_PART),
    }
    assert (await desk.reconciler.reconcile()).action.settled
    assert (desk.row.quantity, desk.row.stop_client_id) == (Decimal(6), "lgs-1")


@pytest.mark.parametrize(
    ("amount", "shown", "counts"), [("10", "6", True), ("14", "6", False), ("10", "5", False)]
)
async def test_a_stop_that_fired_while_another_took_its_place_counts_once_and_never_what_a_person_sold(
    amount: str, shown: str, counts: bool
) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held(shown)]
    old = replace(desk.doubt(Step.STOP, trigger="97"), amount=Decimal(amount))
    desk.store.doubts, desk.store.may_stand = [], [old]
    desk.venue.orders[old.client_id] = order(old.client_id, trigger="97", **FIRED_IN_PART)
    action = (await desk.reconciler.reconcile()).action
    assert action is (SyncAction.IN_STEP if counts else SyncAction.MISMATCH)
    assert desk.row.quantity == Decimal(6 if counts else 10)
    assert orders(desk) == NO_ORDER


async def test_a_missing_stop_is_replaced_by_one_that_stands_before_another_is_placed() -> None:
    desk = Desk(position())
    desk.venue.holdings = [held()]
    desk.venue.waiting = [order("person", trigger="97")]
    assert (await desk.reconciler.reconcile()).action is SyncAction.STOP_TAKEN_OVER
    assert orders(desk) == NO_ORDER
    assert desk.alerts == []


@pytest.mark.parametrize(("age_ms", "adopted"), [(9_999, False), (10_000, True)])
async def test_the_echo_of_a_position_that_just_ended_is_not_adopted(age_ms: int, adopted: bool) -> None:
    desk = Desk()
    desk.store.ended = position("closed", age_ms=age_ms)
    desk.venue.holdings = [held()]
    outcome = await desk.reconciler.reconcile()
    assert outcome.action is (SyncAction.ADOPTED if adopted else SyncAction.SETTLING)


@pytest.mark.parametrize(("adopt", "alerts"), [(Adopt.OFF, 0), (Adopt.ALERT, 1)])
async def test_what_is_not_to_be_adopted_gets_neither_row_nor_stop(adopt: Adopt, alerts: int) -> None:
    desk = Desk(adopt=adopt)
    desk.venue.holdings = [held()]
    assert (await desk.reconciler.reconcile()).action is SyncAction.LEFT_ALONE
    assert desk.store.row is None
    assert len(desk.alerts) == alerts
    assert orders(desk) == NO_ORDER


async def test_an_adopted_short_gets_a_stop_above_and_is_never_sold_or_bought() -> None:
    desk = Desk()
    desk.venue.holdings = [held(side="sell")]
    assert (await desk.reconciler.reconcile()).action is SyncAction.ADOPTED
    assert desk.row.side is SHORT
    assert orders(desk) == ["stop"]
    assert (desk.venue.intent("stop").side, desk.venue.intent("stop").trigger) == ("buy", Decimal("102.00"))


async def test_a_position_of_the_account_s_other_label_is_not_adopted() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    desk.store.others = [position(exchange="binance@x")]
    desk.venue.orders["lgs-1"] = own_stop()
    assert (await desk.reconciler.reconcile()).action is SyncAction.LEFT_ALONE
    assert "One account under two labels" in desk.alerts[0]


async def test_stops_are_taken_back_only_where_there_is_neither_row_nor_position() -> None:
    loose, opens = order("loose", trigger="97"), order("opens", trigger="97", reduce_only=False)
    desk = Desk()
    desk.venue.waiting = [loose, opens]
    assert [one.action for one in await desk.reconciler.take_back_stops()] == [SyncAction.STOP_TAKEN_BACK]
    assert [what for what in desk.venue.sent if what[0] == "cancel"] == [("cancel", "loose")]
    for row, shown in ((position(), None), (None, held())):
        desk = Desk(row)
        desk.venue.waiting = [loose]
        desk.venue.holdings = [shown]
        assert await desk.reconciler.take_back_stops() == ()
        assert orders(desk) == NO_ORDER
    desk = Desk()
    desk.store.ended = position("closed", age_ms=5)
    desk.venue.waiting = [loose]
    assert [one.action for one in await desk.reconciler.take_back_stops()] == [SyncAction.SETTLING]


async def opened(desk: Desk) -> Any:
    manager, _ = managed(desk)
    new = NewPosition(
        *("binance", "APTUSDT", LONG, Decimal(10), Decimal(100), Decimal(2)), "s", market="APT/USDT:USDT"
    )
    inside: Any = manager
    return await inside._open(desk.scope, new, NoQuote())


async def test_what_the_exchange_holds_already_is_adopted_and_not_opened_beside() -> None:
    desk = Desk()
    desk.venue.holdings = [held()]
    result = await opened(desk)
    assert isinstance(result, AlreadyOpen)
    assert "enter" not in orders(desk)
    for adopt, passing in ((Adopt.OFF, False), (Adopt.STOP, True)):
        desk = Desk()
        desk.venue.holdings = [held()]
        if adopt is Adopt.STOP:
            desk.store.ended = position("closed", age_ms=5)
        manager, _ = managed(desk)
        inside: Any = manager
        inside._adopt = adopt
        new = NewPosition("binance", "APTUSDT", LONG, Decimal(10), Decimal(100), Decimal(2), "s")
        result = await inside._open(desk.scope, new, NoQuote())
        assert isinstance(result, NotOpened)
        assert result.passing is passing
        assert orders(desk) == NO_ORDER


async def test_a_signal_that_meets_a_position_in_doubt_is_to_be_tried_again() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.AUTHENTICATION)]
    result = await opened(desk)
    assert isinstance(result, NotOpened)
    assert result.passing


async def test_a_pass_waits_for_nobody_and_the_end_of_one_lease_ends_no_other_symbol() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    manager, guard = managed(desk)
    guard.fails = {
        "binance:BUSY": ResourceBusy("busy", resource="binance:BUSY", holder="h"),
        "binance:LOST": desk.lease.lost_error(LossReason.REFUSED),
        "binance:STALE": StaleToken("stale", resource="binance:STALE", presented=1, current=2),
        "binance:ODD": KeyError("odd"),
    }
    inside: Any = manager
    symbols = ("BUSY", "LOST", "STALE", "ODD", "APTUSDT")
    outcomes = await inside._each(desk.venue, symbols, operation="sync")
    assert [one.action for one in outcomes] == [
        SyncAction.BUSY,
        SyncAction.IN_DOUBT,
        SyncAction.IN_DOUBT,
        SyncAction.FAILED,
        SyncAction.IN_STEP,
    ]
    assert {on_busy for _, on_busy in guard.holds} == {"raise"}


async def test_a_person_s_close_is_carried_on_with_by_the_next_holder() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.answers = [LOST]
    manager, _ = managed(desk)
    await manager.close_position("APTUSDT", "binance")
    assert desk.venue.intent("close").asked
    assert desk.row.exit_reason == "exit"


async def test_an_exit_for_what_was_held_before_is_not_made_again_for_what_is_held_now() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held("4")]
    desk.doubt(Step.CLOSE, asked=True)
    manager, _ = managed(desk)
    row = await manager.close_position("APTUSDT", "binance")
    assert row is not None
    assert row.status.open
    assert "close" not in orders(desk)
