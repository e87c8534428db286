"""How long after a release in one process does a waiter in another process have the lock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.bench.contenders import Contender
from lockguard_lab.bench.figures import HandOff, Sizes, percentile
from lockguard_lab.bench.worker import hired
from lockguard_lab.child_process import Child

__all__ = ["hand_offs"]

_HELD_S = (0.02, 0.12)
"""At random, so that a waiter who asks every 0.1 s is met at any phase."""


async def hand_offs(
    contenders: Mapping[str, Contender], urls: Sequence[str], sizes: Sizes
) -> dict[str, HandOff]:
    """By contender; each has its turn in each round."""
    took_ms: dict[str, list[float]] = {name: [] for name in contenders}
    async with AsyncExitStack() as stack:
        partners = {
            name: await stack.enter_async_context(hired("partner", name, f"bench:hand-off:{name}", *urls))
            for name in contenders
        }
        for number in range(sizes.rounds + 1):
            for name, contender in contenders.items():
                turn = [
                    await _one(contender, partners[name], f"bench:hand-off:{name}")
                    for _ in range(sizes.hand_offs if number else 1)
                ]
                took_ms[name] += turn if number else []
    return {name: HandOff(percentile(ms, 0.5), percentile(ms, 0.99)) for name, ms in took_ms.items()}


async def _one(contender: Contender, partner: Child, resource: str) -> float:
    async with contender.lock_alone(resource):
        await partner.write("go")
        await partner.hear()
        await asyncio.sleep(random.uniform(*_HELD_S))  # noqa: S311 - not a secret
        released_at = SYSTEM_CLOCK.now()
    had_at: float = await partner.hear()
    return (had_at - released_at) * 1000
