"""Kill -9 at every step of every flow, before, during and after it: the successor makes it true in time.

Each point dies in a process of its own, on a symbol of its own. Then one successor recovers them all, within
the leases' ttl and five seconds, and the exchange's own record is compared with the table.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lockguard_ccxt.testing import (
    Execution,
    Fault,
    FaultKind,
    Operation,
)
from lockguard_positions import Opened

BOUND = timedelta(seconds=6)
"""The leases' ttl and five seconds."""
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


async def prepare(stage: Any, flow: str, symbol: str) -> None:
    quantity, price = stage.quantity_of(symbol), stage.exchange.price(symbol)
    match flow:
        case "rollback":
            refusal = "Order would immediately trigger."
            stage.exchange.inject(
                Fault(
                    FaultKind.REJECTED,
                    Operation.CREATE_ALGO,
                    symbol=stage.plain(symbol),
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


async def die_at(stage: Any, flow: str) -> list[dict[str, str]]:
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
                    symbol=stage.plain(symbol),
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
                "quantity": str(stage.quantity_of(symbol)),
                "price": price,
            }
        )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("race_victim.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    orders = {**stage.urls, "ttl_ms": stage.ttl // MS, "points": plan}
    said, _ = await process.communicate(json.dumps(orders).encode() + b"\n")
    deaths = [json.loads(line) for line in said.splitlines()]
    assert [death["told"] for death in deaths] == ["killed"] * len(plan), deaths
    return plan


@pytest.mark.parametrize("flow", list(STEPS))
async def test_what_a_killed_process_leaves_is_made_true(stage: Any, flow: str) -> None:
    plan = await die_at(stage, flow)
    await stage.recover(BOUND)
    ends = {f"{p['where']} {p['when']}": await stage.sound(p["symbol"]) for p in plan}
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
