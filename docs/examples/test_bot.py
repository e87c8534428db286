"""Tests of a bot with pytest-asyncio, which gives each test an event loop of its own."""

import asyncio
from datetime import timedelta

import pytest

from lockguard import LockGuard, ResourceBusy, exclusive

pytest_plugins = ["lockguard.testing.pytest_plugin"]

guard = LockGuard.from_env()  # as in a bot's own module


class Bot:
    def __init__(self, guard: LockGuard) -> None:
        self.guard = guard
        self.orders: list[str] = []

    @exclusive("binance:{symbol}", guard="guard")
    async def open_position(self, symbol: str) -> None:
        if symbol not in self.orders:
            await asyncio.sleep(0.01)  # the exchange
            self.orders.append(symbol)


@pytest.mark.asyncio
@pytest.mark.parametrize("symbol", ["APTUSDT", "SUIUSDT"])
async def test_two_signals_make_one_order(symbol):
    bot = Bot(guard)
    await asyncio.gather(bot.open_position(symbol), bot.open_position(symbol))
    assert bot.orders == [symbol]


@pytest.mark.asyncio
async def test_without_a_server(new_lockguard):
    bot = Bot(new_lockguard(wait=timedelta(0)))
    async with new_lockguard().hold("binance:APTUSDT"):  # as another process would
        with pytest.raises(ResourceBusy):
            await bot.open_position("APTUSDT")
    await bot.open_position("APTUSDT")
    assert bot.orders == ["APTUSDT"]
