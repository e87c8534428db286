"""A local exchange in a process of its own, where times are measured.

In the bot's own event loop the exchange would answer late whenever the bot works while it waits for an
answer: the guarded flow does, and would be charged for the exchange's delay.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_lab.exchange import LocalExchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["exchange_apart"]

_START_S = 60.0
_MODULE = "lockguard_lab.race.exchange"


@asynccontextmanager
async def exchange_apart() -> AsyncIterator[str]:
    """Gives its URL; it ends with the block, or with this process if that dies first.

    Raises:
        ConfigurationError: it did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _MODULE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_S):
            url = (await process.stdout.readline()).decode().strip()
        if not url:
            raise ConfigurationError("the local exchange did not start; what it said is above")
        yield url
    finally:
        process.stdin.close()
        await process.wait()


async def _serve() -> None:
    async with LocalExchange() as exchange:
        sys.stdout.write(exchange.url + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)  # until whoever started it closes it, or is gone


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; ours comes when the race has ended
    asyncio.run(_serve())  # noqa: TID251 - its parent ends it
