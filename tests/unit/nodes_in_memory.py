"""Nodes that answer as they are told, for what is decided over their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from lockguard._lease import Grant, GrantId, Resource, Token
from lockguard.errors import (
    NodeUnknown,
)
from lockguard.ports import (
    AcquireRequest,
    Busy,
    Extended,
    Granted,
    MaybeExecuted,
)

APT = Resource("binance:APTUSDT")
MINE, OTHER = GrantId("a" * 32), GrantId("b" * 32)
TTL_MS = 60_000


def request(**more: Any) -> AcquireRequest:
    return AcquireRequest(APT, MINE, "h", "o", TTL_MS, **{"queue": True, **more})


def grant(seal: str = "") -> Grant:
    return Grant(APT, MINE, Token(7), "h", "o", TTL_MS, seal)


def busy(ticket: int = 0, *, token: int = 3, retry_ms: int = 1_000, **more: Any) -> Busy:
    return Busy("other", "op", Token(token), age_ms=5, retry_after_ms=retry_ms, ticket=ticket, **more)


def unknown() -> MaybeExecuted:
    return MaybeExecuted(NodeUnknown("lost", node="n"))


def granted(token: int = 7, **more: Any) -> Granted:
    return Granted(Token(token), **more)


HELD, WANTED, NOT_HELD = Extended(held=True), Extended(held=True, wanted=True), Extended(held=False)


async def turns(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
