"""The other processes of a benchmark, and how they are talked to: a line to start, a line as the answer.

``python -m lockguard_lab.bench.crew LOOP partner NAME RESOURCE URL...``
    for each line on its input: says "asking", takes the lock, releases it, says at which instant it had it.
``python -m lockguard_lab.bench.crew LOOP waiters RESOURCE NUMBER URL...``
    so many tasks wait for the lock, each releases it at once; then says the tokens and grants that they got.

The instants of two processes can be compared because the clock is the machine's. A process whose input ends
is no longer wanted, so none outlives its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

from lockguard._clock import SYSTEM_CLOCK
from lockguard._guard import LockGuard
from lockguard_lab.bench.contenders import contender
from lockguard_lab.bench.loops import current_loop, run_on

__all__ = ["Hand", "hired"]

_LINE_BYTES_MAX = 1 << 22
_PATIENCE = timedelta(minutes=10)


class Hand:
    """One of the crew, as its parent sees it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def tell(self) -> None:
        """Have it do its next piece of work."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")

    async def hear(self) -> Any:
        """Its next line.

        Raises:
            RuntimeError: it ended.
        """
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended; its error output tells why")
        return json.loads(line)

    async def dismiss(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(5):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


@contextlib.asynccontextmanager
async def hired(*arguments: str) -> AsyncIterator[Hand]:
    """A process of the crew, on the same kind of event loop, for the length of the body."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "lockguard_lab.bench.crew",
        current_loop(),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES_MAX,
    )
    hand = Hand(process)
    try:
        yield hand
    finally:
        await hand.dismiss()


async def _orders() -> AsyncIterator[None]:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        yield


def _say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _partner(name: str, resource: str, urls: Sequence[str]) -> None:
    partner = contender(name, urls)
    async with partner.opened():
        await partner.cycle_alone(f"{resource}:warm")
        async for _ in _orders():
            _say("asking")
            async with partner.lock_alone(resource):
                had_at = SYSTEM_CLOCK.now()
            _say(had_at)


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
        _say(served)
        async for _ in orders:
            pass


if __name__ == "__main__":
    # Ctrl-C reaches the whole group of processes; the parent ends its crew itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore", UserWarning)  # of an even number of nodes; the parent has told it
    match sys.argv[1:]:
        case [loop, "partner", name, resource, *urls]:
            run_on(loop, _partner(name, resource, urls))
        case [loop, "waiters", resource, number, *urls]:
            run_on(loop, _waiters(resource, int(number), urls))
        case arguments:
            sys.exit(f"lockguard_lab.bench.crew does not know {arguments}; it is started by lockguard bench")
