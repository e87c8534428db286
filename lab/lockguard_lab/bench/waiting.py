"""Measures hand-offs to one waiter and to many, and the memory of locks and waiters in Redis."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from lockguard._clock import SYSTEM_CLOCK
from lockguard._scripts import RELEASE
from lockguard_lab.bench.contenders import Contender, Lockguard
from lockguard_lab.bench.figures import HandOff, Memory, Sizes, Waiters, percentile
from lockguard_lab.bench.monitor import Keeper, Monitor
from lockguard_lab.bench.worker import hired
from lockguard_lab.child_process import Child

__all__ = ["hand_offs", "inversions", "memory", "waiters"]

_LOCKS = 50
_HISTORY_FULL = 120
_LOOK_EVERY_S = 0.05


async def waiters(
    lockguard: Lockguard, urls: Sequence[str], monitor: Monitor, keepers: Sequence[Keeper], sizes: Sizes
) -> tuple[Waiters, float]:
    """The figures of many waiters, and the bytes in Redis for each waiter."""
    resource = f"bench:crowd:{secrets.token_hex(4)}"
    each = sizes.waiters // sizes.processes
    number = each * sizes.processes
    before = await _clients(keepers)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(hired("waiters", resource, str(each), *urls))
            for _ in range(sizes.processes)
        ]
        async with lockguard.guard.hold(resource):
            queue = await _gathered(lockguard, resource, workers, number)
            senders = await _clients(keepers) - before
            bytes_each = await _bytes(keepers, f"*{{{resource}}}:[qi]*") / number
            await monitor.take()
            await asyncio.sleep(sizes.watch_s)
            quiet = [command for command in await monitor.take() if command.sender in senders]
        served = [grant for _, grant in sorted([one for worker in workers for one in await worker.hear()])]
        busy = [command for command in await monitor.take() if command.sender in senders]
    caused = [command for command in busy if RELEASE.sha not in command.words]
    figures = Waiters(
        commands_per_release=len(caused) / number,
        commands_per_waiter_s=len(quiet) / number / sizes.watch_s,
        connections=len(senders) / sizes.processes,
        fifo_inversions=inversions([queue.index(grant) for grant in served]),
    )
    return figures, bytes_each


async def memory(lockguard: Lockguard, keepers: Sequence[Keeper], *, bytes_per_waiter: float) -> Memory:
    """The memory of a lock while it is held and afterwards."""
    name = f"bench:memory:{secrets.token_hex(4)}"
    resources = [f"{name}:{number}" for number in range(_LOCKS)]
    pattern = f"*{{{name}:*"
    async with lockguard.guard.hold_many(resources):
        held = await _bytes(keepers, pattern)
    free = await _bytes(keepers, pattern)
    for _ in range(_HISTORY_FULL):
        async with lockguard.guard.hold(resources[0]):
            pass
    full = await _bytes(keepers, f"*{{{resources[0]}}}*")
    return Memory(held / _LOCKS, free / _LOCKS, full, bytes_per_waiter)


def inversions(places: Sequence[int]) -> int:
    """How many waiters were served before one that had queued earlier."""
    count, earliest = 0, len(places)
    for place in reversed(places):
        count += place > earliest
        earliest = min(earliest, place)
    return count


async def _gathered(lockguard: Lockguard, resource: str, workers: Sequence[Child], number: int) -> list[str]:
    """Start all waiters; returns their grants in the order of the queue."""
    for worker in workers:
        await worker.write("go")
    queue: list[str] = []
    while len(queue) < number:
        await asyncio.sleep(_LOOK_EVERY_S)
        queue = [waiter.grant for waiter in (await lockguard.guard.inspect(resource)).waiters]
    return queue


async def _clients(keepers: Sequence[Keeper]) -> set[str]:
    return set[str]().union(*[await keeper.clients() for keeper in keepers])


async def _bytes(keepers: Sequence[Keeper], pattern: str) -> int:
    sizes = [
        await keeper.admin.memory_usage(key, samples=0) or 0
        for keeper in keepers
        async for key in keeper.admin.scan_iter(pattern, count=1000)
    ]
    assert sizes, pattern
    return sum(sizes)


_HELD_S = (0.02, 0.12)
"""The range of random hold times, so that the release meets a 0.1 s poll at any phase."""


async def hand_offs(
    contenders: Mapping[str, Contender], urls: Sequence[str], sizes: Sizes
) -> dict[str, HandOff]:
    """The hand-off times by contender; each contender has one turn in each round."""
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
