"""The manager on Bybit's ways: an entry that carries its stop, and ids that are taken for good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, install
from lockguard_positions import (
    AtomicPositionManager,
    NotOpened,
    Opened,
    OpenResult,
    Pace,
    PositionStatus,
    SyncAction,
    migrate,
)
from tests.integration.test_ccxt_bybit import APT, Bybit, Lost, connected

MS = timedelta(milliseconds=1)


@dataclass
class Stage:
    server: Bybit
    manager: AtomicPositionManager
    pool: asyncpg.Pool[Any]

    async def open(self, price: str = "8.5") -> OpenResult:
        return await self.manager.open_position_atomic("s", APT, "bybit", "long", "10", price, "2")

    def waiting(self) -> list[str]:
        return [
            order["triggerPrice"] for order in self.server.orders if order["orderStatus"] == "Untriggered"
        ]


@pytest.fixture
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(LockGuard.from_url(redis_url, fence=PostgresFence(pool)))
        server = Bybit()
        exchange = await stack.enter_async_context(connected(server))
        pace = Pace(poll=20 * MS, retry_pause=20 * MS, grace=0 * MS)
        yield Stage(server, AtomicPositionManager(guard, pool, [exchange], pace=pace), pool)


async def test_a_position_is_opened_kept_and_closed(stage: Stage) -> None:
    opened = await stage.open()
    assert isinstance(opened, Opened)
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])
    assert stage.server.created[0]["stopLoss"] == "8.33"
    report = await stage.manager.sync_exchange_positions("bybit")
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.IN_STEP]
    closed = await stage.manager.close_position(APT, "bybit")
    assert closed is not None
    assert closed.status is PositionStatus.CLOSED
    assert (stage.server.net, stage.waiting()) == (0, [])


@pytest.mark.parametrize("lost", list(Lost))
async def test_a_lost_answer_neither_doubles_nor_loses_the_position(stage: Stage, lost: Lost) -> None:
    stage.server.lose = lost
    assert isinstance(await stage.open(), Opened)
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])


async def test_a_stop_that_disappeared_is_placed_anew(stage: Stage) -> None:
    await stage.open()
    stage.server.orders[-1]["orderStatus"] = "Deactivated"
    report = await stage.manager.sync_exchange_positions("bybit")
    assert [outcome.action for outcome in report.outcomes] == [SyncAction.STOP_PLACED]
    assert (stage.server.net, stage.waiting()) == (10, ["8.33"])


async def test_a_stop_that_the_price_has_passed_is_refused_before_the_entry(stage: Stage) -> None:
    refused = await stage.open(price="9")
    assert isinstance(refused, NotOpened)
    assert "beyond the stop at 8.82" in refused.reason
    assert stage.server.created == []
