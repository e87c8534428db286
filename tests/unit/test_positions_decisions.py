"""Each decision of the flow about one position, with what the exchange shows and does not show then.

On a local exchange that answers at once and always fills whole, most of these cases never arise: here the
lists lag, orders fill in part, answers are lost and a person trades beside the bot.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError, LeaseNotHeld, LossReason, ResourceBusy, StaleToken
from lockguard_ccxt import Executed, OrderState, Refusal, Step
from lockguard_positions import Adopt, AlreadyOpen, NotOpened, SyncAction
from lockguard_positions._duplicates import Duplicates, divide
from lockguard_positions._early import EarlyOrder
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import IntentOutcome, NewPosition, Progress
from lockguard_positions._pace import StopDeadline
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import covers, is_own, only_follows, standing_stop
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    LONG,
    LOST,
    MARKET,
    MS,
    PACE,
    SHORT,
    Desk,
    held,
    managed,
    order,
    own_stop,
    position,
    refused,
)

NO_ORDER: list[str] = []


def orders(desk: Desk) -> list[str]:
    """What was ordered or cancelled."""
    return [what for what in desk.venue.ordered() if what != "write"]


# --- the entry ---


async def test_an_open_enters_and_places_its_stop_by_the_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    row = await desk.open()
    assert row.status is PositionStatus.ACTIVE
    assert orders(desk) == ["enter", "stop"]
    assert desk.venue.intent("stop").side == "sell"
    assert desk.venue.intent("stop").trigger == Decimal("98.00")


async def test_a_stop_is_placed_on_the_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    desk.venue.becomes = order(
        "lge-1", side="buy", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal("100.017")
    )
    await desk.open()
    assert desk.venue.intent("stop").trigger == Decimal("98.02")


async def test_a_part_that_filled_is_what_is_recorded_and_stopped() -> None:
    desk = Desk()
    part = {"filled": Decimal(4), "average": Decimal(101), "state": OrderState.CANCELED}
    desk.venue.becomes = order("lge-1", side="buy", **part)
    row = await desk.open()
    assert (row.quantity, row.entry_price) == (Decimal(4), Decimal(101))
    assert desk.venue.intent("stop").amount == Decimal(4)


async def test_an_entry_that_is_open_still_keeps_its_row_and_raises_an_alert() -> None:
    desk = Desk()
    desk.venue.becomes = order("lge-1", side="buy")
    row = await desk.open()
    assert row.status is PositionStatus.PENDING_ENTRY
    assert "neither filled nor can it be taken back" in desk.alerts[0]


async def test_an_entry_whose_answer_was_lost_keeps_its_row_and_raises_an_alert() -> None:
    desk = Desk()
    desk.venue.answers = [LOST]
    row = await desk.open()
    assert row.status is PositionStatus.PENDING_ENTRY
    assert "is in doubt" in desk.alerts[0]
    assert orders(desk) == ["enter"]


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Refusal.RATE_LIMITED, "canceled"),
        (Refusal.AUTHENTICATION, "canceled"),
        (Refusal.NOT_SENT, "canceled"),
        (Refusal.FUNDS, "failed"),
        (Refusal.INVALID, "failed"),
    ],
)
async def test_a_refused_entry_ends_its_row_and_says_whether_that_passes(
    refusal: Refusal, status: str
) -> None:
    desk = Desk()
    desk.venue.answers = [refused(refusal)]
    assert (await desk.open()).status.value == status


@pytest.mark.parametrize("row_age_ms", [0, 10 * DOUBT_MS])
async def test_an_entry_of_an_earlier_holder_is_looked_for_and_never_sent_again(row_age_ms: int) -> None:
    desk = Desk(position("pending_entry", entry_order_id=None, age_ms=row_age_ms))
    desk.doubt(Step.ENTRY, age_ms=DOUBT_MS - 1)
    row = await desk.flow.resume(desk.row)
    assert row.status is PositionStatus.PENDING_ENTRY
    assert orders(desk) == NO_ORDER
    desk.store.doubts[0] = replace(desk.store.doubts[0], age_ms=DOUBT_MS)
    assert (await desk.flow.resume(desk.row)).status is PositionStatus.CANCELED
    assert orders(desk) == NO_ORDER


async def test_an_entry_of_an_earlier_holder_that_is_found_is_recorded_and_stopped() -> None:
    desk = Desk(position("pending_entry", entry_order_id=None))
    intent = desk.doubt(Step.ENTRY, age_ms=5)
    filled = order(
        intent.client_id, side="buy", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(101)
    )
    desk.venue.orders[intent.client_id] = filled
    desk.venue.holdings = [held()]
    row = await desk.flow.resume(desk.row)
    assert row.status is PositionStatus.ACTIVE
    assert row.entry_price == Decimal(101)
    assert orders(desk) == ["stop"]


# --- the stop ---


@pytest.mark.parametrize("status", ["entry_placed", "pending_sl"])
async def test_a_stop_that_stands_is_taken_over_and_no_second_one_placed(status: str) -> None:
    desk = Desk(position(status))
    desk.venue.waiting = [order("person", trigger="97")]
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.stop_order_id, row.stop_price) == (PositionStatus.ACTIVE, "person", Decimal(97))
    assert orders(desk) == NO_ORDER


async def test_a_stop_that_covers_a_part_is_taken_over_with_an_alert() -> None:
    desk = Desk(position("entry_placed"))
    desk.venue.waiting = [order("half", trigger="97", amount=Decimal(5))]
    assert (await desk.flow.resume(desk.row)).stop_order_id == "half"
    assert "covers 5 of 10" in desk.alerts[0]


@pytest.mark.parametrize(
    ("side", "price", "beyond"),
    [
        (LONG, "97", True),
        (LONG, "98", True),
        (LONG, "99", False),
        (SHORT, "103", True),
        (SHORT, "101", False),
    ],
)
async def test_no_stop_is_sent_beyond_the_price_for_what_this_table_did_not_open(
    side: Any, price: str, beyond: bool
) -> None:
    desk = Desk(position("entry_placed", side=side, entry_order_id=None))
    desk.venue.last_price = Decimal(price)
    row = await desk.flow.resume(desk.row)
    assert orders(desk) == ([] if beyond else ["stop"])
    assert row.status is (PositionStatus.ENTRY_PLACED if beyond else PositionStatus.ACTIVE)
    assert bool(desk.alerts) is beyond


@pytest.mark.parametrize(
    "refusal", [Refusal.AUTHENTICATION, Refusal.LIMIT, Refusal.UNRECOGNISED, Refusal.RATE_LIMITED]
)
async def test_a_stop_refused_for_what_passes_leads_to_an_alert_and_never_to_an_exit(
    refusal: Refusal,
) -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(refusal)] * 200
    row = await desk.open()
    assert row.status is PositionStatus.PENDING_SL
    assert "close" not in orders(desk)
    assert "it has no stop" in desk.alerts[-1]
    assert desk.row.error_details is not None


async def test_each_holder_tries_to_place_a_stop_for_a_bounded_time() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [held()]
    desk.venue.answers = [refused(Refusal.RATE_LIMITED)] * 190
    await desk.flow.resume(desk.row)
    assert 0 < len(orders(desk)) < 100
    assert "it has no stop" in desk.alerts[-1]


async def test_nothing_is_asked_again_while_the_exchange_said_to_wait() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.RATE_LIMITED)] * 5
    desk.venue.closed = True
    await desk.flow.resume(desk.row)
    assert orders(desk) == ["stop"]


async def test_a_stop_whose_answer_was_lost_is_asked_for_again_by_its_own_name() -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10))), LOST]
    row = await desk.open()
    assert row.status is PositionStatus.ACTIVE
    first, second = (intent for what, intent in desk.venue.sent if what == "stop")
    assert first.client_id == second.client_id
    assert second.sent_before


@pytest.mark.parametrize(
    ("state", "status", "sent"),
    [(OrderState.CLOSED, "closed", []), (OrderState.CANCELED, "active", ["stop"])],
)
async def test_a_stop_that_ended_before_the_row_had_it_is_not_one_that_stands(
    state: OrderState, status: str, sent: list[str]
) -> None:
    desk = Desk(position("pending_sl"))
    intent = desk.doubt(Step.STOP, trigger="98")
    desk.venue.orders[intent.client_id] = order(
        intent.client_id, trigger="98", state=state, average=Decimal(97)
    )
    row = await desk.flow.resume(desk.row)
    assert row.status.value == status
    assert orders(desk) == sent
    if status == "closed":
        assert (row.exit_reason, row.exit_price) == ("stop", Decimal(97))


@pytest.mark.parametrize(("shown", "ends"), [(None, True), (held(side="sell"), True), (held(), False)])
async def test_a_stop_refused_for_want_of_a_position_ends_the_row_unless_one_is_shown(
    shown: Any, ends: bool
) -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY)] * 100
    row = await desk.flow.resume(desk.row)
    assert row.status.open is not ends


@pytest.mark.parametrize(
    ("shown", "row", "sells"),
    [
        (held(), {}, True),
        (held(price="100.01"), {}, True),
        (held("9"), {}, False),
        (held(price="105"), {}, False),
        (held(side="sell"), {}, False),
        (held(price=None), {}, False),
        (held(), {"entry_order_id": None}, False),
    ],
)
async def test_only_what_this_row_s_own_order_entered_is_sold_when_no_stop_can_be_placed(
    shown: Any, row: dict[str, Any], sells: bool
) -> None:
    desk = Desk(position("pending_sl", **row))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)]
    await desk.flow.resume(desk.row)
    assert ("close" in orders(desk)) is sells
    assert bool(desk.alerts)


@pytest.mark.parametrize(("age_ms", "ends"), [(9_999, False), (10_000, True)])
async def test_what_a_list_does_not_show_has_ended_only_after_the_grace(age_ms: int, ends: bool) -> None:
    desk = Desk(position("pending_sl", age_ms=age_ms))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.WOULD_TRIGGER)]
    row = await desk.flow.resume(desk.row)
    assert row.status.open is not ends
    assert orders(desk) == ["stop"]


async def test_a_position_that_would_be_stopped_at_once_is_closed_and_rolled_back() -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER)]
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert orders(desk) == ["enter", "stop", "close"]


async def test_a_duplicate_is_closed_and_the_other_row_left_alone() -> None:
    desk = Desk()
    desk.store.duplicate = True
    row = await desk.open()
    assert row.status is PositionStatus.ROLLED_BACK
    assert orders(desk) == ["enter", "stop", "close", "cancel"]


async def test_the_time_without_a_stop_counts_from_the_entry_in_whatever_process() -> None:
    desk = Desk(position("entry_placed", age_ms=5_000), pace=replace(PACE, stop_deadline=4_000 * MS))
    desk.venue.waiting = [own_stop()]
    await desk.flow.resume(desk.row)
    moved = next(event for event in desk.events if getattr(event, "without_stop_ms", None))
    assert moved.without_stop_ms >= 5_000


async def test_what_cannot_be_looked_at_while_a_stop_may_be_missing_raises_an_alert() -> None:
    desk = Desk(position("entry_placed"))
    desk.venue.unreadable = True
    with pytest.raises(ExchangeUnreadable):
        await desk.flow.resume(desk.row)
    assert "may be without a stop" in desk.alerts[0]


async def test_no_step_is_taken_under_a_lease_that_has_ended() -> None:
    desk = Desk(position("entry_placed"))
    desk.lease.mark_released()
    with pytest.raises(LeaseNotHeld):
        await desk.flow.resume(desk.row)
    assert orders(desk) == NO_ORDER


async def test_a_deadline_that_passed_before_this_holder_came_alerts_at_once() -> None:
    told: list[float] = []
    deadline = StopDeadline(timedelta(seconds=5), SYSTEM_CLOCK)
    deadline.begin(told.append, already_ms=6_000)
    async with asyncio.timeout(2):
        while not told:
            await asyncio.sleep(0.001)
    assert not deadline.over
    deadline.end()
    later = StopDeadline(timedelta(seconds=5), SYSTEM_CLOCK)
    later.begin(told.append, already_ms=1_000)
    await asyncio.sleep(0.02)  # in which it would be told, if it were told at once
    assert told == [5.0]
    later.end()


# --- moving a stop ---


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


# --- the way out ---


async def asked(desk: Desk) -> Any:
    """A person closes the position."""
    return await desk.flow.drive(await desk.flow.intend_close(desk.row, "exit", asked=True))


async def test_a_close_reduces_on_the_other_side_and_then_cancels_the_stop() -> None:
    for side, other in ((LONG, "sell"), (SHORT, "buy")):
        desk = Desk(position(side=side))
        desk.venue.waiting = [own_stop(side=other)]
        row = await asked(desk)
        assert (row.status, row.exit_price) == (PositionStatus.CLOSED, Decimal(99))
        assert orders(desk) == ["close", "cancel"]
        assert desk.venue.intent("close").side == other


@pytest.mark.parametrize(
    ("shown", "ends"),
    [(None, True), (held(side="sell"), True), (held(), False)],
    ids=["flat", "turned", "held"],
)
async def test_an_exit_refused_as_nothing_to_reduce_is_judged_by_what_is_held(shown: Any, ends: bool) -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY), refused(Refusal.REDUCE_ONLY)]
    row = await asked(desk)
    assert row.status.open is not ends
    if not ends:  # its stop was in the way; it was cancelled for the exit, and stands again
        assert orders(desk) == ["close", "cancel", "close", "stop", "cancel"]
        assert [one.trigger for one in desk.venue.waiting] == [Decimal(98)]


async def test_an_exit_in_doubt_after_its_stop_was_cancelled_raises_an_alert() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.venue.answers = [refused(Refusal.REDUCE_ONLY), LOST]
    assert (await asked(desk)).status.open
    assert any("may have no stop" in alert for alert in desk.alerts)


async def test_an_exit_of_an_earlier_holder_that_is_refused_cancels_no_stop() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True)
    desk.venue.answers = [refused(Refusal.CROWDED)] * 3
    await desk.flow.resume(desk.row)
    assert orders(desk) == ["close"]
    assert desk.venue.waiting


async def test_an_exit_that_is_still_open_leaves_the_row_open() -> None:
    desk = Desk(position())
    desk.venue.becomes = order("x", side="sell", filled=Decimal(3))
    assert (await asked(desk)).status.open
    assert any("still open" in alert for alert in desk.alerts)


async def test_an_exit_that_ended_partly_filled_closes_the_rest() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    parts = [order("x", state=OrderState.CANCELED, filled=Decimal(4)), None]

    async def done(market: Any, intent: Any, placed: Any) -> Any:
        return (parts.pop(0) if parts else None) or placed

    desk.venue.done = done  # type: ignore[method-assign]
    row = await asked(desk)
    assert row.status is PositionStatus.CLOSED
    assert [intent.amount for what, intent in desk.venue.sent if what == "close"] == [Decimal(10), Decimal(6)]


async def test_an_exit_that_nobody_asked_for_is_not_repeated_when_it_is_refused() -> None:
    desk = Desk()
    desk.venue.answers = [Executed(order("e", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER), refused(Refusal.AUTHENTICATION)]
    await desk.open()
    assert desk.row.status.open
    assert desk.row.exit_reason is None
    assert desk.store.settled[-1][1] is IntentOutcome.REFUSED


@pytest.mark.parametrize("by_person", [True, False])
@pytest.mark.parametrize(
    "shown", [held(), held("4"), held(price="90"), None], ids=["same", "part", "other", "flat"]
)
async def test_an_exit_of_before_closes_only_what_a_person_asked_for_and_is_as_it_was(
    by_person: bool, shown: Any
) -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [shown]
    desk.doubt(Step.CLOSE, asked=by_person)
    await desk.flow.resume(desk.row)
    as_it_was = shown is None or (shown.amount == 10 and shown.entry_price == 100)
    assert ("close" in orders(desk)) is (by_person and as_it_was)


async def test_an_exit_of_an_earlier_holder_that_was_sent_is_followed_and_not_sent_again() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.holdings = [held()]
    intent = desk.doubt(Step.CLOSE)
    sent = order(intent.client_id, state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(97))
    desk.venue.orders[intent.client_id] = sent
    row = await desk.flow.resume(desk.row)
    assert (row.status, row.exit_price) == (PositionStatus.CLOSED, Decimal(97))
    assert "close" not in orders(desk)


async def test_a_position_whose_earlier_exit_took_its_stop_away_gets_it_back() -> None:
    desk = Desk(position(exit_reason="exit"))
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, asked=True)
    desk.venue.answers = [refused(Refusal.AUTHENTICATION)]
    await desk.flow.resume(desk.row)
    assert orders(desk)[:2] == ["close", "stop"]
    assert [one.trigger for one in desk.venue.waiting] == [Decimal(98)]


async def test_a_row_ends_only_when_its_stops_are_certainly_gone() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.cancels["s1"] = refused(Refusal.AUTHENTICATION)
    row = await asked(desk)
    assert row.status.open
    assert any("may still be waiting" in alert for alert in desk.alerts)
    elsewhere = await desk.flow.closed_elsewhere(position(), "gone", None)
    assert elsewhere.status.open
    desk.venue.cancels["s1"] = refused(Refusal.NOT_FOUND)
    assert (await desk.flow.closed_elsewhere(position(), "gone", None)).status is PositionStatus.CLOSED


# --- whose stop is which ---


def test_a_stop_is_the_row_s_by_id_or_by_a_name_that_both_have() -> None:
    row = position()
    assert is_own(row, own_stop())
    assert is_own(row, own_stop(id="other"))
    assert is_own(row, own_stop(client_id=""))
    assert not is_own(position(stop_client_id=None), order("x", client_id="", trigger="98"))
    assert not is_own(row, order("x", trigger="98"))


@pytest.mark.parametrize(
    ("side", "trigger", "follows"),
    [
        ("sell", "97", True),
        ("sell", "98", True),
        ("sell", "99", False),
        ("buy", "97", False),
        ("buy", "99", True),
    ],
)
def test_a_stop_of_the_position_follows_the_row_s_own_if_the_price_comes_to_it_later(
    side: str, trigger: str, follows: bool
) -> None:
    row = position(side=LONG if side == "sell" else SHORT, stop_price=Decimal(98))
    assert only_follows(row, order("x", side=side, trigger=trigger, closes_all=True)) is follows
    assert not only_follows(row, order("x", side=side, trigger=trigger))


def test_the_stop_that_protects_best_is_one_that_covers_all_and_is_reached_first() -> None:
    whole, near = order("whole", trigger="95"), order("near", trigger="96")
    part = order("part", trigger="97", amount=Decimal(9))
    not_stops = [
        order("opens", trigger="97", reduce_only=False),
        order("profit", trigger="120", takes_profit=True),
        order("other side", trigger="97", side="buy"),
        order("ended", trigger="97", state=OrderState.CANCELED),
    ]
    found = standing_stop([whole, part, near, *not_stops], "sell", Decimal(10))
    assert found is not None
    assert found.id == "near"
    assert standing_stop(not_stops, "sell", Decimal(10)) is None
    partly = standing_stop([part, *not_stops], "sell", Decimal(10))
    assert partly is not None
    assert partly.id == "part"
    short = standing_stop(
        [order("far", side="buy", trigger="110"), order("near", side="buy", trigger="104")],
        "buy",
        Decimal(10),
    )
    assert short is not None
    assert short.id == "near"
    assert not covers(order("x", trigger="98", amount=Decimal("9.9")), Decimal(10))
    assert covers(order("x", trigger="98", amount=Decimal(1), closes_all=True), Decimal(10))


async def test_only_the_row_s_stops_are_cancelled_also_one_that_is_not_listed_yet() -> None:
    desk = Desk(position())
    desk.venue.waiting = [order("person", trigger="97")]
    assert await desk.flow.sweeper.sweep(desk.row)
    assert [what for what in desk.venue.sent if what[0] == "cancel"] == [("cancel", "s1")]


async def test_a_stop_that_could_not_be_cancelled_is_not_gone_whatever_the_others_are() -> None:
    desk = Desk(position())
    desk.store.stops.add("lgs-2")
    desk.venue.waiting = [order("lgs-2", trigger="97"), own_stop()]
    desk.venue.cancels["lgs-2"] = LOST
    assert not await desk.flow.sweeper.sweep(desk.row)


async def test_a_stop_that_a_person_moved_before_it_was_taken_back_is_told() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop()]
    desk.venue.cancels["s1"] = Executed(own_stop("90", state=OrderState.CANCELED))
    assert await desk.flow.sweeper.sweep(desk.row)
    assert "at 98 when it was read and at 90 by then" in desk.alerts[0]


async def test_a_stop_that_the_entry_carried_goes_if_it_fires_first_and_a_person_s_stays() -> None:
    desk = Desk(position())
    desk.store.attached = Decimal(99)
    along = order("along", client_id="", trigger="99", attached=True, closes_all=True)
    moved = order("moved", client_id="", trigger="98.5", attached=True, closes_all=True)
    other_side = order("other", client_id="", trigger="99", attached=True, side="buy")
    desk.venue.waiting = [own_stop(), along, moved, other_side]
    await desk.flow.sweeper.sweep_old(desk.row)
    assert [what for what in desk.venue.sent if what[0] == "cancel"] == [("cancel", "along")]


@pytest.mark.parametrize(("age_ms", "settled"), [(DOUBT_MS - 1, 0), (DOUBT_MS, 1)])
async def test_a_stop_in_doubt_of_an_ended_position_is_absent_only_when_it_cannot_come_any_more(
    age_ms: int, settled: int
) -> None:
    desk = Desk(position())
    intent = desk.doubt(Step.STOP, trigger="98", age_ms=age_ms)
    await desk.flow.sweeper.sweep_loose(position("closed"), [intent])
    assert len(desk.store.settled) == settled


# --- an order that is made ready ---


class Ready:
    """What ``Venue.prepare`` returns."""

    def __init__(self) -> None:
        self.sent = False
        self.dropped = False

    async def send(self) -> None:
        self.sent = True

    async def drop(self) -> None:
        self.dropped = True


async def test_an_order_that_was_made_ready_leaves_only_if_exactly_its_intent_was_committed() -> None:
    desk = Desk(position("pending_entry"))
    intent = desk.doubt(Step.ENTRY)
    for committed, planned, leaves in (
        (intent, Decimal(98), True),
        (replace(intent, amount=Decimal(9)), Decimal(98), False),
        (replace(intent, number=9), Decimal(98), False),
        (None, Decimal(98), False),
        (intent, Decimal(97), False),
    ):
        ready = Ready()
        venue: Any = type("V", (), {"prepare": lambda _self, _ask, _intent, ready=ready: ready})()
        early = EarlyOrder(venue)
        early.make_ready(intent, lambda: None, planned)  # type: ignore[arg-type, return-value]
        await early.send(Progress(desk.row, committed))
        assert ready.sent is leaves


async def test_an_order_that_was_made_ready_is_dropped_before_another_one_is_asked_for() -> None:
    desk, ready = Desk(position("pending_entry")), Ready()
    venue: Any = type("V", (), {"prepare": lambda _self, _ask, _intent: ready})()
    early, dropped_first = EarlyOrder(venue), []
    early.make_ready(desk.doubt(Step.ENTRY), lambda: None)  # type: ignore[arg-type, return-value]

    async def ask() -> Any:
        dropped_first.append(ready.dropped)
        return LOST

    await early.placed(desk.doubt(Step.ENTRY), ask)
    assert dropped_first == [True]


# --- row and exchange ---


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


# --- what an open finds ---


class NoQuote:
    """A price that was requested, and no read that was made ready."""

    held = None


async def ground(desk: Desk) -> Any:
    quote: Any = NoQuote()
    return await desk.reconciler.settle_and_look(quote)


async def test_an_open_row_that_a_list_does_not_show_yet_is_waited_for_within_the_grace() -> None:
    desk = Desk(position(age_ms=9_990), pace=replace(PACE, poll=MS))
    desk.venue.waiting = [own_stop()]
    desk.venue.holdings = [*[None] * 6, held()]
    found = await ground(desk)
    assert (found.row, found.gone) == (desk.row, False)


async def test_a_row_whose_stop_has_fired_keeps_no_signal_waiting_for_the_list() -> None:
    desk = Desk(position(age_ms=0))
    desk.venue.orders["lgs-1"] = own_stop(state=OrderState.CLOSED, filled=Decimal(10))
    async with asyncio.timeout(3):  # the grace is ten seconds
        found = await ground(desk)
    assert found.row is None
    assert desk.row.status is PositionStatus.CLOSED
    assert [what for what, _ in desk.venue.sent].count("write") == 1


async def test_a_row_in_doubt_whose_position_is_gone_is_no_open_position() -> None:
    desk = Desk(position("pending_sl"))
    desk.doubt(Step.STOP, trigger="98")
    desk.venue.answers = [refused(Refusal.AUTHENTICATION)]
    found = await ground(desk)
    assert (found.row is not None, found.gone) == (True, True)


async def test_what_is_held_is_looked_at_again_after_something_was_recovered() -> None:
    desk = Desk(position("pending_entry", entry_order_id=None))
    desk.doubt(Step.ENTRY, age_ms=DOUBT_MS)
    desk.venue.holdings = [held(), None]
    found = await ground(desk)
    assert (found.row, found.held) == (None, None)


# --- several rows of one symbol ---


def test_of_several_rows_one_is_kept_that_is_stopped_or_else_the_oldest() -> None:
    rows = [
        position("pending_sl", id=1),
        position(id=2, stop_order_id="s2", stop_client_id="x2"),
        position(id=3),
    ]
    divided = divide(rows, None, [own_stop()])
    assert divided is not None
    assert divided.keep.id == 3
    same = [position(id=5, stop_order_id="a"), position(id=4, stop_order_id="b")]
    divided = divide(same, None, [])
    assert divided is not None
    assert divided.keep.id == 4


def test_only_rows_that_make_up_the_rest_are_closed_and_nothing_where_it_does_not_add_up() -> None:
    def row(number: int, amount: str, side: Any = LONG) -> Any:
        return position(id=number, quantity=Decimal(amount), side=side)

    rows = [row(1, "10"), row(2, "4"), row(3, "10", SHORT), row(4, "7")]
    divided = divide(rows, held("14"), [])
    assert divided is not None
    assert ([one.id for one in divided.close], [one.id for one in divided.end]) == ([2], [3, 4])
    larger_first = divide([row(1, "10"), row(2, "7"), row(3, "4")], held("14"), [])
    assert larger_first is not None
    assert [one.id for one in larger_first.close] == [3]
    assert divide(rows, held("15"), []) is None
    assert divide([row(1, "10"), row(2, "4", SHORT)], held("14"), []) is None
    assert divide(rows, held("3"), []) is None


async def test_rows_are_not_divided_while_an_entry_may_still_arrive() -> None:
    desk = Desk(position())
    desk.doubt(Step.ENTRY, age_ms=DOUBT_MS - 1)

    async def both(*_: object) -> Any:
        return (position(id=1), position(id=2))

    desk.store.all_open_of = both  # type: ignore[attr-defined]
    done = await Duplicates(desk.scope, desk.flow).settle()
    assert [one.action for one in done] == [SyncAction.IN_DOUBT]


async def test_a_stop_that_two_rows_share_stays_with_the_one_that_is_kept() -> None:
    desk = Desk(position())
    desk.venue.waiting = [own_stop(client_id="")]
    desk.venue.holdings = [held()]
    desk.store.stops = set()

    async def both(*_: object) -> Any:
        return (position(id=1, stop_client_id=None), position(id=2, stop_client_id=None))

    desk.store.all_open_of = both  # type: ignore[attr-defined]
    done = await Duplicates(desk.scope, desk.flow).settle()
    assert [one.action for one in done] == [SyncAction.ENDED]
    assert orders(desk) == NO_ORDER
    assert MARKET.name == "APTUSDT"


# --- the manager ---


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
