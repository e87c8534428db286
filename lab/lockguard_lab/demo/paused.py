"""The third act: a holder is stopped inside the flow, a successor finishes, the holder resumes and writes.

Nothing here depends on timing. The holder reports that it has checked its lease and is about to write, and
blocks; it is stopped by SIGSTOP until its successor is done; then it is resumed, and sends the write that it
had prepared. The outcome is counted from Postgres: its log of what arrived and what it refused, and its
record of what was committed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from lockguard._clock import SYSTEM_CLOCK
from lockguard.errors import ConfigurationError
from lockguard_asyncpg import install
from lockguard_lab.child_process import Child
from lockguard_lab.demo import serverlog
from lockguard_lab.demo.history import HistoryLine, lock_key, peek
from lockguard_lab.demo.holder import unfenced
from lockguard_lab.demo.parts import EXCHANGE, LEASE_LOST, BotSettings
from lockguard_lab.statements import statement
from lockguard_positions._schema import migrate

if TYPE_CHECKING:
    from lockguard_lab.exchange import ExchangeRecord, LocalExchange
    from lockguard_lab.servers import PostgresServer

__all__ = ["BotProcesses", "CommittedWrite", "PausedResult", "Round", "Watch", "play", "prepare"]

_FILE = "demo.sql"
_HOLDER = "lockguard_lab.demo.holder"
_PATIENCE_S = 30.0
_LONGER_S = 0.25
"""How long the holder stays stopped after its successor finishes, so that the picture shows both."""

_SUCCESSOR = "lockguard_lab.demo.successor"


@dataclass(frozen=True, slots=True)
class CommittedWrite:
    """A committed write of a position, as recorded by a trigger in the database."""

    symbol: str
    status: str
    token: int
    application: str
    at_ms: float


@dataclass(frozen=True, slots=True)
class Watch:
    """The lock in Redis while the stopped holder had it.

    Attributes:
        key: the lock's key.
        fields: the answer of ``HGETALL``.
        remaining_ms: the answer of ``PTTL``, in milliseconds.
    """

    key: str
    fields: dict[str, str]
    remaining_ms: int


@dataclass(frozen=True, slots=True)
class Round:
    """One stopped holder and its successor.

    Attributes:
        watch: the lock in Redis while the holder was stopped.
        first_token: the token of the stopped holder.
        stopped_at_ms: when the holder was stopped, in milliseconds since 1970.
        resumed_at_ms: when the holder was resumed, in milliseconds since 1970.
        action: what the successor reports that it did.
        would_overwrite: whether the late write, sent without its check and rolled back, changes the row.
        sqlstate: the SQLSTATE of the late write; ``None`` if it was committed.
        row_status: the status of the row at the end.
        row_token: the token of the row at the end.
        exit_code: the exit code of the stopped holder.
        last_line: the last line of the stopped holder's error output.
        entries: how many orders opened or enlarged a position on the exchange.
        stops: how many stops wait on the exchange.
        rows: how many rows the symbol has.
    """

    symbol: str
    resource: str
    watch: Watch
    first_token: int
    stopped_at_ms: float
    resumed_at_ms: float
    action: str
    would_overwrite: bool
    sqlstate: str | None
    row_status: str
    row_token: int
    exit_code: int
    last_line: str
    entries: int
    stops: int
    rows: int

    @property
    def lost(self) -> bool:
        """Whether the stopped holder ended with ``LeaseLost``."""
        return self.exit_code == LEASE_LOST and self.last_line.startswith("LeaseLost")


@dataclass(frozen=True, slots=True)
class PausedResult:
    """The outcome of the third act.

    Attributes:
        attempted: late writes that reached Postgres, by its log.
        refusals: late writes that Postgres refused, by its log.
        committed: writes with a lower token than one committed before them, by the database's record.
        writes: all committed writes, in order.
        history: the history of the locks in Redis.
    """

    rounds: tuple[Round, ...]
    attempted: int
    refusals: tuple[serverlog.RefusedWrite, ...]
    committed: int
    writes: tuple[CommittedWrite, ...]
    history: tuple[HistoryLine, ...]
    seconds: float


class BotProcesses:
    """The processes of the third act, which can be started while the second act still runs.

    Args:
        part: the settings of each process.
        rounds: how many holders are needed.
    """

    def __init__(self, part: BotSettings, rounds: int) -> None:
        self.part = part
        self.successor = _child(_SUCCESSOR)
        self.holders = [_child(_HOLDER) for _ in range(rounds)]
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Start all processes; they become ready some time later."""
        for actor in (self.successor, *self.holders):
            await self._stack.enter_async_context(actor)
            await actor.write(self.part.encode())

    async def aclose(self) -> None:
        """End all processes."""
        await self._stack.aclose()


def _child(module: str) -> Child:
    return Child(module, patience_s=_PATIENCE_S, end_s=0)  # a holder may be stopped: it is killed at once


async def prepare(database_url: str) -> None:
    """Give the database its schema, its fence and its watcher."""
    conn: asyncpg.Connection[Any] = await asyncpg.connect(database_url)
    try:
        await install(conn)
        await migrate(conn)
        await conn.execute(statement("watch", _FILE))
    finally:
        await conn.close()


async def play(
    cast: BotProcesses,
    symbols: list[str],
    *,
    postgres: PostgresServer,
    exchange: LocalExchange,
    on_stopped: Callable[[str, Watch], None],
    on_progress: Callable[[float, str], None],
) -> PausedResult:
    """Play one round for each symbol.

    Args:
        cast: the processes, already started.
        symbols: the symbols in the table's spelling, one for each holder.
        postgres: the server, for its log.
        exchange: the exchange on which the processes trade, for its record.
        on_stopped: called with the lock in Redis while a stopped holder has it.
        on_progress: called with how many rounds are over, in fractions, and the current activity.

    Raises:
        ConfigurationError: a process ended early or does not answer.
    """
    began = SYSTEM_CLOCK.now()
    conn: asyncpg.Connection[Any] = await asyncpg.connect(cast.part.database_url)
    try:
        await cast.successor.expect("ready")
        rounds = []
        for number, (symbol, holder) in enumerate(zip(symbols, cast.holders, strict=True)):

            def tell(share: float, what: str, number: int = number) -> None:
                on_progress(number + share, what)

            stage = _Stage(cast.part.redis_url, conn, exchange, symbol, tell, on_stopped)
            rounds.append(await stage.play(holder, cast.successor))
        async with peek(cast.part.redis_url) as looking:
            history = await looking.histories()
        log = postgres.log
        return PausedResult(
            rounds=tuple(rounds),
            attempted=len(serverlog.arrived(log)),
            refusals=tuple(serverlog.refused(log)),
            committed=int(await conn.fetchval(statement("stale_committed", _FILE))),
            writes=tuple(CommittedWrite(**dict(row)) for row in await conn.fetch(statement("writes", _FILE))),
            history=tuple(history),
            seconds=SYSTEM_CLOCK.now() - began,
        )
    finally:
        await conn.close()


@dataclass(frozen=True, slots=True)
class _Stage:
    """The symbol of one round, and where its outcome is read."""

    redis_url: str
    conn: asyncpg.Connection[Any]
    exchange: LocalExchange
    symbol: str
    tell: Callable[[float, str], None]
    on_stopped: Callable[[str, Watch], None]

    async def play(self, holder: Child, successor: Child) -> Round:
        """Stop the holder, let the successor finish, resume the holder, and read the outcome."""
        resource = f"{EXCHANGE}:{self.symbol}"
        self.tell(0.0, "the holder opens a position")
        await holder.expect("ready")
        await holder.write(self.symbol)
        at = await holder.expect("stopped_at")
        await holder.suspend()
        stopped_at_ms = SYSTEM_CLOCK.wall() * 1000
        watch = await self._watch(resource)
        self.on_stopped(resource, watch)
        self.tell(0.3, "the holder is stopped, the successor waits")
        await successor.write(self.symbol)
        done = await successor.expect("done")
        self.tell(0.8, "the successor has finished, the holder wakes up")
        would_overwrite = await self._try_unfenced(at["position"], at["token"])
        await asyncio.sleep(_LONGER_S)
        await holder.write("go on")
        resumed_at_ms = SYSTEM_CLOCK.wall() * 1000
        holder.resume()
        wrote = await holder.expect("wrote")
        exit_code, last_line = await holder.ended()
        row = await self.conn.fetchrow(statement("row", _FILE), at["position"])
        if row is None:
            raise ConfigurationError(f"the row of {resource} has vanished; is somebody else in the database?")
        record: ExchangeRecord = self.exchange.record()
        self.tell(1.0, "")
        return Round(
            symbol=self.symbol,
            resource=resource,
            watch=watch,
            first_token=at["token"],
            stopped_at_ms=stopped_at_ms,
            resumed_at_ms=resumed_at_ms,
            action=done["action"],
            would_overwrite=would_overwrite,
            sqlstate=wrote["sqlstate"],
            row_status=row["status"],
            row_token=row["token"] or 0,
            exit_code=exit_code,
            last_line=last_line,
            entries=len(record.entries(self.symbol)),
            stops=len(record.open_stops(self.symbol)),
            rows=int(await self.conn.fetchval(statement("rows", _FILE), self.symbol)),
        )

    async def _watch(self, resource: str) -> Watch:
        key = lock_key(resource)
        async with peek(self.redis_url) as looking:
            return Watch(key, await looking.hash(key), await looking.remaining_ms(key))

    async def _try_unfenced(self, position_id: int, token: int) -> bool:
        """Send the late write without its check and roll it back; returns whether it changed the row.

        A refusal would prove nothing if the write had no effect anyway.
        """
        transaction = self.conn.transaction()
        await transaction.start()
        try:
            answer = await self.conn.execute(unfenced(position_id, _ANY_PRICE, token))
            return answer == "UPDATE 1"
        finally:
            await transaction.rollback()


_ANY_PRICE = "1"
