"""What an author asks of a bot, without a server and without waiting: ``pip install '.[memory]'``."""

import asyncio
from datetime import timedelta

import pytest

from lockguard import LeaseLost, LockGuard, QuorumUnavailable, StaleToken
from lockguard.testing import replaced

pytest_plugins = ["lockguard.testing.pytest_plugin"]
pytestmark = pytest.mark.asyncio

# The bot: as in a module of its own, with its guard, its exchange and its rows.

guard = LockGuard.from_env(ttl=timedelta(seconds=10))
rows = {}
exchange = None


@guard.exclusive("binance:{symbol}")
async def open_position(symbol: str) -> None:
    if symbol in rows:
        return
    rows[symbol] = "opening"
    await exchange.create_order(symbol, "entry")
    try:
        await exchange.create_order(symbol, "stop")
    except asyncio.CancelledError:  # the lease was lost: what protects a position needs none
        await exchange.create_order(symbol, "stop")
        raise
    rows[symbol] = "active"


class FakeExchange:
    """Takes a while for each order, by the test's clock."""

    def __init__(self, clock):
        self.clock, self.orders, self.takes_s = clock, [], {"entry": 1.0, "stop": 1.0}

    async def create_order(self, symbol, kind):
        await self.clock.sleep(self.takes_s[kind])
        self.orders.append(f"{kind} {symbol}")


# Its tests.


@pytest.fixture
def bot(monkeypatch, lockguard_clock, lockguard_fence, new_lockguard):
    """The bot's own functions, with a guard, a table and an exchange in memory."""
    monkeypatch.setitem(globals(), "exchange", FakeExchange(lockguard_clock))
    monkeypatch.setitem(globals(), "rows", lockguard_fence.table(protect="binance:{key}"))
    with replaced(guard, new_lockguard(fence=lockguard_fence)):
        yield


async def test_two_handlers_race(bot, lockguard_clock):
    both = asyncio.gather(open_position("APTUSDT"), open_position("APTUSDT"))
    await lockguard_clock.run_for(timedelta(seconds=5))
    await both
    assert exchange.orders == ["entry APTUSDT", "stop APTUSDT"]
    assert dict(rows) == {"APTUSDT": "active"}


async def test_the_lease_is_lost_between_the_entry_and_the_stop(bot, lockguard_clock, lockguard_store):
    exchange.takes_s["stop"] = 60.0
    opening = asyncio.create_task(open_position("APTUSDT"))
    await lockguard_clock.run_for(timedelta(seconds=2))
    assert exchange.orders == ["entry APTUSDT"]
    exchange.takes_s["stop"] = 1.0
    lockguard_store.hang()  # no renewal is answered from now on
    await lockguard_clock.run_for(timedelta(seconds=20))
    with pytest.raises(LeaseLost):
        await opening
    assert exchange.orders == ["entry APTUSDT", "stop APTUSDT"]


async def test_a_holder_that_was_stopped_for_a_minute_overwrites_nothing(
    bot, lockguard_clock, lockguard_fence, new_lockguard
):
    exchange.takes_s["entry"] = 2.0
    opening = asyncio.create_task(open_position("APTUSDT"))
    await lockguard_clock.run_for(timedelta(seconds=1))
    successor = new_lockguard(fence=lockguard_fence)
    lockguard_clock.advance(timedelta(minutes=1))  # nothing runs meanwhile
    async with successor.hold("binance:APTUSDT"):
        rows["APTUSDT"] = "recovered"
        await lockguard_clock.run_for(timedelta(seconds=5))
    with pytest.raises((LeaseLost, StaleToken)):
        await opening
    assert dict(rows) == {"APTUSDT": "recovered"}


async def test_nothing_is_ordered_while_redis_cannot_be_reached(bot, lockguard_clock, lockguard_store):
    lockguard_store.fail()
    opening = asyncio.create_task(open_position("APTUSDT"))
    await lockguard_clock.run_for(timedelta(seconds=11))
    with pytest.raises(QuorumUnavailable):
        await opening
    assert exchange.orders == []
    lockguard_store.recover()
    opening = asyncio.create_task(open_position("APTUSDT"))
    await lockguard_clock.run_for(timedelta(seconds=2))
    await opening


async def test_a_write_without_the_lease_is_refused(bot, lockguard_fence):
    with pytest.raises(StaleToken):
        rows["APTUSDT"] = "active"
    assert [refused.reason for refused in lockguard_fence.refusals] == ["unguarded"]
