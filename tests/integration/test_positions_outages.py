"""Outages as long as those that nobody was told of, against the thresholds as they are shipped.

The loop's own clock is moved, so that thirty seconds and five minutes pass in no time: what is tested are the
default values, and not shorter ones that a test has set.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard.testing import FakeClock
from lockguard_asyncpg import PostgresFence
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_bot._cli import bot as bot_command
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.servers import FaultProxy
from lockguard_positions import AtomicPositionManager, ExchangeUnreadable, Pace
from tests.integration.test_positions_flow import Bot, bot, two_bots

__all__ = ["bot", "two_bots"]

SYMBOLS = ("APT/USDT:USDT", "SOL/USDT:USDT", "XRP/USDT:USDT")
STEP = timedelta(seconds=15)
"""As often as a bot passes over its positions."""


def shipped_to_the_bot() -> timedelta:
    (option,) = [one for one in bot_command.commands["run"].params if one.name == "alert_after"]
    assert isinstance(option.default, (int, float))
    return timedelta(seconds=option.default)


class Moved:
    """The loop's clock and the one that alerts are repeated by, both moved at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.clock = FakeClock(now_s=SYSTEM_CLOCK.now())
        self.gone = timedelta(0)
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + self.gone.total_seconds())

    async def on(self, by: timedelta) -> None:
        self.gone += by
        self.clock.advance(by)
        for _ in range(3):  # what is due now is called in the loop's next round
            await asyncio.sleep(0)


@pytest.mark.parametrize("overdue", [Pace().overdue, shipped_to_the_bot()], ids=["library", "bot"])
@pytest.mark.parametrize(("which", "lasts_s"), [("redis", 30), ("postgres", 30), ("exchange", 315)])
async def test_an_outage_is_told_once_it_has_lasted_for_as_long_as_the_default_says(
    bot: Bot,
    which: str,
    lasts_s: int,
    overdue: timedelta,
    redis_url: str,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for symbol in SYMBOLS:
        price = bot.exchange.price(symbol)
        await bot.manager.open_position_atomic("s", symbol, "binance", "long", "20", price, "2")
    async with AsyncExitStack() as stack:
        url = redis_url if which == "redis" else database_url
        proxy = await stack.enter_async_context(FaultProxy(urlsplit(url).port or 0))
        redis = proxy.url_for(redis_url) if which == "redis" else redis_url
        database = proxy.url_for(database_url) if which == "postgres" else database_url
        pool = await stack.enter_async_context(asyncpg.create_pool(database, min_size=1, max_size=4))
        guard = await stack.enter_async_context(LockGuard.from_url(redis, fence=PostgresFence(bot.pool)))
        moved = Moved(monkeypatch)
        manager = AtomicPositionManager(
            guard,
            pool,
            [GuardedExchange(bot.client, patience=Patience(poll=timedelta(milliseconds=10)))],
            pace=Pace(overdue=overdue),
            observers=[bot.watch],
            clock=moved.clock,
        )
        assert (await manager.sync_exchange_positions("binance")).settled
        bot.watch.events.clear()
        if which == "exchange":
            bot.exchange.set_maintenance(True)
        else:
            proxy.refuse()
            proxy.reset()
        told_at: list[timedelta] = []
        while moved.gone <= timedelta(seconds=lasts_s):
            with suppress(ExchangeUnreadable, *DATABASE_ERRORS):
                await asyncio.wait_for(manager.sync_exchange_positions("binance"), 1)
            told_at += [moved.gone] * (len(bot.watch.alerts) - len(told_at))
            await moved.on(STEP)
            told_at += [moved.gone] * (len(bot.watch.alerts) - len(told_at))
        assert all("not read or decided" in alert for alert in bot.watch.alerts), bot.watch.alerts
        # The first word when the time is up, the next one five minutes later: not one for each pass.
        assert overdue <= told_at[0] <= overdue + STEP, told_at
        assert len(told_at) <= 1 + (lasts_s >= 300), bot.watch.alerts
        bot.exchange.set_maintenance(False)
        await proxy.start()
        async with asyncio.timeout(20):
            while not bot.watch.alerts[-1].startswith("over: "):
                with suppress(ExchangeUnreadable, *DATABASE_ERRORS):
                    await manager.sync_exchange_positions("binance")
                await asyncio.sleep(0.02)
