"""The connections of the commands: to the database and the exchange, and a manager over both.

URLs come from options or the environment; keys only from the environment, as every user of the machine can
read the arguments of a process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

import asyncpg

from lockguard import LockGuard
from lockguard._guard import GuardOptions, guard_over
from lockguard._nodes.named import require_all_named
from lockguard._settings import NO_REDIS, Settings
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import PostgresFence
from lockguard_asyncpg._dsn import arguments, reason_of, shown
from lockguard_asyncpg._errors import CONNECT_ERRORS, unreachable
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_ccxt._classify import ccxt_errors
from lockguard_positions._errors import ServerUnreachable
from lockguard_positions._exchange_options import ExchangeSettings, credentials_told, make_client
from lockguard_positions._manager import AtomicPositionManager
from lockguard_positions._model import Adopt
from lockguard_positions._schema import version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lockguard_positions._events import PositionObserver

__all__ = [
    "Urls",
    "connect_any_database",
    "connect_database",
    "connect_exchange",
    "connect_manager",
]

_CONNECT_S = 10.0
_POOL_MAX = 10
_WITH_INTENTS = 3


@dataclass(frozen=True, slots=True, repr=False)
class Urls:
    """The addresses of the exchange, the database and Redis; the latter two as far as they are given."""

    exchange: ExchangeSettings
    servers: Settings

    @property
    def database(self) -> str | None:
        """The database's URL; ``None`` if it is not given."""
        return self.servers.database

    def require_redis(self) -> None:
        """Check that Redis is given: a mistake is told before anything is connected.

        Raises:
            ConfigurationError: it is not.
        """
        if not self.servers.redis:
            raise ConfigurationError(NO_REDIS)

    async def guard(self, **options: Unpack[GuardOptions]) -> LockGuard:
        """A guard over Redis, not connected yet.

        Args:
            **options: as for :class:`LockGuard`.

        Raises:
            ConfigurationError: no Redis is given, its URL cannot work, or only some servers of a quorum are
                given.
        """
        self.require_redis()
        await require_all_named(self.servers.redis, namespace=self.servers.namespace)
        return guard_over(self.servers, **options)


@asynccontextmanager
async def connect_database(url: str | None) -> AsyncIterator[asyncpg.Pool[Any]]:
    """Connect a pool to the database that has the tables.

    Raises:
        ConfigurationError: there is no URL, it cannot work, or the database has no table of positions.
        ServerUnreachable: the database does not answer.
    """
    async with connect_any_database(url) as pool:
        if await pool.fetchval("select to_regclass('monitoring.positions')") is None:
            raise ConfigurationError(
                f"database {shown(url)} has no table monitoring.positions;"
                " 'lockguard positions migrate' makes it"
            )
        yield pool


@asynccontextmanager
async def connect_any_database(url: str | None) -> AsyncIterator[asyncpg.Pool[Any]]:
    """Connect a pool to a database, with or without the tables.

    Raises:
        ConfigurationError: there is no URL, or it cannot work.
        ServerUnreachable: the database does not answer.
    """
    if not url:
        raise ConfigurationError("no database; give --database or set LOCKGUARD_DATABASE_URL")
    given = arguments(url)
    try:
        pool = await asyncpg.create_pool(**given, min_size=1, max_size=_POOL_MAX, timeout=_CONNECT_S)
    except CONNECT_ERRORS as exc:
        told = f"database {shown(url)} cannot be reached: {reason_of(exc, within_s=_CONNECT_S)}"
        raise (ServerUnreachable if unreachable(exc) else ConfigurationError)(told) from exc
    async with pool:
        yield pool


@asynccontextmanager
async def connect_exchange(
    settings: ExchangeSettings, *, patience: Patience | None = None
) -> AsyncIterator[GuardedExchange]:
    """Connect to the exchange and load its markets.

    Args:
        settings: the account, and ccxt's options.
        patience: how orders without an answer are looked for; the guarded exchange's default otherwise.

    Raises:
        ConfigurationError: there is no exchange of that name, or its keys are missing or refused.
        ServerUnreachable: the exchange does not answer.
    """
    client = make_client(settings)
    try:
        guarded = GuardedExchange(client, account=settings.account, patience=patience or Patience())
        try:
            await guarded.load()
        except ccxt_errors().AuthenticationError as exc:
            raise credentials_told(guarded.name, exc) from exc
        except ccxt_errors().BaseError as exc:
            told = f"exchange {settings.shown} does not answer: {type(exc).__name__}"
            passes = isinstance(exc, ccxt_errors().NetworkError)
            raise (ServerUnreachable if passes else ConfigurationError)(told) from exc
        yield guarded
    finally:
        await client.close()


@asynccontextmanager
async def connect_manager(
    urls: Urls,
    *,
    ttl: timedelta = timedelta(seconds=10),
    adopt: Adopt | str = Adopt.STOP,
    observers: Sequence[PositionObserver] | None = None,
) -> AsyncIterator[tuple[AtomicPositionManager, GuardedExchange, asyncpg.Pool[Any]]]:
    """Connect everything; yields the manager, the exchange and the pool.

    Raises:
        ConfigurationError: something is missing; the message is one line that says what to do.
        ServerUnreachable: the database or the exchange does not answer.
    """
    urls.require_redis()
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(connect_database(urls.database))
        async with pool.acquire() as conn:
            found = await version(conn)
        if found < _WITH_INTENTS:
            raise ConfigurationError(
                f"the positions schema has version {found} and this needs {_WITH_INTENTS};"
                f" 'lockguard positions migrate --to {_WITH_INTENTS}' brings it there"
            )
        exchange = await stack.enter_async_context(connect_exchange(urls.exchange))
        guard = await urls.guard(fence=PostgresFence(pool), ttl=ttl, observers=[])
        await stack.enter_async_context(guard)
        manager = AtomicPositionManager(guard, pool, [exchange], adopt=adopt, observers=observers)
        yield manager, exchange, pool
