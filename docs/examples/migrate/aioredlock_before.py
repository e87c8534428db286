"""Before: aioredlock."""

import os
from collections.abc import Awaitable, Callable

from aioredlock import Aioredlock, LockError

manager = Aioredlock([os.environ["LOCKGUARD_REDIS_URL"]], retry_count=5)


async def enter(symbol: str, order: Callable[[], Awaitable[None]]) -> bool:
    """Send one order, unless others are busy with the symbol for five attempts."""
    try:
        lock = await manager.lock(symbol)  # without a lock_timeout it is renewed
    except LockError:
        return False
    async with lock:
        await order()
    return True


async def busy(symbol: str) -> bool:
    """Whether anybody is busy with it."""
    return bool(await manager.is_locked(symbol))


async def close() -> None:
    """At the end of the process."""
    await manager.destroy()
