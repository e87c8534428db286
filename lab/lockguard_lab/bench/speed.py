"""Measures one task alone, and many tasks each with a lock of its own."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.bench.contenders import Contender
from lockguard_lab.bench.figures import Sizes
from lockguard_lab.bench.limits import BareProtocol, BareSocket

__all__ = ["LIMIT", "in_turns", "throughput", "uncontended"]

LIMIT = "limit"


async def in_turns(rounds: int, turns: Mapping[str, Callable[[], Awaitable[float]]]) -> dict[str, float]:
    """The median of each contender over ``rounds`` turns, A B C A B C, so that noise affects all alike.

    One round before is not counted: it connects and warms up.
    """
    measured: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            value = await turn()
            if number:
                measured[name].append(value)
    return {name: statistics.median(values) for name, values in measured.items()}


async def uncontended(
    contenders: Mapping[str, Contender], limit: BareSocket, sizes: Sizes
) -> dict[str, float]:
    """The median time of a lock and unlock by one task, in microseconds, by contender and for the limit."""

    def turn(name: str, cycle: Callable[[str], Awaitable[None]]) -> Callable[[], Awaitable[float]]:
        async def one_by_one() -> float:
            took_s = []
            for _ in range(sizes.cycles):
                began = SYSTEM_CLOCK.now()
                await cycle(f"bench:alone:{name}")
                took_s.append(SYSTEM_CLOCK.now() - began)
            return statistics.median(took_s) * 1e6

        return one_by_one

    turns = {name: turn(name, each.cycle_alone) for name, each in contenders.items()}
    return await in_turns(sizes.rounds, {**turns, LIMIT: turn(LIMIT, limit.cycle_alone)})


async def throughput(
    contenders: Mapping[str, Contender], limit: BareProtocol, sizes: Sizes
) -> dict[str, float]:
    """Locks and unlocks per second of ``sizes.tasks`` tasks, by contender and for the limit."""

    def turn(
        name: str, cycles: Callable[[str, int], Coroutine[Any, Any, None]]
    ) -> Callable[[], Awaitable[float]]:
        async def all_at_once() -> float:
            began = SYSTEM_CLOCK.now()
            async with asyncio.TaskGroup() as group:
                for number in range(sizes.tasks):
                    group.create_task(cycles(f"bench:each:{name}:{number}", sizes.cycles_per_task))
            return sizes.tasks * sizes.cycles_per_task / (SYSTEM_CLOCK.now() - began)

        return all_at_once

    turns = {name: turn(name, each.cycles) for name, each in contenders.items()}
    return await in_turns(sizes.rounds, {**turns, LIMIT: turn(LIMIT, limit.cycles)})
