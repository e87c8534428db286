"""Before: pottery's Redlock, on one server or several."""

import os
from collections.abc import Callable

from pottery import Redlock
from redis import Redis

masters = {Redis.from_url(url) for url in os.environ["LOCKGUARD_REDIS_URL"].split()}


def enter(symbol: str, order: Callable[[], None]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    lock = Redlock(key=symbol, masters=masters, auto_release_time=30)
    if not lock.acquire(timeout=1):
        return False
    try:
        order()
        lock.extend()  # what follows takes long, too
    finally:
        lock.release()
    return True


def close() -> None:
    """At the end of the process."""
    for master in masters:
        master.close()
