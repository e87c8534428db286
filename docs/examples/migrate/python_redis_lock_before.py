"""Before: python-redis-lock."""

import os
from collections.abc import Callable

import redis_lock
from redis import Redis

client = Redis.from_url(os.environ["LOCKGUARD_REDIS_URL"])


def enter(symbol: str, order: Callable[[], None]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    lock = redis_lock.Lock(client, symbol, expire=30, auto_renewal=True)
    if not lock.acquire(timeout=1):
        return False
    try:
        order()
    finally:
        lock.release()
    return True


def busy(symbol: str) -> bool:
    """Whether anybody is busy with it."""
    return redis_lock.Lock(client, symbol).locked()


def close() -> None:
    """At the end of the process."""
    client.close()
