"""Positions and intents in Postgres; every write of state passes the fence.

A write is one transaction that first presents the lease's (token, grant); Postgres refuses it when they are
not in force, and the token is kept in the row. Each write names the status that it was decided on, and the
returned row is checked. Reads under a lease are final: once the lease is sealed, no older write can commit.

**Not fenced:** only :meth:`PositionStore.tick`, which writes ``current_price`` and ``unrealized_pnl``. No
decision is based on these estimates, and writing them must not queue behind an open.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import asyncpg

from lockguard.errors import ConfigurationError
from lockguard_ccxt import Step
from lockguard_positions import _rows as rows
from lockguard_positions._errors import DuplicatePosition
from lockguard_positions._model import Intent, IntentOutcome, NewPosition, Position, Progress
from lockguard_positions._part_writes import PartWrites
from lockguard_positions._rows import statement
from lockguard_positions._status import PositionStatus, check_transition
from lockguard_tenacity import retry_reads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard._lease import Lease
    from lockguard.errors import StaleToken
    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._events import CommitResolved

__all__ = ["PositionStore"]

Then: TypeAlias = "Callable[[Progress], Awaitable[None]]"

_ILLEGAL_CHANGE = "LG102"
_ONE_OPEN = frozenset({"idx_unique_open_position", "idx_unique_active_position"})


class PositionStore(PartWrites):
    """Reads and writes the rows of one database.

    Args:
        pool: an asyncpg pool on the primary.
        on_stale: called for each write that Postgres refused, before its error is raised.
        on_settled: called with what became of an intent whose order was in doubt, once that is committed.
        on_resolved: called with what became of a commit whose reply was lost.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[Any],
        *,
        on_stale: Callable[[StaleToken], None] | None = None,
        on_settled: Callable[[Position, Intent, IntentOutcome], None] | None = None,
        on_resolved: Callable[[CommitResolved], None] | None = None,
    ) -> None:
        super().__init__(pool, on_stale=on_stale, on_resolved=on_resolved)
        self._on_settled = on_settled
        self._has_market = False
        self._has_fill_with_stop = False

    # --- reading ---

    async def open_of(self, exchange: str, symbol: str) -> Position | None:
        """The open position of a symbol, in any of the open statuses."""
        return rows.position_or_none(await self._row("open_of_symbol", exchange, symbol))

    async def all_open_of(self, exchange: str, symbol: str) -> tuple[Position, ...]:
        """Every open position of a symbol; several if the unique index does not cover all open rows yet."""
        found = await self._rows("all_open_of_symbol", exchange, symbol)
        return tuple(rows.position_of(row) for row in found)

    async def open_under_other_labels(self, exchange: str, symbol: str) -> tuple[Position, ...]:
        """The open positions of a symbol under other account labels of the same venue."""
        found = await self._rows("open_under_other_labels", exchange, symbol)
        return tuple(rows.position_of(row) for row in found)

    async def open_on(self, exchange: str) -> tuple[Position, ...]:
        """All open positions of an exchange."""
        found = await self._rows("open_of_exchange", exchange)
        return tuple(rows.position_of(row) for row in found)

    async def get(self, position_id: int) -> Position | None:
        """The position with this id; ``None`` if there is none."""
        return rows.position_or_none(await self._row("by_id", position_id))

    async def last_ended(self, exchange: str, symbol: str) -> Position | None:
        """The position of a symbol that ended last, of those that were on the exchange."""
        return rows.position_or_none(await self._row("last_ended", exchange, symbol))

    async def in_doubt(self, position: Position, *steps: Step) -> Intent | None:
        """The newest intent of a position, for one of ``steps``, whose outcome is not known."""
        row = await self._row("intent_in_doubt", position.id, [s.value for s in steps])
        return None if row is None else replace(rows.intent_of(row), sent_before=True)

    async def loose_stops(self, exchange: str, symbol: str) -> tuple[Intent, ...]:
        """Stops of ended positions that may still be on the exchange."""
        found = await self._rows("loose_stops", exchange, symbol)
        return tuple(replace(rows.intent_of(row), sent_before=True) for row in found)

    async def symbols_with_loose_orders(self, exchange: str) -> tuple[str, ...]:
        """The symbols of :meth:`loose_stops`, and of active rows with an order of entry or stop in doubt."""
        found = await self._rows("symbols_with_loose_orders", exchange)
        return tuple(row[0] for row in found)

    async def next_intent(self, exchange: str, symbol: str) -> int:
        """A number for the symbol's next intent; valid while the lease that it is asked under is held."""
        row = await self._row("next_intent", exchange, symbol)
        assert row is not None
        return int(row[0])

    async def attached_stop(self, position: Position) -> Decimal | None:
        """The price of the stop that a position's entry carried; ``None`` if it carried none."""
        row = await self._row("attached_stop", position.id)
        return None if row is None else Decimal(row[0])

    async def stop_ids(self, position: Position) -> frozenset[str]:
        """The client order ids of all stops ever intended for a position."""
        return (await self.stops_of(position))[0]

    async def stops_of(
        self, position: Position
    ) -> tuple[frozenset[str], tuple[Intent, ...], tuple[Intent, ...]]:
        """As :meth:`stop_ids`, and the intents of those stops that were placed, or may have been.

        The last of the three are those of which an order got no answer: while it is young, it may arrive.
        """
        found = await self._rows("stops_of", position.id)
        may_stand = tuple(rows.intent_of(row) for row in found if row["may_stand"])
        unanswered = tuple(rows.intent_of(row) for row in found if row["unanswered"])
        return frozenset(row["client_id"] for row in found), may_stand, unanswered

    async def _knows_markets(self) -> bool:
        """Whether the table has the column ``market`` (schema version 10); asked until it has."""
        if not self._has_market:
            row = await self._row("has_market")
            self._has_market = bool(row and row[0])
        return self._has_market

    async def _fills_with_stop(self) -> bool:
        """Whether a row may go straight from entry to stop (schema version 11); asked until it may."""
        if not self._has_fill_with_stop:
            row = await self._row("fills_with_stop")
            self._has_fill_with_stop = bool(row and row[0])
        return self._has_fill_with_stop

    # --- the way in ---

    async def begin(
        self,
        lease: Lease,
        new: NewPosition,
        *,
        number: int | None = None,
        attached: Decimal | None = None,
        then: Then | None = None,
    ) -> Progress:
        """Write a row in ``pending_entry`` and the intent to enter, before anything is ordered.

        Args:
            lease: on the symbol.
            new: the position to enter.
            number: what :meth:`next_intent` returned under this lease, for an open that asks while it waits
                for the exchange; asked for here if it is ``None``.
            attached: the price of the stop that the entry carries.
            then: awaited as soon as both are committed, before the connection goes back to the pool; not
                called if the commit's answer was lost.

        Raises:
            DuplicatePosition: there is an open row.
        """
        if number is None:
            number = await self.next_intent(new.exchange, new.symbol)
        entering, its_number = PositionStatus.PENDING_ENTRY, number

        def progress_of(position: Position) -> Progress:
            return Progress(position, rows.entry_intent(position, its_number, attached))

        async def committed(row: asyncpg.Record) -> None:
            if then is not None:
                await then(progress_of(rows.position_of(row)))

        return progress_of(
            await self._insert(lease, new, entering, number=number, attached=attached, then=committed)
        )

    async def refuse(self, lease: Lease, new: NewPosition, error: str) -> Position:
        """Write a failed row that says why a signal was refused before any order."""
        return await self._insert(lease, new, PositionStatus.FAILED, error=error)

    async def adopt(self, lease: Lease, new: NewPosition) -> Position:
        """Write a row for a position that the exchange has and the table has not.

        Raises:
            DuplicatePosition: there is an open row.
        """
        return await self._insert(lease, new, PositionStatus.ENTRY_PLACED)

    async def _insert(
        self,
        lease: Lease,
        new: NewPosition,
        status: PositionStatus,
        *,
        error: str | None = None,
        number: int | None = None,
        attached: Decimal | None = None,
        then: Callable[[asyncpg.Record], Awaitable[None]] | None = None,
    ) -> Position:
        has_market = await self._knows_markets()
        text, args, also = rows.new_row(
            lease, new, status, error=error, number=number, attached=attached, has_market=has_market
        )

        async def written() -> asyncpg.Record | None:
            return await self._row("last_under", new.exchange, new.symbol, lease.token)

        row = await self._write_one(lease, text, *args, also=also, written=written, then=then)
        if row is None:
            raise ConfigurationError(
                f"monitoring.positions kept no row of {lease.resource!r}, and nothing was ordered: a trigger"
                " BEFORE INSERT that returns NULL swallows it; have it return NEW for rows with a token"
            )
        return rows.position_of(row)

    async def record_entry(
        self,
        lease: Lease,
        position: Position,
        intent: Intent | None,
        *,
        order_id: str | None,
        price: Decimal | None,
        quantity: Decimal,
        stop: Decimal | None,
        rests: bool = False,
        then: Then | None = None,
    ) -> Progress:
        """Record an executed entry and, if ``stop`` is given, the intent to place that stop, in one commit.

        The intent of an entry that ``rests`` stays in doubt: see :meth:`entry_filled`. ``then`` is as in
        :meth:`begin`; it is not called if the entry rests.
        """
        if intent is not None and stop is not None and not rests and await self._fills_with_stop():
            try:
                return await self._record_entry_with_stop(
                    lease, position, intent, (order_id, price, quantity), stop, then=then
                )
            except asyncpg.PostgresError as exc:
                if exc.sqlstate != _ILLEGAL_CHANGE:
                    raise
                # The schema was downgraded meanwhile: write in two statements, so that the fill is recorded.
                self._has_fill_with_stop = False

        async def work(conn: rows.Connection) -> Progress:
            check_transition(position.status, PositionStatus.ENTRY_PLACED)
            if rests:
                await rows.add_part(conn, lease, position, quantity, order_id)
            number = None if intent is None or rests else intent.number
            entered = (order_id, price, quantity, lease.token, number)
            row = await conn.fetchrow(
                statement("record_entry"), *rows.decided_on(position), *entered, timeout=rows.STATEMENT_S
            )
            moved = rows.changed(position, row)
            if stop is None or row is None:
                return Progress(moved)
            following = int(row[rows.NEXT_INTENT])
            return await rows.intend(conn, lease, moved, Step.STOP, stop, number=following)

        progress = await self._write(lease, work)
        self._tell_settled(position, None if rests else intent, IntentOutcome.EXECUTED)
        return progress

    async def _record_entry_with_stop(
        self,
        lease: Lease,
        position: Position,
        intent: Intent,
        entered: tuple[object, ...],
        stop: Decimal,
        *,
        then: Then | None,
    ) -> Progress:
        check_transition(position.status, PositionStatus.PENDING_SL)
        # This number is free: the row's entry has the symbol's last one, and the lease is the same.
        following = rows.stop_intent(lease, position, intent.number + 1, stop)
        args = (*rows.decided_on(position), *entered, lease.token, intent.number)
        stopped = (stop, following.number, following.client_id)
        also = (statement("settle_entry"), statement("intend_first_stop"))

        async def written() -> asyncpg.Record | None:
            return await self._row("by_id", position.id)

        def progress_of(moved: Position) -> Progress:
            return Progress(moved, replace(following, amount=moved.quantity))

        async def committed(row: asyncpg.Record) -> None:
            if then is not None:
                await then(progress_of(rows.position_of(row)))

        text = statement("record_entry_with_stop")
        row = await self._write_one(lease, text, *args, *stopped, also=also, written=written, then=committed)
        self._tell_settled(position, intent, IntentOutcome.EXECUTED)
        return progress_of(rows.changed(position, row))

    async def expect_stop(self, lease: Lease, position: Position, trigger: Decimal) -> Progress:
        """Write an intent to place a stop; a new one each time, as an old order may still be in flight."""

        async def work(conn: rows.Connection) -> Progress:
            if position.status is not PositionStatus.PENDING_SL:
                check_transition(position.status, PositionStatus.PENDING_SL)
            return await rows.intend(conn, lease, position, Step.STOP, trigger)

        return await self._write(lease, work)

    async def take_over_stop(self, lease: Lease, position: Position, stop: PlacedOrder) -> Position:
        """Record a stop that stands already, no matter who placed it, as the position's own.

        Raises:
            DuplicatePosition: another row of the symbol is active.
        """

        async def work(conn: rows.Connection) -> Position:
            moved = position
            if position.status is PositionStatus.ENTRY_PLACED:
                check_transition(position.status, PositionStatus.PENDING_SL)
                args = (*rows.decided_on(position), lease.token)
                row = await conn.fetchrow(statement("on_the_way_to_a_stop"), *args, timeout=rows.STATEMENT_S)
                moved = rows.changed(position, row)
            if moved.status is not PositionStatus.ACTIVE:
                check_transition(moved.status, PositionStatus.ACTIVE)
            taken = (stop.id, stop.client_id or None, stop.trigger, lease.token)
            row = await conn.fetchrow(
                statement("take_over_stop"), *rows.decided_on(moved), *taken, timeout=rows.STATEMENT_S
            )
            return rows.changed(moved, row)

        return await self._write(lease, work)

    async def expect_move(self, lease: Lease, position: Position, trigger: Decimal) -> Progress:
        """Write the intent to place a second stop, which is to replace the first."""

        async def work(conn: rows.Connection) -> Progress:
            return await rows.intend(conn, lease, position, Step.STOP, trigger, statement_name="expect_move")

        return await self._write(lease, work)

    async def move_stop(
        self, lease: Lease, position: Position, intent: Intent, order: PlacedOrder
    ) -> Position:
        """Record the new stop, which stands, as the row's; the old one is still to be cancelled."""

        async def work(conn: rows.Connection) -> Position:
            moved = (order.id, intent.client_id, intent.trigger, lease.token, intent.number)
            row = await conn.fetchrow(
                statement("move_stop"), *rows.decided_on(position), *moved, timeout=rows.STATEMENT_S
            )
            return rows.changed(position, row)

        now = await self._write(lease, work)
        self._tell_settled(position, intent, IntentOutcome.EXECUTED)
        return now

    async def activate(self, lease: Lease, position: Position, intent: Intent, order_id: str) -> Position:
        """Record the stop, which stands, and make the position active.

        Raises:
            DuplicatePosition: another row of the symbol is active; this one must be rolled back.
        """
        check_transition(position.status, PositionStatus.ACTIVE)
        args = (*rows.decided_on(position), order_id, lease.token, intent.number)
        settled = (statement("settle_placed_stop"),)

        async def written() -> asyncpg.Record | None:
            return await self._row("by_id", position.id)

        row = await self._write_one(lease, statement("activate"), *args, also=settled, written=written)
        self._tell_settled(position, intent, IntentOutcome.EXECUTED)
        return rows.changed(position, row)

    # --- the way out ---

    async def expect_close(
        self, lease: Lease, position: Position, reason: str, *, asked: bool = False, ended: bool = False
    ) -> Progress:
        """Write the intent to close, with the reason, so that the next holder can finish the exit.

        A position that has ended otherwise has one as well, of which no order is sent: whatever is held
        afterwards is not the row's, though its stops may keep the row open for a while.

        Args:
            lease: on the symbol.
            position: the row.
            reason: why the position is closed.
            asked: whether a person asked for the exit; then it is not judged again.
            ended: whether the position has ended otherwise.
        """
        details = rows.UNSENT if ended else rows.ASKED if asked else None

        async def work(conn: rows.Connection) -> Progress:
            return await rows.intend(conn, lease, position, Step.CLOSE, reason, details)

        progress = await self._write(lease, work)
        assert progress.intent is not None
        return replace(progress, intent=replace(progress.intent, unsent=ended, void=ended, ended=ended))

    async def withdraw_close(
        self, lease: Lease, position: Position, intent: Intent, outcome: IntentOutcome, details: str
    ) -> Position:
        """Withdraw an intent to close; the next pass judges the position anew."""

        async def work(conn: rows.Connection) -> Position:
            row = await conn.fetchrow(
                statement("withdraw_close"), *rows.decided_on(position), lease.token, timeout=rows.STATEMENT_S
            )
            await rows.settle(conn, position, intent, outcome, None, details)
            return rows.changed(position, row)

        now = await self._write(lease, work)
        self._tell_settled(position, intent, outcome)
        return now

    async def renew_intent(
        self,
        lease: Lease,
        position: Position | NewPosition,
        intent: Intent,
        *,
        copied: bool = False,
    ) -> None:
        """Count an intent's age from now, as its order may arrive for some time from its latest sending on.

        That may be long after the intent was written: a refusal that passes is waited for and the order sent
        again. An order that is given up by the age of its first sending could arrive after that.

        Args:
            lease: on the symbol.
            position: the row.
            intent: the intent, with what is known of it now.
            copied: whether another copy of a stop that is about to be settled may still arrive.
        """
        key = (position.exchange, position.symbol, intent.number)
        details = rows.COPIED if copied else rows.details_of(intent)

        async def work(conn: rows.Connection) -> None:
            await conn.fetchval(statement("renew_intent"), *key, details, timeout=rows.STATEMENT_S)

        await self._write(lease, work)

    async def note_gone(self, lease: Lease, position: Position, intent: Intent) -> None:
        """Write down that what an exit was to close is gone, so that no later holder sends it again.

        The intent has what was found out about it; its age stays, as a copy that was sent may still arrive.
        """
        key = (position.exchange, position.symbol, intent.number)
        details = rows.details_of(intent)

        async def work(conn: rows.Connection) -> None:
            await conn.fetchval(statement("note_gone"), *key, details, timeout=rows.STATEMENT_S)

        await self._write(lease, work)

    async def close_rest(
        self, lease: Lease, position: Position, intent: Intent, order: PlacedOrder
    ) -> Progress:
        """Record an exit that ended partly filled: reduce the row, and write the intent to close the rest."""

        async def work(conn: rows.Connection) -> Progress:
            reduced = await rows.reduce(conn, lease, position, order.filled, (intent, order.id))
            reason = position.exit_reason or "exit"
            asked = rows.details_of(replace(intent, refused=False))
            return await rows.intend(conn, lease, reduced, Step.CLOSE, reason, asked)

        progress = await self._write(lease, work)
        self._tell_settled(position, intent, IntentOutcome.EXECUTED)
        assert progress.intent is not None
        rest = replace(progress.intent, asked=intent.asked, void=intent.void, ended=intent.ended)
        return replace(progress, intent=rest)

    async def stop_filled(
        self, lease: Lease, position: Position, filled: Decimal, *, own: bool = False, fired: rows.By = None
    ) -> Position:
        """Record a stop that was filled in part and has ended: the row is left with the rest.

        The row's own stop is cleared, so that its fill counts once; the intent of one that the row did not
        have yet, which is given with its order's id, is settled.
        """

        async def work(conn: rows.Connection) -> Position:
            return await rows.reduce(conn, lease, position, filled, fired, by_its_stop=own)

        now = await self._write(lease, work)
        self._tell_settled(position, None if fired is None else fired[0], IntentOutcome.EXECUTED)
        return now

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
        """End the position, and settle ``intent`` in the same transaction."""

        async def work(conn: rows.Connection) -> Position:
            check_transition(position.status, status)
            row = await conn.fetchrow(
                statement("finish"),
                *rows.decided_on(position),
                status.value,
                reason,
                price,
                order_id,
                error,
                lease.token,
                timeout=rows.STATEMENT_S,
            )
            if intent is not None:
                await rows.settle(conn, position, intent, outcome, order_id, error)
            return rows.changed(position, row)

        now = await self._write(lease, work)
        self._tell_settled(position, intent, outcome)
        return now

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
        """Record what became of an intent, where nothing else changes."""

        async def work(conn: rows.Connection) -> None:
            await rows.settle(conn, position, intent, outcome, order_id, details)

        await self._write(lease, work)
        self._tell_settled(position, intent, outcome)

    def _tell_settled(self, position: Position, intent: Intent | None, outcome: IntentOutcome) -> None:
        if self._on_settled is not None and intent is not None and intent.sent_before and not intent.unsent:
            self._on_settled(position, intent, outcome)

    async def note_error(self, lease: Lease, position: Position, error: str) -> Position:
        """Note in the row what hinders the position; its status stays."""

        async def work(conn: rows.Connection) -> Position:
            noted = (*rows.decided_on(position), error, lease.token)
            row = await conn.fetchrow(statement("note_error"), *noted, timeout=rows.STATEMENT_S)
            return rows.changed(position, row)

        return await self._write(lease, work)

    # --- not fenced ---

    async def tick(self, position_id: int, price: Decimal) -> bool:
        """Write the last price and the unrealized profit; deliberately without a lease.

        Returns:
            Whether the position is active.
        """
        return await self._pool.fetchval(statement("tick"), position_id, price) is not None

    # --- inside ---

    @retry_reads()
    async def _row(self, name: str, *args: object) -> asyncpg.Record | None:
        async with self._lent() as conn:
            return await conn.fetchrow(statement(name), *args, timeout=rows.STATEMENT_S)

    @retry_reads()
    async def _rows(self, name: str, *args: object) -> list[asyncpg.Record]:
        async with self._lent() as conn:
            return await conn.fetch(statement(name), *args, timeout=rows.STATEMENT_S)

    async def _duplicate(self, lease: Lease, exc: asyncpg.UniqueViolationError) -> DuplicatePosition:
        exchange, _, symbol = lease.resource.partition(":")
        existing = await self.open_of(exchange, symbol)
        told = f"{lease.resource!r} has an open position already ({exc.constraint_name})"
        if existing is None and exc.constraint_name not in _ONE_OPEN:  # an index of the table's own
            told = f"{lease.resource!r} has no open position, but {exc.constraint_name} refuses another row"
        return DuplicatePosition(told, existing_id=None if existing is None else existing.id)
