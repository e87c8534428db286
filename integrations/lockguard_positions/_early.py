"""An order that is prepared while its intent is being committed; one at a time, as a flow places orders.

It is sent only once the committed row agrees with it; see ``docs/adr/0015``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lockguard_ccxt import Outcome, Step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from lockguard_ccxt._prepared import Prepared
    from lockguard_positions._model import Intent, Progress
    from lockguard_positions._venue import Venue

__all__ = ["EarlyOrder"]


@dataclass(frozen=True, slots=True)
class _Made:
    intent: Intent
    planned: Decimal | None
    prepared: Prepared[Outcome]

    def is_of(self, progress: Progress) -> bool:
        """Whether the committed row agrees: the table may keep fewer digits than it was given."""
        intent, position = progress.intent, progress.position
        if intent is None or replace(self.intent, position_id=position.id) != intent:
            return False
        return intent.step is not Step.ENTRY or position.planned_stop == self.planned


class EarlyOrder:
    """The prepared order of one flow.

    Args:
        venue: the exchange where the order is placed.
    """

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._made: _Made | None = None

    def make_ready(
        self, intent: Intent, ask: Callable[[], Coroutine[Any, Any, Outcome]], planned: Decimal | None = None
    ) -> None:
        """Begin to place the order of an intent that is yet to be committed.

        Args:
            intent: the intent.
            ask: places its order.
            planned: for an entry, the planned price of its stop.
        """
        prepared = self._venue.prepare(ask, intent)
        self._made = None if prepared is None else _Made(intent, planned, prepared)

    async def send(self, committed: Progress) -> None:
        """Send the prepared order, if it is exactly the one whose intent was committed."""
        if self._made is not None and self._made.is_of(committed):
            await self._made.prepared.send()

    async def placed(self, intent: Intent, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """What became of an intent's order: the prepared one if it was sent, otherwise one placed now."""
        made = self._made
        if made is not None and made.prepared.sent:
            assert made.intent.client_id == intent.client_id
            outcome = await made.prepared.outcome()
            self._made = None
            return outcome
        await self.drop()
        return await ask()

    async def drop(self) -> None:
        """Drop the prepared order; if it was sent, it is then in doubt, and its intent is in the table."""
        if self._made is not None:
            await self._made.prepared.drop()
            self._made = None
