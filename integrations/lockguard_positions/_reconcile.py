"""Reconciling one symbol: its row, the exchange and the stop are brought together under its lease.

Everything is read again here, under the lease. What a pass read before only selects the symbols: a pass that
decided on a list read earlier made 60 duplicates in 80 opens, even with a lease.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard.errors import ConfigurationError
from lockguard_ccxt import Executed, Step
from lockguard_positions._account import check_account
from lockguard_positions._errors import DuplicatePosition
from lockguard_positions._fired import filled_before
from lockguard_positions._flow import STAGES
from lockguard_positions._model import (
    GONE,
    Adopt,
    Intent,
    NewPosition,
    Position,
    PositionSide,
    SyncAction,
    SyncOutcome,
)
from lockguard_positions._status import PositionStatus
from lockguard_positions._stops import covers, ended_it, filled_in_part, filled_whole, is_own
from lockguard_positions._venue import give_up, too_small

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard_ccxt import Holding, PlacedOrder
    from lockguard_positions._flow import Flow
    from lockguard_positions._scope import SymbolScope
    from lockguard_positions._venue import Quote

__all__ = ["Ground", "Reconciler"]

_HAS_ITS_STOP = frozenset({SyncAction.STOP_PLACED, SyncAction.STOP_TAKEN_OVER})


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

    async def settle(self) -> tuple[Position | None, Position | None]:
        """Finish what an earlier holder left: stops in doubt of ended positions, then the open row.

        Returns:
            The open row, if one is left, and the row as it was before, if it was half done.

        Raises:
            ExchangeUnreadable: the exchange did not answer; nothing was decided.
        """
        await self._sweep_loose()
        row = await self._scope.open_row()
        if row is None:
            return None, None
        stage = STAGES[row.status]
        doubtful = (Step.CLOSE, *stage.intents, Step.ENTRY)
        if stage.rests and await self._store.in_doubt(row, *doubtful) is None:
            self._flow.rest.none_of(row)
            return row, None
        resumed = await self._flow.resume(row)
        return (resumed if resumed.status.open else None), row

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
            row, left = await self.settle()
            resumed = left is not None
            if row is not None and row.unsettled:
                closing = await self._store.in_doubt(row, Step.CLOSE)
                return Ground(row, gone=closing is not None and closing.ended)
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
            if stop is not None and filled_whole(stop, row):
                break
            await asyncio.sleep(self._poll_s)
            until_ms += self._poll_s * 1000
            held = await self._venue.holding(self._market)
        if _holds(row, held):
            return row, False
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
        outcome = await self._reconciled()
        row = await self._scope.open_row() if outcome.action.settled and self._flow.rest.any else None
        if row is not None and self._flow.rest.of(row):
            what = "what is left of its entry could still be filled, or has no stop yet"
            return self._outcome(SyncAction.IN_DOUBT, row.id, what)
        return outcome

    async def _reconciled(self) -> SyncOutcome:
        if (kept_out := await self._row_kept_out()) is not None:
            return kept_out
        row, left = await self.settle()
        if left is None:
            return await self._compare(row)
        finished = await self._of_resumed(row)
        if row is None or left.status is not PositionStatus.ACTIVE or row.exit_reason is not None:
            return finished
        # A move of the stop, or the end of an exit, says nothing about what is held, nor about the old stop.
        moving = not finished.action.settled
        its_stop, before = (row.stop_order_id, row.stop_client_id), (left.stop_order_id, left.stop_client_id)
        outcome = await self._compare(row, new_stop=its_stop != before, moving=moving)
        if outcome.action is SyncAction.IN_STEP:
            return finished
        if outcome.action in _HAS_ITS_STOP and await self._store.in_doubt(row, Step.STOP):
            details = f"{outcome.action.value}; the last move of its stop may still arrive"
            return self._outcome(SyncAction.IN_DOUBT, row.id, details)
        return outcome

    async def _compare(
        self, row: Position | None, *, new_stop: bool = False, moving: bool = False
    ) -> SyncOutcome:
        """Compare a row with what the exchange holds.

        Args:
            row: the row, at rest but for a move of its stop.
            new_stop: whether its stop was placed just now, so that it may not be listed yet.
            moving: whether a move of its stop is in doubt, so that another stop of it may be the new one.
        """
        held = await self._venue.holding(self._market)
        if row is None:
            return self._outcome(SyncAction.IN_STEP) if held is None else await self.adopt(held)
        if held is None:
            return await self._vanished(row)
        if PositionSide.read(held.side) is not row.side:
            return await self._turned(row, held)
        waiting = await self._venue.waiting_stops(self._market)
        if new_stop:
            # Lists lag: a stop that was placed a moment ago may not be listed yet.
            own = self._venue.placed_stop(self._market, row)
            if own is not None and not any(is_own(row, stop) for stop in waiting):
                waiting = (*waiting, own)
            outcome = self._outcome(SyncAction.IN_STEP, row.id)
        else:
            outcome = await self._check_stop(row, held, waiting, moving=moving)
        if self._flow.rest.of(row):
            # Another part of it may have been filled a moment ago: the next pass records that.
            held = replace(held, amount=row.quantity)
        if outcome.action is SyncAction.IN_STEP:
            also = await self._in_step(row, held, outcome)
            if also.action not in {SyncAction.IN_STEP, SyncAction.MISMATCH}:
                return also
            return _both(self._flow.sweeper.tell_of_rest(row, waiting, held.amount), also)
        if outcome.action is SyncAction.UNPROTECTED and held.amount > row.quantity:
            return _both(outcome.details, await self._differs(row, held))
        return outcome

    async def _in_step(self, row: Position, held: Holding, outcome: SyncOutcome) -> SyncOutcome:
        """Tell what else a person should know of a position whose stop stands; ``outcome`` if nothing."""
        if held.amount != row.quantity:
            return await self._differs(row, held)
        if self._market.rules.reduction(row.quantity) is None:
            # Told while it lasts, as the day on which it is to be closed is too late.
            why = f"the position cannot be closed by an order: {too_small(self._market, row.quantity)}"
            return self._mismatch(row, why)
        if not row.opened_here and (also := await self._known_by_another_label()) is not None:
            return await self._twice(row, also, held)
        return outcome

    async def _twice(self, row: Position, also: Position, held: Holding) -> SyncOutcome:
        """Handle a position that the passes of two labels have adopted at the same time.

        The younger row ends, with its stop, once the older one's stop stands and covers all that is held. If
        one has taken over the other's, both stay: the row would end with the only stop of the position.
        """
        why = f"it is row {row.id} of {self._venue.name}, and {self._one_label(also)}"
        if also.id < row.id and also.status is PositionStatus.ACTIVE:
            stop = await self._venue.find_stop(self._market, also)
            if stop is not None and stop.live and covers(stop, held.amount) and not is_own(row, stop):
                self._scope.alert(row, why)
                await self._end(row, f"duplicate of position {also.id} of {also.exchange}")
                return self._outcome(SyncAction.ENDED, row.id, why)
        return self._mismatch(row, why)

    def _one_label(self, also: Position) -> str:
        return (
            f"it is row {also.id} of {also.exchange}, whose order this account has too."
            " One account under two labels has two locks;"
            f" give {self._venue.name} and {also.exchange} one label"
        )

    async def _differs(self, row: Position, held: Holding) -> SyncOutcome:
        """Handle another amount than the row's: what its stops have filled is written, the rest is told."""
        filled = Decimal(0)
        if held.amount < row.quantity:
            filled = await filled_before(self._scope, row)
        if filled and row.quantity - filled == held.amount:
            row = await self._store.stop_filled(self._lease, row, filled)
            return self._outcome(SyncAction.IN_STEP, row.id, f"its stops have filled {filled}")
        return self._mismatch(row, f"the row says {row.quantity}, the exchange holds {held.amount}")

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
            why = f"{what}: {self._one_label(also)}"
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
        row, left = await self.settle()
        if row is None or row.status is not PositionStatus.ACTIVE:
            state = "no open position" if row is None else f"a position that is {row.status.value}"
            raise ConfigurationError(
                f"{self._lease.resource} has {state}; only an active one's stop is moved"
            )
        intent = None if left is None else await self._store.in_doubt(row, Step.CLOSE, Step.STOP)
        if intent is not None:
            # An exit may have closed it: another stop would be for nothing, or cut the next position short.
            # An earlier move that arrives late would take the place of this one.
            what = "exit" if intent.step is Step.CLOSE else "last move"
            return self._outcome(SyncAction.IN_DOUBT, row.id, f"its {what} is in doubt, its stop not moved")
        await check_account(self._scope, row)
        moved = await self._flow.drive(await self._store.expect_move(self._lease, row, trigger))
        if moved.status is not PositionStatus.ACTIVE or await self._store.in_doubt(moved, Step.STOP):
            return self._outcome(SyncAction.IN_DOUBT, moved.id, moved.error_details or "")
        if moved.stop_client_id == row.stop_client_id and moved.stop_order_id == row.stop_order_id:
            if not _holds(moved, await self._venue.holding(self._market)):
                return await self._compare(moved)  # its old stop fired meanwhile: none is kept
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
            if await self._store.loose_stops(self._venue.name, self._symbol):
                return self._outcome(SyncAction.IN_DOUBT, None, "it has ended; a stop of it may still arrive")
            return self._outcome(SyncAction.ENDED)
        if row.status is PositionStatus.ACTIVE and row.exit_reason is None:
            if await self._store.in_doubt(row, Step.STOP):  # a move of the stop whose answer was lost
                return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may stand twice")
            return self._outcome(SyncAction.RECOVERED, row.id)
        if row.status is PositionStatus.PENDING_ENTRY:
            return self._outcome(SyncAction.IN_DOUBT, row.id, row.error_details or row.status.value)
        return await self._without_stop(row)

    async def _without_stop(self, row: Position) -> SyncOutcome:
        """Tell a position that has no stop from a row that only waits for one, as its position is gone."""
        noted = await self._store.get(row.id) or row
        if noted.exit_reason is not None or noted.error_details == GONE:
            return self._outcome(SyncAction.IN_DOUBT, row.id, noted.error_details or noted.status.value)
        return self._outcome(SyncAction.UNPROTECTED, row.id, noted.error_details or noted.status.value)

    async def _vanished(self, row: Position) -> SyncOutcome:
        stop = await self._venue.find_stop(self._market, row)
        fired = stop is not None and ended_it(stop, row)
        if stop is not None and stop.filling:  # its rest would reduce what is opened next
            return self._outcome(SyncAction.SETTLING, row.id, "its stop is being filled")
        # A stop that has filled all of it is proof, however young the row.
        whole = stop is not None and filled_whole(stop, row)
        if not whole and row.age_ms < self._grace_ms:
            return self._outcome(SyncAction.SETTLING, row.id, f"entered {row.age_ms} ms ago")
        ended = await self._end(row, "stop" if fired else "not on the exchange any more")
        if ended.status.open:
            return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
        return self._outcome(SyncAction.CLOSED, row.id)

    async def _turned(self, row: Position, held: Holding) -> SyncOutcome:
        """Handle a holding on the other side: the row's position has ended, and this is another one."""
        if row.age_ms < self._grace_ms:
            return self._mismatch(row, f"the row is {row.side.value}, the exchange holds {held.side}")
        self._scope.alert(row, f"turned round: {held.side} {held.amount} is held now")
        ended = await self._end(row, "turned round on the exchange")
        if ended.status.open:
            return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
        return self._outcome(SyncAction.CLOSED, row.id, "turned round on the exchange")

    async def _check_stop(
        self, row: Position, held: Holding, waiting: Iterable[PlacedOrder], *, moving: bool
    ) -> SyncOutcome:
        if any(is_own(row, stop) for stop in waiting):
            if not moving:
                await self._flow.sweeper.sweep_old(row)
            return self._outcome(SyncAction.IN_STEP, row.id)
        stop = await self._venue.find_stop(self._market, row)
        if stop is not None and (stop.live or stop.filling):
            return self._still_there(row, stop)
        fired = stop is not None and filled_in_part(stop, row)  # proof, however young the row
        if not fired and row.stop_order_id is not None and row.age_ms < self._grace_ms:
            return self._outcome(SyncAction.SETTLING, row.id, "its stop is not listed yet")
        if stop is None:
            await check_account(self._scope, row)
        if stop is not None and filled_whole(stop, row):
            # The stop has filled. What is held is an echo, or a new position opened elsewhere.
            ended = await self._end(row, "stop")
            if ended.status.open:
                return self._outcome(SyncAction.IN_DOUBT, row.id, "its stop may still be waiting")
            what = f"its stop has fired; {held.side} {held.amount} is held all the same"
            return self._outcome(SyncAction.CLOSED, row.id, what)
        return await self._replace_stop(row)

    async def _replace_stop(self, row: Position) -> SyncOutcome:
        now = await self._flow.replace_stop(row)
        if now is None:
            return await self._without_stop(row)
        if now.status is PositionStatus.ACTIVE:
            own = now.stop_client_id in await self._store.stop_ids(now)
            return self._outcome(SyncAction.STOP_PLACED if own else SyncAction.STOP_TAKEN_OVER, now.id)
        if not now.status.open:
            return self._outcome(SyncAction.ENDED, now.id, now.exit_reason or "")
        return await self._of_resumed(now)

    async def _end(self, row: Position, reason: str) -> Position:
        """End a row whose position the exchange no longer holds; it stays open while a stop may be left."""
        return await self._flow.drive(await self._flow.ended(row, reason))

    def _still_there(self, row: Position, stop: PlacedOrder) -> SyncOutcome:
        if not stop.filling:
            return self._outcome(SyncAction.SETTLING, row.id, "its stop is not listed yet")
        self._scope.alert(row, f"its stop has filled {stop.filled} of {row.quantity}, and is not done yet")
        return self._outcome(SyncAction.SETTLING, row.id, "its stop is being filled")

    def _outcome(self, action: SyncAction, position_id: int | None = None, details: str = "") -> SyncOutcome:
        return SyncOutcome(self._symbol, action, position_id, details)

    def _mismatch(self, row: Position, message: str) -> SyncOutcome:
        self._scope.alert(row, message)
        return self._outcome(SyncAction.MISMATCH, row.id, message)


def _both(bare: str, also: SyncOutcome) -> SyncOutcome:
    """What is held without a stop, and what else is wrong; the former decides the action.

    A part without a stop has no bound on its loss, whatever the row says of it.
    """
    if not bare:
        return also
    told = f"{bare}; {also.details}" if also.action is SyncAction.MISMATCH else bare
    return replace(also, action=SyncAction.UNPROTECTED, details=told)


def _holds(row: Position, held: Holding | None) -> bool:
    return held is not None and held.side == row.side.entry
