"""The manager: what a bot calls, and where leases are taken.

Each call takes the lease of one symbol where the decision is made, reads the row and the exchange under that
lease, and leaves the rest to :class:`~lockguard_positions._flow.Flow`. A lost lease and a write that Postgres
refuses (``LeaseLost``, ``StaleToken``) reach the caller: the flow has stopped, and the next holder finishes
what it left. Do not catch these errors and carry on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard.errors import AcquireError, ConfigurationError, LeaseLost, ResourceBusy, StaleToken
from lockguard.text import kind_of, remark
from lockguard_asyncpg._errors import DATABASE_ERRORS
from lockguard_ccxt import GuardedExchange, Step, UnknownMarket
from lockguard_ccxt._markets import venue_name
from lockguard_ccxt._placing import told
from lockguard_positions._delisted import end_delisted
from lockguard_positions._duplicates import Duplicates
from lockguard_positions._errors import DuplicatePosition, ExchangeUnreadable
from lockguard_positions._events import (
    Alert,
    LogPositions,
    PositionEvent,
    PositionObserver,
)
from lockguard_positions._flow import STAGES, Flow
from lockguard_positions._model import (
    Adopt,
    AlreadyOpen,
    NewPosition,
    NotOpened,
    Opened,
    OpenResult,
    Position,
    PositionSide,
    SyncAction,
    SyncOutcome,
    SyncReport,
    money,
    percent,
    worded,
)
from lockguard_positions._pace import Pace
from lockguard_positions._reconcile import Reconciler
from lockguard_positions._scope import SymbolScope
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own
from lockguard_positions._store import PositionStore
from lockguard_positions._survey import survey
from lockguard_positions._telling import LeftWithoutStop, Telling
from lockguard_positions._venue import Quote, Venue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import asyncpg

    from lockguard._guard import LockGuard
    from lockguard._lease import Lease
    from lockguard_ccxt import Market

    Backup: TypeAlias = Callable[[str, str], Awaitable[None]]

__all__ = ["AtomicPositionManager"]

_PACE = Pace()
_STOP_PERCENT_DEFAULT = Decimal(2)
_SYMBOLS_AT_ONCE = 8


class AtomicPositionManager:
    """Opens, reconciles and closes positions, one process at a time per symbol.

    Args:
        guard: a guard with a fence in the same database.
        pool: connections to the database with the tables (:func:`~lockguard_positions.migrate`).
        exchanges: the guarded exchanges, with their markets loaded.
        pace: the bounds of every wait.
        adopt: what to do about a position that is found without a row: ``off``, ``alert`` or ``stop``.
        adopt_stop_loss_percent: how far from its entry price, in percent, the stop of such a position goes
            if it has none.
        observers: told of every change and of what a person should look at; by default, all is logged.
        clock: measures the time without a stop.

    Raises:
        ConfigurationError: two exchanges have one name or one API key, ``adopt`` is an unknown word, an
            observer cannot receive events, or an argument has the wrong type.
    """

    def __init__(
        self,
        guard: LockGuard,
        pool: asyncpg.Pool[Any],
        exchanges: Sequence[GuardedExchange],
        *,
        pace: Pace = _PACE,
        adopt: Adopt | str = Adopt.STOP,
        adopt_stop_loss_percent: Decimal = _STOP_PERCENT_DEFAULT,
        observers: Sequence[PositionObserver] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        _expect(hasattr(guard, "hold"), "guard", guard, "a LockGuard with a fence")
        _expect(hasattr(pool, "acquire"), "pool", pool, "the pool of asyncpg.create_pool()")
        _expect(isinstance(pace, Pace), "pace", pace, "a Pace(), or leave it out")
        self._guard = guard
        self._clock = clock
        self._telling = Telling(
            [LogPositions()] if observers is None else observers, overdue=pace.overdue, clock=clock
        )
        self._store = PositionStore(
            pool,
            on_stale=self._telling.refused,
            on_settled=self._telling.settled,
            on_resolved=self._telling.tell,
        )
        self._left = LeftWithoutStop(pace.stop_deadline, self._read, self._telling.tell)
        self._venues: dict[str, Venue] = {}
        for exchange in _guarded(exchanges):
            if exchange.name in self._venues:
                raise ConfigurationError(
                    f"two of the exchanges are {exchange.name!r}; give one of them, or each account a label"
                )
            venue = Venue(exchange, pace)
            self._refuse_two_names(venue)
            self._venues[exchange.name] = venue
            exchange.on_closed(partial(self._telling.told_to_wait, exchange.name))
            exchange.on_order(self._telling.tell)
        self._pace = pace
        self._adopt = Adopt.read(adopt)
        self._adopt_stop_loss_percent = percent(
            money(adopt_stop_loss_percent, name="adopt_stop_loss_percent"), name="adopt_stop_loss_percent"
        )

    @property
    def store(self) -> PositionStore:
        """The store of the rows; ``store.tick`` is the only write that needs no lease."""
        return self._store

    # --- open ---

    async def open_position_atomic(
        self,
        signal: str | None,
        symbol: str,
        exchange: str,
        side: str,
        quantity: Decimal | str,
        entry_price: Decimal | str,
        stop_loss_percent: Decimal | str,
        *,
        wait: timedelta | None = None,
    ) -> OpenResult:
        """Open a position with its stop, or return why not.

        Args:
            signal: what asked for the position, kept in its row.
            symbol: in any spelling that the exchange knows.
            exchange: the exchange's name.
            side: ``long`` or ``short``; ``buy`` and ``sell`` mean the same.
            quantity: in the base currency; rounded down to the exchange's step.
            entry_price: the price when the signal was given. Nothing is ordered once the market is past the
                stop computed from it; it does not limit the entry's price otherwise.
            stop_loss_percent: how far from the fill the stop is, above 0 and below 100.
            wait: how long to wait while another holder works on the symbol; the guard's by default.

        Returns:
            :class:`Opened`; :class:`AlreadyOpen` with the open row, when nothing was ordered; or
            :class:`NotOpened` with the reason.

        Raises:
            ConfigurationError: an argument cannot work; nothing was written.
            ResourceBusy: another holder has the symbol; the error names it.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; recovery finishes the row, if there is one.
        """
        venue = self._venue(exchange)
        venue.refuse_unable()
        self._refuse_two_names(venue)  # an API key may have been set or changed since the manager was made
        market = venue.market(worded(symbol, name="symbol"))
        market.check()
        new = NewPosition(
            exchange=venue.name,
            symbol=market.name,
            side=PositionSide.read(side),
            quantity=money(quantity, name="quantity"),
            entry_price=money(entry_price, name="entry_price"),
            stop_loss_percent=percent(money(stop_loss_percent, name="stop_loss_percent")),
            signal_id=None if signal is None else worded(signal, name="signal"),
            market=market.symbol,
        )
        operation = f"open {new.side.value}"
        holding = self._guard.hold(market.resource, wait=wait, operation=operation)
        # The price needs no lease: it is fetched while the lease is acquired.
        async with venue.quoting(market, ahead=True) as quote, holding as lease:
            return await self._open(self._scope(venue, market, lease), new, quote)

    async def _open(self, scope: SymbolScope, new: NewPosition, quote: Quote) -> OpenResult:
        venue, market = scope.venue, scope.market
        flow, reconciler = self._workers(scope)
        ground = await reconciler.settle_and_look(quote)
        if ground.row is not None and ground.gone:
            why = f"position {ground.row.id} is not on the exchange, and something of it is in doubt still"
            return NotOpened(why, passing=True)
        if ground.row is not None:
            return AlreadyOpen(ground.row, new.side)
        if ground.held is not None:
            outcome = await reconciler.adopt(ground.held)
            row = await scope.open_row()
            if row is None:
                # A position that is to have no row stays without; any other outcome is still to be settled.
                passing = outcome.action is not SyncAction.LEFT_ALONE
                why = outcome.details or outcome.action.value
                return NotOpened(f"on the exchange already: {why}", passing=passing)
            return AlreadyOpen(row, new.side)
        try:
            new = venue.in_steps(market, new, ground.price)
        except ConfigurationError as exc:
            refused = await self._store.refuse(scope.lease, new, str(exc))
            return NotOpened(str(exc), scope.moved(refused, None))

        def begun(position: Position) -> None:
            scope.moved(position, None)
            self._telling.warn_of_stops(position)

        try:
            progress = await flow.begin(
                new, number=ground.number, attached=venue.attached_stop(market, new), begun=begun
            )
        except DuplicatePosition as exc:
            # A writer without the lease got past it, but not past the unique index: order nothing.
            row = await scope.open_row()
            return NotOpened(str(exc), passing=True) if row is None else AlreadyOpen(row, new.side)
        position = await flow.drive(progress)
        if position.status is PositionStatus.ACTIVE:
            return Opened(position)
        why = position.error_details or position.exit_reason or f"it is {position.status.value}"
        return NotOpened(why, position, passing=position.status is PositionStatus.CANCELED)

    # --- keep in step ---

    async def sync_exchange_positions(self, exchange: str) -> SyncReport:
        """Reconcile the table with the exchange, symbol by symbol.

        The first read only selects the symbols to look at. Each of them is decided under its own lease, from
        state read again under that lease. A symbol that another holder has is skipped and reported.

        An error of one symbol, whatever it is, becomes that symbol's outcome. No order of a pass reduces a
        position that this table did not open.

        Raises:
            ExchangeUnreadable: the exchange did not answer at all; nothing was decided.
        """
        venue = self._venue(exchange)
        with self._telling.look(venue.name, "pass") as look:
            found = await survey(self._store, venue)
            look.rows(len({row.symbol for row in found.rows}))
            outcomes = list(found.in_step)
            if found.to_look_at:
                outcomes += await self._each(venue, found.to_look_at, operation="sync")
            elif outcomes:
                outcomes[0] = await self._lockable(venue, outcomes[0])
            strange = found.strange_stops
            if strange and found.to_look_at:  # one of them may have become its row's stop meanwhile
                rows = await self._store.open_on(venue.name)
                strange = tuple(one for one in strange if not any(is_own(row, one[1]) for row in rows))
        look.saw_strange(strange)
        look.saw(outcomes, everything=True)
        look.over(outcomes, open_rows=found.rows)
        return SyncReport(venue.name, tuple(outcomes))

    async def _lockable(self, venue: Venue, outcome: SyncOutcome) -> SyncOutcome:
        """The outcome, or ``UNREADABLE`` when the lock servers do not answer: no symbol could be repaired."""
        try:
            await self._guard.inspect(venue.resource_of_row(outcome.symbol))
        except AcquireError as exc:
            return replace(outcome, action=SyncAction.UNREADABLE, details=f"no lock can be taken: {exc}")
        return outcome

    async def recover(self, exchange: str) -> SyncReport:
        """Finish what dead holders left: rows that are not active, exits and stops in doubt. Run it at start.

        An error of one symbol, whatever it is, becomes that symbol's outcome.
        """
        venue = self._venue(exchange)
        with self._telling.look(venue.name, "recovery") as look:
            symbols = await self.half_done(exchange)
            outcomes = await self._each(venue, symbols, operation="recover")
        look.saw(outcomes)
        look.over(outcomes)
        return SyncReport(venue.name, outcomes)

    async def half_done(self, exchange: str) -> tuple[str, ...]:
        """The symbols that :meth:`recover` would look at, read from the table without a lease."""
        venue = self._venue(exchange)
        rows = await self._store.open_on(venue.name)
        self._telling.rows_of(venue.name, len(rows))
        half_done = {
            row.symbol for row in rows if not STAGES[row.status].rests or row.exit_reason is not None
        }
        return tuple(sorted(half_done.union(await self._store.symbols_with_loose_orders(venue.name))))

    async def clean_up(
        self, symbol: str, exchange: str, *, backup: Backup | None = None
    ) -> tuple[SyncOutcome, ...]:
        """Repair one symbol, as far as what is wrong with it can be decided.

        Of several open rows, all but one are ended (:mod:`~lockguard_positions._duplicates`); then the symbol
        is reconciled as in a pass; then stops without a position are cancelled. Every order is reduce-only
        but the stop of a position that had none.

        Args:
            symbol: in any spelling.
            exchange: the exchange's name.
            backup: awaited under the lease, with venue and symbol, before anything is changed.

        Returns:
            What was done; a single ``BUSY`` outcome when another holder has the symbol.

        Raises:
            ConfigurationError: an argument has the wrong type.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: the same, detected by Postgres.
        """
        venue = self._venue(exchange)
        _expect(
            backup is None or callable(backup), "backup", backup, "a coroutine function of venue and symbol"
        )
        symbol = worded(symbol, name="symbol")
        with suppress(ExchangeUnreadable):
            await venue.refresh_for([symbol])
        short = venue.name_of(symbol)

        async def work(lease: Lease) -> tuple[SyncOutcome, ...]:
            if backup is not None:
                await backup(venue.name, short)
            scope = self._scope(venue, venue.market(short), lease)
            flow, reconciler = self._workers(scope)
            done = await Duplicates(scope, flow).settle()
            if any(outcome.action is not SyncAction.ENDED for outcome in done):
                return done
            return (*done, await reconciler.reconcile(), *await reconciler.take_back_stops())

        try:
            return await self._under_lease(venue, short, "clean up", work)
        except (LeaseLost, StaleToken):
            raise
        except Exception as exc:  # noqa: BLE001 - one symbol must not end the clean-up of the others
            return (self._trouble(venue, short, exc),)

    async def ensure_stop(self, symbol: str, exchange: str) -> SyncOutcome:
        """Reconcile one symbol as a pass does, and above all place its missing stop; waits if it is busy.

        Raises:
            ResourceBusy: another holder has the symbol; the error names it.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        venue = self._venue(exchange)
        market = venue.market(worded(symbol, name="symbol"))
        async with self._guard.hold(market.resource, operation="ensure stop") as lease:
            return await self._workers(self._scope(venue, market, lease))[1].reconcile()

    async def move_stop(
        self, symbol: str, exchange: str, price: Decimal | str, *, wait: timedelta | None = None
    ) -> SyncOutcome:
        """Move the stop of an open position to another price, such as to trail it.

        The new stop is placed before the old one is cancelled: the position is never without one, and if the
        new one is refused the old one stands. A holder that dies in between leaves an intent, from which the
        next holder finishes the move.

        Args:
            symbol: in any spelling.
            exchange: the exchange's name.
            price: the new trigger price; rounded to the exchange's tick.
            wait: how long to wait while another holder works on the symbol; the guard's by default.

        Returns:
            ``STOP_MOVED``; ``STOP_KEPT`` with the exchange's reason, where it refused the new stop;
            ``IN_DOUBT``, which a later pass settles; or what a pass would tell, where nothing is held any
            more, such as ``CLOSED`` after the old stop has fired.

        Raises:
            ConfigurationError: the price is not a number above zero, or there is no active position.
            ResourceBusy: another holder has the symbol; the error names it.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; the old stop stands.
        """
        venue = self._venue(exchange)
        market = venue.market(worded(symbol, name="symbol"))
        market.check()
        trigger = market.rules.price(money(price, name="price"))
        async with self._guard.hold(market.resource, wait=wait, operation="move stop") as lease:
            return await self._workers(self._scope(venue, market, lease))[1].move_stop(trigger)

    # --- close ---

    async def close_position(
        self, symbol: str, exchange: str, *, reason: str = "exit", wait: timedelta | None = None
    ) -> Position | None:
        """Close the open position of a symbol with a reduce-only order, then cancel its stop.

        This call counts as a person's request: it also closes a position that this table did not open, if it
        has a row. It orders no more than the row's quantity and never opens the other side, whatever a person
        did meanwhile. A row of a contract that the exchange no longer lists is ended without an order,
        when no order that was sent for it before can arrive any more.

        Returns:
            The row as it is now; still open if this exit or one that was begun before is in doubt, or if an
            exit with the same reason was begun before and what is held has changed since. ``None`` when there
            was no open row.

        Raises:
            ResourceBusy: another holder has the symbol; the error names it.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: the same, detected by Postgres.
            ExchangeUnreadable: the exchange did not answer; recovery finishes the exit.
            ConfigurationError: there is neither a market nor a row of that name.
        """
        venue = self._venue(exchange)
        reason = remark(reason, "reason")
        await venue.refresh_for([worded(symbol, name="symbol")])
        if venue.gone(symbol):
            # Without a market nothing can be ordered; the row is ended, as a person asked for that.
            symbol = venue.name_of(symbol)
            async with self._guard.hold(venue.resource_of_row(symbol), wait=wait, operation="close") as lease:
                return await end_delisted(self._store, venue, symbol, lease, reason, self._telling.tell)
        market = venue.market(symbol)
        async with self._guard.hold(market.resource, wait=wait, operation="close") as lease:
            scope = self._scope(venue, market, lease)
            flow, reconciler = self._workers(scope)
            before = await scope.open_row()
            row, _ = await reconciler.settle()
            if row is None or row.status is PositionStatus.PENDING_ENTRY:
                return row
            if before is not None and before.exit_reason == reason and row.exit_reason is None:
                return row  # that exit was for what was held then; a caller who still wants it asks again
            if row.exit_reason is not None and await self._store.in_doubt(row, Step.CLOSE):
                return row  # a second exit beside it could leave the first to reduce the next position
            return await flow.drive(await flow.intend_close(row, reason, asked=True))

    # --- inside ---

    async def _each(self, venue: Venue, symbols: Sequence[str], *, operation: str) -> tuple[SyncOutcome, ...]:
        """Reconcile each symbol under its own lease, several at once; its error becomes its outcome."""
        slots = asyncio.Semaphore(_SYMBOLS_AT_ONCE)

        async def one(symbol: str) -> SyncOutcome:
            async with slots:
                try:
                    return await self._reconcile(venue, symbol, operation)
                except (LeaseLost, StaleToken) as exc:
                    return SyncOutcome(symbol, SyncAction.IN_DOUBT, None, f"left to the next holder: {exc}")
                except DATABASE_ERRORS as exc:
                    return SyncOutcome(symbol, SyncAction.UNREADABLE, None, f"the database: {_line_of(exc)}")
                except Exception as exc:  # noqa: BLE001 - one symbol must not end the others
                    return self._trouble(venue, symbol, exc)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(symbol), name=f"{operation} {symbol}") for symbol in symbols]
        return tuple(task.result() for task in tasks)

    async def _reconcile(self, venue: Venue, symbol: str, operation: str) -> SyncOutcome:
        async def work(lease: Lease) -> tuple[SyncOutcome, ...]:
            scope = self._scope(venue, venue.market(symbol), lease)
            return (await self._workers(scope)[1].reconcile(),)

        (outcome,) = await self._under_lease(venue, symbol, operation, work)
        return outcome

    async def _under_lease(
        self,
        venue: Venue,
        symbol: str,
        operation: str,
        work: Callable[[Lease], Awaitable[tuple[SyncOutcome, ...]]],
    ) -> tuple[SyncOutcome, ...]:
        """Run ``work`` under the symbol's lease, or report the symbol as busy or a server as unreadable."""
        try:
            async with self._guard.hold(
                venue.resource_of_row(symbol), on_busy="raise", operation=operation
            ) as lease:
                return await work(lease)
        except ResourceBusy as busy:
            return (SyncOutcome(symbol, SyncAction.BUSY, None, f"{busy.holder} ({busy.operation})"),)
        except (AcquireError, ExchangeUnreadable) as exc:
            if isinstance(exc, ExchangeUnreadable) and await venue.says_gone(exc):
                return (self._trouble(venue, symbol, exc),)
            return (SyncOutcome(symbol, SyncAction.UNREADABLE, None, str(exc)),)

    def _refuse_two_names(self, venue: Venue) -> None:
        """Raise if another exchange has the same API key.

        One account under two names has two locks, and a pass of each would adopt the other's positions.
        """
        for other in self._venues.values():
            if other is not venue and other.same_account(venue):
                raise ConfigurationError(
                    f"{other.name} and {venue.name} have the same API key; give an account one label"
                )

    def _trouble(self, venue: Venue, symbol: str, exc: Exception) -> SyncOutcome:
        """The outcome of a symbol that raised ``exc``; also raises an alert."""
        if isinstance(exc, UnknownMarket | ExchangeUnreadable):
            action = SyncAction.NO_MARKET
            why = (
                f"unprotected, as nothing can be ordered: {exc}; 'lockguard positions close' ends a row of it"
            )
        else:
            action, why = SyncAction.FAILED, f"{type(exc).__name__}: {_line_of(exc)}"
        self._telling.tell(Alert(f"{venue.name}:{symbol}", None, why))
        return SyncOutcome(symbol, action, None, why)

    def _venue(self, exchange: str) -> Venue:
        name = venue_name(worded(exchange, name="exchange"))
        if name not in self._venues:
            known = ", ".join(self._venues) or "none"
            raise ConfigurationError(f"exchange {exchange!r} was not given to this manager; it has: {known}")
        return self._venues[name]

    def _scope(self, venue: Venue, market: Market, lease: Lease) -> SymbolScope:
        return SymbolScope(self._store, venue, market, lease, self._pace, self._clock, self._tell)

    def _tell(self, event: PositionEvent) -> None:
        self._left.saw(event)
        self._telling.tell(event)

    async def _read(self, position_id: int) -> Position | None:
        return await self._store.get(position_id)

    def _workers(self, scope: SymbolScope) -> tuple[Flow, Reconciler]:
        flow = Flow(scope)
        return flow, Reconciler(
            scope, flow, adopt=self._adopt, adopt_stop_loss_percent=self._adopt_stop_loss_percent
        )


def _expect(right: bool, name: str, value: object, wanted: str) -> None:  # noqa: FBT001 - a condition
    """Refuse an argument of the wrong type at once: later it would fail after an intent was committed."""
    if not right:
        raise ConfigurationError(f"{name} is {kind_of(value)}; give {wanted}")


def _guarded(exchanges: object) -> list[GuardedExchange]:
    wanted = "a list of guarded exchanges, such as [GuardedExchange(ccxt_exchange)]"
    if not isinstance(exchanges, Iterable) or isinstance(exchanges, str):
        raise ConfigurationError(f"exchanges is {kind_of(exchanges)}; give {wanted}")
    found = list(exchanges)
    for one in found:
        _expect(isinstance(one, GuardedExchange), "one of the exchanges", one, wanted)
    return found


def _line_of(exc: BaseException) -> str:
    return told(exc).partition("\n")[0]
