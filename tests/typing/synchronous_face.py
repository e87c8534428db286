"""What type checkers make of ``lockguard.sync``; checked by ``scripts/check`` with mypy and pyright, not run.

Each ``type: ignore`` marks a mistake that must be seen: both checkers complain of one that is not needed.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import TypeVar, assert_type

import asyncpg

import lockguard
from lockguard import LeaseLost, Skipped, Token
from lockguard.ports import Fence, Inspection
from lockguard.sync import Lease, LockGuard, exclusive
from lockguard_asyncpg import PostgresFence

T = TypeVar("T")


@contextlib.asynccontextmanager
async def fence() -> AsyncIterator[Fence]:
    """Makes the fence in the background loop."""
    async with asyncpg.create_pool("postgresql://localhost/bot") as pool:
        yield PostgresFence(pool)


guard = LockGuard.from_url("redis://localhost", ttl=timedelta(seconds=10), fence=fence, namespace="bot")


@guard.exclusive("{exchange}:{symbol}")
def open_position(symbol: str, exchange: str = "binance", *, quantity: Decimal) -> int:
    """Its type is kept: a wrong argument is still an error."""
    return 1


@guard.exclusive("{exchange}:{symbol}", on_busy="skip")
def sync_symbol(exchange: str, symbol: str) -> bytes:
    """May be skipped."""
    return b""


@guard.exclusive("{symbol}")
def generic(symbol: str, value: T) -> list[T]:
    """A generic function stays one."""
    return [value]


class Bot:
    """A guard that is known only later."""

    def __init__(self, guard: LockGuard) -> None:
        self.guard = guard

    @exclusive("{symbol}", guard="guard")
    def close(self, symbol: str) -> None:
        """A method."""

    @exclusive("{symbol}", guard="guard", on_busy="skip")
    def sync(self, symbol: str) -> int:
        """A method that may be skipped."""
        return 1


def note(lost: LeaseLost) -> None:
    """Told of a loss."""


def use(bot: Bot) -> None:
    """The types that a user sees."""
    assert_type(open_position("APTUSDT", quantity=Decimal(1)), int)
    assert_type(sync_symbol("binance", "APTUSDT"), bytes | Skipped)
    assert_type(generic("APTUSDT", 1), list[int])
    assert_type(bot.sync(symbol="APTUSDT"), int | Skipped)
    with guard.hold("binance:APTUSDT", on_loss=note) as lease:
        assert_type(lease, Lease)
        assert_type(lease.token, Token)
    with guard.hold_many(["a", "b"]) as leases:
        assert_type(leases, tuple[Lease, ...])
    told: list[LeaseLost] = []
    acquired = guard.acquire("binance:APTUSDT", on_busy="raise", on_loss=told.append)
    assert_type(acquired, Lease)
    acquired.confirm_now(within=timedelta(seconds=1))
    acquired.release()
    assert_type(guard.list(), Iterator[Inspection])
    as_the_other: lockguard.Lease = acquired
    as_the_other.ensure()


async def in_a_coroutine(lease: Lease) -> None:
    """In the body, by asyncio.run."""
    await lease.confirm()


# What must be seen.


async def coroutine(symbol: str) -> int:
    """Not for a thread."""
    return 1


def wrong(bot: Bot) -> None:
    """Other types, names and statements than the guard takes, and a callback that nobody could call."""
    open_position("APTUSDT", quantity=1.0)  # type: ignore[arg-type]
    open_position("APTUSDT", quantiti=Decimal(1))  # type: ignore[call-arg]
    number: int = bot.sync("APTUSDT")  # type: ignore[assignment]
    print(number)
    guard.hold("x", wait=5)  # type: ignore[arg-type]
    guard.hold("x", on_busy="skip")  # type: ignore[arg-type]
    guard.acquire("x", on_loss=3)  # type: ignore[arg-type]
    LockGuard.from_url("redis://h", tll=timedelta(seconds=1))  # type: ignore[call-arg]
    LockGuard.from_url("redis://h", fence=fence())  # type: ignore[arg-type]
    with lockguard.LockGuard.from_url("redis://h").hold("x"):  # type: ignore[attr-defined]
        pass
