"""A bot without asyncio: one hook begins what another one ends, and a decorator guards the rest."""

from datetime import timedelta

from lockguard import LeaseLost, ResourceBusy
from lockguard.sync import Lease, LockGuard

guard = LockGuard.from_env(ttl=timedelta(seconds=10))  # LOCKGUARD_REDIS_URL
leases: dict[str, Lease] = {}


def warn(lost: LeaseLost) -> None:
    """Called in the background thread, at once: be short, and leave the rest to the bot's own thread."""
    print("do not trust", lost.resource, lost.reason, flush=True)


def confirm_entry(symbol: str) -> bool:
    """A hook: the framework is about to open a position."""
    try:
        leases[symbol] = guard.acquire(f"binance:{symbol}", on_busy="raise", operation="entry", on_loss=warn)
    except ResourceBusy as busy:
        print("left to", busy.operation, flush=True)
        return False
    return True


def place_order(symbol: str) -> None:
    """Whatever sends the order asks just before it does, in the same thread."""
    leases[symbol].ensure(timedelta(seconds=3))
    print("order", symbol, flush=True)


def order_filled(symbol: str) -> None:
    """Another hook, perhaps in another thread."""
    leases.pop(symbol).release()


@guard.exclusive("binance:{symbol}", on_busy="skip")
def sync_symbol(symbol: str) -> str:
    """Skips a symbol that is being opened."""
    return f"compared {symbol}"


def main() -> None:
    """What the framework would do."""
    if confirm_entry("APTUSDT"):
        place_order("APTUSDT")
        order_filled("APTUSDT")
    print(sync_symbol("APTUSDT") or "skipped", flush=True)


if __name__ == "__main__":
    main()
