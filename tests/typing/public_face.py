"""What a type checker makes of the public face; checked by ``scripts/check``, not run."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import assert_type

from lockguard import Lease, LockGuard, Skipped, Token, current_lease, exclusive

guard = LockGuard.from_url("redis://localhost", ttl=timedelta(seconds=10))


@guard.exclusive("{exchange}:{symbol}")
async def open_position(symbol: str, exchange: str, quantity: Decimal) -> int:
    """Its type is kept: a wrong argument is still an error."""
    return 1


@guard.exclusive("{exchange}:{symbol}", on_busy="skip")
async def sync_symbol(exchange: str, symbol: str) -> bytes:
    """May be skipped."""
    return b""


class Manager:
    """A guard that is known only later."""

    def __init__(self, guard: LockGuard) -> None:
        self.guard = guard

    @exclusive("{symbol}", guard="guard")
    async def close(self, symbol: str) -> None:
        """A method."""


async def use(manager: Manager) -> None:
    """The types that a user sees."""
    assert_type(await open_position("APTUSDT", "binance", Decimal(1)), int)
    assert_type(await sync_symbol("binance", "APTUSDT"), bytes | Skipped)
    assert_type(await manager.close("APTUSDT"), None)
    assert_type(current_lease(), Lease | None)
    async with guard.hold("binance:APTUSDT") as lease:
        assert_type(lease, Lease)
        assert_type(lease.token, Token)
    async with guard.hold_many(["a", "b"]) as leases:
        assert_type(leases, tuple[Lease, ...])
    await open_position(symbol="APTUSDT", exchange="binance", quantity=1.0)  # type: ignore[arg-type]
    await guard.hold("x")  # type: ignore[misc]
