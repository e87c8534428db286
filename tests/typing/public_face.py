"""What type checkers make of the public face; checked by ``scripts/check`` with mypy and pyright, not run.

Each ``type: ignore`` marks a mistake that must be seen: both checkers complain of one that is not needed.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypeVar, assert_type
from uuid import UUID

from lockguard import Lease, LockGuard, Skipped, Token, current_lease, exclusive
from lockguard.events import Event
from lockguard.observe import LogObserver

T = TypeVar("T")

guard = LockGuard.from_url("redis://localhost", ttl=timedelta(seconds=10))


class Venue(Enum):
    """Counts by its value."""

    BINANCE = "binance"


class Request:
    """What a web framework hands over."""

    symbol: str
    account: UUID
    price: Decimal


# The decorator keeps what it decorates.


@guard.exclusive("{exchange}:{symbol}")
async def open_position(symbol: str, exchange: str = "binance", *, quantity: Decimal) -> int:
    """Its type is kept: a wrong argument is still an error."""
    return 1


@guard.exclusive("{exchange}:{symbol}", on_busy="skip")
async def sync_symbol(exchange: str, symbol: str) -> bytes:
    """May be skipped."""
    return b""


@guard.exclusive(key=lambda request: request.symbol)
async def by_function(request: Request) -> str:
    """A key may be a function."""
    return request.symbol


@guard.exclusive("{symbol}")
async def generic(symbol: str, value: T) -> list[T]:
    """A generic function stays one."""
    return [value]


def account_of(request: Request) -> UUID:
    """A key with a name of its own."""
    return request.account


@guard.exclusive(account_of)
async def by_named_function(request: Request) -> None:
    """A key may be a function with a name."""


class Manager:
    """A guard that is known only later."""

    def __init__(self, guard: LockGuard) -> None:
        self.guard = guard

    @exclusive("{symbol}", guard="guard")
    async def close(self, symbol: str) -> None:
        """A method."""

    @exclusive("{symbol}", guard="guard", on_busy="skip")
    async def sync(self, symbol: str) -> int:
        """A method that may be skipped."""
        return 1

    @classmethod
    @exclusive("{symbol}", guard=lambda *_: guard)
    async def of_class(cls, symbol: str) -> type[Manager]:
        """A class method."""
        return cls

    @staticmethod
    @exclusive("{symbol}", guard=lambda *_: guard)
    async def static(symbol: str) -> str:
        """A static method."""
        return symbol


async def use(manager: Manager, request: Request) -> None:
    """The types that a user sees."""
    assert_type(await open_position("APTUSDT", "binance", quantity=Decimal(1)), int)
    assert_type(await open_position(symbol="APTUSDT", quantity=Decimal(1)), int)
    assert_type(await sync_symbol("binance", "APTUSDT"), bytes | Skipped)
    assert_type(await by_function(request=request), str)
    assert_type(await generic("APTUSDT", 1), list[int])
    assert_type(await by_named_function(request), None)
    assert_type(await manager.close("APTUSDT"), None)
    assert_type(await manager.sync(symbol="APTUSDT"), int | Skipped)
    assert_type(await Manager.of_class("APTUSDT"), type[Manager])
    assert_type(await Manager.static(symbol="APTUSDT"), str)
    assert_type(current_lease(), Lease | None)
    async with guard.hold("binance:APTUSDT") as lease:
        assert_type(lease, Lease)
        assert_type(lease.token, Token)
    async with guard.hold_many(["a", "b"]) as leases:
        assert_type(leases, tuple[Lease, ...])


async def as_coroutines(manager: Manager) -> None:
    """A guarded call is a coroutine: a task can be made of it."""
    task = asyncio.create_task(open_position("APTUSDT", quantity=Decimal(1)))
    assert_type(await task, int)
    both = await asyncio.gather(open_position("A", quantity=Decimal(1)), sync_symbol("b", "A"))
    assert_type(both, tuple[int, bytes | Skipped])
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.close("APTUSDT"))
        group.create_task(functools.partial(open_position, quantity=Decimal(1))("APTUSDT"))
    plain: Callable[[str, str], Coroutine[Any, Any, bytes | Skipped]] = sync_symbol
    await plain("binance", "APTUSDT")


async def told_apart(manager: Manager) -> None:
    """A skipped call is falsy, and a type checker knows it."""
    result = await manager.sync("APTUSDT")
    if result:
        assert_type(result, int)
    if isinstance(result, Skipped):
        assert_type(bool(result), bool)
        assert_type(result.__bool__(), Literal[False])
        assert_type(result.busy.holder, str | None)
    else:
        assert_type(result, int)


def ways_to_make_one() -> None:
    """Each way names the options."""
    LockGuard.from_url(
        "redis://h", wait=timedelta(0), max_hold=None, observers=[LogObserver()], min_replicas=1
    )
    LockGuard.from_urls(["redis://h"], node_timeout=timedelta(seconds=1))
    LockGuard.from_urls((f"redis://h{n}" for n in range(3)), ttl=timedelta(seconds=1))
    LockGuard.in_memory(lock_delay=timedelta(seconds=1))


# What must be seen.


class Deaf:
    """No observer."""


class Later:
    """An observer that nobody would await."""

    async def on(self, event: Event) -> None:
        """Never runs."""


def wrong_options() -> None:
    """A misspelt option, a time without a unit, a pool for a fence, a function for an observer."""
    LockGuard.from_url("redis://h", tll=timedelta(seconds=1))  # type: ignore[call-arg]
    LockGuard.from_urls(["redis://h"], tll=timedelta(seconds=1))  # type: ignore[call-arg]
    LockGuard.in_memory(tll=timedelta(seconds=1))  # type: ignore[call-arg]
    LockGuard.from_url("redis://h", ttl=10)  # type: ignore[arg-type]
    LockGuard.from_url("redis://h", fence=Deaf())  # type: ignore[arg-type]
    LockGuard.from_url("redis://h", observers=[Deaf()])  # type: ignore[list-item]
    LockGuard.from_url("redis://h", observers=[Later()])  # type: ignore[list-item]
    LockGuard.from_url(None)  # type: ignore[arg-type]
    guard.hold(None)  # type: ignore[arg-type]
    guard.hold("x", wait=5)  # type: ignore[arg-type]
    guard.hold("x", on_busy="skip")  # type: ignore[arg-type]


async def wrong_calls(manager: Manager) -> None:
    """Arguments of another type or name, an await that is left out, a hold that is awaited."""
    await open_position(symbol="APTUSDT", exchange="binance", quantity=1.0)  # type: ignore[arg-type]
    await open_position("APTUSDT", quantiti=Decimal(1))  # type: ignore[call-arg]
    await manager.close()  # type: ignore[call-arg]
    await manager.close(1)  # type: ignore[arg-type]
    number: int = await manager.sync("APTUSDT")  # type: ignore[assignment]
    print(number)
    await guard.hold("x")  # type: ignore[misc]


def wrong_decorations() -> None:
    """No key, a plain function, an async generator, a key without one text, a guard that is none."""

    @guard.exclusive  # type: ignore[arg-type]
    async def without_key(symbol: str) -> None: ...

    @guard.exclusive("{symbol}")  # type: ignore[arg-type]
    def plain(symbol: str) -> None: ...

    @guard.exclusive("{symbol}")  # type: ignore[arg-type]
    async def items(symbol: str) -> AsyncIterator[str]:
        yield symbol

    def price_of(request: Request) -> Decimal:
        return request.price

    guard.exclusive(price_of)  # type: ignore[arg-type]
    exclusive("{symbol}", guard=guard)  # type: ignore[call-overload]
    exclusive("{symbol}", guard=None)  # type: ignore[call-overload]
