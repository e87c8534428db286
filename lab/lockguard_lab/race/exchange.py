"""A local exchange in a process of its own, for measurements of time.

In the bot's event loop the exchange would answer late whenever the bot works while waiting for an answer.
The guarded flow does so, and the exchange's delay would count against it.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lockguard_lab.child_process import Child, begin_as_child, say
from lockguard_lab.exchange import LocalExchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["exchange_apart"]

_START_S = 60.0
_MODULE = "lockguard_lab.race.exchange"


@asynccontextmanager
async def exchange_apart() -> AsyncIterator[str]:
    """Start the exchange and give its URL; it ends with the block.

    Raises:
        ConfigurationError: the exchange did not start.
    """
    async with Child(_MODULE, name="the local exchange", patience_s=_START_S) as child:
        yield await child.hear()


async def _serve() -> None:
    async with LocalExchange() as exchange:
        say(exchange.url)
        await asyncio.to_thread(sys.stdin.read)  # until the parent closes it or ends


if __name__ == "__main__":
    begin_as_child()
    asyncio.run(_serve())  # noqa: TID251 - its parent ends it
