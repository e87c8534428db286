"""Dies at given points of the flow, by kill -9 on itself: one forked process for each point.

Reads JSON from its standard input; see ``test_race_crashes.py``. Prints one line for each death.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from decimal import Decimal
from typing import Any

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_ccxt.lean_import import import_lean
from lockguard_lab.exchange import connect
from lockguard_positions import AtomicPositionManager, DuplicatePosition, Pace, PositionStore
from lockguard_positions._venue import Venue

MS = timedelta(milliseconds=1)
ANSWER_LOST_S = 0.25
"""How long the exchange, told to be slow, has had when the process dies in the middle of a request."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def plant(where: str, when: str) -> None:
    """Make the process die when it reaches a method."""
    owner: Any = {"store": PositionStore, "venue": Venue}[where.partition(".")[0]]
    name = where.partition(".")[2]
    method = getattr(owner, name)

    async def deadly(*args: Any, **kwargs: Any) -> Any:
        if when == "before":
            die()
        if when == "during":
            asyncio.get_running_loop().call_later(ANSWER_LOST_S, die)
        result = await method(*args, **kwargs)
        die()
        return result

    setattr(owner, name, deadly)


def find_a_duplicate() -> None:
    """Have the third layer strike: the stop stands, and then another row of the symbol is active."""

    async def activate(*args: Any) -> Any:
        raise DuplicatePosition("planted", existing_id=0)

    owner: Any = PositionStore
    owner.activate = activate


async def act(plan: dict[str, Any], point: dict[str, str]) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            asyncpg.create_pool(plan["database_url"], min_size=1, max_size=4)
        )
        guard = await stack.enter_async_context(
            LockGuard.from_url(
                plan["redis_url"], fence=PostgresFence(pool), ttl=timedelta(milliseconds=plan["ttl_ms"])
            )
        )
        client = connect(plan["exchange_url"], config={"options": {"recvWindow": 1000}})
        guarded = GuardedExchange(client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS))
        await guarded.load()
        pace = Pace(poll=20 * MS, stop_deadline=500 * MS, retry_pause=20 * MS, grace=0 * MS)
        manager = AtomicPositionManager(guard, pool, [guarded], pace=pace)
        plant(point["where"], point["when"])
        if point["flow"] == "rollback with a stop":
            find_a_duplicate()
        match point["flow"]:
            case "open" | "open, refused" | "rollback" | "rollback with a stop":
                await manager.open_position_atomic(
                    "s", point["symbol"], "binance", "long", point["quantity"], point["price"], "2"
                )
            case "close" | "close, refused" | "close, filled in part":
                await manager.close_position(point["symbol"], "binance")
            case "move":
                await manager.move_stop(point["symbol"], "binance", Decimal(point["price"]) * Decimal("0.99"))
            case _:
                await manager.ensure_stop(point["symbol"], "binance")


def main() -> None:
    plan = json.loads(sys.stdin.readline())
    import_lean("binanceusdm")
    for point in plan["points"]:
        child = os.fork()
        if not child:
            asyncio.run(act(plan, point))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        told = (
            "killed" if os.WIFSIGNALED(status) else f"lived to exit with {os.waitstatus_to_exitcode(status)}"
        )
        print(json.dumps({**point, "told": told}), flush=True)


if __name__ == "__main__":
    main()
