"""Kill -9 at every step of every flow, before, during and after it: the successor makes it true in time.

Each point dies in a process of its own, on a symbol of its own. Then one successor recovers them all, within
the leases' ttl and five seconds, and the exchange's own record is compared with the table.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from decimal import ROUND_UP, Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, install
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_ccxt.testing import (
    DEFAULT_MARKETS,
    Execution,
    Fault,
    FaultKind,
    LocalExchange,
    Operation,
    connect,
)
from lockguard_positions import AtomicPositionManager, Opened, Pace, SyncAction, migrate

TTL = timedelta(seconds=1)
BOUND = TTL + timedelta(seconds=5)
MS = timedelta(milliseconds=1)
SLOW_MS = 1_000

STEPS = {
    "open": [
        "store.begin",
        "venue.enter",
        "store.record_entry",
        "store.expect_stop",
        "venue.stop",
        "store.activate",
    ],
    "rollback": ["store.settle", "store.expect_close", "venue.close", "store.finish"],
    "close": ["store.expect_close", "venue.cancel", "venue.close", "store.finish"],
    "sync": ["store.adopt", "store.expect_stop", "venue.stop", "store.activate"],
}
"""What each flow does, in order. The parts that two flows share are killed in both."""

OPERATIONS = {
    "venue.enter": Operation.CREATE_ORDER,
    "venue.close": Operation.CREATE_ORDER,
    "venue.stop": Operation.CREATE_ALGO,
    "venue.cancel": Operation.CANCEL_ALGO,
}


def points(flow: str) -> list[tuple[str, str]]:
    """Where and when to die."""
    found = []
    for where in STEPS[flow]:
        found.append((where, "before"))
        if where in OPERATIONS:
            found.append((where, "during"))
        found.append((where, "after"))
    return found


@dataclass
class Stage:
    manager: AtomicPositionManager
    pool: asyncpg.Pool[Any]
    exchange: LocalExchange
    client: Any
    urls: dict[str, str]


@pytest.fixture
async def stage(redis_url: str, database_url: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        exchange = await stack.enter_async_context(LocalExchange())
        pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=20))
        async with pool.acquire() as conn:
            await install(conn)
            await migrate(conn)
        guard = await stack.enter_async_context(
            LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=TTL)
        )
        client = connect(exchange.url, config={"options": {"recvWindow": 1000}})
        stack.push_async_callback(client.close)
        guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
        await guarded.load()
        pace = Pace(poll=20 * MS, stop_deadline=500 * MS, retry_pause=20 * MS, grace=0 * MS)
        manager = AtomicPositionManager(guard, pool, [guarded], pace=pace)
        urls = {"redis_url": redis_url, "database_url": database_url, "exchange_url": exchange.url}
        yield Stage(manager, pool, exchange, client, urls)


def quantity_of(symbol: str) -> Decimal:
    spec = next(spec for spec in DEFAULT_MARKETS if spec.symbol == symbol)
    return (spec.min_notional * 2 / spec.price / spec.step).to_integral_value(ROUND_UP) * spec.step


async def prepare(stage: Stage, flow: str, symbol: str) -> None:
    quantity, price = quantity_of(symbol), stage.exchange.price(symbol)
    match flow:
        case "rollback":
            refusal = "Order would immediately trigger."
            stage.exchange.inject(
                Fault(
                    FaultKind.REJECTED,
                    Operation.CREATE_ALGO,
                    symbol=plain(symbol),
                    code=-2021,
                    message=refusal,
                )
            )
        case "close":
            opened = await stage.manager.open_position_atomic(
                "s", symbol, "binance", "long", quantity, price, "2"
            )
            assert isinstance(opened, Opened)
        case "sync":
            await stage.client.create_order(symbol, "market", "buy", float(quantity))


def plain(symbol: str) -> str:
    return symbol.partition(":")[0].replace("/", "")


async def die_at(stage: Stage, flow: str) -> list[dict[str, str]]:
    """Kill one process at each point; returns the points with their symbols."""
    plan = []
    for (where, when), symbol in zip(points(flow), stage.exchange.symbols, strict=False):
        await prepare(stage, flow, symbol)
        if when == "during":
            # The entry of a rollback is an order as well, and comes before its close.
            skip = 1 if (flow, where) == ("rollback", "venue.close") else 0
            stage.exchange.inject(
                Fault(
                    FaultKind.DELAY,
                    OPERATIONS[where],
                    Execution.FIRST,
                    symbol=plain(symbol),
                    skip=skip,
                    hold_ms=SLOW_MS,
                )
            )
        price = str(stage.exchange.price(symbol))
        plan.append(
            {
                "flow": flow,
                "where": where,
                "when": when,
                "symbol": symbol,
                "quantity": str(quantity_of(symbol)),
                "price": price,
            }
        )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("race_victim.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    orders = {**stage.urls, "ttl_ms": TTL // MS, "points": plan}
    said, _ = await process.communicate(json.dumps(orders).encode() + b"\n")
    deaths = [json.loads(line) for line in said.splitlines()]
    assert [death["told"] for death in deaths] == ["killed"] * len(plan), deaths
    return plan


async def recover(stage: Stage) -> None:
    """Recover and sync, as a bot does, until there is nothing more to settle; in time."""
    busy = {SyncAction.BUSY, SyncAction.IN_DOUBT, SyncAction.UNREADABLE, SyncAction.SETTLING}
    async with asyncio.timeout(BOUND.total_seconds()):
        while True:
            recovered = await stage.manager.recover("binance")
            synced = await stage.manager.sync_exchange_positions("binance")
            if not recovered.of(*busy) and synced.settled:
                return
            await asyncio.sleep(0.05)


async def sound(stage: Stage, symbol: str) -> str:
    """What the exchange holds, after it was compared with the table."""
    record = stage.exchange.record()
    held, stops = record.position(symbol), record.open_stops(symbol)
    entries = list(record.entries(symbol))
    assert len(entries) <= 1
    rows = await stage.pool.fetch(
        "select * from monitoring.positions where symbol = $1 and status = any($2)",
        plain(symbol),
        ["pending_entry", "entry_placed", "pending_sl", "active"],
    )
    doubt = await stage.pool.fetchval(
        "select count(*) from monitoring.position_intents where symbol = $1 and settled_at is null",
        plain(symbol),
    )
    assert doubt == 0
    if not held:
        assert (list(rows), stops) == ([], ())
        return "flat"
    ((row,), (stop,)) = rows, stops
    assert (row["status"], row["quantity"], row["side"]) == ("active", held, "long")
    assert (row["stop_client_id"], stop.qty) == (stop.client_id, held)
    return "protected"


@pytest.mark.parametrize("flow", list(STEPS))
async def test_what_a_killed_process_leaves_is_made_true(stage: Stage, flow: str) -> None:
    plan = await die_at(stage, flow)
    await recover(stage)
    ends = {f"{p['where']} {p['when']}": await sound(stage, p["symbol"]) for p in plan}
    match flow:
        case "open":
            expected = dict.fromkeys(ends, "protected")
            # Killed before anything was ordered: nobody opens on behalf of a dead signal.
            never = ("store.begin before", "store.begin after", "venue.enter before")
            expected.update(dict.fromkeys(never, "flat"))
        case "sync":
            expected = dict.fromkeys(ends, "protected")
        case "close":
            expected = dict.fromkeys(ends, "flat") | {"store.expect_close before": "protected"}
        case _:
            # The refused stop can be placed by whoever comes next, unless it was decided to close.
            expected = dict.fromkeys(ends, "flat")
            before = ("store.settle before", "store.settle after", "store.expect_close before")
            expected.update(dict.fromkeys(before, "protected"))
    assert ends == expected
