"""The settings and the parts of the two bot processes of the third act."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence
from lockguard_ccxt import GuardedExchange
from lockguard_ccxt.lean_import import import_lean
from lockguard_lab.exchange import connect
from lockguard_positions._pace import Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["EXCHANGE", "LEASE_LOST", "PACE", "Bot", "BotSettings", "bot"]

EXCHANGE = "binance"
LEASE_LOST = 3
"""The exit code of a holder that lost its lease."""

PACE = Pace(poll=timedelta(milliseconds=50), grace=timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class BotSettings:
    """The settings that a process of the third act gets at its start; they may contain passwords."""

    redis_url: str
    database_url: str
    exchange_url: str
    ttl_ms: int

    def encode(self) -> str:
        """The settings as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, line: str) -> BotSettings:
        """Parse the line that :meth:`encode` made."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Bot:
    """A bot's own guard, database and exchange."""

    guard: LockGuard
    pool: asyncpg.Pool[Any]
    exchange: GuardedExchange


@asynccontextmanager
async def bot(part: BotSettings) -> AsyncIterator[Bot]:
    """Connect a bot to its Redis, database and exchange."""
    import_lean("binanceusdm")
    client = connect(part.exchange_url)
    try:
        await client.load_markets()
        async with asyncpg.create_pool(part.database_url, min_size=2, max_size=4) as pool:
            guard = LockGuard.from_url(
                part.redis_url,
                fence=PostgresFence(pool),
                ttl=timedelta(milliseconds=part.ttl_ms),
                wait=timedelta(seconds=20),
            )
            async with guard:
                yield Bot(guard, pool, GuardedExchange(client))
    finally:
        await client.close()
