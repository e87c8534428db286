"""The decisions on signals, in ``monitoring.signals`` and in the rows of their positions.

A decision is written after the work it records, under the same lease. A bot that dies between the two leaves
a row that names the signal, committed together with its intent. So the next bot that receives the signal
finds its outcome and does nothing twice.

What a signal has done counts from its row on, and not from its decision: a bot that carries out an earlier
signal of the symbol meanwhile must not undo it. So a bot that begins a signal records when it was given.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lockguard_asyncpg import fenced_transaction
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_bot._signals import OpenSignal
from lockguard_positions import _rows as rows
from lockguard_positions._rows import statement
from lockguard_tenacity import retry_reads

if TYPE_CHECKING:
    import asyncpg

    from lockguard._lease import Lease
    from lockguard_bot._signals import CloseSignal, Signal
    from lockguard_positions._model import Position

__all__ = ["Decision", "Outcome", "Place", "SignalBook", "exit_reason"]

_FILE = "signals.sql"
_END_S = 2.0
_LINE = "line:"
"""Prefix of the key of a line being read. Attempts at a signal have the signal's id as their key."""
_GIVEN = "given:"
"""Prefix of the key of the row that says when a signal was given; it stays until the signal is decided."""
_EXIT_FOR = "signal "
_STILL_READING_S = 60.0


class Outcome(StrEnum):
    """The outcome of a signal."""

    OPENED = "opened"
    ALREADY_OPEN = "already open"
    CLOSED = "closed"
    NOTHING_OPEN = "nothing open"
    OVERTAKEN = "overtaken"
    """A later signal for the symbol was decided first, and it stands whichever bot was killed meanwhile."""
    REFUSED = "refused"
    SET_ASIDE = "set aside"
    """Bot after bot died over the signal, so no further bot tries it: an operator must look at it."""
    UNDECIDED = "undecided"
    """A server did not answer, or an order's outcome is unknown: the signal is to be tried again."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on a signal.

    Attributes:
        details: the readable reason or result.
        position_id: the position that the signal opened, closed or found open.
        known: whether the signal was decided before this delivery.
    """

    outcome: Outcome
    details: str
    position_id: int | None = None
    known: bool = False

    @property
    def final(self) -> bool:
        """Whether the decision stands, so that the signal is not tried again."""
        return self.outcome is not Outcome.UNDECIDED


@dataclass(frozen=True, slots=True)
class Place:
    """A signal's place in time.

    Attributes:
        age_s: its age in seconds, negative if it lies ahead; ``None`` if it is undated.
        overtaken_by: the id of a later signal for the symbol that was already carried out, else ``None``.
        under_way: the id of a later one that was begun and may still come to nothing, else ``None``.
    """

    age_s: float | None
    overtaken_by: str | None
    under_way: str | None


class SignalBook:
    """The decisions in one database; an undecided signal must be looked up under the lease of its symbol.

    Args:
        pool: connects to the database that has the tables.
        exchange: the exchange's name, as in the lock's name.
    """

    def __init__(self, pool: asyncpg.Pool[Any], exchange: str) -> None:
        self._pool = pool
        self._exchange = exchange
        # The process id is not unique: it repeats each time a container restarts.
        self._bot = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._not_ended: set[str] = set()

    async def decided(self, signal: Signal, symbol: str) -> Decision | None:
        """The decision on a signal; ``None`` if it is undecided.

        If another action or symbol used the signal's id before, the decision is a refusal.
        """
        row = await self._row("decided", _FILE, self._exchange, signal.id)
        if row is None:
            return None
        if (row["action"], row["symbol"]) != (_action(signal), symbol):
            return Decision(
                Outcome.REFUSED,
                f"its id was used before, to {row['action']} {row['symbol']}; give each signal its own",
                row["position_id"],
            )
        return Decision(Outcome(row["outcome"]), row["details"], row["position_id"], known=True)

    async def place(self, signal: Signal, symbol: str) -> Place:
        """The age of a signal, and the later signals for the symbol that came first or may have."""
        row = await self._row("place", _FILE, self._exchange, symbol, signal.at, _GIVEN, _EXIT_FOR)
        assert row is not None
        return Place(row["age_s"], row["overtaken_by"], row["under_way"])

    async def opened_by(self, signal: Signal, symbol: str) -> Position | None:
        """The last row created for a signal."""
        return rows.position_or_none(
            await self._row("opened_by_signal", "positions.sql", self._exchange, symbol, signal.id)
        )

    async def closed_for(self, reason: str, symbol: str) -> Position | None:
        """The last row that was closed, or is being closed, for ``reason``."""
        return rows.position_or_none(
            await self._row("closed_for_reason", "positions.sql", self._exchange, symbol, reason)
        )

    async def withdrawn_for(self, reason: str, symbol: str) -> int | None:
        """The id of the row whose exit for ``reason`` was withdrawn because the held position had changed."""
        row = await self._row(
            "withdrawn_for_reason", "positions.sql", self._exchange, symbol, f"{rows.WITHDRAWN}{reason}"
        )
        return None if row is None else int(row["position_id"])

    async def begin(self, signal: Signal, symbol: str) -> tuple[str, ...]:
        """Record that this bot is carrying out a signal; called under the lease of ``symbol``.

        Returns:
            The bots that began before and recorded no end: they died while carrying it out.
        """
        await self._end_late()
        given = (_GIVEN, symbol, signal.at)
        rows = await self._pool.fetch(
            statement("begin_attempt", _FILE), self._exchange, signal.id, self._bot, *given
        )
        return tuple(row["bot"] for row in rows)

    async def end(self, signal: Signal) -> None:
        """Record that this bot's attempt has ended; if the database does not answer, a later call does it."""
        self._not_ended.add(signal.id)
        with suppress(TimeoutError, *DATABASE_ERRORS):
            async with asyncio.timeout(_END_S):
                await self._end_late()

    async def _end_late(self) -> None:
        for signal_id in tuple(self._not_ended):
            await self._pool.execute(statement("end_attempt", _FILE), self._exchange, signal_id, self._bot)
            self._not_ended.discard(signal_id)

    async def begin_reading(self, line: str) -> int:
        """Record that this bot is reading a line of a file.

        Returns:
            How many bots began more than a minute ago and recorded no end: they died while reading it. Two
            bots may read the same file concurrently, so a bot that began just now is not counted.
        """
        args = (self._exchange, f"{_LINE}{line}", self._bot, _STILL_READING_S)
        return int(await self._pool.fetchval(statement("begin_reading", _FILE), *args))

    async def end_reading(self, line: str) -> None:
        """Record that a line was read, so it is not what killed other bots."""
        await self._pool.execute(statement("end_all_attempts", _FILE), self._exchange, f"{_LINE}{line}")

    async def record(self, lease: Lease, signal: Signal, symbol: str, decision: Decision) -> None:
        """Write a decision under ``lease``.

        Raises:
            StaleToken: a newer lease was granted; nothing was written.
        """
        async with fenced_transaction(self._pool, lease) as conn:
            await conn.execute(
                statement("record", _FILE),
                self._exchange,
                signal.id,
                symbol,
                _action(signal),
                signal.at,
                decision.outcome.value,
                decision.position_id,
                decision.details,
                lease.token,
            )
            await conn.execute(statement("end_decided", _FILE), self._exchange, signal.id, _GIVEN)

    @retry_reads()
    async def _row(self, name: str, file: str, *args: object) -> asyncpg.Record | None:
        return await self._pool.fetchrow(statement(name, file), *args)


def exit_reason(signal: CloseSignal) -> str:
    """The reason that a row's exit has when a signal asked for it."""
    return f"{_EXIT_FOR}{signal.id}"


def _action(signal: Signal) -> str:
    return "open" if isinstance(signal, OpenSignal) else "close"
