"""After: a lease of lockguard."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from lockguard import LockGuard, ResourceBusy

guard = LockGuard.from_env(ttl=timedelta(seconds=10), wait=timedelta(seconds=1))  # LOCKGUARD_REDIS_URL


async def enter(symbol: str, order: Callable[[], Awaitable[None]]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    try:
        async with guard.hold(f"binance:{symbol}"):
            await order()
    except ResourceBusy:
        return False
    return True


async def busy(symbol: str) -> bool:
    """Whether anybody is busy with it."""
    return (await guard.inspect(f"binance:{symbol}")).held


async def close() -> None:
    """At the end of the process."""
    await guard.aclose()
