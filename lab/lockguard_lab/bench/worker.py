"""The other processes of a benchmark: each line of input starts one piece of work, one line answers.

``python -m lockguard_lab.bench.worker LOOP partner NAME RESOURCE URL...``
    for each line on its input: says "asking", takes the lock, releases it, says when it got the lock.
``python -m lockguard_lab.bench.worker LOOP waiters RESOURCE NUMBER URL...``
    NUMBER tasks wait for the lock, each releases it at once; then says the tokens and grants that they got.

The times of two processes can be compared because both use the machine's clock.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard_lab.bench.contenders import contender
from lockguard_lab.bench.loops import current_loop, run_on
from lockguard_lab.child_process import Child, begin_as_child, open_input, say

__all__ = ["hired"]

_PATIENCE = timedelta(minutes=10)


def hired(*arguments: str) -> Child:
    """Start one of these processes, on the same kind of event loop."""
    return Child("lockguard_lab.bench.worker", current_loop(), *arguments, name="a process of the benchmark")


async def _orders() -> AsyncIterator[None]:
    reader = await open_input()
    while await reader.readline():
        yield


async def _partner(name: str, resource: str, urls: Sequence[str]) -> None:
    partner = contender(name, urls)
    async with partner.opened():
        await partner.cycle_alone(f"{resource}:warm")
        async for _ in _orders():
            say("asking")
            async with partner.lock_alone(resource):
                had_at = SYSTEM_CLOCK.now()
            say(had_at)


async def _waiters(resource: str, number: int, urls: Sequence[str]) -> None:
    served: list[tuple[int, str]] = []

    async def wait() -> None:
        async with guard.hold(resource, wait=_PATIENCE) as lease:
            served.append((lease.token, lease.grant.id))

    async with LockGuard.from_urls(urls) as guard:
        orders = _orders()
        await anext(orders)
        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(wait())
        say(served)
        async for _ in orders:
            pass


if __name__ == "__main__":
    begin_as_child()
    warnings.simplefilter("ignore", UserWarning)  # about an even number of nodes; the parent has shown it
    match sys.argv[1:]:
        case [loop, "partner", name, resource, *urls]:
            run_on(loop, _partner(name, resource, urls))
        case [loop, "waiters", resource, number, *urls]:
            run_on(loop, _waiters(resource, int(number), urls))
        case arguments:
            sys.exit(
                f"lockguard_lab.bench.worker does not know {arguments}; it is started by lockguard bench"
            )
