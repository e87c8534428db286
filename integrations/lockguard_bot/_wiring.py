"""Builds the parts of a bot, and waits at the start for servers that do not answer yet."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import AcquireError, ConfigurationError, LockguardError, NodeError
from lockguard.observe import LogObserver
from lockguard_asyncpg import PostgresFence, schema_version
from lockguard_asyncpg._errors import DATABASE_ERRORS, Meaning, meaning_of
from lockguard_bot._book import SignalBook
from lockguard_bot._sources import FileSource
from lockguard_bot._stopping import unless_stopped
from lockguard_bot._stream import StreamSource
from lockguard_bot._trader import Trader
from lockguard_bot._worker import Worker
from lockguard_ccxt import Patience
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt.lean_import import import_lean
from lockguard_positions._connecting import Urls, connect_database, connect_exchange
from lockguard_positions._errors import ServerUnreachable
from lockguard_positions._events import LogPositions
from lockguard_positions._exchange_options import credentials_told
from lockguard_positions._manager import AtomicPositionManager
from lockguard_positions._pace import Pace
from lockguard_positions._schema import GIVEN_SINCE, version

if TYPE_CHECKING:
    from typing import Any

    import asyncpg

    from lockguard_bot._sources import SignalSource
    from lockguard_bot._worker import Rhythm
    from lockguard_ccxt import GuardedExchange
    from lockguard_metrics import PrometheusObserver
    from lockguard_positions._events import PositionObserver
    from lockguard_positions._model import Adopt

__all__ = ["BotSettings", "NotConnected", "StreamSettings", "connect_bot"]

_LOG = logging.getLogger("lockguard.bot")
_RETRY = timedelta(seconds=1)


class NotConnected(LockguardError):
    """A server did not answer within the time that the bot waits for it at the start."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """A Redis stream of signals.

    Attributes:
        url: the URL of the stream's server.
        key: the stream's key.
        group: the consumer group that the bots form.
        claim_after: how long an unfinished entry stays idle before another bot may claim it.
    """

    url: str = field(repr=False)
    key: str
    group: str
    claim_after: timedelta


@dataclass(frozen=True, slots=True)
class BotSettings:
    """The settings of one bot.

    Attributes:
        urls: the locks' Redis, the database and the exchange.
        files: the signal files, one signal per line; ``-`` is the standard input.
        stream: the stream of signals; ``None`` for none.
        adopt: what to do about a position on the exchange that has no row.
        alerts: the apprise URLs that receive alerts.
        rhythm: the intervals and limits.
        ttl: the life of the leases.
        history: how many past leases of each symbol Redis keeps; 0 for none.
        age_max: an open signal older than this is refused.
        set_aside_after: how many bots may die over a signal before it is set aside.
        alert_after: how long something may be unreadable or undecided before an alert is sent.
        receive_window: how late the exchange may still accept an order; ``None`` keeps the default.
        reads_lag: how far the exchange's reads may lag behind its state.
        connect_within: how long to wait at the start for servers that do not answer.
        metrics: the host and port at which the bot shows its metrics; ``None`` for none.
    """

    urls: Urls
    adopt: Adopt
    files: tuple[str, ...]
    stream: StreamSettings | None
    alerts: tuple[str, ...] = field(repr=False)
    rhythm: Rhythm
    ttl: timedelta
    history: int
    age_max: timedelta
    set_aside_after: int
    alert_after: timedelta
    receive_window: timedelta | None
    reads_lag: timedelta
    connect_within: timedelta
    metrics: tuple[str, int] | None = None


async def connect_bot(
    stack: AsyncExitStack,
    settings: BotSettings,
    stopping: asyncio.Event,
    counting: PrometheusObserver | None = None,
) -> Worker | None:
    """A bot and its connections, which ``stack`` closes; ``None`` if the bot is asked to stop meanwhile.

    ``counting`` is told of all events of leases and positions.

    Raises:
        ConfigurationError: a setting is missing or cannot work; the message is one line with the remedy.
        NotConnected: a server did not answer within ``connect_within``.
    """
    give_up_at = SYSTEM_CLOCK.now() + settings.connect_within.total_seconds()
    while not stopping.is_set():
        try:
            async with AsyncExitStack() as attempt:
                worker = await unless_stopped(stopping, _connect(attempt, settings, stopping, counting))
                await stack.enter_async_context(attempt.pop_all())
                return worker
        except (AcquireError, NodeError, ServerUnreachable, ConfigurationError) as exc:
            if not _passes(exc):
                raise
            if SYSTEM_CLOCK.now() >= give_up_at:
                raise NotConnected(f"{exc}; gave up after {settings.connect_within}") from exc
            _LOG.warning("%s; trying again", exc)
            await unless_stopped(stopping, asyncio.sleep(_RETRY.total_seconds()))
    return None


async def _connect(
    stack: AsyncExitStack,
    settings: BotSettings,
    stopping: asyncio.Event,
    counting: PrometheusObserver | None,
) -> Worker:
    urls = settings.urls
    urls.require_redis()
    observers = await _observers(stack, settings)
    if counting is not None:
        observers.append(counting)
    pool = await stack.enter_async_context(connect_database(urls.database))
    await _check_schemas(pool)
    # The fence has its own pool: sealing a lease must not wait for the flow's connections.
    fence_pool = await stack.enter_async_context(connect_database(urls.database))
    guard = await urls.guard(
        fence=PostgresFence(fence_pool),
        ttl=settings.ttl,
        history=settings.history,
        observers=[LogObserver()] if counting is None else [LogObserver(), counting],
    )
    await stack.enter_async_context(guard)
    await guard.inspect("bot:start")  # raises if Redis does not answer
    # Importing ccxt's other hundred exchanges takes seconds, and a bot that starts late takes over late.
    import_lean(urls.exchange.ccxt_id)
    patience = Patience(search=settings.reads_lag)
    exchange = await stack.enter_async_context(connect_exchange(urls.exchange, patience=patience))
    if counting is not None:
        counting.expect(f"{exchange.name}:")
    if settings.receive_window is not None:
        exchange.exchange.options["recvWindow"] = round(settings.receive_window / timedelta(milliseconds=1))
    await _check_keys(exchange)
    pace = Pace(overdue=settings.alert_after)
    manager = AtomicPositionManager(
        guard, pool, [exchange], pace=pace, adopt=settings.adopt, observers=observers
    )
    book = SignalBook(pool, exchange.name)
    trader = Trader(
        guard,
        manager,
        exchange,
        book,
        age_max=settings.age_max,
        ends_max=settings.set_aside_after,
        leverage=urls.exchange.leverage,
    )
    sources = await _sources(stack, settings, book)
    return Worker(trader, manager, exchange.name, sources, settings.rhythm, stopping, observers=observers)


async def _observers(stack: AsyncExitStack, settings: BotSettings) -> list[PositionObserver]:
    observers: list[PositionObserver] = [LogPositions()]
    if settings.alerts:
        from lockguard_positions.alerts import AppriseAlerts  # noqa: PLC0415 - an optional dependency

        observers.append(
            await stack.enter_async_context(AppriseAlerts(settings.alerts, title="lockguard bot"))
        )
    return observers


async def _sources(stack: AsyncExitStack, settings: BotSettings, book: SignalBook) -> list[SignalSource]:
    ends_max = settings.set_aside_after
    sources: list[SignalSource] = [FileSource(name, book, ends_max=ends_max) for name in settings.files]
    if (stream := settings.stream) is not None:
        follow = not settings.rhythm.once
        connecting = StreamSource.connect(
            *(stream.url, stream.key, stream.group),
            claim_after=stream.claim_after,
            follow=follow,
            ends_max=settings.set_aside_after,
        )
        sources.append(await stack.enter_async_context(connecting))
    return sources


async def _check_schemas(pool: asyncpg.Pool[Any]) -> None:
    async with pool.acquire() as conn:
        found = await version(conn)
        if found < GIVEN_SINCE:
            raise ConfigurationError(
                f"the positions schema has version {found} and a bot needs {GIVEN_SINCE};"
                " 'lockguard positions migrate' brings it there"
            )
        if await schema_version(conn) == 0:
            raise ConfigurationError("the database has no fence; 'lockguard fence install' makes it")


async def _check_keys(exchange: GuardedExchange) -> None:
    try:
        await exchange.holdings()
    except ccxt_errors().AuthenticationError as exc:
        raise credentials_told(exchange.name, exc) from exc
    except ccxt_errors().BaseError as exc:
        _LOG.warning("%s does not show its positions yet: %s", exchange.name, type(exc).__name__)


def _passes(exc: LockguardError) -> bool:
    """Whether a retry may succeed without an operator's intervention."""
    if isinstance(exc, AcquireError | NodeError | ServerUnreachable):
        return True
    cause = exc.__cause__
    if isinstance(cause, DATABASE_ERRORS):
        return meaning_of(cause) in {Meaning.LOST, Meaning.UNAVAILABLE, Meaning.RETRY}
    network: type[BaseException] = ccxt_errors().NetworkError
    return isinstance(cause, network)
