"""Reconciling one symbol: its row, the exchange and the stop are brought together under its lease.

Everything is read again here, under the lease. What a pass read before only selects the symbols: a pass that
decided on a list read earlier made 60 duplicates in 80 opens, even with a lease.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_ccxt import Executed, OrderState, Step
from lockguard_positions._errors import DuplicatePosition
from lockguard_positions._flow import STAGES
from lockguard_positions._model import (
    Adopt,
    Intent,
    NewPosition,
    Position,
    PositionSide,
    SyncAction,
    SyncOutcome,
)
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import is_own
from lockguard_positions._venue import give_up

if TYPE_CHECKING:
    from lockguard_ccxt import Holding
    from lockguard_positions._flow import Flow
    from lockguard_positions._scope import SymbolScope
    from lockguard_positions._venue import Quote

__all__ = ["Ground", "Reconciler"]


@dataclass(frozen=True, slots=True)
class Ground:
    """What an open finds under its lease.

    Attributes:
        row: the open row; the fields after ``gone`` are then unset.
        gone: whether the exchange shows no position for the row, which is open because something is in doubt.
        held: what the exchange holds.
        price: the symbol's last price, if it arrived in time.
        number: the number of the intent to enter.
    """

    row: Position | None
    gone: bool = False
    held: Holding | None = None
    price: Decimal | None = None
    number: int | None = None


class Reconciler:
    """Reconciles one symbol under its lease.

    Args:
        scope: the symbol and its lease.
        flow: drives what is half done, under the same lease.
        adopt: what to do about a position without a row.
        adopt_stop_loss_percent: how far from its entry price, in percent, the stop of an adopted position
            goes if it has none.
    """

    def __init__(
        self, scope: SymbolScope, flow: Flow, *, adopt: Adopt, adopt_stop_loss_percent: Decimal
    ) -> None:
        self._scope = scope
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market, self._symbol = scope.lease, scope.market, scope.symbol
        self._flow = flow
        self._grace_ms = scope.pace.grace_ms
        self._poll_s = scope.pace.poll.total_seconds()
        self._adopt = adopt
        self._adopt_stop_loss_percent = adopt_stop_loss_percent

    async def settle(self) -> tuple[Position | None, bool]:
        """Finish what an earlier holder left: stops in doubt of ended positions, then the open row.

        Returns:
            The open row, if one is left, and whether it was half done.

        Raises:
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        await self._sweep_loose()
        row = await self._scope.open_row()
        if row is None:
            return None, False
        stage = STAGES[row.status]
        if stage.rests and await self._store.in_doubt(row, Step.CLOSE, *stage.intents) is None:
            return row, False
        resumed = await self._flow.resume(row)
        return (resumed if resumed.status.open else None), True

    async def settle_and_look(self, quote: Quote) -> Ground:
        """:meth:`settle`; if no open row is left, also what an open needs to know, requested meanwhile.

        Args:
            quote: the symbol's price, requested a moment ago.

        Raises:
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        if quote.held is not None:
            await quote.held.send()
        looking = asyncio.create_task(self._venue.look(self._market, quote), name=f"look at {self._symbol}")
        try:
            await asyncio.sleep(0)  # let the look send its request first, as its answer takes longest
            row, resumed = await self.settle()
            if row is not None and row.unsettled:
                return Ground(row)
            if row is not None and row.status is not PositionStatus.ACTIVE:
                # The position may have ended before its stop was placed; the flow only notices by that stop.
                return Ground(row, gone=not _holds(row, await self._venue.holding(self._market)))
            if row is not None:
                # A move of its stop, finished just now, says nothing about what is held.
                held, _ = await (self._venue.look(self._market) if resumed else looking)
                row, gone = await self._confirmed(row, held)
                if row is not None:
                    return Ground(row, gone=gone)
                resumed = True
            number = await self._store.next_intent(self._venue.name, self._symbol)
            # Finishing what was half done may have changed what the exchange holds: look again after it.
            held, price = await (self._venue.look(self._market) if resumed else looking)
            return Ground(None, held=held, price=price, number=number)
        finally:
            await give_up(looking)

    async def _confirmed(self, row: Position, held: Holding | None) -> tuple[Position | None, bool]:
        """An active row whose position the exchange still holds; ``None`` when the position has ended.

        Also returns whether the row is open although its position is gone; whatever the reason, such a row
        does not count as an open position for an open.

        A signal must not be dropped because of a position whose stop has fired. Within the grace period the
        exchange's lists are polled until they show the position, or can be trusted.
        """
        until_ms = float(row.age_ms)
        while not _holds(row, held) and until_ms < self._grace_ms:
            stop = await self._venue.find_stop(self._market, row)
            if stop is not None and stop.state is OrderState.CLOSED:
                break
            await asyncio.sleep(self._poll_s)
            until_ms += self._poll_s * 1000
            held = await self._venue.holding(self._market)
        if _holds(row, held):
            return row, False
        outcome = await self.reconcile()
        if outcome.action is SyncAction.RECOVERED:
            # That finished a move of the stop; what is held has not been decided on yet.
            outcome = await self.reconcile()
        left = await self._scope.open_row()
        if left is None or outcome.action is SyncAction.IN_DOUBT:
            return left, left is not None
        return left, not _holds(left, await self._venue.holding(self._market))

    async def reconcile(self) -> SyncOutcome:
        """Bring row, exchange and stop into agreement; returns what was done.

        Raises:
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        if (kept_out := await self._row_kept_out()) is not None:
            return kept_out
        row, resumed = await self.settle()
        if resumed:
            return await self._of_resumed(row)
        held = await self._venue.holding(self._market)
        if row is None:
            return self._outcome(SyncAction.IN_STEP) if held is None else await self.adopt(held)
        if held is None:
            return await self._vanished(row)
        if PositionSide.read(held.side) is not row.side:
            return await self._turned(row, held)
        outcome = await self._check_stop(row, held)
        if outcome.action is SyncAction.IN_STEP and held.amount != row.quantity:
            return self._mismatch(row, f"the row says {row.quantity}, the exchange holds {held.amount}")
        return outcome

    async def adopt(self, held: Holding) -> SyncOutcome:
        """Give a position without a row both a row and a stop, unless it is the echo of one that just ended.

        The position may be a person's: nothing here ever closes it. A stop that stands already is taken over.

        Raises:
            ExchangeUnreadable: the exchange did not answer; a later pass continues from what was written.
        """
        what = f"{PositionSide.read(held.side).value} {held.amount} has no row"
        if self._adopt is Adopt.OFF:
            return self._outcome(SyncAction.LEFT_ALONE, None, what)
        if self._adopt is Adopt.ALERT:
            self._scope.alert(None, f"{what}, and gets none")
            return self._outcome(SyncAction.LEFT_ALONE, None, what)
        if (refusal := self._market.refusal) is not None:
            self._scope.alert(None, f"{what}, and gets none: {refusal}")
            return self._outcome(SyncAction.LEFT_ALONE, None, refusal)
        if (also := await self._known_by_another_label()) is not None:
            why = (
                f"{what}: it is row {also.id} of {also.exchange}, whose order this account has too."
                " One account under two labels has two locks;"
                f" give {self._venue.name} and {also.exchange} one label"
            )
            self._scope.alert(None, why)
            return self._outcome(SyncAction.LEFT_ALONE, None, why)
        last = await self._store.last_ended(self._venue.name, self._symbol)
        if last is not None and last.age_ms < self._grace_ms:
            return self._outcome(SyncAction.SETTLING, last.id, f"ended {last.age_ms} ms ago")
        if held.entry_price is None:
            self._scope.alert(None, "a position without an entry price has no row")
            return self._outcome(SyncAction.MISMATCH, None, "the exchange gives no entry price")
        new = NewPosition(
            exchange=self._venue.name,
            symbol=self._symbol,
            side=PositionSide.read(held.side),
            quantity=held.amount,
            entry_price=held.entry_price,
            stop_loss_percent=self._adopt_stop_loss_percent,
            signal_id=None,
            market=self._market.symbol,
        )
        try:
            row = await self._store.adopt(self._lease, new)
        except DuplicatePosition as exc:
            return self._outcome(SyncAction.IN_DOUBT, exc.existing_id, str(exc))
        self._scope.moved(row, None)
        row = await self._flow.resume(row)
        if row.status is PositionStatus.ACTIVE:
            return self._outcome(SyncAction.ADOPTED, row.id)
        return await self._of_resumed(row if row.status.open else None)

    async def _known_by_another_label(self) -> Position | None:
        """The open row under another label whose order is on this account, if two processes label it twice.

        Within one process the API keys tell; between processes only the orders on the account do.
        """
        for row in await self._store.open_under_other_labels(self._venue.name, self._symbol):
            if await self._venue.knows(self._market, row):
                return row
        return None

    async def move_stop(self, trigger: Decimal) -> SyncOutcome:
        """Move the stop of the symbol's active position to another price.

        Raises:
            ConfigurationError: there is no active position.
            ExchangeUnreadable: the exchange did not answer; the old stop stands.
        """
        row, _ = await self.settle()
        if row is None or row.status is not PositionStatus.ACTIVE:
            state = "no open position" if row is None else f"a position that is {row.status.value}"
            raise ConfigurationError(
                f"{self._lease.resource} has {state}; only an active one's stop is moved"
            )
        moved = await self._flow.move_stop(row, trigger)
        if moved.status is not PositionStatus.ACTIVE or await self._store.in_doubt(moved, Step.STOP):
            return self._outcome(SyncAction.IN_DOUBT, moved.id, moved.error_details or "")
        if moved.stop_client_id == row.stop_client_id and moved.stop_order_id == row.stop_order_id:
            return self._outcome(SyncAction.STOP_KEPT, moved.id, moved.error_details or "")
        return self._outcome(SyncAction.STOP_MOVED, moved.id, f"to {moved.stop_price}")

    async def take_back_stops(self) -> tuple[SyncOutcome, ...]:
        """Cancel the reduce-only stops of a symbol that has neither a position nor an open row.

        This includes stops unknown to the table: a bot without client order ids may have left them, and they
        would cut the next position short. Where a row has just ended, they are reported and left alone.

        Raises:
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        last = await self._store.last_ended(self._venue.name, self._symbol)
        if await self._scope.open_row() is not None:
            return ()
        # Read the stops first: a stop placed after this read belongs to a position that the next read shows.
        stops = [stop for stop in await self._venue.waiting_stops(self._market) if stop.reduce_only]
        if not stops or await self._venue.holding(self._market) is not None:
            return ()
        if last is not None and last.age_ms < self._grace_ms:
            told = ", ".join(stop.client_id or stop.id for stop in stops)
            details = f"it ended {last.age_ms} ms ago; still waiting, clean up again: {told}"
            return (self._outcome(SyncAction.SETTLING, last.id, details),)
        done = []
        for stop in stops:
            outcome = await self._venue.cancel(stop)
            action = SyncAction.STOP_TAKEN_BACK if isinstance(outcome, Executed) else SyncAction.IN_DOUBT
            done.append(self._outcome(action, None, f"{stop.client_id or stop.id} at {stop.trigger}"))
        return tuple(done)

    # --- inside ---

    async def _row_kept_out(self) -> SyncOutcome | None:
        """Leave alone a row that was written before its market was refused for its units; order nothing."""
        refusal = self._market.refusal
        row = None if refusal is None else await self._store.open_of(self._venue.name, self._symbol)
        if row is None:
            return None
        why = f"its row is left alone and nothing is ordered for it: {refusal}; close the position by hand"
        self._scope.alert(row, why)
        return self._outcome(SyncAction.LEFT_ALONE, row.id, refusal or "")

    async def _sweep_loose(self) -> None:
        by_position: dict[int, list[Intent]] = {}
        for intent in await self._store.loose_stops(self._venue.name, self._symbol):
            by_position.setdefault(intent.position_id, []).append(intent)
        for position_id, intents in by_position.items():
            ended = await self._store.get(position_id)
            if ended is not None:
                await self._flow.sweeper.sweep_loose(self._scope.checked(ended), intents)

    async def _of_resumed(self, row: Position | None) -> SyncOutcome:
        if row is None:
            return self._outcome(SyncAction.ENDED)
        if row.status is PositionStatus.ACTIVE and row.exit_reason is None:
            if await self._store.in_doubt(row, Step.STOP):  # a move of the stop whose answer was lost
                return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may stand twice")
            return self._outcome(SyncAction.RECOVERED, row.id)
        entered = row.status is not PositionStatus.PENDING_ENTRY and row.exit_reason is None
        action = SyncAction.UNPROTECTED if entered else SyncAction.IN_DOUBT
        return self._outcome(action, row.id, row.error_details or row.status.value)

    async def _vanished(self, row: Position) -> SyncOutcome:
        stop = await self._venue.find_stop(self._market, row)
        fired = stop is not None and stop.state is OrderState.CLOSED
        if not fired and row.age_ms < self._grace_ms:  # a fired stop is proof, however young the row
            return self._outcome(SyncAction.SETTLING, row.id, f"entered {row.age_ms} ms ago")
        ended = await self._flow.closed_elsewhere(
            row,
            "stop" if fired else "not on the exchange any more",
            stop.average if fired and stop is not None else None,
        )
        if ended.status.open:
            return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
        return self._outcome(SyncAction.CLOSED, row.id)

    async def _turned(self, row: Position, held: Holding) -> SyncOutcome:
        """Handle a holding on the other side: the row's position has ended, and this is another one."""
        if row.age_ms < self._grace_ms:
            return self._mismatch(row, f"the row is {row.side.value}, the exchange holds {held.side}")
        ended = await self._flow.closed_elsewhere(row, "turned round on the exchange", None)
        if ended.status.open:
            return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
        self._scope.alert(row, f"turned round: {held.side} {held.amount} is held now")
        return self._outcome(SyncAction.CLOSED, row.id, "turned round on the exchange")

    async def _check_stop(self, row: Position, held: Holding) -> SyncOutcome:
        waiting = await self._venue.waiting_stops(self._market)
        if any(is_own(row, stop) for stop in waiting):
            await self._flow.sweeper.sweep_old(row)
            return self._outcome(SyncAction.IN_STEP, row.id)
        stop = await self._venue.find_stop(self._market, row)
        if stop is not None and stop.live:
            return self._outcome(SyncAction.SETTLING, row.id, "its stop is not listed yet")
        if row.age_ms < self._grace_ms:
            return self._outcome(SyncAction.SETTLING, row.id, "its stop is not listed yet")
        if stop is not None and stop.state is OrderState.CLOSED and stop.filled >= row.quantity:
            # The stop has filled. What is held is an echo, or a new position opened elsewhere.
            ended = await self._flow.closed_elsewhere(row, "stop", stop.average)
            if ended.status.open:
                return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
            what = f"its stop has fired; {held.side} {held.amount} is held all the same"
            return self._outcome(SyncAction.CLOSED, row.id, what)
        row = await self._flow.replace_stop(row)
        if row.status is PositionStatus.ACTIVE:
            own = row.stop_client_id in await self._store.stop_ids(row)
            return self._outcome(SyncAction.STOP_PLACED if own else SyncAction.STOP_TAKEN_OVER, row.id)
        if not row.status.open:
            return self._outcome(SyncAction.ENDED, row.id, row.exit_reason or "")
        return await self._of_resumed(row)

    def _outcome(self, action: SyncAction, position_id: int | None = None, details: str = "") -> SyncOutcome:
        return SyncOutcome(self._symbol, action, position_id, details)

    def _mismatch(self, row: Position, message: str) -> SyncOutcome:
        self._scope.alert(row, message)
        return self._outcome(SyncAction.MISMATCH, row.id, message)


def _holds(row: Position, held: Holding | None) -> bool:
    return held is not None and held.side == row.side.entry
