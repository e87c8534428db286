"""While old processes still run: lockguard's lease, and in it the lock that those processes take."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from redis.asyncio import Redis

from lockguard import Lease, LockGuard

OLD_TIMEOUT = timedelta(seconds=30)

client = Redis.from_url(os.environ["LOCKGUARD_REDIS_URL"])
# The old lock is not renewed, so a lease ends before the old lock would.
guard = LockGuard.from_env(max_hold=OLD_TIMEOUT - timedelta(seconds=5))


@asynccontextmanager
async def hold(symbol: str) -> AsyncIterator[Lease]:
    """Exclude both kinds of processes; raises redis-py's LockError if an old one is busy for 5 s."""
    old = client.lock(
        f"lock:{symbol}",
        timeout=OLD_TIMEOUT.total_seconds(),
        blocking_timeout=5,
        raise_on_release_error=False,  # it would hide the body's own error
    )
    async with guard.hold(f"binance:{symbol}") as lease, old:
        yield lease


async def close() -> None:
    """At the end of the process."""
    await guard.aclose()
    await client.aclose()
