"""Whether what the exchange holds is still what a row's entry opened.

An account in one-way mode keeps one position per symbol, without a name. Side, amount and average price do
not tell whose it is: where one tick is a large share of the price, a person who closes a position and opens
it again pays the same price. So the account's fills since the entry are read too.
"""

from __future__ import annotations

from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING

from lockguard_positions._errors import ExchangeUnreadable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard_ccxt import Fill, Holding, Side
    from lockguard_positions._model import Position
    from lockguard_positions._scope import SymbolScope

__all__ = ["Owner", "Whose", "fills_since_entry", "is_as_written", "is_ours"]

_PRICE_SHARE = Decimal("0.0001")
"""The share by which the average prices of an order and of its position may differ.

Exchanges round the two differently, such as to the tick for an order of several fills."""
_PROOF_S = 1.0
"""For how long a proof counts, in seconds from its first read on."""


class Whose(Enum):
    """Whose a row's position is, as far as the exchange shows."""

    OURS = "what this row's own order entered"
    NOTHING = "nothing is held"
    ANOTHERS = "another order has enlarged it since the entry"
    UNPROVED = "not what the row says, or not shown now"


class Owner:
    """Proves that a position is ours before each exit that nobody asked for.

    A proof is read again before an exit that leaves more than a second after it: while an order is waited for
    or refused, a person may close the position and open one of their own.

    Args:
        scope: the symbol and its lease.
    """

    def __init__(self, scope: SymbolScope) -> None:
        self._scope = scope
        self._proved_at: dict[int, float] = {}  # by the position's id, on the scope's clock

    async def look(self, position: Position, *, quietly: bool = False) -> Whose:
        """Read whose a position is.

        Args:
            position: the row.
            quietly: whether an exchange that does not answer has proved nothing, and is no error.

        Raises:
            ExchangeUnreadable: the exchange did not answer.
        """
        began = self._scope.clock.now()
        try:
            fills = await fills_since_entry(self._scope, position)
            held = await self._scope.venue.holding(self._scope.market)
        except ExchangeUnreadable:
            if not quietly:
                raise
            return Whose.UNPROVED
        if held is None:
            return Whose.NOTHING
        if is_ours(self._scope, position, held, fills):
            self._proved_at[position.id] = began
            return Whose.OURS
        entry = position.entry_order_id
        if fills is not None and entry is not None and _enlarged(fills, entry, position.side.entry):
            return Whose.ANOTHERS
        return Whose.UNPROVED

    async def is_sure(self, position: Position) -> bool:
        """Whether a position was proved to be ours within the last second, or is proved now."""
        if self._is_fresh(position):
            return True
        if await self.look(position, quietly=True) is not Whose.OURS:
            return False
        return self._is_fresh(position) or await self._has_stayed(position)

    async def _has_stayed(self, position: Position) -> bool:
        """Read the fills again, behind what is held, where the reads of a proof took longer than it counts.

        What a person has traded since the first read is among them. The exchange is slow, and the position
        may be beyond its stop: that proof decides, however long it took.
        """
        entry, began = position.entry_order_id, self._scope.clock.now()
        try:
            fills = await fills_since_entry(self._scope, position)
        except ExchangeUnreadable:
            return False
        if fills is None or entry is None or _enlarged(fills, entry, position.side.entry):
            return False
        self._proved_at[position.id] = began
        return True

    def _is_fresh(self, position: Position) -> bool:
        proved_at = self._proved_at.get(position.id)
        return proved_at is not None and self._scope.clock.now() - proved_at < _PROOF_S


async def fills_since_entry(scope: SymbolScope, position: Position) -> tuple[Fill, ...] | None:
    """The account's fills since a row's entry; ``None`` if it has none, or not all of them are shown.

    They are read before what is held, which is to be the last read before an order that reduces it.

    Raises:
        ExchangeUnreadable: the exchange did not answer.
    """
    entry = position.entry_order_id
    return None if entry is None else await scope.venue.fills_since(scope.market, entry)


def is_ours(scope: SymbolScope, position: Position, held: Holding, fills: tuple[Fill, ...] | None) -> bool:
    """Whether what is held is certainly what this row's own order entered, and nothing has changed it since.

    Side and amount are the row's, the average price is within one tick or 0.01 %, whichever is more, and the
    exchange shows that no other order has bought (for a short: sold) since the entry's first fill. Orders
    that reduce may be the row's own stops and exits; after any other the amount is not the row's.

    Args:
        scope: the symbol.
        position: the row.
        held: what the exchange holds.
        fills: what :func:`fills_since_entry` returned before ``held`` was read.
    """
    entry = position.entry_order_id
    if entry is None or position.entry_price is None or not _agrees(scope, position, held):
        return False
    return fills is not None and not _enlarged(fills, entry, position.side.entry)


def is_as_written(
    scope: SymbolScope, position: Position, held: Holding, fills: tuple[Fill, ...] | None
) -> bool:
    """Whether what is held is, as far as the exchange shows, what the row has been written for.

    Enough for an exit that a person asked for. As :func:`is_ours`, but of the fills it only counts whether
    they show that the entry's position has ended. A position that was adopted has no entry to read fills
    since; its price has been copied from the exchange, so it has to be the same.
    """
    if not _agrees(scope, position, held):
        return False
    return fills is None or not _has_ended(fills, position.side.entry)


def _agrees(scope: SymbolScope, position: Position, held: Holding) -> bool:
    if held.side != position.side.entry or held.amount != position.quantity or held.entry_price is None:
        return False
    if position.entry_price is None:
        return True
    apart = abs(held.entry_price - position.entry_price)
    if not position.opened_here:
        return not apart
    return apart <= max(scope.market.rules.price_tick, position.entry_price * _PRICE_SHARE)


def _enlarged(fills: Iterable[Fill], entry: str, side: Side) -> bool:
    """Whether an order other than the entry has traded on the entry's side."""
    return any(fill.side == side and fill.order_id != entry for fill in fills)


def _has_ended(fills: Iterable[Fill], entry: Side) -> bool:
    """Whether a position that the first of ``fills`` opened was gone or turned round at any time since.

    Fills of one millisecond are listed in no certain order: those that reduce count first.
    """
    amount = Decimal(0)
    for fill in sorted(fills, key=lambda fill: (fill.at_ms, fill.side == entry)):
        amount += fill.amount if fill.side == entry else -fill.amount
        if amount <= 0:
            return True
    return False
