"""How long a position is without a stop, and when that is told."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import LeaseNotHeld
from lockguard_ccxt import Executed, OrderState, Refusal, Step
from lockguard_positions import Alert, Moved
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._flow import Flow
from lockguard_positions._model import NewPosition
from lockguard_positions._pace import StopDeadline
from lockguard_positions._status import PositionStatus
from tests.unit.positions_in_memory import (
    LONG,
    LOST,
    MARKET,
    MS,
    PACE,
    Desk,
    held,
    managed,
    order,
    own_stop,
    position,
    refused,
)
from tests.unit.positions_told import NO_ORDER, NoQuote, orders


async def test_the_time_without_a_stop_counts_from_the_entry_in_whatever_process() -> None:
    desk = Desk(position("entry_placed", age_ms=5_000), pace=replace(PACE, stop_deadline=4_000 * MS))
    desk.venue.waiting = [own_stop()]
    await desk.flow.resume(desk.row)
    moved = next(event for event in desk.events if getattr(event, "without_stop_ms", None))
    assert moved.without_stop_ms >= 5_000


@pytest.mark.parametrize("who", ["who sent it", "a successor"])
async def test_the_time_without_a_stop_counts_from_the_sending_of_an_entry_whose_answer_came_late(
    who: str,
) -> None:
    row = position("pending_entry", age_ms=6_000, entry_order_id=None) if who == "a successor" else None
    desk, clock = Desk(row), SetClock()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    if row is not None:
        name = desk.doubt(Step.ENTRY, age_ms=6_000).client_id
        filled = order(name, side="buy", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(100))
        desk.venue.orders[name] = filled
        await desk.flow.resume(row)
    else:
        answer_late(desk, clock, by_s=6.0)
        await desk.open()
    assert span_without_stop(desk) == 6_000
    entered = next(one for one in desk.events if isinstance(one, Moved) and one.before is not None)
    assert entered.position.age_ms >= 6_000  # so that the alert is no later where this flow ends before


async def test_an_entry_that_was_answered_unfilled_is_not_taken_for_a_position_since_its_sending() -> None:
    desk, clock = Desk(), SetClock()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    answer_late(desk, clock, by_s=6.0)
    desk.venue.answers = [Executed(order("lge-9", side="buy"))]
    desk.venue.becomes = order(
        "lge-9", side="buy", state=OrderState.CLOSED, filled=Decimal(10), average=Decimal(100)
    )
    await desk.open()
    assert span_without_stop(desk) == 0


async def test_the_alert_for_a_filled_part_comes_at_its_deadline_while_the_rest_is_waited_for() -> None:
    desk, clock = Desk(pace=replace(PACE, stop_deadline=40 * MS)), SetClock()
    desk.flow = Flow(replace(desk.scope, clock=clock))
    part = order("lge-9", side="buy", filled=Decimal(3), average=Decimal(100), reduce_only=False)
    desk.venue.answers = [Executed(part)]
    waits: list[float] = []

    async def done(market: Any, intent: Any, placed: Any, filling: Any = None) -> Any:
        if filling is not None:
            waits.append(filling())
        clock.seconds += 0.01
        async with asyncio.timeout(5):
            while not desk.alerts:
                await asyncio.sleep(0.001)
        clock.seconds += 7
        return replace(part, state=OrderState.CANCELED)

    desk.venue.done = done  # type: ignore[method-assign]
    row = await desk.open()
    assert desk.alerts == ["without a stop for longer than 0.04 s"]
    assert waits == [0.02]  # half of it: the other half is for the cancel and the stop
    assert (row.status, row.quantity) == (PositionStatus.ACTIVE, Decimal(3))
    assert desk.venue.intent("stop").amount == Decimal(3)
    assert span_without_stop(desk) == pytest.approx(7_010)
    entered = next(one for one in desk.events if isinstance(one, Moved) and one.before is not None)
    assert entered.position.age_ms >= 7_010


class SetClock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> float:
        return self.seconds


def answer_late(desk: Desk, clock: SetClock, *, by_s: float) -> None:
    """Have the answer to an entry come ``by_s`` seconds after its sending."""
    enter = desk.venue.enter

    async def late(*given: Any, **more: Any) -> Any:
        clock.seconds += by_s
        return await enter(*given, **more)

    desk.venue.enter = late  # type: ignore[method-assign]


def span_without_stop(desk: Desk) -> float:
    """For how many milliseconds the position had been without a stop, as is told once it has one."""
    spans = (event.without_stop_ms for event in desk.events if isinstance(event, Moved))
    return next(span for span in spans if span is not None)


async def test_an_order_that_was_sent_meanwhile_does_not_begin_the_time_without_a_stop_anew() -> None:
    desk = Desk(position("pending_sl", exit_reason="no stop"), pace=replace(PACE, stop_deadline=4_000 * MS))
    desk.venue.holdings = [held()]
    desk.doubt(Step.CLOSE, age_ms=0)
    find = desk.venue.find

    async def as_slow_as_a_network(*given: Any, **more: Any) -> Any:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while not desk.alerts:
                    await asyncio.sleep(0.001)
        return await find(*given, **more)

    desk.venue.find = as_slow_as_a_network  # type: ignore[method-assign]
    await desk.flow.resume(desk.row)
    assert "without a stop for longer than 4 s" in desk.alerts


class Heard:
    """An observer that keeps the alerts."""

    def __init__(self) -> None:
        self.alerts: list[str] = []

    def on(self, event: Any) -> None:
        if isinstance(event, Alert):
            self.alerts.append(event.message)


@pytest.mark.parametrize("then", ["left", "unreadable", "stopped elsewhere"])
async def test_a_position_that_is_left_without_a_stop_is_told_when_the_deadline_passes(then: str) -> None:
    desk, heard = Desk(), Heard()
    desk.venue.holdings = [None, held()]
    desk.venue.answers = [Executed(order("e1", side="buy", state=OrderState.CLOSED, filled=Decimal(10)))]
    desk.venue.answers += [refused(Refusal.WOULD_TRIGGER), LOST]
    manager, _ = managed(desk, heard)
    inside: Any = manager
    desk.scope = inside._scope(desk.venue, MARKET, desk.lease)
    new = NewPosition(
        *("binance", "APTUSDT", LONG, Decimal(10), Decimal(100), Decimal(2)), "s", market="APT/USDT:USDT"
    )
    await inside._open(desk.scope, new, NoQuote())
    assert desk.row.status is PositionStatus.PENDING_SL
    if then == "stopped elsewhere":
        desk.store.row = replace(desk.row, status=PositionStatus.ACTIVE)
    if then == "unreadable":
        desk.store.get = None  # type: ignore[assignment, method-assign]
    async with asyncio.timeout(5):
        while inside._left.pending:
            await asyncio.sleep(0.001)
    told = [message for message in heard.alerts if message.startswith("without a stop for longer than")]
    assert len(told) == (0 if then == "stopped elsewhere" else 1)


async def test_a_position_that_has_its_stop_has_no_deadline_any_more() -> None:
    desk = Desk()
    manager, _ = managed(desk)
    inside: Any = manager
    desk.scope = inside._scope(desk.venue, MARKET, desk.lease)
    new = NewPosition(
        *("binance", "APTUSDT", LONG, Decimal(10), Decimal(100), Decimal(2)), "s", market="APT/USDT:USDT"
    )
    await inside._open(desk.scope, new, NoQuote())
    assert desk.row.status is PositionStatus.ACTIVE
    assert not inside._left.pending


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
