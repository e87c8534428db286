"""What is left of an entry that was filled in part, whose cancel is refused for now or in doubt.

Whatever it fills later is the row's own: the row says so, its stop covers it, and no row ends beside it.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard_ccxt import Executed, OrderState, PlacedOrder, Refusal, Step
from lockguard_positions import SyncAction
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import Intent, Progress
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import DOUBT_MS, LOST, Desk, held, order, position, refused

TOLD = "what is left of its entry could still be filled"


def entry(filled: str, *, state: OrderState = OrderState.OPEN) -> PlacedOrder:
    """The entry of ten, of which so much is filled."""
    part = {"filled": Decimal(filled), "average": Decimal(100)}
    return order("lge-1", side="buy", state=state, reduce_only=False, **part)


def shows(desk: Desk, now: PlacedOrder) -> None:
    """What the exchange shows of the entry by now, and of what is held."""
    desk.venue.orders["lge-1"] = now
    desk.venue.waiting = [one for one in desk.venue.waiting if one.client_id != "lge-1"]
    desk.venue.waiting += [now] if now.live else []
    desk.venue.holdings = [held(str(now.filled))]


def all_filled(desk: Desk) -> None:
    """All that was left is filled before any cancel gets through."""
    shows(desk, entry("10", state=OrderState.CLOSED))


async def opened_in_part(cancel: Any = None) -> Desk:
    """A position whose entry has filled 4 of 10, and rests with the others: no cancel gets through."""
    desk = Desk()
    desk.venue.answers = [Executed(entry("4"))]
    shows(desk, entry("4"))
    desk.venue.cancels["lge-1"] = cancel or refused(Refusal.AUTHENTICATION)
    assert (await desk.open()).status is PositionStatus.ACTIVE
    remember_stops(desk)
    return desk


def remember_stops(desk: Desk) -> None:
    """The table has the intents of the stops that were placed."""
    sent = [intent for what, intent in desk.venue.sent if what == "stop"]
    desk.store.may_stand = [replace(intent, age_ms=DOUBT_MS) for intent in sent]


def stops(desk: Desk) -> list[Decimal]:
    """For how much each waiting stop is."""
    return [one.amount for one in desk.venue.waiting if one.conditional]


def entry_in_doubt(desk: Desk) -> bool:
    return any(one.step is Step.ENTRY for one in desk.store.doubts)


def another_holder(desk: Desk) -> Any:
    """The flow of another holder, which knows only what the table says."""
    anything: Any = Desk(desk.row).scope
    return type(desk.flow)(replace(anything, venue=desk.venue, store=desk.store, emit=desk.events.append))


async def a_pass(desk: Desk) -> SyncAction:
    """A pass of another holder."""
    flow = another_holder(desk)
    reconciler = type(desk.reconciler)(
        flow._scope, flow, adopt=desk.reconciler._adopt, adopt_stop_loss_percent=Decimal(2)
    )
    desk.store.row = replace(desk.row, age_ms=60_000)
    outcome = await reconciler.reconcile()
    remember_stops(desk)
    return outcome.action


@pytest.mark.parametrize("cancel", [refused(Refusal.AUTHENTICATION), LOST], ids=["refused", "in doubt"])
async def test_what_an_entry_fills_after_a_cancel_failed_is_the_row_s_and_has_a_stop(cancel: Any) -> None:
    desk = await opened_in_part(cancel)
    assert (desk.row.quantity, stops(desk)) == (Decimal(4), [Decimal(4)])
    all_filled(desk)
    await a_pass(desk)
    assert desk.row.quantity == Decimal(10)
    assert stops(desk) == [Decimal(10)]
    assert any("its entry was filled further: 6 more" in told for told in desk.alerts)
    assert not entry_in_doubt(desk)
    assert await a_pass(desk) is SyncAction.IN_STEP


async def test_what_is_left_of_an_entry_is_told_and_taken_back_by_the_next_pass() -> None:
    desk = await opened_in_part()
    told = "the entry lge-1 has filled 4 of 10, and what is left cannot be taken back now"
    assert told in desk.alerts
    for _ in range(2):
        desk.events.clear()
        assert await a_pass(desk) is SyncAction.IN_DOUBT
        assert any(alert.startswith(f"{TOLD}: lge-1 has filled 4 of 10") for alert in desk.alerts)
        assert entry_in_doubt(desk)
    desk.venue.cancels.clear()
    await a_pass(desk)
    assert not entry_in_doubt(desk)
    assert (desk.row.quantity, stops(desk)) == (Decimal(4), [Decimal(4)])
    assert [one.client_id for one in desk.venue.waiting] == [desk.row.stop_client_id]
    assert await a_pass(desk) is SyncAction.IN_STEP


async def test_a_part_that_is_filled_while_more_is_left_counts_at_once_and_once() -> None:
    desk = await opened_in_part()
    shows(desk, entry("7"))
    assert await a_pass(desk) is SyncAction.IN_DOUBT
    assert (desk.row.quantity, stops(desk)) == (Decimal(7), [Decimal(7)])
    assert await a_pass(desk) is SyncAction.IN_DOUBT
    assert (desk.row.quantity, stops(desk)) == (Decimal(7), [Decimal(7)])
    all_filled(desk)
    await a_pass(desk)
    assert (desk.row.quantity, stops(desk)) == (Decimal(10), [Decimal(10)])


async def test_a_stop_for_what_was_filled_later_is_tried_until_it_stands() -> None:
    desk = await opened_in_part()
    all_filled(desk)
    desk.venue.answers = [refused(Refusal.LIMIT)]
    assert await a_pass(desk) is not SyncAction.IN_STEP
    assert (desk.row.quantity, stops(desk)) == (Decimal(10), [Decimal(4)])
    assert entry_in_doubt(desk)
    await a_pass(desk)
    assert stops(desk) == [Decimal(10)]
    assert not entry_in_doubt(desk)


async def test_a_position_whose_entry_fills_further_before_its_stop_gets_one_for_all() -> None:
    desk = Desk(position("entry_placed", quantity=Decimal(4)))
    desk.doubt(Step.ENTRY)
    desk.store.doubts[0] = replace(desk.store.doubts[0], client_id="lge-1", amount=Decimal(10))
    desk.store.parts = Decimal(4)
    all_filled(desk)
    await desk.flow.resume(desk.row)
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.ACTIVE, Decimal(10))
    assert stops(desk) == [Decimal(10)]


async def test_no_row_ends_and_no_stop_goes_while_its_entry_may_be_filled() -> None:
    desk = await opened_in_part()
    await close(desk)
    desk.venue.holdings = [None]
    assert desk.row.status.open
    assert stops(desk) == [Decimal(4)]
    assert any(alert.startswith(TOLD) for alert in desk.alerts)
    desk.venue.cancels.clear()
    await desk.flow.drive(Progress(desk.row, closing(desk)))
    assert desk.row.status is PositionStatus.CLOSED
    assert desk.row.quantity == Decimal(4)
    assert not entry_in_doubt(desk)
    assert stops(desk) == []


async def test_what_an_entry_fills_as_its_position_is_closed_is_closed_too() -> None:
    desk = await opened_in_part()
    desk.venue.cancels.clear()
    filled_meanwhile(desk)
    await close(desk)
    sold = [intent.amount for what, intent in desk.venue.sent if what == "close"]
    assert sold == [Decimal(4), Decimal(6)]
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.CLOSED, Decimal(10))


async def test_what_an_entry_fills_after_an_exit_of_an_earlier_holder_is_kept_with_a_stop() -> None:
    """A person may have traded since: only an exit that is sent now closes it."""
    desk = await opened_in_part()
    await close(desk)
    desk.venue.sent = [one for one in desk.venue.sent if one[0] != "stop"]
    sent = replace(closing(desk), sent_before=True)
    done = order(sent.client_id, state=OrderState.CLOSED, amount=Decimal(4), filled=Decimal(4))
    desk.venue.orders[sent.client_id] = done
    all_filled(desk)
    desk.venue.holdings = [held("6")]
    await desk.flow.drive(Progress(desk.row, sent))
    assert [what for what, _ in desk.venue.sent if what == "close"] == ["close"]
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.ACTIVE, Decimal(6))
    assert desk.row.exit_reason is None
    assert sum(stops(desk)) >= Decimal(6)
    assert not entry_in_doubt(desk)


async def test_a_stop_of_before_that_is_taken_over_for_what_an_entry_filled_later_covers_all_of_it() -> None:
    """The next holder finds the first stop, which is for less than what is left."""
    desk = await opened_in_part()
    await close(desk)
    sent = replace(closing(desk), sent_before=True)
    done = order(sent.client_id, state=OrderState.CLOSED, amount=Decimal(4), filled=Decimal(4))
    desk.venue.orders[sent.client_id] = done
    all_filled(desk)
    desk.venue.holdings = [held("6")]
    await another_holder(desk).drive(Progress(desk.row, sent))
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.ACTIVE, Decimal(6))
    assert stops(desk) == [Decimal(6)]
    assert not entry_in_doubt(desk)
    remember_stops(desk)
    assert await a_pass(desk) is SyncAction.IN_STEP


async def test_what_an_entry_fills_after_its_stop_has_fired_goes_on_as_the_row_s() -> None:
    desk = await opened_in_part()
    fired = replace(desk.venue.waiting[-1], state=OrderState.CLOSED, filled=Decimal(4))
    desk.venue.waiting, desk.venue.orders[fired.client_id] = [], fired
    shows(desk, entry("4"))
    desk.venue.holdings = [None]
    assert await a_pass(desk) is SyncAction.IN_DOUBT
    assert desk.row.status.open
    all_filled(desk)
    desk.venue.holdings = [held("6")]
    for _ in range(2):
        await a_pass(desk)
    assert (desk.row.status, desk.row.quantity) == (PositionStatus.ACTIVE, Decimal(6))
    assert stops(desk) == [Decimal(6)]
    assert desk.row.opened_here
    assert desk.row.exit_reason is None


async def test_what_the_first_stop_fills_while_a_larger_one_takes_its_place_counts_once() -> None:
    desk = await opened_in_part()
    first = desk.row.stop_client_id
    assert first is not None
    all_filled(desk)
    await a_pass(desk)
    desk.store.may_stand = [
        replace(one, entered_since=Decimal(6)) if one.client_id == first else one
        for one in desk.store.may_stand
    ]
    fired = {"state": OrderState.CLOSED, "filled": Decimal(4)}
    desk.venue.orders[first] = order(first, trigger="98", **fired)
    desk.venue.holdings = [held("6")]
    before = desk.store.may_stand
    for _ in range(2):
        await a_pass(desk)
        assert desk.row.quantity == Decimal(6)
        desk.store.may_stand = before
    assert "close" not in desk.venue.ordered()


@pytest.mark.parametrize("amount", ["4", "25"])
async def test_only_what_its_own_entry_has_filled_makes_a_row_larger(amount: str) -> None:
    """What else is held may be a person's: it is told, and nothing is ordered for it."""
    desk = await opened_in_part()
    all_filled(desk)
    desk.venue.holdings = [held(amount)]
    for _ in range(2):
        await a_pass(desk)
    assert (desk.row.quantity, stops(desk)) == (Decimal(10), [Decimal(10)])
    assert "close" not in desk.venue.ordered()
    assert any(f"the row says 10, the exchange holds {amount}" in told for told in desk.alerts)


async def test_an_entry_that_was_filled_whole_or_taken_back_costs_no_look_at_it() -> None:
    for last in (entry("10", state=OrderState.CLOSED), entry("4", state=OrderState.CANCELED)):
        desk = Desk()
        desk.venue.answers = [Executed(last)]
        await desk.open()
        shows(desk, last)
        assert await a_pass(desk) is SyncAction.IN_STEP
        await close(desk)
        assert ("find", "lge-1") not in desk.venue.sent
        assert desk.row.status is PositionStatus.CLOSED


async def test_an_entry_that_the_exchange_has_forgotten_cannot_be_filled_any_more() -> None:
    desk = await opened_in_part()
    del desk.venue.orders["lge-1"]
    desk.venue.waiting = [one for one in desk.venue.waiting if one.conditional]
    assert await a_pass(desk) is SyncAction.IN_DOUBT  # it may only not be shown yet
    desk.store.doubts = [replace(one, age_ms=DOUBT_MS) for one in desk.store.doubts]
    await a_pass(desk)
    assert not entry_in_doubt(desk)
    assert desk.row.quantity == Decimal(4)


async def test_a_position_gets_its_stop_while_what_is_left_of_its_entry_cannot_be_read() -> None:
    desk = Desk(position("entry_placed", quantity=Decimal(4)))
    desk.doubt(Step.ENTRY)
    desk.store.doubts[0] = replace(desk.store.doubts[0], client_id="lge-1", amount=Decimal(10))
    desk.store.parts = Decimal(4)
    shows(desk, entry("4"))

    desk.venue.find = unread  # type: ignore[method-assign]
    await desk.flow.resume(desk.row)
    assert (desk.row.status, stops(desk)) == (PositionStatus.ACTIVE, [Decimal(4)])
    assert entry_in_doubt(desk)


async def test_a_stop_is_looked_at_while_what_is_left_of_its_entry_cannot_be_read() -> None:
    desk = await opened_in_part()
    desk.venue.waiting = [one for one in desk.venue.waiting if not one.conditional]
    del desk.venue.orders[desk.row.stop_client_id or ""]
    desk.venue.find = unread  # type: ignore[method-assign]
    assert await a_pass(desk) is SyncAction.IN_DOUBT
    assert stops(desk) == [Decimal(4)]
    assert any(told.startswith("what is left of its entry cannot be read now") for told in desk.alerts)
    assert entry_in_doubt(desk)


async def test_what_an_entry_filled_after_its_stop_fired_gets_one_though_its_rest_cannot_be_read() -> None:
    desk = await opened_in_part()
    desk.store.row = replace(desk.row, stop_client_id=None, stop_order_id=None, quantity=Decimal(6))
    desk.venue.waiting, desk.venue.holdings = [], [held("6")]
    desk.venue.find = unread  # type: ignore[method-assign]
    await a_pass(desk)
    assert stops(desk) == [Decimal(6)]


async def test_the_entry_of_a_row_whose_close_is_withdrawn_goes_on() -> None:
    """It was filled: a row that ends as canceled would say that no order was ever placed."""
    desk = Desk(position("pending_entry", entry_order_id=None, exit_reason="exit"))
    desk.doubt(Step.ENTRY)
    desk.store.doubts[0] = replace(
        desk.store.doubts[0], client_id="lge-1", amount=Decimal(10), age_ms=DOUBT_MS
    )
    all_filled(desk)
    await desk.flow.drive(Progress(desk.row))
    assert desk.row.status is PositionStatus.ACTIVE
    assert not entry_in_doubt(desk)


async def unread(*_: Any, **__: Any) -> Any:
    """The exchange's answer about an order."""
    raise ExchangeUnreadable("the exchange did not answer")


async def test_an_entry_of_which_its_row_has_nothing_was_never_recorded_in_part() -> None:
    """Its fill is what the row is closed for already: counted as more, it would be sold twice."""
    desk = Desk(position("pending_entry", entry_order_id=None, exit_reason="exit"))
    desk.doubt(Step.ENTRY)
    desk.store.doubts[0] = replace(desk.store.doubts[0], client_id="lge-1", amount=Decimal(10))
    all_filled(desk)
    desk.venue.holdings = [desk.venue.holdings[0], None]
    await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))
    sold = [intent.amount for what, intent in desk.venue.sent if what == "close"]
    assert sold == [Decimal(10)]
    assert desk.row.status is PositionStatus.ROLLED_BACK


async def test_the_time_without_a_stop_runs_while_what_is_left_of_its_entry_is_looked_at() -> None:
    desk = Desk(position("entry_placed", quantity=Decimal(4)))
    desk.doubt(Step.ENTRY)
    desk.store.doubts[0] = replace(desk.store.doubts[0], client_id="lge-1", amount=Decimal(10))
    desk.store.parts = Decimal(4)
    shows(desk, entry("4"))
    find, running = desk.venue.find, list[bool]()

    async def seen(*given: Any, **more: Any) -> Any:
        running.append(desk.flow._unstopped.running)
        return await find(*given, **more)

    desk.venue.find = seen  # type: ignore[method-assign]
    await desk.flow.resume(desk.row)
    assert running[0]


async def close(desk: Desk) -> None:
    """A person asks for the exit, of which the exchange takes all."""
    desk.venue.holdings = [desk.venue.holdings[0], None] if desk.venue.holdings[0] else [None]
    await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))


def closing(desk: Desk) -> Intent:
    """The intent of the last exit."""
    return desk.venue.intent("close")


def filled_meanwhile(desk: Desk) -> None:
    """What was left is filled right behind the exit."""
    send = desk.venue.close

    async def and_filled(*given: Any, **more: Any) -> Any:
        outcome = await send(*given, **more)
        all_filled(desk)
        return outcome

    desk.venue.close = and_filled  # type: ignore[method-assign]
