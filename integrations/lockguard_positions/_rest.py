"""What is left of an entry that was filled in part, and could not be taken back.

Such an entry is recorded with the part that was filled, so that its stop stands at once. Until nothing more
of it can be filled, its intent stays in doubt, and whoever holds the symbol takes the rest back, reads the
order itself, records what it has filled since, and has the stop cover that too. Only fills of the row's own
entry make a row larger: whatever else is held may be a person's.

An entry that was filled whole, or taken back, is settled with its row, and costs no request here.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

from lockguard_ccxt import Step
from lockguard_positions._errors import ExchangeUnreadable
from lockguard_positions._fired import less_its_stop
from lockguard_positions._model import IntentOutcome, Progress
from lockguard_positions._status import PositionStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lockguard_ccxt import PlacedOrder
    from lockguard_positions._model import Intent, Position
    from lockguard_positions._scope import SymbolScope

__all__ = ["EntryRest", "Rest"]

_LOOKS_MAX = 2
"""How often one drive looks: the second look is at what became of the stop that the first has led to."""


@dataclass(frozen=True, slots=True)
class Rest:
    """An entry whose row was written before it was done, and its order.

    Attributes:
        entry: the intent to enter.
        order: its order, read after it was taken back; ``None`` while the exchange does not show it.
        open: whether more of it may still be filled.
    """

    entry: Intent
    order: PlacedOrder | None
    open: bool

    @property
    def unrecorded(self) -> Decimal:
        """What the order has filled that the row does not have yet."""
        return Decimal(0) if self.order is None else self.order.filled - self.entry.entered_since


class EntryRest:
    """Follows what is left of the entries of one symbol, under its lease.

    Args:
        scope: the symbol and its lease.
        with_its_stop: places the stop of an active row that has none.
    """

    def __init__(
        self, scope: SymbolScope, with_its_stop: Callable[[Position], Awaitable[Progress | None]]
    ) -> None:
        self._scope, self._with_its_stop = scope, with_its_stop
        self._store, self._venue = scope.store, scope.venue
        self._lease, self._market = scope.lease, scope.market
        self._entries: dict[int, Intent | None] = {}  # by the row's id, as far as they are known
        self._looks: Counter[int] = Counter()

    # --- what is known ---

    def rests(self, position: Position, entry: Intent, order: PlacedOrder) -> None:
        """Note that an entry is about to be recorded with what it has filled, and could fill more."""
        self._entries[position.id] = replace(entry, sent_before=True, entered_since=order.filled)

    def none_of(self, position: Position) -> None:
        """Note that nothing of a row's entry can be filled any more, as the table says."""
        self._entries[position.id] = None

    @property
    def any(self) -> bool:
        """Whether, as far as is known, some row has an entry of which more may be filled."""
        return any(entry is not None for entry in self._entries.values())

    async def look_up(self, position: Position) -> Intent | None:
        """The intent of an entry that could still be filled; read from the table once under one lease."""
        if position.id not in self._entries:
            entry = await self._store.in_doubt(position, Step.ENTRY)
            # One of which the row has nothing was never recorded: what it has filled is the row's quantity.
            self._entries[position.id] = entry if entry is not None and entry.entered_since else None
        return self._entries[position.id]

    def noted(self, position: Position) -> bool:
        """Whether, as far as is known without a look, more of an entry may be filled than its row has."""
        return self._entries.get(position.id) is not None

    def of(self, position: Position) -> bool:
        """The same of a row whose entry is recorded."""
        return position.status is not PositionStatus.PENDING_ENTRY and self.noted(position)

    def due(self, position: Position) -> bool:
        """Whether :meth:`catch_up` is the next step for a row in this drive."""
        return self.of(position) and self._looks[position.id] < _LOOKS_MAX

    def begin(self) -> None:
        """Begin a drive, which tries again what an earlier one could not do."""
        self._looks.clear()

    # --- what is done ---

    async def catch_up(self, position: Position) -> Progress | None:
        """Take the rest back, record what was filled of it, and have the stop cover that.

        Raises:
            ExchangeUnreadable: the exchange did not answer what was asked about the stop.
        """
        self._looks[position.id] += 1
        try:
            rest = await self.taken_back(position)
        except ExchangeUnreadable as exc:
            self._looks[position.id] = _LOOKS_MAX  # its stop does not wait for what cannot be read now
            self._scope.alert(position, f"what is left of its entry cannot be read now: {exc}")
            return Progress(position)
        if rest is None:
            return Progress(position)
        if rest.unrecorded > 0:
            position = await self._record(position, rest)
        progress = await self._with_its_stop(position) if position.names_no_stop else Progress(position)
        # What has its stop by now may have taken over one of before, for less of it.
        covering = None if progress is None else await self._covering(progress.position)
        if covering is not None:
            return covering
        if not rest.open:
            await self.settle(position, rest)
        self._looks[position.id] = _LOOKS_MAX
        return progress

    async def taken_back(self, position: Position) -> Rest | None:
        """What is left of a row's entry, after it was cancelled, or could not be; ``None`` if nothing is.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        entry = await self.look_up(position)
        if entry is None:
            return None
        order = await self._venue.find(self._market, entry)
        if order is not None and order.live:
            await self._venue.cancel(order)
            order = await self._venue.find(self._market, entry) or order
        if order is None and entry.age_ms >= self._venue.in_doubt_ms:
            # The exchange has forgotten it: one that can still be filled is never forgotten.
            return Rest(entry, None, open=False)
        if order is None or order.live:
            filled = entry.entered_since if order is None else order.filled
            why = f"{entry.client_id} has filled {filled} of {entry.amount}, and cannot be taken back now"
            self._scope.alert(position, f"what is left of its entry could still be filled: {why}")
        return Rest(entry, order, open=order is None or order.live)

    async def settle(self, position: Position, rest: Rest) -> None:
        """Settle an entry of which nothing can be filled any more."""
        order_id = None if rest.order is None else rest.order.id
        executed = IntentOutcome.EXECUTED
        await self._store.settle(self._lease, position, rest.entry, executed, order_id=order_id)
        self.none_of(position)

    async def closed_before(
        self, position: Position, rest: Rest, closing: Intent, by: PlacedOrder | None, *, again: bool
    ) -> Progress:
        """Record what an entry has filled after all that its row had was closed: that is what is left now.

        Args:
            position: the row.
            rest: what is left of its entry, with something that is not recorded yet.
            closing: the intent to close.
            by: its order, if one has closed the rest of the row.
            again: whether what was filled since is to be closed as well.
        """
        assert rest.order is not None
        progress = await self._store.entry_filled(
            self._lease, position, rest.order, closing=closing, by=by, again=again
        )
        self._recorded(position, progress.position, rest)
        return progress

    async def _record(self, position: Position, rest: Rest) -> Position:
        assert rest.order is not None
        now = (await self._store.entry_filled(self._lease, position, rest.order)).position
        self._recorded(position, now, rest)
        return now

    def _recorded(self, before: Position, now: Position, rest: Rest) -> None:
        assert rest.order is not None
        self._entries[now.id] = replace(rest.entry, entered_since=rest.order.filled)
        self._scope.moved(now, before)
        why = f"{rest.unrecorded} more of {rest.entry.client_id}, and its row says {now.quantity} now"
        self._scope.alert(now, f"its entry was filled further: {why}")

    async def _covering(self, position: Position) -> Progress | None:
        """The way to a stop for all of a row, whose own was placed for less of it; ``None`` if it has one.

        A stop that a person placed for a part is kept, and told of by each pass.
        """
        if position.status is not PositionStatus.ACTIVE:
            return None  # its stop is yet to be placed
        _, placed, _ = await self._store.stops_of(position)
        own = next((one for one in placed if one.client_id == position.stop_client_id), None)
        if own is None or own.amount >= position.quantity or position.stop_price is None:
            return None
        if self._looks[position.id] >= _LOOKS_MAX:
            return Progress(position)  # it was not to be had a moment ago; the next pass tries again
        stop = await self._venue.find_stop(self._market, position)
        if stop is not None and stop.filling:
            self._looks[position.id] = _LOOKS_MAX
            return Progress(position)  # a later pass reads what it came to
        now = await less_its_stop(self._scope, position)
        if now.stop_client_id is None:
            return Progress(now)  # it has fired, so that the next look finds none
        by_hand = None if stop is None or not stop.live else stop.trigger
        return await self._store.expect_move(self._lease, now, by_hand or position.stop_price)
