"""The servers of a race: waits until they answer, and creates a database for the race alone."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from lockguard import LockGuard
from lockguard._clock import SYSTEM_CLOCK
from lockguard._nodes.address import split_url
from lockguard.errors import AcquireError, ConfigurationError
from lockguard.text import first_line
from lockguard_asyncpg import install
from lockguard_asyncpg._dsn import checked, reason_of, shown
from lockguard_asyncpg._errors import CONNECT_ERRORS
from lockguard_ccxt import resource_key
from lockguard_positions._errors import ServerUnreachable
from lockguard_positions._schema import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from lockguard_lab.exchange import ControlClient
    from lockguard_lab.race.settings import RaceSettings

__all__ = ["prepare", "reach_redis", "redis_place", "scratch_database", "symbols_of"]

T = TypeVar("T")

_OLD_SCHEMA = 1
_PROBE = "race:probe"
_RETRY_S = 0.5
_VENUE = "binance"
_CONNECT_S = 5.0


async def _patiently(
    settings: RaceSettings,
    attempt: Callable[[], Awaitable[T]],
    what: str,
    passing: tuple[type[Exception], ...],
) -> T:
    """Retry until it works: in a composition of containers, the servers come up in any order."""
    until = SYSTEM_CLOCK.now() + settings.connect_s
    worth_waiting: tuple[type[Exception], ...] = (OSError, TimeoutError, *passing)
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await attempt()
        except worth_waiting as exc:
            if SYSTEM_CLOCK.now() >= until:
                raise ServerUnreachable(
                    f"{what} could not be reached in {settings.connect_s:g} s: {first_line(exc)}"
                ) from exc
            await asyncio.sleep(_RETRY_S)


async def symbols_of(settings: RaceSettings, control: ControlClient) -> tuple[str, ...]:
    """The symbols of a round; waits until the exchange answers.

    Raises:
        ConfigurationError: it does not answer in time.
    """
    where = f"exchange {settings.exchange_url}"
    found = await _patiently(settings, control.symbols, where, (ConfigurationError,))
    perpetuals = tuple(symbol for symbol in found if "_" not in symbol)
    return perpetuals[: settings.symbols] if settings.symbols else perpetuals


async def reach_redis(settings: RaceSettings, symbols: Sequence[str]) -> None:
    """Return when locks can be taken, or at once when the race takes none.

    Raises:
        ConfigurationError: Redis cannot be used for locks, or holds locks that no race made.
    """
    if not settings.guard:
        return
    async with LockGuard.from_urls(settings.redis_urls, observers=[]) as guard:
        where = f"Redis {', '.join(map(redis_place, settings.redis_urls))}"
        probe = await _patiently(settings, lambda: guard.inspect(_PROBE), where, (AcquireError,))
        if not probe.token:
            await _refuse_locks_of_others(guard, symbols, where)
        # Marks this Redis as a race's: the last token stays for a week.
        async with guard.hold(_PROBE, operation="lockguard race"):
            pass


async def _refuse_locks_of_others(guard: LockGuard, symbols: Sequence[str], where: str) -> None:
    """Refuse a bot's Redis: a race locks the same names and takes leases away from their holders."""
    for symbol in symbols:
        found = await guard.inspect(resource_key(_VENUE, symbol))
        if found.held or found.token:
            raise ConfigurationError(
                f"{where} has locks that no race has made, such as {found.resource}: a race would take them"
                " away from their holders; give a Redis or a database number of its own"
            )


@asynccontextmanager
async def scratch_database(settings: RaceSettings) -> AsyncIterator[tuple[str, str]]:
    """The name and the URL of a new database for this race alone, so that no other rows are touched.

    Raises:
        ConfigurationError: Postgres does not permit one to be created.
        ServerUnreachable: Postgres cannot be reached.
    """
    checked(settings.database_url)
    where = f"Postgres {shown(settings.database_url)}"
    try:
        conn: asyncpg.Connection[Any] = await _patiently(
            settings, lambda: asyncpg.connect(settings.database_url), where, (asyncpg.CannotConnectNowError,)
        )
    except CONNECT_ERRORS as exc:
        told = reason_of(exc, within_s=_CONNECT_S)
        raise ConfigurationError(f"{where} let nobody in: {told}; check its URL") from exc
    name = f"lockguard_race_{secrets.token_hex(4)}"
    try:
        try:
            await conn.execute(f'create database "{name}"')
        except asyncpg.InsufficientPrivilegeError as exc:
            raise ConfigurationError(
                f"{where}: {exc}; a race needs a database of its own: ALTER ROLE ... CREATEDB"
            ) from exc
        try:
            yield name, urlunsplit(urlsplit(settings.database_url)._replace(path=f"/{name}"))
        finally:
            if not settings.keep_database:
                await conn.execute(f'drop database "{name}" with (force)')
    finally:
        await conn.close()


async def prepare(settings: RaceSettings, conn: asyncpg.Connection[Any]) -> None:
    """Create the schema of the guarded flow, or that of the unguarded one."""
    if settings.guard:
        await install(conn)
    await migrate(conn, to=None if settings.guard else _OLD_SCHEMA)


def redis_place(url: str) -> str:
    """The place that a Redis URL names, without its user and password.

    Raises:
        ConfigurationError: the URL cannot be parsed; nothing of it is quoted.
    """
    parts = split_url(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"
