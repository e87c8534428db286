"""A stop that is moved: the new one stands before the old one goes, also where answers are lost."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import OrderState, Refusal, Step
from lockguard_positions import Moved, SyncAction
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import IntentOutcome
from lockguard_positions._status import PositionStatus
from lockguard_positions._telling import LeftWithoutStop
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    MS,
    Desk,
    held,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import NO_ORDER, none_may_arrive_now, orders


async def test_the_row_has_the_new_stop_before_the_old_one_is_cancelled() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    await desk.reconciler.move_stop(Decimal(99))
    assert desk.venue.ordered() == ["stop", "write", "cancel"]
    assert [one.trigger for one in desk.venue.waiting] == [Decimal(99)]
    assert ("cancel", "s1") in desk.venue.sent


@pytest.mark.parametrize(("age_ms", "settled"), [(DOUBT_MS - 1, False), (DOUBT_MS, True)])
async def test_a_move_of_an_earlier_holder_is_looked_for_and_never_sent_again(
    age_ms: int, settled: bool
) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    intent = desk.doubt(Step.STOP, trigger="99", age_ms=age_ms)
    await desk.flow.resume(desk.row)
    assert orders(desk) == NO_ORDER
    assert ((intent.client_id, IntentOutcome.ABSENT) in desk.store.settled) is settled


@pytest.mark.parametrize(
    ("shown", "stands", "never_placed", "placed"),
    [
        (None, True, SyncAction.CLOSED, SyncAction.IN_DOUBT),  # a copy of what was placed may still arrive
        (held(side="sell"), True, SyncAction.CLOSED, SyncAction.IN_DOUBT),
        (held("4"), True, SyncAction.MISMATCH, SyncAction.MISMATCH),
        (held(), True, SyncAction.RECOVERED, SyncAction.RECOVERED),
        (held(), False, SyncAction.STOP_PLACED, SyncAction.RECOVERED),  # the new one is not listed yet
    ],
    ids=["flat", "turned", "smaller", "held", "without its old stop"],
)
async def test_a_pass_that_ends_a_move_in_doubt_looks_at_the_position_and_its_stop_too(
    shown: Any, stands: bool, never_placed: SyncAction, placed: SyncAction
) -> None:
    for came, action in ((False, never_placed), (True, placed)):
        desk = Desk(position())
        desk.venue.waiting = [own_stop()] if stands else []
        desk.venue.holdings = [shown]
        intent = desk.doubt(Step.STOP, trigger="99", age_ms=DOUBT_MS)
        if came:
            desk.venue.orders[intent.client_id] = order(intent.client_id, trigger="99")
        assert (await desk.reconciler.reconcile()).action is action
        assert desk.row.status.open is (action is not SyncAction.CLOSED)
        assert ("stop" in orders(desk)) is (action is SyncAction.STOP_PLACED)


@pytest.mark.parametrize(
    ("shown", "stop", "action", "done"),
    [
        (held(), "stands", SyncAction.IN_DOUBT, []),
        (held(), "taken back", SyncAction.IN_DOUBT, ["stop"]),
        (held(), "a person's", SyncAction.IN_DOUBT, []),
        (held("4"), "stands", SyncAction.MISMATCH, []),
        (None, "stands", SyncAction.IN_DOUBT, ["cancel", "cancel"]),
        (None, "fired", SyncAction.IN_DOUBT, ["cancel"]),
        (held(side="sell"), "stands", SyncAction.IN_DOUBT, ["cancel", "cancel"]),
    ],
)
async def test_a_pass_beside_a_move_in_doubt_looks_at_the_position_and_its_old_stop(
    shown: Any, stop: str, action: SyncAction, done: list[str]
) -> None:
    """For the 17 s in which the new stop may still arrive, a position may have lost its old one."""
    desk = Desk(position())
    desk.venue.holdings = [shown]
    intent = desk.doubt(Step.STOP, trigger="99", age_ms=DOUBT_MS - 1)
    desk.store.unanswered = desk.store.may_stand = [intent]
    match stop:
        case "stands":
            desk.venue.waiting = [own_stop()]
        case "a person's":
            desk.venue.waiting = [order("by-hand", trigger="97")]
        case "fired":
            desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(10))
            desk.store.may_stand = []
    outcome = await desk.reconciler.reconcile()
    assert (outcome.action, outcome.action.settled) == (action, False)
    assert [what for what in orders(desk) if what in ("stop", "cancel", "close")] == done
    assert desk.row.status is PositionStatus.ACTIVE  # a row that is flat waits until no stop can arrive
    if done == ["stop"]:
        assert desk.venue.intent("stop").trigger == Decimal(98)
        assert desk.row.stop_client_id == desk.venue.intent("stop").client_id
    if stop == "a person's":
        assert desk.row.stop_client_id == "by-hand"


async def test_a_moved_stop_that_comes_late_takes_the_place_of_the_one_that_was_put_back() -> None:
    desk = Desk(position())
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.STOP, trigger="99")
    await desk.reconciler.reconcile()
    put_back = desk.row.stop_client_id
    desk.venue.orders[intent.client_id] = order(intent.client_id, trigger="99")
    desk.venue.waiting.append(desk.venue.orders[intent.client_id])
    assert (await desk.reconciler.reconcile()).action is SyncAction.RECOVERED
    assert put_back != desk.row.stop_client_id == intent.client_id
    assert [one.client_id for one in desk.venue.waiting] == [intent.client_id]


async def test_a_moved_stop_that_arrives_while_a_pass_looks_is_not_taken_back() -> None:
    """It is not found a moment before it is listed: to cancel it then would undo what a person asked for."""
    desk = Desk(position())
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.STOP, trigger="99")
    desk.venue.waiting = [own_stop(), order(intent.client_id, trigger="99")]
    assert (await desk.reconciler.reconcile()).action is SyncAction.IN_DOUBT
    assert orders(desk) == NO_ORDER


def slowly(read: Any) -> Any:
    """The same read, with time for what is due meanwhile."""

    async def later(*args: Any) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        return await read(*args)

    return later


@pytest.mark.parametrize("said", ["refused", "waits"])
async def test_a_flat_row_that_waits_for_a_late_copy_of_its_stop_is_not_told_to_be_without_one(
    said: str,
) -> None:
    desk = Desk(position("pending_sl"))
    stop = desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 2
    if said == "waits":  # the copy was noted by the pass before this one
        desk.store.doubts = []
        desk.store.unanswered = [stop]
        desk.venue.waiting_stops = slowly(desk.venue.waiting_stops)  # type: ignore[method-assign]
    heard: list[Any] = []
    left = LeftWithoutStop(0 * MS, desk.store.get, heard.append)
    outcome = await desk.reconciler.reconcile()
    left.saw(Moved(desk.row, None, "open"))
    async with asyncio.timeout(5):
        while left.pending:
            await asyncio.sleep(0.001)
    assert (outcome.action, desk.row.status) == (SyncAction.IN_DOUBT, PositionStatus.PENDING_SL)
    assert outcome.details == desk.row.error_details
    assert "no stop of it stands, and none can arrive" in outcome.details
    told = [*desk.alerts, *heard]
    assert [alert for alert in told if "it has no stop" in alert or "without a stop" in str(alert)] == []
    assert any("a stop of it may still arrive" in alert for alert in desk.alerts)
    none_may_arrive_now(desk)
    await desk.reconciler.reconcile()
    assert desk.row.status is PositionStatus.CLOSED


async def test_whether_a_row_is_flat_that_cannot_be_looked_at_may_be_a_position_without_a_stop() -> None:
    desk = Desk(position("pending_sl"))
    desk.store.unanswered = [desk.doubt(Step.STOP, trigger="98")]
    desk.store.doubts = []
    desk.venue.unreadable = True
    with pytest.raises(ExchangeUnreadable):
        await desk.reconciler.reconcile()
    assert any("it may be without a stop" in alert for alert in desk.alerts)


async def test_a_stop_that_could_not_be_replaced_is_not_told_as_placed() -> None:
    """The price is beyond it already, and what is held may be a person's: it is left as it is."""
    desk = Desk(position(entry_order_id=None))
    desk.venue.holdings = [held()]
    desk.venue.last_price = Decimal(90)
    outcome = await desk.reconciler.reconcile()
    assert (outcome.action, orders(desk)) == (SyncAction.UNPROTECTED, NO_ORDER)
    assert any("it has no stop" in alert for alert in desk.alerts)


@pytest.mark.parametrize("state", [OrderState.CLOSED, OrderState.CANCELED])
async def test_a_moved_stop_that_has_ended_does_not_become_the_row_s(state: OrderState) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    intent = desk.doubt(Step.STOP, trigger="99")
    desk.venue.orders[intent.client_id] = order(intent.client_id, trigger="99", state=state)
    row = await desk.flow.resume(desk.row)
    assert row.stop_order_id == "s1"
    assert orders(desk) == NO_ORDER


async def test_the_old_stops_stay_while_the_new_one_is_not_shown() -> None:
    """An exchange may take an order and drop it a moment later."""
    desk = Desk(position())
    old = order("lgs-0", trigger="97")
    desk.venue.waiting = [old]
    desk.store.stops.add("lgs-0")
    await desk.flow.sweeper.sweep_old(desk.row)
    assert orders(desk) == NO_ORDER
    desk.venue.orders["lgs-1"] = own_stop()
    await desk.flow.sweeper.sweep_old(desk.row)
    assert orders(desk) == ["cancel"]


async def test_a_stop_is_only_moved_while_the_row_is_active() -> None:
    desk = Desk(position("pending_entry", entry_order_id=None))
    desk.doubt(Step.ENTRY)
    with pytest.raises(ConfigurationError, match="pending_entry"):
        await desk.reconciler.move_stop(Decimal(99))


async def test_no_stop_is_moved_beside_an_exit_in_doubt() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True)
    outcome = await desk.reconciler.move_stop(Decimal(99))
    assert (outcome.action, orders(desk)) == (SyncAction.IN_DOUBT, NO_ORDER)


async def test_no_stop_is_moved_beside_a_move_in_doubt() -> None:
    """The first stop, arriving late, would replace the one that was asked for after it."""
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.doubt(Step.STOP, trigger="97")
    outcome = await desk.reconciler.move_stop(Decimal(99))
    assert (outcome.action, orders(desk)) == (SyncAction.IN_DOUBT, NO_ORDER)


@pytest.mark.parametrize(("loose", "action"), [(True, SyncAction.IN_DOUBT), (False, SyncAction.ENDED)])
async def test_what_ended_with_a_stop_in_doubt_is_not_settled(loose: bool, action: SyncAction) -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    stop = desk.doubt(Step.STOP, trigger="97")
    desk.doubt(Step.CLOSE, asked=True, refused=True)
    desk.store.loose = [stop] if loose else []
    outcome = await desk.reconciler.reconcile()
    assert (desk.row.status, outcome.action) == (PositionStatus.CLOSED, action)
