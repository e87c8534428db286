"""Observers of positions: what one raises does not break an open, and it is told what comes next."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from lockguard.errors import ConfigurationError
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import FaultKind, Operation
from lockguard_positions import (
    Alert,
    AtomicPositionManager,
    NotOpened,
    Opened,
    Pace,
    PositionEvent,
    PositionObserver,
)
from tests.integration.test_positions_flow import APT, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]

MS = timedelta(milliseconds=1)


class FullDisk:
    """An observer that fails at each event."""

    def __init__(self) -> None:
        self.events: list[PositionEvent] = []

    def on(self, event: PositionEvent) -> None:
        self.events.append(event)
        raise OSError("disk full")


def managed(bot: Bot, observer: PositionObserver, pace: Pace | None = None) -> AtomicPositionManager:
    exchange = GuardedExchange(bot.client)
    return AtomicPositionManager(bot.guard, bot.pool, [exchange], observers=[observer], pace=pace or Pace())


async def test_an_observer_that_fails_is_logged_and_told_of_the_next_alert(
    bot: Bot, caplog: pytest.LogCaptureFixture
) -> None:
    failing = FullDisk()
    manager = managed(bot, failing, Pace(grace=0 * MS))
    assert isinstance(
        await manager.open_position_atomic("s", APT, "binance", "long", "10", "8.5", "2"), Opened
    )
    assert "observer FullDisk failed (1 in all); it stays" in caplog.text
    (stop,) = bot.exchange.record().open_stops(APT)
    bot.exchange.cancel_by_hand(stop.id)
    await manager.sync_exchange_positions("binance")
    assert any(isinstance(e, Alert) and "stop is missing" in e.message for e in failing.events)


async def test_an_observer_that_could_never_be_told_is_refused_by_name(bot: Bot) -> None:
    with pytest.raises(ConfigurationError, match="write FullDisk\\(\\)"):
        managed(bot, FullDisk)  # type: ignore[arg-type]


async def test_a_listener_of_bans_that_fails_loses_no_answer(
    bot: Bot, caplog: pytest.LogCaptureFixture
) -> None:
    exchange = GuardedExchange(bot.client)
    told: list[timedelta] = []

    def listener(wait: timedelta) -> None:
        told.append(wait)
        raise OSError("disk full")

    exchange.on_closed(listener)
    for _ in range(2):
        bot.exchange.ban(timedelta(milliseconds=300))
        with pytest.raises(Exception, match="418"):
            await bot.client.fetch_ticker(APT)
        while exchange.closed_for:
            await asyncio.sleep(0.02)
    assert len(told) == 2
    assert caplog.text.count("a listener of closed calls failed") == 2


async def test_a_stop_that_is_asked_for_without_end_is_left_to_the_next_look_and_told(
    bot: Bot, caplog: pytest.LogCaptureFixture
) -> None:
    """However short the pauses are that somebody has chosen."""
    caplog.set_level(logging.ERROR)
    failing = FullDisk()
    bot.fault(FaultKind.RATE_LIMITED, Operation.CREATE_ALGO, times=10_000)
    pace = Pace(poll=0 * MS, retry_pause=0 * MS, attempts=1, stop_deadline=timedelta(minutes=5))
    result = await managed(bot, failing, pace).open_position_atomic(
        "s", APT, "binance", "long", "10", "8.5", "2"
    )
    assert isinstance(result, NotOpened)
    assert result.in_doubt
    assert bot.exchange.record().position(APT) == 10
    assert any(isinstance(e, Alert) and "without a stop" in e.message for e in failing.events)
