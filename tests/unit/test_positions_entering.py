"""What an open decides about its entry, with what the exchange shows and does not show then.

On a local exchange that answers at once and always fills whole, most of these cases never arise: here the
lists lag, orders fill in part, answers are lost and a person trades beside the bot.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from lockguard_ccxt import OrderState, Refusal, Step
from lockguard_positions._early import EarlyOrder
from lockguard_positions._model import Progress
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import (
    DOUBT_MS,
    LOST,
    MS,
    PACE,
    Desk,
    held,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import NO_ORDER, NoQuote, orders


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
        (Refusal.PRICE, "failed"),
    ],
)
async def test_a_refused_entry_ends_its_row_and_says_whether_that_passes(
    refusal: Refusal, status: str
) -> None:
    desk = Desk()
    desk.venue.answers = [refused(refusal)]
    assert (await desk.open()).status.value == status


async def test_an_entry_of_which_another_copy_may_arrive_keeps_its_row() -> None:
    desk = Desk()
    desk.venue.answers = [replace(refused(Refusal.WOULD_TRIGGER), copied=True)]
    assert (await desk.open()).status is PositionStatus.PENDING_ENTRY
    assert any("in doubt" in alert for alert in desk.alerts)


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
    assert [what for what, _ in desk.venue.sent].count("write") == 2  # that it has ended, and its end


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
