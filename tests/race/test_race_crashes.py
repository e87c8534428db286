"""Kill -9 at every step of every flow, before, during and after it: the successor makes it true in time.

Each point dies in a process of its own, on a symbol of its own. Then one successor recovers them all, within
the leases' ttl and five seconds, and the exchange's own record is compared with the table.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockguard_lab.exchange import Execution, Fault, FaultKind, Operation, Side
from lockguard_positions import Opened, Position, PositionStore

BOUND = timedelta(seconds=6)
"""The leases' ttl and five seconds."""
MS = timedelta(milliseconds=1)
SLOW_MS = 1_000

STEPS = {
    "open": [
        "store.begin",
        "venue.enter",
        "store.record_entry",
        "venue.stop",
        "store.activate",
    ],
    "open, refused": ["store.finish"],
    "rollback": ["store.settle", "store.expect_close", "venue.close", "store.finish"],
    "rollback with a stop": ["store.expect_close", "venue.close", "venue.cancel", "store.finish"],
    "close": ["store.expect_close", "venue.close", "venue.cancel", "store.finish"],
    "sync, no row": ["store.adopt", "store.expect_stop", "venue.stop", "store.activate"],
    "sync, no stop": ["store.expect_stop", "venue.stop", "store.activate"],
    "sync, a stop filled in part": ["store.stop_filled", "store.expect_stop", "venue.stop", "store.activate"],
    "sync, an entry filled further": [
        "store.entry_filled",
        "store.expect_move",
        "venue.stop",
        "store.move_stop",
        "venue.cancel",
        "store.settle",
    ],
    "sync, no position": ["store.expect_close", "venue.cancel", "store.finish"],
    "sync, stop of an ended position": ["venue.cancel", "store.settle"],
    "sync, half open": ["store.record_entry", "store.expect_stop", "venue.stop", "store.activate"],
    "sync, no row but a stop": ["store.adopt", "store.take_over_stop"],
    "sync, an exit of the flow's own": ["store.withdraw_close", "store.expect_stop", "venue.stop"],
    "sync, an exit of what is gone": ["store.note_gone", "venue.cancel", "store.finish"],
    "close, refused": ["store.renew_intent"],
    "close, filled in part": ["store.close_rest", "venue.close", "store.finish"],
    "move": ["store.expect_move", "venue.stop", "store.move_stop", "venue.cancel"],
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
    match flow:
        case "open, refused":
            refuse(stage, Operation.CREATE_ORDER, symbol, -2019, "Margin is insufficient.")
        case "rollback":
            refuse(stage, Operation.CREATE_ALGO, symbol, -2021, "Order would immediately trigger.")
        case "close" | "move":
            await opened(stage, symbol)
        case "sync, no row":
            await stage.client.create_order(symbol, "market", "buy", float(stage.quantity_of(symbol)))
        case "sync, no stop":
            position = await opened(stage, symbol)
            await stage.client.cancel_order(position.stop_order_id, symbol, {"trigger": True})
        case "sync, no position":
            await opened(stage, symbol)
            await sell(stage, symbol)
        case "sync, stop of an ended position":
            await leave_a_stop(stage, await opened(stage, symbol), symbol)
        case _:
            await prepare_more(stage, flow, symbol)


async def prepare_more(stage: Any, flow: str, symbol: str) -> None:
    match flow:
        case "sync, no row but a stop":
            await stage.client.create_order(symbol, "market", "buy", float(stage.quantity_of(symbol)))
            trigger = stage.exchange.price(symbol) * Decimal("0.9")
            stage.exchange.stop_by_hand(symbol, Side.SELL, trigger, qty=stage.quantity_of(symbol))
        case "sync, an exit of the flow's own" | "sync, an exit of what is gone":
            position = await opened(stage, symbol)
            async with stage.guard.hold(f"binance:{stage.plain(symbol)}") as lease:
                await stage.manager.store.expect_close(lease, position, "a reason of its own")
            # None of it is on its way any more.
            await stage.pool.execute(
                "update monitoring.position_intents set recorded_at = recorded_at - interval '1 minute'"
            )
            if flow == "sync, an exit of what is gone":
                await sell(stage, symbol)
            else:
                await stage.client.cancel_order(position.stop_order_id, symbol, {"trigger": True})
        case "close, refused":
            await opened(stage, symbol)
            refuse(stage, Operation.CREATE_ORDER, symbol, -2019, "Margin is insufficient.")
        case "sync, an entry filled further":
            await fill_further(stage, symbol)
        case "sync, a stop filled in part":
            await fire_in_part(stage, await opened(stage, symbol), symbol)
        case "close, filled in part":
            await opened(stage, symbol)
            half = Fault(
                FaultKind.EXPIRES, Operation.CREATE_ORDER, symbol=stage.plain(symbol), share=Decimal("0.5")
            )
            stage.exchange.inject(half)


def refuse(stage: Any, operation: Operation, symbol: str, code: int, message: str) -> None:
    fault = Fault(FaultKind.REJECTED, operation, symbol=stage.plain(symbol), code=code, message=message)
    stage.exchange.inject(fault)


async def opened(stage: Any, symbol: str) -> Position:
    quantity, price = stage.quantity_of(symbol), stage.exchange.price(symbol)
    result = await stage.manager.open_position_atomic("s", symbol, "binance", "long", quantity, price, "2")
    assert isinstance(result, Opened)
    return result.position


async def leave_a_stop(stage: Any, position: Position, symbol: str) -> None:
    """The position has ended, and of its stop, which is still there, nobody knows."""
    await sell(stage, symbol)
    await stage.pool.execute(
        "update monitoring.positions set status = 'closed', closed_at = now() where id = $1", position.id
    )
    await stage.pool.execute(
        "update monitoring.position_intents set settled_at = null, outcome = null where client_id = $1",
        position.stop_client_id,
    )


async def fire_in_part(stage: Any, position: Position, symbol: str) -> None:
    """Half of the stop is filled, and the price comes back."""
    half = Fault(FaultKind.EXPIRES, Operation.TRIGGER, symbol=stage.plain(symbol), share=Decimal("0.5"))
    stage.exchange.inject(half)
    before = stage.exchange.price(symbol)
    stage.exchange.set_price(symbol, position.stop_price)
    stage.exchange.set_price(symbol, before)


async def fill_further(stage: Any, symbol: str) -> None:
    """Half of an entry is filled, no cancel of the rest gets through, and then that is filled too."""
    name = stage.plain(symbol)
    half = Fault(FaultKind.RESTS, Operation.CREATE_ORDER, symbol=name, share=Decimal("0.5"))
    denied = {"code": -2015, "message": "Invalid API-key, IP, or permissions for action."}
    stage.exchange.inject(half)
    stage.exchange.inject(Fault(FaultKind.REJECTED, Operation.CANCEL_ORDER, symbol=name, times=2, **denied))
    quantity, price = 2 * stage.quantity_of(symbol), stage.exchange.price(symbol)
    result = await stage.hasty.open_position_atomic("s", symbol, "binance", "long", quantity, price, "2")
    assert isinstance(result, Opened)
    assert result.position.quantity < quantity
    stage.exchange.release(name)


async def sell(stage: Any, symbol: str) -> None:
    """Close by hand, as if nobody else were there."""
    quantity = float(stage.quantity_of(symbol))
    await stage.client.create_order(symbol, "market", "sell", quantity, None, {"reduceOnly": True})


def hold_answer(stage: Any, flow: str, where: str, symbol: str) -> None:
    """The exchange carries the request out and is slow to say so."""
    # The entry of a rollback is an order as well, and comes before its close; so does the first exit of two.
    earlier = flow.startswith("rollback") or flow == "close, filled in part"
    skip = 1 if earlier and where == "venue.close" else 0
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


def point(stage: Any, flow: str, where: str, when: str, symbol: str) -> dict[str, str]:
    return {
        "flow": flow,
        "where": where,
        "when": when,
        "symbol": symbol,
        "quantity": str(stage.quantity_of(symbol)),
        "price": str(stage.exchange.price(symbol)),
    }


async def kill(stage: Any, plan: list[dict[str, str]]) -> None:
    """Kill one process at each point."""
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


async def die_at(stage: Any, flow: str) -> list[dict[str, str]]:
    """Kill one process at each point of a flow; returns the points with their symbols."""
    placed = list(zip(points(flow), stage.exchange.symbols, strict=False))
    if flow == "sync, half open":
        # Killed in the recovery of what was killed before.
        await kill(stage, [point(stage, "open", "venue.enter", "after", symbol) for _, symbol in placed])
    for (where, when), symbol in placed:
        await prepare(stage, flow, symbol)
        if when == "during":
            hold_answer(stage, flow, where, symbol)
    plan = [point(stage, flow, where, when, symbol) for (where, when), symbol in placed]
    await kill(stage, plan)
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
            expected["store.begin before"] = "flat"
            # The order leaves in the moment in which its intent is committed: it may have been on its way.
            for either in ("store.begin after", "venue.enter before"):
                assert ends[either] in {"flat", "protected"}
                expected[either] = ends[either]
        case (
            "sync, no row"
            | "sync, no stop"
            | "sync, a stop filled in part"
            | "sync, an entry filled further"
            | "sync, half open"
            | "sync, no row but a stop"
            | "sync, an exit of the flow's own"
            | "move"
        ):
            expected = dict.fromkeys(ends, "protected")
        case "open, refused" | "sync, no position" | "sync, stop of an ended position":
            expected = dict.fromkeys(ends, "flat")
        case "close":
            # Until it is written down that it is to be closed, a position with its stop is a good one.
            expected = dict.fromkeys(ends, "flat") | {"store.expect_close before": "protected"}
        case "close, refused" | "close, filled in part" | "sync, an exit of what is gone":
            expected = dict.fromkeys(ends, "flat")
        case _:
            # What the flow meant to close of its own accord is judged again: a stop is better than an exit.
            # Its stop is taken back once the exit is executed.
            sent = {"venue.close during", "venue.close after", "store.finish before", "store.finish after"}
            sent |= {end for end in ends if end.startswith("venue.cancel ")}
            expected = dict.fromkeys(ends, "protected") | dict.fromkeys(sent, "flat")
    assert ends == expected


def test_every_step_that_changes_something_is_one_where_a_process_is_killed() -> None:
    listed = {where for steps in STEPS.values() for where in steps}
    fenced = {
        f"store.{name}"
        for name, method in inspect.getmembers(PositionStore, inspect.iscoroutinefunction)
        if "lease" in inspect.signature(method).parameters and not name.startswith("_")
    }
    texts = {"store.refuse", "store.note_error"}  # for people: nothing that is open changes
    assert fenced - texts | set(OPERATIONS) == listed
