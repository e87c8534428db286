"""After: a lease of lockguard for synchronous code."""

from collections.abc import Callable
from datetime import timedelta

from lockguard import ResourceBusy
from lockguard.sync import LockGuard

guard = LockGuard.from_env(ttl=timedelta(seconds=10), wait=timedelta(seconds=1))  # LOCKGUARD_REDIS_URL


def enter(symbol: str, order: Callable[[], None]) -> bool:
    """Send one order, unless others are busy with the symbol for another second."""
    try:
        with guard.hold(f"binance:{symbol}") as lease:
            lease.ensure(timedelta(seconds=3))  # raises LeaseLost if the order might outlast it
            order()  # the lease is renewed for as long as this takes
    except ResourceBusy:
        return False
    return True


def busy(symbol: str) -> bool:
    """Whether anybody is busy with it."""
    return guard.inspect(f"binance:{symbol}").held


def close() -> None:
    """At the end of the process."""
    guard.close()
