"""After: a lease of lockguard, on one server or on a majority of several."""

from collections.abc import Callable
from datetime import timedelta

from lockguard import ResourceBusy
from lockguard.sync import LockGuard

guard = LockGuard.from_env(ttl=timedelta(seconds=10), wait=timedelta(seconds=1))  # LOCKGUARD_REDIS_URL


def enter(symbol: str, order: Callable[[], None]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    try:
        with guard.hold(f"binance:{symbol}"):
            order()  # the lease is renewed for as long as this takes
    except ResourceBusy:
        return False
    return True


def close() -> None:
    """At the end of the process."""
    guard.close()
