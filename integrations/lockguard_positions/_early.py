"""The order that is made ready while its intent is being committed; one at a time, as a flow places them.

It leaves when the row that was committed says the same, and only then; see ``docs/adr/0015``.
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
        """Whether the table says the same: it may keep fewer digits than it was given."""
        intent, position = progress.intent, progress.position
        if intent is None or replace(self.intent, position_id=position.id) != intent:
            return False
        return intent.step is not Step.ENTRY or position.planned_stop == self.planned


class EarlyOrder:
    """Of one flow.

    Args:
        venue: where it is placed.
    """

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._made: _Made | None = None

    def make_ready(
        self, intent: Intent, ask: Callable[[], Coroutine[Any, Any, Outcome]], planned: Decimal | None = None
    ) -> None:
        """Begin to place the order of an intent that is yet to be committed.

        Args:
            intent: the same.
            ask: places it.
            planned: for an entry, where its stop is meant to be.
        """
        prepared = self._venue.prepare(ask, intent)
        self._made = None if prepared is None else _Made(intent, planned, prepared)

    async def send(self, committed: Progress) -> None:
        """Let it leave, if it is the very one whose intent is committed now."""
        if self._made is not None and self._made.is_of(committed):
            await self._made.prepared.send()

    async def placed(self, intent: Intent, ask: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """What became of the order of an intent: of the one that has left already, or of one made now."""
        made = self._made
        if made is not None and made.prepared.sent:
            assert made.intent.client_id == intent.client_id
            outcome = await made.prepared.outcome()
            self._made = None
            return outcome
        await self.drop()
        return await ask()

    async def drop(self) -> None:
        """Leave it; one that has left already is in doubt then, and its intent is in the table."""
        if self._made is not None:
            await self._made.prepared.drop()
            self._made = None
