"""Holds all opens of a round at one phase until a complete pass has been made.

A pass that begins and ends while every open is at the same phase shows only what a pass does at that phase.
With passes made all the time, some phase always lets a pass through, and it is not visible which.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lockguard_ccxt import GuardedExchange, Outcome, Patience

if TYPE_CHECKING:
    from decimal import Decimal

    from lockguard_ccxt import Market, Side
    from lockguard_lab.race.settings import Phase

__all__ = ["HeldExchange", "Line", "hold_orders"]


class Line:
    """Holds the opens of one process and round at a phase.

    Args:
        phase: the phase at which opens wait.
    """

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self._expected = 0
        self._here: set[str] = set()
        self._full = asyncio.Event()
        self._go = asyncio.Event()

    def begin(self, opens: int) -> None:
        """Begin a round of ``opens`` opens, each of a symbol of its own."""
        self._expected = opens
        self._here.clear()
        self._full.clear()
        self._go.clear()
        self._look()

    async def reached(self, phase: Phase, symbol: str) -> None:
        """Called when an open reaches a phase: waits if it is the line's phase, the first time only."""
        if phase != self._phase or symbol in self._here:
            return
        self.over(symbol)
        await self._go.wait()

    def over(self, symbol: str) -> None:
        """Note that an open is at the phase, or has ended without reaching it."""
        self._here.add(symbol)
        self._look()

    async def full(self) -> None:
        """Wait until every open is at the phase or has ended."""
        await self._full.wait()

    def go(self) -> None:
        """Let all opens go on."""
        self._go.set()

    def _look(self) -> None:
        if len(self._here) >= self._expected:
            self._full.set()


class HeldExchange(GuardedExchange):
    """A guarded exchange whose entries and stops wait in a line before or after they are placed."""

    def __init__(self, exchange: Any, *, patience: Patience, line: Line) -> None:
        super().__init__(exchange, patience=patience)
        self._line = line

    async def place_entry(self, symbol: str | Market, side: Side, amount: Decimal, **options: Any) -> Outcome:
        """As it is there."""
        await self._line.reached("before-order", self.unified(symbol))
        outcome = await super().place_entry(symbol, side, amount, **options)
        await self._line.reached("after-order", self.unified(symbol))
        return outcome

    async def place_stop(self, symbol: str | Market, side: Side, amount: Decimal, **options: Any) -> Outcome:
        """As it is there."""
        await self._line.reached("before-stop", self.unified(symbol))
        outcome = await super().place_stop(symbol, side, amount, **options)
        await self._line.reached("after-stop", self.unified(symbol))
        return outcome


def hold_orders(client: Any, line: Line) -> None:
    """Have the entries and stops of a plain ccxt exchange wait in a line; closing orders do not wait."""
    send = client.create_order

    async def create_order(
        symbol: str, kind: str, side: str, amount: float, price: float | None = None, params: Any = None
    ) -> Any:
        stop = "stopLossPrice" in (params or {})
        if not stop and side != "buy":  # all signals of a race are long
            return await send(symbol, kind, side, amount, price, params or {})
        await line.reached("before-stop" if stop else "before-order", symbol)
        order = await send(symbol, kind, side, amount, price, params or {})
        await line.reached("after-stop" if stop else "after-order", symbol)
        return order

    client.create_order = create_order
