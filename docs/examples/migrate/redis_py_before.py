"""Before: the lock of redis-py."""

import os
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

client = Redis.from_url(os.environ["LOCKGUARD_REDIS_URL"])


async def enter(symbol: str, order: Callable[[], Awaitable[None]]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    lock = client.lock(f"lock:{symbol}", timeout=30, blocking_timeout=1)
    if not await lock.acquire():
        return False
    try:
        await order()
        await lock.extend(30, replace_ttl=True)  # what follows takes long, too
    finally:
        await lock.release()
    return True


async def busy(symbol: str) -> bool:
    """Whether anybody is busy with it."""
    return await client.lock(f"lock:{symbol}").locked()


async def close() -> None:
    """At the end of the process."""
    await client.aclose()
