"""What was decided about signals, in ``monitoring.signals`` and in the rows of their positions.

A decision is written after what it is about, under the same lease. A bot that dies between the two leaves a
row that names the signal, committed together with its intent; so the next one that gets the signal finds
what became of it and does nothing twice.
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
from lockguard_positions._statements import statement
from lockguard_tenacity import retry_reads

if TYPE_CHECKING:
    import asyncpg

    from lockguard._lease import Lease
    from lockguard_bot._signals import Signal
    from lockguard_positions._model import Position

__all__ = ["Decision", "Outcome", "Place", "SignalBook"]

_FILE = "signals.sql"
_END_S = 2.0
_LINE = "line:"
"""What the names of lines that are being read begin with, where attempts at signals have the signals' ids."""
_STILL_READING_S = 60.0


class Outcome(StrEnum):
    """What came of a signal."""

    OPENED = "opened"
    ALREADY_OPEN = "already open"
    CLOSED = "closed"
    NOTHING_OPEN = "nothing open"
    OVERTAKEN = "overtaken"
    """A later signal of the symbol was decided first: the last word stands, whoever was killed meanwhile."""
    REFUSED = "refused"
    SET_ASIDE = "set aside"
    """It ended one process after the other, so no further one is let near it: for a person."""
    UNDECIDED = "undecided"
    """Somebody did not answer, or an order is in doubt: to be tried again."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a signal.

    Attributes:
        details: for people.
        position_id: what it opened, closed or met.
        known: whether it had been decided before this delivery.
    """

    outcome: Outcome
    details: str
    position_id: int | None = None
    known: bool = False

    @property
    def final(self) -> bool:
        """Whether this is how it stays."""
        return self.outcome is not Outcome.UNDECIDED


@dataclass(frozen=True, slots=True)
class Place:
    """Where a signal stands in time.

    Attributes:
        age_s: how old it is; ``None`` when it does not say.
        overtaken_by: a later signal of the symbol that was decided already.
    """

    age_s: float | None
    overtaken_by: str | None


class SignalBook:
    """The decisions of one database; what is not decided yet is asked under the lease of its symbol.

    Args:
        pool: of the database that has the tables.
        exchange: the venue, as in the lock's name.
    """

    def __init__(self, pool: asyncpg.Pool[Any], exchange: str) -> None:
        self._pool = pool
        self._exchange = exchange
        # Not the process id alone: a container's first process has the same one each time.
        self._bot = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._not_ended: set[str] = set()

    async def decided(self, signal: Signal, symbol: str) -> Decision | None:
        """What was decided about a signal before."""
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
        """Where a signal stands in time."""
        row = await self._row("place", _FILE, self._exchange, symbol, signal.at)
        assert row is not None
        return Place(row["age_s"], row["overtaken_by"])

    async def opened_by(self, signal: Signal, symbol: str) -> Position | None:
        """The last row that was made for a signal."""
        return rows.position_or_none(
            await self._row("opened_by_signal", "positions.sql", self._exchange, symbol, signal.id)
        )

    async def closed_for(self, reason: str, symbol: str) -> Position | None:
        """The last row that was closed, or is being closed, for a reason."""
        return rows.position_or_none(
            await self._row("closed_for_reason", "positions.sql", self._exchange, symbol, reason)
        )

    async def withdrawn_for(self, reason: str, symbol: str) -> int | None:
        """The row whose exit was asked for with a reason, and not made, as what is held had changed."""
        row = await self._row(
            "withdrawn_for_reason", "positions.sql", self._exchange, symbol, f"{rows.WITHDRAWN}{reason}"
        )
        return None if row is None else int(row["position_id"])

    async def begin(self, signal: Signal) -> tuple[str, ...]:
        """Say that a signal is being carried out here; asked under the lease of its symbol.

        Returns:
            The bots that said so before and never that they had ended it: they ended themselves.
        """
        await self._end_late()
        rows = await self._pool.fetch(statement("begin_attempt", _FILE), self._exchange, signal.id, self._bot)
        return tuple(row["bot"] for row in rows)

    async def end(self, signal: Signal) -> None:
        """Say that it is not carried out here any more; what cannot be said now is said later."""
        self._not_ended.add(signal.id)
        with suppress(TimeoutError, *DATABASE_ERRORS):
            async with asyncio.timeout(_END_S):
                await self._end_late()

    async def _end_late(self) -> None:
        for signal_id in tuple(self._not_ended):
            await self._pool.execute(statement("end_attempt", _FILE), self._exchange, signal_id, self._bot)
            self._not_ended.discard(signal_id)

    async def begin_reading(self, line: str) -> int:
        """Say that a line of a file is being read here.

        Returns:
            How many bots said so longer than a minute ago and never that they had read it: they ended. Two
            bots may read the same file at once, so who began just now is not counted.
        """
        args = (self._exchange, f"{_LINE}{line}", self._bot, _STILL_READING_S)
        return int(await self._pool.fetchval(statement("begin_reading", _FILE), *args))

    async def end_reading(self, line: str) -> None:
        """It is read, so it is not what ended others."""
        await self._pool.execute(statement("end_all_attempts", _FILE), self._exchange, f"{_LINE}{line}")

    async def record(self, lease: Lease, signal: Signal, symbol: str, decision: Decision) -> None:
        """Write a decision down.

        Raises:
            StaleToken: the lease has passed on; nothing was written.
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
            await conn.execute(statement("end_all_attempts", _FILE), self._exchange, signal.id)

    @retry_reads()
    async def _row(self, name: str, file: str, *args: object) -> asyncpg.Record | None:
        return await self._pool.fetchrow(statement(name, file), *args)


def _action(signal: Signal) -> str:
    return "open" if isinstance(signal, OpenSignal) else "close"
