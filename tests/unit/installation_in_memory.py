"""Snapshots made by hand, and an installation that serves them, for tests of what is drawn of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from lockguard._breaking import changed_hands
from lockguard._records import FenceStanding, Refusal
from lockguard.errors import LockguardError
from lockguard.ports import Broken, Inspection, Waiter
from lockguard_ops._installation import LockView, Snapshot
from lockguard_ops._positions import OpenPosition

NOW = datetime.now(UTC)


def lock(
    resource: str = "binance:APTUSDT", *, fence: FenceStanding | None = FenceStanding.OPEN, **facts: Any
) -> LockView:
    """A held lock."""
    waiting = facts.pop("waiting", 0)
    usual: dict[str, Any] = {
        "resource": resource,
        "held": True,
        "grant": f"grant-of-{resource}",
        "token": 1_795_239_517_492_224,
        "holder": "bot-1:5999/Task-1",
        "operation": "open long",
        "age_ms": 4_000,
        "remaining_ms": 8_000,
        "ttl_ms": 10_000,
        "renewals": 3,
        "waiters": tuple(waiter(place) for place in range(waiting)),
    }
    return LockView(Inspection(**(usual | facts)), fence, 1_795_239_517_492_224 if fence else None)


def waiter(place: int, **facts: Any) -> Waiter:
    """A place in a queue."""
    usual: dict[str, Any] = {
        "grant": f"waiter-{place}",
        "inbox": f"lockguard:inbox:{place}",
        "ticket": place,
        "silent_ms": 10,
        "holder": f"bot-2:77/Task-{place}",
        "operation": "sync",
        "waiting_ms": 60_000 - 1_000 * place,
    }
    return Waiter(**(usual | facts))


def refusal(resource: str = "binance:APTUSDT", **facts: Any) -> Refusal:
    """A refused write."""
    usual: dict[str, Any] = {
        "resource": resource,
        "presented": 1,
        "current": 2,
        "sqlstate": "LG001",
        "reason": "superseded",
        "holder": "bot-1:5999/Task-1",
        "operation": "open long",
        "role": "bot",
        "application": "",
        "times": 1,
        "first_at": NOW,
        "at": NOW,
    }
    return Refusal(**(usual | facts))


def position(symbol: str = "APTUSDT", **facts: Any) -> OpenPosition:
    """An open position without a stop."""
    usual: dict[str, Any] = {
        "id": 7,
        "exchange": "binance",
        "symbol": symbol,
        "side": "long",
        "quantity": Decimal("12.50"),
        "status": "entry_placed",
        "since": NOW - timedelta(seconds=42),
    }
    return OpenPosition(**(usual | facts))


@dataclass
class InMemory:
    """An installation whose state is what a test says.

    Attributes:
        state: what is read.
        has_database: whether one is named.
        lines: the story of every resource.
        asked: the hand-overs that were requested: resource and reason.
        broken: the breaks: resource, grant and reason.
        fails: what calls about one resource raise.
        snapshot_fails: what reading everything raises.
        story_fails: what reading a story raises.
        read: how often it was read.
        waits: what a break waits for.
    """

    state: Snapshot = field(default_factory=lambda: Snapshot(NOW))
    has_database: bool = True
    lines: tuple[Any, ...] = ()
    asked: list[tuple[str, str]] = field(default_factory=list)
    broken: list[tuple[str, str, str]] = field(default_factory=list)
    fails: LockguardError | None = None
    snapshot_fails: Exception | None = None
    story_fails: LockguardError | None = None
    read: int = 0
    waits: asyncio.Event | None = None

    async def snapshot(self, pattern: str = "*", *, refusals: int = 50) -> Snapshot:
        self.read += 1
        if self.snapshot_fails is not None:
            raise self.snapshot_fails
        return replace(self.state, at=datetime.now(UTC))

    async def answering(self) -> dict[str, bool]:
        return {"127.0.0.1:6379": not self.state.redis_fault}

    async def show(self, resource: str) -> LockView:
        self._fail()
        return next(view for view in self.state.locks if view.lock.resource == resource)

    async def story(self, resource: str, *, limit: int = 200) -> tuple[Any, ...]:
        if self.story_fails is not None:
            raise self.story_fails
        return self.lines

    async def ask(self, resource: str, *, grant: str, reason: str) -> bool:
        self._fail()
        lock = (await self.show(resource)).lock
        if lock.held and lock.grant != grant:
            raise changed_hands(lock.resource, lock.grant, lock.holder, what="asked")
        self.asked.append((resource, reason))
        return lock.held

    async def break_(self, resource: str, *, grant: str, reason: str) -> Broken:
        self._fail()
        if self.waits is not None:
            await self.waits.wait()
        self.broken.append((resource, grant, reason))
        return Broken(grant, "bot-1:5999/Task-1", 99)

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails
