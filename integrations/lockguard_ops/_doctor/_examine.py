"""Looks at all servers: first at clocks and round trips, which others would disturb, then at the rest."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lockguard._nodes.link import text_of
from lockguard._nodes.sentinel import SentinelUrl
from lockguard.errors import ConfigurationError
from lockguard.text import first_line
from lockguard_ops._doctor._findings import Report, Severity, advice
from lockguard_ops._doctor._places import Part, Seen, open_all
from lockguard_ops._doctor._redis import check_keys, check_server
from lockguard_ops._doctor._rights import check_rights, check_scripts
from lockguard_ops._doctor._timing import measure, tell_clocks, tell_latency
from lockguard_ops._doctor._together import (
    Standing,
    check_identity,
    check_membership,
    check_replicas,
    check_sentinel,
    check_votes,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lockguard._namespace import Namespace
    from lockguard._nodes.address_map import AddressMap
    from lockguard_ops._doctor._session import Session
    from lockguard_ops._doctor._timing import Timing
    from lockguard_positions._exchange_options import ExchangeSettings

__all__ = ["Asked", "examine"]

_OF_THE_BOT = ("asyncpg", "ccxt", "tenacity")
_EXTRAS = {"asyncpg": "postgres", "ccxt": "positions", "tenacity": "positions"}


@dataclass(frozen=True, slots=True, repr=False)
class Asked:
    """What to look at. URLs may have passwords, so it has no repr.

    Attributes:
        redis: the URLs of Redis; several form a quorum.
        namespace: the first part of every key.
        address_map: where to reach the servers that Sentinels and clusters announce.
        database: the URL of the database; ``None`` for none.
        exchange: the URL or name of the exchange; ``None`` for none.
        account: the account's label there.
        options: ccxt's options, as ``key=value``.
        ttl: of the bot's leases.
        min_replicas: how many replicas must have a lock before it counts as granted.
        tables: further tables that the bot writes.
        watched: for how long clocks and round trips are watched.
    """

    redis: Sequence[str]
    namespace: Namespace
    address_map: AddressMap
    database: str | None
    exchange: str | None
    account: str | None
    options: Sequence[str]
    ttl: timedelta
    min_replicas: int
    tables: Sequence[str]
    watched: timedelta


def _missing_extra(*names: str) -> str | None:
    """Which extra is missing for packages; ``None`` if they are installed."""
    return next((_EXTRAS[name] for name in names if find_spec(name) is None), None)


async def examine(asked: Asked) -> Report:
    """Look at everything that was named.

    Raises:
        ConfigurationError: a URL or an option cannot work.
    """
    report = Report()
    async with AsyncExitStack() as stack:
        if (account := _account_of(asked)) is not None:
            stack.push_async_callback(account[1].close)
        seen = await open_all(asked.redis, asked.address_map, report, stack)
        database = await _open_database(asked, report, stack)
        await _watch(seen, database, asked, report)
        await _check_redis(seen, asked, report)
        if database is not None:
            from lockguard_ops._doctor._postgres import check_database  # noqa: PLC0415 - it needs an extra

            checks = check_database(database, asked.ttl, asked.tables, report)
            await _guarded(database.server, "postgres.unreachable", checks, report)
        await _check_bot(asked, account, database, report)
    return report


# --- Redis ---


async def _check_redis(seen: Sequence[Seen], asked: Asked, report: Report) -> None:
    for one in seen:
        check_server(one, asked.ttl, report)
    fit = [one for one in seen if not _is_other(one, report)]
    members = [one for one in fit if one.place.part is Part.MEMBER]
    check_identity(members, report)
    check_replicas(seen, asked.min_replicas, report)
    standings: dict[str, Standing] = {}
    await asyncio.gather(*(_look(one, asked, standings, report) for one in fit))
    check_votes(members, standings, len(asked.redis), report)


async def _look(one: Seen, asked: Asked, standings: dict[str, Standing], report: Report) -> None:
    if one.place.part is Part.SENTINEL:
        work = check_sentinel(one, SentinelUrl.parse(asked.redis[0]), asked.ttl, report)
        await _guarded(one.name, "sentinel.unreachable", work, report)
    else:
        await _guarded(one.name, "redis.unreachable", _try(one, asked, standings, report), report)


async def _try(one: Seen, asked: Asked, standings: dict[str, Standing], report: Report) -> None:
    await check_rights(one, report, namespace=asked.namespace, waits=asked.min_replicas > 0)
    if not one.place.part.keeps_locks:
        return
    if one.place.part in {Part.ALONE, Part.MEMBER}:
        standings[one.name] = await check_membership(one, len(asked.redis), asked.namespace, report)
    if one.place.part is Part.ALONE and report.has("quorum.named", one.name):
        return  # a bot is refused it alone
    await check_scripts(one, report, namespace=asked.namespace)
    await check_keys(one, asked.namespace, report)


def _is_other(one: Seen, report: Report) -> bool:
    return any(report.has(code, one.name) for code in ("redis.kind", "redis.replica"))


# --- Postgres and what is built on it ---


async def _open_database(asked: Asked, report: Report, stack: AsyncExitStack) -> Session | None:
    if asked.database is None:
        report.skip("Postgres: no database is named (--database)")
        return None
    if (extra := _missing_extra("asyncpg")) is not None:
        report.skip(f"Postgres: pip install 'lockguard[{extra}]'")
        return None
    from lockguard_ops._doctor._session import open_session  # noqa: PLC0415 - it needs an extra

    return await stack.enter_async_context(open_session(asked.database, report))


def _account_of(asked: Asked) -> tuple[ExchangeSettings, Any] | None:
    """The account and ccxt's client for it; its mistakes are told before anything is asked."""
    if asked.exchange is None or _missing_extra(*_OF_THE_BOT) is not None:
        return None
    from lockguard_positions._exchange_options import (  # noqa: PLC0415 - it needs an extra
        make_client,
        read_options,
    )

    settings = read_options(asked.options, name=asked.exchange, account=asked.account)
    return settings, make_client(settings)


async def _check_bot(
    asked: Asked, account: tuple[ExchangeSettings, Any] | None, database: Session | None, report: Report
) -> None:
    extra = _missing_extra(*_OF_THE_BOT)
    if asked.exchange is None:
        report.skip("Exchange: none is named (--exchange)")
    elif extra is not None:
        report.skip(f"Exchange: pip install 'lockguard[{extra}]'")
    if extra is not None:
        report.skip(f"Positions: pip install 'lockguard[{extra}]'")
        return
    from lockguard_ops._doctor._exchange import check_exchange  # noqa: PLC0415 - it needs an extra
    from lockguard_ops._doctor._positions import check_positions  # noqa: PLC0415 - it needs an extra

    exchange = None
    if account is not None:
        settings, client = account
        exchange = await check_exchange(client, settings, report)
    if database is not None and not database.conn.is_closed():
        work = check_positions(database, exchange, report)
        await _guarded("Positions", "positions.unread", work, report)


# --- clocks ---


async def _watch(seen: Sequence[Seen], database: Session | None, asked: Asked, report: Report) -> None:
    work = [
        _timed(one.name, "redis.unreachable", _time_of(one), asked, report)
        for one in seen
        if one.place.part is not Part.SENTINEL
    ]
    if database is not None:
        work.append(_timed(database.server, "postgres.unreachable", database.clock, asked, report))
    timings = [one for one in await asyncio.gather(*work) if one is not None]
    for timing in timings:
        tell_latency(timing, asked.ttl, report)
    if timings:
        tell_clocks(timings, report)


async def _timed(
    server: str, code: str, ask: Callable[[], Awaitable[float]], asked: Asked, report: Report
) -> Timing | None:
    found: list[Timing] = []

    async def work() -> None:
        found.append(await measure(server, ask, asked.watched))

    await _guarded(server, code, work(), report)
    return found[0] if found else None


def _time_of(one: Seen) -> Callable[[], Awaitable[float]]:
    async def ask() -> float:
        told = await one.link.ask("TIME")
        if isinstance(told, Exception):
            raise ConfigurationError(f"it refuses TIME: {told}")
        seconds, micros = (int(text_of(part)) for part in told)
        return seconds + micros / 1e6

    return ask


async def _guarded(server: str, code: str, work: Any, report: Report) -> None:
    """Run checks; a server that dies in the middle, or refuses a question, is a finding.

    Args:
        server: for display.
        code: of the finding.
        work: the checks.
        report: gets the finding.
    """
    try:
        await work
    except Exception as exc:
        if not _is_of_a_server(exc):
            raise
        if not report.has(code, server):
            remedy = advice("see that it runs, and its log; then: lockguard doctor")
            kind = "" if isinstance(exc, ConfigurationError) else f"{type(exc).__name__}: "
            found = f"it could not be read to the end: {kind}{first_line(exc)}"
            report.add(code, Severity.ERROR, server, found, remedy, unread=True)


def _is_of_a_server(exc: Exception) -> bool:
    # The last three: an answer of another form than that server gives.
    if isinstance(exc, OSError | ConfigurationError | ValueError | TypeError | LookupError):
        return True
    if _missing_extra("asyncpg") is not None:
        return False
    from lockguard_asyncpg._errors import DATABASE_ERRORS  # noqa: PLC0415 - it needs an extra

    return isinstance(exc, DATABASE_ERRORS)
