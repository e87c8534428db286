"""The servers of a demo, which start and end together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard_lab.demo import serverlog
from lockguard_lab.demo.parts import BotSettings
from lockguard_lab.demo.report import Servers
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Stage", "stage"]

_RACE_DATABASE = 1
_TTL_MS = 1_500
_LATENCY = timedelta(milliseconds=60)
_CONNECTIONS_MAX = 200
_DATABASE = "demo"


@dataclass(frozen=True, slots=True)
class Stage:
    """The running servers.

    Attributes:
        trading: the exchange of the two races; each race resets it.
        calm: the exchange of the third act.
        database_url: the database of the third act.
    """

    redis: RedisServer
    postgres: PostgresServer
    trading: LocalExchange
    calm: LocalExchange
    database_url: str

    @property
    def servers(self) -> Servers:
        """The servers as the report names them."""
        return Servers(self.redis.binary, self.postgres.binary)

    @property
    def redis_cli(self) -> str:
        """The start of a ``redis-cli`` command line; it reads the password from a file and never shows it."""
        return f"REDISCLI_AUTH=$(cat {self.redis.password_file}) redis-cli -p {self.redis.port}"

    @property
    def race_redis_url(self) -> str:
        """The URL of the races' Redis database, which is separate from that of the third act's locks."""
        return f"{self.redis.url.rpartition('/')[0]}/{_RACE_DATABASE}"

    @property
    def part(self) -> BotSettings:
        """The settings of the processes of the third act."""
        return BotSettings(
            redis_url=self.redis.url,
            database_url=self.database_url,
            exchange_url=self.calm.url,
            ttl_ms=_TTL_MS,
        )


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """Start the servers; they end with this process, however the process ends.

    Raises:
        ConfigurationError: the server binaries are missing, or a server does not come up.
    """
    redis = RedisServer()
    postgres = PostgresServer(
        max_connections=_CONNECTIONS_MAX, settings={"log_line_prefix": serverlog.LINE_PREFIX}
    )
    async with AsyncExitStack() as stack:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(stack.enter_async_context(redis))
                group.create_task(stack.enter_async_context(postgres))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        trading = await stack.enter_async_context(LocalExchange())
        calm = await stack.enter_async_context(LocalExchange(latency=_LATENCY))
        database_url = await asyncio.to_thread(postgres.create_database, _DATABASE)
        yield Stage(redis, postgres, trading, calm, database_url)
