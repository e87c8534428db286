"""Markets are loaded once for all who wait for them, and who gives up ends nobody else's wait."""

from __future__ import annotations

import asyncio
from typing import Any

import ccxt.async_support as ccxt
import pytest

from lockguard_ccxt import GuardedExchange

MARKETS = [
    {
        "id": "APTUSDT",
        "symbol": "APT/USDT:USDT",
        "base": "APT",
        "quote": "USDT",
        "settle": "USDT",
        "type": "swap",
        "spot": False,
        "swap": True,
        "contract": True,
        "linear": True,
        "active": True,
        "precision": {"amount": 0.1, "price": 0.01},
        "limits": {"amount": {}, "price": {}, "cost": {}},
    }
]


class Venue(ccxt.binanceusdm):  # type: ignore[misc]
    """One market, which is told when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asked = 0
        self.fails = False

    async def fetch_markets(self, params: Any = None) -> Any:
        self.asked += 1
        await self.gate.wait()
        if self.fails:
            raise ccxt.ExchangeNotAvailable("away")
        return MARKETS

    async def fetch_currencies(self, params: Any = None) -> Any:
        return None


@pytest.fixture
def venue() -> Venue:
    made = Venue()
    GuardedExchange(made)
    return made


async def waiting(venue: Venue, asked: int = 1) -> None:
    async with asyncio.timeout(5):
        while venue.asked < asked:
            await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_a_cancelled_load_ends_nobody_elses(venue: Venue) -> None:
    """ccxt awaits one task from all callers: every one of them was cancelled."""
    first, second = (asyncio.create_task(venue.load_markets()) for _ in range(2))
    await waiting(venue)
    first.cancel()
    await asyncio.wait([first])
    venue.gate.set()
    assert "APT/USDT:USDT" in await second
    assert (first.cancelled(), second.cancelling(), venue.asked) == (True, 0, 1)


async def test_a_load_that_all_have_left_ends_and_the_next_begins_anew(venue: Venue) -> None:
    first = asyncio.create_task(venue.load_markets())
    await waiting(venue)
    first.cancel()
    second = asyncio.create_task(venue.load_markets())  # before the first has ended
    await waiting(venue, asked=2)
    venue.gate.set()
    assert "APT/USDT:USDT" in await second
    assert [task for task in asyncio.all_tasks() if task.get_name() == "lockguard-markets"] == []


async def test_loaded_markets_are_given_at_once_while_they_are_reloaded(venue: Venue) -> None:
    venue.gate.set()
    await venue.load_markets()
    venue.gate.clear()
    reloading = asyncio.create_task(venue.load_markets(reload=True))
    await waiting(venue, asked=2)
    async with asyncio.timeout(1):
        assert "APT/USDT:USDT" in await venue.load_markets()
    assert not reloading.done()
    venue.gate.set()
    await reloading


async def test_a_load_that_fails_fails_for_all_and_the_next_is_tried(venue: Venue) -> None:
    venue.fails = True
    both = [asyncio.create_task(venue.load_markets()) for _ in range(2)]
    await waiting(venue)
    venue.gate.set()
    for failed in both:
        with pytest.raises(ccxt.ExchangeNotAvailable):
            await failed
    venue.fails = False
    assert "APT/USDT:USDT" in await venue.load_markets()


def test_an_exchange_serves_one_loop_after_the_other(venue: Venue) -> None:
    async def cut() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await venue.load_markets()

    async def whole() -> Any:
        venue.gate.set()
        return await venue.load_markets()

    asyncio.run(cut())
    venue.gate = asyncio.Event()
    assert "APT/USDT:USDT" in asyncio.run(whole())
