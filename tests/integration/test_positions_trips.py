"""What an open waits for, counted on the wire, so that it does not grow unseen.

The time to open is a matter of the machine; how often it waits for somebody else is not. Each request to the
exchange but the first is waited for alone, and so is each round trip to Postgres between them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from lockguard import LockGuard, ResourceBusy, detached
from lockguard.testing import FakeClock
from lockguard_asyncpg import CommitUnknown, PostgresFence, install
from lockguard_ccxt import GuardedExchange
from lockguard_lab.exchange import LocalExchange, connect
from lockguard_positions import AtomicPositionManager, Opened, PositionStatus, migrate
from lockguard_positions import _fenced_writes as writes_module
from lockguard_positions import _venue as venue_module
from tests.integration.test_fence_roundtrips import Counter

APT = "APT/USDT:USDT"
LOOK = "fetch_positions"
ENTRY = "entry"
STOP = "stop"


@dataclass
class Watch:
    """Counts Postgres's round trips by what the exchange was doing meanwhile."""

    counter: Counter
    phase: str = "before"
    trips: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _since: int = 0

    def enter(self, phase: str) -> None:
        done = self.counter.trips - self._since
        self.trips[self.phase] = self.trips.get(self.phase, 0) + done
        self.phase, self._since = phase, self.counter.trips

    def begin(self) -> None:
        self.phase, self._since, self.trips, self.asked = "lease", self.counter.trips, {}, []

    def around(self, client: Any, name: str) -> None:
        send = getattr(client, name)

        async def watched(*args: Any, **kwargs: Any) -> Any:
            what = name
            if name == "create_order":
                what = STOP if "stopLossPrice" in args[-1] else ENTRY
            self.asked.append(what)
            if name != "fetch_ticker":  # asked beside the first
                self.enter(f"during {what}")
            answer = await send(*args, **kwargs)
            if name == LOOK:
                # What is read meanwhile has as long as the exchange takes.
                await asyncio.wait_for(self.quiet(), 5)
            if name != "fetch_ticker":
                self.enter(f"after {what}")
            return answer

        setattr(client, name, watched)

    async def quiet(self) -> None:
        """Until nothing more has been read for a while."""
        last = -1
        while last != self.counter.trips:
            last = self.counter.trips
            await asyncio.sleep(0.1)


@dataclass
class Stage:
    manager: AtomicPositionManager
    watch: Watch
    exchange: LocalExchange


@pytest.fixture
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        conn = await asyncpg.connect(database_url)
        await install(conn)
        await migrate(conn)
        await conn.close()
        port = urlsplit(database_url).port
        counter = await stack.enter_async_context(Counter(port or 0).listening())
        far = database_url.replace(f":{port}/", f":{counter.port}/")
        pools = [
            await stack.enter_async_context(asyncpg.create_pool(far, min_size=1, max_size=1, ssl="disable"))
            for _ in range(2)
        ]
        guard = LockGuard.from_url(redis_url, fence=PostgresFence(pools[0]), ttl=timedelta(seconds=60))
        await stack.enter_async_context(guard)
        exchange = await stack.enter_async_context(LocalExchange())
        client = connect(exchange.url)
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client)
        await guarded.load()
        watch = Watch(counter)
        for name in (LOOK, "fetch_ticker", "create_order"):
            watch.around(client, name)
        yield Stage(AtomicPositionManager(guard, pools[1], [guarded]), watch, exchange)


async def test_what_an_open_waits_for_is_counted_and_does_not_grow(stage: Stage) -> None:
    for _ in range(2):  # what is prepared once for a connection is not counted
        stage.watch.begin()
        price = stage.exchange.price(APT)
        opened = await stage.manager.open_position_atomic("s", APT, "binance", "long", "10", price, "2")
        stage.watch.enter("end")
        assert isinstance(opened, Opened)
        trips, asked = dict(stage.watch.trips), list(stage.watch.asked)
        await stage.manager.close_position(APT, "binance")
    assert sorted(asked) == sorted((LOOK, "fetch_ticker", ENTRY, STOP))
    assert trips == {
        "lease": 1,  # the seal
        f"during {LOOK}": 3,  # loose stops, the open row, the number of the next intent
        f"after {LOOK}": 1,  # the row and its intent
        f"during {ENTRY}": 0,
        f"after {ENTRY}": 1,  # the fill with the stop's intent
        f"during {STOP}": 0,
        f"after {STOP}": 2,  # active; the fence is closed with the lease
    }


@pytest.mark.parametrize(("waited_s", "asked"), [(0.4, 1), (0.6, 2)])
async def test_the_price_is_asked_for_before_the_lease_and_again_only_if_that_took_long(
    stage: Stage, redis_url: str, monkeypatch: pytest.MonkeyPatch, waited_s: float, asked: int
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(venue_module, "SYSTEM_CLOCK", clock)
    stage.watch.begin()
    price = stage.exchange.price(APT)
    async with LockGuard.from_url(redis_url) as other:
        async with other.hold("binance:APTUSDT"):
            with detached():
                opening = asyncio.create_task(
                    stage.manager.open_position_atomic("s", APT, "binance", "long", "10", price, "2")
                )
            async with asyncio.timeout(5):
                while stage.watch.asked != ["fetch_ticker"]:
                    await asyncio.sleep(0.01)
            clock.advance(timedelta(seconds=waited_s))
        assert isinstance(await opening, Opened)
    assert stage.watch.asked.count("fetch_ticker") == asked


async def test_an_open_that_gets_no_lease_leaves_no_question_about_the_price_behind(
    stage: Stage, redis_url: str
) -> None:
    stage.exchange.set_latency(timedelta(seconds=30))
    async with LockGuard.from_url(redis_url) as other, other.hold("binance:APTUSDT"):
        with detached():
            opening = asyncio.create_task(
                stage.manager.open_position_atomic(
                    "s", APT, "binance", "long", "10", "10", "2", wait=timedelta(0)
                )
            )
        with pytest.raises(ResourceBusy):
            await opening
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("price of")]


@pytest.mark.parametrize("committed", [True, False])
async def test_a_statement_whose_answer_is_lost_is_found_or_made_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The row with its intent, the fill with its stop's, active: each loses its answer, done or not."""
    send, lost = writes_module.fenced_fetchrow, []

    async def losing(target: Any, text: str, *args: Any, **more: Any) -> Any:
        if text in lost:
            return await send(target, text, *args, **more)
        lost.append(text)
        if committed:
            await send(target, text, *args, **more)
        raise CommitUnknown(resource="binance:APTUSDT", token=1, sequence=1)

    async def resolved(*_: Any, **__: Any) -> bool:
        return committed

    monkeypatch.setattr(writes_module, "fenced_fetchrow", losing)
    monkeypatch.setattr(writes_module, "resolve", resolved)
    price = stage.exchange.price(APT)
    opened = await stage.manager.open_position_atomic("s", APT, "binance", "long", "10", price, "2")
    assert isinstance(opened, Opened)
    assert (opened.position.status, len(lost)) == (PositionStatus.ACTIVE, 3)
    record = stage.exchange.record()
    (stop,) = record.open_stops(APT)
    assert (len(record.entries(APT)), record.position(APT)) == (1, 10)
    assert stop.client_id == opened.position.stop_client_id
    assert await stage.manager.half_done("binance") == ()


async def test_a_fill_is_written_down_though_the_schema_went_back_a_version_while_the_bot_ran(
    stage: Stage, database_url: str
) -> None:
    """Whoever knew the newer version would be refused after the order: bought, and without a stop."""
    for number, version in ((1, None), (2, 10)):
        conn = await asyncpg.connect(database_url)
        await migrate(conn, to=version)
        await conn.close()
        price = stage.exchange.price(APT)
        opened = await stage.manager.open_position_atomic(
            f"s{number}", APT, "binance", "long", "10", price, "2"
        )
        assert isinstance(opened, Opened)
        assert opened.position.status is PositionStatus.ACTIVE
        assert len(stage.exchange.record().open_stops(APT)) == 1
        await stage.manager.close_position(APT, "binance")
