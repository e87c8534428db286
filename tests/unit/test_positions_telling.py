"""What is told of a server that is gone counts the positions that were opened since the last look."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from lockguard._clock import SYSTEM_CLOCK
from lockguard_positions._events import Moved, PositionEvent
from lockguard_positions._model import Position, PositionSide
from lockguard_positions._status import PositionStatus
from lockguard_positions._telling import Telling

POSITION = Position(
    *(1, "binance", "APTUSDT", PositionSide.LONG, Decimal(1), PositionStatus.ACTIVE),
    *[None] * 15,
    age_ms=0,
)


class Heard:
    """What an observer was told."""

    def __init__(self) -> None:
        self.events: list[PositionEvent] = []
        self.last = asyncio.Event()

    def on(self, event: PositionEvent) -> None:
        self.events.append(event)
        if "bybit" in str(event):
            self.last.set()


@pytest.mark.parametrize(
    ("ended", "counted", "told"), [(False, False, 1), (True, False, 0), (False, True, 0)]
)
async def test_an_outage_right_after_an_open_is_told_though_no_look_has_counted_it(
    ended: bool, counted: bool, told: int
) -> None:
    """The last look had counted none: nobody was told of a database that was gone under fifteen positions."""
    heard = Heard()
    telling = Telling([heard], overdue=timedelta(milliseconds=20), clock=SYSTEM_CLOCK)
    telling.rows_of("binance", 0)
    telling.tell(Moved(POSITION, PositionStatus.PENDING_SL, "open"))
    if ended:
        telling.tell(Moved(replace(POSITION, status=PositionStatus.CLOSED), PositionStatus.ACTIVE, "close"))
    if counted:  # by a look that began after the open: somebody else has ended it
        with telling.look("binance", "recovery") as look:
            look.rows(0)
    for exchange in ("binance", "bybit"):  # of bybit nothing is known: it is told, and later than the other
        with pytest.raises(OSError, match="gone"), telling.look(exchange, "pass"):
            raise OSError("gone")
    async with asyncio.timeout(10):
        await heard.last.wait()
    alerts = [str(event) for event in heard.events if "binance" in str(event) and "not read" in str(event)]
    assert len(alerts) == told
    assert all("with 1 open positions" in alert for alert in alerts)
