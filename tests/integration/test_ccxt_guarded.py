"""The guard around ccxt, on the local exchange: nothing without a lease, nothing twice, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal

import pytest

from lockguard.clock import SYSTEM_CLOCK
from lockguard.context import Entry, pop_entry, push_entry
from lockguard.errors import LeaseLost, LeaseNotHeld
from lockguard.lease import Grant, Lease, Token, new_grant_id, parse_resource
from lockguard_ccxt import (
    Executed,
    GuardedExchange,
    Holding,
    Patience,
    Step,
)
from lockguard_ccxt.testing import LocalExchange, connect

APT = "APT/USDT:USDT"
TEN = Decimal(10)
QUICK = Patience(search=timedelta(milliseconds=400), poll=timedelta(milliseconds=20))


@contextmanager
def lease(resource: str = "binance:APTUSDT", seconds: float = 30) -> Iterator[Lease]:
    grant = Grant(parse_resource(resource), new_grant_id(), Token(1), "test", "", 30_000)
    held = Lease(grant, deadline=SYSTEM_CLOCK.now() + seconds, clock=SYSTEM_CLOCK)
    task = asyncio.current_task()
    assert task is not None
    token = push_entry(Entry(held, task, None))
    try:
        yield held
    finally:
        pop_entry(token)


@pytest.fixture
async def exchange() -> AsyncIterator[LocalExchange]:
    async with LocalExchange(symbols=[APT, "BTC/USDT:USDT"]) as server:
        yield server


@pytest.fixture
async def guarded(exchange: LocalExchange) -> AsyncIterator[GuardedExchange]:
    async with connect(exchange.url, config={"timeout": 1500}) as client:
        guard = GuardedExchange(client, patience=QUICK)
        await guard.load()
        yield guard


# --- the lease ---


async def test_nothing_is_sent_without_a_lease(exchange: LocalExchange, guarded: GuardedExchange) -> None:
    with pytest.raises(LeaseNotHeld, match="binance:APTUSDT"):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


async def test_a_lease_on_another_resource_is_no_lease(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease("binance:BTCUSDT"), pytest.raises(LeaseNotHeld):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


async def test_a_lease_with_too_little_left_sends_nothing(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease(seconds=0.3), pytest.raises(LeaseLost):
        await guarded.place_entry(APT, "buy", TEN, intent=1)
    assert exchange.record().orders == ()


async def test_entry_stop_and_close_do_what_they_say(
    exchange: LocalExchange, guarded: GuardedExchange
) -> None:
    with lease():
        entry = await guarded.place_entry(APT, "buy", Decimal("10.07"), intent=1)
        assert isinstance(entry, Executed)
        assert (entry.order.filled, entry.order.average) == (Decimal("10.0"), Decimal("8.5"))
        stop = await guarded.place_stop(APT, "sell", entry.order.filled, trigger=Decimal("8.00004"), intent=1)
        assert isinstance(stop, Executed)
        assert stop.order.trigger == Decimal("8.0000")
        assert await guarded.holding(APT) == Holding(APT, "buy", TEN, Decimal("8.5"))
        assert [order.client_id for order in await guarded.open_orders(APT)] == [
            guarded.client_id(APT, 1, Step.STOP)
        ]
        cancelled = await guarded.cancel(stop.order)
        assert isinstance(cancelled, Executed)
        closed = await guarded.close_position(APT, "sell", TEN, intent=1)
        assert isinstance(closed, Executed)
        assert await guarded.holding(APT) is None
    assert exchange.record().position(APT) == 0
    assert exchange.record().orphan_stops() == ()
