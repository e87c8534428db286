"""What stays the same for one symbol while one lease on it is held, shared by all code that works on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lockguard_ccxt import UnknownMarket
from lockguard_positions._events import Alert, Moved, PositionEvent
from lockguard_positions._model import Position

if TYPE_CHECKING:
    from lockguard._clock import Clock
    from lockguard._lease import Lease
    from lockguard_ccxt import Market
    from lockguard_positions._pace import Pace
    from lockguard_positions._store import PositionStore
    from lockguard_positions._venue import Venue

__all__ = ["SymbolScope"]


@dataclass(frozen=True, slots=True)
class SymbolScope:
    """One symbol under one lease.

    Attributes:
        store: the rows.
        venue: the exchange.
        market: the symbol's market there; it was looked up once and is not looked up again.
        lease: on the market's resource; every write and every order is made under it.
        pace: the bounds of every wait.
        clock: measures the time without a stop.
        emit: called with every change and every alert.

    Raises:
        UnknownMarket: the lease is on another name: a row's market is no longer listed, and its name now
            stands for another one.
    """

    store: PositionStore
    venue: Venue
    market: Market
    lease: Lease
    pace: Pace
    clock: Clock
    emit: Callable[[PositionEvent], None]

    def __post_init__(self) -> None:
        if self.market.resource != self.lease.resource:  # else one's rows were read under the other's lease
            raise UnknownMarket(
                f"{self.lease.resource} is not listed any more; its name leads to {self.market.symbol}"
            )

    @property
    def symbol(self) -> str:
        """The symbol in the table's spelling."""
        return self.market.name

    async def open_row(self) -> Position | None:
        """The open row of the symbol.

        Raises:
            UnknownMarket: the row was written for another market, which had this name then.
        """
        row = await self.store.open_of(self.venue.name, self.symbol)
        return None if row is None else self.checked(row)

    async def open_rows(self) -> tuple[Position, ...]:
        """Every open row of the symbol, where there may be several; raises as :meth:`open_row`."""
        return tuple(map(self.checked, await self.store.all_open_of(self.venue.name, self.symbol)))

    def checked(self, row: Position) -> Position:
        """The row, if it was written for this market, so that none of its orders goes to another one.

        Raises:
            UnknownMarket: the row was written for another market.
        """
        if row.traded_as not in {self.symbol, self.market.symbol}:
            raise UnknownMarket(
                f"position {row.id} is one in {row.traded_as}, and {self.symbol} stands for"
                f" {self.market.symbol} now"
            )
        return row

    def moved(
        self, now: Position, before: Position | None, *, without_stop_ms: float | None = None
    ) -> Position:
        """Emit that a row was written; returns the row as it is now."""
        self.venue.own_rows.moved(now)
        status = None if before is None else before.status
        self.emit(Moved(now, status, self.lease.grant.operation, without_stop_ms))
        return now

    def alert(self, position: Position | None, message: str) -> None:
        """Emit an alert about the position, or about the resource if there is no row."""
        self.emit(Alert(self.lease.resource, None if position is None else position.id, message))
