"""What the bots run on: an exchange, a table, protected or not, and the addresses of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard import LockGuard
from lockguard_asyncpg import PostgresFence, install, protect
from lockguard_lab.exchange import LOCAL_API_KEY, LOCAL_SECRET, LocalExchange, Operation
from lockguard_lab.own_bot.processes import BotProcess

if TYPE_CHECKING:
    from lockguard_lab.exchange import ExchangeRecord

__all__ = ["EXEMPT", "TABLE", "TEMPLATE", "TTL_S", "WINDOW_S", "Stage", "stage"]

TABLE = "monitoring.positions"
TEMPLATE = "{exchange}:{symbol}"
EXEMPT = ("current_price", "pnl", "updated_at")
TTL_S = 1.5
WINDOW_S = 5.0
"""How late the exchange still takes an order, by the bot's ``recvWindow``; a request that is slower fails."""
WINDOW_UNGUARDED_S = 60.0
"""The same without a guard, where nothing waits until it is over."""
_ORDERS_TAKE = timedelta(milliseconds=150)
_READS_TAKE = timedelta(milliseconds=2)


@dataclass
class Stage:
    """Servers, and the bots that run on them.

    Attributes:
        folder: of the bots' files.
        exchange: the account is that of its key.
        conn: to the bots' database.
        both: breaks a lock in Redis and in the fence, as ``lockguard break`` does; ``None`` without a guard.
        redis_only: breaks it in Redis alone, as a server does that loses its data.
        bots: all that were started.
    """

    folder: Path
    guarded: bool
    redis_url: str
    database_url: str
    exchange: LocalExchange
    conn: asyncpg.Connection[Any]
    stack: AsyncExitStack
    both: LockGuard | None = None
    redis_only: LockGuard | None = None
    bots: list[BotProcess] = field(default_factory=list)

    @property
    def record(self) -> ExchangeRecord:
        """The exchange's own record."""
        return self.exchange.record()

    async def bot(self) -> BotProcess:
        """Start a bot's process."""
        environment = {
            "API_KEY": LOCAL_API_KEY,
            "API_SECRET": LOCAL_SECRET,
            "DATABASE_URL": self.database_url,
            "EXCHANGE_URL": self.exchange.url,
            "RATE_LIMIT": "off",
            "SETTLE_SECONDS": "0.2",
            "SYNC_SECONDS": "0.4",
            "TICK_SECONDS": "0.4",
            "RECV_WINDOW_MS": str(round((WINDOW_S if self.guarded else WINDOW_UNGUARDED_S) * 1000)),
            "LOCKGUARD_REDIS_URL": self.redis_url,
            "LOCKGUARD_TTL": f"{round(TTL_S * 1000)}ms",
            "LOCKGUARD_LOCK_DELAY": f"{round((TTL_S + WINDOW_S) * 1000)}ms",
            "LOCKGUARD_WAIT": "60s",
        }
        file = self.folder / ("guarded_bot.py" if self.guarded else "bot.py")
        bot = await self.stack.enter_async_context(BotProcess(file, environment))
        self.bots.append(bot)
        return bot

    async def statuses(self, symbol: str) -> list[str]:
        """The status of each row of a symbol, oldest first."""
        rows = await self.conn.fetch(
            "select status from monitoring.positions where symbol = $1 order by id", symbol
        )
        return [row["status"] for row in rows]


@asynccontextmanager
async def stage(folder: Path, redis_url: str, database_url: str, *, guarded: bool) -> AsyncIterator[Stage]:
    """An empty table, an exchange without positions, and no bots yet; those that are started end with it.

    Args:
        folder: the bots' files.
        redis_url: a server whose locks may be broken.
        database_url: a database in which there may be a schema ``monitoring`` of an earlier race.
        guarded: whether the guarded bot runs, on a protected table.
    """
    async with AsyncExitStack() as stack:
        conn = await asyncpg.connect(database_url)
        stack.push_async_callback(conn.close)
        await conn.execute("drop schema if exists monitoring cascade")
        await conn.execute((folder / "schema.sql").read_text(encoding="utf-8"))
        exchange = await stack.enter_async_context(LocalExchange(latency=_READS_TAKE))
        for operation in (Operation.CREATE_ORDER, Operation.CREATE_ALGO):
            exchange.set_latency(_ORDERS_TAKE, operation)
        made = Stage(folder, guarded, redis_url, database_url, exchange, conn, stack)
        if guarded:
            await install(conn)
            await protect(conn, TABLE, resource=TEMPLATE, exempt=EXEMPT)
            pool = await stack.enter_async_context(asyncpg.create_pool(database_url, min_size=1, max_size=4))
            made.both = await stack.enter_async_context(
                LockGuard.from_url(redis_url, fence=PostgresFence(pool), observers=[])
            )
            made.redis_only = await stack.enter_async_context(LockGuard.from_url(redis_url, observers=[]))
        yield made
