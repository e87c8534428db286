"""Many waiters on one lock, in several processes; and what locks and waiters need in Redis."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack

from lockguard._scripts import RELEASE
from lockguard_lab.bench.contenders import Lockguard
from lockguard_lab.bench.figures import Memory, Sizes, Waiters
from lockguard_lab.bench.monitor import Keeper, Monitor
from lockguard_lab.bench.worker import hired
from lockguard_lab.child_process import Child

__all__ = ["inversions", "memory", "waiters"]

_LOCKS = 50
_HISTORY_FULL = 120
_LOOK_EVERY_S = 0.05


async def waiters(
    lockguard: Lockguard, urls: Sequence[str], monitor: Monitor, keepers: Sequence[Keeper], sizes: Sizes
) -> tuple[Waiters, float]:
    """Their figures, and the bytes in Redis for each of them."""
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
    """What a lock needs while it is held and afterwards."""
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
    """How many were served before somebody who had queued earlier."""
    count, earliest = 0, len(places)
    for place in reversed(places):
        count += place > earliest
        earliest = min(earliest, place)
    return count


async def _gathered(lockguard: Lockguard, resource: str, workers: Sequence[Child], number: int) -> list[str]:
    """The grants of all waiters in the order of the queue."""
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
