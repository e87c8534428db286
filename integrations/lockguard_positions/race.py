"""The race kit: the flow under load in real processes, with the guard and without.

A race makes a scratch database on the given server, starts its processes, lines them up, lets them go at the
same time, and counts what went wrong from the database's rows and the exchange's own record. What the
processes believe is not evidence.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from lockguard import LockGuard
from lockguard.clock import SYSTEM_CLOCK
from lockguard.errors import AcquireError, ConfigurationError
from lockguard_asyncpg import install
from lockguard_ccxt.testing import ControlClient, Execution, Fault, FaultKind, Operation
from lockguard_positions.race_crew import Crew
from lockguard_positions.race_expiry import Expiry
from lockguard_positions.race_faults import mixed_faults
from lockguard_positions.race_score import Score, score_round
from lockguard_positions.race_settings import (
    SCENARIOS,
    Crewman,
    RaceResult,
    RaceSettings,
    Report,
    Scenario,
    StaleWrites,
)
from lockguard_positions.schema import migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

__all__ = ["SCENARIOS", "RaceResult", "RaceSettings", "Scenario", "StaleWrites", "run_race"]

T = TypeVar("T")

_OLD_SCHEMA = 1
_PROBE = "race:probe"
_RETRY_S = 0.5
_CONNECT_S = 5.0
_REFUSED_STOP = -4131  # the counterparty's best price does not meet the percentage filter


async def run_race(
    settings: RaceSettings, *, on_progress: Callable[[int, int], None] | None = None
) -> RaceResult:
    """Run a race.

    Args:
        settings: what to run, and on which servers.
        on_progress: called with the opens that have ended and the opens in all.

    Raises:
        ConfigurationError: a server cannot be reached or does not let a race be run; one line says which
            and what to do.
    """
    started = SYSTEM_CLOCK.now()
    total, score = Report(), Score()
    ended = begun = expired = 0

    def count(opens: int) -> None:
        nonlocal ended
        # Where several open the same symbol, it counts once.
        ended += opens
        if on_progress is not None:
            done = ended // settings.openers_per_symbol
            on_progress(min(begun, done), settings.opens if settings.duration_s is None else begun)

    async with AsyncExitStack() as stack:
        control = await stack.enter_async_context(ControlClient(settings.exchange_url))
        symbols = await _symbols(settings, control)
        await _reach_redis(settings)
        name, database_url = await stack.enter_async_context(_scratch_database(settings))
        conn = await asyncpg.connect(database_url)
        stack.push_async_callback(conn.close)
        await _prepare(settings, conn)
        mine = _with_database(settings, database_url)
        crewmen = [Crewman(mine, role, number) for number, role in enumerate(settings.roles())]
        async with Crew(crewmen, count) as crew:
            for number, batch in enumerate(_rounds(settings, symbols)):
                begun += len(batch)
                await _begin_round(settings, control, batch)
                for fault in mixed_faults(batch, settings.faults, settings.seed + number):
                    await control.inject(fault)
                async with Expiry(settings, batch, settings.seed + number) as expiry:
                    report = await crew.play(batch, settings.seed + number)
                expired += expiry.count
                report.add(await crew.settle())
                record = await control.record()
                score += await score_round(conn, record, violations=report.violations, guard=settings.guard)
                total.add(report)
    result = _result(settings, total, score, begun, SYSTEM_CLOCK.now() - started)
    return replace(result, leases_expired=expired, database=name if settings.keep_database else None)


def _result(settings: RaceSettings, total: Report, score: Score, opens: int, seconds: float) -> RaceResult:
    return RaceResult(
        settings=settings,
        opens=opens,
        duplicates=score.duplicates,
        overlapping_rows=score.overlapping_rows,
        unique_violations=score.unique_violations,
        double_entries=score.double_entries,
        reversed_positions=score.reversed_positions,
        without_stop=score.without_stop,
        orphan_stops=score.orphan_stops,
        stale_writes=StaleWrites(
            attempted=total.stale_refused + score.stale_committed,
            refused=total.stale_refused,
            committed=score.stale_committed,
        ),
        skipped=total.skipped,
        passes=total.passes,
        rolled_back=score.rolled_back,
        not_opened=total.failed,
        errors=tuple(total.errors),
        open_ms_median=statistics.median(total.open_ms) if total.open_ms else None,
        seconds=seconds,
    )


def _rounds(settings: RaceSettings, symbols: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The symbols of each round; each symbol is opened once in a round, by whoever opens it."""
    size = len(symbols)
    if settings.duration_s is None:
        yield from (symbols[: min(size, settings.opens - start)] for start in range(0, settings.opens, size))
        return
    until = SYSTEM_CLOCK.now() + settings.duration_s
    while SYSTEM_CLOCK.now() < until:
        yield symbols


async def _begin_round(settings: RaceSettings, control: ControlClient, symbols: tuple[str, ...]) -> None:
    await control.reset()
    await control.set_latency(timedelta(milliseconds=settings.latency_ms))
    if settings.scenario != "C":
        return
    for symbol in symbols:
        await control.inject(
            Fault(
                FaultKind.REJECTED,
                Operation.CREATE_ALGO,
                Execution.NEVER,
                symbol=symbol,
                code=_REFUSED_STOP,
                message="The counterparty's best price does not meet the PERCENT_PRICE filter limit.",
            )
        )


# --- the servers ---


async def _patiently(
    settings: RaceSettings,
    attempt: Callable[[], Awaitable[T]],
    what: str,
    passing: tuple[type[Exception], ...],
) -> T:
    """Try until it works: in a composition of containers, the servers come up in any order."""
    until = SYSTEM_CLOCK.now() + settings.connect_s
    worth_waiting: tuple[type[Exception], ...] = (OSError, TimeoutError, *passing)
    while True:
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await attempt()
        except worth_waiting as exc:
            if SYSTEM_CLOCK.now() >= until:
                raise ConfigurationError(
                    f"{what} could not be reached in {settings.connect_s:g} s: {_line(exc)}"
                ) from exc
            await asyncio.sleep(_RETRY_S)


def _line(exc: BaseException) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__


async def _symbols(settings: RaceSettings, control: ControlClient) -> tuple[str, ...]:
    where = f"exchange {settings.exchange_url}"
    found = await _patiently(settings, control.symbols, where, (ConfigurationError,))
    perpetuals = tuple(symbol for symbol in found if "_" not in symbol)
    return perpetuals[: settings.symbols] if settings.symbols else perpetuals


async def _reach_redis(settings: RaceSettings) -> None:
    if not settings.guard:
        return
    async with LockGuard.from_urls(settings.redis_urls) as guard:
        where = f"Redis {', '.join(map(_without_password, settings.redis_urls))}"
        await _patiently(settings, lambda: guard.inspect(_PROBE), where, (AcquireError,))


@asynccontextmanager
async def _scratch_database(settings: RaceSettings) -> AsyncIterator[tuple[str, str]]:
    """A database for this race alone: nobody's rows are touched."""
    where = f"Postgres {_without_password(settings.database_url)}"
    try:
        conn: asyncpg.Connection[Any] = await _patiently(
            settings, lambda: asyncpg.connect(settings.database_url), where, (asyncpg.CannotConnectNowError,)
        )
    except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as exc:
        raise ConfigurationError(f"{where} let nobody in: {_line(exc)}; check its URL") from exc
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


async def _prepare(settings: RaceSettings, conn: asyncpg.Connection[Any]) -> None:
    if settings.guard:
        await install(conn)
    await migrate(conn, to=None if settings.guard else _OLD_SCHEMA)


def _with_database(settings: RaceSettings, database_url: str) -> RaceSettings:
    values = {name: getattr(settings, name) for name in settings.__slots__}
    return RaceSettings(**{**values, "database_url": database_url})


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{host}{parts.path}"
