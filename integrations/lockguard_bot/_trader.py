"""Carries out one signal. This is all that guarding asks of a bot.

The bot first acquires the lease of the symbol. Under it, the bot checks whether the signal was already
decided, has the manager open or close (which re-enters the same lease), and records the decision. If the
process is killed at any point, the next delivery of the signal resumes from the recorded state.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, assert_never

from lockguard.errors import ConfigurationError
from lockguard_bot._book import Decision, Outcome, exit_reason
from lockguard_bot._signals import BadSignal, CloseSignal, OpenSignal
from lockguard_ccxt import UnknownMarket, decimal_of
from lockguard_ccxt._classify import ccxt_errors
from lockguard_ccxt._keys import could_be_listed
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._model import NotOpened, Position
from lockguard_positions._status import PositionStatus
from lockguard_tenacity import retry_reads

if TYPE_CHECKING:
    from datetime import timedelta

    from lockguard import LockGuard
    from lockguard_bot._book import Place, SignalBook
    from lockguard_bot._signals import Signal
    from lockguard_ccxt import GuardedExchange
    from lockguard_positions._manager import AtomicPositionManager

__all__ = ["Trader"]

_AHEAD_S_MAX = 60
_NAMED_MAX = 3
_patient_reads = retry_reads(attempts=3)


class Trader:
    """Carries out signals, each of them once.

    Args:
        guard: the lock; the same one that the manager uses.
        manager: opens and closes positions.
        exchange: gives market names and prices; the same one that the manager uses.
        book: the decisions made so far.
        age_max: an open signal older than this is refused, if its age is known.
        ends_max: how many bots may die while carrying out a signal before it is set aside.
        leverage: set on a symbol before its first entry; by default the leverage is left as it is.
    """

    def __init__(
        self,
        guard: LockGuard,
        manager: AtomicPositionManager,
        exchange: GuardedExchange,
        book: SignalBook,
        *,
        age_max: timedelta,
        ends_max: int = 2,
        leverage: int | None = None,
    ) -> None:
        self._guard = guard
        self._manager = manager
        self._exchange = exchange
        self._book = book
        self._age_s_max = age_max.total_seconds()
        self._ends_max = ends_max
        self._leverage = leverage
        self._levered: set[str] = set()

    async def resource(self, signal: Signal) -> str:
        """The resource whose lease guards the signal.

        A symbol that is not listed may have been listed since the start, so the markets are loaded again.

        Raises:
            BadSignal: the exchange has no such market, or positions are not supported in it.
            ExchangeUnreadable: the markets could not be loaded again, so the symbol may still exist.
        """
        closes = isinstance(signal, CloseSignal)
        try:
            try:
                market = self._exchange.market(signal.symbol)
            except UnknownMarket:
                # Refuse a plausible symbol only on a market list that was loaded after the signal came.
                await self._exchange.refresh(wait=could_be_listed(signal.symbol))
                market = self._exchange.market(signal.symbol)
            market.check()
            return self._exchange.resource(market.symbol)
        except ConfigurationError as exc:
            raise BadSignal(str(exc), closes=closes) from None
        except ccxt_errors().BaseError as exc:
            raise ExchangeUnreadable(
                f"the exchange did not list its markets: {type(exc).__name__}: {exc}"
            ) from exc
        except Exception as exc:
            why = f"its symbol cannot be read ({type(exc).__name__}); write it as APTUSDT or APT/USDT:USDT"
            raise BadSignal(why, closes=closes) from exc

    async def carry_out(self, signal: Signal) -> Decision:
        """Decide a signal, or return the decision that was already made.

        Raises:
            BadSignal: the exchange has no such market.
            ResourceBusy: another process holds the symbol; the error names the holder.
            LeaseLost: the lease ended; the next holder finishes what was begun.
            StaleToken: Postgres refused a write because the lease had ended.
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        resource = await self.resource(signal)
        symbol = resource.partition(":")[2]
        known = await self._book.decided(signal, symbol)
        if known is not None:  # decisions are final, so they can be read without the lease
            return known
        async with self._guard.hold(resource, operation=f"signal {signal.id}") as lease:
            decision = await self._book.decided(signal, symbol)
            if decision is not None:
                return decision
            ended = await self._book.begin(signal, symbol)
            recorded = False
            try:
                decision = await self._decide(signal, symbol, ended)
                if decision.final:
                    await self._book.record(lease, signal, symbol, decision)
                    recorded = True
                return decision
            finally:
                if not recorded:  # also on cancellation: only a dead process may leave its attempt open
                    await asyncio.shield(self._book.end(signal))

    async def _decide(self, signal: Signal, symbol: str, ended: tuple[str, ...]) -> Decision:
        aside = self._aside(ended)
        match signal:
            case OpenSignal():
                try:
                    return await self._open(signal, symbol, aside)
                except ConfigurationError as exc:  # an invalid argument: nothing was written
                    return Decision(Outcome.REFUSED, str(exc))
            case CloseSignal():
                return await self._close(signal, symbol, aside)
            case _:
                assert_never(signal)

    def _aside(self, ended: tuple[str, ...]) -> Decision | None:
        """The decision to set a signal aside if too many bots died carrying it out, else ``None``."""
        if len(ended) < self._ends_max:
            return None
        return Decision(
            Outcome.SET_ASIDE,
            f"{len(ended)} bots ended while they carried it out ({', '.join(ended[-_NAMED_MAX:])}),"
            " by it or killed from outside; find out why, then send it again under another id",
        )

    # --- open ---

    async def _open(self, signal: OpenSignal, symbol: str, aside: Decision | None) -> Decision:
        row = await self._book.opened_by(signal, symbol)
        half_done = row is not None and row.status.open and row.status is not PositionStatus.ACTIVE
        if aside is not None and (row is None or half_done or row.status is PositionStatus.CANCELED):
            return aside if row is None else replace(aside, position_id=row.id)
        if half_done:
            # Its bot died halfway: finish or undo what that bot began.
            await self._manager.ensure_stop(signal.symbol, self._exchange.name)
            row = await self._book.opened_by(signal, symbol)
        if row is None or row.status is PositionStatus.CANCELED:  # canceled: certainly no order was placed
            return await self._too_late(signal, symbol) or await self._open_anew(signal)
        return _of_row(signal, row)

    async def _open_anew(self, signal: OpenSignal) -> Decision:
        price = await self._price(signal.symbol)
        try:
            percent = signal.stop.percent_at(price, signal.side)
        except BadSignal as exc:
            return Decision(Outcome.REFUSED, str(exc))
        await self._lever(signal.symbol)
        result = await self._manager.open_position_atomic(
            signal.id,
            signal.symbol,
            self._exchange.name,
            signal.side.value,
            signal.quantity,
            price,
            percent,
        )
        if isinstance(result, NotOpened):
            if result.passing:
                where = None if result.position is None else result.position.id
                return Decision(Outcome.UNDECIDED, result.reason, where)
            if result.position is None:
                return Decision(Outcome.REFUSED, result.reason)
            decision = _of_row(signal, result.position)
            return replace(decision, details=result.reason)
        return _of_row(signal, result.position)

    async def _lever(self, symbol: str) -> None:
        """Set the leverage of a symbol, once per process.

        Raises:
            ConfigurationError: the exchange refused it.
            ExchangeUnreadable: the exchange did not answer.
        """
        unified = self._exchange.unified(symbol)
        if self._leverage is None or unified in self._levered:
            return
        errors = ccxt_errors()
        try:
            await self._exchange.set_leverage(self._leverage, unified)
        except errors.OperationFailed as exc:
            raise ExchangeUnreadable(f"the leverage could not be set: {type(exc).__name__}: {exc}") from exc
        except errors.BaseError as exc:
            raise ConfigurationError(
                f"the exchange refused a leverage of {self._leverage}: {type(exc).__name__}; give another one"
            ) from exc
        self._levered.add(unified)

    async def _price(self, symbol: str) -> Decimal:
        try:
            ticker = await _patient_reads(self._exchange.fetch_ticker)(self._exchange.unified(symbol))
        except ccxt_errors().BaseError as exc:
            raise ExchangeUnreadable(f"the exchange gave no price: {type(exc).__name__}: {exc}") from exc
        price = decimal_of(ticker.get("last"))
        if not price:
            raise ExchangeUnreadable(f"the exchange gave no price of {symbol}")
        return price

    # --- close ---

    async def _close(self, signal: CloseSignal, symbol: str, aside: Decision | None) -> Decision:
        reason = exit_reason(signal)
        row = await self._book.closed_for(reason, symbol)
        if aside is not None and (row is None or row.status.open):
            return aside if row is None else replace(aside, position_id=row.id)
        if row is None:
            done = await self._withdrawn(reason, symbol) or await self._too_late(signal, symbol)
            if done is not None:
                return done
            held = await self._manager.store.open_of(self._exchange.name, symbol)
            if held is not None and signal.side not in (None, held.side):
                return Decision(Outcome.REFUSED, f"the open position is {held.side.value}", held.id)
        left = None
        if row is None or row.status.open:
            left = await self._manager.close_position(signal.symbol, self._exchange.name, reason=reason)
            row = await self._book.closed_for(reason, symbol)
        if row is None:
            return await self._withdrawn(reason, symbol) or _of_none_closed(symbol, left)
        if row.status.open:
            return Decision(Outcome.UNDECIDED, row.error_details or "its exit is in doubt", row.id)
        return Decision(Outcome.CLOSED, f"at {_shown(row.exit_price)}", row.id)

    async def _withdrawn(self, reason: str, symbol: str) -> Decision | None:
        """Refuse a close whose exit was withdrawn: retrying it would close a different position."""
        row_id = await self._book.withdrawn_for(reason, symbol)
        if row_id is None:
            return None
        return Decision(
            Outcome.REFUSED,
            "its exit could not be sent in time, and what is held now is not what it was;"
            " look at it, and give the close anew under another id",
            row_id,
        )

    # --- both ---

    async def _too_late(self, signal: Signal, symbol: str) -> Decision | None:
        """The decision not to begin a late signal, else ``None``; a signal once begun is always finished."""
        if signal.at is None:
            return None
        place = await self._book.place(signal, symbol)
        refused = self._of_its_age(signal, place)  # whatever becomes of a later one
        if refused is None and place.under_way is not None:
            # Its bot died halfway: finish or undo what that bot began, to see which signal came first.
            await self._manager.ensure_stop(signal.symbol, self._exchange.name)
            place = await self._book.place(signal, symbol)
            refused = self._of_its_age(signal, place)
        if refused is not None:
            return refused
        if place.overtaken_by is not None:
            return Decision(Outcome.OVERTAKEN, f"the later signal {place.overtaken_by} came first")
        if place.under_way is not None:
            return Decision(
                Outcome.UNDECIDED, f"the later signal {place.under_way} was begun, and is in doubt still"
            )
        return None

    def _of_its_age(self, signal: Signal, place: Place) -> Decision | None:
        """The refusal of an open that is too old, or given for a time to come, else ``None``."""
        if not isinstance(signal, OpenSignal):
            return None
        assert signal.at is not None
        assert place.age_s is not None
        if place.age_s < -_AHEAD_S_MAX:
            return Decision(
                Outcome.REFUSED, f"at={signal.at.isoformat()} has not come yet; set the sender's clock"
            )
        if place.age_s > self._age_s_max:
            return Decision(
                Outcome.REFUSED,
                f"it is {place.age_s:.0f} s old and --max-age is {self._age_s_max:g} s; give it anew",
            )
        return None


def _of_none_closed(symbol: str, left: Position | None) -> Decision:
    """The decision on a close for which no row was closed."""
    if left is None or not left.status.open:
        return Decision(Outcome.NOTHING_OPEN, f"{symbol} has no open position")
    # Its entry may still arrive, or another's exit be withdrawn: this close has to close it then.
    why = "its entry" if left.exit_reason is None else "the exit of before"
    return Decision(Outcome.UNDECIDED, f"{why} is in doubt still: {left.status.value}", left.id)


def _of_row(signal: OpenSignal, row: Position) -> Decision:
    """The decision that follows from the row the signal led to."""
    if row.signal_id != signal.id:
        if row.unsettled:
            # The other position may yet fail or close, so "already open" cannot be said yet.
            why = "its entry" if row.exit_reason is None else "its exit"
            return Decision(Outcome.UNDECIDED, f"{why} is in doubt still: {row.status.value}", row.id)
        told = "" if row.side is signal.side else f" and {row.side.value}"
        return Decision(Outcome.ALREADY_OPEN, f"it is {row.status.value}{told}; nothing was ordered", row.id)
    match row.status:
        case PositionStatus.ACTIVE | PositionStatus.CLOSED:
            stop = f"stop at {_shown(row.stop_price)}"
            return Decision(
                Outcome.OPENED,
                f"{row.side.value} {_shown(row.quantity)} at {_shown(row.entry_price)}, {stop}",
                row.id,
            )
        case PositionStatus.FAILED | PositionStatus.ROLLED_BACK | PositionStatus.CANCELED:
            why = row.error_details or row.exit_reason or "no reason was kept"
            return Decision(Outcome.REFUSED, f"{row.status.value}: {why}", row.id)
        case PositionStatus.PENDING_ENTRY | PositionStatus.ENTRY_PLACED | PositionStatus.PENDING_SL:
            why = row.error_details or "an order is in doubt"
            return Decision(Outcome.UNDECIDED, f"{row.status.value}: {why}", row.id)
        case _:
            assert_never(row.status)


def _shown(number: Decimal | None) -> str:
    return "-" if number is None else f"{number.normalize():f}"
