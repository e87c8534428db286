"""Positions and intents in Postgres: every write of state through the fence.

A write is one transaction that first presents the lease's (token, grant); Postgres refuses it when they are
not in force, and the token is kept in the row. Each names the status that it was decided on, and the row that
comes back is checked. The lease makes the reads final: nothing older than it can commit after it was sealed.

**Not fenced:** :meth:`PositionStore.tick` alone, which writes ``current_price`` and ``unrealized_pnl``. They
are opinions of the moment; no decision is taken on them, and they must not queue behind an open.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from lockguard_asyncpg import CommitUnknown, fenced_transaction, resolve
from lockguard_asyncpg.errors import DATABASE_ERRORS, Meaning, meaning_of
from lockguard_ccxt import Side, Step, client_order_id
from lockguard_positions.errors import DuplicatePosition, PositionChanged
from lockguard_positions.model import Intent, IntentOutcome, NewPosition, Position, PositionSide, Progress
from lockguard_positions.statements import statement
from lockguard_positions.status import PositionStatus, check_transition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from asyncpg.pool import PoolConnectionProxy

    from lockguard.lease import Lease

    _Connection: TypeAlias = asyncpg.Connection[Any] | PoolConnectionProxy[Any]

__all__ = ["PositionStore"]

T = TypeVar("T")

_ATTEMPTS_MAX = 5
_PAUSE_FIRST_S = 0.05
_WORTH_REPEATING = frozenset({Meaning.RETRY, Meaning.LOST, Meaning.UNAVAILABLE})


class PositionStore:
    """The rows of one database.

    Args:
        pool: an asyncpg pool on the primary.
    """

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool

    # --- reading ---

    async def open_of(self, exchange: str, symbol: str) -> Position | None:
        """The open position of a symbol, in any of the open statuses."""
        return _position_or_none(await self._pool.fetchrow(statement("open_of_symbol"), exchange, symbol))

    async def open_on(self, exchange: str) -> tuple[Position, ...]:
        """All open positions of an exchange."""
        rows = await self._pool.fetch(statement("open_of_exchange"), exchange)
        return tuple(_position(row) for row in rows)

    async def get(self, position_id: int) -> Position | None:
        """One position."""
        return _position_or_none(await self._pool.fetchrow(statement("by_id"), position_id))

    async def last_ended(self, exchange: str, symbol: str) -> Position | None:
        """The position of a symbol that was on the exchange and ended last."""
        return _position_or_none(await self._pool.fetchrow(statement("last_ended"), exchange, symbol))

    async def in_doubt(self, position: Position, *steps: Step) -> Intent | None:
        """The newest intent of a position whose outcome is not known."""
        row = await self._pool.fetchrow(statement("intent_in_doubt"), position.id, [s.value for s in steps])
        return None if row is None else replace(_intent(row), sent_before=True)

    async def loose_stops(self, exchange: str, symbol: str) -> tuple[Intent, ...]:
        """Stops of ended positions that may still be on the exchange."""
        rows = await self._pool.fetch(statement("loose_stops"), exchange, symbol)
        return tuple(replace(_intent(row), sent_before=True) for row in rows)

    async def symbols_with_loose_stops(self, exchange: str) -> tuple[str, ...]:
        """The symbols that :meth:`loose_stops` has something for."""
        rows = await self._pool.fetch(statement("symbols_with_loose_stops"), exchange)
        return tuple(row[0] for row in rows)

    async def stop_ids(self, position: Position) -> frozenset[str]:
        """The client ids of every stop that was ever meant for a position."""
        rows = await self._pool.fetch(statement("stop_ids"), position.id)
        return frozenset(row[0] for row in rows)

    # --- the way in ---

    async def begin(self, lease: Lease, new: NewPosition) -> Progress:
        """A row in ``pending_entry`` and the intent to enter, before anything is ordered.

        Raises:
            DuplicatePosition: there is an open row.
        """

        async def work(conn: _Connection) -> Progress:
            position = await _insert(conn, lease, new, PositionStatus.PENDING_ENTRY, None)
            intent = await _intend(conn, lease, position, Step.ENTRY, new.side.entry, new.quantity, None)
            row = await conn.fetchrow(
                statement("expect_entry"), *_is(position), intent.client_id, intent.number, lease.token
            )
            return Progress(_changed(position, row), intent)

        return await self._write(lease, work)

    async def refuse(self, lease: Lease, new: NewPosition, error: str) -> Position:
        """A row that says why a signal was refused before any order."""

        async def work(conn: _Connection) -> Position:
            return await _insert(conn, lease, new, PositionStatus.FAILED, error)

        return await self._write(lease, work)

    async def adopt(self, lease: Lease, new: NewPosition) -> Position:
        """A row for a position that the exchange has and the table has not.

        Raises:
            DuplicatePosition: there is an open row.
        """

        async def work(conn: _Connection) -> Position:
            return await _insert(conn, lease, new, PositionStatus.ENTRY_PLACED, None)

        return await self._write(lease, work)

    async def record_entry(
        self,
        lease: Lease,
        position: Position,
        intent: Intent | None,
        *,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
    ) -> Position:
        """The entry was executed."""

        async def work(conn: _Connection) -> Position:
            check_transition(position.status, PositionStatus.ENTRY_PLACED)
            row = await conn.fetchrow(
                statement("record_entry"), *_is(position), order_id, price, quantity, lease.token
            )
            if intent is not None:
                await _settle(conn, position, intent, IntentOutcome.EXECUTED, order_id)
            return _changed(position, row)

        return await self._write(lease, work)

    async def expect_stop(self, lease: Lease, position: Position, trigger: Decimal) -> Progress:
        """The intent to place a stop; a new one each time, as an old one may still be on its way."""

        async def work(conn: _Connection) -> Progress:
            if position.status is not PositionStatus.PENDING_SL:
                check_transition(position.status, PositionStatus.PENDING_SL)
            intent = await _intend(
                conn, lease, position, Step.STOP, position.side.exit, position.quantity, trigger
            )
            row = await conn.fetchrow(
                statement("expect_stop"),
                *_is(position),
                trigger,
                intent.client_id,
                intent.number,
                lease.token,
            )
            return Progress(_changed(position, row), intent)

        return await self._write(lease, work)

    async def activate(self, lease: Lease, position: Position, intent: Intent, order_id: str) -> Position:
        """The stop stands, and with it the position.

        Raises:
            DuplicatePosition: another row of the symbol is active; this one must be rolled back.
        """

        async def work(conn: _Connection) -> Position:
            check_transition(position.status, PositionStatus.ACTIVE)
            row = await conn.fetchrow(statement("activate"), *_is(position), order_id, lease.token)
            await _settle(conn, position, intent, IntentOutcome.EXECUTED, order_id)
            return _changed(position, row)

        return await self._write(lease, work)

    # --- the way out ---

    async def expect_close(self, lease: Lease, position: Position, reason: str) -> Progress:
        """The intent to close, with the reason, so that a successor knows how to finish."""

        async def work(conn: _Connection) -> Progress:
            intent = await _intend(
                conn, lease, position, Step.CLOSE, position.side.exit, position.quantity, None
            )
            row = await conn.fetchrow(
                statement("expect_close"),
                *_is(position),
                intent.client_id,
                reason,
                intent.number,
                lease.token,
            )
            return Progress(_changed(position, row), intent)

        return await self._write(lease, work)

    async def finish(
        self,
        lease: Lease,
        position: Position,
        status: PositionStatus,
        *,
        intent: Intent | None = None,
        outcome: IntentOutcome = IntentOutcome.EXECUTED,
        reason: str | None = None,
        price: Decimal | None = None,
        order_id: str | None = None,
        error: str | None = None,
    ) -> Position:
        """The position has ended; ``intent`` is settled with it."""

        async def work(conn: _Connection) -> Position:
            check_transition(position.status, status)
            row = await conn.fetchrow(
                statement("finish"), *_is(position), status.value, reason, price, order_id, error, lease.token
            )
            if intent is not None:
                await _settle(conn, position, intent, outcome, order_id, error)
            return _changed(position, row)

        return await self._write(lease, work)

    async def settle(
        self,
        lease: Lease,
        position: Position,
        intent: Intent,
        outcome: IntentOutcome,
        *,
        order_id: str | None = None,
        details: str | None = None,
    ) -> None:
        """What became of an intent, where nothing else changes."""

        async def work(conn: _Connection) -> None:
            await _settle(conn, position, intent, outcome, order_id, details)

        await self._write(lease, work)

    async def note_error(self, lease: Lease, position: Position, error: str) -> Position:
        """What is in the way, for people; the status stays."""

        async def work(conn: _Connection) -> Position:
            row = await conn.fetchrow(statement("note_error"), *_is(position), error, lease.token)
            return _changed(position, row)

        return await self._write(lease, work)

    # --- not fenced ---

    async def tick(self, position_id: int, price: Decimal) -> bool:
        """The last price, and what the position would be worth: written without a lease, on purpose.

        Returns:
            Whether the position is active.
        """
        return await self._pool.fetchval(statement("tick"), position_id, price) is not None

    # --- inside ---

    async def _write(self, lease: Lease, work: Callable[[_Connection], Awaitable[T]]) -> T:
        """Run ``work`` in a fenced transaction, again while it certainly was not done and may yet be.

        The pauses end long before the lease does, or the lease's end cancels them: either way the next
        holder finds the intent.
        """
        for attempt in range(1, _ATTEMPTS_MAX + 1):
            done: list[T] = []
            try:
                async with fenced_transaction(self._pool, lease) as conn:
                    done.append(await work(conn))
            except CommitUnknown as unknown:
                if await resolve(self._pool, unknown):
                    return done[0]
            except asyncpg.UniqueViolationError as exc:
                raise await self._duplicate(lease, exc) from exc
            except DATABASE_ERRORS as exc:
                if attempt == _ATTEMPTS_MAX or meaning_of(exc) not in _WORTH_REPEATING:
                    raise
            else:
                return done[0]
            await asyncio.sleep(_PAUSE_FIRST_S * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _duplicate(self, lease: Lease, exc: asyncpg.UniqueViolationError) -> DuplicatePosition:
        exchange, _, symbol = lease.resource.partition(":")
        existing = await self.open_of(exchange, symbol)
        return DuplicatePosition(
            f"{lease.resource!r} has an open position already ({exc.constraint_name})",
            existing_id=None if existing is None else existing.id,
        )


async def _insert(
    conn: _Connection, lease: Lease, new: NewPosition, status: PositionStatus, error: str | None
) -> Position:
    check_transition(None, status)
    row = await conn.fetchrow(
        statement("insert_position"),
        new.exchange,
        new.symbol,
        new.side.value,
        new.quantity,
        status.value,
        new.signal_id,
        new.entry_price,
        new.stop_loss_percent,
        error,
        lease.token,
    )
    assert row is not None
    return _position(row)


async def _intend(
    conn: _Connection,
    lease: Lease,
    position: Position,
    step: Step,
    side: Side,
    amount: Decimal,
    trigger: Decimal | None,
) -> Intent:
    number = int(await conn.fetchval(statement("next_intent"), position.exchange, position.symbol))
    row = await conn.fetchrow(
        statement("insert_intent"),
        position.exchange,
        position.symbol,
        number,
        position.id,
        step.value,
        client_order_id(lease.resource, number, step),
        side,
        amount,
        trigger,
        lease.token,
    )
    assert row is not None
    return _intent(row)


async def _settle(
    conn: _Connection,
    position: Position,
    intent: Intent,
    outcome: IntentOutcome,
    order_id: str | None,
    details: str | None = None,
) -> None:
    key = (position.exchange, position.symbol, intent.number)
    await conn.fetchval(statement("settle_intent"), *key, outcome.value, order_id, details)


def _is(position: Position) -> tuple[int, str]:
    """The row and the status that a change was decided on."""
    return position.id, position.status.value


def _changed(position: Position, row: asyncpg.Record | None) -> Position:
    if row is None:
        raise PositionChanged(
            f"position {position.id} is no longer {position.status.value}, though its lease is held:"
            " somebody wrote past the fence",
            position_id=position.id,
        )
    return _position(row)


def _position_or_none(row: asyncpg.Record | None) -> Position | None:
    return None if row is None else _position(row)


def _position(row: asyncpg.Record) -> Position:
    values = dict(row)
    return Position(
        **{**values, "side": PositionSide(values["side"]), "status": PositionStatus(values["status"])}
    )


def _intent(row: asyncpg.Record) -> Intent:
    return Intent(
        number=row["number"],
        position_id=row["position_id"],
        step=Step(row["step"]),
        client_id=row["client_id"],
        side=row["side"],
        amount=row["amount"],
        trigger=row["trigger_price"],
        age_ms=row["age_ms"],
    )
