"""What persists is told at its beginning, at growing intervals and at its end; never once for each pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard.testing import FakeClock
from lockguard_lab.exchange import Side
from lockguard_positions import Alert, AtomicPositionManager, Opened, Pace, PositionEvent
from lockguard_positions._telling import PAUSES, Repeats
from tests.integration.test_bot_trader import Desk, desk

__all__ = ["desk"]

DAY = timedelta(days=1)
MS = timedelta(milliseconds=1)
FRESH = "FRESH/USDT:USDT"
GONE = Alert("binance:FRESHUSDT", 7, "unprotected, as nothing can be ordered: BadSymbol")


class Heard:
    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    def on(self, event: PositionEvent) -> None:
        if isinstance(event, Alert):
            self.alerts.append(event)


def test_a_condition_of_a_week_is_told_at_once_then_at_growing_intervals_and_at_its_end() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    told_at: list[timedelta] = []
    every = timedelta(seconds=5)
    for number in range(7 * DAY // every):
        if repeats.is_due(GONE):
            told_at.append(number * every)
        clock.advance(every)
    first, second, daily = PAUSES
    assert told_at == [0 * MS, first, first + second, *(first + second + n * daily for n in range(1, 7))]
    since = repeats.now()
    (over,) = repeats.over(lambda resource: resource == GONE.resource, since)
    assert over == Alert(GONE.resource, GONE.position_id, f"over: {GONE.message}")
    assert repeats.over(lambda _: True, since) == []
    assert repeats.is_due(GONE)  # it has begun anew


def test_what_was_seen_once_has_no_end_and_what_nobody_looked_at_has_not_ended() -> None:
    clock = FakeClock()
    repeats = Repeats(clock)
    assert repeats.is_due(GONE)
    clock.advance(MS)
    assert repeats.over(lambda _: True, repeats.now()) == []
    for _ in range(2):
        repeats.is_due(GONE)
    clock.advance(MS)
    assert repeats.over(lambda _: False, repeats.now()) == []
    assert len(repeats.over(lambda _: True, repeats.now())) == 1


@pytest.mark.parametrize("other", ["binance:FRESHUSDT", "binance:APTUSDT"])
def test_conditions_of_other_symbols_positions_and_kinds_are_told_each(other: str) -> None:
    repeats = Repeats(FakeClock())
    assert repeats.is_due(GONE)
    assert not repeats.is_due(
        Alert(GONE.resource, 7, "unprotected, as nothing can be ordered: in other words")
    )
    assert repeats.is_due(Alert(other, 8, GONE.message))
    assert repeats.is_due(Alert(other, 7, "its stop is missing, placing a new one"))


def gone(desk: Desk) -> None:
    desk.exchange.delist_contract(FRESH)


def reduced_by_hand(desk: Desk) -> None:
    desk.exchange.trade_by_hand(FRESH, Side.SELL, Decimal(4))


def foreign_stop(desk: Desk) -> None:
    desk.exchange.stop_by_hand(FRESH, Side.SELL, desk.exchange.price(FRESH) * Decimal("0.99"), qty=Decimal(4))


@pytest.mark.parametrize("trouble", [gone, reduced_by_hand, foreign_stop])
async def test_a_pass_tells_what_persists_a_bounded_number_of_times(
    desk: Desk, trouble: Callable[[Desk], None]
) -> None:
    """A day of passes on a clock that moves; a delisted contract was told at every single one of them."""
    clock, heard = FakeClock(now_s=SYSTEM_CLOCK.now()), Heard()
    venue = desk.manager._venue("binance")
    manager = AtomicPositionManager(
        desk.guard, desk.pool, [venue._exchange], pace=Pace(grace=0 * MS), observers=[heard], clock=clock
    )
    desk.exchange.list_contract(FRESH)
    venue._exchange._loaded_at = None
    price = desk.exchange.price(FRESH)
    await venue._exchange.refresh()
    opened = await manager.open_position_atomic("s", FRESH, "binance", "long", "10", price, "2")
    assert isinstance(opened, Opened)
    trouble(desk)
    venue._exchange._loaded_at = None
    for _ in range(24):
        await manager.sync_exchange_positions("binance")
        await manager.recover("binance")
        clock.advance(timedelta(hours=1))
    about = [alert for alert in heard.alerts if not alert.message.startswith("over: ")]
    assert 1 <= len(about) <= 3, heard.alerts
    if trouble is gone:
        desk.exchange.list_contract(FRESH)
        venue._exchange._loaded_at = None
        await manager.sync_exchange_positions("binance")
    await manager.close_position(FRESH, "binance")
    for stop in desk.exchange.record().open_stops("FRESHUSDT"):
        desk.exchange.cancel_by_hand(stop.id)
    for _ in range(2):
        clock.advance(MS)
        await manager.sync_exchange_positions("binance")
    assert [a for a in heard.alerts if a.message.startswith("over: ")], heard.alerts


async def test_what_was_overdue_is_told_when_it_is_over(desk: Desk) -> None:
    heard = Heard()
    venue = desk.manager._venue("binance")
    manager = AtomicPositionManager(
        desk.guard, desk.pool, [venue._exchange], pace=Pace(overdue=20 * MS), observers=[heard]
    )
    async with desk.guard.hold("binance:APTUSDT"):
        pass
    manager._telling.rows_of("binance", 1)
    telling = manager._telling
    with pytest.raises(RuntimeError), telling.look("binance", "pass"):
        raise RuntimeError("not now")
    async with asyncio.timeout(5):
        while not heard.alerts:
            await asyncio.sleep(0.005)
    with telling.look("binance", "pass"):
        pass
    begun, over = heard.alerts
    assert "not read or decided" in begun.message
    assert over.message == f"over: {begun.message}"
