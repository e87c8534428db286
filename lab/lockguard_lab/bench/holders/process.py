"""A process that holds or waits for a lock: each line of input is an instruction, each answer one line.

The first line says who it is:
``{"way": NAME, "place": [REDIS, POSTGRES, ETCD, QUORUM], "ttl_s": N, "waiters": N}``.
Then, one at a time:

``hold``, ``hold still``
    take the lock and say ``holding``; ``still`` reads its next instruction without its event loop, as code
    does that is stopped between looking at its lease and writing. At the next line it writes "late", says
    ``wrote``, leaves and says ``left``, each time with all that it was told.
``succeed``
    take the lock, say ``in`` with the time, write "successor", leave, say ``left``.
``wait``
    so many tasks wait for the lock; it says ``waiting``, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import threading
from typing import Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard._interrupt import run
from lockguard_lab.bench.holders.choose import EVERY
from lockguard_lab.bench.holders.ways import Place, Way
from lockguard_lab.child_process import begin_as_child, open_input, say

__all__ = ["ANSWER_S"]

ANSWER_S = 1.0
"""How long a late write, and leaving after it, may take: a connection that is cut off never answers."""

_LINGER_S = 0.2
_LINE_BYTES_MAX = 1 << 16


class _Told:
    """What the holder was told, in order, with the seconds since it could know."""

    def __init__(self) -> None:
        self.since = SYSTEM_CLOCK.now()
        self.facts: list[tuple[str, str, float]] = []

    def add(self, when: str, what: str) -> None:
        self.facts.append((when, what, round(SYSTEM_CLOCK.now() - self.since, 3)))


def _named(error: BaseException) -> str:
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__


async def _late_write(told: _Told, write: Any) -> None:
    """Write as if nobody had said anything; a cancelled body has the statement under way all the same."""
    writing = asyncio.ensure_future(write("late"))
    try:
        await asyncio.wait({writing}, timeout=ANSWER_S)
    except asyncio.CancelledError:
        told.add("body", "cancelled")
        await asyncio.wait({writing}, timeout=ANSWER_S)
    answer = "refused"
    if not writing.done():
        writing.cancel()
        answer = "no answer"
        told.add("write", answer)
    elif writing.cancelled():
        told.add("write", "cancelled")
    elif (error := writing.exception()) is not None:
        told.add("write", _named(error))
    else:
        answer = "done"
    say({"wrote": answer, "told": told.facts})


async def _hold(way: Way, reader: asyncio.StreamReader, told: _Told, *, still: bool) -> None:
    async with way.held() as write:
        told.since = SYSTEM_CLOCK.now()
        say({"holding": told.since})
        if still:
            # The event loop, and with it every timer of the lock's, stands still until the test says go on.
            select.select([0], [], [])
            os.read(0, _LINE_BYTES_MAX)
            told.since = SYSTEM_CLOCK.now()
            await _late_write(told, write)
            await asyncio.sleep(_LINGER_S)
            return
        try:
            told.since = float(json.loads(await reader.readline()))
            await reader.readline()
        except asyncio.CancelledError:
            told.add("body", "cancelled")
            await reader.readline()
            await _late_write(told, write)
            raise
        await _late_write(told, write)


async def _holder(way: Way, reader: asyncio.StreamReader, *, still: bool) -> None:
    told = _Told()
    threading.excepthook = lambda failed: told.add("a thread", failed.exc_type.__name__)
    holding = asyncio.ensure_future(_hold(way, reader, told, still=still))
    await asyncio.wait({holding})
    if holding.cancelled():
        told.add("leaving", "cancelled")
    elif (error := holding.exception()) is not None:
        told.add("leaving", _named(error))
    say({"left": True, "told": told.facts})


async def _successor(way: Way) -> None:
    say({"asking": SYSTEM_CLOCK.now()})
    async with way.held() as write:
        say({"in": SYSTEM_CLOCK.now()})
        await write("successor")
    say({"left": SYSTEM_CLOCK.now()})


async def _waiter(way: Way) -> None:
    async with way.held():
        pass


async def _main() -> None:
    reader = await open_input()
    who = json.loads(await reader.readline())
    async with EVERY[who["way"]](Place.told(who["place"]), who["ttl_s"]) as way:
        say({"open": True})
        match (await reader.readline()).decode().strip():
            case "hold":
                await _holder(way, reader, still=False)
            case "hold still":
                await _holder(way, reader, still=True)
            case "succeed":
                await _successor(way)
            case "wait":
                waiters = [asyncio.create_task(_waiter(way)) for _ in range(who["waiters"])]
                say({"waiting": len(waiters)})
            case "":
                return
        await reader.readline()
        os._exit(0)  # what is cut off cannot be left in order


if __name__ == "__main__":
    begin_as_child()
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run(_main())
